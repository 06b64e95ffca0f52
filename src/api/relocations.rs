//! RelocateProject, ReportPortInUse and DrainServer.

use super::{
    Api, decode, encode,
    status::{ApiError, told_beside},
};
use crate::{
    allocator::{Error, command::RelocateAnswer},
    domain::ProjectId,
    proto::v1,
};

impl Api {
    pub(super) async fn relocate(
        &self,
        request: v1::RelocateProjectRequest,
        request_id: String,
    ) -> Result<v1::RelocateProjectResponse, ApiError> {
        let validate_only = request.validate_only;
        let request = decode::relocate(&request, self.default_strategy)?;
        let answer = if validate_only {
            self.allocator.preview_relocation(&request).await?
        } else {
            self.allocator.relocate(request, request_id).await?
        };
        let (mut placement, mut allocations) = encode::project(&answer.view);
        if validate_only {
            encode::leave_out_what_is_not_written(placement.as_mut(), &mut allocations);
        }
        Ok(v1::RelocateProjectResponse {
            moved: answer.from_server_handle.is_some(),
            from_server_handle: answer.from_server_handle.map(String::from).unwrap_or_default(),
            placement,
            allocations,
            resume_token: self.resume_token(answer.view.sequence),
        })
    }

    pub(super) async fn port_in_use(
        &self,
        request: v1::ReportPortInUseRequest,
        request_id: String,
    ) -> Result<v1::ReportPortInUseResponse, ApiError> {
        let report = decode::port_in_use(request)?;
        let module = report.module.clone();
        let answer = self.allocator.report_port_in_use(report, request_id).await?;
        let (placement, allocations) = encode::project(&answer.view);
        Ok(v1::ReportPortInUseResponse {
            replaced: answer.set_aside_until.is_some(),
            allocation: allocations.into_iter().find(|held| held.module == module.as_str()),
            set_aside_until: answer.set_aside_until.map(encode::timestamp),
            placement,
            resume_token: self.resume_token(answer.view.sequence),
        })
    }

    pub(super) async fn drain(
        &self,
        request: v1::DrainServerRequest,
        request_id: String,
    ) -> Result<v1::DrainServerResponse, ApiError> {
        let validate_only = request.validate_only;
        let request = decode::drain(&request, self.default_strategy)?;
        let drained = if validate_only {
            self.allocator.plan_drain(&request).await?
        } else {
            self.allocator.drain(request, &request_id).await?
        };
        let results: Vec<_> = drained
            .projects
            .into_iter()
            .map(|(id, moved)| match moved {
                Ok(answer) => drain_result(&answer, validate_only),
                Err(error) => stays(&id, &error),
            })
            .collect();
        let moved_count = results.iter().filter(|result| result.moved).count();
        Ok(v1::DrainServerResponse {
            moved_count: u32::try_from(moved_count).unwrap_or(u32::MAX),
            remaining_count: u32::try_from(drained.remaining).unwrap_or(0),
            results,
        })
    }
}

fn drain_result(answer: &RelocateAnswer, planned: bool) -> v1::DrainResult {
    let (mut placement, mut allocations) = encode::project(&answer.view);
    if planned {
        encode::leave_out_what_is_not_written(placement.as_mut(), &mut allocations);
    }
    let placement = placement.unwrap_or_default();
    v1::DrainResult {
        project_id: placement.project_id,
        moved: answer.from_server_handle.is_some(),
        server_handle: placement.server_handle,
        allocations,
        ..v1::DrainResult::default()
    }
}

/// A project that stays, with what its own relocation would have been told.
fn stays(id: &ProjectId, error: &Error) -> v1::DrainResult {
    let (reason, disposition, message) = told_beside(error);
    v1::DrainResult {
        project_id: id.to_string(),
        reason: reason.to_owned(),
        disposition: encode::disposition(disposition).into(),
        message,
        ..v1::DrainResult::default()
    }
}
