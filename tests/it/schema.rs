//! The guards of the schema, each tried by SQL past the service: whatever writes, psql or the service itself, is refused by name.

use std::collections::BTreeSet;

use resource_allocator::proto::v1;
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool};

use crate::support::{
    TestDatabase, TestService,
    inventory::{assert_consistent, ensure_ram, ram, refused},
    server,
};

/// Two servers of 1000 each, headroom 100, ports 8000 to 8999 without 8100 to 8199; `p` placed on `a` with one port, `q` on `b`
/// with none; a port that rests; a log of three events.
const FIXTURE: &str = "
    INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb,
        headroom_cpu_millis, headroom_ram_mb, headroom_disk_mb, port_range_start, port_range_end, excluded_ports, source, external_id)
    SELECT handle, '192.0.2.1', 1000, 1000, 1000, 100, 100, 100, 8000, 8999, '{\"[8100,8200)\"}', 'cloud', 'i-' || handle
    FROM unnest('{a,b,empty}'::text[]) AS handle;
    INSERT INTO placements (project_id, server_handle, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb, revision)
    VALUES ('p', 'a', 500, 500, 500, 1), ('q', 'b', 0, 0, 0, 1);
    INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module, free_after)
    VALUES (gen_random_uuid(), 'a', 'tcp', 8000, 'p', 'backend', NULL), (gen_random_uuid(), 'a', 'tcp', 8001, NULL, NULL, now());
    INSERT INTO allocation_events (first_sequence, last_sequence, event_time, kind, request_id, payload)
    VALUES (1, 1, now(), 'server_changed', 'r', '{}'), (2, 3, now(), 'server_changed', 'r', '{}');
    UPDATE pools SET compacted_sequence = 1;
";

/// A statement that a guard refuses.
struct Case {
    /// The guard as the catalog has it: a constraint, a unique index, or a trigger.
    guard: &'static str,
    /// The name that the refusal carries, which the service and people act on.
    told_as: &'static str,
    /// What is refused.
    statement: &'static str,
}

const fn case(guard: &'static str, statement: &'static str) -> Case {
    Case { guard, told_as: guard, statement }
}

const fn told(guard: &'static str, told_as: &'static str, statement: &'static str) -> Case {
    Case { guard, told_as, statement }
}

