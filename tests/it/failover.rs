//! A host is gone without a word: no reset tells a connection that nobody answers. Where it is the database's, and its name leads
//! to another one, whatever has a connection to itself gives it up, and has another one within seconds. Where it is a replica's,
//! the others take from it what it held.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use resource_allocator::{
    proto::v1::{self, EnsureOutcome, allocation_event::Detail, watch_allocations_response::Payload},
    server::RunningServer,
    shutdown::Shutdown,
};
use sqlx::{
    Executor as _,
    postgres::{PgConnectOptions, PgSslMode},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    chaos::proxy::{Cut, End, Proxy, Step},
    support::{
        Client, TestDatabase, TestService,
        process::PATIENCE,
        requests::{leased, request},
        server,
    },
};

/// Calls until it is answered, as callers do.
async fn insist<T, E: Debug>(what: &str, mut call: impl AsyncFnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        let refused = match call().await {
            Ok(answer) => return answer,
            Err(refused) => refused,
        };
        assert!(begun.elapsed() < PATIENCE, "{what}: {refused:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn place_and_read(client: &Client, project_id: &str) {
    let placed =
        insist("ensure", async || client.clone().allocator.ensure_allocation(request(project_id)).await)
            .await;
    assert_ne!(placed.into_inner().outcome(), EnsureOutcome::Extended);
    let get = || v1::GetPlacementRequest { project_id: project_id.to_owned() };
    insist("get", async || client.clone().allocator.get_placement(get()).await).await;
    let find = || v1::FindServerRequest::default();
    insist("find", async || client.clone().allocator.find_server(find()).await).await;
}

/// A service that reaches its database through a proxy.
struct Proxied {
    _shutdown: Shutdown,
    client: Client,
    _running: RunningServer,
    proxy: Proxy,
    database: TestDatabase,
}

impl Proxied {
    async fn start() -> Self {
        let database = TestDatabase::create().await;
        let proxy = Proxy::start(&TestDatabase::socket_dir()).await;
        let options = database.connect_options();
        let through_proxy = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(proxy.address.port())
            .username(options.get_username())
            .database(options.get_database().unwrap())
            .ssl_mode(PgSslMode::Disable);
        let (running, client, shutdown) = TestService::builder().start_at(through_proxy).await;
        Self { _shutdown: shutdown, client, _running: running, proxy, database }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_host_that_is_gone_without_a_word_is_given_up() {
    let mut service = Proxied::start().await;
    let (client, proxy) = (&mut service.client, &service.proxy);
    client.register(server("web-1")).await;
    place_and_read(client, "before").await;
    let watch = v1::WatchAllocationsRequest::default();
    let mut watched = client.allocator.watch_allocations(watch).await.unwrap().into_inner();
    assert!(matches!(watched.message().await.unwrap().unwrap().payload, Some(Payload::Bookmark(_))));

    proxy.vanish();
    // The combiner and the reader find it out by a call, health, the tailer and the follower by themselves.
    place_and_read(client, "after").await;
    place_and_read(client, "before").await;
    insist("health", async || {
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(client.channel.clone()).check(request).await.unwrap().into_inner();
        if answer.status() == ServingStatus::Serving { Ok(()) } else { Err(answer) }
    })
    .await;
    let told = async {
        loop {
            if let Some(Payload::Event(event)) = watched.message().await.unwrap().unwrap().payload
                && event.project_id == "after"
                && matches!(event.detail, Some(Detail::Completed(_)))
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the watcher is told of what came after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replicas_host_that_is_gone_in_the_middle_of_a_batch_holds_up_the_others_for_seconds_alone() {
    let mut service = Proxied::start().await;
    let (going, proxy, database) = (&mut service.client, &service.proxy, &service.database);
    let (_second, staying, _shutdown) = TestService::builder().start_replica(database).await;
    going.register(server("web-1")).await;
    place_and_read(going, "before").await;

    // Postgres has the whole batch but for the message that ends it: to wait for that is no idleness which it would end.
    proxy.order(Cut { step: Step::Round(0), end: End::Never });
    let mut last = going.allocator.clone();
    let last = tokio::spawn(async move { last.ensure_allocation(request("last")).await });
    let begun = Instant::now();
    while proxy.is_ordered() {
        assert!(begun.elapsed() < PATIENCE, "nothing was written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    place_and_read(&staying, "after").await;
    last.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_connections_to_a_host_that_is_gone_fail_nobody_who_comes_later() {
    let Proxied { client, proxy, .. } = &Proxied::start().await;
    let list = || {
        let mut inventory = client.inventory.clone();
        tokio::spawn(async move { inventory.list_servers(v1::ListServersRequest::default()).await })
    };
    // As many as share: some lie idle when the host goes, some are in use.
    proxy.set(Duration::from_millis(100), 0, false);
    for call in (0..14).map(|_| list()).collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let in_use: Vec<_> = (0..4).map(|_| list()).collect();
    tokio::time::sleep(Duration::from_millis(150)).await;
    proxy.vanish();
    proxy.heal();
    for call in in_use {
        // Nobody answers it; whoever calls gives up.
        let _ = tokio::time::timeout(Duration::from_secs(6), call).await;
    }
    for _ in 0..12 {
        list().await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_though_the_host_that_the_log_was_read_from_is_gone() {
    let mut service = Proxied::start().await;
    let (client, proxy, database) = (&mut service.client, &service.proxy, &service.database);
    client.register(server("web-1")).await;
    place_and_read(client, "before").await;
    proxy.vanish();
    // It is planned under the row, for which what others have committed is read: by the connection of those who follow.
    let ensure = async || client.clone().allocator.ensure_allocation(leased("preview", 5)).await;
    insist("lease", ensure).await;
    let ended = async {
        while database.count("SELECT count(*) FROM placements WHERE project_id = 'preview'").await > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the lease ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_works_is_waited_for_and_one_that_waits_itself_is_not() {
    let database = TestDatabase::create().await;
    let store = database.store(7, PATIENCE);
    let mut conn = store.acquire_for_combiner().await.unwrap();
    let long = async {
        conn.execute("SELECT pg_sleep(7)").await.unwrap();
    };
    let look = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(store.hears_combiner().await.unwrap());
    };
    tokio::join!(long, look);
    // Whoever asks now says that the combiner waits for it, and it for the combiner.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!store.hears_combiner().await.unwrap());

    // What was had over one connection says nothing of the next.
    drop(conn);
    let conn = store.acquire_for_combiner().await.unwrap();
    assert!(store.hears_combiner().await.unwrap());
    drop(conn);
    store.close().await;
}
