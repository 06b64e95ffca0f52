//! The steps of a scenario, played: calls by generated stubs, and what comes compared with what is expected.

use std::{error::Error, str::FromStr as _, time::Duration};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use prost_types::FileDescriptorSet;
use resource_allocator_clients::{
    FILE_DESCRIPTOR_SET,
    v1::{
        resource_allocator_client::ResourceAllocatorClient, server_inventory_client::ServerInventoryClient,
    },
};
use serde::Serialize;
use serde_json::{Value, json};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{MetadataKey, MetadataValue},
    transport::Channel,
};
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::{Step, matcher::Matcher};

const DEADLINE: Duration = Duration::from_secs(30);

/// Why a step fails, or why a call was refused.
enum Problem {
    Refused(Box<Status>),
    Unexpected(String),
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<String> for Problem {
    fn from(problem: String) -> Self {
        Self::Unexpected(problem)
    }
}

pub struct Runner {
    health: HealthClient<Channel>,
    allocator: ResourceAllocatorClient<Channel>,
    inventory: ServerInventoryClient<Channel>,
    descriptors: DescriptorPool,
    matcher: Matcher,
}

impl Runner {
    pub fn new(channel: Channel) -> Result<Self, Box<dyn Error>> {
        let mut descriptors = DescriptorPool::decode(FILE_DESCRIPTOR_SET)?;
        descriptors.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)?;
        // A status that is part of an answer has its details packed. The status itself is in our set already, by another path.
        let mut details = FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?;
        details.file.retain(|file| file.name() != "status.proto");
        descriptors.add_file_descriptor_set(details)?;
        Ok(Self {
            health: HealthClient::new(channel.clone()),
            allocator: ResourceAllocatorClient::new(channel.clone()),
            inventory: ServerInventoryClient::new(channel),
            descriptors,
            matcher: Matcher::default(),
        })
    }

    pub async fn play(&mut self, step: &Step) -> Result<(), String> {
        match (self.call(step).await, &step.refused) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(_)) => Err("it was not refused".to_owned()),
            (Err(Problem::Unexpected(problem)), _) => Err(problem),
            (Err(Problem::Refused(status)), None) => Err(format!("refused: {status:?}")),
            (Err(Problem::Refused(status)), Some(pattern)) => {
                let mut pattern = pattern.clone();
                if pattern.get("reason").is_some() {
                    pattern["domain"] = json!("resourceallocator");
                }
                self.matcher.check("refused", &pattern, Some(&refusal(&status)))
            }
        }
    }

    async fn call(&mut self, step: &Step) -> Result<(), Problem> {
        let path =
            step.call.as_ref().or(step.stream.as_ref()).ok_or_else(|| "no method is named".to_owned())?;
        let method = self.method(path).ok_or_else(|| format!("there is no method {path}"))?;
        let told = self.matcher.resolve(&step.request)?;
        macro_rules! unary {
            ($client:ident, $call:ident) => {{
                let request = sent(step, &method, &told)?;
                let answer = self.$client.$call(request).await?.into_inner();
                let pattern = step.answer.as_ref().unwrap_or(&Value::Null);
                Ok(self.matcher.check("answer", pattern, Some(&json_of(&method.output(), &answer)?))?)
            }};
        }
        macro_rules! streaming {
            ($client:ident, $call:ident) => {{
                let request = sent(step, &method, &told)?;
                let stream = self.$client.$call(request).await?.into_inner();
                self.read(step, stream, &method.output()).await
            }};
        }
        match path.as_str() {
            "grpc.health.v1.Health/Check" => unary!(health, check),
            "grpc.health.v1.Health/Watch" => streaming!(health, watch),
            "resourceallocator.v1.ResourceAllocator/EnsureAllocation" => unary!(allocator, ensure_allocation),
            "resourceallocator.v1.ResourceAllocator/BatchEnsureAllocations" => {
                unary!(allocator, batch_ensure_allocations)
            }
            "resourceallocator.v1.ResourceAllocator/ReleaseAllocation" => {
                unary!(allocator, release_allocation)
            }
            "resourceallocator.v1.ResourceAllocator/ListAllocations" => unary!(allocator, list_allocations),
            "resourceallocator.v1.ResourceAllocator/GetPlacement" => unary!(allocator, get_placement),
            "resourceallocator.v1.ResourceAllocator/FindServer" => unary!(allocator, find_server),
            "resourceallocator.v1.ResourceAllocator/ListWaiting" => unary!(allocator, list_waiting),
            "resourceallocator.v1.ResourceAllocator/RelocateProject" => unary!(allocator, relocate_project),
            "resourceallocator.v1.ResourceAllocator/ReportPortInUse" => unary!(allocator, report_port_in_use),
            "resourceallocator.v1.ResourceAllocator/WatchAllocations" => {
                streaming!(allocator, watch_allocations)
            }
            "resourceallocator.v1.ServerInventory/RegisterServer" => unary!(inventory, register_server),
            "resourceallocator.v1.ServerInventory/GetServer" => unary!(inventory, get_server),
            "resourceallocator.v1.ServerInventory/ListServers" => unary!(inventory, list_servers),
            "resourceallocator.v1.ServerInventory/UpdateServer" => unary!(inventory, update_server),
            "resourceallocator.v1.ServerInventory/DeleteServer" => unary!(inventory, delete_server),
            "resourceallocator.v1.ServerInventory/ReportUsage" => unary!(inventory, report_usage),
            "resourceallocator.v1.ServerInventory/SyncServers" => unary!(inventory, sync_servers),
            "resourceallocator.v1.ServerInventory/DrainServer" => unary!(inventory, drain_server),
            "resourceallocator.v1.ServerInventory/GetFleetPolicy" => unary!(inventory, get_fleet_policy),
            "resourceallocator.v1.ServerInventory/UpdateFleetPolicy" => {
                unary!(inventory, update_fleet_policy)
            }
            path => Err(format!("there is no stub of {path}").into()),
        }
    }

    fn method(&self, path: &str) -> Option<MethodDescriptor> {
        let (service, name) = path.split_once('/')?;
        self.descriptors.get_service_by_name(service)?.methods().find(|method| method.name() == name)
    }

    /// Each pattern is for the next message, bookmarks left out where the pattern has none. The stream is cancelled when it is dropped.
    async fn read<M: Message>(
        &mut self,
        step: &Step,
        mut stream: Streaming<M>,
        descriptor: &MessageDescriptor,
    ) -> Result<(), Problem> {
        if step.messages.is_empty() {
            stream.message().await?;
        }
        for (number, pattern) in step.messages.iter().enumerate() {
            let message = loop {
                let message = stream.message().await?.ok_or_else(|| "the stream ended".to_owned())?;
                let message = json_of(descriptor, &message)?;
                if message.get("bookmark").is_none() || pattern.get("bookmark").is_some() {
                    break message;
                }
            };
            self.matcher.check(&format!("messages[{number}]"), pattern, Some(&message))?;
        }
        Ok(())
    }
}

