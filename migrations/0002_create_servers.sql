-- The inventory, with the sums of what is placed on each server. Operators read and edit this table by hand:
--   SELECT handle, status, capacity_ram_mb FROM servers WHERE status IN ('ready', 'in_use')

CREATE TYPE server_status AS ENUM ('discovered', 'provisioning', 'ready', 'in_use', 'maintenance', 'error', 'unreachable',
    'missing', 'decommissioned');

CREATE TABLE servers (
    -- Ordered as bytes, as the service orders them: ties between servers fall to the handle.
    handle                text COLLATE "C" PRIMARY KEY
        CONSTRAINT servers_handle_valid CHECK (handle ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$'),
    pool_id               smallint      NOT NULL DEFAULT 1 CONSTRAINT servers_pool_exists REFERENCES pools,
    address               text          NOT NULL CONSTRAINT servers_address_valid CHECK (length(address) BETWEEN 1 AND 253),
    -- `ready` and `in_use` are one to whoever writes; which of them is kept follows from placement_count.
    status                server_status NOT NULL DEFAULT 'ready',
    -- What to return to when the source lists a missing server again.
    status_before_missing server_status,
    managed               boolean       NOT NULL DEFAULT true,
    -- Values are text, as requests select by them; a number typed by hand would keep every replica from reading its servers.
    labels                jsonb         NOT NULL DEFAULT '{}'
        CONSTRAINT servers_labels_valid CHECK (jsonb_typeof(labels) = 'object'
            AND NOT jsonb_path_exists(labels, 'strict $.* ? (@.type() <> "string")', silent => true)),
    capacity_cpu_millis   bigint        NOT NULL DEFAULT 0,
    capacity_ram_mb       bigint        NOT NULL DEFAULT 0,
    capacity_disk_mb      bigint        NOT NULL DEFAULT 0,
    headroom_cpu_millis   bigint        NOT NULL DEFAULT 0,
    headroom_ram_mb       bigint        NOT NULL DEFAULT 0,
    headroom_disk_mb      bigint        NOT NULL DEFAULT 0,
    -- Sums over placements, kept by the statements that write those.
    reserved_cpu_millis   bigint        NOT NULL DEFAULT 0,
    reserved_ram_mb       bigint        NOT NULL DEFAULT 0,
    reserved_disk_mb      bigint        NOT NULL DEFAULT 0,
    placement_count       bigint        NOT NULL DEFAULT 0,
    -- The latest usage report; null where a figure was not reported.
    observed_cpu_millis   bigint,
    observed_ram_mb       bigint,
    observed_disk_mb      bigint,
    observed_ports        integer[]     NOT NULL DEFAULT '{}',
    observe_time          timestamptz,
    -- Whether the log has told that the report is too old.
    usage_stale           boolean       NOT NULL DEFAULT false,
    port_range_start      integer       NOT NULL DEFAULT 1024,
    port_range_end        integer       NOT NULL DEFAULT 32767,
    excluded_ports        int4range[]   NOT NULL DEFAULT '{}',
    source                text          NOT NULL DEFAULT '',
    external_id           text,
    -- Counts changes of what operators and sources set: the server's etag. Starts at the server's first revision.
    generation            bigint        NOT NULL DEFAULT 1,
    -- The pool's inventory_revision of the last change other than of the sums.
    revision              bigint        NOT NULL DEFAULT 0,
    create_time           timestamptz   NOT NULL DEFAULT clock_timestamp(),
    update_time           timestamptz   NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT servers_capacity_valid CHECK (capacity_cpu_millis BETWEEN 0 AND 1000000000
        AND capacity_ram_mb BETWEEN 0 AND 1000000000000 AND capacity_disk_mb BETWEEN 0 AND 1000000000000),
    CONSTRAINT servers_headroom_valid CHECK (headroom_cpu_millis BETWEEN 0 AND 1000000000
        AND headroom_ram_mb BETWEEN 0 AND 1000000000000 AND headroom_disk_mb BETWEEN 0 AND 1000000000000),
    CONSTRAINT servers_reserved_not_negative CHECK (reserved_cpu_millis >= 0 AND reserved_ram_mb >= 0
        AND reserved_disk_mb >= 0 AND placement_count >= 0),
    CONSTRAINT servers_observed_valid CHECK (observed_cpu_millis BETWEEN 0 AND 1000000000
        AND observed_ram_mb BETWEEN 0 AND 1000000000000 AND observed_disk_mb BETWEEN 0 AND 1000000000000),
    CONSTRAINT servers_observed_ports_valid CHECK (1 <= ALL (observed_ports) AND 65535 >= ALL (observed_ports)
        AND array_position(observed_ports, NULL) IS NULL),
    CONSTRAINT servers_port_range_valid CHECK (1 <= port_range_start AND port_range_start <= port_range_end
        AND port_range_end <= 65535),
    CONSTRAINT servers_excluded_ports_valid CHECK (int4range(1, 65536) @> ALL (excluded_ports)
        AND 'empty' <> ALL (excluded_ports) AND array_position(excluded_ports, NULL) IS NULL),
    CONSTRAINT servers_external_id_present CHECK (external_id <> ''),
    -- What the service can read: neither infinity nor a year of five digits.
    CONSTRAINT servers_times_valid CHECK (create_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        AND update_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        AND observe_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00')
)
-- The sums change with every placement: room on the page keeps those updates off the indexes.
WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

CREATE UNIQUE INDEX servers_external_id_unique ON servers (source, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX servers_revision ON servers (pool_id, revision);

-- Contract, rule 5: no reservation grows past capacity less headroom, whatever the service does. A capacity lowered below what
-- is reserved is accepted (reality wins), which is why this is no CHECK.
CREATE FUNCTION servers_refuse_oversell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'server % cannot hold this reservation', NEW.handle
        USING ERRCODE = 'check_violation', CONSTRAINT = 'servers_reserved_within_capacity';
END $$;

CREATE TRIGGER servers_reserved_within_capacity BEFORE UPDATE ON servers FOR EACH ROW
    WHEN ((NEW.reserved_cpu_millis > OLD.reserved_cpu_millis AND NEW.reserved_cpu_millis > NEW.capacity_cpu_millis - NEW.headroom_cpu_millis)
       OR (NEW.reserved_ram_mb > OLD.reserved_ram_mb AND NEW.reserved_ram_mb > NEW.capacity_ram_mb - NEW.headroom_ram_mb)
       OR (NEW.reserved_disk_mb > OLD.reserved_disk_mb AND NEW.reserved_disk_mb > NEW.capacity_disk_mb - NEW.headroom_disk_mb))
    EXECUTE FUNCTION servers_refuse_oversell();

-- The sums are written by the triggers of placements alone, and a handle is for ever.
CREATE FUNCTION servers_refuse_direct_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the handle, reserved_* and placement_count of server % follow from its placements and are not written directly', OLD.handle
        USING ERRCODE = 'check_violation', CONSTRAINT = 'servers_sums_derived';
END $$;

CREATE TRIGGER servers_sums_derived BEFORE UPDATE ON servers FOR EACH ROW
    WHEN (NEW.handle <> OLD.handle OR NEW.pool_id <> OLD.pool_id OR (pg_trigger_depth() = 0 AND
         (NEW.reserved_cpu_millis, NEW.reserved_ram_mb, NEW.reserved_disk_mb, NEW.placement_count)
         IS DISTINCT FROM (OLD.reserved_cpu_millis, OLD.reserved_ram_mb, OLD.reserved_disk_mb, OLD.placement_count)))
    EXECUTE FUNCTION servers_refuse_direct_write();

-- Stamps every change but those of the sums, so that replicas read just the rows that changed, also when they were changed by hand.
CREATE FUNCTION servers_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.reserved_cpu_millis := 0;
        NEW.reserved_ram_mb := 0;
        NEW.reserved_disk_mb := 0;
        NEW.placement_count := 0;
    ELSIF (NEW.address, NEW.managed, NEW.labels, NEW.capacity_cpu_millis, NEW.capacity_ram_mb, NEW.capacity_disk_mb,
           NEW.headroom_cpu_millis, NEW.headroom_ram_mb, NEW.headroom_disk_mb, NEW.port_range_start, NEW.port_range_end,
           NEW.excluded_ports, NEW.source, NEW.external_id)
          IS DISTINCT FROM
          (OLD.address, OLD.managed, OLD.labels, OLD.capacity_cpu_millis, OLD.capacity_ram_mb, OLD.capacity_disk_mb,
           OLD.headroom_cpu_millis, OLD.headroom_ram_mb, OLD.headroom_disk_mb, OLD.port_range_start, OLD.port_range_end,
           OLD.excluded_ports, OLD.source, OLD.external_id)
          OR (NEW.status <> OLD.status AND NOT (NEW.status IN ('ready', 'in_use') AND OLD.status IN ('ready', 'in_use'))) THEN
        NEW.generation := OLD.generation + 1;
        NEW.update_time := clock_timestamp();
    END IF;
    IF NEW.status IN ('ready', 'in_use') THEN
        NEW.status := CASE WHEN NEW.placement_count > 0 THEN 'in_use' ELSE 'ready' END;
    END IF;
    SELECT inventory_revision INTO NEW.revision FROM pools WHERE pool_id = NEW.pool_id;
    IF TG_OP = 'INSERT' THEN
        -- Greater than that of any server that had the handle before: an etag of it must not fit this one (L37).
        NEW.generation := NEW.revision;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER servers_stamp_insert BEFORE INSERT ON servers FOR EACH ROW EXECUTE FUNCTION servers_stamp();
CREATE TRIGGER servers_stamp_update BEFORE UPDATE ON servers FOR EACH ROW
    WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION servers_stamp();

-- A server that holds placements cannot be removed; the ports that rest on it go with it.
CREATE FUNCTION servers_refuse_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'server % holds % placements', OLD.handle, OLD.placement_count
        USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'servers_in_use';
END $$;

CREATE TRIGGER servers_in_use BEFORE DELETE ON servers FOR EACH ROW
    WHEN (OLD.placement_count > 0) EXECUTE FUNCTION servers_refuse_delete();

CREATE TRIGGER servers_queue_change BEFORE INSERT OR UPDATE ON servers FOR EACH STATEMENT EXECUTE FUNCTION queue_inventory_change();
CREATE TRIGGER servers_count_hand_delete BEFORE DELETE ON servers FOR EACH STATEMENT EXECUTE FUNCTION queue_and_count_hand_edit();
