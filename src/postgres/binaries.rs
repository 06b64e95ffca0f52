//! Finds Postgres's binaries on the machine.
//!
//! A folder counts when it holds both `postgres` and `initdb` and its `postgres` names its version. To teach
//! it a new place, add a line to [`USUAL_PLACES`].

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// Where distributions put the binaries: a folder, the start of a name in it that ends in a version, and what
/// follows. Postgres's server programs are mostly kept off the PATH, so that several majors can stand side by
/// side.
const USUAL_PLACES: &[(&str, &str, &str)] = &[
    ("/usr/lib/postgresql", "", "bin"),                      // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                               // PostgreSQL's own RPMs
    ("/usr/lib", "postgresql", "bin"),                       // openSUSE
    ("/usr/lib64", "postgresql-", "bin"),                    // Gentoo
    ("/usr/libexec", "postgresql", ""),                      // Alpine
    ("/usr/local", "pgsql", "bin"),                          // built from source
    ("/opt/homebrew/opt", "postgresql", "bin"),              // Homebrew on Apple silicon
    ("/usr/local/opt", "postgresql", "bin"),                 // Homebrew on Intel
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql", "bin"), // Homebrew on Linux
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// A folder of Postgres binaries and what they are.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    /// The folder.
    pub(super) folder: PathBuf,
    /// The major version of the `postgres` in it.
    pub(super) major: u32,
}

impl Binaries {
    /// The path of one of the programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Looks at one folder; the error names the program that is missing.
    fn at(folder: &Path) -> Result<Self, &'static str> {
        has_programs(folder)?;
        // Behind a link on the PATH lies the real folder, with `psql` and all the others.
        let real = fs::canonicalize(folder.join("postgres"))
            .ok()
            .and_then(|program| Some(program.parent()?.to_owned()));
        let real = real.filter(|real| has_programs(real).is_ok());
        let folder = real.as_deref().unwrap_or(folder);
        let output =
            Command::new(folder.join("postgres")).arg("--version").output().map_err(|_| "postgres")?;
        let version = String::from_utf8_lossy(&output.stdout);
        let major = version.split_once("(PostgreSQL) ").and_then(|(_, version)| leading_number(version));
        Ok(Self { folder: folder.to_owned(), major: major.ok_or("postgres")? })
    }
}

/// Whether the folder has the programs that we run; the error names the one that is missing.
fn has_programs(folder: &Path) -> Result<(), &'static str> {
    let missing = ["postgres", "initdb"].into_iter().find(|program| {
        let found = fs::metadata(folder.join(program));
        !found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    });
    missing.map_or(Ok(()), Err)
}

/// Finds binaries: those in `explicit` or none when it is given, else the first found of the major version
/// `wanted` (that of existing data), else the first found.
///
/// # Errors
///
/// [`Error::NotABinariesFolder`], [`Error::BinariesNotFound`], or [`Error::OtherVersion`] when only other
/// majors than that of the data in `cluster` are there.
pub(super) fn find(explicit: Option<&Path>, wanted: Option<u32>, cluster: &Path) -> Result<Binaries, Error> {
    let found = match explicit {
        Some(folder) => {
            let folder = std::path::absolute(folder).map_err(Error::at(folder))?;
            let binaries =
                Binaries::at(&folder).map_err(|program| Error::NotABinariesFolder { folder, program })?;
            vec![binaries]
        }
        None => search(on_path().into_iter().chain(told_by_pg_config()).chain(usual_places()), wanted)?,
    };
    let Some(wanted) = wanted else {
        return found.into_iter().next().ok_or(Error::BinariesNotFound { looked_at: Vec::new() });
    };
    if let Some(fitting) = found.iter().find(|binaries| binaries.major == wanted) {
        return Ok(fitting.clone());
    }
    let found = found.into_iter().map(|binaries| (binaries.major, binaries.folder)).collect();
    Err(Error::OtherVersion { folder: cluster.to_owned(), wanted, found })
}

/// Every set of binaries among the candidates up to the first that fits; never empty.
fn search(candidates: impl Iterator<Item = PathBuf>, wanted: Option<u32>) -> Result<Vec<Binaries>, Error> {
    let mut looked_at: Vec<PathBuf> = Vec::new();
    let mut found = Vec::new();
    for folder in candidates {
        if looked_at.contains(&folder) {
            continue;
        }
        if let Ok(binaries) = Binaries::at(&folder) {
            let fits = wanted.is_none_or(|wanted| wanted == binaries.major);
            found.push(binaries);
            if fits {
                break;
            }
        }
        looked_at.push(folder);
    }
    if found.is_empty() { Err(Error::BinariesNotFound { looked_at }) } else { Ok(found) }
}

fn on_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect()
}

fn told_by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(folder.trim())).filter(|folder| folder.is_absolute())
}

/// The folders that exist at the usual places, the newest version first at each; a place with none is named
/// by its pattern, so that the error can say that it was looked at.
fn usual_places() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, prefix, inner) in USUAL_PLACES {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((version_after(prefix, &entry.file_name())?, entry.path().join(inner))))
            .collect();
        versions.sort_by(|one, other| other.cmp(one));
        if versions.is_empty() {
            folders.push(Path::new(parent).join(format!("{prefix}*")).join(inner));
        }
        folders.extend(versions.into_iter().map(|(_, folder)| folder));
    }
    folders
}

/// The version in a name such as `pgsql-16`, `postgresql@17` or `postgresql`; the last has none and sorts as 0.
fn version_after(prefix: &str, name: &OsStr) -> Option<u32> {
    let rest = name.to_str()?.strip_prefix(prefix)?;
    let rest = rest.strip_prefix(['@', '-']).unwrap_or(rest);
    if rest.is_empty() { Some(0) } else { leading_number(rest) }
}

/// The number that a text starts with: `15` of `15.18 (Debian …)`, of `15beta1` and of `15`.
pub(super) fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_every_way_of_naming_a_folder() {
        for (prefix, name, version) in [
            ("", "15", Some(15)),
            ("pgsql-", "pgsql-16", Some(16)),
            ("postgresql", "postgresql", Some(0)),
            ("postgresql", "postgresql@17", Some(17)),
            ("postgresql-", "postgresql-14", Some(14)),
            ("pgsql", "pgsql", Some(0)),
            ("postgresql", "postgresql-common", None),
            ("pgsql-", "share", None),
        ] {
            assert_eq!(version_after(prefix, OsStr::new(name)), version, "{name}");
        }
    }

    #[test]
    fn finding_none_says_where_it_looked_and_how_to_install_them() {
        let folders = [PathBuf::from("/nowhere/bin"), PathBuf::from("/dev")];
        let line = search(folders.into_iter(), None).unwrap_err().to_string();
        assert!(
            line.contains("/nowhere/bin, /dev)") && line.contains("apt-get install postgresql"),
            "{line}"
        );
    }
}