/// A request with the message that the JSON tells.
fn sent<M: Message + Default>(
    step: &Step,
    method: &MethodDescriptor,
    told: &Value,
) -> Result<Request<M>, String> {
    let message = DynamicMessage::deserialize(method.input(), told)
        .map_err(|error| format!("the request is not its message: {error}"))?;
    let mut request = Request::new(message.transcode_to().map_err(|error| error.to_string())?);
    request.set_timeout(DEADLINE);
    for (name, value) in &step.headers {
        let name = MetadataKey::from_str(name).map_err(|error| format!("{name}: {error}"))?;
        let value = MetadataValue::from_str(value).map_err(|error| format!("{value}: {error}"))?;
        request.metadata_mut().insert(name, value);
    }
    Ok(request)
}

/// The JSON of a message.
fn json_of(descriptor: &MessageDescriptor, message: &impl Message) -> Result<Value, String> {
    let mut told = DynamicMessage::new(descriptor.clone());
    told.transcode_from(message).map_err(|error| error.to_string())?;
    serde_json::to_value(told).map_err(|error| error.to_string())
}

/// A refusal as the scenario tells it.
fn refusal(status: &Status) -> Value {
    #[derive(Serialize)]
    struct Told {
        code: &'static str,
        retry: bool,
        reason: Option<String>,
        domain: Option<String>,
        metadata: Option<Value>,
        fields: Option<Vec<String>>,
    }
    let details = status.get_error_details();
    let info = details.error_info();
    json!(Told {
        code: code_name(status.code()),
        retry: details.retry_info().is_some(),
        reason: info.map(|info| info.reason.clone()),
        domain: info.map(|info| info.domain.clone()),
        metadata: info.map(|info| json!(info.metadata)),
        fields: details.bad_request().map(|bad| bad
            .field_violations
            .iter()
            .map(|violation| violation.field.clone())
            .collect()),
    })
}

/// The name of a code, as `google.rpc.Code` has it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
