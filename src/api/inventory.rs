//! The RPCs of `ServerInventory`, but for DrainServer.

use super::{Api, PageToken, decode, encode, page_token, status::ApiError, token::filter_key};
use crate::{
    domain::inventory::{SyncAction, SyncPlan},
    proto::v1::{self, server_sync_result::Action},
    store::servers::ServerFilter,
};

impl Api {
    /// Registers a server of the file that is applied at start.
    ///
    /// # Errors
    /// What is wrong with it, or in its way.
    pub async fn register_at_start(&self, server: v1::Server) -> anyhow::Result<()> {
        let request = v1::RegisterServerRequest { server: Some(server) };
        let (spec, etag) = decode::register(request).map_err(|violations| {
            let told: Vec<_> = violations.iter().map(|v| format!("{} {}", v.field, v.description)).collect();
            anyhow::anyhow!("{}", told.join("; "))
        })?;
        self.allocator.register_server(spec, etag, "inventory-file".to_owned()).await?;
        Ok(())
    }

    pub(super) async fn register(
        &self,
        request: v1::RegisterServerRequest,
        request_id: String,
    ) -> Result<v1::RegisterServerResponse, ApiError> {
        let (spec, etag) = decode::register(request)?;
        let record = self.allocator.register_server(spec, etag, request_id).await?;
        Ok(v1::RegisterServerResponse { server: Some(encode::server(&record)) })
    }

    pub(super) async fn server(
        &self,
        request: v1::GetServerRequest,
        _request_id: String,
    ) -> Result<v1::GetServerResponse, ApiError> {
        let mut fields = decode::Fields::default();
        let handle = decode::handle(&mut fields, "handle", &request.handle);
        let handle = fields.finish(handle)?;
        let record = self.allocator.find_server(&handle).await?;
        Ok(v1::GetServerResponse { server: Some(encode::server(&record)) })
    }

    pub(super) async fn servers(
        &self,
        request: v1::ListServersRequest,
        _request_id: String,
    ) -> Result<v1::ListServersResponse, ApiError> {
        let mut fields = decode::Fields::default();
        let page_size = decode::page_size(&mut fields, request.page_size);
        let status = decode::status_filter(&mut fields, request.status);
        if !decode::is_legible(&request.label, 512) {
            fields.refuse(
                "label",
                "must be `key=value` or `key`, at most 512 characters, none of them hidden or a control character",
            );
        }
        let filter_key =
            filter_key(&("servers", request.status, request.managed, &request.label, &request.source));
        let token = page_token(&self.tokens, &mut fields, &request.page_token, &filter_key);
        let (label_key, label_value) = match request.label.split_once('=') {
            _ if request.label.is_empty() => (None, None),
            Some((key, value)) => (Some(key.to_owned()), Some(value.to_owned())),
            None => (Some(request.label.clone()), None),
        };
        if let Some(source) = &request.source {
            decode::source(&mut fields, "source", source);
        }
        let filter = ServerFilter {
            status,
            managed: request.managed,
            label_key,
            label_value,
            source: request.source,
            after: token.and_then(|token| token.after.into_iter().next()),
        };
        let filter = fields.finish(Some(filter))?;
        let listed = self.allocator.list_servers(&filter, page_size).await?;
        let next_page_token = match listed.items.last() {
            Some(record) if listed.more => self.tokens.seal(&PageToken {
                filter: filter_key,
                after: vec![record.row.state.server.handle.to_string()],
                epoch: listed.epoch,
                sequence: listed.sequence,
            }),
            _ => String::new(),
        };
        Ok(v1::ListServersResponse {
            servers: listed.items.iter().map(encode::server).collect(),
            next_page_token,
        })
    }

    pub(super) async fn update(
        &self,
        request: v1::UpdateServerRequest,
        request_id: String,
    ) -> Result<v1::UpdateServerResponse, ApiError> {
        let (handle, patch, etag) = decode::update(request)?;
        let record = self.allocator.update_server(handle, patch, etag, request_id).await?;
        Ok(v1::UpdateServerResponse { server: Some(encode::server(&record)) })
    }

    pub(super) async fn delete(
        &self,
        request: v1::DeleteServerRequest,
        request_id: String,
    ) -> Result<v1::DeleteServerResponse, ApiError> {
        let mut fields = decode::Fields::default();
        let handle = decode::handle(&mut fields, "handle", &request.handle);
        let handle = fields.finish(handle)?;
        self.allocator.delete_server(handle, decode::etag(request.etag), request_id).await?;
        Ok(v1::DeleteServerResponse {})
    }

    pub(super) async fn report(
        &self,
        request: v1::ReportUsageRequest,
        request_id: String,
    ) -> Result<v1::ReportUsageResponse, ApiError> {
        let (handle, observation) = decode::usage(request)?;
        let record = self.allocator.report_usage(handle, observation, request_id).await?;
        Ok(v1::ReportUsageResponse { server: Some(encode::server(&record)) })
    }

    pub(super) async fn sync(
        &self,
        request: v1::SyncServersRequest,
        request_id: String,
    ) -> Result<v1::SyncServersResponse, ApiError> {
        let validate_only = request.validate_only;
        let request = decode::sync(request)?;
        let plan = if validate_only {
            self.allocator.preview_sync(&request).await?
        } else {
            self.allocator.sync_servers(request, request_id).await?
        };
        Ok(synced(plan))
    }

    pub(super) async fn policy(
        &self,
        _request: v1::GetFleetPolicyRequest,
        _request_id: String,
    ) -> Result<v1::GetFleetPolicyResponse, ApiError> {
        let policy = self.allocator.policy().await?;
        Ok(v1::GetFleetPolicyResponse { policy: Some(encode::policy(&policy)) })
    }

    pub(super) async fn update_policy(
        &self,
        request: v1::UpdateFleetPolicyRequest,
        request_id: String,
    ) -> Result<v1::UpdateFleetPolicyResponse, ApiError> {
        let patch = decode::policy(request)?;
        let policy = self.allocator.update_policy(patch, request_id).await?;
        Ok(v1::UpdateFleetPolicyResponse { policy: Some(encode::policy(&policy)) })
    }
}

fn synced(plan: SyncPlan) -> v1::SyncServersResponse {
    let mut response = v1::SyncServersResponse::default();
    for (handle, action) in plan {
        let (count, action, detail) = match action {
            SyncAction::Created(_) => (&mut response.created, Action::Created, String::new()),
            SyncAction::Updated(_, fields) => (&mut response.updated, Action::Updated, fields.join(", ")),
            SyncAction::Unchanged => (&mut response.unchanged, Action::Unchanged, String::new()),
            SyncAction::MarkedMissing(_) => {
                (&mut response.marked_missing, Action::MarkedMissing, String::new())
            }
            SyncAction::Rejected(why) => (&mut response.rejected, Action::Rejected, why),
        };
        *count += 1;
        response.results.push(v1::ServerSyncResult {
            handle: handle.to_string(),
            action: action.into(),
            detail,
        });
    }
    response
}
