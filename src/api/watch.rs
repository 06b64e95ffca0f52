//! WatchAllocations.

use std::{pin::Pin, sync::Arc};

use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::{
    Api, ResumeToken, decode, encode,
    status::{ApiError, to_status},
};
use crate::{
    events::{Filter, Message, Start, WatchError},
    proto::v1::{self, watch_allocations_response::Payload},
};

/// The messages of a watch.
pub type WatchResponses = Pin<Box<dyn Stream<Item = Result<v1::WatchAllocationsResponse, Status>> + Send>>;

impl Api {
    pub(super) async fn watch(
        &self,
        request: v1::WatchAllocationsRequest,
        request_id: String,
    ) -> Result<WatchResponses, ApiError> {
        let (filter, start) = self.decode_watch(&request)?;
        let (epoch, messages) = self.hub.watch(filter, start).await.map_err(ApiError::Watch)?;
        let tokens = Arc::clone(&self.tokens);
        Ok(Box::pin(messages.map(move |message| {
            let message = message.map_err(|error: WatchError| {
                to_status(&ApiError::Watch(error), &request_id, &tokens, Some(epoch))
            })?;
            let resume_token = tokens.seal(&ResumeToken { epoch, sequence: message.sequence() });
            let payload = match message {
                Message::Event { entry, index } => encode::event(&entry, index).map(Payload::Event),
                Message::Bookmark { sequence } => Some(Payload::Bookmark(v1::Bookmark { sequence })),
            };
            Ok(v1::WatchAllocationsResponse { resume_token, payload })
        })))
    }

    fn decode_watch(
        &self,
        request: &v1::WatchAllocationsRequest,
    ) -> Result<(Filter, Start), Vec<decode::FieldViolation>> {
        let mut fields = decode::Fields::default();
        let project_id =
            request.project_id.as_ref().and_then(|id| decode::project_id(&mut fields, "project_id", id));
        let server_handle = request
            .server_handle
            .as_ref()
            .and_then(|handle| decode::handle(&mut fields, "server_handle", handle));
        if request.from_beginning && !request.resume_token.is_empty() {
            fields.refuse("from_beginning", "cannot be set together with `resume_token`");
        }
        let start = match request.resume_token.as_str() {
            "" if request.from_beginning => Some(Start::Beginning),
            "" => Some(Start::Now),
            token => fields
                .take("resume_token", self.tokens.open(token))
                .map(|ResumeToken { epoch, sequence }| Start::After { epoch, sequence }),
        };
        fields.finish(start.map(|start| (Filter { project_id, server_handle }, start)))
    }
}
