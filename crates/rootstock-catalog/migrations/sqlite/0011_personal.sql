-- When what a personal node wrote to its own disk was dropped by an administrator, in
-- seconds since 1970, or later.
CREATE TABLE personal (
    node   TEXT   NOT NULL PRIMARY KEY REFERENCES node (name) ON DELETE CASCADE,
    resets BIGINT NOT NULL
);
