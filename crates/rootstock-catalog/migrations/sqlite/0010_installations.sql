-- What a node has on a disk of its own, and boots by itself. boot: the boot in which it
-- was laid out. device: the disk, as the machine named it. at_ms: when it was complete;
-- none while it is on its way.
CREATE TABLE installation (
    node    TEXT   NOT NULL PRIMARY KEY REFERENCES node (name) ON DELETE CASCADE,
    image   TEXT   NOT NULL,
    version BIGINT NOT NULL,
    boot    TEXT   NOT NULL,
    device  TEXT   NOT NULL,
    at_ms   BIGINT,
    FOREIGN KEY (image, version) REFERENCES version (image, number) ON DELETE CASCADE
);

CREATE INDEX installation_by_version ON installation (image, version);
