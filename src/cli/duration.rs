//! Durations on the command line. Clocks and gRPC's header of deadlines have an end, and what is added to them must not be past it.

use std::time::Duration;

const A_DAY: Duration = Duration::from_hours(24);

/// Reads a duration such as `30s` or `2m`, of a day at the most.
///
/// # Errors
/// What is wrong with it, for clap to tell.
pub fn at_most_a_day(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration > A_DAY {
        return Err("it must be at most 24h".to_owned());
    }
    Ok(duration)
}
