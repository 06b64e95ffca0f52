//! The data folder: what lies where in it, who may enter it, and the lock that keeps a second service out.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::process::geteuid;
use uuid::Uuid;

use super::Error;
use super::binaries::leading_number;
use super::launcher::Launcher;
use super::log::Log;

/// How long to try for the lock. A child that a service has forked, and that has not yet come to execute its
/// program, holds the lock a moment longer than the service that was killed.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

const LOCK: &str = "lock";
const CLUSTER: &str = "postgres";
/// What the name of a side folder starts with.
const SIDE: &str = "postgres.new.";
const LOG: &str = "postgres.log";
const SOCKET: &str = "socket";

/// The data folder, by an absolute path, since Postgres works in a folder of its own.
#[derive(Debug, Clone)]
pub(super) struct Folders {
    data_dir: PathBuf,
}

impl Folders {
    /// Makes the data folder unless it is there.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritable`].
    pub(super) fn create(data_dir: &Path) -> Result<Self, Error> {
        let data_dir = std::path::absolute(data_dir).map_err(Error::at(data_dir))?;
        // Root's folder must let Postgres' user pass, whatever root's umask; what matters in it is closed by
        // itself.
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        create_all(&data_dir, mode).map_err(Error::at(&data_dir))?;
        Ok(Self { data_dir })
    }

    /// The data folder, where a cluster is in it.
    pub(super) fn existing(data_dir: &Path) -> Option<Self> {
        let folders = Self { data_dir: std::path::absolute(data_dir).ok()? };
        folders.cluster().is_dir().then_some(folders)
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The cluster; it is complete when this folder is there.
    pub(super) fn cluster(&self) -> PathBuf {
        self.data_dir.join(CLUSTER)
    }

    /// Where a new cluster is made before it gets its name. Each attempt has a folder of its own: the
    /// `initdb` of a service that was killed may still be writing into the one before.
    pub(super) fn new_side(&self) -> PathBuf {
        self.data_dir.join(format!("{SIDE}{}", Uuid::new_v4().simple()))
    }

    /// The side folders that attempts before have left.
    pub(super) fn old_sides(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.data_dir).into_iter().flatten().flatten();
        entries.filter(|entry| is_side(&entry.file_name())).map(|entry| entry.path()).collect()
    }

    /// Where the socket lies when the path is short enough.
    pub(super) fn socket(&self) -> PathBuf {
        self.data_dir.join(SOCKET)
    }

    pub(super) fn log(&self) -> Log {
        Log::new(self.data_dir.join(LOG))
    }

    /// The major version of the cluster's data, if there is a cluster.
    ///
    /// # Errors
    ///
    /// [`Error::NotACluster`] or [`Error::NotWritable`].
    pub(super) fn major(&self) -> Result<Option<u32>, Error> {
        let cluster = self.cluster();
        match fs::read_to_string(cluster.join("PG_VERSION")) {
            Ok(version) => leading_number(&version).map(Some).ok_or(Error::NotACluster { folder: cluster }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let is_empty = fs::read_dir(&cluster).map_or(true, |mut entries| entries.next().is_none());
                if is_empty { Ok(None) } else { Err(Error::NotACluster { folder: cluster }) }
            }
            Err(error) => Err(Error::at(&cluster)(error)),
        }
    }

    /// Lets Postgres' user pass through the data folder when privileges are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::ClosedFolder`] or [`Error::NotWritable`].
    pub(super) fn open_to(&self, launcher: &Launcher) -> Result<(), Error> {
        if !launcher.drops_privileges() {
            return Ok(());
        }
        let Err(closed) = launcher.check_may_enter(&self.data_dir) else {
            return Ok(());
        };
        // A closed folder with nothing of others in it (such as one by `mktemp -d`) was made for us: open it.
        // Any other may hold secrets that its mode protects: say so instead.
        let only_ours =
            fs::read_dir(&self.data_dir).map_err(Error::at(&self.data_dir))?.flatten().all(|entry| {
                let name = entry.file_name();
                [LOCK, CLUSTER, LOG, SOCKET].iter().any(|ours| name == *ours) || is_side(&name)
            });
        if !only_ours {
            return Err(closed);
        }
        fs::set_permissions(&self.data_dir, Permissions::from_mode(0o711))
            .map_err(Error::at(&self.data_dir))?;
        launcher.check_may_enter(&self.data_dir)
    }

    /// Gives an existing cluster the owner and the mode that Postgres insists on: a copy brought back by hand
    /// often has neither.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritable`].
    pub(super) fn adopt_cluster(&self, launcher: &Launcher) -> Result<(), Error> {
        let cluster = self.cluster();
        let found = fs::metadata(&cluster).map_err(Error::at(&cluster))?;
        if launcher.drops_privileges() && found.uid() == 0 {
            launcher.own_tree(&cluster).map_err(Error::at(&cluster))?;
        }
        if found.mode() & 0o027 != 0 {
            fs::set_permissions(&cluster, Permissions::from_mode(0o700)).map_err(Error::at(&cluster))?;
        }
        Ok(())
    }
}

fn is_side(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(SIDE.as_bytes())
}

/// Makes the folder and its parents with a mode that no umask narrows.
fn create_all(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_all(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(mode)),
        // Another service that starts at the same time was faster; the lock will tell.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The data folder's lock. It belongs to the open file: the kernel lets go of it when the service ends in any
/// way, and no program that we run inherits it.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock and notes our pid in the file, for the message that a second service prints.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] or [`Error::NotWritable`].
    pub(super) fn take(folders: &Folders) -> Result<Self, Error> {
        let path = folders.data_dir.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(Error::at(&path))?;
        let begin = Instant::now();
        while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != Errno::WOULDBLOCK {
                return Err(Error::at(&path)(errno.into()));
            }
            if begin.elapsed() >= LOCK_LIMIT {
                let mut note = String::new();
                let pid = file.read_to_string(&mut note).ok().and_then(|_| note.trim().parse().ok());
                return Err(Error::InUse { folder: folders.data_dir.clone(), pid });
            }
            thread::sleep(LOCK_PAUSE);
        }
        let note = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        note.map_err(Error::at(&path))?;
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // By closing alone, a child that another thread has just forked would keep it until it executes its
        // program.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
