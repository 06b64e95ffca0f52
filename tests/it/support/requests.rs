//! Requests that are all default but for what a test is about, and the calls that take them.

use std::collections::HashMap;

use resource_allocator::proto::v1;
use tonic::{Response, Status};

use super::Client;

/// An ensure of a project that asks for nothing in particular.
pub fn request(project_id: &str) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { project_id: project_id.to_owned(), ..Default::default() }
}

/// So many seconds.
pub fn seconds(seconds: i64) -> pbjson_types::Duration {
    pbjson_types::Duration { seconds, nanos: 0 }
}

/// An ensure with a lease of so many seconds; for good with none.
pub fn leased(project_id: &str, ttl: i64) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { ttl: Some(seconds(ttl)), ..request(project_id) }
}

/// The search that asks for what an ensure does.
pub fn find_like(request: &v1::EnsureAllocationRequest) -> v1::FindServerRequest {
    v1::FindServerRequest {
        resources: request.resources,
        server_selector: request.server_selector.clone(),
        modules: request.modules.clone(),
        start_port: request.start_port,
        strategy: request.strategy,
        ..Default::default()
    }
}

/// A module without wishes.
pub fn module(name: &str) -> v1::ModuleSpec {
    v1::ModuleSpec { name: name.to_owned(), ..Default::default() }
}

/// A module that wants this port.
pub fn module_at(name: &str, port: u32) -> v1::ModuleSpec {
    v1::ModuleSpec { port: Some(port), ..module(name) }
}

/// A module that speaks UDP.
pub fn udp(name: &str) -> v1::ModuleSpec {
    v1::ModuleSpec { protocol: v1::Protocol::Udp.into(), ..module(name) }
}

/// So much memory, the rest unset.
#[expect(clippy::unnecessary_wraps, reason = "as the field of a message takes it")]
pub fn ram(ram_mb: u64) -> Option<v1::Resources> {
    Some(v1::Resources { ram_mb: Some(ram_mb), ..Default::default() })
}

/// All three amounts.
#[expect(clippy::unnecessary_wraps, reason = "as the field of a message takes it")]
pub fn resources(cpu_millis: u32, ram_mb: u64, disk_mb: u64) -> Option<v1::Resources> {
    Some(v1::Resources { cpu_millis: Some(cpu_millis), ram_mb: Some(ram_mb), disk_mb: Some(disk_mb) })
}

/// A policy that lets so much RAM be reserved of each hundred, and leaves the rest.
pub fn ram_overcommit(percent: u32) -> v1::FleetPolicy {
    v1::FleetPolicy {
        overcommit_percent: Some(v1::Percentages { ram: Some(percent), ..Default::default() }),
        ..Default::default()
    }
}

/// A move of a project to wherever is best.
pub fn away(project_id: &str) -> v1::RelocateProjectRequest {
    v1::RelocateProjectRequest { project_id: project_id.to_owned(), ..Default::default() }
}

/// A move that a repeat does not make again.
pub fn away_from(project_id: &str, from: &str) -> v1::RelocateProjectRequest {
    v1::RelocateProjectRequest { from_server_handle: Some(from.to_owned()), ..away(project_id) }
}

