//! Runs Postgres's programs: as whom, in which process group, and with which signal when we die.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use super::Error;

/// The user that Postgres runs as when we are root, since it refuses root.
#[derive(Debug, Clone)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// How Postgres's programs are run.
#[derive(Debug, Clone)]
pub(super) struct Launcher {
    account: Option<Account>,
    death_signal: bool,
}

impl Launcher {
    /// Decides how to run the programs for the cluster in `cluster`, which need not exist yet.
    pub(super) fn new(cluster: &Path) -> Self {
        Self {
            account: geteuid().is_root().then(|| Account::choose(cluster)),
            death_signal: knows_death_signal(),
        }
    }

    /// A command that runs `program` with no standard input, out of reach of what is meant for the service.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = if self.death_signal {
            // Without it Postgres would outlive a service that is killed. The signal is the thread's that
            // forks, see the supervisor. QUIT is the immediate shutdown: nobody is left who would wait for a
            // slower one.
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--pdeathsig", "QUIT"]).arg(program);
            setpriv
        } else {
            Command::new(program)
        };
        if let Some(account) = &self.account {
            // The standard library drops root's supplementary groups along with the user.
            command.uid(account.uid).gid(account.gid);
        }
        for (name, _) in env::vars_os() {
            // PGDATA, PGPORT, PGOPTIONS and their like belong to some other cluster.
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        // One language and one zone: we read what the programs say.
        command.env("LC_ALL", "C").env("TZ", "UTC");
        // A folder that every user may enter; and a process group of its own, because ctrl-C on a terminal
        // goes to the whole group, and would stop Postgres under a service that is still draining.
        command.current_dir("/").process_group(0).stdin(Stdio::null());
        command
    }

    /// The user that owns what Postgres works on.
    pub(super) fn uid(&self) -> u32 {
        self.account.as_ref().map_or_else(|| geteuid().as_raw(), |account| account.uid)
    }

    /// Whether the programs run as another user than we do.
    pub(super) fn drops_privileges(&self) -> bool {
        self.account.is_some()
    }

    /// Gives a file or folder to the user that Postgres runs as.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        match &self.account {
            Some(account) => lchown(path, Some(account.uid), Some(account.gid)),
            None => Ok(()),
        }
    }

    /// Gives a folder and all in it, such as a backup that root brought back, to the user that Postgres runs
    /// as.
    pub(super) fn own_tree(&self, folder: &Path) -> io::Result<()> {
        let Some(account) = &self.account else {
            return Ok(());
        };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.own_tree(&entry.path())?;
            } else {
                lchown(entry.path(), Some(account.uid), Some(account.gid))?;
            }
        }
        chown(folder, Some(account.uid), Some(account.gid))
    }

    /// Checks that the programs may enter a folder when they run as another user.
    ///
    /// # Errors
    ///
    /// [`Error::ClosedFolder`] with the topmost folder that is closed.
    pub(super) fn check_may_enter(&self, folder: &Path) -> Result<(), Error> {
        let Some(account) = &self.account else {
            return Ok(());
        };
        if self.may_enter(folder) {
            return Ok(());
        }
        let mut ancestors: Vec<&Path> = folder.ancestors().collect();
        ancestors.reverse();
        let closed = ancestors.into_iter().find(|ancestor| !self.may_enter(ancestor)).unwrap_or(folder);
        Err(Error::ClosedFolder { folder: closed.to_owned(), user: account.name.clone() })
    }

    /// Asks the system by trying, since mode bits do not tell the whole story (access lists, mounts).
    fn may_enter(&self, folder: &Path) -> bool {
        let status = self.command(Path::new("test")).arg("-x").arg(folder).stderr(Stdio::null()).status();
        status.map_or(true, |status| status.success())
    }
}

impl Account {
    /// The owner of an existing cluster, else `postgres`, else `nobody`. A package that brings the user
    /// `postgres` may be installed later: a cluster stays with the user that it began with.
    fn choose(cluster: &Path) -> Self {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let owner = fs::metadata(cluster).ok().filter(|folder| folder.uid() != 0);
        if let Some(folder) = owner {
            let name = parse_users(&users).find(|user| user.uid == folder.uid()).map(|user| user.name);
            let name = name.unwrap_or_else(|| folder.uid().to_string());
            return Self { name, uid: folder.uid(), gid: folder.gid() };
        }
        let named = |name: &str| parse_users(&users).find(|user| user.name == name && user.uid != 0);
        named("postgres").or_else(|| named("nobody")).unwrap_or_else(|| Self {
            name: "nobody".to_owned(),
            uid: 65534,
            gid: 65534,
        })
    }
}

fn parse_users(passwd: &str) -> impl Iterator<Item = Account> + '_ {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid })
    })
}

/// Whether there is a `setpriv` that can set the signal: that of small distributions cannot.
fn knows_death_signal() -> bool {
    let program = PathBuf::from("setpriv");
    let mut probe = Command::new(program);
    probe
        .args(["--pdeathsig", "QUIT", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_and_lines_that_are_none_are_passed_over() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n# none\npostgres:x:101:104:PostgreSQL:/var/lib:/bin/sh\n";
        let users: Vec<_> = parse_users(passwd).map(|user| (user.name, user.uid, user.gid)).collect();
        assert_eq!(users, [("root".to_owned(), 0, 0), ("postgres".to_owned(), 101, 104)]);
    }
}