/// The service's statement, where project `w` stands in line by event 4.
macro_rules! in_line {
    ($statement:literal) => {
        concat!(
            "SET LOCAL resource_allocator.writer = 'service'; ",
            "INSERT INTO allocation_events VALUES (1, 4, 5, now(), 'waiting', 'w', NULL, 'r', '{}'), (1, 6, 7, now(), 'waiting', 'v', NULL, 'r', '{}'); ",
            "INSERT INTO waiters VALUES ('w', 1, 4, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now()); ",
            $statement
        )
    };
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    // pools
    case("pools_pkey", "INSERT INTO pools (pool_id, name, token_key) SELECT 1, 'other', token_key FROM pools"),
    case("pools_name_unique", "INSERT INTO pools (pool_id, name, token_key) SELECT 2, name, token_key FROM pools"),
    case("pools_token_key_length", "UPDATE pools SET token_key = '\\x00'"),
    case("pools_leases_served_time_valid", "UPDATE pools SET leases_served_time = 'infinity'"),
    case("pools_compacted_before_last", "UPDATE pools SET compacted_sequence = last_sequence + 1"),
    case("pools_sequence_monotonic", "UPDATE pools SET last_sequence = last_sequence - 1"),
    case("pools_sequence_monotonic", "UPDATE pools SET compacted_sequence = 0"),
    case("pools_sequence_monotonic", "UPDATE pools SET inventory_revision = inventory_revision - 1"),

    case("pools_default_headroom_valid", "UPDATE pools SET default_headroom_cpu_millis = -1"),
    case("pools_default_headroom_valid", "UPDATE pools SET default_headroom_ram_mb = 1000000000001"),
    case("pools_default_headroom_valid", "UPDATE pools SET default_headroom_disk_mb = -1"),
    case("pools_default_headroom_valid", "UPDATE pools SET default_headroom_cpu_percent = 101"),
    case("pools_default_headroom_valid", "UPDATE pools SET default_headroom_ram_percent = -1"),
    case("pools_default_headroom_valid", "UPDATE pools SET default_headroom_disk_percent = 101"),
    case("pools_overcommit_valid", "UPDATE pools SET overcommit_cpu_percent = 99"),
    case("pools_overcommit_valid", "UPDATE pools SET overcommit_ram_percent = 10001"),
    case("pools_overcommit_valid", "UPDATE pools SET overcommit_disk_percent = 0"),

    // servers: what an operator types
    case("servers_pkey", "INSERT INTO servers (handle, address) VALUES ('a', 'x')"),
    case("servers_handle_valid", "INSERT INTO servers (handle, address) VALUES ('', 'x')"),
    case("servers_handle_valid", "INSERT INTO servers (handle, address) VALUES ('-a', 'x')"),
    case("servers_handle_valid", "INSERT INTO servers (handle, address) VALUES ('a b', 'x')"),
    case("servers_handle_valid", "INSERT INTO servers (handle, address) VALUES (E'a\\n', 'x')"),
    case("servers_handle_valid", "INSERT INTO servers (handle, address) VALUES ('é', 'x')"),
    case("servers_handle_valid", "INSERT INTO servers (handle, address) VALUES (repeat('a', 129), 'x')"),
    case("servers_pool_exists", "DELETE FROM pools"),
    case("servers_address_valid", "UPDATE servers SET address = '' WHERE handle = 'a'"),
    case("servers_address_valid", "UPDATE servers SET address = repeat('a', 254) WHERE handle = 'a'"),
    case("servers_labels_valid", "UPDATE servers SET labels = '[]' WHERE handle = 'a'"),
    case("servers_labels_valid", "UPDATE servers SET labels = '\"eu\"' WHERE handle = 'a'"),
    case("servers_labels_valid", "UPDATE servers SET labels = 'null' WHERE handle = 'a'"),
    case("servers_labels_valid", "UPDATE servers SET labels = '{\"gpus\": 2}' WHERE handle = 'a'"),
    case("servers_labels_valid", "UPDATE servers SET labels = '{\"region\": \"eu\", \"gpus\": null}' WHERE handle = 'a'"),
    case("servers_labels_valid", "UPDATE servers SET labels = '{\"regions\": [\"eu\"]}' WHERE handle = 'a'"),
    case("servers_capacity_valid", "UPDATE servers SET capacity_cpu_millis = -1 WHERE handle = 'empty'"),
    case("servers_capacity_valid", "UPDATE servers SET capacity_ram_mb = -1 WHERE handle = 'empty'"),
    case("servers_capacity_valid", "UPDATE servers SET capacity_disk_mb = -1 WHERE handle = 'empty'"),
    case("servers_capacity_valid", "UPDATE servers SET capacity_cpu_millis = 1000000001 WHERE handle = 'empty'"),
    case("servers_capacity_valid", "UPDATE servers SET capacity_ram_mb = 1000000000001 WHERE handle = 'empty'"),
    case("servers_capacity_valid", "UPDATE servers SET capacity_disk_mb = 1000000000001 WHERE handle = 'empty'"),
    case("servers_headroom_valid", "UPDATE servers SET headroom_cpu_millis = -1 WHERE handle = 'empty'"),
    case("servers_headroom_valid", "UPDATE servers SET headroom_ram_mb = -1 WHERE handle = 'empty'"),
    case("servers_headroom_valid", "UPDATE servers SET headroom_disk_mb = -1 WHERE handle = 'empty'"),
    case("servers_headroom_valid", "UPDATE servers SET headroom_ram_mb = 1000000000001 WHERE handle = 'empty'"),
    case("servers_overcommit_valid", "UPDATE servers SET overcommit_cpu_percent = 99 WHERE handle = 'a'"),
    case("servers_overcommit_valid", "UPDATE servers SET overcommit_ram_percent = 10001 WHERE handle = 'a'"),
    case("servers_overcommit_valid", "UPDATE servers SET overcommit_disk_percent = -1 WHERE handle = 'a'"),
    case("servers_observed_valid", "UPDATE servers SET observed_cpu_millis = -1 WHERE handle = 'a'"),
    case("servers_observed_valid", "UPDATE servers SET observed_ram_mb = -1 WHERE handle = 'a'"),
    case("servers_observed_valid", "UPDATE servers SET observed_disk_mb = -1 WHERE handle = 'a'"),
    case("servers_observed_valid", "UPDATE servers SET observed_ram_mb = 1000000000001 WHERE handle = 'a'"),
    case("servers_observed_ports_valid", "UPDATE servers SET observed_ports = '{80,0}' WHERE handle = 'a'"),
    case("servers_observed_ports_valid", "UPDATE servers SET observed_ports = '{65536}' WHERE handle = 'a'"),
    case("servers_observed_ports_valid", "UPDATE servers SET observed_ports = '{80,NULL}' WHERE handle = 'a'"),
    case("servers_port_range_valid", "UPDATE servers SET port_range_start = 0 WHERE handle = 'a'"),
    case("servers_port_range_valid", "UPDATE servers SET port_range_end = 65536 WHERE handle = 'a'"),
    case("servers_port_range_valid", "UPDATE servers SET port_range_start = 9000 WHERE handle = 'a'"),
    case("servers_excluded_ports_valid", "UPDATE servers SET excluded_ports = '{\"[0,10]\"}' WHERE handle = 'a'"),
    case("servers_excluded_ports_valid", "UPDATE servers SET excluded_ports = '{\"[80,80]\",\"[9000,65536]\"}' WHERE handle = 'a'"),
    case("servers_excluded_ports_valid", "UPDATE servers SET excluded_ports = '{\"[9000,)\"}' WHERE handle = 'a'"),
    case("servers_excluded_ports_valid", "UPDATE servers SET excluded_ports = '{\"(,80]\"}' WHERE handle = 'a'"),
    case("servers_excluded_ports_valid", "UPDATE servers SET excluded_ports = '{empty}' WHERE handle = 'a'"),
    case("servers_excluded_ports_valid", "UPDATE servers SET excluded_ports = '{NULL}' WHERE handle = 'a'"),
    case("servers_external_id_present", "UPDATE servers SET external_id = '' WHERE handle = 'a'"),
    case("servers_external_id_unique", "UPDATE servers SET external_id = 'i-b' WHERE handle = 'a'"),
    case("servers_times_valid", "UPDATE servers SET observe_time = 'infinity' WHERE handle = 'a'"),
    case("servers_times_valid", "UPDATE servers SET create_time = '-infinity' WHERE handle = 'a'"),
    case("servers_times_valid", "INSERT INTO servers (handle, address, update_time) VALUES ('c', 'x', '10000-01-01')"),

    // servers: what follows from the placements
    case("servers_sums_derived", "UPDATE servers SET reserved_cpu_millis = 0 WHERE handle = 'a'"),
    case("servers_sums_derived", "UPDATE servers SET reserved_ram_mb = 501 WHERE handle = 'a'"),
    case("servers_sums_derived", "UPDATE servers SET reserved_disk_mb = 0 WHERE handle = 'a'"),
    case("servers_sums_derived", "UPDATE servers SET placement_count = 0 WHERE handle = 'a'"),
    case("servers_handle_fixed", "UPDATE servers SET handle = 'renamed' WHERE handle = 'empty'"),
    case("servers_handle_fixed", "UPDATE servers SET pool_id = 2 WHERE handle = 'empty'"),
    // Only with every trigger off can a sum go wrong at all.
    case("servers_reserved_not_negative", "SET LOCAL session_replication_role = replica; UPDATE servers SET reserved_ram_mb = -1"),
    case("servers_reserved_not_negative", "SET LOCAL session_replication_role = replica; UPDATE servers SET placement_count = -1"),
    case("servers_in_use", "DELETE FROM servers WHERE handle = 'a'"),
    case("servers_in_use", "DELETE FROM servers"),

    // As EnsureAllocation promises, no server is oversold, by a new placement or by one that grows, in any resource.
    case("servers_reserved_within_capacity", "INSERT INTO placements VALUES ('new', 'a', 401, 0, 0, 1)"),
    case("servers_reserved_within_capacity", "INSERT INTO placements VALUES ('new', 'a', 0, 401, 0, 1)"),
    case("servers_reserved_within_capacity", "INSERT INTO placements VALUES ('new', 'a', 0, 0, 401, 1)"),
    case("servers_reserved_within_capacity", "INSERT INTO placements VALUES ('n1', 'a', 0, 200, 0, 1), ('n2', 'a', 0, 201, 0, 1)"),
    case("servers_reserved_within_capacity", "UPDATE placements SET reserved_cpu_millis = 901 WHERE project_id = 'p'"),
    case("servers_reserved_within_capacity", "UPDATE placements SET reserved_ram_mb = 901 WHERE project_id = 'p'"),
    case("servers_reserved_within_capacity", "UPDATE placements SET reserved_disk_mb = 901 WHERE project_id = 'p'"),
    case("servers_reserved_within_capacity", "UPDATE servers SET capacity_ram_mb = 100 WHERE handle = 'b'; UPDATE placements SET reserved_ram_mb = 1 WHERE project_id = 'q'"),
    // By the budget, however it came about: over-commit lets more be reserved, and not a unit more than that.
    case("servers_reserved_within_capacity", "UPDATE servers SET overcommit_ram_percent = 150 WHERE handle = 'a'; UPDATE placements SET reserved_ram_mb = 1401 WHERE project_id = 'p'"),
    case("servers_reserved_within_capacity", "UPDATE pools SET overcommit_ram_percent = 150; UPDATE placements SET reserved_ram_mb = 1401 WHERE project_id = 'p'"),
    case("servers_reserved_within_capacity", "UPDATE servers SET headroom_ram_mb = NULL WHERE handle = 'a'; UPDATE pools SET default_headroom_ram_percent = 30; UPDATE placements SET reserved_ram_mb = 701 WHERE project_id = 'p'"),
    case("servers_reserved_within_capacity", "UPDATE servers SET budget_ram_mb = 100000 WHERE handle = 'a'; UPDATE placements SET reserved_ram_mb = 901 WHERE project_id = 'p'"),
    case("servers_reserved_within_capacity", "UPDATE placements SET reserved_ram_mb = 901, server_handle = 'empty' WHERE project_id = 'q'"),

    // placements
    case("placements_pkey", "INSERT INTO placements VALUES ('p', 'b', 0, 0, 0, 1)"),
    case("placements_project_id_valid", "INSERT INTO placements VALUES ('', 'b', 0, 0, 0, 1)"),
    case("placements_project_id_valid", "INSERT INTO placements VALUES ('a b', 'b', 0, 0, 0, 1)"),
    case("placements_project_id_valid", "INSERT INTO placements VALUES (repeat('a', 129), 'b', 0, 0, 0, 1)"),
    case("placements_reserved_not_negative", "INSERT INTO placements VALUES ('new', 'b', -1, 0, 0, 1)"),
    case("placements_reserved_not_negative", "INSERT INTO placements VALUES ('new', 'b', 0, -1, 0, 1)"),
    case("placements_reserved_not_negative", "UPDATE placements SET reserved_disk_mb = -1"),
    case("placements_times_valid", "UPDATE placements SET create_time = '-infinity'"),
    case("placements_times_valid", "UPDATE placements SET update_time = '294000-01-01'"),
    case("placements_selector_valid", "UPDATE placements SET server_selector = '[]'"),
    case("placements_selector_valid", "UPDATE placements SET server_selector = '{\"gpus\": 2}'"),
    case("placements_start_port_valid", "UPDATE placements SET start_port = 0"),
    case("placements_start_port_valid", "UPDATE placements SET start_port = 65536"),
    told("placements_sum_inserted", "placements_server_exists", "INSERT INTO placements VALUES ('new', 'nowhere', 0, 0, 0, 1)"),
    told("placements_sum_inserted", "placements_server_exists", "INSERT INTO placements VALUES ('n1', 'b', 0, 0, 0, 1), ('n2', 'nowhere', 0, 0, 0, 1)"),
    told("placements_sum_updated", "placements_server_exists", "UPDATE placements SET server_handle = 'nowhere' WHERE project_id = 'q'"),
    told("placements_sum_updated", "port_allocations_on_placed_server", "UPDATE placements SET server_handle = 'b' WHERE project_id = 'p'"),
    told("placements_sum_updated", "port_allocations_on_placed_server", "UPDATE placements SET project_id = 'renamed' WHERE project_id = 'p'"),
    told("placements_sum_deleted", "port_allocations_placement_exists", "DELETE FROM placements WHERE project_id = 'p'"),
    told("placements_sum_deleted", "port_allocations_placement_exists", "DELETE FROM placements"),

    case("placements_expire_time_valid", "UPDATE placements SET expire_time = 'infinity'"),

    // port_allocations: no port is given twice, and none to a project that is not placed there.
    case("port_allocations_pkey", "INSERT INTO placements VALUES ('new', 'a', 0, 0, 0, 1); INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8000, 'new', 'm')"),
    told("port_allocations_no_takeover", "port_allocations_pkey", "INSERT INTO placements VALUES ('new', 'a', 0, 0, 0, 1); UPDATE port_allocations SET project_id = 'new' WHERE port = 8000"),
    told("port_allocations_no_takeover", "port_allocations_pkey", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8000, 'p', 'm') ON CONFLICT ON CONSTRAINT port_allocations_pkey DO UPDATE SET module = excluded.module"),
    told("port_allocations_no_takeover", "port_allocations_pkey", "UPDATE port_allocations SET port = 8002 WHERE port = 8000"),
    case("port_allocations_module_unique", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', 'backend')"),
    case("port_allocations_module_unique", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'udp', 8000, 'p', 'backend')"),
    case("port_allocations_port_valid", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 0, 'p', 'm')"),
    case("port_allocations_port_valid", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 65536, 'p', 'm')"),
    case("port_allocations_module_valid", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', '')"),
    case("port_allocations_module_valid", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', 'a/b')"),
    case("port_allocations_module_valid", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', repeat('a', 64))"),
    case("port_allocations_held_or_resting", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', NULL)"),
    case("port_allocations_held_or_resting", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, NULL, 'm')"),
    case("port_allocations_held_or_resting", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, NULL, NULL)"),
    case("port_allocations_held_or_resting", "UPDATE port_allocations SET free_after = NULL WHERE port = 8001"),
    case("port_allocations_set_aside_rests", "INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module, set_aside_reason) VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', 'm', 'nginx')"),
    case("port_allocations_pinned_held", "UPDATE port_allocations SET pinned = true WHERE port = 8001"),
    // A port that is set aside is given to nobody until its time is over.
    case("port_allocations_set_aside", "UPDATE port_allocations SET set_aside_reason = 'nginx', free_after = now() + interval '1 hour' WHERE port = 8001; UPDATE port_allocations SET project_id = 'p', module = 'm', free_after = NULL, set_aside_reason = NULL WHERE port = 8001"),
    case("port_allocations_set_aside", "UPDATE port_allocations SET set_aside_reason = 'nginx', free_after = now() + interval '1 hour' WHERE port = 8001; INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8001, 'p', 'm') ON CONFLICT ON CONSTRAINT port_allocations_pkey DO UPDATE SET project_id = 'p', module = 'm', free_after = NULL, set_aside_reason = NULL"),
    case("port_allocations_times_valid", "UPDATE port_allocations SET free_after = 'infinity' WHERE port = 8001"),
    case("port_allocations_times_valid", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', 'm', '-infinity')"),
    told("port_allocations_check_inserted", "port_allocations_on_placed_server", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'q', 'm')"),
    told("port_allocations_check_inserted", "port_allocations_on_placed_server", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'nobody', 'm')"),
    told("port_allocations_check_inserted", "port_allocations_on_placed_server", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'nowhere', 'tcp', 8002, 'p', 'm')"),
    told("port_allocations_check_inserted", "port_allocations_port_in_range", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 7999, 'p', 'm')"),
    told("port_allocations_check_inserted", "port_allocations_port_in_range", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'udp', 9000, 'p', 'm')"),
    told("port_allocations_check_inserted", "port_allocations_port_in_range", "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8002, 'p', 'm'), (gen_random_uuid(), 'a', 'tcp', 8100, 'p', 'n')"),
    told("port_allocations_check_updated", "port_allocations_on_placed_server", "UPDATE port_allocations SET project_id = 'q', module = 'm', free_after = NULL WHERE port = 8001"),
    told("port_allocations_check_updated", "port_allocations_port_in_range", "UPDATE port_allocations SET project_id = 'p', module = 'm', free_after = NULL, port = 8199 WHERE port = 8001"),

    // allocation_events: numbered without a gap, and never rewritten
    case("allocation_events_pkey", "INSERT INTO allocation_events SELECT (jsonb_populate_record(e, '{\"last_sequence\": 4}')).* FROM allocation_events e WHERE first_sequence = 2"),
    case("allocation_events_span_valid", "INSERT INTO allocation_events VALUES (1, 5, 4, now(), 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_span_valid", "INSERT INTO allocation_events VALUES (1, 0, 0, now(), 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_time_valid", "INSERT INTO allocation_events VALUES (1, 4, 4, 'infinity', 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_gap_free", "INSERT INTO allocation_events VALUES (1, 5, 5, now(), 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_gap_free", "INSERT INTO allocation_events VALUES (1, 3, 4, now(), 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_gap_free", "INSERT INTO allocation_events VALUES (1, 4, 4, now(), 'refused', NULL, NULL, 'r', '{}'), (1, 6, 6, now(), 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_gap_free", "INSERT INTO allocation_events VALUES (1, 4, 5, now(), 'refused', NULL, NULL, 'r', '{}'), (1, 5, 6, now(), 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_gap_free", "INSERT INTO allocation_events VALUES (2, 1, 1, now(), 'refused', NULL, NULL, 'r', '{}')"),
    case("allocation_events_append_only", "UPDATE allocation_events SET payload = '{\"rewritten\": true}'"),
    case("allocation_events_append_only", "UPDATE allocation_events SET request_id = 'x' WHERE false"),

    // waiters: one place a project, where the log says that it was taken
    case("waiters_pkey", in_line!("INSERT INTO waiters VALUES ('w', 1, 6, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now())")),
    case("waiters_project_id_valid", in_line!("INSERT INTO waiters VALUES ('-', 1, 6, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now())")),
    case("waiters_pool_exists", in_line!("INSERT INTO waiters VALUES ('v', 2, 6, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now())")),
    case("waiters_request_valid", in_line!("UPDATE waiters SET request = '[]'")),
    case("waiters_arrival_unique", in_line!("INSERT INTO waiters VALUES ('v', 1, 4, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now())")),
    case("waiters_deadline_after_since", in_line!("UPDATE waiters SET deadline = since - interval '1 second'")),
    case("waiters_times_valid", in_line!("UPDATE waiters SET deadline = 'infinity'")),
    case("waiters_times_valid", in_line!("UPDATE waiters SET absent_since = '-infinity'")),
    case("waiters_arrival_in_log", in_line!("INSERT INTO waiters VALUES ('v', 1, 5, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now())")),
    case("waiters_arrival_in_log", in_line!("INSERT INTO waiters VALUES ('v', 1, 2, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now())")),
    case("waiters_arrival_in_log", in_line!("INSERT INTO waiters VALUES ('u', 1, 6, gen_random_uuid(), '{}', 'NO_ROOM', 'r', now(), now())")),
    case("waiters_no_jump", in_line!("UPDATE waiters SET arrival = 3")),
    case("waiters_no_jump", in_line!("UPDATE waiters SET project_id = 'v'")),
    case("waiters_service_only", in_line!("SET LOCAL resource_allocator.writer = ''; DELETE FROM waiters")),
    case("waiters_service_only", in_line!("SET LOCAL resource_allocator.writer = ''; TRUNCATE waiters")),
    case("waiters_service_only", in_line!("SET LOCAL resource_allocator.writer = ''; UPDATE waiters SET deadline = now()")),

    // Nothing that is derived row by row would follow.
    case("servers_no_truncate", "TRUNCATE servers"),
    case("placements_no_truncate", "TRUNCATE placements"),
    case("port_allocations_no_truncate", "TRUNCATE port_allocations"),
    case("allocation_events_no_truncate", "TRUNCATE allocation_events"),
];

/// Triggers that do something other than refuse; each has a test below.
const DO_MORE_THAN_REFUSE: &[&str] = &[
    "pools_stamp_policy",
    "pools_apply_policy",
    "servers_derive_budget_insert",
    "servers_derive_budget_update",
    "servers_stamp_insert",
    "servers_stamp_update",
    "servers_queue_change",
    "servers_count_hand_delete",
    "servers_drop_resting_ports",
    "placements_count_hand_edit",
    "placements_count_leases",
    "port_allocations_count_hand_edit",
];

/// Who writes, in the words of SQL that make a transaction theirs.
const WRITERS: [(&str, &str); 2] = [
    ("psql", "SET LOCAL resource_allocator.writer = ''"),
    ("service", "SET LOCAL resource_allocator.writer = 'service'"),
];

async fn fixture() -> TestDatabase {
    let database = TestDatabase::create().await;
    database.sql.execute(FIXTURE).await.unwrap();
    assert_consistent(&database.sql).await;
    database
}

async fn names(sql: &PgPool, query: &'static str) -> BTreeSet<String> {
    sqlx::query_scalar(query).fetch_all(sql).await.unwrap().into_iter().collect()
}

fn set(names: impl IntoIterator<Item = &'static str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

async fn count(conn: &mut PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(conn).await.unwrap()
}

/// A transaction of one of the writers.
async fn begin(conn: &mut PgConnection, writer: &'static str) {
    conn.execute("BEGIN").await.unwrap();
    conn.execute(writer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_guard_refuses_by_name_whoever_writes() {
    let database = fixture().await;
    let mut conn = database.sql.acquire().await.unwrap();
    let mut wrong = Vec::new();
    for (writer, be_writer) in WRITERS {
        for Case { told_as, statement, .. } in CASES {
            begin(&mut conn, be_writer).await;
            let result = conn.execute(*statement).await;
            conn.execute("ROLLBACK").await.unwrap();
            let name = match &result {
                Ok(_) => "nothing",
                Err(sqlx::Error::Database(error)) => error.constraint().unwrap_or_else(|| error.message()),
                Err(error) => panic!("{statement}: {error}"),
            };
            if name != *told_as {
                wrong.push(format!("{writer}: {told_as} let pass, or was told as {name}: {statement}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_guard_of_the_schema_is_without_a_case() {
    let database = TestDatabase::create().await;
    // Constraints but for NOT NULL, unique indexes of no constraint, and triggers; sqlx's own table is not ours.
    let guards = names(
        &database.sql,
        "SELECT conname::text FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype NOT IN ('n', 't')
             AND conrelid <> '_sqlx_migrations'::regclass
         UNION SELECT relname::text FROM pg_index JOIN pg_class c ON c.oid = indexrelid
         WHERE indisunique AND c.relnamespace = 'public'::regnamespace AND indrelid <> '_sqlx_migrations'::regclass
         UNION SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal",
    )
    .await;
    let tried = set(CASES.iter().map(|case| case.guard).chain(DO_MORE_THAN_REFUSE.iter().copied()));
    assert_eq!(guards, tried);

    // Functions tell names that no catalog has.
    let raised = names(
        &database.sql,
        "SELECT (regexp_matches(prosrc, 'CONSTRAINT = ''([a-z_]+)''', 'g'))[1] FROM pg_proc
         WHERE pronamespace = 'public'::regnamespace",
    )
    .await;
    let told = set(CASES.iter().map(|case| case.told_as));
    assert!(raised.is_subset(&told), "{:?}", raised.difference(&told));
}

#[tokio::test(flavor = "multi_thread")]
async fn l29_a_status_is_one_of_the_enum() {
    let database = fixture().await;
    for statement in [
        "UPDATE servers SET status = 'broken' WHERE handle = 'a'",
        "UPDATE servers SET status = 'READY' WHERE handle = 'a'",
        "UPDATE port_allocations SET protocol = 'sctp'",
        "INSERT INTO allocation_events VALUES (1, 4, 4, now(), 'renamed', NULL, NULL, 'r', '{}')",
    ] {
        let error = database.sql.execute(statement).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "22P02", "{statement}");
    }
    let values = |name: &'static str| {
        sqlx::query_scalar::<_, String>(
            "SELECT enumlabel::text FROM pg_enum WHERE enumtypid = $1::regtype ORDER BY enumsortorder",
        )
        .bind(name)
        .fetch_all(&database.sql)
    };
    assert_eq!(
        values("server_status").await.unwrap(),
        [
            "discovered",
            "provisioning",
            "ready",
            "in_use",
            "maintenance",
            "error",
            "unreachable",
            "missing",
            "decommissioned"
        ]
    );
    assert_eq!(values("port_protocol").await.unwrap(), ["tcp", "udp"]);
    assert_eq!(
        values("operation_kind").await.unwrap(),
        [
            "ensured",
            "refused",
            "released",
            "server_changed",
            "waiting",
            "left_line",
            "port_replaced",
            "relocated",
            "policy_changed"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_statement_that_gives_placements_an_end_is_counted() {
    let database = fixture().await;
    let mut conn = database.sql.acquire().await.unwrap();
    for (statement, wanted) in [
        ("UPDATE placements SET reserved_ram_mb = 400, expire_time = NULL WHERE project_id = 'p'", 0),
        ("UPDATE placements SET expire_time = now()", 1),
        ("UPDATE placements SET expire_time = expire_time + interval '1 hour'", 1),
        ("UPDATE placements SET expire_time = NULL WHERE project_id = 'q'", 1),
        ("UPDATE placements SET expire_time = CASE WHEN project_id = 'q' THEN now() END", 2),
        ("UPDATE placements SET expire_time = NULL", 2),
    ] {
        conn.execute(statement).await.unwrap();
        assert_eq!(count(&mut conn, "SELECT lease_count FROM pools").await, wanted, "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l47_sums_follow_the_rows_that_they_sum() {
    let database = fixture().await;
    for statement in [
        "INSERT INTO placements VALUES ('n1', 'a', 1, 2, 3, 1), ('n2', 'b', 4, 5, 6, 1), ('n3', 'a', 7, 8, 9, 1)",
        "UPDATE placements SET reserved_ram_mb = reserved_ram_mb + 1",
        "UPDATE placements SET reserved_ram_mb = 0 WHERE project_id = 'p'",
        "UPDATE placements SET server_handle = 'empty' WHERE project_id IN ('n1', 'n2')",
        "UPDATE placements SET server_handle = CASE server_handle WHEN 'b' THEN 'empty' ELSE 'b' END WHERE project_id <> 'p'",
        "UPDATE placements SET project_id = 'renamed' WHERE project_id = 'q'",
        "DELETE FROM placements WHERE project_id = 'n2'",
        "DELETE FROM placements WHERE false",
        "UPDATE placements SET revision = 9 WHERE false",
        "DELETE FROM placements WHERE project_id <> 'p'",
    ] {
        database.sql.execute(statement).await.unwrap();
        assert_consistent(&database.sql).await;
    }
    let left: Vec<(String, i64, String)> =
        sqlx::query_as("SELECT handle, reserved_cpu_millis, status::text FROM servers ORDER BY handle")
            .fetch_all(&database.sql)
            .await
            .unwrap();
    let left: Vec<_> =
        left.iter().map(|(handle, cpu, status)| (handle.as_str(), *cpu, status.as_str())).collect();
    assert_eq!(left, [("a", 500, "in_use"), ("b", 0, "ready"), ("empty", 0, "ready")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capacity_may_be_lowered_below_what_is_reserved_and_what_is_there_may_shrink() {
    let database = fixture().await;
    for statement in [
        "UPDATE servers SET capacity_ram_mb = 10 WHERE handle = 'a'",
        "UPDATE placements SET reserved_ram_mb = 400 WHERE project_id = 'p'",
        // Growth of another resource is no growth of this one.
        "UPDATE placements SET reserved_disk_mb = 501 WHERE project_id = 'p'",
        "UPDATE servers SET headroom_disk_mb = 1000 WHERE handle = 'a'",
    ] {
        database.sql.execute(statement).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_given_again_once_it_was_given_back() {
    let database = fixture().await;
    for statement in [
        // The same number of the other protocol is another port.
        "INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'udp', 8000, 'p', 'media')",
        "UPDATE port_allocations SET project_id = 'p', module = 'taken', free_after = NULL WHERE port = 8001",
        "UPDATE port_allocations SET project_id = NULL, module = NULL, free_after = now() WHERE port = 8000",
        "DELETE FROM port_allocations WHERE project_id = 'p'",
        "DELETE FROM placements WHERE project_id = 'p'",
        // Ports that rest go with their server.
        "DELETE FROM servers WHERE handle = 'a'",
    ] {
        database.sql.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        assert_consistent(&database.sql).await;
    }
    let mut conn = database.sql.acquire().await.unwrap();
    assert_eq!(count(&mut conn, "SELECT count(*) FROM port_allocations WHERE server_handle = 'a'").await, 0);
}

/// Generation, revision, update time and status of a server, and the pool's revision.
type Stamps = (i64, i64, String, String, i64);

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_inventory_are_stamped_and_sums_are_not() {
    let database = fixture().await;
    let mut conn = database.sql.acquire().await.unwrap();
    let stamps = "SELECT generation, revision, update_time::text, status::text,
        (SELECT inventory_revision FROM pools) FROM servers WHERE handle = 'empty'";
    let mut before: Stamps = sqlx::query_as(stamps).fetch_one(&mut *conn).await.unwrap();
    assert_eq!((before.1, before.3.as_str()), (before.4, "ready"), "the newest change is this one");
    // The statement, whether it moves the etag, whether replicas read the row again, and the status after it.
    for (statement, moves_etag, moves_revision, status) in [
        ("UPDATE servers SET address = 'x' WHERE handle = 'empty'", true, true, "ready"),
        ("UPDATE servers SET status = 'in_use' WHERE handle = 'empty'", false, true, "ready"),
        (
            "UPDATE servers SET labels = '{\"region\": \"eu\", \"gpu\": \"\"}' WHERE handle = 'empty'",
            true,
            true,
            "ready",
        ),
        (
            "UPDATE servers SET excluded_ports = '{\"[1,65535]\",\"[80,81)\"}' WHERE handle = 'empty'",
            true,
            true,
            "ready",
        ),
        ("UPDATE servers SET status = 'maintenance' WHERE handle = 'empty'", true, true, "maintenance"),
        ("INSERT INTO placements VALUES ('new', 'empty', 0, 0, 0, 1)", false, false, "maintenance"),
        ("UPDATE servers SET status = 'ready' WHERE handle = 'empty'", true, true, "in_use"),
        ("UPDATE servers SET status = 'ready' WHERE handle = 'empty'", false, true, "in_use"),
        (
            "UPDATE servers SET observed_ram_mb = 1, observe_time = now() WHERE handle = 'empty'",
            false,
            true,
            "in_use",
        ),
        ("DELETE FROM placements WHERE project_id = 'new'", false, false, "ready"),
    ] {
        conn.execute(statement).await.unwrap();
        let after: Stamps = sqlx::query_as(stamps).fetch_one(&mut *conn).await.unwrap();
        assert_eq!(after.0, before.0 + i64::from(moves_etag), "{statement}");
        assert_eq!(after.2 != before.2, moves_etag, "{statement}");
        assert_eq!(
            (after.1, after.4),
            (before.1 + i64::from(moves_revision), before.4 + i64::from(moves_revision)),
            "{statement}"
        );
        assert_eq!(after.3, status, "{statement}");
        before = after;
    }
    // A row that is typed in starts empty, whatever it says.
    conn.execute("INSERT INTO servers (handle, address, status, reserved_ram_mb, placement_count) VALUES ('typed', 'x', 'in_use', 7, 7)")
        .await
        .unwrap();
    assert_consistent(&database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l46_an_edit_by_hand_stands_in_the_pools_queue_before_it_touches_a_row() {
    let database = fixture().await;
    let mut holder = database.sql.acquire().await.unwrap();
    holder.execute("BEGIN; SELECT FROM pools FOR UPDATE").await.unwrap();
    let mut conn = database.sql.acquire().await.unwrap();
    for statement in [
        "INSERT INTO servers (handle, address) SELECT 'x', 'x' WHERE false",
        "UPDATE servers SET address = 'x' WHERE false",
        "DELETE FROM servers WHERE false",
        "INSERT INTO placements SELECT 'x', 'a', 0, 0, 0, 1 WHERE false",
        "UPDATE placements SET revision = 1 WHERE false",
        "DELETE FROM placements WHERE false",
        "INSERT INTO port_allocations SELECT * FROM port_allocations WHERE false",
        "UPDATE port_allocations SET module = 'x' WHERE false",
        "DELETE FROM port_allocations WHERE false",
    ] {
        for (writer, be_writer) in WRITERS {
            begin(&mut conn, be_writer).await;
            conn.execute("SET LOCAL lock_timeout = '20ms'").await.unwrap();
            let result = conn.execute(statement).await;
            conn.execute("ROLLBACK").await.unwrap();
            let waited =
                result.is_err_and(|error| error.as_database_error().unwrap().code().unwrap() == "55P03");
            // The service holds the row already where it counts the revision that it stamps servers with.
            let counts =
                ["INSERT INTO servers", "UPDATE servers"].iter().any(|start| statement.starts_with(start));
            assert_eq!(waited, writer == "psql" || counts, "{writer}: {statement}");
        }
    }
    holder.execute("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_by_hand_that_no_stamp_tells_are_counted_once() {
    let database = fixture().await;
    let mut conn = database.sql.acquire().await.unwrap();
    for (statement, counted) in [
        ("DELETE FROM servers WHERE handle = 'empty'", 1),
        ("INSERT INTO placements VALUES ('x', 'a', 0, 0, 0, 1)", 1),
        ("UPDATE placements SET revision = 1", 1),
        ("DELETE FROM placements WHERE project_id = 'q'", 1),
        (
            "INSERT INTO port_allocations SELECT gen_random_uuid(), 'a', 'tcp', port, 'p', 'm' || port FROM generate_series(8002, 8004) port",
            1,
        ),
        ("UPDATE port_allocations SET project_id = NULL, module = NULL, free_after = now()", 1),
        ("DELETE FROM port_allocations", 1),
        ("INSERT INTO servers (handle, address) VALUES ('x', 'x')", 0),
        ("UPDATE servers SET status = 'error'", 0),
    ] {
        for (writer, be_writer) in WRITERS {
            let before = count(&mut conn, "SELECT edit_count FROM pools").await;
            begin(&mut conn, be_writer).await;
            conn.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
            let after = count(&mut conn, "SELECT edit_count FROM pools").await;
            conn.execute("ROLLBACK").await.unwrap();
            assert_eq!(after - before, if writer == "psql" { counted } else { 0 }, "{writer}: {statement}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l45_a_race_behind_a_held_lock_sees_what_the_lock_hid() {
    let mut service = TestService::start().await;
    service.client.register(server_of(1000)).await;
    ensure_ram(&mut service.client, "first", 100).await.unwrap();

    // Someone takes most of what is left, by hand, while callers wait behind them.
    let mut holder = PgConnection::connect(service.database.url()).await.unwrap();
    holder.execute("BEGIN; INSERT INTO placements VALUES ('by-hand', 'web-1', 0, 700, 0, 1)").await.unwrap();
    let callers: Vec<_> = (0..4)
        .map(|n| {
            let mut client = service.client.clone();
            tokio::spawn(async move { ensure_ram(&mut client, &format!("waits-{n}"), 200).await })
        })
        .collect();
    service.database.wait_for_lock().await;
    holder.execute("COMMIT").await.unwrap();

    let mut placed = 0;
    for caller in callers {
        match caller.await.unwrap() {
            Ok(_) => placed += 1,
            refusal => {
                refused(refusal, tonic::Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
            }
        }
    }
    assert_eq!(placed, 1);
    assert_consistent(&service.database.sql).await;
}

fn server_of(ram_mb: u64) -> v1::Server {
    v1::Server { capacity: Some(ram(ram_mb)), ..server("web-1") }
}

#[tokio::test(flavor = "multi_thread")]
async fn l45_32_callers_fill_a_server_to_the_brim_and_no_further() {
    const ROOM: usize = 100;
    let mut service = TestService::start().await;
    service.client.register(server_of(64 * ROOM as u64)).await;
    let callers: Vec<_> = (0..32)
        .map(|caller| {
            let mut client = service.client.clone();
            tokio::spawn(async move {
                let mut placed = 0;
                for n in 0..5 {
                    match ensure_ram(&mut client, &format!("project-{caller}-{n}"), 64).await {
                        Ok(_) => placed += 1,
                        refusal => {
                            refused(refusal, tonic::Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
                        }
                    }
                }
                placed
            })
        })
        .collect();
    let mut placed = 0;
    for caller in callers {
        placed += caller.await.unwrap();
    }
    assert_eq!(placed, ROOM);
    let rows: (i64, i64) = sqlx::query_as("SELECT reserved_ram_mb, placement_count FROM servers")
        .fetch_one(&service.database.sql)
        .await
        .unwrap();
    assert_eq!(rows, (64 * 100, 100));
    assert_consistent(&service.database.sql).await;
}
