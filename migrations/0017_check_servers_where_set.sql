-- The same for servers: to check the sums of one, which every batch writes, took longer than to write them. That no sum is negative
-- stays a CHECK, for the sums are what changes. A row that is a duplicate too is told as that; a handle that is changed has a name of
-- its own.

ALTER TABLE servers
    DROP CONSTRAINT servers_handle_valid,
    DROP CONSTRAINT servers_address_valid,
    DROP CONSTRAINT servers_labels_valid,
    DROP CONSTRAINT servers_capacity_valid,
    DROP CONSTRAINT servers_headroom_valid,
    DROP CONSTRAINT servers_overcommit_valid,
    DROP CONSTRAINT servers_observed_valid,
    DROP CONSTRAINT servers_observed_ports_valid,
    DROP CONSTRAINT servers_port_range_valid,
    DROP CONSTRAINT servers_excluded_ports_valid,
    DROP CONSTRAINT servers_external_id_present,
    DROP CONSTRAINT servers_times_valid;

-- After the row is written, so that what other triggers make of it is looked at.
CREATE TRIGGER servers_handle_valid AFTER INSERT OR UPDATE OF handle ON servers FOR EACH ROW
    WHEN (NEW.handle !~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' OR octet_length(NEW.handle) > 128)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_address_valid AFTER INSERT OR UPDATE OF address ON servers FOR EACH ROW
    WHEN (length(NEW.address) NOT BETWEEN 1 AND 253)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_labels_valid AFTER INSERT OR UPDATE OF labels ON servers FOR EACH ROW
    WHEN (jsonb_typeof(NEW.labels) <> 'object'
        OR jsonb_path_exists(NEW.labels, 'strict $.* ? (@.type() <> "string")', silent => true))
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_capacity_valid AFTER INSERT OR UPDATE OF capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb
    ON servers FOR EACH ROW
    WHEN (NEW.capacity_cpu_millis NOT BETWEEN 0 AND 1000000000
        OR NEW.capacity_ram_mb NOT BETWEEN 0 AND 1000000000000
        OR NEW.capacity_disk_mb NOT BETWEEN 0 AND 1000000000000)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_headroom_valid AFTER INSERT OR UPDATE OF headroom_cpu_millis, headroom_ram_mb, headroom_disk_mb
    ON servers FOR EACH ROW
    WHEN (NEW.headroom_cpu_millis NOT BETWEEN 0 AND 1000000000
        OR NEW.headroom_ram_mb NOT BETWEEN 0 AND 1000000000000
        OR NEW.headroom_disk_mb NOT BETWEEN 0 AND 1000000000000)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_overcommit_valid AFTER INSERT OR UPDATE OF overcommit_cpu_percent, overcommit_ram_percent,
        overcommit_disk_percent
    ON servers FOR EACH ROW
    WHEN (NEW.overcommit_cpu_percent NOT BETWEEN 100 AND 10000
        OR NEW.overcommit_ram_percent NOT BETWEEN 100 AND 10000
        OR NEW.overcommit_disk_percent NOT BETWEEN 100 AND 10000)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_observed_valid AFTER INSERT OR UPDATE OF observed_cpu_millis, observed_ram_mb, observed_disk_mb
    ON servers FOR EACH ROW
    WHEN (NEW.observed_cpu_millis NOT BETWEEN 0 AND 1000000000
        OR NEW.observed_ram_mb NOT BETWEEN 0 AND 1000000000000
        OR NEW.observed_disk_mb NOT BETWEEN 0 AND 1000000000000)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_observed_ports_valid AFTER INSERT OR UPDATE OF observed_ports ON servers FOR EACH ROW
    WHEN (1 > ANY (NEW.observed_ports) OR 65535 < ANY (NEW.observed_ports)
        OR array_position(NEW.observed_ports, NULL) IS NOT NULL)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_port_range_valid AFTER INSERT OR UPDATE OF port_range_start, port_range_end ON servers FOR EACH ROW
    WHEN (NEW.port_range_start < 1 OR NEW.port_range_end < NEW.port_range_start OR NEW.port_range_end > 65535)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_excluded_ports_valid AFTER INSERT OR UPDATE OF excluded_ports ON servers FOR EACH ROW
    WHEN (NOT int4range(1, 65536) @> ALL (NEW.excluded_ports) OR 'empty' = ANY (NEW.excluded_ports)
        OR array_position(NEW.excluded_ports, NULL) IS NOT NULL)
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_external_id_present AFTER INSERT OR UPDATE OF external_id ON servers FOR EACH ROW
    WHEN (NEW.external_id = '')
    EXECUTE FUNCTION refuse_row();
CREATE TRIGGER servers_times_valid AFTER INSERT OR UPDATE OF create_time, update_time, observe_time ON servers FOR EACH ROW
    WHEN (NEW.create_time NOT BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        OR NEW.update_time NOT BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        OR NEW.observe_time NOT BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00')
    EXECUTE FUNCTION refuse_row();

-- As before, where one of the columns is set; what compares the sums is read where that is not by the triggers of placements.
DROP TRIGGER servers_sums_derived ON servers;

CREATE FUNCTION servers_keep_sums() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.reserved_cpu_millis, NEW.reserved_ram_mb, NEW.reserved_disk_mb, NEW.placement_count)
       IS DISTINCT FROM (OLD.reserved_cpu_millis, OLD.reserved_ram_mb, OLD.reserved_disk_mb, OLD.placement_count) THEN
        RAISE EXCEPTION 'reserved_* and placement_count of server % follow from its placements and are not written directly', OLD.handle
            USING ERRCODE = 'check_violation', CONSTRAINT = 'servers_sums_derived';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER servers_sums_derived BEFORE UPDATE OF reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb, placement_count
    ON servers FOR EACH ROW
    WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION servers_keep_sums();

DROP FUNCTION servers_refuse_direct_write();

CREATE FUNCTION servers_refuse_other_handle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the handle and the pool of server % are for ever', OLD.handle
        USING ERRCODE = 'check_violation', CONSTRAINT = 'servers_handle_fixed';
END $$;

CREATE TRIGGER servers_handle_fixed BEFORE UPDATE OF handle, pool_id ON servers FOR EACH ROW
    WHEN (NEW.handle <> OLD.handle OR NEW.pool_id <> OLD.pool_id)
    EXECUTE FUNCTION servers_refuse_other_handle();
