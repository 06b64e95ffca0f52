//! BatchEnsureAllocations: each request as if it had come alone, in order.

use std::collections::BTreeSet;

use prost::Message as _;
use resource_allocator::proto::{
    rpc,
    v1::{
        self, BatchEnsureAllocationsRequest, EnsureAllocationRequest, EnsureOutcome,
        batch_ensure_result::Result as Told,
    },
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetail, StatusExt as _, pb};

use crate::support::{
    Client, TestService, error_info,
    inventory::assert_consistent,
    requests::{module, module_at, ports, ram, request},
    server, violations,
};

async fn ensure_all(
    client: &mut Client,
    requests: Vec<EnsureAllocationRequest>,
) -> Result<Vec<v1::BatchEnsureResult>, Status> {
    let answer =
        client.allocator.batch_ensure_allocations(BatchEnsureAllocationsRequest { requests }).await?;
    Ok(answer.into_inner().results)
}

fn done(result: &v1::BatchEnsureResult) -> &v1::EnsureAllocationResponse {
    match result.result.as_ref().unwrap() {
        Told::Response(response) => response,
        Told::Status(status) => panic!("it was done, not {status:?}"),
    }
}

/// The status as EnsureAllocation would have answered it.
fn refused(result: &v1::BatchEnsureResult) -> Status {
    match result.result.as_ref().unwrap() {
        Told::Status(status) => as_status(status),
        Told::Response(response) => panic!("it was refused, not {response:?}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "a caller makes a status of what it was sent")]
fn as_status(told: &rpc::Status) -> Status {
    let status = pb::Status::decode(told.encode_to_vec().as_slice()).unwrap();
    let details = Status::with_details(Code::from(told.code), &told.message, told.encode_to_vec().into());
    assert_eq!(status.code, told.code);
    assert!(details.get_error_details_vec().iter().any(|detail| matches!(detail, ErrorDetail::ErrorInfo(_))));
    details
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_answered_in_order_and_one_that_is_refused_fails_alone() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let requests = vec![
        EnsureAllocationRequest { modules: vec![module("api"), module("web")], ..request("blog") },
        EnsureAllocationRequest { resources: ram(1_000_000), ..request("giant") },
        EnsureAllocationRequest { project_id: "no good".to_owned(), ..Default::default() },
        EnsureAllocationRequest { modules: vec![module_at("api", 8000)], ..request("late") },
        request("shop"),
        // The same project once more: it finds what the first one left.
        EnsureAllocationRequest { modules: vec![module("web"), module("db")], ..request("blog") },
        request("shop"),
    ];
    let results = ensure_all(&mut service.client, requests.clone()).await.unwrap();
    assert_eq!(results.len(), requests.len());

    assert_eq!(done(&results[0]).outcome(), EnsureOutcome::Created);
    assert_eq!(ports(&done(&results[0]).allocations), [("api", 8000), ("web", 8001)]);
    assert_eq!(error_info(&refused(&results[1])).0, "REQUEST_EXCEEDS_FLEET");
    assert_eq!(violations(&refused(&results[2])), ["project_id"]);
    assert_eq!(error_info(&refused(&results[3])).0, "PORT_TAKEN");
    assert_eq!(ports(&done(&results[4]).allocations), [("backend", 8002)]);
    assert_eq!(done(&results[5]).outcome(), EnsureOutcome::Extended);
    assert_eq!(ports(&done(&results[5]).allocations), [("api", 8000), ("db", 8003), ("web", 8001)]);
    assert_eq!(done(&results[6]).outcome(), EnsureOutcome::Unchanged);
    assert_consistent(&service.database.sql).await;

    // A refusal is told as EnsureAllocation tells it.
    let alone = service.client.place(requests[1].clone()).await.unwrap_err();
    assert_eq!(refused(&results[1]).code(), alone.code());
    assert_eq!(refused(&results[1]).message(), alone.message());
    let told = |status: &Status| {
        let (reason, metadata) = error_info(status);
        (reason, metadata.into_keys().collect::<BTreeSet<_>>())
    };
    assert_eq!(told(&refused(&results[1])), told(&alone));

    // A repeat changes nothing and answers the same.
    let before = service.database.tables_but_log().await;
    let repeated = ensure_all(&mut service.client, vec![requests[0].clone(), request("shop")]).await.unwrap();
    assert_eq!(done(&repeated[0]).allocations, done(&results[5]).allocations);
    assert!(repeated.iter().all(|result| done(result).outcome() == EnsureOutcome::Unchanged));
    assert_eq!(service.database.tables_but_log().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_are_taken_and_no_more_and_not_none() {
    let mut service = TestService::start().await;
    let mut large = server("web-1");
    large.capacity =
        Some(v1::Resources { cpu_millis: Some(1), ram_mb: Some(1_000_000), disk_mb: Some(2_000_000) });
    service.client.register(large).await;
    for count in [0, 1001] {
        let requests = (0..count).map(|number| request(&format!("p-{number}"))).collect();
        assert_eq!(violations(&ensure_all(&mut service.client, requests).await.unwrap_err()), ["requests"]);
    }
    let requests: Vec<_> = (0..1000).map(|number| request(&format!("p-{number}"))).collect();
    let results = ensure_all(&mut service.client, requests).await.unwrap();
    for (number, result) in results.iter().enumerate() {
        let placement = done(result).placement.as_ref().unwrap();
        assert_eq!(placement.project_id, format!("p-{number}"));
        // In the order of the request, so that each has the lowest port that those before it left.
        assert_eq!(done(result).allocations[0].port, 8000 + u32::try_from(number).unwrap());
    }
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_does_not_offer_is_refused_by_name() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let requests = vec![
        EnsureAllocationRequest { validate_only: true, ..request("a") },
        EnsureAllocationRequest {
            wait_for_capacity: Some(pbjson_types::Duration::default()),
            ..request("b")
        },
        request("c"),
    ];
    let results = ensure_all(&mut service.client, requests).await.unwrap();
    assert_eq!(violations(&refused(&results[0])), ["validate_only"]);
    assert_eq!(violations(&refused(&results[1])), ["wait_for_capacity"]);
    done(&results[2]);
}

/// What was read before the first is done is not what the second finds.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_after_a_request_that_adds_something_is_answered_with_what_was_added() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    service.client.place(request("blog")).await.unwrap();
    let added = EnsureAllocationRequest { modules: vec![module("web")], ..request("blog") };
    let results = ensure_all(&mut service.client, vec![added, request("blog")]).await.unwrap();
    let [added, repeated] = &results[..] else { panic!("{results:?}") };
    assert_eq!(
        (done(added).outcome(), done(repeated).outcome()),
        (EnsureOutcome::Extended, EnsureOutcome::Unchanged)
    );
    assert_eq!(done(repeated).allocations, done(added).allocations);
    assert_eq!(done(repeated).placement, done(added).placement);
}
