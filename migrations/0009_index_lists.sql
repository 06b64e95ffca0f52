-- Lists of allocations by server and by module: each reads no more rows than its page holds, however many there are.
-- ListAllocations is what they are for. Each locks its table against writes while it is built.

-- By server: a project's ports are all on the project's server, so one entry a project does, where an index on the ports
-- would need one a port.
CREATE INDEX placements_server ON placements (server_handle, project_id);

-- By module, whose entries are in the order of the list.
CREATE INDEX port_allocations_module ON port_allocations (module, project_id) WHERE project_id IS NOT NULL;
