-- An edit by hand has the pool's row until it is committed, and every replica waits. One that is forgotten, or whose host is gone,
-- ends after half a minute without a statement. Whoever needs longer sets idle_in_transaction_session_timeout before, for the session,
-- the role or the database; what holds for the whole server is not meant for this.
CREATE FUNCTION end_forgotten_edit() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'
            AND source NOT IN ('session', 'client', 'user', 'database', 'database user')
    ) THEN
        PERFORM set_config('idle_in_transaction_session_timeout', '30s', true);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION queue_inventory_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN
        IF NOT written_by_service() THEN
            PERFORM end_forgotten_edit();
            PERFORM 1 FROM pools ORDER BY pool_id FOR UPDATE;
        END IF;
        UPDATE pools SET inventory_revision = inventory_revision + 1;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION queue_and_count_hand_edit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT written_by_service() AND pg_trigger_depth() = 1 THEN
        PERFORM end_forgotten_edit();
        PERFORM 1 FROM pools ORDER BY pool_id FOR UPDATE;
        UPDATE pools SET edit_count = edit_count + 1;
    END IF;
    RETURN NULL;
END $$;
