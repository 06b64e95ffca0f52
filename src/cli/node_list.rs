//! The list of a source whose servers are hosts with a node_exporter: which server each exporter is, and what the list says
//! of it.
//!
//! Pure. A sync replaces everything that an operator may set on a server, so what stands is carried over: an exporter tells
//! capacity, and an address where nobody set another. Status and `managed` are left out, which leaves them as they are.

use std::collections::BTreeMap;

use super::{node_exporter::Exporter, node_metrics::NodeMetrics, output};
use crate::proto::v1::{Server, ServerStatus};

/// An exporter and what it said last.
pub type Host<'a> = (&'a Exporter, &'a NodeMetrics);

/// A server of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The server as the list has it.
    pub server: Server,
    /// Whether the source has it already.
    pub is_known: bool,
}

/// A list, in the order of its exporters, and what an operator should know of it.
#[derive(Debug, Default, PartialEq)]
pub struct NodeList {
    /// The servers.
    pub entries: Vec<Entry>,
    /// Sentences for standard error.
    pub notes: Vec<String>,
}

/// Why exporters make no list.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum NodeListError {
    /// Two exporters are one server.
    #[error(
        "{first} and {second} are both the server `{handle}`; give each host a name of its own, and list each exporter once"
    )]
    SameServer {
        /// The server.
        handle: String,
        /// An exporter.
        first: String,
        /// The other.
        second: String,
    },
    /// An exporter's URL is one server's and its host's name another's.
    #[error(
        "{url} has been the server `{by_url}`, and now calls itself `{by_name}`, which is another server of the source; if \
         the host moved there, take the URL from the former: resource-allocator servers set {by_url} external_id="
    )]
    TwoServers {
        /// The exporter.
        url: String,
        /// The server that has its external id.
        by_url: String,
        /// The server that has its host's name.
        by_name: String,
    },
}

/// Makes the list of the exporters' hosts. A server is known by its external id, which is where its exporter is, else by its
/// handle, which is its host's name. `addresses` are by handle and count more than any other.
///
/// # Errors
/// [`NodeListError`]
pub fn node_list(
    hosts: &[Host<'_>],
    known: &[Server],
    addresses: &BTreeMap<String, String>,
) -> Result<NodeList, NodeListError> {
    let mut list = NodeList::default();
    let mut taken: BTreeMap<String, &Exporter> = BTreeMap::new();
    for (exporter, metrics) in hosts {
        let standing = standing(exporter, metrics, known)?;
        let entry = entry(exporter, metrics, standing, addresses);
        let handle = entry.server.handle.clone();
        if let Some(first) = taken.insert(handle.clone(), exporter) {
            let (first, second) = (first.to_string(), exporter.to_string());
            return Err(NodeListError::SameServer { handle, first, second });
        }
        if let Some(standing) = standing {
            list.notes.extend(notes(exporter, metrics, standing));
        }
        list.entries.push(entry);
    }
    Ok(list)
}

fn standing<'a>(
    exporter: &Exporter,
    metrics: &NodeMetrics,
    known: &'a [Server],
) -> Result<Option<&'a Server>, NodeListError> {
    let external_id = exporter.external_id();
    let by_url = known.iter().find(|server| server.external_id == external_id);
    let by_name = known.iter().find(|server| server.handle == metrics.handle.as_str());
    match (by_url, by_name) {
        (Some(by_url), Some(by_name)) if by_url.handle != by_name.handle => Err(NodeListError::TwoServers {
            url: exporter.to_string(),
            by_url: by_url.handle.clone(),
            by_name: by_name.handle.clone(),
        }),
        _ => Ok(by_url.or(by_name)),
    }
}

fn entry(
    exporter: &Exporter,
    metrics: &NodeMetrics,
    standing: Option<&Server>,
    addresses: &BTreeMap<String, String>,
) -> Entry {
    let handle = standing.map_or(metrics.handle.as_str(), |server| &server.handle);
    let address = match (addresses.get(handle), standing) {
        (Some(address), _) => address,
        (None, Some(server)) if !follows_its_exporter(server) => &server.address,
        (None, _) => exporter.host(),
    };
    let server = Server {
        handle: handle.to_owned(),
        address: address.to_owned(),
        status: ServerStatus::Unspecified.into(),
        managed: None,
        capacity: Some(metrics.capacity()),
        external_id: exporter.external_id(),
        // Output only, and large where many ports are listened on.
        observed: None,
        ..standing.cloned().unwrap_or_default()
    };
    Entry { server, is_known: standing.is_some() }
}

