//! What a run needs of the machine beside processes: a disk of the database's own that can be filled, and a wall clock that can be
//! set. Where the machine has none of it, the run says so.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::support::process::folder;

/// A small disk for the database: a file system in memory, of this process and its children alone, for the script that runs this
/// has put it into a namespace of mounts of its own.
pub struct Disk {
    folder: TempDir,
}

/// Room for a cluster and its log, and little more.
const SIZE: &str = "size=320m,mode=755";

impl Disk {
    /// Makes one; the reason where that cannot be.
    pub fn mount() -> Result<Self, String> {
        if std::env::var_os("CHAOS_MAY_MOUNT").is_none() {
            return Err("there are no mounts of our own here: `make chaos` as root has them".to_owned());
        }
        let folder = folder();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(folder.path());
        let output = mount.output().map_err(|error| format!("mount: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.folder.path().join("ballast")
    }

    /// Fills it.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0_u8; size];
            while file.write_all(&piece).is_ok() {}
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).stderr(Stdio::null()).status();
    }
}

/// A wall clock of the replicas' own, by Debian's libfaketime: what is written into its file is added to the time.
pub struct Clock {
    library: PathBuf,
    folder: TempDir,
}

impl Clock {
    /// Finds the library; the reason where there is none.
    pub fn find() -> Result<Self, String> {
        let library = std::env::var_os("CHAOS_FAKETIME").map(PathBuf::from);
        let library = library.filter(|path| path.is_file()).ok_or("there is no libfaketime here")?;
        let clock = Self { library, folder: folder() };
        // Whether it works on this machine is found out by a program that tells the time.
        clock.step(0);
        let before = clock.ask()?;
        clock.step(100_000);
        let after = clock.ask()?;
        clock.step(0);
        if (90_000..110_000).contains(&(after - before)) {
            Ok(clock)
        } else {
            Err("it sets no clock".to_owned())
        }
    }

    /// What time it is for a program that follows this clock.
    fn ask(&self) -> Result<i64, String> {
        let output = Command::new("date").arg("+%s").envs(self.environment()).output();
        let output = output.map_err(|error| format!("date: {error}"))?;
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        told.parse().map_err(|_| format!("date says `{told}`"))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// Sets the clock by so many seconds, seen from the right time.
    pub fn step(&self, seconds: i64) {
        // Renamed into place, so that nobody reads half of it.
        let side = self.folder.path().join("offset.new");
        fs::write(&side, format!("{seconds:+}s\n")).unwrap();
        fs::rename(&side, self.file()).unwrap();
    }

    /// What has a process follow this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec![
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE".to_owned(), text(&self.file())),
            ("FAKETIME_NO_CACHE".to_owned(), "1".to_owned()),
            // Timers go by the steady clock, which nobody can set.
            ("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()),
        ]
    }
}
