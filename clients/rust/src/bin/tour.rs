//! A deploy worker's first steps: place a project, repeat, read a refusal, give everything back.

use std::{env, error::Error, time::Duration};

use resource_allocator_clients::v1::{
    EnsureAllocationRequest, EnsureAllocationResponse, ModuleSpec, ReleaseAllocationRequest, Resources,
    resource_allocator_client::ResourceAllocatorClient,
};
use tonic::transport::Endpoint;
use tonic_types::StatusExt as _;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = env::var("RESOURCE_ALLOCATOR_ENDPOINT").unwrap_or("http://127.0.0.1:50051".to_owned());
    let channel = Endpoint::from_shared(endpoint)?.timeout(Duration::from_secs(10)).connect().await?;
    let mut allocator = ResourceAllocatorClient::new(channel);

    let request = EnsureAllocationRequest {
        project_id: "rust-tour".to_owned(),
        modules: vec![ModuleSpec { name: "backend".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    show(&allocator.ensure_allocation(request.clone()).await?.into_inner());
    // A lost answer is harmless: the same call again gives the same.
    show(&allocator.ensure_allocation(request).await?.into_inner());

    let too_big = EnsureAllocationRequest {
        project_id: "too-big".to_owned(),
        resources: Some(Resources { ram_mb: Some(99_999_999), ..Default::default() }),
        ..Default::default()
    };
    if let Err(refused) = allocator.ensure_allocation(too_big).await {
        // Every refusal has an ErrorInfo; its metadata says what kind of act is needed.
        let info = refused.get_details_error_info().ok_or("a refusal without its reason")?;
        println!("refused: {}, disposition {}", info.reason, info.metadata["disposition"]);
    }

    let release = ReleaseAllocationRequest { project_id: "rust-tour".to_owned(), ..Default::default() };
    for allocation in allocator.release_allocation(release).await?.into_inner().released {
        println!("gave back {}:{}", allocation.server_address, allocation.port);
    }
    Ok(())
}

fn show(answer: &EnsureAllocationResponse) {
    let server = answer.placement.as_ref().map_or("no server", |placement| &placement.server_handle);
    println!("{} on {server}", answer.outcome().as_str_name());
    for allocation in &answer.allocations {
        println!("  {}: {}:{}", allocation.module, allocation.server_address, allocation.port);
    }
}
