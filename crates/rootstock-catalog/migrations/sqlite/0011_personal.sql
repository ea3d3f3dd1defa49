-- How often what a personal node wrote to its own disk was dropped by an administrator.
CREATE TABLE personal (
    node   TEXT   NOT NULL PRIMARY KEY REFERENCES node (name) ON DELETE CASCADE,
    resets BIGINT NOT NULL
);