/// Whether the address is the one that the exporter's URL gave, and not one that an operator set.
fn follows_its_exporter(server: &Server) -> bool {
    Exporter::host_of_external_id(&server.external_id).as_ref() == Some(&server.address)
}

fn notes(exporter: &Exporter, metrics: &NodeMetrics, standing: &Server) -> Vec<String> {
    let mut notes = Vec::new();
    let (handle, name) = (&standing.handle, metrics.handle.as_str());
    if handle != name {
        notes.push(format!(
            "{exporter} calls itself `{name}`, and stays the server `{handle}` that it has been"
        ));
    } else if !standing.external_id.is_empty() && standing.external_id != exporter.external_id() {
        notes.push(format!(
            "{handle}: its exporter was at {}, and is {exporter} by now",
            standing.external_id
        ));
    }
    let usage = standing.observed.as_ref().and_then(|observed| observed.usage.as_ref());
    let ports = usage.map_or(0, |usage| usage.listening_ports.len());
    if ports > 0 {
        let ports = output::count(ports, "listening port");
        notes.push(format!(
            "{handle}: its latest usage report names {ports}; an exporter knows of none, and each report replaces the one \
             before, so that projects may be given those ports from now on, unless they are in excluded_ports"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{ObservedUsage, PortRange, Resources, Usage};

    fn exporter(url: &str) -> Exporter {
        Exporter::parse(url).unwrap()
    }

    fn metrics(name: &str) -> NodeMetrics {
        let text = format!(
            "node_uname_info{{nodename=\"{name}\"}} 1\n\
             node_memory_MemTotal_bytes 1048576000\nnode_memory_MemAvailable_bytes 0\n\
             node_filesystem_size_bytes{{mountpoint=\"/\"}} 2097152000\n\
             node_filesystem_avail_bytes{{mountpoint=\"/\"}} 0\n\
             node_cpu_seconds_total{{cpu=\"0\",mode=\"idle\"}} 1\n"
        );
        NodeMetrics::parse(&text, "/").unwrap()
    }

    /// A server that the source has, with all that an operator may set.
    fn known(handle: &str, external_id: &str, address: &str) -> Server {
        Server {
            handle: handle.to_owned(),
            address: address.to_owned(),
            status: ServerStatus::InUse.into(),
            managed: Some(false),
            labels: [("region".to_owned(), "eu".to_owned())].into(),
            capacity: Some(Resources { ram_mb: Some(1), disk_mb: Some(1), cpu_millis: Some(1) }),
            headroom: Some(Resources { ram_mb: Some(512), ..Resources::default() }),
            port_range: Some(PortRange { start: 2000, end: 3000 }),
            excluded_ports: vec![PortRange { start: 2100, end: 2100 }],
            source: "rack".to_owned(),
            external_id: external_id.to_owned(),
            etag: "g7".to_owned(),
            ..Server::default()
        }
    }

    fn list_of(hosts: &[(&str, &str)], known: &[Server]) -> Result<NodeList, NodeListError> {
        list_with(hosts, known, &[])
    }

    fn list_with(
        hosts: &[(&str, &str)],
        known: &[Server],
        addresses: &[(&str, &str)],
    ) -> Result<NodeList, NodeListError> {
        let hosts: Vec<_> = hosts.iter().map(|(url, name)| (exporter(url), metrics(name))).collect();
        let hosts: Vec<_> = hosts.iter().map(|(exporter, metrics)| (exporter, metrics)).collect();
        let addresses =
            addresses.iter().map(|(handle, address)| ((*handle).to_owned(), (*address).to_owned()));
        node_list(&hosts, known, &addresses.collect())
    }

    #[test]
    fn a_new_host_is_its_name_its_url_and_its_capacity() {
        let list = list_of(&[("http://10.0.0.1:9100", "web-1")], &[]).unwrap();
        let server = Server {
            handle: "web-1".to_owned(),
            address: "10.0.0.1".to_owned(),
            capacity: Some(Resources { ram_mb: Some(1000), disk_mb: Some(2000), cpu_millis: Some(1000) }),
            external_id: "10.0.0.1:9100".to_owned(),
            ..Server::default()
        };
        assert_eq!(list.entries, [Entry { server, is_known: false }]);
        assert!(list.notes.is_empty());
    }

    #[test]
    fn what_an_operator_set_is_carried_over() {
        let standing = known("web-1", "10.0.0.1:9100", "10.0.0.1");
        let list = list_of(&[("http://10.0.0.1:9100", "web-1")], std::slice::from_ref(&standing)).unwrap();
        let expected = Server {
            status: ServerStatus::Unspecified.into(),
            managed: None,
            capacity: Some(metrics("web-1").capacity()),
            ..standing
        };
        assert_eq!(list.entries, [Entry { server: expected, is_known: true }]);
        assert!(list.notes.is_empty());
    }

    #[test]
    fn an_address_follows_the_url_unless_it_was_set_l34() {
        let moved = [("http://10.0.0.2:9100", "web-1")];
        let address = |known: Server, addresses: &[(&str, &str)]| {
            list_with(&moved, &[known], addresses).unwrap().entries[0].server.address.clone()
        };
        assert_eq!(address(known("web-1", "10.0.0.1:9100", "10.0.0.1"), &[]), "10.0.0.2");
        assert_eq!(address(known("web-1", "10.0.0.1:9100", "203.0.113.5"), &[]), "203.0.113.5");
        assert_eq!(address(known("web-1", "", "203.0.113.5"), &[]), "203.0.113.5");
        assert_eq!(
            address(known("web-1", "10.0.0.1:9100", "10.0.0.1"), &[("web-1", "a.example")]),
            "a.example"
        );
        let list = list_of(&moved, &[known("web-1", "10.0.0.1:9100", "10.0.0.1")]).unwrap();
        assert_eq!(list.entries[0].server.external_id, "10.0.0.2:9100");
        assert_eq!(
            list.notes,
            ["web-1: its exporter was at 10.0.0.1:9100, and is http://10.0.0.2:9100/metrics by now"]
        );
    }

    #[test]
    fn a_host_that_was_renamed_stays_the_server_of_its_url_l34() {
        let list =
            list_of(&[("http://10.0.0.1:9100", "renamed")], &[known("web-1", "10.0.0.1:9100", "10.0.0.1")])
                .unwrap();
        assert_eq!(list.entries[0].server.handle, "web-1");
        assert!(
            list.notes[0].contains("calls itself `renamed`, and stays the server `web-1`"),
            "{:?}",
            list.notes
        );
    }

    #[test]
    fn hosts_that_changed_places_are_left_to_an_operator() {
        let known =
            [known("web-1", "10.0.0.1:9100", "10.0.0.1"), known("web-2", "10.0.0.2:9100", "10.0.0.2")];
        let error = list_of(&[("http://10.0.0.1:9100", "web-2")], &known).unwrap_err();
        assert!(
            error.to_string().contains("has been the server `web-1`, and now calls itself `web-2`"),
            "{error}"
        );
        let error = list_of(&[("http://10.0.0.1:9100", "web-9"), ("http://10.0.0.3:9100", "web-1")], &known)
            .unwrap_err();
        assert!(error.to_string().contains("are both the server `web-1`"), "{error}");
    }

    #[test]
    fn two_hosts_of_one_name_make_no_list() {
        let error = list_of(&[("http://a:9100", "debian"), ("http://b:9100", "debian")], &[]).unwrap_err();
        assert!(
            error.to_string().starts_with(
                "http://a:9100/metrics and http://b:9100/metrics are both the server `debian`; give"
            ),
            "{error}"
        );
    }

    #[test]
    fn ports_that_another_reporter_told_are_pointed_out() {
        let usage = Some(Usage { listening_ports: vec![22, 8080], ..Usage::default() });
        let standing = Server {
            observed: Some(ObservedUsage { usage, ..ObservedUsage::default() }),
            ..known("web-1", "a:9100", "a")
        };
        let list = list_of(&[("http://a:9100", "web-1")], &[standing]).unwrap();
        assert_eq!(list.entries[0].server.observed, None);
        assert!(
            list.notes[0].starts_with("web-1: its latest usage report names 2 listening ports;"),
            "{:?}",
            list.notes
        );
    }
}
