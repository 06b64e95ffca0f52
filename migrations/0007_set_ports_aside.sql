-- A port that a worker found in use on the host is set aside: given to nobody until `free_after`, where a port that rests is
-- given where no other is free. Adds a column without a rewrite; the check is validated at once, which reads the table.

ALTER TABLE port_allocations
    -- Why the port is set aside; null for one that is held or rests.
    ADD COLUMN set_aside_reason text,
    -- Whether the module asked for this port and no other: it keeps it where the project is moved.
    ADD COLUMN pinned boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT port_allocations_set_aside_rests CHECK (set_aside_reason IS NULL OR free_after IS NOT NULL),
    ADD CONSTRAINT port_allocations_pinned_held CHECK (NOT pinned OR project_id IS NOT NULL);

CREATE FUNCTION port_allocations_refuse_set_aside() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'port %/% of server % is set aside until %', OLD.port, OLD.protocol, OLD.server_handle, OLD.free_after
        USING ERRCODE = 'check_violation', CONSTRAINT = 'port_allocations_set_aside';
END $$;

CREATE TRIGGER port_allocations_set_aside BEFORE UPDATE ON port_allocations FOR EACH ROW
    WHEN (OLD.set_aside_reason IS NOT NULL AND OLD.free_after > clock_timestamp() AND NEW.project_id IS NOT NULL)
    EXECUTE FUNCTION port_allocations_refuse_set_aside();

ALTER TYPE operation_kind ADD VALUE 'port_replaced';
