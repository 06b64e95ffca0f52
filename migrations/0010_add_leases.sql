-- Leases: a placement may end by itself unless its project is ensured again. Adds columns without a rewrite. The index serves
-- the look for leases that are over, and stays small where leases are few.

ALTER TABLE placements
    -- When the placement ends by itself; null for one that is to stay.
    ADD COLUMN expire_time timestamptz
        CONSTRAINT placements_expire_time_valid CHECK (expire_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00');

CREATE INDEX placements_expire_time ON placements (expire_time) WHERE expire_time IS NOT NULL;

ALTER TABLE pools
    -- When leases could last be renewed: written with what is committed, every few seconds while there are leases. While it
    -- stands still nobody can renew, and so the clock of the leases stands still too.
    ADD COLUMN leases_served_time timestamptz
        CONSTRAINT pools_leases_served_time_valid CHECK (leases_served_time BETWEEN '0001-01-01 00:00+00' AND '9999-01-01 00:00+00');

-- As it was, but that servers whose sums do not change are not written: a renewal changes none.
CREATE OR REPLACE FUNCTION placements_sum_updated() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    PERFORM add_to_server_sums(array_agg(handle), array_agg(n), array_agg(cpu), array_agg(ram), array_agg(disk))
    FROM (SELECT server_handle, sum(n)::bigint, sum(cpu)::bigint, sum(ram)::bigint, sum(disk)::bigint
          FROM (SELECT server_handle, 1, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb FROM added
                UNION ALL
                SELECT server_handle, -1, -reserved_cpu_millis, -reserved_ram_mb, -reserved_disk_mb FROM removed)
               AS moved (server_handle, n, cpu, ram, disk)
          GROUP BY server_handle
          HAVING sum(n) <> 0 OR sum(cpu) <> 0 OR sum(ram) <> 0 OR sum(disk) <> 0) AS change (handle, n, cpu, ram, disk);
    -- By what the rows were: one whose project was renamed must not leave its ports to nobody either.
    IF EXISTS (SELECT FROM removed JOIN port_allocations p ON p.project_id = removed.project_id
               LEFT JOIN placements now ON now.project_id = p.project_id
               WHERE now.server_handle IS DISTINCT FROM p.server_handle) THEN
        RAISE EXCEPTION 'a project cannot leave its ports behind'
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'port_allocations_on_placed_server';
    END IF;
    RETURN NULL;
END $$;
