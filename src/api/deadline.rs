//! Until when a caller waits, as gRPC says it: `grpc-timeout`, up to eight digits and a unit.

use std::time::Duration;

use tokio::time::Instant;
use tonic::codegen::http::HeaderMap;

const HEADER: &str = "grpc-timeout";
/// How long before the deadline a call is answered that it has passed: later, the transport answers without a reason.
const EARLIER: Duration = Duration::from_millis(5);

/// Until when the caller of a request waits; none where it does not say, or says it in a way that is not gRPC's.
pub fn of<T>(request: &tonic::Request<T>) -> Option<Instant> {
    let timeout = request.metadata().get(HEADER)?.to_str().ok()?;
    Instant::now().checked_add(parse(timeout)?)
}

/// How long a request may take before it is answered that its deadline has passed.
pub fn limit(headers: &HeaderMap) -> Option<Duration> {
    let timeout = parse(headers.get(HEADER)?.to_str().ok()?)?;
    Some(timeout.saturating_sub(EARLIER.min(timeout / 10)))
}

fn parse(timeout: &str) -> Option<Duration> {
    let (digits, unit) = timeout.split_at_checked(timeout.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_grpc_is_read_and_nothing_else() {
        for (timeout, expected) in [
            ("2H", Duration::from_hours(2)),
            ("3M", Duration::from_mins(3)),
            ("4S", Duration::from_secs(4)),
            ("50m", Duration::from_millis(50)),
            ("60u", Duration::from_micros(60)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(parse(timeout), Some(expected), "{timeout}");
        }
        for timeout in ["", "S", "5", "123456789S", "-1S", "+1S", "1 S", "1s", "1é"] {
            assert_eq!(parse(timeout), None, "{timeout}");
        }
    }
}
