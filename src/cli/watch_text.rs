//! An event as one line of text: when, its number, whose, what, and the details.

use anstyle::{AnsiColor, Style};

use super::output;
use crate::proto::v1::{
    AllocationEvent, Completed, Failed, ModuleSpec, PortSetAside, Protocol, Released, Relocated, Requested,
    Resources, ServerChanged, ServerSelected, Waiting, allocation_event::Detail, released::Cause,
};

/// The line of an event, in colour where it is painted.
pub fn event_line(event: &AllocationEvent, painted: bool) -> String {
    let subject = output::shown(if event.project_id.is_empty() { "-" } else { &event.project_id });
    let (kind, detail) = match &event.detail {
        Some(Detail::Requested(requested)) => ("REQUESTED", requested_text(requested)),
        Some(Detail::Waiting(waiting)) => ("WAITING", waiting_text(waiting)),
        Some(Detail::LeftLine(left)) => {
            ("LEFT_LINE", output::short_name(left.cause().as_str_name(), "CAUSE_").to_owned())
        }
        Some(Detail::ServerSelected(selected)) => ("SERVER_SELECTED", selected_text(selected)),
        Some(Detail::PortAllocated(allocated)) => {
            let allocation = allocated.allocation.clone().unwrap_or_default();
            let port = output::port(&allocation);
            ("PORT_ALLOCATED", format!("{} {port} on {}", allocation.module, allocation.server_handle))
        }
        Some(Detail::Completed(completed)) => ("COMPLETED", completed_text(*completed)),
        Some(Detail::Failed(failed)) => ("FAILED", failed_text(failed)),
        Some(Detail::Released(released)) => ("RELEASED", released_text(released)),
        Some(Detail::Relocated(relocated)) => ("RELOCATED", relocated_text(relocated)),
        Some(Detail::PortSetAside(set_aside)) => ("PORT_SET_ASIDE", set_aside_text(set_aside)),
        Some(Detail::FleetPolicyChanged(changed)) => {
            ("FLEET_POLICY_CHANGED", output::policy(&changed.policy.unwrap_or_default()))
        }
        Some(Detail::ServerChanged(changed)) => ("SERVER_CHANGED", changed_text(changed)),
        None => ("UNKNOWN", "an event of a newer service".to_owned()),
    };
    let time = output::timestamp(event.event_time.as_ref());
    let when = format!("{time}  {:>6}", event.sequence);
    // One event stays one line, whatever a message holds.
    let by = if event.actor.is_empty() { String::new() } else { format!(", by {}", event.actor) };
    let detail = output::shown(&(detail + &by).replace(['\n', '\r'], " "));
    if painted {
        let (dim, of_kind) = (Style::new().dimmed(), style(kind));
        format!("{dim}{when}{dim:#}  {subject}  {of_kind}{kind}{of_kind:#}  {detail}")
    } else {
        format!("{when}  {subject}  {kind}  {detail}")
    }
}

/// What went well is green, what did not red, what takes its time yellow.
fn style(kind: &str) -> Style {
    match kind {
        "COMPLETED" => AnsiColor::Green.on_default().bold(),
        "FAILED" => AnsiColor::Red.on_default().bold(),
        "WAITING" | "LEFT_LINE" => AnsiColor::Yellow.on_default(),
        "RELEASED" => AnsiColor::Magenta.on_default(),
        "SERVER_CHANGED" => AnsiColor::Blue.on_default(),
        _ => AnsiColor::Cyan.on_default(),
    }
}

fn requested_text(requested: &Requested) -> String {
    asked_text(&requested.modules, requested.resources)
}

/// What a request asks for.
pub fn asked_text(modules: &[ModuleSpec], resources: Option<Resources>) -> String {
    let mut parts: Vec<_> = modules.iter().map(module_text).collect();
    let resources = resources.unwrap_or_default();
    parts.extend(resources.ram_mb.map(|amount| format!("{amount} MB RAM")));
    parts.extend(resources.disk_mb.map(|amount| format!("{amount} MB disk")));
    parts.extend(resources.cpu_millis.map(|amount| format!("{amount} CPU millis")));
    if parts.is_empty() { "the defaults".to_owned() } else { parts.join(", ") }
}

