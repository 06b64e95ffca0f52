//! The gRPC edge: decode, call, encode. One line for each RPC here, its work in `allocations`, `batch`, `inventory`, `relocations`,
//! `waiting` and `watch`.
//!
//! `decode` and `encode` translate, `status` is the one place that names status codes.

mod about;
mod allocations;
mod batch;
mod call_notes;
pub mod code_name;
mod deadline;
pub mod decode;
mod encode;
mod error;
mod inventory;
pub mod prepared;
mod relocations;
pub mod request_id;
mod rpc_metrics;
pub mod status;
pub mod token;
pub mod transport_errors;
mod waiting;
mod watch;

use std::sync::Arc;

use tonic::{Request, Response, Status};
use uuid::Uuid;

pub use self::{
    decode::{Fields, is_hidden, told},
    status::DOMAIN,
};
use self::{
    status::{ApiError, to_status},
    token::{PageToken, ResumeToken, Tokens},
    watch::WatchResponses,
};
use crate::{
    allocator::{Allocator, Call},
    auth::{About, AboutProjects, Caller, Denied},
    domain::request::Strategy,
    events::Hub,
    proto::v1::{
        self, resource_allocator_server::ResourceAllocator, server_inventory_server::ServerInventory,
    },
};

/// Both services.
#[derive(Debug, Clone)]
pub struct Api {
    allocator: Allocator,
    hub: Hub,
    tokens: Arc<Tokens>,
    /// The one that the log was of at the start.
    epoch: Uuid,
    default_strategy: Strategy,
}

impl Api {
    /// The services over a running allocator. `epoch` is the history that the log is of at the start, `token_key` what
    /// signs its tokens.
    #[must_use]
    pub fn new(
        allocator: Allocator,
        hub: Hub,
        token_key: &[u8],
        epoch: Uuid,
        default_strategy: Strategy,
    ) -> Self {
        Self { allocator, hub, tokens: Arc::new(Tokens::new(token_key)), epoch, default_strategy }
    }

    /// The history that the log is of now: a backup may be restored under a running service.
    fn epoch(&self) -> Uuid {
        self.hub.epoch().unwrap_or(self.epoch)
    }

    /// Where a watch goes on after a list whose first page was as of a point of the log. Where that is another history by now, the
    /// watch is told so: what happened since the first page is not in it.
    fn resume_token_of_list(&self, epoch: Uuid, sequence: i64) -> String {
        self.tokens.seal(&ResumeToken { epoch, sequence })
    }

    fn resume_token(&self, sequence: i64) -> String {
        self.tokens.seal(&ResumeToken { epoch: self.epoch(), sequence })
    }

    /// Calls the work of an RPC, and turns its error into a status.
    async fn answer<Q: AboutProjects, A>(
        &self,
        request: Request<Q>,
        work: impl AsyncFnOnce(&Self, Q, String) -> Result<A, ApiError>,
    ) -> Result<Response<A>, Status> {
        let request_id = request_id::of(&request);
        // The gate has noted who calls. Where none was there, nobody is let in.
        let actor = request
            .extensions()
            .get::<Caller>()
            .ok_or(Denied::NoCredentials)
            .and_then(|caller| caller.may_ask_about(request.get_ref().about()).map(|()| caller.name().into()))
            .map_err(|denied| self.refuse(&denied.into(), &request_id))?;
        if let About::Project(project_id) = request.get_ref().about() {
            call_notes::note_project(project_id);
        }
        let trace = request.extensions().get::<request_id::CallTrace>().map(|trace| trace.0.clone());
        let trace = trace.unwrap_or_else(tracing::Span::none);
        let call = Call { actor, deadline: deadline::of(&request), trace };
        let answer = call.serve(work(self, request.into_inner(), request_id.clone())).await;
        answer.map(Response::new).map_err(|error| self.refuse(&error, &request_id))
    }

    /// The status of an error.
    #[must_use]
    pub fn refuse(&self, error: &ApiError, request_id: &str) -> Status {
        to_status(error, request_id, &self.tokens, Some(self.epoch()))
    }
}

/// Where a list goes on: the token of the page before, if it is of the same filters.
fn page_token(tokens: &Tokens, fields: &mut decode::Fields, token: &str, filter: &str) -> Option<PageToken> {
    if token.is_empty() {
        return None;
    }
    let token: PageToken = fields.take("page_token", tokens.open(token))?;
    if token.filter != filter {
        fields.refuse("page_token", "was made for other filters; repeat those of the first page");
        return None;
    }
    Some(token)
}

