//! What the tailer hands round: each operation to those who watch everything, and to those who watch its project or one of its
//! servers. So an operation wakes only those whom it concerns, however many watch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    Filter,
    shared::{Batch, SharedEntry},
};
use crate::domain::{ProjectId, ServerHandle};

/// How many batches one who watches everything may be behind before it reads the table instead.
const WIDE: usize = 512;
/// How many operations one who watches a project or a server may be: few, for there may be thousands of them.
const NARROW: usize = 16;

/// What a narrow watcher watches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Project(ProjectId),
    Server(ServerHandle),
}

/// Where operations are handed round.
#[derive(Debug)]
pub(super) struct Feed {
    thread: Mutex<Thread>,
}

/// One unbroken sequence of what is handed round.
#[derive(Debug)]
struct Thread {
    /// How many there were before it.
    number: u64,
    everything: broadcast::Sender<Arc<Batch>>,
    subjects: HashMap<Subject, Group>,
}

impl Thread {
    fn new(number: u64) -> Self {
        Self { number, everything: broadcast::Sender::new(WIDE), subjects: HashMap::new() }
    }
}

/// Those who watch the same subject.
#[derive(Debug)]
struct Group {
    sender: broadcast::Sender<Arc<SharedEntry>>,
    /// Counted here, and not by the sender: to it, of two who leave at once neither is the last.
    listeners: usize,
}

impl Feed {
    /// A feed that nobody listens to yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { thread: Mutex::new(Thread::new(0)) })
    }

    /// Joins for what a filter may let pass.
    pub fn subscribe(self: &Arc<Self>, filter: &Filter) -> Listener {
        let project = filter.project_id.clone().map(Subject::Project);
        let subject = project.or_else(|| filter.server_handle.clone().map(Subject::Server));
        let mut thread = self.thread();
        match subject {
            None => {
                let receiver = Receiver::Everything(thread.everything.subscribe());
                Listener { receiver, _membership: None }
            }
            Some(subject) => {
                let group = thread
                    .subjects
                    .entry(subject.clone())
                    .or_insert_with(|| Group { sender: broadcast::Sender::new(NARROW), listeners: 0 });
                group.listeners += 1;
                let receiver = Receiver::Subject(group.sender.subscribe());
                let membership = Membership { feed: Arc::clone(self), thread: thread.number, subject };
                Listener { receiver, _membership: Some(membership) }
            }
        }
    }

    /// Whether anyone listens.
    pub fn is_heard(&self) -> bool {
        let thread = self.thread();
        thread.everything.receiver_count() > 0 || !thread.subjects.is_empty()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        let thread = self.thread();
        let narrow: usize = thread.subjects.values().map(|group| group.listeners).sum();
        thread.everything.receiver_count() + narrow
    }

    /// How many listen to everything.
    pub fn listeners_to_everything(&self) -> usize {
        self.thread().everything.receiver_count()
    }

    /// Hands operations to everyone whom they concern.
    pub fn send(&self, batch: Batch) {
        let thread = self.thread();
        // That nobody listens any more is seen by the next round.
        if !thread.subjects.is_empty() {
            for entry in batch.entries() {
                let project = entry.project_id.clone().map(Subject::Project);
                let servers = entry.servers().map(|handle| Subject::Server(handle.clone()));
                for subject in project.into_iter().chain(servers) {
                    if let Some(group) = thread.subjects.get(&subject) {
                        let _ = group.sender.send(Arc::clone(entry));
                    }
                }
            }
        }
        let _ = thread.everything.send(Arc::new(batch));
    }

    /// Tells everyone that what comes does not follow what came: [`Listener::recv`] ends, and whoever wants to go on joins anew.
    pub fn lose_thread(&self) {
        let mut thread = self.thread();
        *thread = Thread::new(thread.number + 1);
    }

    fn thread(&self) -> MutexGuard<'_, Thread> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a listener hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// All that was done.
    Batch(Arc<Batch>),
    /// Something about its subject.
    Entry(Arc<SharedEntry>),
}

/// A watcher's end of the feed.
#[derive(Debug)]
pub(super) struct Listener {
    receiver: Receiver,
    /// None of one who hears everything.
    _membership: Option<Membership>,
}

