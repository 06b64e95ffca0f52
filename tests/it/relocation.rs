//! RelocateProject: a project moves to another server with all that it holds, in one transaction, and the log tells both sides.

use std::collections::{BTreeMap, BTreeSet};

use resource_allocator::proto::v1::{
    self, ServerStatus, allocation_event::Detail, watch_allocations_response::Payload,
};
use tonic::Code;

use crate::support::{
    Client, Replicas, TestService,
    inventory::{assert_consistent, ensure_ram, events, get, ram, refused},
    requests::{away, away_from, handle, labels, module, module_at, ports, request, resources, udp},
    server, violations,
};

/// Two servers of which the second is the smaller: a project is placed on the first.
async fn two_servers() -> TestService {
    let mut service = TestService::start().await;
    service.client.register(server("a")).await;
    service.client.register(v1::Server { capacity: resources(4000, 4096, 100_000), ..server("b") }).await;
    service
}

fn to(project_id: &str, server_handle: &str) -> v1::RelocateProjectRequest {
    v1::RelocateProjectRequest { server_handle: Some(server_handle.to_owned()), ..away(project_id) }
}

fn placed_on(answer: &v1::RelocateProjectResponse) -> &str {
    &answer.placement.as_ref().unwrap().server_handle
}

fn kinds(events: &[v1::AllocationEvent]) -> Vec<&'static str> {
    let kind = |event: &v1::AllocationEvent| match event.detail.as_ref().unwrap() {
        Detail::Relocated(_) => "relocated",
        Detail::PortAllocated(_) => "port_allocated",
        Detail::ServerSelected(_) => "server_selected",
        Detail::Requested(_) => "requested",
        Detail::Completed(_) => "completed",
        Detail::ServerChanged(_) => "server_changed",
        other => panic!("{other:?}"),
    };
    events.iter().map(kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_moves_with_all_that_it_holds() {
    let mut service = two_servers().await;
    let client = &mut service.client;
    let asked = v1::EnsureAllocationRequest {
        modules: vec![module("api"), udp("dns")],
        resources: resources(250, 600, 2000),
        ..request("shop")
    };
    let before = client.place(asked.clone()).await.unwrap();
    let moved = client.relocate(away("shop")).await.unwrap();
    assert_eq!((moved.moved, moved.from_server_handle.as_str(), placed_on(&moved)), (true, "a", "b"));
    assert_eq!(ports(&moved.allocations), [("api", 8000), ("dns", 8000)]);
    assert!(moved.allocations.iter().all(|held| held.server_handle == "b"));
    let placement = moved.placement.clone().unwrap();
    let old = before.placement.unwrap();
    assert_eq!((placement.reserved, placement.create_time), (resources(250, 600, 2000), old.create_time));
    assert_ne!((&placement.etag, placement.update_time), (&old.etag, old.update_time));

    // The tables: held there, rests here, and the sums went along.
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', server_handle, port, protocol, coalesce(module, 'nobody'),
                CASE WHEN free_after > clock_timestamp() THEN 'rests' ELSE 'held' END)
         FROM port_allocations ORDER BY server_handle, protocol",
    )
    .fetch_all(&service.database.sql)
    .await
    .unwrap();
    let expected =
        ["a 8000 tcp nobody rests", "a 8000 udp nobody rests", "b 8000 tcp api held", "b 8000 udp dns held"];
    assert_eq!(rows, expected);
    let reserved = |server: v1::Server| (server.reserved, server.placement_count, server.status());
    assert_eq!(reserved(get(client, "a").await.unwrap()), (resources(0, 0, 0), 0, ServerStatus::Ready));
    assert_eq!(
        reserved(get(client, "b").await.unwrap()),
        (resources(250, 600, 2000), 1, ServerStatus::InUse)
    );
    assert_consistent(&service.database.sql).await;

    // What reads and repeats see is the new place, and the ports that were left rest.
    let read = client.placement("shop").await.unwrap();
    assert_eq!((read.placement.as_ref(), &read.allocations), (moved.placement.as_ref(), &moved.allocations));
    let repeated = client.place(asked).await.unwrap();
    assert_eq!(repeated.outcome(), v1::EnsureOutcome::Unchanged);
    assert_eq!(repeated.allocations, moved.allocations);
    let next = v1::EnsureAllocationRequest { server_handle: Some("a".to_owned()), ..request("next") };
    assert_eq!(ports(&client.place(next).await.unwrap().allocations), [("backend", 8001)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_from_where_to_where_and_which_ports() {
    let mut service = two_servers().await;
    let client = &mut service.client;
    let before = client.ensure("shop", &["api", "web"]).await.unwrap();
    let moved = client.relocate(away("shop")).await.unwrap();
    let all = events(client, &service.database.sql).await;
    let told: Vec<_> =
        all.into_iter().skip_while(|event| !matches!(event.detail, Some(Detail::Relocated(_)))).collect();
    assert_eq!(kinds(&told), ["relocated", "port_allocated", "port_allocated"]);
    assert!(told.iter().all(|event| event.project_id == "shop" && event.server_handle == "b"), "{told:?}");
    let Some(Detail::Relocated(relocated)) = &told[0].detail else { panic!("{told:?}") };
    assert_eq!((relocated.from_server_handle.as_str(), relocated.to_server_handle.as_str()), ("a", "b"));
    assert_eq!(
        (relocated.from_server_address.as_str(), relocated.to_server_address.as_str()),
        ("192.0.2.1", "192.0.2.1")
    );
    assert_eq!(relocated.released, before.allocations);
    assert_eq!(relocated.reserved, resources(0, 512, 1024));
    let (free, left) = (relocated.free_before.unwrap(), relocated.free_after.unwrap());
    assert_eq!((free.ram_mb, left.ram_mb, left.disk_mb), (4096, 3584, 98_976));
    let allocated: Vec<_> = told[1..]
        .iter()
        .map(|event| match event.detail.clone().unwrap() {
            Detail::PortAllocated(port) => port.allocation.unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(allocated, moved.allocations);
    let operations = service.database.operations("shop").await;
    assert_eq!(operations.last(), Some(&("relocated".to_owned(), 3)));
}

/// The events of one server from the beginning, as a watcher that asked for no other gets them.
async fn watched(client: &mut Client, server_handle: &str, newest: i64) -> Vec<v1::AllocationEvent> {
    let request = v1::WatchAllocationsRequest {
        server_handle: Some(server_handle.to_owned()),
        from_beginning: true,
        ..Default::default()
    };
    let mut stream = client.allocator.watch_allocations(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    loop {
        match stream.message().await.unwrap().unwrap().payload.unwrap() {
            Payload::Event(event) => {
                let last = event.sequence == newest;
                events.push(event);
                if last {
                    return events;
                }
            }
            Payload::Bookmark(bookmark) if bookmark.sequence >= newest => return events,
            Payload::Bookmark(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchers_of_both_servers_see_the_move() {
    let mut service = two_servers().await;
    let client = &mut service.client;
    client.ensure("shop", &["api"]).await.unwrap();
    client.relocate(away("shop")).await.unwrap();
    let newest = service.database.count("SELECT last_sequence FROM pools").await;
    let left = watched(client, "a", newest).await;
    assert_eq!(
        kinds(&left),
        ["server_changed", "requested", "server_selected", "port_allocated", "completed", "relocated"]
    );
    let entered = watched(client, "b", newest).await;
    assert_eq!(kinds(&entered), ["server_changed", "relocated", "port_allocated"]);
    assert_eq!(left.last(), entered.get(1), "it is one event");
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_only_answers_the_same_and_writes_nothing() {
    let mut service = two_servers().await;
    let client = &mut service.client;
    client.ensure("shop", &["api", "web"]).await.unwrap();
    let before = service.database.tables().await;
    let would =
        client.relocate(v1::RelocateProjectRequest { validate_only: true, ..away("shop") }).await.unwrap();
    assert_eq!((would.moved, would.from_server_handle.as_str(), placed_on(&would)), (true, "a", "b"));
    let placement = would.placement.as_ref().unwrap();
    assert_eq!((placement.etag.as_str(), placement.create_time, placement.update_time), ("", None, None));
    assert!(would.allocations.iter().all(|held| held.id.is_empty() && held.create_time.is_none()));
    let refusal =
        client.relocate(v1::RelocateProjectRequest { validate_only: true, ..to("shop", "c") }).await;
    refused(refusal, Code::NotFound, "SERVER_NOT_FOUND");
    assert_eq!(service.database.tables().await, before);
    let moved = client.relocate(away("shop")).await.unwrap();
    assert_eq!((placed_on(&moved), ports(&moved.allocations)), ("b", ports(&would.allocations)));
}

#[tokio::test(flavor = "multi_thread")]
async fn l06_a_repeat_that_names_where_it_was_moves_nothing() {
    let mut service = two_servers().await;
    let client = &mut service.client;
    client.ensure("shop", &[]).await.unwrap();
    let moved = client.relocate(away_from("shop", "a")).await.unwrap();
    let before = service.database.tables().await;
    for again in [away_from("shop", "a"), to("shop", "b")] {
        let repeated = client.relocate(again).await.unwrap();
        assert_eq!((repeated.moved, repeated.from_server_handle.as_str()), (false, ""));
        assert_eq!(
            (repeated.placement, repeated.allocations),
            (moved.placement.clone(), moved.allocations.clone())
        );
    }
    assert_eq!(service.database.tables().await, before);
    // Without it, it goes on, here back to where it came from.
    let back = client.relocate(away("shop")).await.unwrap();
    assert_eq!((back.from_server_handle.as_str(), placed_on(&back)), ("b", "a"));
    assert_eq!(ports(&back.allocations), [("backend", 8001)], "its own old port rests too");
}

#[tokio::test(flavor = "multi_thread")]
async fn l46_many_at_once_that_name_where_it_was_are_one_move() {
    let both = Replicas::start().await;
    let (mut one, two) = both.clients();
    for handle in ["a", "b", "c"] {
        one.register(server(handle)).await;
    }
    one.ensure("shop", &[]).await.unwrap();
    let clients = [one, two];
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let mut client = clients[caller % 2].clone();
            tokio::spawn(async move { client.relocate(away_from("shop", "a")).await.unwrap() })
        })
        .collect();
    let mut moves = 0;
    let mut places = BTreeSet::new();
    for caller in callers {
        let answer = caller.await.unwrap();
        moves += usize::from(answer.moved);
        places.insert((placed_on(&answer).to_owned(), answer.allocations[0].id.clone()));
    }
    assert_eq!((moves, places.len()), (1, 1), "{places:?}");
    let operations = both.service.database.operations("shop").await;
    assert_eq!(operations.iter().filter(|(kind, _)| kind == "relocated").count(), 1);
    assert_consistent(&both.service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_moves_off_a_server_that_admits_no_work_and_onto_none() {
    let mut service = two_servers().await;
    let client = &mut service.client;
    let (mut from, mut to) = ("a", "b");
    client.ensure("shop", &[]).await.unwrap();
    for status in
        [ServerStatus::Maintenance, ServerStatus::Error, ServerStatus::Unreachable, ServerStatus::Missing]
    {
        client.set_status(from, status).await;
        let moved = client.relocate(away("shop")).await.unwrap();
        assert_eq!((moved.from_server_handle.as_str(), placed_on(&moved)), (from, to), "{status:?}");
        assert!(moved.placement.unwrap().server_admissible);
        let metadata =
            refused(client.relocate(away("shop")).await, Code::FailedPrecondition, "NO_ADMISSIBLE_SERVER");
        assert_eq!(metadata["rejected.STATUS"], "1");
        client.set_status(from, ServerStatus::Ready).await;
        (from, to) = (to, from);
    }
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_explicit_ports_are_kept() {
    let mut service = two_servers().await;
    let client = &mut service.client;
    for handle in ["eu-1", "eu-2"] {
        // Smaller than those without the label, which SPREAD would choose.
        let capacity = resources(4000, 2048, 50_000);
        client.register(v1::Server { labels: labels(&[("zone", "eu")]), capacity, ..server(handle) }).await;
    }
    let asked = v1::EnsureAllocationRequest {
        modules: vec![module_at("admin", 9000), module("api"), udp("dns")],
        server_selector: labels(&[("zone", "eu")]),
        start_port: Some(8500),
        ..request("shop")
    };
    assert_eq!(handle(&client.place(asked).await.unwrap()), "eu-1");
    let moved = client.relocate(away("shop")).await.unwrap();
    assert_eq!(placed_on(&moved), "eu-2");
    assert_eq!(ports(&moved.allocations), [("admin", 9000), ("api", 8500), ("dns", 8500)]);
    assert_eq!(moved.placement.unwrap().server_selector, labels(&[("zone", "eu")]));
    let protocols: Vec<_> = moved.allocations.iter().map(v1::Allocation::protocol).collect();
    assert_eq!(protocols, [v1::Protocol::Tcp, v1::Protocol::Tcp, v1::Protocol::Udp]);

    refused(client.relocate(to("shop", "b")).await, Code::FailedPrecondition, "NO_MATCHING_SERVER");
    // Where the explicit port is another's, the project stays whole where it is.
    let holder = v1::EnsureAllocationRequest {
        modules: vec![module_at("web", 9000)],
        server_handle: Some("eu-1".to_owned()),
        ..request("holder")
    };
    client.place(holder).await.unwrap();
    let metadata = refused(client.relocate(away("shop")).await, Code::FailedPrecondition, "PORT_TAKEN");
    assert_eq!((metadata["port"].as_str(), metadata["server_handle"].as_str()), ("9000", "eu-1"));
    assert_eq!(client.placement("shop").await.unwrap().placement.unwrap().server_handle, "eu-2");
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_stays_and_says_why() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    refused(client.relocate(away("never")).await, Code::NotFound, "PROJECT_NOT_FOUND");
    client.register(server("a")).await;
    ensure_ram(client, "shop", 4000).await.unwrap();
    let before = service.database.tables().await;
    let metadata = refused(client.relocate(away("shop")).await, Code::FailedPrecondition, "NO_SERVERS");
    assert_eq!(
        (
            metadata["disposition"].as_str(),
            metadata["project_id"].as_str(),
            metadata["from_server_handle"].as_str()
        ),
        ("OPERATOR", "shop", "a")
    );
    // A server that is left may be gone by the time of a repeat.
    assert!(!client.relocate(away_from("shop", "nowhere")).await.unwrap().moved);
    let metadata = refused(client.relocate(to("shop", "nowhere")).await, Code::NotFound, "SERVER_NOT_FOUND");
    assert_eq!(metadata["server_handle"], "nowhere");
    assert_eq!(service.database.tables().await, before, "a refusal leaves no trace");

    client.register(v1::Server { capacity: Some(ram(4096)), ..server("b") }).await;
    ensure_ram(client, "other", 100).await.unwrap();
    let blocker = v1::EnsureAllocationRequest {
        server_handle: Some("b".to_owned()),
        resources: resources(0, 97, 0),
        ..request("blocker")
    };
    client.place(blocker).await.unwrap();
    for request in [away("shop"), to("shop", "b")] {
        let metadata =
            refused(client.relocate(request).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
        assert_eq!(metadata["nearest.short.ram_mb"], "1");
        assert_eq!(metadata["nearest.server_handle"], "b");
    }
    // Released between times, it is no project any more.
    client.release("shop", &[]).await;
    refused(client.relocate(away_from("shop", "a")).await, Code::NotFound, "PROJECT_NOT_FOUND");
    let bad = v1::RelocateProjectRequest {
        project_id: "a b".to_owned(),
        server_handle: Some(String::new()),
        from_server_handle: Some("é".to_owned()),
        strategy: 99,
        validate_only: false,
    };
    let status = client.relocate(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let mut paths = violations(&status);
    paths.sort();
    assert_eq!(paths, ["from_server_handle", "project_id", "server_handle", "strategy"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ensures_releases_and_moves_through_both_replicas_end_consistent() {
    const PROJECTS: usize = 40;
    let both = Replicas::start().await;
    let (mut one, two) = both.clients();
    for handle in ["a", "b", "c"] {
        // Room for all on any two of them.
        one.register(v1::Server { capacity: Some(ram(64 * 20)), ..server(handle) }).await;
    }
    let clients = [one, two];
    let callers: Vec<_> = (0..PROJECTS)
        .map(|n| {
            let (mut here, mut there) = (clients[n % 2].clone(), clients[(n + 1) % 2].clone());
            tokio::spawn(async move {
                let project = format!("project-{n}");
                ensure_ram(&mut here, &project, 64).await.unwrap();
                let (moved, extended) =
                    tokio::join!(there.relocate(away(&project)), here.ensure(&project, &["second"]));
                // Someone else may have taken the last room there was; then it stays.
                if let Err(status) = moved {
                    let (reason, _) = crate::support::error_info(&status);
                    assert_eq!(reason, "INSUFFICIENT_CAPACITY");
                }
                extended.unwrap();
                if n % 4 == 0 {
                    here.release(&project, &[]).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let sql = &both.service.database.sql;
    assert_consistent(sql).await;
    // What each replica answers is what the log says.
    let [mut one, mut two] = clients;
    let told = events(&mut one, sql).await;
    assert_eq!(told, events(&mut two, sql).await);
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    for event in told {
        match event.detail.unwrap() {
            Detail::ServerSelected(selected) => drop(held.insert(event.project_id, selected.server_handle)),
            Detail::Relocated(moved) => {
                let left = held.insert(event.project_id, moved.to_server_handle);
                assert_eq!(left, Some(moved.from_server_handle));
            }
            Detail::Released(released) if released.placement_removed => drop(held.remove(&event.project_id)),
            _ => {}
        }
    }
    assert_eq!(held.len(), PROJECTS - PROJECTS / 4);
    for (project, server_handle) in held {
        for client in [&mut one, &mut two] {
            let read = client.placement(&project).await.unwrap();
            assert_eq!(read.placement.unwrap().server_handle, server_handle);
            assert!(read.allocations.iter().all(|held| held.server_handle == server_handle));
        }
    }
}
