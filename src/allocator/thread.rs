//! Tasks with a thread of their own: those that compute for longer than calls and health may wait for, as the folding of a long log
//! does.

use std::{convert::Infallible, thread};

use tokio::{runtime, sync::oneshot};

/// Runs a task on a thread of its own; what is returned ends when the task does, also when it fails.
pub(super) fn run(
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send {
    let (alive, ended) = oneshot::channel::<Infallible>();
    let started = runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(task);
            drop(alive);
        })
    });
    if let Err(error) = started {
        tracing::error!(name, error = &error as &dyn std::error::Error, "a thread could not be started");
    }
    async move {
        let _ = ended.await;
    }
}
