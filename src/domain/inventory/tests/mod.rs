//! Writes of the inventory, and the sync of a source's list.

mod guards;
mod specs_and_patches;
mod syncs;

use super::*;
use crate::domain::{
    Disposition, ResourceRequest,
    testing::{Ledger, NOW, TestServer, a_fleet, a_report, a_server, an_ensure, handle, ram, range},
};

/// The spec that leaves everything of the server as it is described, but for what stands on its own.
fn spec(server: TestServer) -> ServerSpec {
    let Server {
        handle,
        address,
        labels,
        capacity,
        headroom,
        overcommit_percent,
        port_range,
        excluded_ports,
        source,
        external_id,
        ..
    } = server.server;
    ServerSpec {
        handle,
        address,
        status: None,
        managed: None,
        labels,
        capacity,
        headroom,
        overcommit_percent,
        port_range,
        excluded_ports,
        source,
        external_id,
        seed: None,
        etag: None,
    }
}

/// A server of the source `cloud`.
fn listed(name: &str, external_id: &str) -> TestServer {
    a_server(name).listed_by("cloud", Some(external_id))
}

fn list(servers: impl IntoIterator<Item = ServerSpec>) -> SyncRequest {
    SyncRequest {
        source: "cloud".to_owned(),
        servers: servers.into_iter().collect(),
        allow_mass_missing: false,
    }
}

fn missing(server: TestServer, before: Option<ServerStatus>) -> TestServer {
    let mut server = server.status(ServerStatus::Missing);
    server.server.status_before_missing = before;
    server
}

/// The kind of each action, by handle.
fn kinds(plan: &SyncPlan) -> Vec<(&str, &'static str)> {
    let kind = |action: &SyncAction| match action {
        SyncAction::Created(_) => "created",
        SyncAction::Updated(..) => "updated",
        SyncAction::Unchanged => "unchanged",
        SyncAction::MarkedMissing(_) => "missing",
        SyncAction::Rejected(_) => "rejected",
    };
    plan.iter().map(|(handle, action)| (handle.as_str(), kind(action))).collect()
}

fn updated(plan: &SyncPlan, name: &str) -> (Server, Vec<&'static str>) {
    match &plan[&handle(name)] {
        SyncAction::Updated(server, fields) => (server.clone(), fields.clone()),
        other => panic!("not updated: {other:?}"),
    }
}
