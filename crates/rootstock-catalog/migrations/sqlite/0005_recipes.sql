-- How to make a version's chunks of another's blocks. root is the chunk id of the
-- recipe's root document, stored_bytes what its parts take in the store; frame_bytes
-- are those of the frames that its deltas stand for.
CREATE TABLE recipe (
    image        TEXT   NOT NULL,
    version      BIGINT NOT NULL,
    from_image   TEXT   NOT NULL,
    from_version BIGINT NOT NULL,
    root         TEXT   NOT NULL,
    delta_count  BIGINT NOT NULL,
    delta_bytes  BIGINT NOT NULL,
    frame_bytes  BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    created_ms   BIGINT NOT NULL,
    PRIMARY KEY (image, version, from_image, from_version),
    FOREIGN KEY (image, version) REFERENCES version (image, number) ON DELETE CASCADE,
    FOREIGN KEY (from_image, from_version) REFERENCES version (image, number)
        ON DELETE CASCADE
);

CREATE INDEX recipe_by_from ON recipe (from_image, from_version);
