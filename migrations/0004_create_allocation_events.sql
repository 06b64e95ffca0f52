-- The log: one row for each committed operation. It spans a range of event numbers, one for each event that watchers see of it.

CREATE TYPE operation_kind AS ENUM ('ensured', 'refused', 'released', 'server_changed');

CREATE TABLE allocation_events (
    pool_id        smallint         NOT NULL DEFAULT 1,
    first_sequence bigint           NOT NULL,
    last_sequence  bigint           NOT NULL,
    event_time     timestamptz      NOT NULL
        CONSTRAINT allocation_events_time_valid CHECK (event_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'),
    kind           operation_kind   NOT NULL,
    project_id     text COLLATE "C",
    server_handle  text COLLATE "C",
    request_id     text             NOT NULL,
    payload        jsonb            NOT NULL,
    CONSTRAINT allocation_events_pkey PRIMARY KEY (pool_id, first_sequence),
    CONSTRAINT allocation_events_span_valid CHECK (1 <= first_sequence AND first_sequence <= last_sequence)
)
-- Rows are only ever appended, and dropped from the other end.
WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- The history of one project.
CREATE INDEX allocation_events_project ON allocation_events (project_id, first_sequence) WHERE project_id IS NOT NULL;

-- Numbers the log: rows follow the newest event without a gap, and move the pool's counter with them. The counter is the
-- pool's row, which the writer holds until it has committed, so numbers are in commit order.
CREATE FUNCTION allocation_events_advance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    span record;
    moved bigint;
BEGIN
    FOR span IN SELECT pool_id, min(first_sequence) AS first, max(last_sequence) AS last,
                       bool_and(follows) AS contiguous
                FROM (SELECT pool_id, first_sequence, last_sequence,
                             first_sequence = lag(last_sequence, 1, first_sequence - 1)
                                 OVER (PARTITION BY pool_id ORDER BY first_sequence) + 1 AS follows
                      FROM added) AS numbered
                GROUP BY pool_id ORDER BY pool_id
    LOOP
        UPDATE pools SET last_sequence = span.last
        WHERE pool_id = span.pool_id AND last_sequence = span.first - 1 AND span.contiguous;
        GET DIAGNOSTICS moved = ROW_COUNT;
        IF moved <> 1 THEN
            RAISE EXCEPTION 'events % to % do not follow the newest one of pool %', span.first, span.last, span.pool_id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'allocation_events_gap_free';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

CREATE TRIGGER allocation_events_gap_free AFTER INSERT ON allocation_events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION allocation_events_advance();

CREATE FUNCTION allocation_events_refuse_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what the log says is never rewritten'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'allocation_events_append_only';
END $$;

CREATE TRIGGER allocation_events_append_only BEFORE UPDATE ON allocation_events
    FOR EACH STATEMENT EXECUTE FUNCTION allocation_events_refuse_update();