/// As the command line writes it.
fn module_text(module: &ModuleSpec) -> String {
    let port = module.port.map(|port| format!(":{port}")).unwrap_or_default();
    let protocol = match module.protocol() {
        Protocol::Udp => "/udp",
        _ => "",
    };
    format!("{}{port}{protocol}", module.name)
}

fn waiting_text(waiting: &Waiting) -> String {
    let until = output::timestamp(waiting.deadline.as_ref());
    format!("place {} in line until {until}, {}", waiting.place, waiting.reason)
}

fn selected_text(selected: &ServerSelected) -> String {
    let strategy = output::short_name(selected.strategy().as_str_name(), "PLACEMENT_STRATEGY_");
    format!(
        "{} at {} by {strategy}, then free: {}",
        selected.server_handle,
        selected.server_address,
        output::free_resources(&selected.free_after.unwrap_or_default()),
    )
}

fn completed_text(completed: Completed) -> String {
    let outcome = output::short_name(completed.outcome().as_str_name(), "ENSURE_OUTCOME_");
    let ports = output::count(completed.allocation_count as usize, "port");
    let end = completed.expire_time.as_ref();
    let end = end.map_or_else(String::new, |end| format!(", ends {}", output::timestamp(Some(end))));
    let waited =
        completed.waited.map_or_else(String::new, |waited| format!(" after {} s in line", waited.seconds));
    format!("{outcome}{waited}, holds {ports}{end}")
}

fn failed_text(failed: &Failed) -> String {
    let disposition = output::short_name(failed.disposition().as_str_name(), "DISPOSITION_");
    format!("{} (disposition {disposition}): {}", failed.reason, failed.message)
}

