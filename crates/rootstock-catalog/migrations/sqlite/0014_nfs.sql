-- Whether an administrator lets the head's kernel mount an image's file systems, to
-- export them over NFS.
ALTER TABLE image ADD COLUMN nfs INTEGER NOT NULL DEFAULT 0;
