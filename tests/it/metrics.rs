//! Figures for Prometheus, as its scraper reads them.

use std::{collections::BTreeSet, path::Path};

use resource_allocator::proto::v1;

use crate::support::{
    Client,
    credentials::CredentialFile,
    figures::{scrape, value},
    process::{Process, ProcessOptions, folder, wait_until},
    server,
};

/// A service that tells figures, and where.
async fn start(data_dir: &Path) -> (Process, String) {
    start_with(data_dir, &[]).await
}

async fn start_with(data_dir: &Path, flags: &[&str]) -> (Process, String) {
    let data_dir = data_dir.to_str().unwrap().to_owned();
    let flags: Vec<String> =
        ["--metrics-listen", "127.0.0.1:0"].iter().chain(flags).map(ToString::to_string).collect();
    tokio::task::spawn_blocking(move || {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let database = ["--data-dir", data_dir.as_str()];
        let process = Process::start(&ProcessOptions { listen: "127.0.0.1:0", database, flags: &flags });
        let url = process.said().wait_for("figures for Prometheus at ");
        (process, url)
    })
    .await
    .unwrap()
}

/// Waits until a series has a value: housekeeping folds what was committed within seconds.
async fn wait_for(url: &str, series: &str, wanted: f64) {
    let (url, series) = (url.to_owned(), series.to_owned());
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        wait_until(&format!("{series} {wanted}"), || {
            value(&runtime.block_on(scrape(&url)), &series) == Some(wanted)
        });
    })
    .await
    .unwrap();
}