#[tonic::async_trait]
impl ResourceAllocator for Api {
    async fn ensure_allocation(
        &self,
        request: Request<v1::EnsureAllocationRequest>,
    ) -> Result<Response<v1::EnsureAllocationResponse>, Status> {
        self.answer(request, Self::ensure).await
    }

    async fn batch_ensure_allocations(
        &self,
        request: Request<v1::BatchEnsureAllocationsRequest>,
    ) -> Result<Response<v1::BatchEnsureAllocationsResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let work = async |api: &Self, message, id| api.ensure_all(message, id, caller.as_ref()).await;
        self.answer(request, work).await
    }

    async fn release_allocation(
        &self,
        request: Request<v1::ReleaseAllocationRequest>,
    ) -> Result<Response<v1::ReleaseAllocationResponse>, Status> {
        self.answer(request, Self::release).await
    }

    async fn list_allocations(
        &self,
        request: Request<v1::ListAllocationsRequest>,
    ) -> Result<Response<v1::ListAllocationsResponse>, Status> {
        self.answer(request, Self::list).await
    }

    async fn get_placement(
        &self,
        request: Request<v1::GetPlacementRequest>,
    ) -> Result<Response<v1::GetPlacementResponse>, Status> {
        self.answer(request, Self::placement).await
    }

    async fn find_server(
        &self,
        request: Request<v1::FindServerRequest>,
    ) -> Result<Response<v1::FindServerResponse>, Status> {
        self.answer(request, Self::find).await
    }

    async fn list_waiting(
        &self,
        request: Request<v1::ListWaitingRequest>,
    ) -> Result<Response<v1::ListWaitingResponse>, Status> {
        self.answer(request, Self::waiting).await
    }

    async fn relocate_project(
        &self,
        request: Request<v1::RelocateProjectRequest>,
    ) -> Result<Response<v1::RelocateProjectResponse>, Status> {
        self.answer(request, Self::relocate).await
    }

    async fn report_port_in_use(
        &self,
        request: Request<v1::ReportPortInUseRequest>,
    ) -> Result<Response<v1::ReportPortInUseResponse>, Status> {
        self.answer(request, Self::port_in_use).await
    }

    type WatchAllocationsStream = WatchResponses;

    async fn watch_allocations(
        &self,
        request: Request<v1::WatchAllocationsRequest>,
    ) -> Result<Response<WatchResponses>, Status> {
        Ok(self.answer(request, Self::watch).await?.into_inner().into_response())
    }
}

#[tonic::async_trait]
impl ServerInventory for Api {
    async fn register_server(
        &self,
        request: Request<v1::RegisterServerRequest>,
    ) -> Result<Response<v1::RegisterServerResponse>, Status> {
        self.answer(request, Self::register).await
    }

    async fn get_server(
        &self,
        request: Request<v1::GetServerRequest>,
    ) -> Result<Response<v1::GetServerResponse>, Status> {
        self.answer(request, Self::server).await
    }

    async fn list_servers(
        &self,
        request: Request<v1::ListServersRequest>,
    ) -> Result<Response<v1::ListServersResponse>, Status> {
        self.answer(request, Self::servers).await
    }

    async fn update_server(
        &self,
        request: Request<v1::UpdateServerRequest>,
    ) -> Result<Response<v1::UpdateServerResponse>, Status> {
        self.answer(request, Self::update).await
    }

    async fn delete_server(
        &self,
        request: Request<v1::DeleteServerRequest>,
    ) -> Result<Response<v1::DeleteServerResponse>, Status> {
        self.answer(request, Self::delete).await
    }

    async fn report_usage(
        &self,
        request: Request<v1::ReportUsageRequest>,
    ) -> Result<Response<v1::ReportUsageResponse>, Status> {
        self.answer(request, Self::report).await
    }

    async fn drain_server(
        &self,
        request: Request<v1::DrainServerRequest>,
    ) -> Result<Response<v1::DrainServerResponse>, Status> {
        self.answer(request, Self::drain).await
    }

    async fn get_fleet_policy(
        &self,
        request: Request<v1::GetFleetPolicyRequest>,
    ) -> Result<Response<v1::GetFleetPolicyResponse>, Status> {
        self.answer(request, Self::policy).await
    }

    async fn update_fleet_policy(
        &self,
        request: Request<v1::UpdateFleetPolicyRequest>,
    ) -> Result<Response<v1::UpdateFleetPolicyResponse>, Status> {
        self.answer(request, Self::update_policy).await
    }

    async fn sync_servers(
        &self,
        request: Request<v1::SyncServersRequest>,
    ) -> Result<Response<v1::SyncServersResponse>, Status> {
        self.answer(request, Self::sync).await
    }
}
