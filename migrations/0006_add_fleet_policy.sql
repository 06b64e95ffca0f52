-- The fleet's policy: what holds for every server that does not say otherwise. It stands in the pool's row, so that all
-- replicas and the guard on `servers` decide by the same figures; a flag of each replica could differ between them.
-- Locks pools and servers for as long as it takes to write each server once.

ALTER TABLE pools
    -- Kept free of placements on a server that names no headroom of its own: at least this much, and at least this share of its
    -- capacity.
    ADD COLUMN default_headroom_cpu_millis  bigint  NOT NULL DEFAULT 0,
    ADD COLUMN default_headroom_ram_mb      bigint  NOT NULL DEFAULT 0,
    ADD COLUMN default_headroom_disk_mb     bigint  NOT NULL DEFAULT 0,
    ADD COLUMN default_headroom_cpu_percent integer NOT NULL DEFAULT 0,
    ADD COLUMN default_headroom_ram_percent integer NOT NULL DEFAULT 0,
    ADD COLUMN default_headroom_disk_percent integer NOT NULL DEFAULT 0,
    -- How much may be reserved for each hundred that there is.
    ADD COLUMN overcommit_cpu_percent       integer NOT NULL DEFAULT 100,
    ADD COLUMN overcommit_ram_percent       integer NOT NULL DEFAULT 100,
    ADD COLUMN overcommit_disk_percent      integer NOT NULL DEFAULT 100,
    ADD CONSTRAINT pools_default_headroom_valid CHECK (default_headroom_cpu_millis BETWEEN 0 AND 1000000000
        AND default_headroom_ram_mb BETWEEN 0 AND 1000000000000 AND default_headroom_disk_mb BETWEEN 0 AND 1000000000000
        AND default_headroom_cpu_percent BETWEEN 0 AND 100 AND default_headroom_ram_percent BETWEEN 0 AND 100
        AND default_headroom_disk_percent BETWEEN 0 AND 100),
    ADD CONSTRAINT pools_overcommit_valid CHECK (overcommit_cpu_percent BETWEEN 100 AND 10000
        AND overcommit_ram_percent BETWEEN 100 AND 10000 AND overcommit_disk_percent BETWEEN 100 AND 10000);

ALTER TABLE servers
    -- Null: the fleet's default.
    ALTER COLUMN headroom_cpu_millis DROP NOT NULL,
    ALTER COLUMN headroom_cpu_millis DROP DEFAULT,
    ALTER COLUMN headroom_ram_mb DROP NOT NULL,
    ALTER COLUMN headroom_ram_mb DROP DEFAULT,
    ALTER COLUMN headroom_disk_mb DROP NOT NULL,
    ALTER COLUMN headroom_disk_mb DROP DEFAULT,
    -- Null: the fleet's.
    ADD COLUMN overcommit_cpu_percent  integer,
    ADD COLUMN overcommit_ram_percent  integer,
    ADD COLUMN overcommit_disk_percent integer,
    -- What placements may take in all: capacity times over-commit less headroom. Derived, so that the guard is a comparison.
    ADD COLUMN budget_cpu_millis bigint NOT NULL DEFAULT 0,
    ADD COLUMN budget_ram_mb     bigint NOT NULL DEFAULT 0,
    ADD COLUMN budget_disk_mb    bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT servers_overcommit_valid CHECK (overcommit_cpu_percent BETWEEN 100 AND 10000
        AND overcommit_ram_percent BETWEEN 100 AND 10000 AND overcommit_disk_percent BETWEEN 100 AND 10000),
    -- A provider's figure seeds what is observed until the host itself reports.
    ADD COLUMN observed_by_host boolean NOT NULL DEFAULT true;

-- What placements may take of one resource. Rounded so that nothing is promised that is not there.
CREATE FUNCTION server_budget(capacity bigint, own_headroom bigint, default_headroom bigint, default_percent integer,
    own_overcommit integer, default_overcommit integer)
RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT capacity * coalesce(own_overcommit, default_overcommit) / 100
         - coalesce(own_headroom, greatest(default_headroom, (capacity * default_percent + 99) / 100))
$$;

CREATE FUNCTION servers_derive_budget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT server_budget(NEW.capacity_cpu_millis, NEW.headroom_cpu_millis, default_headroom_cpu_millis,
               default_headroom_cpu_percent, NEW.overcommit_cpu_percent, overcommit_cpu_percent),
           server_budget(NEW.capacity_ram_mb, NEW.headroom_ram_mb, default_headroom_ram_mb,
               default_headroom_ram_percent, NEW.overcommit_ram_percent, overcommit_ram_percent),
           server_budget(NEW.capacity_disk_mb, NEW.headroom_disk_mb, default_headroom_disk_mb,
               default_headroom_disk_percent, NEW.overcommit_disk_percent, overcommit_disk_percent)
    INTO NEW.budget_cpu_millis, NEW.budget_ram_mb, NEW.budget_disk_mb
    FROM pools WHERE pool_id = NEW.pool_id;
    RETURN NEW;
