-- Checks of what batches do not change are looked at where it is set. Postgres reads each CHECK of a table, and the condition of each
-- trigger that may fire, from text anew for every statement that writes the table, and every batch writes the pool's number. A trigger
-- that names its columns is not read where none of them is set. What is refused is told by the same name as before.
--
-- The next one is for servers: in one transaction, both would be locked in another order than readers do.

CREATE FUNCTION refuse_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'new row for relation "%" violates check constraint "%"', TG_TABLE_NAME, TG_NAME
        USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
END $$;

ALTER TABLE pools
    DROP CONSTRAINT pools_token_key_length,
    DROP CONSTRAINT pools_default_headroom_valid,
    DROP CONSTRAINT pools_overcommit_valid,
    DROP CONSTRAINT pools_leases_served_time_valid;

-- Before the policy is applied to every server.
CREATE TRIGGER pools_token_key_length BEFORE INSERT OR UPDATE OF token_key ON pools FOR EACH ROW
    WHEN (octet_length(NEW.token_key) <> 32)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER pools_default_headroom_valid BEFORE INSERT OR UPDATE OF default_headroom_cpu_millis, default_headroom_ram_mb,
        default_headroom_disk_mb, default_headroom_cpu_percent, default_headroom_ram_percent, default_headroom_disk_percent
    ON pools FOR EACH ROW
    WHEN (NEW.default_headroom_cpu_millis NOT BETWEEN 0 AND 1000000000
        OR NEW.default_headroom_ram_mb NOT BETWEEN 0 AND 1000000000000
        OR NEW.default_headroom_disk_mb NOT BETWEEN 0 AND 1000000000000
        OR NEW.default_headroom_cpu_percent NOT BETWEEN 0 AND 100
        OR NEW.default_headroom_ram_percent NOT BETWEEN 0 AND 100
        OR NEW.default_headroom_disk_percent NOT BETWEEN 0 AND 100)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER pools_overcommit_valid BEFORE INSERT OR UPDATE OF overcommit_cpu_percent, overcommit_ram_percent, overcommit_disk_percent
    ON pools FOR EACH ROW
    WHEN (NEW.overcommit_cpu_percent NOT BETWEEN 100 AND 10000
        OR NEW.overcommit_ram_percent NOT BETWEEN 100 AND 10000
        OR NEW.overcommit_disk_percent NOT BETWEEN 100 AND 10000)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER pools_leases_served_time_valid BEFORE INSERT OR UPDATE OF leases_served_time ON pools FOR EACH ROW
    WHEN (NEW.leases_served_time NOT BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00')
    EXECUTE FUNCTION refuse_row();
