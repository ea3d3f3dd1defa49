-- What a node or profile had set as its image before the last changes, the newest
-- with the highest number; no image is that it inherited one.
CREATE TABLE node_assignment (
    node  TEXT   NOT NULL REFERENCES node (name) ON DELETE CASCADE,
    seq   BIGINT NOT NULL,
    image TEXT,
    PRIMARY KEY (node, seq)
);

CREATE TABLE profile_assignment (
    profile TEXT   NOT NULL REFERENCES profile (name) ON DELETE CASCADE,
    seq     BIGINT NOT NULL,
    image   TEXT,
    PRIMARY KEY (profile, seq)
);
