//! WatchAllocations.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio_stream::StreamExt as _;
use tonic::Status;
use uuid::Uuid;

use super::{
    Api, ResumeToken, Tokens, decode, encode,
    prepared::{self, PreparedBody},
    status::{ApiError, to_status},
};
use crate::{
    domain::event::LogEntry,
    events::{Batch, EncodedEvents, Filter, Message, SharedEntry, Start},
    proto::v1::{self, watch_allocations_response::Payload},
};

/// The messages of a watch go past tonic, in a [`PreparedBody`].
pub type WatchResponses = tokio_stream::Empty<Result<v1::WatchAllocationsResponse, Status>>;

/// More than most events take on the wire.
const EVENT_BYTES: usize = 400;

impl Api {
    pub(super) async fn watch(
        &self,
        request: v1::WatchAllocationsRequest,
        request_id: String,
    ) -> Result<PreparedBody, ApiError> {
        let (filter, start) = self.decode_watch(&request)?;
        let (epoch, messages) = self.hub.watch(filter, start).await.map_err(ApiError::Watch)?;
        let tokens = Arc::clone(&self.tokens);
        Ok(PreparedBody::new(messages.map(move |message| match message {
            Ok(message) => Ok(encoded(&tokens, epoch, &message)),
            Err(error) => Err(to_status(&ApiError::Watch(error), &request_id, &tokens, Some(epoch))),
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

/// A message of the hub as it goes over the wire. Events are the same for everyone, and so are their tokens.
fn encoded(tokens: &Tokens, epoch: Uuid, message: &Message) -> Bytes {
    match message {
        Message::Batch(batch) => batch.encoded(|batch| encode_batch(tokens, batch)).clone(),
        Message::Events { entry, events } => entry.encoded(|entry| encode_entry(tokens, entry)).slice(events),
        Message::Bookmark { sequence } => {
            let payload = Payload::Bookmark(v1::Bookmark { sequence: *sequence });
            let mut buffer = BytesMut::new();
            append(&mut buffer, tokens, epoch, *sequence, payload);
            buffer.freeze()
        }
    }
}

fn encode_batch(tokens: &Tokens, batch: &Batch) -> Bytes {
    let count = batch.last_sequence() - batch.first_sequence() + 1;
    let mut buffer = BytesMut::with_capacity(usize::try_from(count).unwrap_or(0) * EVENT_BYTES);
    for entry in batch.entries() {
        append_events(&mut buffer, tokens, batch.epoch(), entry, |_| {});
    }
    buffer.freeze()
}

fn encode_entry(tokens: &Tokens, entry: &SharedEntry) -> EncodedEvents {
    let (mut buffer, mut ends) = (BytesMut::new(), Vec::new());
    append_events(&mut buffer, tokens, entry.epoch, entry, |end| ends.push(end));
    EncodedEvents { bytes: buffer.freeze(), ends }
}

fn append_events(
    buffer: &mut BytesMut,
    tokens: &Tokens,
    epoch: Uuid,
    entry: &LogEntry,
    mut ended: impl FnMut(usize),
) {
    for event in encode::events(entry) {
        append(buffer, tokens, epoch, event.sequence, Payload::Event(event));
        ended(buffer.len());
    }
}

fn append(buffer: &mut BytesMut, tokens: &Tokens, epoch: Uuid, sequence: i64, payload: Payload) {
    let resume_token = tokens.seal(&ResumeToken { epoch, sequence });
    prepared::append(buffer, &v1::WatchAllocationsResponse { resume_token, payload: Some(payload) });
}
