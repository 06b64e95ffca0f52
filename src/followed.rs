//! Files that people name, of a bounded size, and those that are read again when they change, while the service runs: certificates,
//! credentials and levels of the log.
//!
//! What the latter say is replaced as a whole, and only by something that is sound. Their contents are compared, not their times: a
//! mounted secret is a link to a link, and is replaced by turning one of them.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// A file that is longer was named by mistake.
const MAX_BYTES: u64 = 4 << 20;

/// Why what the files say cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum FollowError<E> {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in them makes no sense.
    #[error("{error}")]
    Unsound {
        /// Why.
        error: E,
    },
}

/// Reads the files, and goes on looking at them for as long as anyone has the receiver. `what` names them in the log, `read` makes
/// sense of their contents, which come in the order of `paths`.
///
/// # Errors
/// When they cannot be taken as they are now.
pub fn follow<T, E>(
    what: &'static str,
    paths: Vec<PathBuf>,
    read: impl Fn(&[Vec<u8>]) -> Result<T, E> + Send + Sync + 'static,
) -> Result<watch::Receiver<Arc<T>>, FollowError<E>>
where
    T: Send + Sync + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let contents = contents(&paths)?;
    let first = read(&contents).map_err(|error| FollowError::Unsound { error })?;
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = keep_up(what, &paths, contents, &read, &sender) => {}
        }
    });
    Ok(receiver)
}

async fn keep_up<T, E: std::fmt::Display>(
    what: &'static str,
    paths: &[PathBuf],
    mut tried: Vec<Vec<u8>>,
    read: &(impl Fn(&[Vec<u8>]) -> Result<T, E> + Send + Sync),
    sender: &watch::Sender<Arc<T>>,
) {
    let mut unreadable = false;
    let mut last = tried.clone();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = match contents::<E>(paths) {
            Ok(now) => now,
            Err(error) => {
                if !unreadable {
                    tracing::warn!(%error, "{what} cannot be read; what was read before still counts");
                }
                unreadable = true;
                continue;
            }
        };
        unreadable = false;
        // A certificate and its key are written one after the other, and neither at once: what changed is left to settle.
        let settled = now == last;
        if settled && now != tried {
            match read(&now) {
                Ok(read) => {
                    sender.send_replace(Arc::new(read));
                    tracing::info!("{what} changed, and were read again");
                }
                Err(error) => {
                    tracing::warn!(%error, "{what} changed and make no sense; what was read before still counts");
                }
            }
            tried.clone_from(&now);
        }
        last = now;
    }
}

fn contents<E>(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, FollowError<E>> {
    let read = |path: &PathBuf| {
        content(path).map_err(|source| FollowError::Unreadable { path: path.clone(), source })
    };
    paths.iter().map(read).collect()
}

/// Reads a file that a person named, as far as is sensible.
///
/// # Errors
/// What the system said, or that the file is longer than any that is meant.
pub fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 4 MiB"));
    }
    Ok(bytes)
}