fn released_text(released: &Released) -> String {
    let ports: Vec<_> = released
        .allocations
        .iter()
        .map(|allocation| format!("{} {}", allocation.module, output::port(allocation)))
        .collect();
    let told = [
        (!ports.is_empty()).then(|| ports.join(", ")),
        released.placement_removed.then(|| "its place is given back".to_owned()),
        (released.cause() == Cause::Expired).then(|| "its lease was over".to_owned()),
    ];
    told.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn relocated_text(relocated: &Relocated) -> String {
    let Relocated { from_server_handle, to_server_handle, to_server_address, .. } = relocated;
    let ports = output::count(relocated.released.len(), "port");
    format!("from {from_server_handle} to {to_server_handle} at {to_server_address}, gives back {ports}")
}

fn set_aside_text(set_aside: &PortSetAside) -> String {
    let allocation = set_aside.allocation.clone().unwrap_or_default();
    let port = output::port(&allocation);
    let until = output::timestamp(set_aside.until.as_ref());
    let seen = if set_aside.detail.is_empty() { "in use on the host" } else { &set_aside.detail };
    format!("{} {port} on {} until {until}: {seen}", allocation.module, allocation.server_handle)
}

fn changed_text(changed: &ServerChanged) -> String {
    let kinds: Vec<_> =
        changed.changes().map(|change| output::short_name(change.as_str_name(), "CHANGE_")).collect();
    let server = changed.server.clone().unwrap_or_default();
    let capacity = output::resources(&server.capacity.unwrap_or_default());
    format!("{} {}: {}, {capacity}", server.handle, kinds.join("+"), output::server_state(&server))
}

#[cfg(test)]
mod tests {
    use pbjson_types::Timestamp;

    use super::*;
    use crate::proto::v1::{
        Allocation, Disposition, EnsureOutcome, LeftLine, PortAllocated, Resources, Server, ServerStatus,
        left_line, server_changed::Change,
    };

    fn line(detail: Detail) -> String {
        let event = AllocationEvent {
            sequence: 17,
            event_time: Some(Timestamp { seconds: 1_767_225_600, nanos: 0 }),
            project_id: "shop".to_owned(),
            detail: Some(detail),
            ..AllocationEvent::default()
        };
        event_line(&event, false)
    }

    #[test]
    fn events_are_one_line_each() {
        let dns = ModuleSpec { name: "dns".to_owned(), port: Some(53), protocol: Protocol::Udp.into() };
        let resources = Some(Resources { ram_mb: Some(512), ..Resources::default() });
        insta::assert_snapshot!(
            line(Detail::Requested(Requested { modules: vec![dns], resources, ..Requested::default() })),
            @"2026-01-01T00:00:00Z      17  shop  REQUESTED  dns:53/udp, 512 MB RAM"
        );
        let allocation = Some(Allocation {
            module: "backend".to_owned(),
            server_handle: "web-1".to_owned(),
            port: 8000,
            protocol: Protocol::Tcp.into(),
            ..Allocation::default()
        });
        insta::assert_snapshot!(
            line(Detail::PortAllocated(PortAllocated { allocation })),
            @"2026-01-01T00:00:00Z      17  shop  PORT_ALLOCATED  backend 8000/TCP on web-1"
        );
        let completed =
            Completed { outcome: EnsureOutcome::Created.into(), allocation_count: 1, ..Completed::default() };
        insta::assert_snapshot!(
            line(Detail::Completed(completed)),
            @"2026-01-01T00:00:00Z      17  shop  COMPLETED  CREATED, holds 1 port"
        );
        let second = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let completed = Completed {
            expire_time: second(1_767_225_600),
            waited: Some(pbjson_types::Duration { seconds: 90, nanos: 0 }),
            ..completed
        };
        insta::assert_snapshot!(line(Detail::Completed(completed)), @"2026-01-01T00:00:00Z      17  shop  COMPLETED  CREATED after 90 s in line, holds 1 port, ends 2026-01-01T00:00:00Z");
        let waiting = Waiting {
            reason: "INSUFFICIENT_CAPACITY".to_owned(),
            place: 3,
            join_time: second(0),
            deadline: second(1_767_225_600),
        };
        insta::assert_snapshot!(line(Detail::Waiting(waiting)), @"2026-01-01T00:00:00Z      17  shop  WAITING  place 3 in line until 2026-01-01T00:00:00Z, INSUFFICIENT_CAPACITY");
        let left = LeftLine { cause: left_line::Cause::Cancelled.into() };
        insta::assert_snapshot!(line(Detail::LeftLine(left)), @"2026-01-01T00:00:00Z      17  shop  LEFT_LINE  CANCELLED");
        let released =
            Released { placement_removed: true, cause: Cause::Expired.into(), ..Released::default() };
        insta::assert_snapshot!(line(Detail::Released(released)), @"2026-01-01T00:00:00Z      17  shop  RELEASED  its place is given back; its lease was over");
        let failed = Failed {
            code: 9,
            reason: "NO_SERVERS".to_owned(),
            disposition: Disposition::Operator.into(),
            message: "no server\nat all".to_owned(),
        };
        insta::assert_snapshot!(
            line(Detail::Failed(failed)),
            @"2026-01-01T00:00:00Z      17  shop  FAILED  NO_SERVERS (disposition OPERATOR): no server at all"
        );
    }

    #[test]
    fn a_change_of_the_inventory_has_no_project() {
        let server = Server {
            handle: "web-1".to_owned(),
            status: ServerStatus::Ready.into(),
            managed: Some(true),
            ..Server::default()
        };
        let changed = ServerChanged {
            changes: vec![Change::Registered.into(), Change::Capacity.into()],
            server: Some(server),
        };
        let event = AllocationEvent {
            sequence: 1,
            detail: Some(Detail::ServerChanged(changed)),
            ..AllocationEvent::default()
        };
        insta::assert_snapshot!(
            event_line(&event, false),
            @"       1  -  SERVER_CHANGED  web-1 REGISTERED+CAPACITY: READY, 0 MB RAM, 0 MB disk, 0 CPU millis"
        );
    }
}
