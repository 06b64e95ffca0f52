//! `ttl`: placements that end by themselves, and never because nobody could renew them.

use std::time::Duration;

use pbjson_types::Timestamp;
use resource_allocator::proto::v1::{
    self, EnsureOutcome, allocation_event::Detail, released::Cause, watch_allocations_response::Payload,
};
use sqlx::{Executor as _, PgPool};
use tonic::Code;

use crate::support::{
    Client, OwnPostgres, Replicas, TestDatabase, TestService,
    inventory::{assert_consistent, refused},
    process::PATIENCE,
    requests::{leased, module, request, resources, seconds},
    server,
};

fn end(answer: &v1::EnsureAllocationResponse) -> Option<Timestamp> {
    answer.placement.as_ref().unwrap().expire_time
}

/// For how many seconds a placement lasts from now on by the database's clock, in whole ones.
async fn left(database: &TestDatabase, project_id: &str) -> Option<i64> {
    let query = "SELECT round(extract(epoch FROM expire_time - clock_timestamp()))::bigint FROM placements WHERE project_id = $1";
    sqlx::query_scalar(query).bind(project_id).fetch_one(&database.sql).await.unwrap()
}

/// The project's release, when it comes.
async fn release_of(client: &Client, project_id: &str) -> v1::Released {
    let request = v1::WatchAllocationsRequest {
        project_id: Some(project_id.to_owned()),
        from_beginning: true,
        ..Default::default()
    };
    let mut stream = client.allocator.clone().watch_allocations(request).await.unwrap().into_inner();
    let released = async {
        loop {
            if let Some(Payload::Event(event)) = stream.message().await.unwrap().unwrap().payload
                && let Some(Detail::Released(released)) = event.detail
            {
                return released;
            }
        }
    };
    tokio::time::timeout(PATIENCE, released).await.expect("it is released")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_by_itself_once_and_gives_its_room_to_who_waits() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    let database = &replicas.service.database;
    one.register(v1::Server { capacity: resources(0, 1024, 0), ..server("a") }).await;
    let preview = v1::EnsureAllocationRequest {
        resources: resources(0, 1024, 0),
        modules: vec![module("web"), module("db")],
        ..leased("preview", 5)
    };
    let created = one.place(preview).await.unwrap();
    let placement = created.placement.unwrap();
    let lasts = placement.expire_time.unwrap().seconds - placement.create_time.unwrap().seconds;
    assert_eq!(lasts, 5);
    // Served at the other replica, with a lease of its own that counts from then.
    let waiting = v1::EnsureAllocationRequest {
        resources: resources(0, 1024, 0),
        wait_for_capacity: Some(seconds(600)),
        ..leased("next", 3600)
    };
    let served = two.place(waiting).await.unwrap();
    assert_eq!(served.outcome(), EnsureOutcome::Created);
    let placement = served.placement.unwrap();
    assert_eq!(placement.expire_time.unwrap().seconds - placement.create_time.unwrap().seconds, 3600);

    let released = release_of(&two, "preview").await;
    assert_eq!(
        (released.cause(), released.allocations.len(), released.placement_removed),
        (Cause::Expired, 2, true)
    );
    refused(two.placement("preview").await, Code::NotFound, "PROJECT_NOT_FOUND");
    let early: bool = sqlx::query_scalar(
        "SELECT r.event_time - e.event_time < '5 s' FROM allocation_events r, allocation_events e
         WHERE r.project_id = 'preview' AND e.project_id = 'preview' AND r.kind = 'released' AND e.kind = 'ensured'",
    )
    .fetch_one(&database.sql)
    .await
    .unwrap();
    assert!(!early);
    assert_consistent(&database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_renews_and_writes_no_event() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    let database = &replicas.service.database;
    one.register(server("a")).await;
    let created = one.place(leased("preview", 600)).await.unwrap();
    let last = database.count("SELECT last_sequence FROM pools").await;

    let renewed = two.place(leased("preview", 3600)).await.unwrap();
    assert_eq!(renewed.outcome(), EnsureOutcome::Unchanged);
    assert!((3550..=3600).contains(&left(database, "preview").await.unwrap()));
    assert_eq!(end(&renewed), one.placement("preview").await.unwrap().placement.unwrap().expire_time);
    let (before, after) = (created.placement.unwrap(), renewed.placement.unwrap());
    assert_eq!((before.etag, before.update_time), (after.etag, after.update_time), "nothing else changed");
    // A shorter one is as good.
    two.place(leased("preview", 60)).await.unwrap();
    assert!(left(database, "preview").await.unwrap() <= 60);
    // No ttl keeps what stands, with something new or without.
    let stands = end(&one.place(request("preview")).await.unwrap());
    assert!(stands.is_some());
    let modules = vec![module("more")];
    let extended = one.place(v1::EnsureAllocationRequest { modules, ..request("preview") }).await.unwrap();
    assert_eq!((extended.outcome(), end(&extended)), (EnsureOutcome::Extended, stands));
    // An extension with a ttl renews too.
    let modules = vec![module("yet-more")];
    let extended =
        one.place(v1::EnsureAllocationRequest { modules, ..leased("preview", 600) }).await.unwrap();
    assert!(end(&extended).unwrap().seconds > stands.unwrap().seconds);
    let events = 3 * 2;
    assert_eq!(
        database.count("SELECT last_sequence FROM pools").await,
        last + events,
        "of the extensions alone"
    );

    // For good, and on lease again.
    let kept = two.place(leased("preview", 0)).await.unwrap();
    assert_eq!((kept.outcome(), end(&kept)), (EnsureOutcome::Unchanged, None));
    assert_eq!(left(database, "preview").await, None);
    let again = one.place(leased("preview", 600)).await.unwrap();
    assert!(end(&again).is_some());
    assert!((550..=600).contains(&left(database, "preview").await.unwrap()));
    assert_consistent(&database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_of_a_lease_writes_nothing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    client.place(request("stays")).await.unwrap();
    let before = service.database.tables().await;
    for project in ["stays", "new"] {
        let preview = v1::EnsureAllocationRequest { validate_only: true, ..leased(project, 60) };
        assert_eq!(end(&client.place(preview).await.unwrap()), None);
    }
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lease_runs_out_while_nobody_can_renew_it() {
    let replicas = Replicas::start().await;
    let (mut one, _) = replicas.clients();
    let database = &replicas.service.database;
    one.register(server("a")).await;
    for project in ["long", "short", "over", "stays"] {
        one.place(leased(project, 3600)).await.unwrap();
    }
    one.place(leased("stays", 0)).await.unwrap();
    // As it is after an hour in which no replica reached the database: a lease that ran out in it, one that ran out a second
    // after it began, one that was over before, and one that would have lasted for longer.
    database
        .sql
        .execute(
            "BEGIN;
             SET LOCAL resource_allocator.writer = 'service';
             UPDATE pools SET leases_served_time = clock_timestamp() - interval '1 hour';
             UPDATE placements SET expire_time = clock_timestamp() - interval '30 min' WHERE project_id = 'long';
             UPDATE placements SET expire_time = clock_timestamp() - interval '59 min 59 s' WHERE project_id = 'short';
             UPDATE placements SET expire_time = clock_timestamp() - interval '60 min 1 s' WHERE project_id = 'over';
             COMMIT",
        )
        .await
        .unwrap();
    assert_eq!(release_of(&one, "over").await.cause(), Cause::Expired);
    let long = left(database, "long").await.unwrap();
    assert!((1700..=1800).contains(&long), "half an hour is left of it, as before: {long}");
    let short = left(database, "short").await.unwrap();
    assert!((30..=60).contains(&short), "there is time enough to renew it: {short}");
    assert_eq!(left(database, "stays").await, None);
    let released = "SELECT count(*) FROM allocation_events WHERE kind = 'released'";
    assert_eq!(database.count(released).await, 1);
    assert_consistent(&database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_a_database_that_is_held_up_longer_than_it_lasts() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    let database = &replicas.service.database;
    one.register(server("a")).await;
    one.place(leased("preview", 5)).await.unwrap();
    // Nobody can write for longer than the lease lasts.
    let held = database.hold_pool().await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    held.rollback().await.unwrap();
    // The owner comes back at once, as one that could not renew does.
    let begun = std::time::Instant::now();
    let renewed = loop {
        match two.place(leased("preview", 600)).await {
            Ok(renewed) => break renewed,
            Err(status) => assert_eq!(status.code(), Code::Unavailable),
        }
        assert!(begun.elapsed() < PATIENCE);
    };
    assert_eq!(renewed.outcome(), EnsureOutcome::Unchanged, "it never ended");
    let released = "SELECT count(*) FROM allocation_events WHERE kind = 'released'";
    assert_eq!(database.count(released).await, 0);
}

/// By how many milliseconds each lease of `preview-…` was over when it was released, by the database's clock.
async fn late(sql: &PgPool) -> Vec<i64> {
    sqlx::query_scalar(
        "SELECT (extract(epoch FROM r.event_time) * 1000 - (e.payload->>'expire_time')::numeric / 1000)::bigint
         FROM allocation_events r JOIN allocation_events e USING (project_id)
         WHERE r.kind = 'released' AND e.kind = 'ensured' AND project_id LIKE 'preview-%'",
    )
    .fetch_all(sql)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_not_before_its_time_and_not_long_after_it() {
    // Replicas that do nothing else look every two seconds; the rest is for a machine that is busy.
    const LATE: i64 = 20_000;
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    one.register(server("a")).await;
    for (number, ttl) in [5, 5, 6, 7, 8].into_iter().enumerate() {
        let client = if number % 2 == 0 { &mut one } else { &mut two };
        client.place(leased(&format!("preview-{number}"), ttl)).await.unwrap();
    }
    for number in 0..5 {
        assert_eq!(release_of(&two, &format!("preview-{number}")).await.cause(), Cause::Expired);
    }
    let late = late(&replicas.service.database.sql).await;
    assert_eq!(late.len(), 5, "each once");
    assert!(late.iter().all(|late| (0..LATE).contains(late)), "{late:?} ms");
    assert_consistent(&replicas.service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_of_the_database_an_owner_has_as_long_again_to_renew_and_then_the_lease_ends() {
    const OUTAGE: Duration = Duration::from_secs(8);
    let mut postgres = OwnPostgres::start().await;
    let (_one, mut one, _stop_one) = TestService::builder().start_at(postgres.connect_options()).await;
    let (_two, mut two, _stop_two) = TestService::builder().start_at(postgres.connect_options()).await;
    one.register(server("a")).await;
    for project in ["preview-gone", "preview-kept"] {
        one.place(leased(project, 5)).await.unwrap();
    }
    // Over all the time in which either could have been renewed.
    postgres.stop().await;
    tokio::time::sleep(OUTAGE).await;
    postgres.start_again().await;
    let begun = std::time::Instant::now();
    let renewed = loop {
        match two.place(leased("preview-kept", 600)).await {
            Ok(renewed) => break renewed,
            Err(status) => assert_eq!(status.code(), Code::Unavailable),
        }
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(renewed.outcome(), EnsureOutcome::Unchanged, "it never ended");
    // Whose owner does not come back ends all the same, and not before that one could have.
    assert_eq!(release_of(&two, "preview-gone").await.cause(), Cause::Expired);
    let sql = PgPool::connect_with(postgres.connect_options()).await.unwrap();
    let had: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM event_time - pg_postmaster_start_time())::float8 FROM allocation_events WHERE kind = 'released'",
    )
    .fetch_all(&sql)
    .await
    .unwrap();
    let [had] = had[..] else { panic!("one of them ends, once: {had:?}") };
    assert!((OUTAGE.as_secs_f64()..OUTAGE.as_secs_f64() + 60.0).contains(&had), "{had} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_kept_in_time_without_requests_and_a_pool_without_leases_is_left_alone() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    client.place(request("stays")).await.unwrap();
    let noted = "SELECT count(*) FROM pools WHERE leases_served_time IS NOT NULL";
    assert_eq!(service.database.count(noted).await, 0);
    client.place(leased("preview", 3600)).await.unwrap();
    let at = || async {
        let query = "SELECT (extract(epoch FROM leases_served_time) * 1000)::bigint FROM pools";
        service.database.count(query).await
    };
    let first = at().await;
    let begun = std::time::Instant::now();
    while at().await == first {
        assert!(begun.elapsed() < PATIENCE, "the note is never renewed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_end_together_end_without_a_pause() {
    const LEASES: i64 = 2_560;
    let mut service = TestService::start().await;
    let room = v1::Resources { cpu_millis: Some(1), ram_mb: Some(10_000_000), disk_mb: Some(10_000_000) };
    service.client.register(v1::Server { capacity: Some(room), ..server("a") }).await;
    let mut left: Vec<_> = (0..LEASES).map(|n| leased(&format!("preview-{n}"), 3600)).collect();
    while !left.is_empty() {
        let requests = left.split_off(left.len().saturating_sub(1000));
        let batch = v1::BatchEnsureAllocationsRequest { requests };
        service.client.allocator.batch_ensure_allocations(batch).await.unwrap();
    }
    service
        .database
        .sql
        .execute(
            "BEGIN;
             SET LOCAL resource_allocator.writer = 'service';
             UPDATE placements SET expire_time = clock_timestamp();
             COMMIT",
        )
        .await
        .unwrap();
    let released = "SELECT count(*) FROM allocation_events WHERE kind = 'released'";
    let begun = std::time::Instant::now();
    while service.database.count(released).await < LEASES {
        assert!(begun.elapsed() < PATIENCE, "they never end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Two seconds pass between two looks: one step at each look would take ten of them.
    let span = "SELECT extract(epoch FROM max(event_time) - min(event_time))::bigint FROM allocation_events WHERE kind = 'released'";
    let span = service.database.count(span).await;
    assert!(span < 15, "{span} s");
    assert_consistent(&service.database.sql).await;
}
