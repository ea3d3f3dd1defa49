-- How the machine is to start anew: orderly or forced. It is of this boot, so that
-- no later one obeys it again.
ALTER TABLE boot ADD COLUMN reboot TEXT;

CREATE INDEX boot_by_reboot ON boot (reboot) WHERE reboot IS NOT NULL AND ended_ms IS NULL;
