-- Who may use a volume over iSCSI. CHAP computes with the secrets themselves, so they
-- lie here as they are.
CREATE TABLE volume_share (
    volume        TEXT   NOT NULL REFERENCES volume (name) ON DELETE CASCADE,
    initiator     TEXT   NOT NULL,
    addresses     TEXT,
    secret        TEXT,
    mutual_secret TEXT,
    created_ms    BIGINT NOT NULL,
    PRIMARY KEY (volume, initiator)
);

CREATE INDEX volume_share_by_initiator ON volume_share (initiator);

-- The persistent reservations of a volume, which outlive the daemon.
CREATE TABLE volume_reservation (
    volume TEXT NOT NULL PRIMARY KEY REFERENCES volume (name) ON DELETE CASCADE,
    state  TEXT NOT NULL
);
