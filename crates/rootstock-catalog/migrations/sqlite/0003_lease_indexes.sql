-- Leases are found by their address alone; the rest is read when a daemon starts.
-- Each index more made every lease change pages at random places, all of which are
-- written before its client is answered.
DROP INDEX lease_by_mac;
DROP INDEX lease_by_expiry;
