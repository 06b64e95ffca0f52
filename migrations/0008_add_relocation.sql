-- What a placement keeps of the request that made it, so that the project can be moved: a server that it is moved to must
-- carry the same labels, and its ports start where they did. Adds columns without a rewrite.

ALTER TABLE placements
    -- Null: none was asked for.
    ADD COLUMN server_selector jsonb
        CONSTRAINT placements_selector_valid CHECK (jsonb_typeof(server_selector) = 'object'
            AND NOT jsonb_path_exists(server_selector, 'strict $.* ? (@.type() <> "string")', silent => true)),
    -- Null: the default.
    ADD COLUMN start_port integer
        CONSTRAINT placements_start_port_valid CHECK (start_port BETWEEN 1 AND 65535);

ALTER TYPE operation_kind ADD VALUE 'relocated';
ALTER TYPE operation_kind ADD VALUE 'policy_changed';
