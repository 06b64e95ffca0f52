-- The line of those who wait for capacity: a row for each project, with what it asks for and until when it waits, so that a
-- replica's death loses no place. The log tells who came and who left; a replica reads this table when it reads the others anew.

ALTER TYPE operation_kind ADD VALUE 'waiting';
ALTER TYPE operation_kind ADD VALUE 'left_line';

CREATE TABLE waiters (
    -- One place a project.
    project_id   text COLLATE "C" NOT NULL CONSTRAINT waiters_pkey PRIMARY KEY
        CONSTRAINT waiters_project_id_valid CHECK (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$'),
    pool_id      smallint         NOT NULL DEFAULT 1 CONSTRAINT waiters_pool_exists REFERENCES pools,
    -- The log's number of the operation by which the place was taken: the order of the line.
    arrival      bigint           NOT NULL,
    -- The call that waits; a later one of the same project takes over from it.
    caller       uuid             NOT NULL,
    request      jsonb            NOT NULL CONSTRAINT waiters_request_valid CHECK (jsonb_typeof(request) = 'object'),
    -- Why it could not be placed when its call came.
    reason       text             NOT NULL,
    request_id   text             NOT NULL,
    since        timestamptz      NOT NULL,
    deadline     timestamptz      NOT NULL,
    -- Since when its caller is gone: its place is kept for a while, and nothing is given to it.
    absent_since timestamptz,
    CONSTRAINT waiters_arrival_unique UNIQUE (pool_id, arrival),
    CONSTRAINT waiters_deadline_after_since CHECK (since <= deadline),
    CONSTRAINT waiters_times_valid CHECK (since BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        AND deadline BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        AND absent_since BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00')
);

-- A place is taken and given up by a call alone, so that the log tells of it: `release` has a project give up its place.
CREATE FUNCTION waiters_refuse_hand_edit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT written_by_service() THEN
        RAISE EXCEPTION 'the line is the service''s own; release a project to have it leave'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'waiters_service_only';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER waiters_service_only BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON waiters
    FOR EACH STATEMENT EXECUTE FUNCTION waiters_refuse_hand_edit();

-- Nobody is put before someone who came earlier: a place is where the log says that it was taken, and never moves forward.
CREATE FUNCTION waiters_check_arrival() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF EXISTS (SELECT FROM added
               LEFT JOIN allocation_events e ON e.pool_id = added.pool_id AND e.first_sequence = added.arrival
                   AND e.project_id = added.project_id AND e.kind::text = 'waiting'
               WHERE e.first_sequence IS NULL) THEN
        RAISE EXCEPTION 'a place in line is not one that the log tells of'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'waiters_arrival_in_log';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER waiters_arrival_in_log AFTER INSERT ON waiters REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION waiters_check_arrival();

CREATE FUNCTION waiters_refuse_jump() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'project % cannot move forward in line', OLD.project_id
        USING ERRCODE = 'check_violation', CONSTRAINT = 'waiters_no_jump';
END $$;

CREATE TRIGGER waiters_no_jump BEFORE UPDATE ON waiters FOR EACH ROW
    WHEN (NEW.arrival < OLD.arrival OR NEW.project_id <> OLD.project_id) EXECUTE FUNCTION waiters_refuse_jump();
