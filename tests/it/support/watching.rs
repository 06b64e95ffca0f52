//! A watcher that reconnects at random, at any replica, and writes down what it saw.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use resource_allocator::proto::v1::{
    self, resource_allocator_client::ResourceAllocatorClient, watch_allocations_response::Payload,
};
use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming, transport::Channel};

use super::process::PATIENCE;

/// How long a replica may take to open a stream: one that is stopped never does.
const OPEN_LIMIT: Duration = Duration::from_secs(3);

/// How long a stream that is to end may go on, with bookmarks or with anything else.
const END_LIMIT: Duration = Duration::from_mins(1);

/// The refusal that a stream ends with.
pub async fn end(stream: &mut Streaming<v1::WatchAllocationsResponse>) -> Status {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => return status,
            }
        }
    };
    timeout(END_LIMIT, end).await.expect("the stream went on")
}

/// What a watcher saw.
#[derive(Default)]
pub struct Watching {
    /// The events, in the order in which they came.
    pub seen: Vec<v1::AllocationEvent>,
    /// Over how many streams.
    pub streams: u32,
}

/// Connections that are made anew when they break, to each replica.
pub fn clients(endpoints: &[String]) -> Vec<ResourceAllocatorClient<Channel>> {
    let channels =
        endpoints.iter().map(|endpoint| Channel::from_shared(endpoint.clone()).unwrap().connect_lazy());
    channels.map(ResourceAllocatorClient::new).collect()
}

/// Watches from the beginning up to `last` once that is known, over streams that it breaks off at random.
pub async fn watch(
    endpoints: Vec<String>,
    number: u64,
    project_id: Option<String>,
    last: Arc<Mutex<Option<i64>>>,
) -> Watching {
    let clients = clients(&endpoints);
    let mut draw = StdRng::seed_from_u64(number);
    let mut watching = Watching::default();
    let mut request = v1::WatchAllocationsRequest { project_id, from_beginning: true, ..Default::default() };
    let mut reached = 0;
    let mut moved = Instant::now();
    loop {
        let is_over = |reached: i64| last.lock().unwrap().is_some_and(|last| reached >= last);
        if is_over(reached) {
            return watching;
        }
        assert!(moved.elapsed() < PATIENCE, "watcher {number} stands at {reached}");
        let mut client = clients[draw.random_range(0..clients.len())].clone();
        let opening = timeout(OPEN_LIMIT, client.watch_allocations(request.clone()));
        let Ok(Ok(stream)) = opening.await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut stream = stream.into_inner();
        watching.streams += 1;
        let patience = Duration::from_millis(draw.random_range(1..400));
        let messages = draw.random_range(1..300);
        let read: Result<(), Status> = async {
            for _ in 0..messages {
                let Ok(message) = timeout(patience, stream.message()).await else { break };
                let Some(message) = message? else { break };
                match message.payload.unwrap() {
                    Payload::Event(event) => {
                        reached = event.sequence;
                        watching.seen.push(event);
                    }
                    Payload::Bookmark(bookmark) => {
                        assert!(bookmark.sequence >= reached, "a resume point never goes back");
                        reached = bookmark.sequence;
                    }
                }
                moved = Instant::now();
                request.resume_token = message.resume_token;
                request.from_beginning = false;
                if is_over(reached) {
                    break;
                }
            }
            Ok(())
        }
        .await;
        if let Err(status) = read {
            let details = tonic_types::StatusExt::get_error_details(&status);
            let reason = details.error_info().map_or("", |info| &info.reason);
            assert!(matches!(reason, "" | "SHUTTING_DOWN" | "DATABASE_UNAVAILABLE"), "{status:?}");
        }
    }
}
