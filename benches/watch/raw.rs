//! A watcher that counts messages and does not decode them: what is measured is what watchers cost the service, and callers are
//! on the same machine.

use http_body_util::{BodyExt as _, Full};
use prost::{Message as _, bytes::Bytes};
use resource_allocator::proto::v1::WatchAllocationsRequest;
use tonic::{
    Status,
    body::Body,
    codegen::{Service as _, http},
    transport::Channel,
};

const PATH: &str = "/resourceallocator.v1.ResourceAllocator/WatchAllocations";
/// What is before each message: whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;
/// Longer than any bookmark, and shorter than any event: both have a token of 54 bytes.
const BOOKMARK_BYTES: usize = 80;

/// A stream of messages.
pub struct Messages {
    body: Body,
    /// What is left of the message that is being read.
    rest: usize,
    header: Vec<u8>,
}

impl Messages {
    /// How many events began with what comes next; none at the end.
    ///
    /// # Errors
    /// Why the stream ended.
    pub async fn next(&mut self) -> Result<Option<usize>, Status> {
        loop {
            let Some(frame) = self.body.frame().await.transpose()? else { return Ok(None) };
            match frame.into_data() {
                Ok(data) => return Ok(Some(self.count(&data))),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    if let Some(status) = Status::from_header_map(&trailers) {
                        return Err(status);
                    }
                }
            }
        }
    }

    fn count(&mut self, mut data: &[u8]) -> usize {
        let mut events = 0;
        while !data.is_empty() {
            let taken = self.rest.min(data.len());
            (self.rest, data) = (self.rest - taken, &data[taken..]);
            if data.is_empty() {
                break;
            }
            let taken = (HEADER_BYTES - self.header.len()).min(data.len());
            self.header.extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if let [_, length @ ..] = self.header.as_slice()
                && let Ok(length) = length.try_into()
            {
                self.rest = u32::from_be_bytes(length) as usize;
                self.header.clear();
                events += usize::from(self.rest > BOOKMARK_BYTES);
            }
        }
        events
    }
}

/// Opens a stream, and reads its first bookmark.
pub async fn watch(mut channel: Channel, request: &WatchAllocationsRequest) -> Messages {
    let message = request.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(message.len()).expect("it is short").to_be_bytes());
    bytes.extend_from_slice(&message);
    let call = http::Request::post(PATH)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::from(bytes))))
        .expect("a request");
    std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("the connection stands");
    let body = channel.call(call).await.expect("it opens").into_body();
    let mut messages = Messages { body, rest: 0, header: Vec::new() };
    assert_eq!(messages.next().await.expect("it stays open"), Some(0), "a bookmark comes first");
    messages
}
