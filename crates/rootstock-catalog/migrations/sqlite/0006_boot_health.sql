-- limit_ms: how long the boot has to come up. verdict: good once it did, failed, or
-- void when the version had no chance, or when the boot is older than verdicts.
ALTER TABLE boot ADD COLUMN limit_ms BIGINT;
ALTER TABLE boot ADD COLUMN verdict TEXT;

-- What became of versions on a node. good_ms: when it last came up with this one;
-- then its failures do not count. failed_ms and reason: its last failed boot.
CREATE TABLE node_version (
    node      TEXT   NOT NULL REFERENCES node (name) ON DELETE CASCADE,
    image     TEXT   NOT NULL,
    version   BIGINT NOT NULL,
    good_ms   BIGINT,
    failed_ms BIGINT,
    reason    TEXT,
    PRIMARY KEY (node, image, version),
    FOREIGN KEY (image, version) REFERENCES version (image, number) ON DELETE CASCADE
);

CREATE INDEX node_version_by_version ON node_version (image, version);

INSERT INTO node_version (node, image, version, good_ms)
SELECT b.node, b.image, b.version, max(s.time_ms)
FROM boot b
JOIN boot_step s ON s.boot = b.id AND s.step = 'up'
JOIN version v ON v.image = b.image AND v.number = b.version
GROUP BY b.node, b.image, b.version;

UPDATE boot SET verdict = 'good'
WHERE image IS NOT NULL
    AND EXISTS (SELECT 1 FROM boot_step s WHERE s.boot = boot.id AND s.step = 'up');

UPDATE boot SET verdict = 'void' WHERE verdict IS NULL AND ended_ms IS NOT NULL;

CREATE INDEX boot_unjudged ON boot (node) WHERE verdict IS NULL;
CREATE INDEX boot_failed ON boot (node) WHERE verdict = 'failed' AND ended_ms IS NULL;
