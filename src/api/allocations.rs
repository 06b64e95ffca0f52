//! EnsureAllocation, ReleaseAllocation, ListAllocations, GetPlacement and FindServer.

use super::{Api, PageToken, call_notes, decode, encode, page_token, status::ApiError, token::filter_key};
use crate::{
    allocator::command::{EnsureAnswer, Outcome},
    domain::placement::{FoundServer, project_not_found},
    proto::v1,
    store::allocations::{AllocationFilter, AllocationRecord},
};

/// The most servers that are told of with `explain`.
const MAX_REJECTIONS: usize = 1000;

impl Api {
    pub(super) async fn ensure(
        &self,
        request: v1::EnsureAllocationRequest,
        request_id: String,
    ) -> Result<v1::EnsureAllocationResponse, ApiError> {
        let validate_only = request.validate_only;
        let (request, wait) = decode::ensure(request, self.default_strategy)?;
        // What waits in line, or is only looked at, is apart: every other call would carry room for it.
        let answer = match wait {
            _ if validate_only => Box::pin(self.allocator.preview(request)).await?,
            Some(wait) => {
                Box::pin(self.allocator.ensure_or_wait(&self.hub, request, wait, request_id)).await?
            }
            None => self.allocator.ensure(request, request_id).await?,
        };
        call_notes::note_outcome(in_a_word(answer.outcome));
        let mut response = self.ensured(&answer);
        if validate_only {
            encode::leave_out_what_is_not_written(response.placement.as_mut(), &mut response.allocations);
        }
        Ok(response)
    }

    pub(super) fn ensured(&self, answer: &EnsureAnswer) -> v1::EnsureAllocationResponse {
        let (placement, allocations) = encode::project(&answer.view);
        v1::EnsureAllocationResponse {
            outcome: encode::outcome(answer.outcome).into(),
            placement,
            allocations,
            resume_token: self.resume_token(answer.view.sequence),
        }
    }

    pub(super) async fn release(
        &self,
        request: v1::ReleaseAllocationRequest,
        request_id: String,
    ) -> Result<v1::ReleaseAllocationResponse, ApiError> {
        let request = decode::release(&request)?;
        let project_id = request.project_id.clone();
        let answer = self.allocator.release(request, request_id).await?;
        let released = answer.server.iter().flat_map(|(handle, address)| {
            answer.released.iter().map(|held| encode::allocation(&project_id, handle, address, held))
        });
        Ok(v1::ReleaseAllocationResponse {
            released: released.collect(),
            placement_removed: answer.placement_removed,
        })
    }

    pub(super) async fn list(
        &self,
        request: v1::ListAllocationsRequest,
        _request_id: String,
    ) -> Result<v1::ListAllocationsResponse, ApiError> {
        let mut fields = decode::Fields::default();
        let page_size = decode::page_size(&mut fields, request.page_size);
        if let Some(id) = &request.project_id {
            decode::project_id(&mut fields, "project_id", id);
        }
        if let Some(handle) = &request.server_handle {
            decode::handle(&mut fields, "server_handle", handle);
        }
        if let Some(module) = &request.module {
            fields.take("module", crate::domain::ModuleName::parse(module));
        }
        let filter_key =
            filter_key(&("allocations", &request.project_id, &request.server_handle, &request.module));
        let token = page_token(&self.tokens, &mut fields, &request.page_token, &filter_key);
        let after = token.as_ref().and_then(|token| match token.after.as_slice() {
            [project_id, module] => Some((project_id.clone(), module.clone())),
            _ => None,
        });
        let filter = AllocationFilter {
            project_id: request.project_id,
            server_handle: request.server_handle,
            module: request.module,
            after,
        };
        let filter = fields.finish(Some(filter))?;
        let listed = self.allocator.list_allocations(&filter, page_size).await?;
        // Whoever watches after the last page must not miss what happened while the pages were read.
        let (epoch, sequence) =
            token.map_or((listed.epoch, listed.sequence), |token| (token.epoch, token.sequence));
        let next_page_token = match listed.items.last() {
            Some(AllocationRecord { project_id, allocation, .. }) if listed.more => {
                self.tokens.seal(&PageToken {
                    filter: filter_key,
                    after: vec![project_id.to_string(), allocation.module.to_string()],
                    epoch,
                    sequence,
                })
            }
            _ => String::new(),
        };
        let allocations = listed.items.iter().map(|record| {
            encode::allocation(
                &record.project_id,
                &record.server_handle,
                &record.server_address,
                &record.allocation,
            )
        });
        Ok(v1::ListAllocationsResponse {
            allocations: allocations.collect(),
            next_page_token,
            resume_token: self.resume_token_of_list(epoch, sequence),
        })
    }

    pub(super) async fn placement(
        &self,
        request: v1::GetPlacementRequest,
        _request_id: String,
    ) -> Result<v1::GetPlacementResponse, ApiError> {
        let mut fields = decode::Fields::default();
        let id = decode::project_id(&mut fields, "project_id", &request.project_id);
        let id = fields.finish(id)?;
        let view = self.allocator.find_project(id.clone()).await?.ok_or_else(|| project_not_found(&id))?;
        let (placement, allocations) = encode::project(&view);
        Ok(v1::GetPlacementResponse {
            placement,
            allocations,
            resume_token: self.resume_token(view.sequence),
        })
    }

    pub(super) async fn find(
        &self,
        request: v1::FindServerRequest,
        _request_id: String,
    ) -> Result<v1::FindServerResponse, ApiError> {
        let explain = request.explain;
        let request = decode::find(request, self.default_strategy)?;
        let explanation = self.allocator.find_servers(&request).await?;
        if let Some(refusal) = explanation.refusal.clone().filter(|_| !explain) {
            return Err(refusal.into());
        }
        let rejected_by_reason = explanation
            .rejected_by_stage()
            .into_iter()
            .map(|(stage, count)| (stage.as_str().to_owned(), i32::try_from(count).unwrap_or(i32::MAX)))
            .collect();
        let told = if explain { MAX_REJECTIONS } else { 0 };
        let rejections = explanation.rejections.iter().take(told).map(|(handle, exclusion)| v1::Rejection {
            server_handle: handle.to_string(),
            reason: exclusion.stage().as_str().to_owned(),
            detail: exclusion.detail(),
        });
        Ok(v1::FindServerResponse {
            candidates: explanation.candidates.iter().map(candidate).collect(),
            rejections: rejections.collect(),
            rejected_by_reason,
        })
    }
}

/// An outcome for the log.
fn in_a_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Created => "created",
        Outcome::Extended => "extended",
        Outcome::Unchanged => "unchanged",
    }
}

fn candidate(found: &FoundServer) -> v1::Candidate {
    v1::Candidate {
        server: Some(encode::server_state(&found.state)),
        free: Some(encode::free(found.state.free())),
        score: found.score.measure(),
    }
}
