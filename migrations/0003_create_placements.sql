-- Where projects are placed, and one row for each port. Foreign keys to servers and placements would look each row up on its
-- own, which was most of a batch's cost; the statement triggers below look the same up for the whole statement at once, and
-- nothing slips between, for every writer holds the pool's row.

CREATE TABLE placements (
    -- Contract, rule 1: one placement a project.
    project_id          text COLLATE "C" PRIMARY KEY
        CONSTRAINT placements_project_id_valid CHECK (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$'),
    server_handle       text COLLATE "C" NOT NULL,
    reserved_cpu_millis bigint           NOT NULL,
    reserved_ram_mb     bigint           NOT NULL,
    reserved_disk_mb    bigint           NOT NULL,
    -- The log's number of the last operation that changed the placement: its etag.
    revision            bigint           NOT NULL,
    create_time         timestamptz      NOT NULL DEFAULT clock_timestamp(),
    update_time         timestamptz      NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT placements_reserved_not_negative CHECK (reserved_cpu_millis >= 0 AND reserved_ram_mb >= 0 AND reserved_disk_mb >= 0),
    CONSTRAINT placements_times_valid CHECK (create_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        AND update_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00')
)
WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02);

CREATE TYPE port_protocol AS ENUM ('tcp', 'udp');

CREATE TABLE port_allocations (
    id            uuid             NOT NULL,
    server_handle text COLLATE "C" NOT NULL,
    protocol      port_protocol    NOT NULL,
    port          integer          NOT NULL CONSTRAINT port_allocations_port_valid CHECK (port BETWEEN 1 AND 65535),
    -- Null for a port that rests.
    project_id    text COLLATE "C",
    module        text COLLATE "C" CONSTRAINT port_allocations_module_valid CHECK (module ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
    create_time   timestamptz      NOT NULL DEFAULT clock_timestamp(),
    -- A port that was given back rests until then, while another is free.
    free_after    timestamptz,
    -- Contract, rule 5: no port is given twice.
    CONSTRAINT port_allocations_pkey PRIMARY KEY (server_handle, protocol, port),
    -- Contract, rule 1: one port a module.
    CONSTRAINT port_allocations_module_unique UNIQUE (project_id, module),
    CONSTRAINT port_allocations_held_or_resting CHECK (
        (project_id IS NOT NULL AND module IS NOT NULL AND free_after IS NULL)
        OR (project_id IS NULL AND module IS NULL AND free_after IS NOT NULL)),
    -- A port that is to rest for good rests until 9999: the service cannot read infinity.
    CONSTRAINT port_allocations_times_valid CHECK (create_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00'
        AND free_after BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00')
)
WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02);

-- The ports that rest, for their removal in small steps.
CREATE INDEX port_allocations_free_after ON port_allocations (free_after) WHERE free_after IS NOT NULL;

-- Adds to the sums of servers. The planner is held to index look-ups, for a cached plan may be older than the table's size.
CREATE FUNCTION add_to_server_sums(handles text[], counts bigint[], cpu_millis bigint[], ram_mb bigint[], disk_mb bigint[])
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    updated bigint;
BEGIN
    UPDATE servers s
    SET placement_count = s.placement_count + change.n,
        reserved_cpu_millis = s.reserved_cpu_millis + change.cpu,
        reserved_ram_mb = s.reserved_ram_mb + change.ram,
        reserved_disk_mb = s.reserved_disk_mb + change.disk,
        status = CASE WHEN s.status NOT IN ('ready', 'in_use') THEN s.status
                      WHEN s.placement_count + change.n > 0 THEN 'in_use' ELSE 'ready' END
    FROM unnest(handles, counts, cpu_millis, ram_mb, disk_mb) AS change (handle, n, cpu, ram, disk)
    WHERE s.handle = change.handle;
    GET DIAGNOSTICS updated = ROW_COUNT;
    IF updated <> coalesce(cardinality(handles), 0) THEN
        RAISE EXCEPTION 'a placement names a server that does not exist'
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'placements_server_exists';
    END IF;
END $$;

CREATE FUNCTION placements_sum_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_server_sums(array_agg(handle), array_agg(n), array_agg(cpu), array_agg(ram), array_agg(disk))
    FROM (SELECT server_handle, count(*), sum(reserved_cpu_millis)::bigint, sum(reserved_ram_mb)::bigint, sum(reserved_disk_mb)::bigint
          FROM added GROUP BY server_handle) AS change (handle, n, cpu, ram, disk);
    RETURN NULL;
END $$;

CREATE FUNCTION placements_sum_updated() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    PERFORM add_to_server_sums(array_agg(handle), array_agg(n), array_agg(cpu), array_agg(ram), array_agg(disk))
    FROM (SELECT server_handle, sum(n)::bigint, sum(cpu)::bigint, sum(ram)::bigint, sum(disk)::bigint
          FROM (SELECT server_handle, 1, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb FROM added
                UNION ALL
                SELECT server_handle, -1, -reserved_cpu_millis, -reserved_ram_mb, -reserved_disk_mb FROM removed)
               AS moved (server_handle, n, cpu, ram, disk)
          GROUP BY server_handle) AS change (handle, n, cpu, ram, disk);
    -- By what the rows were: one whose project was renamed must not leave its ports to nobody either.
    IF EXISTS (SELECT FROM removed JOIN port_allocations p ON p.project_id = removed.project_id
               LEFT JOIN placements now ON now.project_id = p.project_id
               WHERE now.server_handle IS DISTINCT FROM p.server_handle) THEN
        RAISE EXCEPTION 'a project cannot leave its ports behind'
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'port_allocations_on_placed_server';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION placements_sum_deleted() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    PERFORM add_to_server_sums(array_agg(handle), array_agg(n), array_agg(cpu), array_agg(ram), array_agg(disk))
    FROM (SELECT server_handle, -count(*), -sum(reserved_cpu_millis)::bigint, -sum(reserved_ram_mb)::bigint, -sum(reserved_disk_mb)::bigint
          FROM removed GROUP BY server_handle) AS change (handle, n, cpu, ram, disk);
    IF EXISTS (SELECT FROM removed JOIN port_allocations p ON p.project_id = removed.project_id) THEN
        RAISE EXCEPTION 'a placement cannot go before its ports'
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'port_allocations_placement_exists';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER placements_sum_inserted AFTER INSERT ON placements REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION placements_sum_inserted();
CREATE TRIGGER placements_sum_updated AFTER UPDATE ON placements REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION placements_sum_updated();
CREATE TRIGGER placements_sum_deleted AFTER DELETE ON placements REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION placements_sum_deleted();

-- A port is given only to a project that is placed on that server, inside the server's range and outside its excluded ranges.
CREATE FUNCTION port_allocations_check_added() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF EXISTS (SELECT FROM added
               LEFT JOIN placements p ON p.project_id = added.project_id
               WHERE added.project_id IS NOT NULL AND p.server_handle IS DISTINCT FROM added.server_handle) THEN
        RAISE EXCEPTION 'a port is held by a project that is not placed on its server'
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'port_allocations_on_placed_server';
    END IF;
    IF EXISTS (SELECT FROM added
               JOIN servers s ON s.handle = added.server_handle
               WHERE added.project_id IS NOT NULL
                 AND (added.port NOT BETWEEN s.port_range_start AND s.port_range_end
                      OR added.port <@ ANY (s.excluded_ports))) THEN
        RAISE EXCEPTION 'a port is outside its server''s range'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'port_allocations_port_in_range';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER port_allocations_check_inserted AFTER INSERT ON port_allocations REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION port_allocations_check_added();

-- A held port is never taken over: it is given back first.
CREATE FUNCTION port_allocations_refuse_takeover() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'port %/% of server % is held by project %', OLD.port, OLD.protocol, OLD.server_handle, OLD.project_id
        USING ERRCODE = 'unique_violation', CONSTRAINT = 'port_allocations_pkey';
END $$;

CREATE TRIGGER port_allocations_no_takeover BEFORE UPDATE ON port_allocations FOR EACH ROW
    WHEN (OLD.project_id IS NOT NULL AND NEW.project_id IS NOT NULL)
    EXECUTE FUNCTION port_allocations_refuse_takeover();

CREATE TRIGGER port_allocations_check_updated AFTER UPDATE ON port_allocations REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION port_allocations_check_added();

CREATE FUNCTION servers_drop_resting_ports() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM port_allocations WHERE server_handle = OLD.handle AND project_id IS NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER servers_drop_resting_ports AFTER DELETE ON servers FOR EACH ROW EXECUTE FUNCTION servers_drop_resting_ports();

CREATE TRIGGER placements_count_hand_edit BEFORE INSERT OR UPDATE OR DELETE ON placements
    FOR EACH STATEMENT EXECUTE FUNCTION queue_and_count_hand_edit();
CREATE TRIGGER port_allocations_count_hand_edit BEFORE INSERT OR UPDATE OR DELETE ON port_allocations
    FOR EACH STATEMENT EXECUTE FUNCTION queue_and_count_hand_edit();
