//! The folder of the unix socket: private to its owner, and at a path that is short enough.
//!
//! Whoever can reach the socket is the service's user or root: the folder has mode 0700. That is why the
//! cluster can trust every connection without a password, which would have to be kept in a file behind the
//! same mode.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::Error;
use super::folders::Folders;
use super::launcher::Launcher;

/// The port is no more than a part of the socket's name.
pub(super) const PORT: u16 = 5432;

/// What fits into `sockaddr_un` before the closing zero.
const LIMIT: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Chooses and makes the folder: in the data folder when its path is short enough, else in the user's runtime
/// folder, else in the temporary one.
///
/// # Errors
///
/// [`Error::NotWritable`] when the one in the data folder cannot be made, [`Error::SocketPathTooLong`] when
/// that is too long and none can be made elsewhere.
pub(super) fn choose(folders: &Folders, launcher: &Launcher) -> Result<PathBuf, Error> {
    let folder = folders.socket();
    let path = socket_path(&folder);
    if fits(&path) {
        prepare(&folder, launcher).map_err(Error::at(&folder))?;
        return Ok(folder);
    }
    let elsewhere = elsewhere(folders, launcher);
    let made =
        elsewhere.iter().find(|folder| fits(&socket_path(folder)) && prepare(folder, launcher).is_ok());
    made.cloned().ok_or(Error::SocketPathTooLong { path, limit: LIMIT, elsewhere })
}

/// The folder of the socket that a Postgres of ours listens on now, if one does.
pub(super) fn find_running(folders: &Folders, launcher: &Launcher) -> Option<PathBuf> {
    let mut candidates = vec![folders.socket()];
    candidates.extend(elsewhere(folders, launcher));
    candidates.into_iter().find(|folder| {
        let socket = socket_path(folder);
        fits(&socket) && is_private(folder, launcher) && UnixStream::connect(socket).is_ok()
    })
}

/// Whether nobody but us, or the user that Postgres runs as, can have put anything into a folder. In a shared temporary folder
/// anybody may have taken the name, with a socket of their own in it.
fn is_private(folder: &Path, launcher: &Launcher) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| is_ours(&found, launcher) && found.mode() & 0o777 == 0o700)
}

/// Whether something is a folder, no link to one, and its owner is us or the user that Postgres runs as.
fn is_ours(found: &Metadata, launcher: &Launcher) -> bool {
    found.is_dir() && (found.uid() == launcher.uid() || found.uid() == geteuid().as_raw())
}

fn fits(socket: &Path) -> bool {
    socket.as_os_str().len() <= LIMIT
}

fn elsewhere(folders: &Folders, launcher: &Launcher) -> Vec<PathBuf> {
    let mut hasher = DefaultHasher::new();
    folders.data_dir().hash(&mut hasher);
    // The same name at each start, so that a killed service leaves one folder behind and not many.
    let name = format!("resource-allocator-{:016x}", hasher.finish());
    let mut parents = vec![env::temp_dir(), PathBuf::from("/tmp")];
    if !launcher.drops_privileges() {
        // Root's runtime folder is closed to the user that Postgres runs as.
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
        parents.insert(0, runtime.unwrap_or_else(|| PathBuf::from(format!("/run/user/{}", launcher.uid()))));
    }
    parents.dedup();
    parents.into_iter().map(|parent| parent.join(&name)).collect()
}

fn socket_path(folder: &Path) -> PathBuf {
    folder.join(format!(".s.PGSQL.{PORT}"))
}

/// Makes the folder, or takes one that is there: private, empty, and owned by the user that Postgres runs as.
pub(super) fn prepare(folder: &Path, launcher: &Launcher) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // In a shared temporary folder anybody may have taken the name, even by a link.
            if !is_ours(&fs::symlink_metadata(folder)?, launcher) {
                return Err(io::Error::new(ErrorKind::PermissionDenied, "it belongs to somebody else"));
            }
        }
        Err(error) => return Err(error),
    }
    launcher.own(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    clear(folder)
}

/// Removes the socket and its lock file: like `postmaster.pid`, a lock file with the pid of a zombie or a
/// stranger would keep Postgres from starting.
fn clear(folder: &Path) -> io::Result<()> {
    let socket = socket_path(folder);
    for leftover in [socket.with_extension(format!("{PORT}.lock")), socket] {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes the folder after Postgres has stopped, when it lies outside the data folder.
pub(super) fn remove(folder: &Path, folders: &Folders) {
    if folder != folders.socket() {
        // At worst an empty folder stays, and the next start takes it up.
        let _ = clear(folder).and_then(|()| fs::remove_dir(folder));
    }
}

/// The URL of a database over the socket, which both libpq and sqlx read: the folder is the percent-encoded
/// host. Port and TLS mode are spelt out, since either reader would else take them from the environment.
pub(super) fn url(folder: &Path, user: &str, database: &str) -> String {
    use std::os::unix::ffi::OsStrExt;
    let host = percent_encode(folder.as_os_str().as_bytes());
    let database = percent_encode(database.as_bytes());
    format!("postgres://{user}@{host}:{PORT}/{database}?sslmode=disable")
}

fn percent_encode(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use sqlx::postgres::PgConnectOptions;

    use super::*;

    #[test]
    fn sqlx_reads_the_url_back() {
        let options =
            PgConnectOptions::from_str(&url(Path::new("/tmp/a b/ü%,é"), "me", "data base")).unwrap();
        assert_eq!(options.get_socket().unwrap(), Path::new("/tmp/a b/ü%,é"));
        assert_eq!(options.get_port(), PORT);
        assert_eq!(options.get_username(), "me");
        assert_eq!(options.get_database(), Some("data base"));
    }
}
