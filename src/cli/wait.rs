//! `ensure --wait`: stands in line, and says on standard error where. A connection that breaks loses no place: the call is
//! repeated, and goes on waiting where it stood. Ctrl-C leaves the line.

use std::{
    cmp,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use super::{
    client::{OutputFormat, Session},
    error::{CliError, EXIT_FAILURE},
    output,
    watch::may_resume,
};
use crate::proto::v1::{EnsureAllocationRequest, EnsureAllocationResponse, ListWaitingRequest, Waiter};

/// How often it is looked where the project stands.
const LOOK: Duration = Duration::from_secs(1);
/// The same at the beginning, for one that does not wait at all should not say that it does.
const FIRST_LOOK: Duration = Duration::from_millis(300);
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
const LAST_BACK_OFF: Duration = Duration::from_secs(5);
/// How long it is looked whether the line was left.
const LEAVING: Duration = Duration::from_secs(3);

/// Ensures, and waits in line for as long as `wait`.
///
/// # Errors
/// The service's refusal, that it cannot be reached, or that it was interrupted.
pub async fn ensure(
    session: &Session,
    request: EnsureAllocationRequest,
    wait: Duration,
) -> Result<EnsureAllocationResponse, CliError> {
    let until = Instant::now() + wait;
    let project_id = request.project_id.clone();
    let mut progress = Progress::new(session, until);
    let answer = tokio::select! {
        answer = insist(session, request, until) => Some(answer),
        () = progress.show(&project_id) => None,
        _ = tokio::signal::ctrl_c() => None,
    };
    progress.clear();
    if let Some(answer) = answer {
        return answer;
    }
    // The call is dropped by now, which tells the service.
    if has_left(session, &project_id).await {
        output::note("left the line; the place is kept for 30 s, should the same command come back");
    } else {
        output::note(&format!(
            "whether `{project_id}` left the line is not known, and it may still be placed; `waiting` shows the line, and `release {project_id}` leaves it"
        ));
    }
    Err(CliError::Told(EXIT_FAILURE))
}

/// Looks for a while whether the project is gone from the line.
async fn has_left(session: &Session, project_id: &str) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < LEAVING {
        if let Ok(None) = find(session, project_id).await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// Calls until it is answered. A replica that stops or dies keeps the place.
async fn insist(
    session: &Session,
    mut request: EnsureAllocationRequest,
    until: Instant,
) -> Result<EnsureAllocationResponse, CliError> {
    let mut back_off = FIRST_BACK_OFF;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let call = session.request_that_waits(request.clone(), left);
        let status = match session.allocator().ensure_allocation(call).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || !may_resume(&status) || is_final(&status) {
            return Err(status.into());
        }
        let pause = humantime::format_duration(back_off);
        output::note(&format!("{}; going on in the same place in {pause}", status.message()));
        tokio::time::sleep(back_off).await;
        back_off = cmp::min(back_off * 2, LAST_BACK_OFF);
        if let Some(wait) = &mut request.wait_for_capacity {
            wait.seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            wait.nanos = i32::try_from(left.subsec_nanos()).unwrap_or(0);
        }
    }
}

/// Whether the service itself says that waiting is over: only what is technical is worth another call.
fn is_final(status: &tonic::Status) -> bool {
    let details = tonic_types::StatusExt::get_error_details(status);
    super::error::disposition(&details).is_some_and(|disposition| disposition != "TECHNICAL")
}

async fn find(session: &Session, project_id: &str) -> Result<Option<Waiter>, tonic::Status> {
    let request = ListWaitingRequest { project_id: Some(project_id.to_owned()), ..Default::default() };
    let answer = session.allocator().list_waiting(session.request(request)).await?;
    Ok(answer.into_inner().waiters.pop())
}

/// Where the project stands: one line that is written over on a terminal, else a line whenever it changes.
struct Progress<'a> {
    session: &'a Session,
    until: Instant,
    on_terminal: bool,
    told: Option<(u32, String)>,
}

impl<'a> Progress<'a> {
    fn new(session: &'a Session, until: Instant) -> Self {
        Self { session, until, on_terminal: io::stderr().is_terminal(), told: None }
    }

    /// Tells for as long as it is not dropped.
    async fn show(&mut self, project_id: &str) {
        tokio::time::sleep(FIRST_LOOK).await;
        loop {
            // Where it cannot be told now, it is told a moment later.
            if let Ok(Some(waiter)) = find(self.session, project_id).await {
                self.tell(&waiter);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn tell(&mut self, waiter: &Waiter) {
        // Programs read the events.
        if self.session.output != OutputFormat::Text {
            return;
        }
        let now = (waiter.place, waiter.reason.clone());
        let left = self.until.saturating_duration_since(Instant::now());
        let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
        let text = format!("waiting: place {} in line, {}, {left} left", waiter.place, waiter.reason);
        if self.on_terminal {
            let mut stderr = io::stderr().lock();
            // Back to the line's beginning, and over what it said.
            let _ = write!(stderr, "\r\x1b[2K{text}");
            let _ = stderr.flush();
        } else if self.told.as_ref() != Some(&now) {
            output::tell(&text);
        }
        self.told = Some(now);
    }

    /// Takes the line away that is written over.
    fn clear(&self) {
        if self.on_terminal && self.told.is_some() {
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[2K");
            let _ = stderr.flush();
        }
    }
}
