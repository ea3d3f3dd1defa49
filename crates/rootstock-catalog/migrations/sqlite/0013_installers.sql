-- What a distribution's installer is to do on a node, or did last. token: the digest of
-- the secret under which it fetches its files and calls home, of its last start, like
-- source (the address that it was given to) and boot. starts: how often it was started.
-- ended_ms: when it said that it was done, or was given up, and then failed says why.
CREATE TABLE installer_run (
    node       TEXT   NOT NULL PRIMARY KEY REFERENCES node (name) ON DELETE CASCADE,
    installer  TEXT   NOT NULL,
    asked_ms   BIGINT NOT NULL,
    starts     BIGINT NOT NULL DEFAULT 0,
    token      TEXT,
    source     TEXT,
    boot       TEXT,
    started_ms BIGINT,
    ended_ms   BIGINT,
    failed     TEXT
);

CREATE UNIQUE INDEX installer_run_by_token ON installer_run (token);
