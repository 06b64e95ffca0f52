-- Where this history of the log is written: a cluster's identity and a database of it. A dump carries it along, so that a
-- service which starts on a restored database finds another place here than where it is, and renews the epoch.

ALTER TABLE pools
    -- Null before a service has started on it.
    ADD COLUMN home text;
