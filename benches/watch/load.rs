//! Ensures at full rate: many callers, each with the next project as soon as it was answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use resource_allocator::proto::v1;
use tokio::task::JoinHandle;

use super::bed::Replica;

/// How many calls are under way at a time, over how many connections.
const CALLERS: u64 = 128;
const CONNECTIONS: usize = 4;

/// An ensure of a project with one module.
pub fn ensure(project_id: String) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { project_id, ..Default::default() }
}

/// Callers that are at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sets them to work at a replica. Projects are `NAME-0` and on.
    pub async fn start(replica: &Replica, name: &str) -> Self {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(replica.client().await);
        }
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let next = Arc::new(AtomicU64::new(0));
        let callers = (0..CALLERS)
            .map(|caller| {
                let mut client = clients[usize::try_from(caller).unwrap_or(0) % CONNECTIONS].clone();
                let (stop, done, next) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&next));
                let name = name.to_owned();
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        client
                            .ensure_allocation(ensure(format!("{name}-{number}")))
                            .await
                            .expect("it is placed");
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { stop, done, callers }
    }

    /// How many ensures a second are answered for so long.
    pub async fn rate(&self, time: Duration) -> f64 {
        let before = self.done.load(Ordering::Relaxed);
        let begun = std::time::Instant::now();
        tokio::time::sleep(time).await;
        #[expect(clippy::cast_precision_loss, reason = "a rate of a few thousand")]
        let done = (self.done.load(Ordering::Relaxed) - before) as f64;
        done / begun.elapsed().as_secs_f64()
    }

    /// Has them end.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("no caller failed");
        }
    }
}
