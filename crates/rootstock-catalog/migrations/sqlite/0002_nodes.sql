-- Addresses of network cards are written as 52:54:00:12:34:56, IP addresses as
-- their standard text, settings, inventories and orders as JSON.

-- image, version and tag are the image that the settings name: a version named
-- by number is in use.
CREATE TABLE profile (
    name       TEXT   NOT NULL PRIMARY KEY,
    parent     TEXT   REFERENCES profile (name),
    settings   TEXT   NOT NULL,
    image      TEXT,
    version    BIGINT,
    tag        TEXT,
    created_ms BIGINT NOT NULL
);

CREATE INDEX profile_by_parent ON profile (parent);
CREATE INDEX profile_by_image ON profile (image, version);

-- state: held until an administrator approves it, then ready.
CREATE TABLE node (
    name        TEXT   NOT NULL PRIMARY KEY,
    profile     TEXT   REFERENCES profile (name),
    state       TEXT   NOT NULL,
    uuid        TEXT   UNIQUE,
    address     TEXT   UNIQUE,
    settings    TEXT   NOT NULL,
    image       TEXT,
    version     BIGINT,
    tag         TEXT,
    inventory   TEXT,
    created_ms  BIGINT NOT NULL,
    approved_ms BIGINT,
    seen_ms     BIGINT
);

CREATE INDEX node_by_profile ON node (profile);
CREATE INDEX node_by_image ON node (image, version);

CREATE TABLE node_mac (
    mac  TEXT NOT NULL PRIMARY KEY,
    node TEXT NOT NULL REFERENCES node (name) ON DELETE CASCADE
);

CREATE INDEX node_mac_by_node ON node_mac (node);

-- What is a node's own and secret, such as its SSH host keys: made once.
CREATE TABLE node_secret (
    node       TEXT   NOT NULL PRIMARY KEY REFERENCES node (name) ON DELETE CASCADE,
    secret     TEXT   NOT NULL,
    created_ms BIGINT NOT NULL
);

-- state: bound, released or declined. A lease that ran out stays, so that its
-- client gets the address again.
CREATE TABLE lease (
    address    TEXT   NOT NULL PRIMARY KEY,
    mac        TEXT   NOT NULL,
    client_id  TEXT   NOT NULL,
    host_name  TEXT,
    node       TEXT,
    network    TEXT   NOT NULL,
    state      TEXT   NOT NULL,
    started_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);

CREATE INDEX lease_by_mac ON lease (mac);
CREATE INDEX lease_by_expiry ON lease (expires_ms);

-- Only digests of the token and of the session are kept. image and version are
-- what the node runs until ended_ms is there.
CREATE TABLE boot (
    id               TEXT   NOT NULL PRIMARY KEY,
    node             TEXT   NOT NULL REFERENCES node (name) ON DELETE CASCADE,
    started_ms       BIGINT NOT NULL,
    source           TEXT,
    token            TEXT   UNIQUE,
    token_expires_ms BIGINT,
    token_used_ms    BIGINT,
    session          TEXT   UNIQUE,
    boot_order       TEXT,
    image            TEXT,
    version          BIGINT,
    ended_ms         BIGINT
);

CREATE INDEX boot_by_node ON boot (node, started_ms);
CREATE INDEX boot_by_version ON boot (image, version);

CREATE TABLE boot_step (
    boot      TEXT   NOT NULL REFERENCES boot (id) ON DELETE CASCADE,
    seq       BIGINT NOT NULL,
    step      TEXT   NOT NULL,
    time_ms   BIGINT NOT NULL,
    uptime_ms BIGINT,
    bytes     BIGINT NOT NULL,
    detail    TEXT   NOT NULL,
    PRIMARY KEY (boot, seq)
);

-- How a card's firmware was booted the last time that it worked.
CREATE TABLE strategy (
    mac     TEXT   NOT NULL PRIMARY KEY,
    worked  TEXT   NOT NULL,
    time_ms BIGINT NOT NULL
);

CREATE INDEX strategy_by_time ON strategy (time_ms);
