//! `GET /api/allocations/`: the list that callers poll who have no stub.
//!
//! It is `ListAllocations` in another dress: the same filters, rules, order and refusals, all pages in one.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::Uri,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use tonic::{Request, Status};

use super::{Http, status};
use crate::{
    api::{Fields, request_id::RequestId, status::ApiError, told},
    auth::Caller,
    proto::v1::{self, resource_allocator_server::ResourceAllocator as _},
};

/// How many allocations one read of the database takes.
const PAGE_SIZE: i32 = 1000;
/// How many one answer holds at the most. A list that lacks something would be read as if that were free, so more are refused.
const MAX_ALLOCATIONS: usize = 10_000;
const TOO_MANY: &str = "has more than 10000 allocations, which is too many for one answer; name a project_id too, or read pages with ListAllocations";

/// An allocation as these callers know it.
#[derive(Serialize)]
struct Allocation {
    id: String,
    project_id: String,
    /// The module.
    service_name: String,
    server_handle: String,
    /// The server's address; an IP address or a DNS name.
    server_ip: String,
    port: u32,
}

impl From<v1::Allocation> for Allocation {
    fn from(allocation: v1::Allocation) -> Self {
        Self {
            id: allocation.id,
            project_id: allocation.project_id,
            service_name: allocation.module,
            server_handle: allocation.server_handle,
            server_ip: allocation.server_address,
            port: allocation.port,
        }
    }
}

/// The allocations that pass every filter of the query, ordered by project and module.
pub(super) async fn list(
    State(http): State<Arc<Http>>,
    Extension(id): Extension<RequestId>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Response {
    match read(&http, &id, &caller, uri.query().unwrap_or_default()).await {
        Ok(allocations) => Json(allocations).into_response(),
        Err(refused) => status::response(&refused),
    }
}

async fn read(http: &Http, id: &RequestId, caller: &Caller, query: &str) -> Result<Vec<Allocation>, Status> {
    let refuse = |error: ApiError| http.api.refuse(&error, &id.0);
    let mut filters = filters(query).map_err(refuse)?;
    let mut allocations = Vec::new();
    loop {
        let mut request = Request::new(filters.clone());
        request.extensions_mut().insert(id.clone());
        request.extensions_mut().insert(caller.clone());
        let page = http.api.list_allocations(request).await?.into_inner();
        allocations.extend(page.allocations.into_iter().map(Allocation::from));
        if allocations.len() > MAX_ALLOCATIONS {
            return Err(refuse(ApiError::invalid("server_handle", TOO_MANY)));
        }
        if page.next_page_token.is_empty() {
            return Ok(allocations);
        }
        filters.page_token = page.next_page_token;
    }
}

/// Reads the filters. One that is there filters, also when it is empty or 0 (L31); whatever else is there is refused.
///
/// # Errors
/// What is wrong with the query.
pub fn filters(query: &str) -> Result<v1::ListAllocationsRequest, ApiError> {
    let mut fields = Fields::default();
    let mut request = v1::ListAllocationsRequest { page_size: PAGE_SIZE, ..Default::default() };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let filter = match name.as_ref() {
            "project_id" => &mut request.project_id,
            "server_handle" => &mut request.server_handle,
            "" => {
                fields.refuse("query", "has a parameter without a name");
                continue;
            }
            unknown => {
                fields.refuse(told(unknown), "is not a parameter; there are project_id and server_handle");
                continue;
            }
        };
        if filter.replace(value.into_owned()).is_some() {
            fields.refuse(name, "is there more than once");
        }
    }
    if request.project_id.is_none() && request.server_handle.is_none() {
        fields.refuse("project_id", "is missing, and so is server_handle; one of them must be there");
    }
    Ok(fields.finish(Some(request))?)
}
