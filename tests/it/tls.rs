//! TLS on the one port: who believes whom, certificates that change under open streams, and clients that speak something else.

use std::{io, net::SocketAddr, process::Output, sync::Arc, time::Duration};

use resource_allocator::{listener::ListenerOptions, proto::v1, server::RunningServer, shutdown::Shutdown};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::{
    Client, TestDatabase, TestService,
    certificates::{Authority, CertificateFolder, Pair},
    process::{PATIENCE, Process, binary},
    server,
};

/// Connects as generated clients do.
async fn connect(
    address: SocketAddr,
    believed: &Authority,
    shown: Option<&Pair>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&believed.pem));
    if let Some(shown) = shown {
        tls = tls.identity(Identity::from_pem(&shown.certificate, &shown.key));
    }
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect().await
}

/// Whether a call comes through, and not just a connection: in TLS 1.3 a client is done before its certificate is judged.
async fn comes_through(address: SocketAddr, believed: &Authority, shown: Option<&Pair>) -> bool {
    match connect(address, believed, shown).await {
        Ok(channel) => {
            let mut client = Client::over(channel);
            client.inventory.list_servers(v1::ListServersRequest::default()).await.is_ok()
        }
        Err(_) => false,
    }
}

/// Connects by hand, and says which protocol was agreed upon.
async fn shake_hands(
    address: SocketAddr,
    believed: &Authority,
    protocol: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(believed.pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_speaks_tls_to_those_who_believe_its_authority() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let folder = CertificateFolder::of(&ours.service());
    let mut builder = TestService::builder();
    builder.tls = Some(folder.files(None));
    let database = TestDatabase::create().await;
    let (running, shutdown) = builder.serve(database.connect_options()).await;

    let mut client = Client::over(connect(running.address, &ours, None).await.unwrap());
    client.register(server("web-1")).await;
    client.ensure("shop", &["backend"]).await.unwrap();
    connect(running.address, &other, None).await.unwrap_err();

    // JSON beside gRPC, each by its protocol.
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let stream = shake_hands(running.address, &ours, protocol).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    }
    let mut stream = shake_hands(running.address, &ours, b"http/1.1").await.unwrap();
    let ask =
        "GET /api/allocations/?project_id=shop HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    assert!(told.contains(r#""project_id":"shop""#), "{told}");

    // Whoever speaks no TLS is told so where it can be told.
    let mut plain = TcpStream::connect(running.address).await.unwrap();
    plain.write_all(ask.as_bytes()).await.unwrap();
    let mut told = String::new();
    plain.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
    assert!(told.ends_with("this port speaks TLS: call it by https://\n"), "{told}");
    let plain = Endpoint::from_shared(format!("http://{}", running.address)).unwrap().connect_lazy();
    // What its client says of it differs by when the connection is cut.
    Client::over(plain).ensure("shop", &[]).await.unwrap_err();

    shutdown.hard.cancel();
    shutdown.soft.cancel();
    running.stopped().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_authorities_of_clients_nobody_else_comes_in() {
    let (ours, theirs, other) = (Authority::new("ours"), Authority::new("theirs"), Authority::new("other"));
    let folder = CertificateFolder::of(&ours.service());
    let mut builder = TestService::builder();
    builder.tls = Some(folder.files(Some(&theirs)));
    let database = TestDatabase::create().await;
    let (running, _shutdown) = builder.serve(database.connect_options()).await;
    let address = running.address;
    assert!(comes_through(address, &ours, Some(&theirs.client("worker", None))).await);
    assert!(!comes_through(address, &ours, None).await, "without a certificate");
    assert!(
        !comes_through(address, &ours, Some(&other.client("worker", None))).await,
        "of another authority"
    );
    // A certificate for a service is none for a client.
    assert!(!comes_through(address, &ours, Some(&theirs.service())).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_under_an_open_watch() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let folder = CertificateFolder::of(&before.service());
    let mut builder = TestService::builder();
    builder.tls = Some(folder.files(None));
    let database = TestDatabase::create().await;
    let (running, _shutdown) = builder.serve(database.connect_options()).await;
    let mut client = Client::over(connect(running.address, &before, None).await.unwrap());
    client.register(server("web-1")).await;
    let request = v1::WatchAllocationsRequest { project_id: Some("shop".to_owned()), ..Default::default() };
    let mut events = client.allocator.watch_allocations(request).await.unwrap().into_inner();

    let pair = after.service();
    folder.write("service.pem", &pair.certificate);
    folder.write("service.key", &pair.key);
    let exchanged = async {
        while !comes_through(running.address, &after, None).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, exchanged).await.expect("the new certificate never came");
    connect(running.address, &before, None).await.unwrap_err();

    // The connection from before, and the stream on it, go on.
    client.ensure("shop", &["backend"]).await.unwrap();
    let completed = async {
        loop {
            let message = events.message().await.unwrap().expect("the stream ended");
            let detail = match message.payload {
                Some(v1::watch_allocations_response::Payload::Event(event)) => event.detail,
                _ => None,
            };
            if matches!(detail, Some(v1::allocation_event::Detail::Completed(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, completed).await.expect("no event came");
}

/// A service that takes two handshakes at a time, each for so long.
async fn two_handshakes_at_a_time(
    ours: &Authority,
    database: &TestDatabase,
    handshake_timeout: Duration,
) -> (CertificateFolder, RunningServer, Shutdown) {
    let folder = CertificateFolder::of(&ours.service());
    let mut builder = TestService::builder();
    builder.tls = Some(folder.files(None));
    builder.listener = ListenerOptions { max_handshakes: 2, handshake_timeout, ..ListenerOptions::default() };
    let (running, shutdown) = builder.serve(database.connect_options()).await;
    (folder, running, shutdown)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_in_the_handshake_is_sent_away_and_holds_up_nobody_for_long() {
    let ours = Authority::new("ours");
    let database = TestDatabase::create().await;
    let (_folder, running, _shutdown) =
        two_handshakes_at_a_time(&ours, &database, Duration::from_millis(200)).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(running.address).await.unwrap());
    }
    let came = tokio::time::timeout(PATIENCE, comes_through(running.address, &ours, None)).await;
    assert!(came.expect("it waits for those who are silent"));
    for mut stream in silent {
        let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.expect("nobody sent it away");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_begins_a_handshake_and_does_not_go_on_holds_up_nobody() {
    let ours = Authority::new("ours");
    let database = TestDatabase::create().await;
    let (_folder, running, _shutdown) =
        two_handshakes_at_a_time(&ours, &database, Duration::from_mins(10)).await;
    let mut stuck = Vec::new();
    for number in 0..8 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        if number % 2 == 0 {
            // The beginning of a record of TLS.
            stream.write_all(&[22, 3, 1]).await.unwrap();
        }
        stuck.push(stream);
    }
    let came = tokio::time::timeout(PATIENCE, comes_through(running.address, &ours, None)).await;
    assert!(came.expect("it waits for those who do not go on"));
}

fn call(process: &Process, believed: Option<&str>) -> Output {
    let mut command = binary();
    command.args(["servers", "list", "--endpoint"]).arg(format!("https://{}", process.address));
    if let Some(believed) = believed {
        command.args(["--tls-ca", believed]);
    }
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pair_keeps_the_one_before_and_the_command_line_speaks_tls() {
    let ours = Authority::new("ours");
    let folder = CertificateFolder::of(&ours.service());
    let authority = folder.write("authority.pem", &ours.pem);
    let (certificate, key) = (folder.path("service.pem"), folder.path("service.key"));
    let database = TestDatabase::create().await;
    let process = Process::start_on(
        database.url(),
        &["--tls-certificate", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()],
    );
    let believed = authority.to_str();
    let answer = call(&process, believed);
    assert_eq!(answer.status.code(), Some(0), "{answer:?}");
    // Those that browsers believe have not signed it.
    let unknown = call(&process, None);
    assert_eq!(unknown.status.code(), Some(5), "{unknown:?}");
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("UnknownIssuer"), "{unknown:?}");

    // The key of another certificate, and then no certificate at all.
    folder.write("service.key", &ours.service().key);
    process.said().wait_for("certificates changed and make no sense");
    assert_eq!(call(&process, believed).status.code(), Some(0));
    std::fs::remove_file(&certificate).unwrap();
    process.said().wait_for("certificates cannot be read");
    assert_eq!(call(&process, believed).status.code(), Some(0));
}
