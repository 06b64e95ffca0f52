-- What replicas remember of projects that are to stay holds until the log tells of a change. That a placement is given an end, which
-- the log does not tell, is counted here. Adds a column without a rewrite.

ALTER TABLE pools
    -- Counts the statements that gave placements an end which had none.
    ADD COLUMN lease_count bigint NOT NULL DEFAULT 0;

CREATE FUNCTION placements_count_leases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added WHERE expire_time IS NOT NULL)
       AND EXISTS (SELECT FROM added JOIN removed USING (project_id)
                   WHERE added.expire_time IS NOT NULL AND removed.expire_time IS NULL) THEN
        UPDATE pools SET lease_count = lease_count + 1;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER placements_count_leases AFTER UPDATE ON placements REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION placements_count_leases();

-- The sums, the counts of edits and the log's counter follow from what is written row by row, and TRUNCATE fires none of that.
CREATE FUNCTION refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is not emptied at once: release what it holds', TG_TABLE_NAME
        USING ERRCODE = 'check_violation', CONSTRAINT = TG_TABLE_NAME || '_no_truncate';
END $$;

CREATE TRIGGER servers_no_truncate BEFORE TRUNCATE ON servers FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER placements_no_truncate BEFORE TRUNCATE ON placements FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER port_allocations_no_truncate BEFORE TRUNCATE ON port_allocations FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER allocation_events_no_truncate BEFORE TRUNCATE ON allocation_events FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