/// The names of the series that a text uses: words that begin as all of ours do.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("allocator_"))
        .map(ToOwned::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted_and_what_there_is_is_shown() {
    let folder = folder();
    let (mut process, url) = start(folder.path()).await;
    let mut client = Client::connect(&process.endpoint()).await;
    let text = scrape(&url).await;
    assert_eq!(value(&text, "allocator_placements"), Some(0.0));
    assert_eq!(value(&text, "allocator_database_up"), Some(1.0));

    client.register(server("web-1")).await;
    client.register(server("web-2")).await;
    client.ensure("shop", &["backend", "frontend"]).await.unwrap();
    client.ensure("shop", &["backend"]).await.unwrap();
    let refused = client.ensure("no such name!", &[]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let watch = v1::WatchAllocationsRequest { from_beginning: true, ..Default::default() };
    let stream = client.allocator.watch_allocations(watch).await.unwrap();

    wait_for(&url, "allocator_watchers", 1.0).await;
    wait_for(&url, "allocator_log_lag_events", 0.0).await;
    let text = scrape(&url).await;
    let ensure = r#"service="ResourceAllocator",method="EnsureAllocation""#;
    for (series, wanted) in [
        (format!(r#"allocator_rpc_requests_total{{{ensure},code="OK"}}"#), 2.0),
        (format!(r#"allocator_rpc_requests_total{{{ensure},code="INVALID_ARGUMENT"}}"#), 1.0),
        (format!("allocator_rpc_duration_seconds_count{{{ensure}}}"), 3.0),
        (r#"allocator_refusals_total{reason="INVALID_REQUEST",disposition="CALLER"}"#.to_owned(), 1.0),
        (r#"allocator_servers{status="IN_USE"}"#.to_owned(), 1.0),
        (r#"allocator_servers{status="READY"}"#.to_owned(), 1.0),
        ("allocator_placements".to_owned(), 1.0),
        ("allocator_ports_held".to_owned(), 2.0),
        (r#"allocator_fleet_ram_bytes{state="budget"}"#.to_owned(), 2.0 * 8192.0 * 1_048_576.0),
        (r#"allocator_fleet_ram_bytes{state="reserved"}"#.to_owned(), 512.0 * 1_048_576.0),
        (r#"allocator_fleet_ram_bytes{state="free"}"#.to_owned(), (16384.0 - 512.0) * 1_048_576.0),
        ("allocator_waiting_projects".to_owned(), 0.0),
        ("allocator_queue_requests".to_owned(), 0.0),
    ] {
        assert_eq!(value(&text, &series), Some(wanted), "{series} in {text}");
    }
    // Of one that is read again, the second time on nothing is left to be read.
    for _ in 0..2 {
        client.placement("shop").await.unwrap();
    }
    let text = scrape(&url).await;
    let reads = |source| value(&text, &format!(r#"allocator_project_reads_total{{source="{source}"}}"#));
    assert_eq!((reads("tables"), reads("memory")), (Some(1.0), Some(2.0)), "{text}");
    let committed = value(&text, r#"allocator_batches_total{outcome="committed"}"#).unwrap();
    assert!(committed >= 3.0, "{text}");
    // A path that nobody made a method of is no series.
    let unknown = format!("{}/resourceallocator.v1.ResourceAllocator/NoSuchMethod", process.endpoint());
    reqwest::Client::new().post(unknown).header("content-type", "application/grpc").send().await.unwrap();
    let text = scrape(&url).await;
    assert!(!text.contains("NoSuchMethod"), "{text}");

    // Who scrapes or watches holds no stop up.
    drop(stream);
    process.signal(rustix::process::Signal::TERM);
    let said = process.said().clone();
    let ended = tokio::task::spawn_blocking(move || process.wait()).await.unwrap();
    assert!(ended.success(), "{}", said.text());
    assert!(!said.text().contains("requests were still waiting"), "{}", said.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_no_server_has_any_more_is_not_shown_as_it_was() {
    let folder = folder();
    let (process, url) = start(folder.path()).await;
    let mut client = Client::connect(&process.endpoint()).await;
    client.register(server("web-1")).await;
    wait_for(&url, r#"allocator_servers{status="READY"}"#, 1.0).await;
    client.ensure("shop", &[]).await.unwrap();
    wait_for(&url, r#"allocator_servers{status="READY"}"#, 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_behind_the_same_gate() {
    let folder = folder();
    let mut file = CredentialFile::new();
    let token = file.token("prometheus", "viewer", "");
    let (_process, url) = start_with(folder.path(), &["--auth-tokens", file.path().to_str().unwrap()]).await;
    let refused = reqwest::get(&url).await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(!refused.text().await.unwrap().contains("allocator_placements"));
    let answer = reqwest::Client::new().get(&url).bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("allocator_placements"));
    // Nothing else is on that port.
    let other = url.replace("/metrics", "/api/allocations/");
    assert_eq!(reqwest::get(&other).await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_as_json_on_the_path_of_a_call_is_counted_as_refused() {
    let folder = folder();
    let mut file = CredentialFile::new();
    let token = file.token("prometheus", "viewer", "");
    let (process, url) = start_with(folder.path(), &["--auth-tokens", file.path().to_str().unwrap()]).await;
    let path = |method| format!("{}/resourceallocator.v1.ResourceAllocator/{method}", process.endpoint());
    let http = reqwest::Client::new();
    let unknown = http.post(path("ListAllocations")).send().await.unwrap();
    assert_eq!(unknown.status(), 401);
    let no_call = http.post(path("ListAllocations")).bearer_auth(&token).body("{}").send().await.unwrap();
    assert_eq!(no_call.status(), 415);
    let too_little = http.post(path("EnsureAllocation")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(too_little.status(), 403);
    let text = http.get(&url).bearer_auth(&token).send().await.unwrap().text().await.unwrap();
    let told = |method, code| {
        let labels = format!(r#"service="ResourceAllocator",method="{method}",code="{code}""#);
        value(&text, &format!("allocator_rpc_requests_total{{{labels}}}"))
    };
    assert_eq!(told("ListAllocations", "UNAUTHENTICATED"), Some(1.0), "{text}");
    assert_eq!(told("ListAllocations", "INVALID_ARGUMENT"), Some(1.0), "{text}");
    assert_eq!(told("EnsureAllocation", "PERMISSION_DENIED"), Some(1.0), "{text}");
    assert_eq!((told("ListAllocations", "OK"), told("EnsureAllocation", "OK")), (None, None), "{text}");
}

/// What the dashboard and the alerts ask for is there, whether it happened yet or not.
#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_alerts_ask_for_figures_that_there_are() {
    let folder = folder();
    let (process, url) = start(folder.path()).await;
    let mut client = Client::connect(&process.endpoint()).await;
    client.register(server("web-1")).await;
    client.ensure("no such name!", &[]).await.unwrap_err();
    let text = scrape(&url).await;
    let told = names(&text);
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for file in ["grafana/resource-allocator.json", "prometheus/alerts.yaml"] {
        let asked = names(&std::fs::read_to_string(deploy.join(file)).unwrap());
        assert!(asked.len() > 5, "{file} asks for {asked:?}");
        let missing: Vec<_> = asked.difference(&told).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}, which is not in {told:?}");
    }
}
