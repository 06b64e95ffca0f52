//! `ListWaiting`.

use super::{Api, PageToken, decode, encode, page_token, status::ApiError, token::filter_key};
use crate::{domain::ServerHandle, proto::v1, store::waiters::WaiterRecord};

impl Api {
    pub(super) async fn waiting(
        &self,
        request: v1::ListWaitingRequest,
        _request_id: String,
    ) -> Result<v1::ListWaitingResponse, ApiError> {
        let mut fields = decode::Fields::default();
        let page_size = decode::page_size(&mut fields, request.page_size);
        let project_id =
            request.project_id.as_ref().and_then(|id| decode::project_id(&mut fields, "project_id", id));
        let filter_key = filter_key(&("waiting", &request.project_id));
        let token = page_token(&self.tokens, &mut fields, &request.page_token, &filter_key);
        let (project_id, token) = fields.finish(Some((project_id, token)))?;
        let after = token.as_ref().and_then(|token| token.after.first()?.parse().ok()).unwrap_or(0);
        let (listed, kept) = self.allocator.list_waiting(project_id.as_ref(), after, page_size).await?;
        let (epoch, sequence) =
            token.map_or((listed.epoch, listed.sequence), |token| (token.epoch, token.sequence));
        let next_page_token = match listed.items.last() {
            Some(record) if listed.more => self.tokens.seal(&PageToken {
                filter: filter_key,
                after: vec![record.waiter.arrival.to_string()],
                epoch,
                sequence,
            }),
            _ => String::new(),
        };
        let waiters = listed.items.iter().map(|record| {
            let kept = kept.as_ref().filter(|(id, _)| *id == record.waiter.project_id);
            waiter(record, kept.map(|(_, handle)| handle))
        });
        Ok(v1::ListWaitingResponse {
            waiters: waiters.collect(),
            next_page_token,
            resume_token: self.resume_token_of_list(epoch, sequence),
        })
    }
}

/// A place in line, and the server on which something is kept for it.
fn waiter(record: &WaiterRecord, kept: Option<&ServerHandle>) -> v1::Waiter {
    let waiter = &record.waiter;
    let requested = &waiter.request.requested;
    v1::Waiter {
        project_id: waiter.project_id.to_string(),
        place: u32::try_from(record.place).unwrap_or(u32::MAX),
        reason: waiter.reason.as_str().to_owned(),
        join_time: Some(encode::timestamp(waiter.since)),
        deadline: Some(encode::timestamp(waiter.deadline)),
        modules: requested.modules.iter().map(encode::module_spec).collect(),
        resources: Some(encode::resource_request(requested.resources)),
        server_handle: requested.server_handle.as_ref().map(ToString::to_string).unwrap_or_default(),
        server_selector: requested.selector.clone().into_iter().collect(),
        request_id: waiter.request_id.clone(),
        kept_server_handle: kept.map(ToString::to_string).unwrap_or_default(),
    }
}
