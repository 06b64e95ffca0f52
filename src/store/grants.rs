//! The column `granted` of the log: what an ensure granted, in few bytes. The payload says the same and more, in JSON, which takes
//! Postgres four times as long to read; and every operation is read by every replica that did not commit it.

use prost::Message;

use crate::domain::{
    Port, Protocol, Resources,
    event::{Grant, Ports},
};

/// What the bytes say. Fields are only ever added, and then `granted` is left out where they matter, for replicas of the release
/// before.
#[derive(Clone, PartialEq, Eq, Message)]
struct Granted {
    #[prost(bool, tag = "1")]
    is_placement: bool,
    #[prost(int64, tag = "2")]
    cpu_millis: i64,
    #[prost(int64, tag = "3")]
    ram_mb: i64,
    #[prost(int64, tag = "4")]
    disk_mb: i64,
    #[prost(uint32, repeated, tag = "5")]
    tcp: Vec<u32>,
    #[prost(uint32, repeated, tag = "6")]
    udp: Vec<u32>,
}

/// The bytes for a grant.
pub(super) fn encode(grant: &Grant) -> Vec<u8> {
    let ports = |of: Protocol| {
        grant.ports.iter().filter(|(protocol, _)| *protocol == of).map(|(_, port)| u32::from(*port)).collect()
    };
    let Resources { cpu_millis, ram_mb, disk_mb } = grant.grown;
    let (tcp, udp) = (ports(Protocol::Tcp), ports(Protocol::Udp));
    Granted { is_placement: grant.is_placement, cpu_millis, ram_mb, disk_mb, tcp, udp }.encode_to_vec()
}

/// Whether a project was placed, what was reserved for it, and which ports it was given, as the bytes say.
pub(super) fn decode(bytes: &[u8]) -> Result<(bool, Resources, Ports), String> {
    let granted = Granted::decode(bytes).map_err(|error| error.to_string())?;
    let Granted { is_placement, cpu_millis, ram_mb, disk_mb, tcp, udp } = granted;
    let mut ports = Ports::with_capacity(tcp.len() + udp.len());
    for (protocol, numbers) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
        for number in numbers {
            let port = Port::try_from(number).map_err(|error| format!("port {number} {error}"))?;
            ports.push((protocol, port));
        }
    }
    Ok((is_placement, Resources { cpu_millis, ram_mb, disk_mb }, ports))
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::domain::testing::{handle, port, project};

    fn grant() -> Grant {
        Grant {
            first_sequence: 5,
            last_sequence: 9,
            event_time: time::OffsetDateTime::UNIX_EPOCH,
            project_id: project("shop"),
            server_handle: handle("web-1"),
            is_placement: true,
            grown: Resources { cpu_millis: 0, ram_mb: 512, disk_mb: i64::MAX },
            ports: smallvec![
                (Protocol::Tcp, port(1)),
                (Protocol::Tcp, port(65535)),
                (Protocol::Udp, port(53))
            ],
        }
    }

    fn empty() -> Grant {
        Grant { is_placement: false, grown: Resources::ZERO, ports: smallvec![], ..grant() }
    }

    #[test]
    fn what_was_granted_is_read_as_it_was_written() {
        for written in [grant(), empty(), Grant { is_placement: false, ..grant() }] {
            let (is_placement, grown, ports) = decode(&encode(&written)).unwrap();
            assert_eq!(Grant { is_placement, grown, ports, ..empty() }, written);
        }
        assert!(encode(&grant()).len() < 32);
    }

    #[test]
    fn bytes_that_say_nothing_are_refused() {
        let granted = |tcp| Granted { tcp, ..Granted::default() }.encode_to_vec();
        for (bytes, told) in [
            (b"\xff\xff\xff".to_vec(), "failed to decode"),
            (granted(vec![0]), "port 0 must be 1 to 65535"),
            (granted(vec![8000, 65536]), "port 65536 must be 1 to 65535"),
        ] {
            let refused = decode(&bytes).unwrap_err();
            assert!(refused.starts_with(told), "{refused}");
        }
    }
}
