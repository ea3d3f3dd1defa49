-- Ids are lower-case hex, times milliseconds since 1970 in UTC, sizes bytes.

-- An image that was deleted keeps its row, so that its version numbers are
-- never used again.
CREATE TABLE image (
    name         TEXT   NOT NULL PRIMARY KEY,
    next_version BIGINT NOT NULL,
    deleted      BIGINT NOT NULL,
    created_ms   BIGINT NOT NULL
);

CREATE TABLE version (
    image        TEXT   NOT NULL REFERENCES image (name),
    number       BIGINT NOT NULL,
    manifest     TEXT   NOT NULL,
    disk_bytes   BIGINT NOT NULL,
    used_bytes   BIGINT NOT NULL,
    added_chunks BIGINT NOT NULL,
    added_bytes  BIGINT NOT NULL,
    parent       TEXT,
    source       TEXT   NOT NULL,
    message      TEXT,
    seal         TEXT   NOT NULL,
    facts        TEXT   NOT NULL,
    created_ms   BIGINT NOT NULL,
    PRIMARY KEY (image, number)
);

CREATE TABLE tag (
    image   TEXT   NOT NULL,
    name    TEXT   NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (image, name),
    FOREIGN KEY (image, version) REFERENCES version (image, number)
);

CREATE TABLE history (
    id      INTEGER NOT NULL PRIMARY KEY,
    image   TEXT    NOT NULL REFERENCES image (name),
    time_ms BIGINT  NOT NULL,
    event   TEXT    NOT NULL,
    version BIGINT,
    tag     TEXT,
    detail  TEXT    NOT NULL,
    actor   TEXT    NOT NULL
);

CREATE INDEX history_by_image ON history (image, id);

-- state: creating and deleting volumes are undone or finished at start.
CREATE TABLE volume (
    name       TEXT   NOT NULL PRIMARY KEY,
    image      TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    ephemeral  BIGINT NOT NULL,
    state      TEXT   NOT NULL,
    directory  TEXT   NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL,
    FOREIGN KEY (image, version) REFERENCES version (image, number)
);

CREATE INDEX volume_by_version ON volume (image, version);

CREATE TABLE import (
    id           TEXT   NOT NULL PRIMARY KEY,
    image        TEXT   NOT NULL,
    disk_bytes   BIGINT NOT NULL,
    source       TEXT   NOT NULL,
    added_chunks BIGINT NOT NULL,
    added_bytes  BIGINT NOT NULL,
    created_ms   BIGINT NOT NULL,
    active_ms    BIGINT NOT NULL
);

-- Packs that an open import relies on.
CREATE TABLE import_pin (
    import TEXT NOT NULL REFERENCES import (id) ON DELETE CASCADE,
    pack   TEXT NOT NULL,
    PRIMARY KEY (import, pack)
);

-- Only the digest of a token's secret is kept.
CREATE TABLE token (
    name         TEXT   NOT NULL PRIMARY KEY,
    digest       TEXT   NOT NULL UNIQUE,
    role         TEXT   NOT NULL,
    created_ms   BIGINT NOT NULL,
    last_used_ms BIGINT,
    revoked_ms   BIGINT
);
