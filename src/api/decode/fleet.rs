//! The requests of `ServerInventory` that are about more than one server's own fields: drains and the policy.

use std::ops::RangeInclusive;

use super::{
    FieldViolation, Fields,
    allocations::{page_size, strategy},
    fields::{handle, percentages, resources},
};
use crate::{
    allocator::relocations::DrainRequest,
    domain::{
        policy::{MAX_OVERCOMMIT_PERCENT, MIN_OVERCOMMIT_PERCENT, PolicyPatch},
        request::Strategy,
    },
    proto::v1,
};

/// What an over-commit may be.
pub(super) const OVERCOMMIT: RangeInclusive<i64> = MIN_OVERCOMMIT_PERCENT..=MAX_OVERCOMMIT_PERCENT;

/// A drain, but for `validate_only`.
///
/// # Errors
/// Every bad field.
pub fn drain(
    request: &v1::DrainServerRequest,
    default: Strategy,
) -> Result<DrainRequest, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let handle = handle(&mut fields, "handle", &request.handle);
    let strategy = strategy(&mut fields, request.strategy, default);
    let limit = usize::try_from(page_size(&mut fields, request.page_size)).unwrap_or_default();
    fields.finish(handle.map(|server_handle| DrainRequest { server_handle, strategy, limit }))
}

/// A change of the policy.
///
/// # Errors
/// Every bad field.
pub fn policy(request: v1::UpdateFleetPolicyRequest) -> Result<PolicyPatch, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let Some(policy) = request.policy else {
        fields.refuse("policy", "must be set");
        return fields.finish(None);
    };
    let patch = PolicyPatch {
        headroom: resources(&mut fields, "policy.default_headroom", policy.default_headroom),
        headroom_percent: percentages(
            &mut fields,
            "policy.default_headroom_percent",
            policy.default_headroom_percent,
            0..=100,
        ),
        overcommit_percent: percentages(
            &mut fields,
            "policy.overcommit_percent",
            policy.overcommit_percent,
            OVERCOMMIT,
        ),
    };
    if patch == PolicyPatch::default() {
        fields.refuse("policy", "must set at least one figure");
    }
    fields.finish(Some(patch))
}
