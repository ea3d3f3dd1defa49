-- A version on its way to many nodes. profile: whose nodes they are, and what gets the
-- version at the end; none when nodes were named. starts_ms: not before. state: open,
-- paused, stopped, done or aborted, with a reason for people. failures_forgiven: those
-- that the administrator has seen.
CREATE TABLE rollout (
    id                BIGINT  NOT NULL PRIMARY KEY,
    image             TEXT    NOT NULL,
    version           BIGINT  NOT NULL,
    profile           TEXT,
    canary_count      BIGINT  NOT NULL,
    batch_count       BIGINT  NOT NULL,
    failures_max      BIGINT  NOT NULL,
    reboot            TEXT    NOT NULL,
    wake              BOOLEAN NOT NULL,
    actor             TEXT    NOT NULL,
    starts_ms         BIGINT  NOT NULL,
    created_ms        BIGINT  NOT NULL,
    ended_ms          BIGINT,
    state             TEXT    NOT NULL,
    reason            TEXT,
    failures_forgiven BIGINT  NOT NULL
);

CREATE INDEX rollout_open ON rollout (id) WHERE ended_ms IS NULL;

-- Its nodes, in order. before: the image that was set on the node itself, if any.
-- since_ms: when it came to its state.
CREATE TABLE rollout_node (
    rollout  BIGINT NOT NULL REFERENCES rollout (id) ON DELETE CASCADE,
    node     TEXT   NOT NULL REFERENCES node (name) ON DELETE CASCADE,
    seq      BIGINT NOT NULL,
    before   TEXT,
    state    TEXT   NOT NULL,
    since_ms BIGINT NOT NULL,
    detail   TEXT   NOT NULL,
    PRIMARY KEY (rollout, node)
);

CREATE INDEX rollout_node_by_node ON rollout_node (node);
