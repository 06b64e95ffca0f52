//! Which projects each request is about, for callers that are for some projects only. A request of a new RPC needs a line here to
//! compile.

use crate::{
    auth::{About, AboutProjects},
    proto::v1,
};

macro_rules! about {
    ($($request:ident($this:ident) => $about:expr,)*) => {
        $(impl AboutProjects for v1::$request {
            fn about(&self) -> About<'_> {
                let $this = self;
                $about
            }
        })*
    };
}

/// One project, or all where none is named.
fn filter(project_id: Option<&String>) -> About<'_> {
    project_id.map_or(About::EveryProject, |project_id| About::Project(project_id))
}

about! {
    EnsureAllocationRequest(this) => About::Project(&this.project_id),
    BatchEnsureAllocationsRequest(_this) => About::Each,
    ReleaseAllocationRequest(this) => About::Project(&this.project_id),
    ListAllocationsRequest(this) => filter(this.project_id.as_ref()),
    GetPlacementRequest(this) => About::Project(&this.project_id),
    FindServerRequest(_this) => About::Servers,
    ListWaitingRequest(this) => filter(this.project_id.as_ref()),
    RelocateProjectRequest(this) => About::Project(&this.project_id),
    ReportPortInUseRequest(this) => About::Project(&this.project_id),
    WatchAllocationsRequest(this) => filter(this.project_id.as_ref()),
    RegisterServerRequest(_this) => About::Servers,
    GetServerRequest(_this) => About::Servers,
    ListServersRequest(_this) => About::Servers,
    UpdateServerRequest(_this) => About::Servers,
    DeleteServerRequest(_this) => About::Servers,
    ReportUsageRequest(_this) => About::Servers,
    SyncServersRequest(_this) => About::Servers,
    DrainServerRequest(_this) => About::EveryProject,
    GetFleetPolicyRequest(_this) => About::Servers,
    UpdateFleetPolicyRequest(_this) => About::Servers,
}
