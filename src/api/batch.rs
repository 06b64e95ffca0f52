//! BatchEnsureAllocations: each request decoded, done and answered for itself.

use super::{
    Api, decode,
    status::{ApiError, to_message},
};
use crate::{
    auth::{AboutProjects as _, Caller, Denied},
    domain::request::EnsureRequest,
    proto::{
        rpc,
        v1::{self, batch_ensure_result::Result as Told},
    },
};

/// The most requests that one call takes.
const MAX_REQUESTS: usize = 1000;

impl Api {
    pub(super) async fn ensure_all(
        &self,
        request: v1::BatchEnsureAllocationsRequest,
        request_id: String,
        caller: Option<&Caller>,
    ) -> Result<v1::BatchEnsureAllocationsResponse, ApiError> {
        let mut fields = decode::Fields::default();
        if !(1..=MAX_REQUESTS).contains(&request.requests.len()) {
            fields.refuse("requests", format!("must be 1 to {MAX_REQUESTS}"));
        }
        let requests = fields.finish(Some(request.requests))?;
        let decoded: Vec<_> = requests.into_iter().map(|request| self.one_of_many(request, caller)).collect();
        let well_formed = decoded.iter().filter_map(|request| request.as_ref().ok()).cloned().collect();
        let mut answers = self.allocator.ensure_all(well_formed, &request_id).await?.into_iter();
        let results = decoded.into_iter().map(|request| {
            let told = match request {
                Ok(_) => answers.next().map(|answer| match answer {
                    Ok(answer) => Told::Response(self.ensured(&answer)),
                    Err(error) => Told::Status(self.refuse_one(&error.into(), &request_id)),
                }),
                Err(error) => Some(Told::Status(self.refuse_one(&error, &request_id))),
            };
            v1::BatchEnsureResult { result: told }
        });
        Ok(v1::BatchEnsureAllocationsResponse { results: results.collect() })
    }

    fn one_of_many(
        &self,
        request: v1::EnsureAllocationRequest,
        caller: Option<&Caller>,
    ) -> Result<EnsureRequest, ApiError> {
        caller.ok_or(Denied::NoCredentials)?.may_ask_about(request.about())?;
        let mut fields = decode::Fields::default();
        if request.validate_only {
            fields.refuse("validate_only", "is not offered in a batch; call EnsureAllocation");
        }
        if request.wait_for_capacity.is_some() {
            fields.refuse("wait_for_capacity", "is not offered in a batch; call EnsureAllocation");
        }
        fields.finish(Some(()))?;
        Ok(decode::ensure(request, self.default_strategy)?.0)
    }

    fn refuse_one(&self, error: &ApiError, request_id: &str) -> rpc::Status {
        to_message(&self.refuse(error, request_id))
    }
}
