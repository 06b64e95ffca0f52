//! Rate, errors and duration of every method.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use prost_reflect::DescriptorPool;
use tonic::{body::Body, codegen::http::Response};

use super::code_name::code_of;
use crate::proto::FILE_DESCRIPTOR_SET;

/// The methods of our services by their paths, with the names of service and method. Paths that callers make up are no labels, for each
/// would be a series of its own.
static METHODS: LazyLock<HashMap<String, (String, String)>> = LazyLock::new(|| {
    let Ok(pool) = DescriptorPool::decode(FILE_DESCRIPTOR_SET) else { return HashMap::new() };
    let methods = pool.services().flat_map(|service| {
        let named = |method: prost_reflect::MethodDescriptor| {
            let path = format!("/{}/{}", service.full_name(), method.name());
            (path, (service.name().to_owned(), method.name().to_owned()))
        };
        service.methods().map(named).collect::<Vec<_>>()
    });
    methods.collect()
});

/// A method of one of our services.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    service: &'static str,
    method: &'static str,
}

/// The method at a path; none where there is none of ours.
pub fn find(path: &str) -> Option<Method> {
    METHODS.get(path).map(|(service, method)| Method { service, method })
}

/// Counts an answer to a call of a method.
pub fn count(Method { service, method }: Method, response: &Response<Body>, duration: Duration) {
    metrics::counter!("allocator_rpc_requests_total",
        "service" => service, "method" => method, "code" => code_of(response))
    .increment(1);
    metrics::histogram!("allocator_rpc_duration_seconds", "service" => service, "method" => method)
        .record(duration);
}
