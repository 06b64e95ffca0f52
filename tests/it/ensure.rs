//! EnsureAllocation through a generated client: the case that started all this, and the rules of the contract.

use resource_allocator::proto::v1::{self, EnsureOutcome};

use crate::support::{TestService, error_info, server};

#[tokio::test(flavor = "multi_thread")]
async fn the_deploy_that_failed_gets_its_server_and_port() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("right")).await;
    client.register(v1::Server { status: v1::ServerStatus::Maintenance.into(), ..server("resting") }).await;
    let small = v1::Resources { ram_mb: Some(256), disk_mb: Some(512), cpu_millis: Some(100) };
    client.register(v1::Server { capacity: Some(small), ..server("small") }).await;

    let created = client.ensure("hello-world-bot", &[]).await.unwrap();
    assert_eq!(created.outcome(), EnsureOutcome::Created);
    let placement = created.placement.as_ref().unwrap();
    assert_eq!((placement.server_handle.as_str(), placement.server_address.as_str()), ("right", "192.0.2.1"));
    assert!(placement.server_admissible);
    let ports: Vec<_> = created.allocations.iter().map(|a| (a.module.as_str(), a.port)).collect();
    assert_eq!(ports, [("backend", 8000)]);

    let repeated = client.ensure("hello-world-bot", &[]).await.unwrap();
    assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
    assert_eq!((repeated.placement, repeated.allocations), (created.placement, created.allocations));

    let extended = client.ensure("hello-world-bot", &["backend", "frontend"]).await.unwrap();
    assert_eq!(extended.outcome(), EnsureOutcome::Extended);
    let ports: Vec<_> = extended.allocations.iter().map(|a| (a.module.as_str(), a.port)).collect();
    assert_eq!(ports, [("backend", 8000), ("frontend", 8001)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_inventory_is_told_as_such() {
    let mut service = TestService::start().await;
    let refused = service.client.ensure("hello-world-bot", &[]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let (reason, metadata) = error_info(&refused);
    assert_eq!((reason.as_str(), metadata["disposition"].as_str()), ("NO_SERVERS", "OPERATOR"));
}
