//! EnsureAllocation through a generated client: the case that started all this, and the rules of the contract.

use std::{collections::BTreeMap, time::Duration};

use resource_allocator::proto::v1::{
    self, EnsureOutcome, PlacementStrategy, ServerStatus, watch_allocations_response::Payload,
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    TestService, error_info,
    requests::{find_like, handle, labels, module, module_at, ports, ram, request, resources, udp},
    server,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_deploy_that_failed_gets_its_server_and_port() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("right")).await;
    client.register(v1::Server { status: ServerStatus::Maintenance.into(), ..server("resting") }).await;
    let small = v1::Resources { ram_mb: Some(256), disk_mb: Some(512), cpu_millis: Some(100) };
    client.register(v1::Server { capacity: Some(small), ..server("small") }).await;

    let created = client.ensure("hello-world-bot", &[]).await.unwrap();
    assert_eq!(created.outcome(), EnsureOutcome::Created);
    let placement = created.placement.as_ref().unwrap();
    assert_eq!((placement.server_handle.as_str(), placement.server_address.as_str()), ("right", "192.0.2.1"));
    assert!(placement.server_admissible);
    assert_eq!(ports(&created.allocations), [("backend", 8000)]);

    let repeated = client.ensure("hello-world-bot", &[]).await.unwrap();
    assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
    assert_eq!((repeated.placement, repeated.allocations), (created.placement, created.allocations));

    let extended = client.ensure("hello-world-bot", &["backend", "frontend"]).await.unwrap();
    assert_eq!(extended.outcome(), EnsureOutcome::Extended);
    assert_eq!(ports(&extended.allocations), [("backend", 8000), ("frontend", 8001)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_inventory_is_told_as_such() {
    let mut service = TestService::start().await;
    let refused = service.client.ensure("hello-world-bot", &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let (reason, metadata) = error_info(&refused);
    assert_eq!((reason.as_str(), metadata["disposition"].as_str()), ("NO_SERVERS", "OPERATOR"));
}

// Rule 1: one placement a project, one port a module.

#[tokio::test(flavor = "multi_thread")]
async fn a_project_has_one_placement_and_a_module_one_port_however_often_it_asks() {
    let mut service = TestService::start().await;
    for name in ["web-1", "web-2", "web-3"] {
        service.client.register(server(name)).await;
    }
    for modules in
        [&[][..], &["worker"], &["backend", "worker"], &["worker", "backend", "worker"], &["admin"]]
    {
        for project in ["one", "two"] {
            service.client.ensure(project, modules).await.unwrap();
        }
    }
    let database = &service.database;
    assert_eq!(database.count("SELECT count(*) FROM placements").await, 2);
    assert_eq!(database.count("SELECT count(*) FROM port_allocations").await, 6);
    assert_eq!(
        database
            .count("SELECT count(*) FROM (SELECT DISTINCT project_id, module FROM port_allocations) AS m")
            .await,
        6
    );
    assert_eq!(
        database
            .count("SELECT count(*) FROM port_allocations JOIN placements USING (project_id, server_handle)")
            .await,
        6
    );
}

// Rule 2: all or nothing.

#[tokio::test(flavor = "multi_thread")]
async fn l09_a_port_that_cannot_be_had_leaves_nothing_of_the_others() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client
        .place(v1::EnsureAllocationRequest { modules: vec![module_at("api", 8080)], ..request("first") })
        .await
        .unwrap();
    let before = service.database.tables_but_log().await;

    let modules = vec![module("api"), module("worker"), module_at("admin", 8080)];
    let refused =
        client.place(v1::EnsureAllocationRequest { modules, ..request("second") }).await.unwrap_err();
    assert_eq!(error_info(&refused).0, "PORT_TAKEN");
    // Nor of the growth that the same call asked for.
    let modules = vec![module("worker"), module_at("admin", 8080)];
    let more = v1::EnsureAllocationRequest { modules, resources: ram(2048), ..request("first") };
    let refused = client.place(more.clone()).await.unwrap_err();
    assert_eq!(error_info(&refused).0, "PORT_TAKEN");
    assert_eq!(service.database.tables_but_log().await, before);

    // Nor ports where the growth is what does not fit.
    let modules = vec![module("worker")];
    let refused = client
        .place(v1::EnsureAllocationRequest { modules, resources: ram(9000), ..more })
        .await
        .unwrap_err();
    assert_eq!(error_info(&refused).0, "REQUEST_EXCEEDS_FLEET");
    assert_eq!(service.database.tables_but_log().await, before);
}

// Rule 3: a project stays, grows and never shrinks.

#[tokio::test(flavor = "multi_thread")]
async fn l06_a_repeat_answers_what_is_committed_and_writes_nothing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let asked = v1::EnsureAllocationRequest {
        modules: vec![module("worker"), udp("api")],
        resources: resources(500, 1024, 2048),
        ..request("shop")
    };
    let created = client.place(asked.clone()).await.unwrap();
    // A better server comes, and other wishes that only a first placement has.
    let roomy = v1::Server { capacity: resources(64_000, 900_000, 900_000), ..server("roomy") };
    client.register(roomy).await;
    let before = service.database.tables().await;
    let other_wishes = v1::EnsureAllocationRequest {
        server_selector: labels(&[("region", "moon")]),
        start_port: Some(20_000),
        strategy: PlacementStrategy::Binpack.into(),
        ..asked.clone()
    };
    let pinned = v1::EnsureAllocationRequest { server_handle: Some("web-1".to_owned()), ..asked.clone() };
    let less =
        v1::EnsureAllocationRequest { resources: resources(0, 0, 0), modules: vec![], ..asked.clone() };
    for repeat in [asked, other_wishes, pinned, less, request("shop")] {
        let repeated = client.place(repeat).await.unwrap();
        assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
        assert_eq!(repeated.placement, created.placement);
        assert_eq!(repeated.allocations, created.allocations);
    }
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn l07_a_new_module_gets_its_port_on_the_bound_server_and_the_others_stay() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let created = client.ensure("shop", &["backend", "worker"]).await.unwrap();
    let roomy = v1::Server { capacity: resources(64_000, 900_000, 900_000), ..server("roomy") };
    client.register(roomy).await;

    let extended = client.ensure("shop", &["admin"]).await.unwrap();
    assert_eq!(extended.outcome(), EnsureOutcome::Extended);
    assert_eq!(handle(&extended), "web-1");
    assert_eq!(ports(&extended.allocations), [("admin", 8002), ("backend", 8000), ("worker", 8001)]);
    assert_eq!(extended.allocations[1..], created.allocations[..]);
    let (before, after) = (created.placement.unwrap(), extended.placement.unwrap());
    assert_ne!(after.etag, before.etag);
    assert_eq!((after.reserved, after.create_time), (before.reserved, before.create_time));
    assert_eq!(
        service.database.operations("shop").await,
        // requested, server_selected, two ports, completed; then requested, a port, completed
        [("ensured".to_owned(), 5), ("ensured".to_owned(), 3)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larger_reservation_grows_each_resource_by_itself_and_a_smaller_one_never_shrinks_it() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let ask = |amounts| v1::EnsureAllocationRequest { resources: amounts, ..request("shop") };

    let created = client.place(ask(None)).await.unwrap();
    assert_eq!(created.placement.unwrap().reserved, resources(0, 512, 1024));
    // More memory, less disk, no word on CPU.
    let mixed = Some(v1::Resources { ram_mb: Some(1024), disk_mb: Some(1), cpu_millis: None });
    let grown = client.place(ask(mixed)).await.unwrap();
    assert_eq!(grown.outcome(), EnsureOutcome::Extended);
    assert_eq!(grown.placement.unwrap().reserved, resources(0, 1024, 1024));
    assert_eq!(ports(&grown.allocations), [("backend", 8000)]);
    let shrunk = client.place(ask(resources(0, 0, 0))).await.unwrap();
    assert_eq!(shrunk.outcome(), EnsureOutcome::Unchanged);
    assert_eq!(shrunk.placement.unwrap().reserved, resources(0, 1024, 1024));
    // All that the server has, to the last megabyte; then one more.
    let grown = client.place(ask(resources(4000, 8192, 100_000))).await.unwrap();
    assert_eq!(grown.outcome(), EnsureOutcome::Extended);
    let refused = client.place(ask(ram(8193))).await.unwrap_err();
    assert_eq!(error_info(&refused).0, "REQUEST_EXCEEDS_FLEET");
    let read = client.placement("shop").await.unwrap();
    assert_eq!(read.placement.unwrap().reserved, resources(4000, 8192, 100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn l24_what_a_project_holds_counts_for_it() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(v1::Server { capacity: resources(1000, 1024, 2048), ..server("tight") }).await;
    let all = v1::EnsureAllocationRequest { resources: resources(1000, 1024, 2048), ..request("shop") };
    client.place(all.clone()).await.unwrap();

    assert_eq!(client.place(all.clone()).await.unwrap().outcome(), EnsureOutcome::Unchanged);
    // The server is full, and a port needs no room.
    let more = v1::EnsureAllocationRequest { modules: vec![module("worker")], ..all };
    assert_eq!(client.place(more).await.unwrap().outcome(), EnsureOutcome::Extended);
    // Not even when the host uses more than it has.
    client.report("tight", v1::Usage { ram_mb: Some(4096), ..Default::default() }).await;
    assert_eq!(client.ensure("shop", &["admin"]).await.unwrap().outcome(), EnsureOutcome::Extended);
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_that_does_not_fit_now_is_refused_and_leaves_the_reservation() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.place(v1::EnsureAllocationRequest { resources: ram(6000), ..request("big") }).await.unwrap();
    client.place(v1::EnsureAllocationRequest { resources: ram(1000), ..request("small") }).await.unwrap();
    // Another server has room, and the project does not move.
    client.register(server("web-2")).await;
    let before = service.database.tables_but_log().await;

    let refused = client
        .place(v1::EnsureAllocationRequest { resources: ram(3000), server_handle: None, ..request("small") })
        .await;
    // `small` went to the one server that there was.
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let (reason, metadata) = error_info(&refused);
    assert_eq!(reason, "INSUFFICIENT_CAPACITY");
    // What is asked for in addition, and how short the server is of it.
    assert_eq!(metadata["asked.ram_mb"], "2000");
    assert_eq!(metadata["nearest.server_handle"], "web-1");
    assert_eq!(metadata["nearest.short.ram_mb"], "808");
    assert_eq!(service.database.tables_but_log().await, before);
}

// Rule 4: admission for what is new.

#[tokio::test(flavor = "multi_thread")]
async fn l27_a_repeat_needs_no_admission_and_an_addition_does() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let created = client.ensure("shop", &[]).await.unwrap();
    client.set_status("web-1", ServerStatus::Error).await;

    let repeated = client.ensure("shop", &["backend"]).await.unwrap();
    assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
    assert!(!repeated.placement.as_ref().unwrap().server_admissible);
    assert_eq!(repeated.allocations, created.allocations);
    assert!(!client.placement("shop").await.unwrap().placement.unwrap().server_admissible);
    for new in [
        v1::EnsureAllocationRequest { modules: vec![module("worker")], ..request("shop") },
        v1::EnsureAllocationRequest { resources: ram(600), ..request("shop") },
    ] {
        let refused = client.place(new).await.unwrap_err();
        assert_eq!(error_info(&refused).0, "BOUND_SERVER_NOT_ADMISSIBLE");
    }
    client.set_status("web-1", ServerStatus::Ready).await;
    let extended = client.ensure("shop", &["worker"]).await.unwrap();
    assert_eq!(extended.outcome(), EnsureOutcome::Extended);
    assert!(extended.placement.unwrap().server_admissible);
}

// Rule 5: never above capacity less headroom, no port twice.

#[tokio::test(flavor = "multi_thread")]
async fn l23_every_reservation_counts_from_its_commit_and_the_headroom_stays_free() {
    let mut service = TestService::start().await;
    let headroom = Some(v1::Resources { ram_mb: Some(1024), ..Default::default() });
    service.client.register(v1::Server { headroom, ..server("web-1") }).await;
    let mut calls = JoinSet::new();
    for number in 0..12 {
        let mut client = service.client.clone();
        let project = format!("project-{number}");
        calls.spawn(async move {
            client.place(v1::EnsureAllocationRequest { resources: ram(1024), ..request(&project) }).await
        });
    }
    let answers = calls.join_all().await;
    let (placed, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((placed.len(), refused.len()), (7, 5));
    for refusal in refused {
        assert_eq!(error_info(&refusal.unwrap_err()).0, "INSUFFICIENT_CAPACITY");
    }
    let mut given: Vec<_> =
        placed.into_iter().flat_map(|answer| answer.unwrap().allocations).map(|a| a.port).collect();
    given.sort_unstable();
    assert_eq!(given, (8000..8007).collect::<Vec<u32>>());
    assert_eq!(service.database.count("SELECT reserved_ram_mb FROM servers").await, 7168);
}

// Rule 6: the same inventory and request give the same answer.

#[tokio::test(flavor = "multi_thread")]
async fn l26_the_choice_does_not_depend_on_the_order_of_registration() {
    async fn choices(handles: &[&str]) -> Vec<(String, Vec<u32>)> {
        let mut service = TestService::start().await;
        for name in handles {
            service.client.register(server(name)).await;
        }
        let mut choices = Vec::new();
        for number in 0..9 {
            let strategy =
                if number % 3 == 0 { PlacementStrategy::Binpack } else { PlacementStrategy::Spread };
            let modules = vec![module("worker"), module("api")];
            let asked = v1::EnsureAllocationRequest {
                modules,
                strategy: strategy.into(),
                resources: resources(100, 512, 1024),
                ..request(&format!("project-{number}"))
            };
            let answer = service.client.place(asked).await.unwrap();
            choices.push((handle(&answer).to_owned(), answer.allocations.iter().map(|a| a.port).collect()));
        }
        choices
    }
    let (one, other) = tokio::join!(choices(&["c", "a", "b", "B"]), choices(&["B", "b", "a", "c"]));
    assert_eq!(one, other);
    // The first tie falls to the first handle, by bytes.
    assert_eq!(one[0].0, "B");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_the_lowest_free_ones_in_range_and_outside_what_is_excluded_or_listened_on() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let range = |start, end| v1::PortRange { start, end };
    client
        .register(v1::Server {
            port_range: Some(range(7000, 9000)),
            excluded_ports: vec![range(8000, 8003), range(8002, 8004), range(8007, 8007)],
            ..server("web-1")
        })
        .await;
    client.report("web-1", v1::Usage { listening_ports: vec![8005, 22, 65535], ..Default::default() }).await;
    let names = ["a", "b", "c"];
    let answer = client.ensure("first", &names).await.unwrap();
    assert_eq!(ports(&answer.allocations), [("a", 8006), ("b", 8008), ("c", 8009)]);
    // The request's order decides who gets which; the answer's order is by module.
    let modules = vec![module("z"), module("y")];
    let start = v1::EnsureAllocationRequest { start_port: Some(1), modules, ..request("second") };
    let answer = client.place(start).await.unwrap();
    assert_eq!(ports(&answer.allocations), [("y", 7001), ("z", 7000)]);
    let high = v1::EnsureAllocationRequest { start_port: Some(9000), ..request("third") };
    assert_eq!(client.place(high).await.unwrap().allocations[0].port, 9000);
    // An own port that the host listens on is nothing strange.
    client.report("web-1", v1::Usage { listening_ports: vec![8006, 8008], ..Default::default() }).await;
    assert_eq!(client.ensure("first", &names).await.unwrap().outcome(), EnsureOutcome::Unchanged);
    assert_eq!(client.ensure("fourth", &[]).await.unwrap().allocations[0].port, 8005);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_number_is_two_ports_one_for_each_protocol() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let modules = vec![
        module("web"),
        udp("dns"),
        module_at("metrics", 9000),
        v1::ModuleSpec { port: Some(9000), ..udp("syslog") },
    ];
    let answer = client.place(v1::EnsureAllocationRequest { modules, ..request("shop") }).await.unwrap();
    let told: Vec<_> = answer.allocations.iter().map(|a| (a.module.as_str(), a.port, a.protocol())).collect();
    assert_eq!(
        told,
        [
            ("dns", 8000, v1::Protocol::Udp),
            ("metrics", 9000, v1::Protocol::Tcp),
            ("syslog", 9000, v1::Protocol::Udp),
            ("web", 8000, v1::Protocol::Tcp),
        ]
    );
    // The protocol that stands is what an unset one means in a repeat.
    assert_eq!(client.ensure("shop", &["dns", "web"]).await.unwrap().outcome(), EnsureOutcome::Unchanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explicit_port_is_given_wherever_the_start_port_is() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    // The one without a wish keeps clear of what the others ask for.
    let modules =
        vec![module("any"), module_at("first", 8000), module_at("low", 1024), module_at("high", 32767)];
    let answer = client.place(v1::EnsureAllocationRequest { modules, ..request("shop") }).await.unwrap();
    assert_eq!(ports(&answer.allocations), [("any", 8001), ("first", 8000), ("high", 32767), ("low", 1024)]);
}

// Rule 7: a lost answer is harmless.

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_and_repeats_gets_one_placement() {
    let service = TestService::start().await;
    let mut client = service.client.clone();
    client.register(v1::Server { capacity: resources(0, 65_536, 100_000), ..server("web-1") }).await;
    for number in 0..20 {
        let project = format!("project-{number}");
        let (mut hasty, name) = (client.clone(), project.clone());
        let call = tokio::spawn(async move { hasty.ensure(&name, &["api", "worker"]).await });
        for _ in 0..number {
            tokio::task::yield_now().await;
        }
        call.abort();
        let answer = client.ensure(&project, &["api", "worker"]).await.unwrap();
        assert_eq!(answer.allocations.len(), 2);
        assert_eq!(service.database.operations(&project).await, [("ensured".to_owned(), 5)]);
    }
    assert_eq!(service.database.count("SELECT count(*) FROM placements").await, 20);
    assert_eq!(service.database.count("SELECT count(*) FROM port_allocations").await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn l46_the_same_call_64_times_at_once_is_one_success_told_64_times() {
    let service = TestService::start().await;
    let mut client = service.client.clone();
    client.register(server("web-1")).await;
    client.register(server("web-2")).await;
    let mut calls = JoinSet::new();
    for _ in 0..64 {
        let mut client = service.client.clone();
        calls.spawn(async move { client.ensure("shop", &["api", "worker"]).await.unwrap() });
    }
    let answers = calls.join_all().await;
    let mut outcomes = BTreeMap::new();
    for answer in &answers {
        *outcomes.entry(answer.outcome().as_str_name()).or_insert(0) += 1;
    }
    assert_eq!(outcomes, BTreeMap::from([("ENSURE_OUTCOME_CREATED", 1), ("ENSURE_OUTCOME_UNCHANGED", 63)]));
    for answer in &answers {
        assert_eq!(
            (&answer.placement, &answer.allocations),
            (&answers[0].placement, &answers[0].allocations)
        );
    }
    assert_eq!(service.database.operations("shop").await, [("ensured".to_owned(), 5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn l08_identical_duplicates_collapse_and_contradictory_ones_are_refused() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let modules = vec![
        module("worker"),
        module("api"),
        module("worker"),
        module_at("admin", 8005),
        module_at("admin", 8005),
    ];
    let answer = client.place(v1::EnsureAllocationRequest { modules, ..request("shop") }).await.unwrap();
    assert_eq!(ports(&answer.allocations), [("admin", 8005), ("api", 8001), ("worker", 8000)]);
    let before = service.database.tables().await;
    for (modules, path) in [
        (vec![module("api"), module_at("api", 9000)], "modules[1]"),
        (vec![module_at("api", 9001), module("x"), module_at("api", 9000)], "modules[2]"),
        (vec![module("api"), udp("api")], "modules[1]"),
        (vec![module_at("api", 9000), module_at("admin", 9000)], "modules[1].port"),
    ] {
        let refused =
            client.place(v1::EnsureAllocationRequest { modules, ..request("other") }).await.unwrap_err();
        assert_eq!(
            (refused.code(), error_info(&refused).0.as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST")
        );
        assert_eq!(crate::support::violations(&refused), [path]);
    }
    assert_eq!(service.database.tables().await, before);
}

// Pins, selectors, strategies.

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_places_there_although_another_server_is_better() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(v1::Server { capacity: resources(64_000, 900_000, 900_000), ..server("best") }).await;
    client.register(server("pinned")).await;
    let pin = v1::EnsureAllocationRequest { server_handle: Some("pinned".to_owned()), ..request("shop") };
    let created = client.place(pin.clone()).await.unwrap();
    assert_eq!((created.outcome(), handle(&created)), (EnsureOutcome::Created, "pinned"));
    assert_eq!(client.place(pin).await.unwrap().outcome(), EnsureOutcome::Unchanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selector_asks_for_all_its_labels_with_their_values() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client
        .register(v1::Server { labels: labels(&[("region", "eu"), ("disk", "ssd")]), ..server("both") })
        .await;
    let roomy = resources(64_000, 900_000, 900_000);
    client
        .register(v1::Server { capacity: roomy, labels: labels(&[("region", "eu")]), ..server("one") })
        .await;
    client
        .register(v1::Server {
            capacity: roomy,
            labels: labels(&[("region", "us"), ("disk", "ssd")]),
            ..server("other")
        })
        .await;
    let select = |pairs: &[(&str, &str)], project: &str| v1::EnsureAllocationRequest {
        server_selector: labels(pairs),
        ..request(project)
    };
    for (pairs, project, expected) in [
        (&[("region", "eu"), ("disk", "ssd")][..], "a", "both"),
        (&[("region", "eu")], "b", "one"),
        (&[("region", "us")], "c", "other"),
    ] {
        let answer = client.place(select(pairs, project)).await.unwrap();
        assert_eq!(handle(&answer), expected);
    }
    // An empty value is a value.
    let refused = client.place(select(&[("region", "")], "d")).await.unwrap_err();
    assert_eq!(error_info(&refused).0, "NO_MATCHING_SERVER");
    client.register(v1::Server { labels: labels(&[("region", "")]), ..server("empty") }).await;
    assert_eq!(handle(&client.place(select(&[("region", "")], "d")).await.unwrap()), "empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn spread_takes_the_most_free_memory_and_binpack_the_tightest_fit() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    for (name, amounts) in [
        ("large", resources(8000, 16_384, 100_000)),
        ("medium", resources(4000, 8192, 100_000)),
        ("small", resources(1000, 2048, 100_000)),
    ] {
        client.register(v1::Server { capacity: amounts, ..server(name) }).await;
    }
    let ask = |project: &str, strategy: PlacementStrategy, amounts| v1::EnsureAllocationRequest {
        strategy: strategy.into(),
        resources: amounts,
        ..request(project)
    };
    for (project, strategy, amounts, expected) in [
        ("a", PlacementStrategy::Unspecified, ram(1024), "large"),
        ("b", PlacementStrategy::Spread, ram(1024), "large"),
        // Memory alone: the least free that still fits.
        ("c", PlacementStrategy::Binpack, ram(1024), "small"),
        ("d", PlacementStrategy::Binpack, ram(1024), "small"),
        ("e", PlacementStrategy::Binpack, ram(1024), "medium"),
        // What is balanced on the medium one strands memory or CPU on the others.
        ("f", PlacementStrategy::Binpack, resources(4000, 7168, 1024), "medium"),
    ] {
        let answer = client.place(ask(project, strategy, amounts)).await.unwrap();
        assert_eq!(handle(&answer), expected, "{project}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_own_strategy_holds_where_a_request_names_none() {
    let mut builder = TestService::builder();
    builder.strategy = resource_allocator::domain::request::Strategy::Binpack;
    let mut service = builder.start().await;
    let client = &mut service.client;
    client.register(server("a-large")).await;
    client.register(v1::Server { capacity: resources(1000, 2048, 100_000), ..server("small") }).await;
    assert_eq!(handle(&client.ensure("shop", &[]).await.unwrap()), "small");
    let spread =
        v1::EnsureAllocationRequest { strategy: PlacementStrategy::Spread.into(), ..request("other") };
    assert_eq!(handle(&client.place(spread).await.unwrap()), "a-large");
}

#[tokio::test(flavor = "multi_thread")]
async fn l21_what_the_host_uses_counts_where_it_is_more_than_what_is_reserved() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("busy")).await;
    client.register(v1::Server { capacity: resources(4000, 4096, 100_000), ..server("calm") }).await;
    client.report("busy", v1::Usage { ram_mb: Some(7000), ..Default::default() }).await;
    assert_eq!(handle(&client.ensure("a", &[]).await.unwrap()), "calm");
    // 8192 less 7000 observed.
    let pin = |amount| v1::EnsureAllocationRequest {
        server_handle: Some("busy".to_owned()),
        resources: ram(amount),
        ..request("b")
    };
    assert_eq!(error_info(&client.place(pin(1193)).await.unwrap_err()).0, "INSUFFICIENT_CAPACITY");
    assert_eq!(handle(&client.place(pin(1192)).await.unwrap()), "busy");
}

// validate_only.

#[tokio::test(flavor = "multi_thread")]
async fn validate_only_answers_what_the_real_call_then_does_and_writes_nothing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    for name in ["web-1", "web-2"] {
        client.register(server(name)).await;
    }
    let steps = [
        v1::EnsureAllocationRequest { modules: vec![module("worker"), udp("api")], ..request("shop") },
        v1::EnsureAllocationRequest {
            modules: vec![module("admin")],
            resources: ram(4096),
            ..request("shop")
        },
        v1::EnsureAllocationRequest { modules: vec![module("admin")], ..request("shop") },
        request("other"),
    ];
    let outcomes =
        [EnsureOutcome::Created, EnsureOutcome::Extended, EnsureOutcome::Unchanged, EnsureOutcome::Created];
    for (step, outcome) in steps.into_iter().zip(outcomes) {
        let before = service.database.tables().await;
        let planned =
            client.place(v1::EnsureAllocationRequest { validate_only: true, ..step.clone() }).await.unwrap();
        assert_eq!(service.database.tables().await, before);
        let done = client.place(step).await.unwrap();
        assert_eq!((planned.outcome(), done.outcome()), (outcome, outcome));
        let planned_placement = planned.placement.unwrap();
        assert_eq!((planned_placement.etag.as_str(), planned_placement.create_time), ("", None));
        assert_eq!(planned_placement.update_time, None);
        let expected = v1::Placement {
            etag: String::new(),
            create_time: None,
            update_time: None,
            ..done.placement.unwrap()
        };
        assert_eq!(planned_placement, expected);
        let expected: Vec<_> = done
            .allocations
            .into_iter()
            .map(|allocation| v1::Allocation { id: String::new(), create_time: None, ..allocation })
            .collect();
        assert_eq!(planned.allocations, expected);
        assert!(planned.allocations.iter().all(|allocation| allocation.port != 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_only_gives_the_refusals_of_a_placed_project_too() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.register(server("web-2")).await;
    client.ensure("shop", &[]).await.unwrap();
    client.set_status("web-1", ServerStatus::Maintenance).await;
    let before = service.database.tables().await;
    for (wanted, reason) in [
        (
            v1::EnsureAllocationRequest { modules: vec![module("x")], ..request("shop") },
            "BOUND_SERVER_NOT_ADMISSIBLE",
        ),
        (
            v1::EnsureAllocationRequest { server_handle: Some("web-2".to_owned()), ..request("shop") },
            "PLACED_ELSEWHERE",
        ),
        (
            v1::EnsureAllocationRequest { modules: vec![module_at("backend", 1)], ..request("shop") },
            "PLACED_ELSEWHERE",
        ),
        (
            v1::EnsureAllocationRequest { server_handle: Some("web-9".to_owned()), ..request("new") },
            "SERVER_NOT_FOUND",
        ),
        (
            v1::EnsureAllocationRequest { server_handle: Some("web-1".to_owned()), ..request("new") },
            "NO_ADMISSIBLE_SERVER",
        ),
        (v1::EnsureAllocationRequest { resources: ram(9999), ..request("new") }, "REQUEST_EXCEEDS_FLEET"),
    ] {
        let wanted = v1::EnsureAllocationRequest { validate_only: true, ..wanted };
        let refused = client.place(wanted).await.unwrap_err();
        assert_eq!(error_info(&refused).0, reason);
    }
    let standing = v1::EnsureAllocationRequest { validate_only: true, ..request("shop") };
    let answer = client.place(standing).await.unwrap();
    assert_eq!(answer.outcome(), EnsureOutcome::Unchanged);
    assert!(!answer.placement.unwrap().server_admissible);
    assert_eq!(service.database.tables().await, before);
}

// What comes with the answer.

#[tokio::test(flavor = "multi_thread")]
async fn l01_every_allocation_says_which_address_and_port_it_is() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(v1::Server { address: "2001:db8::7".to_owned(), ..server("web-1") }).await;
    let answer = client.ensure("team/shop:v1.2_x", &["b", "a"]).await.unwrap();
    let placement = answer.placement.unwrap();
    assert_eq!(
        (placement.project_id.as_str(), placement.server_address.as_str()),
        ("team/shop:v1.2_x", "2001:db8::7")
    );
    assert!(!placement.etag.is_empty() && placement.create_time.is_some() && placement.update_time.is_some());
    let ids: std::collections::BTreeSet<_> =
        answer.allocations.iter().map(|allocation| &allocation.id).collect();
    assert_eq!(ids.len(), 2);
    for (allocation, module) in answer.allocations.iter().zip(["a", "b"]) {
        assert_eq!(
            (allocation.module.as_str(), allocation.project_id.as_str()),
            (module, "team/shop:v1.2_x")
        );
        assert_eq!(
            (allocation.server_handle.as_str(), allocation.server_address.as_str()),
            ("web-1", "2001:db8::7")
        );
        assert_eq!(allocation.protocol(), v1::Protocol::Tcp);
        assert!(allocation.id.parse::<uuid::Uuid>().is_ok() && allocation.create_time.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resume_token_of_an_answer_misses_nothing_that_follows() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let created = client.ensure("before", &[]).await.unwrap();
    let unchanged = client.ensure("before", &[]).await.unwrap();
    client.ensure("after", &[]).await.unwrap();
    for resume_token in [created.resume_token, unchanged.resume_token] {
        let watch = v1::WatchAllocationsRequest { resume_token, ..Default::default() };
        let mut stream = client.allocator.watch_allocations(watch).await.unwrap().into_inner();
        let mut projects = Vec::new();
        while projects.len() < 4 {
            if let Some(Payload::Event(event)) = stream.message().await.unwrap().unwrap().payload {
                projects.push(event.project_id);
            }
        }
        // requested, server_selected, port_allocated, completed
        assert_eq!(projects, ["after"; 4]);
    }
}

// Ports that rest.

#[tokio::test(flavor = "multi_thread")]
async fn l19_a_port_that_was_given_back_rests_while_another_is_free() {
    let mut builder = TestService::builder();
    builder.allocator.port_rest = Duration::from_hours(1);
    let mut service = builder.start().await;
    let client = &mut service.client;
    let range = Some(v1::PortRange { start: 8000, end: 8002 });
    client.register(v1::Server { port_range: range, ..server("web-1") }).await;
    let port = |answer: v1::EnsureAllocationResponse| answer.allocations[0].port;

    assert_eq!(port(client.ensure("a", &[]).await.unwrap()), 8000);
    client.release("a", &[]).await;
    assert_eq!(port(client.ensure("b", &[]).await.unwrap()), 8001);
    // The other protocol's port of the same number never was taken.
    let answer = client
        .place(v1::EnsureAllocationRequest { modules: vec![udp("dns")], ..request("c") })
        .await
        .unwrap();
    assert_eq!(port(answer), 8000);
    // The same project, too: the old container may still be stopping.
    assert_eq!(port(client.ensure("a", &[]).await.unwrap()), 8002);
    // Nothing else is free: a port that rests is better than none.
    let plan = v1::EnsureAllocationRequest { validate_only: true, ..request("d") };
    assert_eq!(port(client.place(plan).await.unwrap()), 8000);
    assert_eq!(port(client.ensure("d", &[]).await.unwrap()), 8000);
    let refused = client.ensure("e", &[]).await.unwrap_err();
    assert_eq!(error_info(&refused).0, "PORTS_EXHAUSTED");
    // Who asks for a port that rests by its number gets it.
    client.release("b", &[]).await;
    let explicit = v1::EnsureAllocationRequest { modules: vec![module_at("api", 8001)], ..request("e") };
    assert_eq!(port(client.place(explicit).await.unwrap()), 8001);
    assert_eq!(
        service.database.count("SELECT count(*) FROM port_allocations WHERE free_after IS NOT NULL").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_without_a_rest_is_given_again_at_once() {
    let mut builder = TestService::builder();
    builder.allocator.port_rest = Duration::ZERO;
    let mut service = builder.start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let first = client.ensure("a", &["api", "worker"]).await.unwrap();
    client.release("a", &["api"]).await;
    assert_eq!(client.ensure("b", &[]).await.unwrap().allocations[0].port, 8000);
    client.release("a", &[]).await;
    client.release("b", &[]).await;
    let again = client.ensure("a", &["api", "worker"]).await.unwrap();
    assert_eq!(again.outcome(), EnsureOutcome::Created);
    assert_eq!(ports(&again.allocations), ports(&first.allocations));
    // It is another allocation all the same.
    assert_ne!(again.allocations[0].id, first.allocations[0].id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_was_released_is_placed_as_if_it_were_new() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("old")).await;
    let created = client
        .place(v1::EnsureAllocationRequest {
            resources: ram(4096),
            modules: vec![module("api"), module("worker")],
            ..request("shop")
        })
        .await
        .unwrap();
    client.release("shop", &[]).await;
    client.register(v1::Server { capacity: resources(64_000, 900_000, 900_000), ..server("new") }).await;
    let again = client.ensure("shop", &[]).await.unwrap();
    assert_eq!((again.outcome(), handle(&again)), (EnsureOutcome::Created, "new"));
    let placement = again.placement.unwrap();
    assert_eq!(placement.reserved, resources(0, 512, 1024));
    assert_ne!(placement.etag, created.placement.unwrap().etag);
    assert_eq!(ports(&again.allocations), [("backend", 8000)]);
    assert_eq!(
        service.database.count("SELECT reserved_ram_mb + reserved_disk_mb + placement_count FROM servers WHERE handle = 'old'").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_what_a_search_finds_is_where_an_ensure_goes() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    for (name, amounts) in [
        ("a", resources(2000, 4096, 50_000)),
        ("b", resources(8000, 2048, 50_000)),
        ("c", resources(500, 8192, 50_000)),
    ] {
        client.register(v1::Server { capacity: amounts, ..server(name) }).await;
    }
    for number in 0..24_u32 {
        let strategy = if number % 2 == 0 { PlacementStrategy::Spread } else { PlacementStrategy::Binpack };
        let asked = v1::EnsureAllocationRequest {
            resources: resources(number * 37 % 300, 300 + u64::from(number * 53 % 500), 64),
            strategy: strategy.into(),
            ..request(&format!("project-{number}"))
        };
        let found = client.find(find_like(&asked)).await;
        let placed = client.place(asked).await;
        match (found, placed) {
            (Ok(found), Ok(placed)) => {
                assert_eq!(found.candidates[0].server.as_ref().unwrap().handle, handle(&placed));
            }
            (Err(found), Err(placed)) => assert_eq!(error_info(&found).0, error_info(&placed).0),
            (found, placed) => panic!("they disagree: {found:?}, {placed:?}"),
        }
    }
}

/// The deploy may have failed since, and so may the server. What an answer says of a project is where it belongs: these are all of
/// its fields.
#[tokio::test(flavor = "multi_thread")]
async fn l05_a_placement_says_where_and_never_that_it_runs() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let placed = service.client.ensure("shop", &[]).await.unwrap();
    service.client.set_status("web-1", ServerStatus::Error).await;
    let repeated = service.client.ensure("shop", &[]).await.unwrap();
    let v1::EnsureAllocationResponse { outcome: _, placement, mut allocations, resume_token: _ } = repeated;
    let v1::Placement {
        project_id: _,
        server_handle,
        server_address: _,
        server_admissible,
        reserved: _,
        etag: _,
        create_time: _,
        update_time: _,
        server_selector: _,
        expire_time: _,
    } = placement.unwrap();
    assert_eq!((server_handle.as_str(), server_admissible), ("web-1", false));
    let v1::Allocation {
        id: _,
        project_id: _,
        module: _,
        server_handle: _,
        server_address: _,
        port,
        protocol: _,
        create_time: _,
    } = allocations.remove(0);
    assert_eq!(port, placed.allocations[0].port);
}
