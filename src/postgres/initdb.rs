//! Makes a new cluster, whole or not at all.
//!
//! It is made in a side folder and renamed when it is complete: initialised, configured, with our database in
//! it. Should anything stop that half-way, then the side folder is removed at the next start, and all is done
//! again in another.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tracing::{info, warn};

use super::binaries::Binaries;
use super::folders::Folders;
use super::launcher::Launcher;
use super::log::telling;
use super::memory;
use super::{DATABASE, Error, USER, settings};

const REMOVE_LIMIT: Duration = Duration::from_secs(5);
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// Makes the cluster. The caller holds the lock, and there is none yet.
///
/// # Errors
///
/// [`Error::InitFailed`], [`Error::NotRunnable`] or [`Error::NotWritable`]; the side folder is then removed
/// again, since a full disk needs the room.
pub(super) fn create(folders: &Folders, binaries: &Binaries, launcher: &Launcher) -> Result<(), Error> {
    for old in folders.old_sides() {
        remove_old(&old);
    }
    let side = folders.new_side();
    info!(folder = %folders.cluster().display(), postgres = binaries.major, "making a new Postgres cluster");
    let made = fill(&side, folders, binaries, launcher);
    if made.is_err() {
        // What failed is the error to tell; what stays is removed at the next start.
        let _ = remove_if_there(&side);
    }
    made
}

/// Removes a side folder that was left. An `initdb` that lost its service a moment ago may still fill it, so
/// that removing takes more than one try. At worst the folder stays, which costs room and does no harm.
fn remove_old(side: &Path) {
    let begin = Instant::now();
    while let Err(error) = remove_if_there(side) {
        if begin.elapsed() >= REMOVE_LIMIT {
            warn!(%error, folder = %side.display(), "a half-made cluster could not be removed");
            return;
        }
        thread::sleep(REMOVE_PAUSE);
    }
}

fn fill(side: &Path, folders: &Folders, binaries: &Binaries, launcher: &Launcher) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(side).and_then(|()| launcher.own(side)).map_err(Error::at(side))?;
    let failed = |reason: String| Error::InitFailed { folder: folders.cluster(), reason };

    let program = binaries.program("initdb");
    let mut initdb = launcher.command(&program);
    // Locale C compares text by bytes, so that no update of the system's locales can corrupt an index. Trust:
    // see `socket`. A failed attempt is cleaned by us: by itself initdb would end with lines about that. Small segments: until there
    // are old ones to use again, each new one is filled with zeros and flushed while all who commit wait.
    initdb.arg("--pgdata").arg(side).args(["--username", USER]);
    initdb.args(["--encoding=UTF8", "--locale=C", "--auth=trust", "--no-clean", "--wal-segsize=4"]);
    check(&initdb.output().map_err(Error::running(&program))?).map_err(failed)?;

    let program = binaries.program("postgres");
    append_settings(side, knows_lz4(side, &program, launcher)).map_err(Error::at(side))?;

    let mut single = launcher.command(&program);
    single.arg("--single").arg("-D").arg(side).args(["-c", "exit_on_error=on", "template1"]);
    let created = feed(single, &format!("CREATE DATABASE {DATABASE}\n")).map_err(Error::running(&program))?;
    check(&created).map_err(failed)?;

    // Both programs have flushed what they wrote; the rename itself is durable once the folder is flushed.
    fs::rename(side, folders.cluster()).map_err(Error::at(&folders.cluster()))?;
    File::open(folders.data_dir()).and_then(|folder| folder.sync_all()).map_err(Error::at(folders.data_dir()))
}

fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether this build has lz4, asked by having Postgres check such a setting.
fn knows_lz4(side: &Path, postgres: &Path, launcher: &Launcher) -> bool {
    let (name, value) = settings::LZ4;
    let mut probe = launcher.command(postgres);
    probe.arg("-C").arg(name).arg("-D").arg(side).arg("-c").arg(format!("{name}={value}"));
    probe.output().is_ok_and(|output| output.status.success())
}

fn append_settings(side: &Path, lz4: bool) -> io::Result<()> {
    // The folder is Postgres' user's and we may be root: follow no link that the user has put there.
    let mut conf = OpenOptions::new()
        .append(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(side.join("postgresql.conf"))?;
    conf.write_all(settings::conf(lz4, memory::total()).as_bytes())?;
    conf.sync_all()
}

fn feed(mut command: Command, input: &str) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read has a reason, and its output tells it better than a broken
        // pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn check(output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    // "exited with exit code 1" follows the line that says why, and tells nothing.
    let text: Vec<&str> = text.lines().filter(|line| !line.contains("child process exited")).collect();
    Err(format!("{} ({})", telling(&text.join("\n")), output.status))
}
