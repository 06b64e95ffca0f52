-- A pool is a set of servers with one log. Every change of the pool's servers, placements and ports is made while its row
-- here is locked, so the row is the one queue that all replicas stand in, and its counter numbers the log in commit order.
-- The row `default` is there from the start, so that more pools need no redesign.

CREATE TABLE pools (
    pool_id            smallint PRIMARY KEY,
    name               text     NOT NULL CONSTRAINT pools_name_unique UNIQUE,
    -- Names this history of the log. Whoever restores a backup renews it (UPDATE pools SET epoch = gen_random_uuid()), so that
    -- a token of another history is told apart.
    epoch              uuid     NOT NULL DEFAULT gen_random_uuid(),
    -- Signs the tokens that callers hold, so that every replica knows its own and each other's.
    token_key          bytea    NOT NULL CONSTRAINT pools_token_key_length CHECK (octet_length(token_key) = 32),
    -- The number of the newest event.
    last_sequence      bigint   NOT NULL DEFAULT 0,
    -- Retention dropped the events up to this one.
    compacted_sequence bigint   NOT NULL DEFAULT 0,
    -- Counts the statements that change the inventory or usage: each stamps the servers that it changes (`servers.revision`).
    inventory_revision bigint   NOT NULL DEFAULT 0,
    -- Counts what was written by hand past the log; a replica that sees it move reads the tables anew.
    edit_count         bigint   NOT NULL DEFAULT 0,
    CONSTRAINT pools_compacted_before_last CHECK (compacted_sequence BETWEEN 0 AND last_sequence)
)
-- The row is updated with every batch: leave its page room, so that the updates stay on it and touch no index.
WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

INSERT INTO pools (pool_id, name, token_key)
VALUES (1, 'default', decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

-- Numbers are never given twice, so the counter never goes back.
CREATE FUNCTION pools_refuse_rewind() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log of pool % cannot go back from % to %', OLD.name, OLD.last_sequence, NEW.last_sequence
        USING ERRCODE = 'check_violation', CONSTRAINT = 'pools_sequence_monotonic';
END $$;

CREATE TRIGGER pools_sequence_monotonic BEFORE UPDATE ON pools FOR EACH ROW
    WHEN (NEW.last_sequence < OLD.last_sequence OR NEW.compacted_sequence < OLD.compacted_sequence
          OR NEW.inventory_revision < OLD.inventory_revision)
    EXECUTE FUNCTION pools_refuse_rewind();

-- The service says who it is in each of its transactions (`SET LOCAL resource_allocator.writer`), where it holds the pool's row.
CREATE FUNCTION written_by_service() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT current_setting('resource_allocator.writer', true) IS NOT DISTINCT FROM 'service'
$$;

-- Anyone else (psql) is made to stand in the same queue before the first row is touched, and so in the same order: no
-- write between a replica's look and its commit. A statement on servers also counts the revision that it stamps them with:
-- once for all its rows, for each update of the pool's row in one transaction has to pass by those before it.
CREATE FUNCTION queue_inventory_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN
        IF NOT written_by_service() THEN
            PERFORM 1 FROM pools ORDER BY pool_id FOR UPDATE;
        END IF;
        UPDATE pools SET inventory_revision = inventory_revision + 1;
    END IF;
    RETURN NULL;
END $$;

-- The same, and has every replica read the tables anew, for what no revision stamp tells.
CREATE FUNCTION queue_and_count_hand_edit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT written_by_service() AND pg_trigger_depth() = 1 THEN
        PERFORM 1 FROM pools ORDER BY pool_id FOR UPDATE;
        UPDATE pools SET edit_count = edit_count + 1;
    END IF;
    RETURN NULL;
END $$;
