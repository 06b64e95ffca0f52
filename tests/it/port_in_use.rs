//! ReportPortInUse: a worker finds its port bound by something else, and gets another; the one that it found is given to nobody.

use std::time::Duration;

use resource_allocator::proto::v1::{self, ServerStatus, allocation_event::Detail};
use sqlx::Executor as _;
use tonic::Code;

use crate::support::{
    Client, Replicas, TestService,
    inventory::{assert_consistent, events, refused},
    requests::{module_at, ports, request, udp},
    server, violations,
};

async fn placed() -> TestService {
    let mut service = TestService::start().await;
    service.client.register(server("a")).await;
    service.client.ensure("shop", &["api", "web"]).await.unwrap();
    service
}

fn wants(project_id: &str, port: u32) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { modules: vec![module_at("it", port)], ..request(project_id) }
}

/// A project of modules `m0`, `m1` and so on.
async fn fill(client: &mut Client, project_id: &str, count: usize) -> v1::EnsureAllocationResponse {
    let names: Vec<_> = (0..count).map(|n| format!("m{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    client.ensure(project_id, &names).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_module_gets_the_next_port_and_the_one_in_use_is_set_aside() {
    let mut service = placed().await;
    let client = &mut service.client;
    let before = client.placement("shop").await.unwrap();
    let answer = client.port_in_use("shop", "api", 8000).await.unwrap();
    let held = answer.allocation.clone().unwrap();
    assert!(answer.replaced);
    assert_eq!((held.module.as_str(), held.port, held.server_handle.as_str()), ("api", 8002, "a"));
    let read = client.placement("shop").await.unwrap();
    assert_eq!(ports(&read.allocations), [("api", 8002), ("web", 8001)]);
    assert_eq!((read.allocations[0].clone(), read.placement.clone()), (held, answer.placement));
    assert_ne!(read.placement.unwrap().etag, before.placement.unwrap().etag);

    let (reason, until): (Option<String>, f64) = sqlx::query_as(
        "SELECT set_aside_reason, extract(epoch FROM free_after)::float8 FROM port_allocations
         WHERE port = 8000 AND project_id IS NULL AND module IS NULL AND free_after > clock_timestamp() + interval '59 min'",
    )
    .fetch_one(&service.database.sql)
    .await
    .unwrap();
    assert_eq!(reason.as_deref(), Some("nginx listens"));
    let told = answer.set_aside_until.unwrap();
    #[expect(clippy::cast_precision_loss, reason = "seconds of this century")]
    let difference = (until - told.seconds as f64).abs();
    assert!(difference <= 1.0, "{until} {told:?}");

    let log = events(client, &service.database.sql).await;
    let [.., set_aside, allocated] = &log[..] else { panic!("{log:?}") };
    let Some(Detail::PortSetAside(aside)) = &set_aside.detail else { panic!("{set_aside:?}") };
    assert_eq!((aside.detail.as_str(), aside.until), ("nginx listens", Some(told)));
    assert_eq!(aside.allocation.as_ref(), before.allocations.first());
    let Some(Detail::PortAllocated(allocated)) = &allocated.detail else { panic!("{allocated:?}") };
    assert_eq!(allocated.allocation, answer.allocation);
    assert_eq!(service.database.operations("shop").await.last(), Some(&("port_replaced".to_owned(), 2)));
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l06_a_repeat_answers_the_same_port_and_writes_nothing() {
    let mut service = placed().await;
    let client = &mut service.client;
    let first = client.port_in_use("shop", "api", 8000).await.unwrap();
    let before = service.database.tables().await;
    // The lost answer, and a port that the module never held.
    for port in [8000, 9000] {
        let repeated = client.port_in_use("shop", "api", port).await.unwrap();
        assert_eq!((repeated.replaced, repeated.set_aside_until), (false, None));
        assert_eq!((&repeated.allocation, &repeated.placement), (&first.allocation, &first.placement));
    }
    assert_eq!(service.database.tables().await, before);
    // Nor is a port of another protocol set aside with it.
    let asked = v1::EnsureAllocationRequest { modules: vec![udp("dns")], ..request("shop") };
    let extended = client.place(asked).await.unwrap();
    assert_eq!(ports(&extended.allocations), [("api", 8002), ("dns", 8000), ("web", 8001)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_reports_at_once_replace_it_once() {
    let both = Replicas::start().await;
    let (mut one, two) = both.clients();
    one.register(server("a")).await;
    one.ensure("shop", &["api"]).await.unwrap();
    let clients = [one, two];
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let mut client = clients[caller % 2].clone();
            tokio::spawn(async move { client.port_in_use("shop", "api", 8000).await.unwrap() })
        })
        .collect();
    let mut replaced = 0;
    for caller in callers {
        let answer = caller.await.unwrap();
        replaced += usize::from(answer.replaced);
        assert_eq!(answer.allocation.unwrap().port, 8001);
    }
    assert_eq!(replaced, 1);
    assert_consistent(&both.service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l18_a_port_set_aside_is_given_to_nobody_by_any_replica_until_it_is_deleted() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    one.ensure("shop", &["api"]).await.unwrap();
    one.port_in_use("shop", "api", 8000).await.unwrap();
    // A replica that starts now reads the tables, not the log.
    let (running, mut three, shutdown) = TestService::builder().start_replica(&both.service.database).await;
    for (n, client) in [&mut one, &mut two, &mut three].into_iter().enumerate() {
        let metadata =
            refused(client.place(wants("explicit", 8000)).await, Code::FailedPrecondition, "PORT_TAKEN");
        let told = ["cause", "port", "server_handle"].map(|key| metadata[key].as_str());
        assert_eq!(told, ["SET_ASIDE", "8000", "a"]);
        let answer = client.ensure(&format!("any-{n}"), &[]).await.unwrap();
        assert_eq!(ports(&answer.allocations), [("backend", 8002 + u32::try_from(n).unwrap())]);
    }
    let sql = &both.service.database.sql;
    sql.execute("DELETE FROM port_allocations WHERE set_aside_reason IS NOT NULL").await.unwrap();
    for client in [&mut one, &mut two, &mut three] {
        assert_eq!(ports(&client.place(wants("explicit", 8000)).await.unwrap().allocations), [("it", 8000)]);
        client.release("explicit", &[]).await;
    }
    assert_consistent(sql).await;
    drop((running, shutdown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_was_set_aside_is_given_again_when_its_time_is_over() {
    let mut builder = TestService::builder();
    builder.allocator.port_set_aside = Duration::from_millis(1);
    let mut service = builder.start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    client.ensure("shop", &["api"]).await.unwrap();
    let until = client.port_in_use("shop", "api", 8000).await.unwrap().set_aside_until.unwrap();
    let over = format!("SELECT clock_timestamp() > to_timestamp({}) + interval '1 s'", until.seconds);
    while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(over.clone()))
        .fetch_one(&service.database.sql)
        .await
        .unwrap()
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ports(&client.place(wants("explicit", 8000)).await.unwrap().allocations), [("it", 8000)]);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_filled_to_both_ends_and_emptied_again() {
    let mut builder = TestService::builder();
    builder.allocator.port_rest = Duration::ZERO;
    let mut service = builder.start().await;
    let client = &mut service.client;
    let range = v1::PortRange { start: 8000, end: 8003 };
    client.register(v1::Server { port_range: Some(range), ..server("a") }).await;
    let full = fill(client, "shop", 4).await;
    assert_eq!(ports(&full.allocations), [("m0", 8000), ("m1", 8001), ("m2", 8002), ("m3", 8003)]);
    // Each of the ends is refused while there is no other, and nothing is set aside.
    let before = service.database.tables().await;
    for (module, port) in [("m0", 8000), ("m3", 8003)] {
        let metadata = refused(
            client.port_in_use("shop", module, port).await,
            Code::ResourceExhausted,
            "PORTS_EXHAUSTED",
        );
        assert_eq!((metadata["server_handle"].as_str(), metadata["disposition"].as_str()), ("a", "OPERATOR"));
    }
    assert_eq!(service.database.tables().await, before);

    client.release("shop", &["m3"]).await;
    assert_eq!(client.port_in_use("shop", "m0", 8000).await.unwrap().allocation.unwrap().port, 8003);
    refused(client.port_in_use("shop", "m0", 8003).await, Code::ResourceExhausted, "PORTS_EXHAUSTED");
    client.release("shop", &["m1"]).await;
    assert_eq!(client.port_in_use("shop", "m0", 8003).await.unwrap().allocation.unwrap().port, 8001);
    refused(client.ensure("late", &["x"]).await, Code::ResourceExhausted, "PORTS_EXHAUSTED");

    // Emptied, and what is set aside freed: all of it can be given again.
    client.release("shop", &[]).await;
    service
        .database
        .sql
        .execute("DELETE FROM port_allocations WHERE set_aside_reason IS NOT NULL")
        .await
        .unwrap();
    let again = fill(client, "again", 4).await;
    assert_eq!(ports(&again.allocations), [("m0", 8000), ("m1", 8001), ("m2", 8002), ("m3", 8003)]);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explicit_port_is_replaced_too_and_no_wish_any_more() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    client.register(v1::Server { headroom: crate::support::requests::ram(4096), ..server("b") }).await;
    client.place(wants("shop", 9000)).await.unwrap();
    let from = v1::ReportPortInUseRequest {
        project_id: "shop".to_owned(),
        module: "it".to_owned(),
        port: 9000,
        detail: String::new(),
        start_port: Some(9000),
    };
    let answer = client.allocator.report_port_in_use(from).await.unwrap().into_inner();
    assert_eq!(answer.allocation.unwrap().port, 9001);
    // Where the project is moved, the module takes what comes.
    let moved = client.relocate(crate::support::requests::away("shop")).await.unwrap();
    assert_eq!(ports(&moved.allocations), [("it", 8000)]);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replaced_is_refused_and_leaves_no_trace() {
    let mut service = placed().await;
    let client = &mut service.client;
    client.set_status("a", ServerStatus::Maintenance).await;
    let before = service.database.tables().await;
    refused(client.port_in_use("never", "api", 8000).await, Code::NotFound, "PROJECT_NOT_FOUND");
    let metadata = refused(client.port_in_use("shop", "db", 8000).await, Code::NotFound, "MODULE_NOT_FOUND");
    let told = ["disposition", "project_id", "module", "modules"].map(|key| metadata[key].as_str());
    assert_eq!(told, ["CALLER", "shop", "db", "api, web"]);
    // A new port is something new.
    let metadata = refused(
        client.port_in_use("shop", "api", 8000).await,
        Code::FailedPrecondition,
        "BOUND_SERVER_NOT_ADMISSIBLE",
    );
    assert_eq!((metadata["cause"].as_str(), metadata["status"].as_str()), ("STATUS", "MAINTENANCE"));
    let bad = v1::ReportPortInUseRequest {
        project_id: String::new(),
        module: "a b".to_owned(),
        port: 65_536,
        detail: "a\nb".to_owned(),
        start_port: Some(0),
    };
    let status = client.allocator.report_port_in_use(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(violations(&status), ["project_id", "module", "port", "start_port", "detail"]);
    let none = client.port_in_use("shop", "api", 0).await.unwrap_err();
    assert_eq!(violations(&none), ["port"]);
    assert_eq!(service.database.tables().await, before);
}
