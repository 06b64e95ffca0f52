//! Who calls: tokens and certificates, projects that a worker may touch, and what becomes of a stream when its token goes.

use std::{process::Output, time::Duration};

use resource_allocator::proto::v1::{self, allocation_event::Detail, batch_ensure_result::Result as Told};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tonic::{
    Code, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt as _;

use crate::support::{
    Client, TestDatabase, TestService,
    certificates::{Authority, CertificateFolder, Pair},
    credentials::{CredentialFile, TokenClient},
    error_info,
    process::{PATIENCE, Process, binary, run},
    requests::seconds,
    server, watching,
};

/// A service that asks for credentials, and a connection to it.
async fn guarded(
    file: &CredentialFile,
) -> (Channel, TestDatabase, resource_allocator::server::RunningServer, resource_allocator::shutdown::Shutdown)
{
    let mut builder = TestService::builder();
    builder.auth_tokens = Some(file.path());
    let database = TestDatabase::create().await;
    let (running, shutdown) = builder.serve(database.connect_options()).await;
    let endpoint = format!("http://{}", running.address);
    let channel = Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
    (channel, database, running, shutdown)
}

fn ensure(project_id: &str) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { project_id: project_id.to_owned(), ..Default::default() }
}

fn watch(project_id: &str) -> v1::WatchAllocationsRequest {
    v1::WatchAllocationsRequest { project_id: Some(project_id.to_owned()), ..Default::default() }
}

