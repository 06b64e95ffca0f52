//! What can go wrong with Postgres, as far as the layers above act on it.

use std::time::Duration;

use sqlx::error::DatabaseError;

/// Waits for what the database answers, and takes one that says nothing for so long for one that cannot be reached.
///
/// # Errors
/// Those of `answer`; [`StoreError::silent`].
pub async fn within<T, E: From<StoreError>>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(StoreError::silent().into()))
}

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres cannot be reached, is going down, or takes no writes (a standby). A later try may do.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// Another transaction was in the way for longer than the time limits allow. A new transaction may do.
    #[error("the database was busy for too long")]
    Busy(#[source] sqlx::Error),
    /// Postgres answers, but every connection that reads share was in use for as long as one waits for one.
    #[error("all {limit} connections that are shared are in use")]
    Overloaded {
        /// How many they are.
        limit: u32,
    },
    /// A constraint or guard of the schema refused the write: our plan and the tables disagree.
    #[error("the constraint {constraint} refused the write")]
    Constraint {
        /// The constraint's name.
        constraint: String,
        /// What Postgres said.
        source: sqlx::Error,
    },
    /// A row holds something that the schema should have kept out.
    #[error("table {table}, row {row}: {problem}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// Which row.
        row: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Anything else that the driver or Postgres said.
    #[error("the database driver failed")]
    Driver(#[source] sqlx::Error),
}

impl StoreError {
    /// The database did not answer in time.
    #[must_use]
    pub fn silent() -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
    }

    /// Whether the same may succeed a moment later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_) | Self::Overloaded { .. })
    }

    /// A row that cannot be read.
    #[expect(clippy::needless_pass_by_value, reason = "errors and words are given alike")]
    pub(super) fn inconsistent(table: &'static str, row: impl Into<String>, problem: impl ToString) -> Self {
        Self::Inconsistent { table, row: row.into(), problem: problem.to_string() }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error),
            sqlx::Error::Database(database) => match sqlstate(database.as_ref()).as_str() {
                // Connection exceptions; shutdown and crash of the server; too many connections; a standby; a disk that is full.
                "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "53100" | "25006" | "25P03" => {
                    Self::Unavailable(error)
                }
                state if state.starts_with("08") => Self::Unavailable(error),
                // Lock and statement time limits, deadlock, serialisation.
                "55P03" | "57014" | "40P01" | "40001" => Self::Busy(error),
                state if state.starts_with("23") => Self::Constraint {
                    constraint: database.constraint().unwrap_or("unnamed").to_owned(),
                    source: error,
                },
                _ => Self::Driver(error),
            },
            _ => Self::Driver(error),
        }
    }
}

fn sqlstate(error: &(dyn DatabaseError + 'static)) -> String {
    error.code().unwrap_or_default().into_owned()
}
