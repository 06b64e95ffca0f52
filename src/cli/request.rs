//! What `ensure` and `find` ask for: modules, resources, labels, the start port and the strategy, as written on the
//! command line. Numbers are checked for being numbers here; what they mean is for the service to judge.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};

use crate::proto::v1::{ModuleSpec, PlacementStrategy, Protocol, Resources};

/// The flags that describe a request for a place.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// The modules that need a port: backend, frontend:8080, dns:53/udp; none means backend for a new project
    #[arg(value_name = "MODULE[:PORT][/udp]", value_parser = parse_module)]
    pub modules: Vec<ModuleSpec>,
    /// CPU, in thousandths of a core
    #[arg(long, value_name = "N")]
    cpu_millis: Option<u32>,
    /// Memory, in MB; 512 for a new project when left out
    #[arg(long, value_name = "N")]
    ram_mb: Option<u64>,
    /// Disk, in MB; 1024 for a new project when left out
    #[arg(long, value_name = "N")]
    disk_mb: Option<u64>,
    /// A label that the server must carry; repeat it for more
    #[arg(long = "selector", value_name = "KEY=VALUE", value_parser = parse_label)]
    selector: Vec<(String, String)>,
    /// The lowest port to consider; 8000 when left out
    #[arg(long, value_name = "PORT")]
    pub start_port: Option<u16>,
    /// Which of the servers that fit is chosen; the service's own when left out
    #[arg(long, value_enum)]
    strategy: Option<StrategyArg>,
}

/// A strategy by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StrategyArg {
    /// The most free RAM
    Spread,
    /// The tightest fit
    Binpack,
}

impl RequestArgs {
    /// The resources asked for; nothing where no flag names one.
    pub fn resources(&self) -> Option<Resources> {
        let resources = Resources { cpu_millis: self.cpu_millis, ram_mb: self.ram_mb, disk_mb: self.disk_mb };
        (resources != Resources::default()).then_some(resources)
    }

    /// The labels asked for. Of two values for one key the last counts.
    pub fn selector(&self) -> BTreeMap<String, String> {
        self.selector.iter().cloned().collect()
    }

    /// The strategy asked for.
    pub fn strategy(&self) -> PlacementStrategy {
        StrategyArg::message(self.strategy)
    }
}

impl StrategyArg {
    /// As the request says it; unspecified where none is asked for.
    pub fn message(strategy: Option<Self>) -> PlacementStrategy {
        match strategy {
            None => PlacementStrategy::Unspecified,
            Some(Self::Spread) => PlacementStrategy::Spread,
            Some(Self::Binpack) => PlacementStrategy::Binpack,
        }
    }
}

/// Reads `NAME[:PORT][/tcp|/udp]`.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse_module(text: &str) -> Result<ModuleSpec, String> {
    let (named, protocol) = match text.split_once('/') {
        None => (text, Protocol::Unspecified),
        Some((named, protocol)) if protocol.eq_ignore_ascii_case("tcp") => (named, Protocol::Tcp),
        Some((named, protocol)) if protocol.eq_ignore_ascii_case("udp") => (named, Protocol::Udp),
        Some((_, protocol)) => return Err(format!("`{protocol}` is no protocol; there are tcp and udp")),
    };
    let (name, port) = match named.split_once(':') {
        None => (named, None),
        Some((name, port)) => match port.parse::<u16>() {
            Ok(number) => (name, Some(u32::from(number))),
            Err(_) => return Err(format!("`{port}` is no port from 1 to 65535")),
        },
    };
    if name.is_empty() {
        return Err("the module's name is missing; a module is written backend, frontend:8080 or dns:53/udp"
            .to_owned());
    }
    Ok(ModuleSpec { name: name.to_owned(), port, protocol: protocol.into() })
}

/// Reads `KEY=VALUE`; the value may be empty, and may hold `=`.
///
/// # Errors
/// A sentence that says what is missing.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written key=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, port: Option<u32>, protocol: Protocol) -> ModuleSpec {
        ModuleSpec { name: name.to_owned(), port, protocol: protocol.into() }
    }

    #[test]
    fn a_module_is_a_name_a_port_and_a_protocol() {
        let tcp = Protocol::Unspecified;
        assert_eq!(parse_module("backend"), Ok(module("backend", None, tcp)));
        assert_eq!(parse_module("frontend:8080"), Ok(module("frontend", Some(8080), tcp)));
        assert_eq!(parse_module("dns:53/udp"), Ok(module("dns", Some(53), Protocol::Udp)));
        assert_eq!(parse_module("dns/UDP"), Ok(module("dns", None, Protocol::Udp)));
        assert_eq!(parse_module("web.v1_a-b:80/tcp"), Ok(module("web.v1_a-b", Some(80), Protocol::Tcp)));
    }

    #[test]
    fn a_malformed_module_says_what_is_wrong() {
        for (text, reason) in [
            ("", "name is missing"),
            (":8080", "name is missing"),
            ("a:", "`` is no port"),
            ("a:http", "`http` is no port"),
            ("a:65536", "`65536` is no port"),
            ("a:1:2", "`1:2` is no port"),
            ("a/sctp", "`sctp` is no protocol"),
            ("a/", "`` is no protocol"),
        ] {
            let error = parse_module(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_label_is_split_at_its_first_equals_sign() {
        assert_eq!(parse_label("region=eu"), Ok(("region".to_owned(), "eu".to_owned())));
        assert_eq!(parse_label("note=a=b"), Ok(("note".to_owned(), "a=b".to_owned())));
        assert_eq!(parse_label("empty="), Ok(("empty".to_owned(), String::new())));
        assert!(parse_label("region").is_err());
        assert!(parse_label("=eu").is_err());
    }
}
