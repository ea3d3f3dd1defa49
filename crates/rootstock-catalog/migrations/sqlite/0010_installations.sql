-- What a node has on a disk of its own, and boots by itself. device: the disk, as the
-- machine named it. at_ms: when it was complete.
CREATE TABLE installation (
    node    TEXT   NOT NULL PRIMARY KEY REFERENCES node (name) ON DELETE CASCADE,
    image   TEXT   NOT NULL,
    version BIGINT NOT NULL,
    device  TEXT   NOT NULL,
    at_ms   BIGINT NOT NULL,
    FOREIGN KEY (image, version) REFERENCES version (image, number) ON DELETE CASCADE
);

CREATE INDEX installation_by_version ON installation (image, version);
