//! Operators edit the tables by psql while the service runs: what they commit counts from then on, for every replica, and the
//! log tells of it once.

use resource_allocator::proto::v1::{self, ServerStatus, server_changed::Change};
use sqlx::{Executor as _, PgPool};
use tonic::Code;

use crate::support::{
    Client, Replicas, TestService,
    inventory::{
        assert_consistent, changes, delete, ensure_ram, events, get, list, refused, wait_for_change,
    },
    server,
};

impl Replicas {
    /// What an operator types.
    async fn psql(&self, statements: &'static str) {
        self.sql().execute(statements).await.unwrap();
    }

    fn sql(&self) -> &PgPool {
        &self.service.database.sql
    }
}

/// Where an ensure would go now, or the reason why nowhere.
async fn choice(client: &mut Client) -> String {
    match client.allocator.find_server(v1::FindServerRequest::default()).await {
        Ok(found) => found.into_inner().candidates.remove(0).server.unwrap().handle,
        Err(status) => crate::support::error_info(&status).0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_query_works_as_it_stands_and_shows_in_use() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    client.register(server("b")).await;
    client.register(v1::Server { status: ServerStatus::Error.into(), ..server("c") }).await;
    client.ensure("p", &[]).await.unwrap();
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT handle, status::text, capacity_ram_mb FROM (
            SELECT handle, status, capacity_ram_mb FROM servers WHERE status IN ('ready','in_use')
         ) AS typed ORDER BY handle",
    )
    .fetch_all(&service.database.sql)
    .await
    .unwrap();
    let rows: Vec<_> =
        rows.iter().map(|(handle, status, ram)| (handle.as_str(), status.as_str(), *ram)).collect();
    assert_eq!(rows, [("a", "in_use", 8192), ("b", "ready", 8192)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_set_by_hand_counts_at_once_and_is_told_once() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    one.register(server("b")).await;
    for client in [&mut one, &mut two] {
        assert_eq!(choice(client).await, "a");
    }
    both.psql("UPDATE servers SET status = 'maintenance' WHERE handle = 'a'").await;
    for client in [&mut one, &mut two] {
        assert_eq!(choice(client).await, "b");
        assert_eq!(get(client, "a").await.unwrap().status(), ServerStatus::Maintenance);
    }
    assert_eq!(one.ensure("p", &[]).await.unwrap().placement.unwrap().server_handle, "b");
    assert_eq!(two.ensure("q", &[]).await.unwrap().placement.unwrap().server_handle, "b");

    for client in [&mut one, &mut two] {
        let told = events(client, both.sql()).await;
        assert_eq!(changes(&told, "a"), [[Change::Registered], [Change::Status]]);
        let event = told.iter().find(|event| event.request_id == "edited-by-hand").unwrap();
        assert_eq!((event.server_handle.as_str(), event.project_id.as_str()), ("a", ""));
    }
    // And back.
    both.psql("UPDATE servers SET status = 'ready' WHERE handle = 'a'").await;
    assert_eq!(two.ensure("r", &[]).await.unwrap().placement.unwrap().server_handle, "a");
    let told = events(&mut one, both.sql()).await;
    assert_eq!(changes(&told, "a"), [[Change::Registered], [Change::Status], [Change::Status]]);
    assert_consistent(both.sql()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_by_hand_is_told_although_nobody_asks_for_anything() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    assert_eq!(choice(&mut two).await, "a");
    both.psql("UPDATE servers SET managed = false, labels = '{\"region\": \"eu\"}' WHERE handle = 'a'").await;
    let told = wait_for_change(&mut one, "a", Change::Status, 1).await;
    assert_eq!(changes(&[told], "a"), [[Change::Status, Change::Updated]]);
    // The look after it, which tells of another edit, tells nothing of this one.
    both.psql("UPDATE servers SET managed = true WHERE handle = 'a'").await;
    wait_for_change(&mut two, "a", Change::Status, 2).await;
    let told = events(&mut two, both.sql()).await;
    let expected = [vec![Change::Registered], vec![Change::Status, Change::Updated], vec![Change::Status]];
    assert_eq!(changes(&told, "a"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capacity_changed_by_hand_counts_at_once() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    ensure_ram(&mut one, "p", 8000).await.unwrap();
    refused(ensure_ram(&mut two, "q", 1000).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    both.psql("UPDATE servers SET capacity_ram_mb = capacity_ram_mb + 1000 WHERE handle = 'a'").await;
    ensure_ram(&mut two, "q", 1000).await.unwrap();
    both.psql("UPDATE servers SET headroom_ram_mb = 192 WHERE handle = 'a'").await;
    refused(ensure_ram(&mut one, "r", 1).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    refused(ensure_ram(&mut two, "r", 1).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    let told = events(&mut one, both.sql()).await;
    assert_eq!(changes(&told, "a"), [[Change::Registered], [Change::Capacity], [Change::Capacity]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_ports_changed_by_hand_count_at_once() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    let selected = |project_id: &str| v1::EnsureAllocationRequest {
        project_id: project_id.to_owned(),
        server_selector: [("region".to_owned(), "eu".to_owned())].into(),
        ..Default::default()
    };
    let result = two.allocator.ensure_allocation(selected("p")).await;
    refused(result, Code::FailedPrecondition, "NO_MATCHING_SERVER");
    both.psql(
        "UPDATE servers SET labels = labels || '{\"region\": \"eu\"}', excluded_ports = '{\"[8000,8009]\"}', port_range_end = 8010",
    )
    .await;
    let placed = two.allocator.ensure_allocation(selected("p")).await.unwrap().into_inner();
    assert_eq!(placed.allocations[0].port, 8010);
    let result = one.allocator.ensure_allocation(selected("q")).await;
    refused(result, Code::ResourceExhausted, "PORTS_EXHAUSTED");
    let told = events(&mut one, both.sql()).await;
    assert_eq!(changes(&told, "a"), [[Change::Registered], [Change::Updated]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_inserted_by_hand_takes_work_and_one_deleted_by_hand_takes_none() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    assert_eq!(
        (choice(&mut one).await.as_str(), choice(&mut two).await.as_str()),
        ("NO_SERVERS", "NO_SERVERS")
    );
    both.psql(
        "INSERT INTO servers (handle, address, capacity_ram_mb, capacity_disk_mb) VALUES ('a', '192.0.2.1', 4096, 100000);
         INSERT INTO servers (handle, address, capacity_ram_mb, capacity_disk_mb) VALUES ('b', '192.0.2.2', 2048, 100000)",
    )
    .await;
    assert_eq!((choice(&mut one).await.as_str(), choice(&mut two).await.as_str()), ("a", "a"));
    let placed = two.ensure("p", &[]).await.unwrap();
    assert_eq!(placed.placement.unwrap().server_address, "192.0.2.1");

    both.psql("DELETE FROM servers WHERE handle = 'b'").await;
    assert_eq!(list(&mut one, v1::ListServersRequest::default()).await.unwrap().0, ["a"]);
    let pinned = v1::EnsureAllocationRequest {
        project_id: "q".to_owned(),
        server_handle: Some("b".to_owned()),
        ..Default::default()
    };
    for client in [&mut one, &mut two] {
        let result = client.allocator.ensure_allocation(pinned.clone()).await;
        refused(result, Code::NotFound, "SERVER_NOT_FOUND");
    }
    for client in [&mut one, &mut two] {
        let told = events(client, both.sql()).await;
        assert_eq!(changes(&told, "a"), [[Change::Registered]]);
        assert_eq!(changes(&told, "b"), [[Change::Registered], [Change::Removed]]);
    }
    // The same name again is another server.
    both.psql("INSERT INTO servers (handle, address, capacity_ram_mb, capacity_disk_mb) VALUES ('b', '192.0.2.3', 8192, 100000)").await;
    assert_eq!(one.ensure("q", &[]).await.unwrap().placement.unwrap().server_address, "192.0.2.3");
    assert_consistent(both.sql()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_deleted_by_hand_is_told_although_nobody_asks_for_anything() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    one.register(server("b")).await;
    assert_eq!(choice(&mut two).await, "a");
    // With a change that came just before it, which is told too.
    both.psql(
        "UPDATE servers SET status = 'error' WHERE handle = 'b'; DELETE FROM servers WHERE handle = 'a'",
    )
    .await;
    wait_for_change(&mut two, "a", Change::Removed, 1).await;
    both.psql("UPDATE servers SET status = 'ready' WHERE handle = 'b'").await;
    wait_for_change(&mut one, "b", Change::Status, 2).await;
    let told = events(&mut one, both.sql()).await;
    assert_eq!(changes(&told, "a"), [[Change::Registered], [Change::Removed]]);
    assert_eq!(changes(&told, "b"), [[Change::Registered], [Change::Status], [Change::Status]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_given_back_by_hand_makes_room_at_once() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    ensure_ram(&mut one, "p", 8192).await.unwrap();
    refused(ensure_ram(&mut two, "q", 1).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");

    // Ports first, then the placement; the other way round is refused, and nothing is done.
    let error = both.sql().execute("DELETE FROM placements WHERE project_id = 'p'").await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().constraint(), Some("port_allocations_placement_exists"));
    both.psql(
        "DELETE FROM port_allocations WHERE project_id = 'p'; DELETE FROM placements WHERE project_id = 'p'",
    )
    .await;

    let placed = ensure_ram(&mut two, "q", 8192).await.unwrap();
    assert_eq!(placed.allocations[0].port, 8000, "a port that was deleted does not rest");
    refused(ensure_ram(&mut one, "p", 1).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    let request = v1::GetPlacementRequest { project_id: "p".to_owned() };
    refused(one.allocator.get_placement(request).await, Code::NotFound, "PROJECT_NOT_FOUND");
    assert_consistent(both.sql()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_and_a_port_typed_by_hand_are_kept_clear_of() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    one.ensure("p", &[]).await.unwrap();
    assert_eq!(choice(&mut two).await, "a");
    both.psql(
        "INSERT INTO placements VALUES ('typed', 'a', 0, 7000, 0, 1);
         INSERT INTO port_allocations VALUES (gen_random_uuid(), 'a', 'tcp', 8001, 'typed', 'backend')",
    )
    .await;
    refused(ensure_ram(&mut one, "q", 1000).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    assert_eq!(ensure_ram(&mut two, "q", 10).await.unwrap().allocations[0].port, 8002);
    let held = one.ensure("typed", &[]).await.unwrap();
    assert_eq!((held.outcome(), held.allocations[0].port), (v1::EnsureOutcome::Unchanged, 8001));
    assert_consistent(both.sql()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l37_an_edit_by_hand_moves_the_etag() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    let read = one.register(server("a")).await;
    both.psql("UPDATE servers SET address = '192.0.2.9' WHERE handle = 'a'").await;
    for client in [&mut one, &mut two] {
        refused(delete(client, "a", &read.etag).await, Code::Aborted, "ETAG_MISMATCH");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_typed_by_hand_stops_the_service() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    one.ensure("p", &[]).await.unwrap();
    for statement in [
        "UPDATE servers SET observe_time = '9999-01-01 00:00+00' WHERE handle = 'a'",
        "UPDATE servers SET observe_time = 'infinity' WHERE handle = 'a'",
        "UPDATE servers SET create_time = '-infinity' WHERE handle = 'a'",
        "UPDATE servers SET create_time = '0001-01-01 00:00+00' WHERE handle = 'a'",
        "UPDATE servers SET update_time = 'infinity' WHERE handle = 'a'",
        "UPDATE placements SET create_time = 'infinity'",
        "UPDATE placements SET update_time = '294000-01-01'",
        "INSERT INTO port_allocations (id, server_handle, protocol, port, free_after) VALUES (gen_random_uuid(), 'a', 'tcp', 8001, 'infinity')",
        "INSERT INTO port_allocations (id, server_handle, protocol, port, free_after) VALUES (gen_random_uuid(), 'a', 'tcp', 8001, '9999-01-01 00:00+00')",
        "INSERT INTO port_allocations (id, server_handle, protocol, port, create_time, project_id, module) VALUES (gen_random_uuid(), 'a', 'tcp', 8002, '-infinity', 'p', 'm')",
        "UPDATE servers SET labels = '{\"gpus\": 2}'",
        "UPDATE servers SET labels = '{\"\": \"\", \"a b\": \"ü\"}'",
        "UPDATE servers SET excluded_ports = '{empty}'",
        "UPDATE servers SET excluded_ports = '{\"[9000,)\"}'",
        "UPDATE servers SET observed_ports = '{0,-1}'",
        "UPDATE servers SET source = '?', external_id = E'\\n', address = ' '",
        "UPDATE servers SET status_before_missing = 'in_use'",
        "UPDATE servers SET capacity_cpu_millis = 1000000000, observed_cpu_millis = 1000000000",
        "UPDATE servers SET capacity_cpu_millis = 4000, observed_cpu_millis = 0",
    ] {
        // Taken or refused, as the schema says; the service answers all the same, and reads what it must.
        let written = both.sql().execute(statement).await;
        for client in [&mut one, &mut two] {
            let answers = [
                get(client, "a").await.map(|_| ()),
                client.ensure("p", &[]).await.map(|_| ()),
                ensure_ram(client, "growing", 1).await.map(|_| ()),
                list(client, v1::ListServersRequest::default()).await.map(|_| ()),
            ];
            for answer in answers {
                answer.unwrap_or_else(|status| panic!("{statement}: {written:?}, {status:?}"));
            }
        }
        choice(&mut two).await;
    }
    assert_consistent(both.sql()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_row_that_this_release_cannot_read_stops_no_replica() {
    let both = Replicas::start().await;
    let (mut client, mut other) = both.clients();
    client.register(server("a")).await;
    client.ensure("shop", &[]).await.unwrap();
    other.ensure("wiki", &[]).await.unwrap();
    // As a newer release would write it.
    let newer = "INSERT INTO allocation_events (first_sequence, last_sequence, event_time, kind, request_id, payload)
         SELECT last_sequence + 1, last_sequence + 1, now(), 'server_changed', 'newer', '{\"moved\": true}' FROM pools";
    both.psql(newer).await;
    for (replica, project) in [(&mut client, "blog"), (&mut other, "bot")] {
        assert_eq!(choice(replica).await, "a");
        replica.ensure(project, &[]).await.unwrap();
    }
    // And where the tables have to be read anew after it.
    both.psql(newer).await;
    both.psql("DELETE FROM port_allocations WHERE project_id IS NULL").await;
    for (replica, project) in [(&mut client, "docs"), (&mut other, "mail")] {
        replica.ensure(project, &[]).await.unwrap();
        assert_eq!(choice(replica).await, "a");
    }
    // What was granted, in bytes that say nothing, and of an operation that grants nothing.
    for (module, newer) in [
        (
            "api",
            "INSERT INTO allocation_events (first_sequence, last_sequence, event_time, kind, project_id, server_handle, request_id,
                 payload, granted)
             SELECT last_sequence + 1, last_sequence + 1, now(), 'ensured', 'shop', 'a', 'newer', '{}', '\\xff' FROM pools",
        ),
        (
            "web",
            "INSERT INTO allocation_events (first_sequence, last_sequence, event_time, kind, project_id, server_handle, request_id,
                 payload, granted)
             SELECT last_sequence + 1, last_sequence + 1, now(), 'server_changed', 'shop', 'a', 'newer', '{}', '' FROM pools",
        ),
    ] {
        both.psql(newer).await;
        for (replica, project) in [(&mut client, "chat"), (&mut other, "wiki")] {
            replica.ensure(project, &[module]).await.unwrap();
            assert_eq!(choice(replica).await, "a");
        }
    }
    assert_consistent(both.sql()).await;
}