#[track_caller]
fn assert_denied<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: &str) {
    let refused = answer.unwrap_err();
    let (told, metadata) = error_info(&refused);
    assert_eq!((refused.code(), told.as_str()), (code, reason), "{refused:?}");
    assert_eq!(metadata["disposition"], "CALLER");
    assert!(metadata.contains_key("request_id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_some_projects_touches_no_other() {
    let mut file = CredentialFile::new();
    let admin = file.token("admin", "admin", "");
    let worker = file.token("shop-worker", "worker", "projects = ['shop-', 'blog/']");
    let (channel, _database, _running, _shutdown) = guarded(&file).await;
    let mut admin = TokenClient::new(&channel, &admin);
    let request = v1::RegisterServerRequest { server: Some(server("web-1")) };
    admin.inventory.register_server(request).await.unwrap();
    admin.allocator.ensure_allocation(ensure("other")).await.unwrap();

    let mut worker = TokenClient::new(&channel, &worker).allocator;
    worker.ensure_allocation(ensure("shop-1")).await.unwrap();
    worker.ensure_allocation(ensure("blog/a")).await.unwrap();
    let forbidden = |answer| assert_denied::<()>(answer, Code::PermissionDenied, "FORBIDDEN");
    for project_id in ["other", "shop", "blog", "xshop-1", "SHOP-1", ""] {
        forbidden(worker.ensure_allocation(ensure(project_id)).await.map(drop));
    }
    let project_id = "other".to_owned();
    let release = v1::ReleaseAllocationRequest { project_id: project_id.clone(), ..Default::default() };
    forbidden(worker.release_allocation(release).await.map(drop));
    let placement = v1::GetPlacementRequest { project_id: project_id.clone() };
    forbidden(worker.get_placement(placement).await.map(drop));
    let relocate = v1::RelocateProjectRequest { project_id: project_id.clone(), ..Default::default() };
    forbidden(worker.relocate_project(relocate).await.map(drop));
    let port = v1::ReportPortInUseRequest { project_id: project_id.clone(), ..Default::default() };
    forbidden(worker.report_port_in_use(port).await.map(drop));
    // Lists and streams name a project, or are refused: a list that is silently shorter would be read as all there is.
    for project_id in [None, Some(project_id)] {
        let list = v1::ListAllocationsRequest { project_id: project_id.clone(), ..Default::default() };
        forbidden(worker.list_allocations(list).await.map(drop));
        let waiting = v1::ListWaitingRequest { project_id: project_id.clone(), ..Default::default() };
        forbidden(worker.list_waiting(waiting).await.map(drop));
        let watch = v1::WatchAllocationsRequest { project_id, ..Default::default() };
        forbidden(worker.watch_allocations(watch).await.map(drop));
    }
    let list = v1::ListAllocationsRequest { project_id: Some("shop-1".to_owned()), ..Default::default() };
    assert_eq!(worker.list_allocations(list).await.unwrap().into_inner().allocations.len(), 1);
    worker.watch_allocations(watch("shop-1")).await.unwrap();
    worker.find_server(v1::FindServerRequest::default()).await.unwrap();

    let requests = ["shop-2", "other", "blog/b"].map(ensure).into();
    let batch = v1::BatchEnsureAllocationsRequest { requests };
    let results = worker.batch_ensure_allocations(batch).await.unwrap().into_inner().results;
    let refused: Vec<_> =
        results.iter().map(|result| matches!(&result.result, Some(Told::Status(_)))).collect();
    assert_eq!(refused, [false, true, false]);
    let Some(Told::Status(status)) = &results[1].result else { panic!("{results:?}") };
    assert_eq!(status.code, i32::from(Code::PermissionDenied));
    let list = v1::ListAllocationsRequest::default();
    let all = admin.allocator.list_allocations(list).await.unwrap().into_inner().allocations;
    let mut projects: Vec<_> = all.into_iter().map(|allocation| allocation.project_id).collect();
    projects.dedup();
    assert_eq!(projects, ["blog/a", "blog/b", "other", "shop-1", "shop-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_is_taken_away_and_others_go_on() {
    let mut file = CredentialFile::new();
    let old = file.token("worker", "worker", "");
    let (channel, _database, running, _shutdown) = guarded(&file).await;
    let mut client = TokenClient::new(&channel, &old).allocator;
    let mut stream = client.watch_allocations(watch("shop")).await.unwrap().into_inner();
    // A page's stream, whose end is in its body.
    let mut page = reqwest::Client::new()
        .post(format!("http://{}/resourceallocator.v1.ResourceAllocator/WatchAllocations", running.address))
        .header("content-type", "application/grpc-web+proto")
        .header("authorization", format!("Bearer {old}"))
        .body(vec![0; 5])
        .send()
        .await
        .unwrap();

    // The new one is there before the old one goes.
    let new = file.token("worker", "worker", "");
    let known = async {
        let mut client = TokenClient::new(&channel, &new).allocator;
        while client.list_allocations(v1::ListAllocationsRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("the new token never counted");
    client.list_allocations(v1::ListAllocationsRequest::default()).await.unwrap();
    file.clear();
    let newest = file.token("worker", "worker", "");

    assert_denied::<()>(Err(watching::end(&mut stream).await), Code::Unauthenticated, "UNAUTHENTICATED");
    let list = v1::ListAllocationsRequest::default();
    assert_denied(client.list_allocations(list.clone()).await, Code::Unauthenticated, "UNAUTHENTICATED");
    let mut body = Vec::new();
    let rest = async {
        while let Some(chunk) = page.chunk().await.unwrap() {
            body.extend_from_slice(&chunk);
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.expect("the page's stream went on");
    assert!(String::from_utf8_lossy(&body).contains("grpc-status:16"), "{body:?}");
    TokenClient::new(&channel, &newest).allocator.list_allocations(list).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_over_when_its_time_is_and_so_is_its_stream() {
    let mut file = CredentialFile::new();
    let past = file.token("past", "viewer", "expires = 2020-01-01T00:00:00Z");
    let (channel, database, _running, _shutdown) = guarded(&file).await;
    let soon = sqlx::query_scalar("SELECT date_trunc('second', now()) + interval '10 s'");
    let soon: OffsetDateTime = soon.fetch_one(&database.sql).await.unwrap();
    let soon = file.token("soon", "viewer", &format!("expires = {}", soon.format(&Rfc3339).unwrap()));
    let mut client = TokenClient::new(&channel, &soon).allocator;
    let known = async {
        while client.list_allocations(v1::ListAllocationsRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("the token never counted");
    let mut stream = client.watch_allocations(watch("shop")).await.unwrap().into_inner();
    let list = v1::ListAllocationsRequest::default();
    let mut past = TokenClient::new(&channel, &past).allocator;
    assert_denied(past.list_allocations(list.clone()).await, Code::Unauthenticated, "UNAUTHENTICATED");
    let end = watching::end(&mut stream).await;
    assert!(end.message().contains("`soon` has expired"), "{end:?}");
    assert_denied::<()>(Err(end), Code::Unauthenticated, "UNAUTHENTICATED");
    assert_denied(client.list_allocations(list).await, Code::Unauthenticated, "UNAUTHENTICATED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_given_an_end_takes_its_open_streams_along() {
    let mut file = CredentialFile::new();
    let token = file.token("worker", "worker", "");
    let (channel, _database, _running, _shutdown) = guarded(&file).await;
    let mut client = TokenClient::new(&channel, &token).allocator;
    let mut stream = client.watch_allocations(watch("shop")).await.unwrap().into_inner();
    file.expire("worker", "2020-01-01T00:00:00Z");
    let end = watching::end(&mut stream).await;
    assert!(end.message().contains("`worker` has expired"), "{end:?}");
    assert_denied::<()>(Err(end), Code::Unauthenticated, "UNAUTHENTICATED");
}

async fn by_certificate(endpoint: &str, believed: &Authority, shown: Option<&Pair>) -> Channel {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&believed.pem));
    if let Some(shown) = shown {
        tls = tls.identity(Identity::from_pem(&shown.certificate, &shown.key));
    }
    Endpoint::from_shared(endpoint.to_owned()).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_who_its_names_say_and_a_token_counts_before_it() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let folder = CertificateFolder::of(&ours.service());
    let mut file = CredentialFile::new();
    file.certificate("console", "viewer", "CN=console");
    file.certificate("deployer", "worker", "URI:spiffe://example.com/deployer");
    let admin = file.token("admin", "admin", "");
    let mut builder = TestService::builder();
    builder.auth_tokens = Some(file.path());
    let mut tls = folder.files(Some(&theirs));
    tls.client_certificate_optional = true;
    builder.tls = Some(tls);
    let database = TestDatabase::create().await;
    let (running, _shutdown) = builder.serve(database.connect_options()).await;
    let endpoint = format!("https://{}", running.address);

    let console = by_certificate(&endpoint, &ours, Some(&theirs.client("console", None))).await;
    let mut console = Client::over(console);
    console.allocator.list_allocations(v1::ListAllocationsRequest::default()).await.unwrap();
    assert_denied(console.ensure("shop", &[]).await, Code::PermissionDenied, "FORBIDDEN");
    let deployer = theirs.client("console", Some("spiffe://example.com/deployer"));
    let mut deployer = Client::over(by_certificate(&endpoint, &ours, Some(&deployer)).await);
    // It came through the gate, and there is no server yet.
    assert_eq!(error_info(&deployer.ensure("shop", &[]).await.unwrap_err()).0, "NO_SERVERS");
    let stranger = by_certificate(&endpoint, &ours, Some(&theirs.client("stranger", None))).await;
    let refused = Client::over(stranger.clone()).ensure("shop", &[]).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().metadata["certificate"], "CN=stranger");
    assert_denied::<()>(Err(refused), Code::Unauthenticated, "UNAUTHENTICATED");
    let nobody = by_certificate(&endpoint, &ours, None).await;
    assert_denied(
        Client::over(nobody.clone()).ensure("shop", &[]).await,
        Code::Unauthenticated,
        "UNAUTHENTICATED",
    );
    for channel in [nobody, stranger] {
        let mut admin = TokenClient::new(&channel, &admin);
        admin.inventory.list_servers(v1::ListServersRequest::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_a_certificate_of_the_authority_may_do_everything() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let folder = CertificateFolder::of(&ours.service());
    let mut builder = TestService::builder();
    let mut tls = folder.files(Some(&theirs));
    tls.client_certificate_optional = true;
    builder.tls = Some(tls);
    let database = TestDatabase::create().await;
    let (running, _shutdown) = builder.serve(database.connect_options()).await;
    let endpoint = format!("https://{}", running.address);
    let known = by_certificate(&endpoint, &ours, Some(&theirs.client("anyone", None))).await;
    Client::over(known).register(server("web-1")).await;
    let nobody = by_certificate(&endpoint, &ours, None).await;
    assert_denied(Client::over(nobody).ensure("shop", &[]).await, Code::Unauthenticated, "UNAUTHENTICATED");
}

fn list_servers(process: &Process, token: Option<&str>) -> Output {
    let mut command = binary();
    command.args(["servers", "list", "--endpoint", &process.endpoint()]);
    if let Some(token) = token {
        command.env("RESOURCE_ALLOCATOR_TOKEN", token);
    }
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_tokens_and_shows_them() {
    let made =
        run(&["token", "new", "--name", "deploy", "--role", "operator", "--expires", "2099-01-01T00:00:00Z"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let entry = String::from_utf8(made.stderr).unwrap();
    assert!(token.starts_with("ra_") && !entry.contains(&token), "{entry}");
    let folder = crate::support::process::folder();
    let path = folder.path().join("tokens.toml");
    std::fs::write(&path, &entry).unwrap();
    let database = TestDatabase::create().await;
    let process = Process::start_on(database.url(), &["--auth-tokens", path.to_str().unwrap()]);
    assert_eq!(list_servers(&process, Some(&token)).status.code(), Some(0));
    let by_file = folder.path().join("token");
    std::fs::write(&by_file, format!("{token}\n")).unwrap();
    let mut command = binary();
    command.args(["servers", "list", "--endpoint", &process.endpoint(), "--token-file"]).arg(&by_file);
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    for wrong in [None, Some("ra_wrong")] {
        let refused = list_servers(&process, wrong);
        assert_eq!(refused.status.code(), Some(4), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("UNAUTHENTICATED"), "{refused:?}");
    }
    // Probes have no token.
    assert_eq!(run(&["health", "--endpoint", &process.endpoint()]).status.code(), Some(0));
    // What makes no sense changes nothing.
    std::fs::write(&path, "[[tokens]\n").unwrap();
    process.said().wait_for("credentials changed and make no sense");
    assert_eq!(list_servers(&process, Some(&token)).status.code(), Some(0));

    for (arguments, word) in [
        (&["--name", "a", "--role", "root"][..], "there are the roles viewer, worker, operator and admin"),
        (&["--name", "a b", "--role", "viewer"], "`name` must be"),
        (&["--name", "a", "--role", "viewer", "--project", "shop-"], "limits workers"),
        (&["--name", "a", "--role", "viewer", "--expires", "tomorrow"], "2027-01-31T00:00:00Z"),
    ] {
        let refused = run(&[&["token", "new"], arguments].concat());
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(refused.stdout.is_empty());
        assert!(String::from_utf8_lossy(&refused.stderr).contains(word), "{refused:?}");
    }
}

/// Waits for the event that this detail is of, and says who asked for it.
async fn actor_of(
    stream: &mut Streaming<v1::WatchAllocationsResponse>,
    is: impl Fn(&Detail) -> bool,
) -> String {
    let found = async {
        loop {
            let message = stream.message().await.unwrap().expect("the stream ended");
            let Some(v1::watch_allocations_response::Payload::Event(event)) = message.payload else {
                continue;
            };
            if event.detail.as_ref().is_some_and(&is) {
                return event.actor;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("there is no such event")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_says_who_asked_for_it_also_after_a_wait_in_line() {
    let mut file = CredentialFile::new();
    let keeper = file.token("keeper", "operator", "");
    let (first, second) = (file.token("first", "worker", ""), file.token("second", "worker", ""));
    let (channel, database, _running, _shutdown) = guarded(&file).await;
    let mut keeper = TokenClient::new(&channel, &keeper);
    let beginning = v1::WatchAllocationsRequest { from_beginning: true, ..Default::default() };
    let mut events = keeper.allocator.watch_allocations(beginning.clone()).await.unwrap().into_inner();
    let request = v1::RegisterServerRequest { server: Some(server("web-1")) };
    keeper.inventory.register_server(request).await.unwrap();
    assert_eq!(actor_of(&mut events, |detail| matches!(detail, Detail::ServerChanged(_))).await, "keeper");

    let all = Some(v1::Resources { ram_mb: Some(5000), ..Default::default() });
    let mut first = TokenClient::new(&channel, &first).allocator;
    let large = v1::EnsureAllocationRequest { resources: all, ..ensure("shop") };
    first.ensure_allocation(large).await.unwrap();
    assert_eq!(actor_of(&mut events, |detail| matches!(detail, Detail::Completed(_))).await, "first");

    // Who waits is served by what another gives back, and asked for it all the same.
    let wait = Some(seconds(60));
    let waits = v1::EnsureAllocationRequest { resources: all, wait_for_capacity: wait, ..ensure("blog") };
    let mut second = TokenClient::new(&channel, &second).allocator;
    let waiting = tokio::spawn(async move { second.ensure_allocation(waits).await });
    assert_eq!(actor_of(&mut events, |detail| matches!(detail, Detail::Waiting(_))).await, "second");
    let release = v1::ReleaseAllocationRequest { project_id: "shop".to_owned(), ..Default::default() };
    first.release_allocation(release).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(actor_of(&mut events, |detail| matches!(detail, Detail::Released(_))).await, "first");
    assert_eq!(actor_of(&mut events, |detail| matches!(detail, Detail::Completed(_))).await, "second");

    // What was written is what is read, and people find it by SQL.
    let mut again = keeper.allocator.watch_allocations(beginning).await.unwrap().into_inner();
    assert_eq!(actor_of(&mut again, |detail| matches!(detail, Detail::Waiting(_))).await, "second");
    let actors: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT payload ->> 'actor' FROM allocation_events ORDER BY 1")
            .fetch_all(&database.sql)
            .await
            .unwrap();
    assert_eq!(actors, ["first", "keeper", "second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_nobody_is_named() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    service.client.ensure("shop", &[]).await.unwrap();
    let named: i64 = sqlx::query_scalar("SELECT count(*) FROM allocation_events WHERE payload ? 'actor'")
        .fetch_one(&service.database.sql)
        .await
        .unwrap();
    assert_eq!(named, 0);
}
