//! Postgres' own log: a file in the data folder that stays bounded, and the lines of it that tell why a start
//! failed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// A log past this size is set aside as `postgres.log.1`, in place of the one set aside before.
const BOUND: u64 = 8 * 1024 * 1024;
/// How much of the end is read for an error message.
const TAIL: u64 = 16 * 1024;

/// The file that Postgres writes its standard error to.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
}

impl Log {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file to append to, and makes it when it is not there.
    pub(super) fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&self.path)
    }

    pub(super) fn size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// Keeps the file within its bound. Postgres holds it open in append mode, so that it can be emptied in
    /// place; a line written between the copy and the emptying is lost, which a log can bear.
    pub(super) fn keep_bounded(&self) -> io::Result<()> {
        if self.size() <= BOUND {
            return Ok(());
        }
        let predecessor = self.path.with_extension("log.1");
        match fs::remove_file(&predecessor) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made anew, never opened: a link that someone left there must not lead us to a file of theirs to overwrite.
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&predecessor)?;
        io::copy(&mut File::open(&self.path)?, &mut copy)?;
        OpenOptions::new().write(true).open(&self.path)?.set_len(0)
    }

    /// The telling lines of what was logged after the file had the size `mark`.
    pub(super) fn telling_since(&self, mark: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            let size = file.metadata()?.len();
            let mark = if mark > size { 0 } else { mark };
            file.seek(SeekFrom::Start(mark.max(size.saturating_sub(TAIL))))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => telling(&String::from_utf8_lossy(&text)),
            Err(error) => format!("its log cannot be read: {error}"),
        }
    }
}

/// The last lines that name a failure, without their time stamps and with their hints, joined to one; else
/// the last line.
pub(super) fn telling(output: &str) -> String {
    const SIGNS: [&str; 5] = ["PANIC:", "FATAL:", "ERROR:", "error:", "could not"];
    let mut failures: Vec<String> = Vec::new();
    for line in output.lines() {
        if let Some((_, hint)) = line.split_once("HINT:") {
            if let Some(failure) = failures.last_mut() {
                failure.push_str(", hint: ");
                failure.push_str(hint.trim());
            }
        } else if let Some(start) = SIGNS.iter().find_map(|sign| line.find(sign)) {
            failures.push(line[start..].trim().to_owned());
        }
    }
    if failures.is_empty() {
        let last = output.lines().rev().find(|line| !line.trim().is_empty());
        return last.map_or_else(|| "it said nothing".to_owned(), |line| line.trim().to_owned());
    }
    failures[failures.len().saturating_sub(2)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failures_are_told_without_their_time_stamps() {
        let output = "2026-01-01 10:00:00.000 UTC [7] LOG:  starting\n\
                      2026-01-01 10:00:00.000 UTC [7] FATAL:  could not open file\n\
                      2026-01-01 10:00:00.000 UTC [7] HINT:  Check free disk space.\n\
                      2026-01-01 10:00:00.000 UTC [7] LOG:  shut down\n";
        assert_eq!(telling(output), "FATAL:  could not open file, hint: Check free disk space.");
        assert_eq!(telling("one\ntwo\n\n"), "two");
        assert_eq!(telling(""), "it said nothing");
    }

    #[test]
    fn a_log_past_its_bound_is_set_aside_and_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path().join("postgres.log"));
        log.open().unwrap().set_len(BOUND + 1).unwrap();
        log.keep_bounded().unwrap();
        assert_eq!(log.size(), 0);
        assert_eq!(fs::metadata(folder.path().join("postgres.log.1")).unwrap().len(), BOUND + 1);
    }
}
