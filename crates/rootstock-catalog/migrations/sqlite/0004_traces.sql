-- What boots of a version read first, by class of hardware; the class without a
-- name is all of them together. trace is what docs/formats/trace.md describes,
-- boots how many it was learnt from, and source the version whose trace it was
-- before there were any.
CREATE TABLE trace (
    image      TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    hardware   TEXT   NOT NULL,
    boots      BIGINT NOT NULL,
    source     TEXT,
    trace      BLOB   NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (image, version, hardware),
    FOREIGN KEY (image, version) REFERENCES version (image, number) ON DELETE CASCADE
);

-- The last boots of each class, which its trace is merged from.
CREATE TABLE trace_boot (
    image    TEXT   NOT NULL,
    version  BIGINT NOT NULL,
    hardware TEXT   NOT NULL,
    number   BIGINT NOT NULL,
    trace    BLOB   NOT NULL,
    PRIMARY KEY (image, version, hardware, number),
    FOREIGN KEY (image, version, hardware)
        REFERENCES trace (image, version, hardware) ON DELETE CASCADE
);