/// Labels, of a server or of a selector.
pub fn labels<M: FromIterator<(String, String)>>(pairs: &[(&str, &str)]) -> M {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Each module with its port, in the order of the answer.
pub fn ports(allocations: &[v1::Allocation]) -> Vec<(&str, u32)> {
    allocations.iter().map(|allocation| (allocation.module.as_str(), allocation.port)).collect()
}

/// The server that an ensure answered.
pub fn handle(answer: &v1::EnsureAllocationResponse) -> &str {
    &answer.placement.as_ref().unwrap().server_handle
}

/// Metadata without what differs from call to call.
pub fn figures(mut metadata: HashMap<String, String>) -> HashMap<String, String> {
    assert!(metadata.remove("request_id").is_some_and(|id| !id.is_empty()));
    if let Some(age) = metadata.remove("usage_age_s") {
        assert!(age.parse::<u64>().is_ok(), "{age}");
    }
    metadata
}

impl Client {
    /// Ensures what the request says.
    pub async fn place(
        &mut self,
        request: v1::EnsureAllocationRequest,
    ) -> Result<v1::EnsureAllocationResponse, Status> {
        self.allocator.ensure_allocation(request).await.map(Response::into_inner)
    }

    /// Looks for servers.
    pub async fn find(&mut self, request: v1::FindServerRequest) -> Result<v1::FindServerResponse, Status> {
        self.allocator.find_server(request).await.map(Response::into_inner)
    }

    /// Lists allocations.
    pub async fn list(
        &mut self,
        request: v1::ListAllocationsRequest,
    ) -> Result<v1::ListAllocationsResponse, Status> {
        self.allocator.list_allocations(request).await.map(Response::into_inner)
    }

    /// Reads a placement.
    pub async fn placement(&mut self, project_id: &str) -> Result<v1::GetPlacementResponse, Status> {
        let request = v1::GetPlacementRequest { project_id: project_id.to_owned() };
        self.allocator.get_placement(request).await.map(Response::into_inner)
    }

    /// Releases these modules, or all of them, which must work.
    pub async fn release(&mut self, project_id: &str, modules: &[&str]) -> v1::ReleaseAllocationResponse {
        let modules = modules.iter().map(|name| (*name).to_owned()).collect();
        let request = v1::ReleaseAllocationRequest { project_id: project_id.to_owned(), modules };
        self.allocator.release_allocation(request).await.unwrap().into_inner()
    }

    /// Changes fields of a server, which must work.
    pub async fn update(&mut self, server: v1::Server, paths: &[&str]) -> v1::Server {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = v1::UpdateServerRequest {
            server: Some(server),
            update_mask: Some(pbjson_types::FieldMask { paths }),
        };
        self.inventory.update_server(request).await.unwrap().into_inner().server.unwrap()
    }

    /// Sets a server's status, which must work.
    pub async fn set_status(&mut self, handle: &str, status: v1::ServerStatus) {
        let server = v1::Server { handle: handle.to_owned(), status: status.into(), ..Default::default() };
        self.update(server, &["status"]).await;
    }

    /// Reports usage, which must work.
    pub async fn report(&mut self, handle: &str, usage: v1::Usage) -> v1::Server {
        let request = v1::ReportUsageRequest { handle: handle.to_owned(), usage: Some(usage) };
        self.inventory.report_usage(request).await.unwrap().into_inner().server.unwrap()
    }

    /// Moves a project.
    pub async fn relocate(
        &mut self,
        request: v1::RelocateProjectRequest,
    ) -> Result<v1::RelocateProjectResponse, Status> {
        self.allocator.relocate_project(request).await.map(Response::into_inner)
    }

    /// Empties a server, which must work.
    pub async fn drain(&mut self, request: v1::DrainServerRequest) -> v1::DrainServerResponse {
        self.inventory.drain_server(request).await.unwrap().into_inner()
    }

    /// Reports a module's port as used by something else.
    pub async fn port_in_use(
        &mut self,
        project_id: &str,
        module: &str,
        port: u32,
    ) -> Result<v1::ReportPortInUseResponse, Status> {
        let request = v1::ReportPortInUseRequest {
            project_id: project_id.to_owned(),
            module: module.to_owned(),
            port,
            detail: "nginx listens".to_owned(),
            start_port: None,
        };
        self.allocator.report_port_in_use(request).await.map(Response::into_inner)
    }

    /// The fleet's policy.
    pub async fn policy(&mut self) -> v1::FleetPolicy {
        let answer = self.inventory.get_fleet_policy(v1::GetFleetPolicyRequest {}).await;
        answer.unwrap().into_inner().policy.unwrap()
    }

    /// Changes the fleet's policy.
    pub async fn set_policy(&mut self, policy: v1::FleetPolicy) -> Result<v1::FleetPolicy, Status> {
        let request = v1::UpdateFleetPolicyRequest { policy: Some(policy) };
        let answer = self.inventory.update_fleet_policy(request).await?;
        Ok(answer.into_inner().policy.unwrap())
    }
}
