-- Checks of names, as before, without counted repetition: Postgres works a `{0,127}` out anew for each row, which took longer
-- than all else that writing the row takes. Validates each table once, which reads it under a lock against writes.

ALTER TABLE servers
    DROP CONSTRAINT servers_handle_valid,
    ADD CONSTRAINT servers_handle_valid CHECK (handle ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' AND octet_length(handle) <= 128);

ALTER TABLE placements
    DROP CONSTRAINT placements_project_id_valid,
    ADD CONSTRAINT placements_project_id_valid
        CHECK (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' AND octet_length(project_id) <= 128);

ALTER TABLE port_allocations
    DROP CONSTRAINT port_allocations_module_valid,
    ADD CONSTRAINT port_allocations_module_valid
        CHECK (module ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$' AND octet_length(module) <= 63);