END $$;

CREATE TRIGGER servers_derive_budget_insert BEFORE INSERT ON servers FOR EACH ROW EXECUTE FUNCTION servers_derive_budget();
-- Not where only the sums change, which is with every placement.
CREATE TRIGGER servers_derive_budget_update BEFORE UPDATE ON servers FOR EACH ROW
    WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION servers_derive_budget();

-- A change of the policy is a change of every server: each is stamped, so that every replica reads it again.
CREATE FUNCTION pools_stamp_policy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.inventory_revision := OLD.inventory_revision + 1;
    RETURN NEW;
END $$;

CREATE FUNCTION pools_apply_policy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE servers SET
        budget_cpu_millis = server_budget(capacity_cpu_millis, headroom_cpu_millis, NEW.default_headroom_cpu_millis,
            NEW.default_headroom_cpu_percent, overcommit_cpu_percent, NEW.overcommit_cpu_percent),
        budget_ram_mb = server_budget(capacity_ram_mb, headroom_ram_mb, NEW.default_headroom_ram_mb,
            NEW.default_headroom_ram_percent, overcommit_ram_percent, NEW.overcommit_ram_percent),
        budget_disk_mb = server_budget(capacity_disk_mb, headroom_disk_mb, NEW.default_headroom_disk_mb,
            NEW.default_headroom_disk_percent, overcommit_disk_percent, NEW.overcommit_disk_percent),
        revision = NEW.inventory_revision
    WHERE pool_id = NEW.pool_id;
    RETURN NULL;
END $$;

CREATE TRIGGER pools_stamp_policy BEFORE UPDATE OF default_headroom_cpu_millis, default_headroom_ram_mb, default_headroom_disk_mb,
        default_headroom_cpu_percent, default_headroom_ram_percent, default_headroom_disk_percent,
        overcommit_cpu_percent, overcommit_ram_percent, overcommit_disk_percent
    ON pools FOR EACH ROW EXECUTE FUNCTION pools_stamp_policy();
CREATE TRIGGER pools_apply_policy AFTER UPDATE OF default_headroom_cpu_millis, default_headroom_ram_mb, default_headroom_disk_mb,
        default_headroom_cpu_percent, default_headroom_ram_percent, default_headroom_disk_percent,
        overcommit_cpu_percent, overcommit_ram_percent, overcommit_disk_percent
    ON pools FOR EACH ROW EXECUTE FUNCTION pools_apply_policy();

-- What stands becomes the budget; the stamps stay, for nothing changed.
ALTER TABLE servers DISABLE TRIGGER USER;
UPDATE servers s SET
    budget_cpu_millis = capacity_cpu_millis - headroom_cpu_millis,
    budget_ram_mb = capacity_ram_mb - headroom_ram_mb,
    budget_disk_mb = capacity_disk_mb - headroom_disk_mb;
ALTER TABLE servers ENABLE TRIGGER USER;

-- The guard of rule 5, by the budget; and a growth of a sum is all that it looks at, as before.
DROP TRIGGER servers_reserved_within_capacity ON servers;
CREATE TRIGGER servers_reserved_within_capacity BEFORE UPDATE ON servers FOR EACH ROW
    WHEN ((NEW.reserved_cpu_millis > OLD.reserved_cpu_millis AND NEW.reserved_cpu_millis > NEW.budget_cpu_millis)
       OR (NEW.reserved_ram_mb > OLD.reserved_ram_mb AND NEW.reserved_ram_mb > NEW.budget_ram_mb)
       OR (NEW.reserved_disk_mb > OLD.reserved_disk_mb AND NEW.reserved_disk_mb > NEW.budget_disk_mb))
    EXECUTE FUNCTION servers_refuse_oversell();

-- As before, and over-commit is one of what operators set.
CREATE OR REPLACE FUNCTION servers_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.reserved_cpu_millis := 0;
        NEW.reserved_ram_mb := 0;
        NEW.reserved_disk_mb := 0;
        NEW.placement_count := 0;
    ELSIF (NEW.address, NEW.managed, NEW.labels, NEW.capacity_cpu_millis, NEW.capacity_ram_mb, NEW.capacity_disk_mb,
           NEW.headroom_cpu_millis, NEW.headroom_ram_mb, NEW.headroom_disk_mb, NEW.overcommit_cpu_percent,
           NEW.overcommit_ram_percent, NEW.overcommit_disk_percent, NEW.port_range_start, NEW.port_range_end,
           NEW.excluded_ports, NEW.source, NEW.external_id)
          IS DISTINCT FROM
          (OLD.address, OLD.managed, OLD.labels, OLD.capacity_cpu_millis, OLD.capacity_ram_mb, OLD.capacity_disk_mb,
           OLD.headroom_cpu_millis, OLD.headroom_ram_mb, OLD.headroom_disk_mb, OLD.overcommit_cpu_percent,
           OLD.overcommit_ram_percent, OLD.overcommit_disk_percent, OLD.port_range_start, OLD.port_range_end,
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
