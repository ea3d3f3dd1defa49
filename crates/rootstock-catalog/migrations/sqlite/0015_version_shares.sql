-- Who may read a version over iSCSI; as with volumes, the secrets lie here as they are.
CREATE TABLE version_share (
    image         TEXT   NOT NULL,
    version       BIGINT NOT NULL,
    initiator     TEXT   NOT NULL,
    addresses     TEXT,
    secret        TEXT,
    mutual_secret TEXT,
    redirect      TEXT,
    created_ms    BIGINT NOT NULL,
    PRIMARY KEY (image, version, initiator),
    FOREIGN KEY (image, version) REFERENCES version (image, number)
);

CREATE INDEX version_share_by_initiator ON version_share (initiator);

-- Where an initiator is sent instead, as HOST:PORT.
ALTER TABLE volume_share ADD COLUMN redirect TEXT;

-- The logical blocks of a volume's disk over iSCSI.
ALTER TABLE volume ADD COLUMN block_bytes BIGINT NOT NULL DEFAULT 512;

-- The target that it is a disk of, unless it has one of its own, and its number there.
ALTER TABLE volume ADD COLUMN target TEXT;
ALTER TABLE volume ADD COLUMN lun BIGINT NOT NULL DEFAULT 0;

CREATE UNIQUE INDEX volume_by_target ON volume (target, lun) WHERE target IS NOT NULL;
