-- What an ensure granted, as replicas read it that did not commit it: in few bytes, where the payload says the same and more in JSON.
-- None where the payload is to be read, as it is of what the release before writes. For `events::list_changes_after`. Adds a column
-- without a rewrite, under a lock that is held for a moment.

ALTER TABLE allocation_events
    ADD COLUMN granted bytea;

ALTER TABLE allocation_events ALTER COLUMN granted SET STATISTICS 0;