#[derive(Debug)]
enum Receiver {
    Everything(broadcast::Receiver<Arc<Batch>>),
    Subject(broadcast::Receiver<Arc<SharedEntry>>),
}

impl Listener {
    /// Whether all that was handed round so far was taken. Never of a thread that was lost: it says nothing of what came since.
    pub fn is_empty(&self) -> bool {
        match &self.receiver {
            Receiver::Everything(receiver) => receiver.is_empty() && !receiver.is_closed(),
            Receiver::Subject(receiver) => receiver.is_empty() && !receiver.is_closed(),
        }
    }

    /// What comes next. May be dropped before it is there.
    pub async fn recv(&mut self) -> Result<Heard, RecvError> {
        match &mut self.receiver {
            Receiver::Everything(receiver) => receiver.recv().await.map(Heard::Batch),
            Receiver::Subject(receiver) => receiver.recv().await.map(Heard::Entry),
        }
    }
}

/// That a listener counts among those of its subject, until it is dropped.
#[derive(Debug)]
struct Membership {
    feed: Arc<Feed>,
    thread: u64,
    subject: Subject,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut thread = self.feed.thread();
        // Of a thread that was lost nothing is left.
        if thread.number != self.thread {
            return;
        }
        let Some(group) = thread.subjects.get_mut(&self.subject) else { return };
        group.listeners -= 1;
        if group.listeners == 0 {
            thread.subjects.remove(&self.subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::testing::{self, handle, project};

    fn released(name: &str, server: &str) -> Batch {
        Batch::new(Uuid::nil(), [testing::released(1, name, server)]).unwrap()
    }

    fn of(project_id: Option<&str>, server_handle: Option<&str>) -> Filter {
        Filter { project_id: project_id.map(project), server_handle: server_handle.map(handle) }
    }

    #[test]
    fn an_operation_goes_to_those_whom_it_concerns_and_to_nobody_else() {
        let feed = Feed::new();
        assert!(!feed.is_heard());
        let all = feed.subscribe(&of(None, None));
        let shop = feed.subscribe(&of(Some("shop"), None));
        let shop_there = feed.subscribe(&of(Some("shop"), Some("web-2")));
        let blog = feed.subscribe(&of(Some("blog"), None));
        let here = feed.subscribe(&of(None, Some("web-1")));
        let there = feed.subscribe(&of(None, Some("web-2")));
        feed.send(released("shop", "web-1"));
        let empty = [&all, &shop, &shop_there, &blog, &here, &there].map(Listener::is_empty);
        // Which of the project's are about a server is for its watcher to tell.
        assert_eq!(empty, [false, false, false, true, false, true]);
    }

    #[test]
    fn what_nobody_listens_to_any_more_is_forgotten() {
        let feed = Feed::new();
        let one = feed.subscribe(&of(Some("shop"), None));
        let other = feed.subscribe(&of(Some("shop"), None));
        drop(one);
        assert!(feed.is_heard());
        feed.send(released("shop", "web-1"));
        assert!(!other.is_empty());
        drop(other);
        assert!(!feed.is_heard());
        assert!(feed.thread().subjects.is_empty());
    }

    #[test]
    fn of_many_who_leave_at_once_nothing_is_left() {
        let feed = Feed::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        drop(feed.subscribe(&of(Some("shop"), None)));
                    }
                });
            }
        });
        assert!(!feed.is_heard());
    }

    #[tokio::test]
    async fn a_thread_that_was_lost_ends_and_takes_nobody_of_the_next_along() {
        let feed = Feed::new();
        let mut all = feed.subscribe(&of(None, None));
        let mut before = feed.subscribe(&of(Some("shop"), None));
        feed.send(released("shop", "web-1"));
        feed.lose_thread();
        let mut after = feed.subscribe(&of(Some("shop"), None));
        // What was handed round before is still taken.
        assert!(matches!(all.recv().await, Ok(Heard::Batch(_))));
        assert!(matches!(before.recv().await, Ok(Heard::Entry(_))));
        assert!(!all.is_empty() && !before.is_empty(), "there may be more, which they cannot know");
        assert!(matches!(all.recv().await, Err(RecvError::Closed)));
        assert!(matches!(before.recv().await, Err(RecvError::Closed)));
        drop(before);
        feed.send(released("shop", "web-1"));
        assert!(matches!(after.recv().await, Ok(Heard::Entry(_))));
    }
}
