//! What several requests have: names, ports, amounts, labels, modules.

use std::collections::BTreeMap;

use super::Fields;
use crate::{
    domain::{
        ModuleName, Port, ProjectId, Protocol, ResourceRequest, ServerHandle,
        ids::check_name,
        request::ModuleRequest,
        resources::{MAX_CPU_MILLIS, MAX_MB, PerResource},
    },
    proto::v1,
};

/// The most modules of a request.
pub(super) const MAX_MODULES: usize = 64;
/// The most labels of a server or a selector.
const MAX_LABELS: usize = 64;

/// A project's id.
pub fn project_id(fields: &mut Fields, field: &str, id: &str) -> Option<ProjectId> {
    fields.take(field, ProjectId::parse(id))
}

/// A server's handle.
pub fn handle(fields: &mut Fields, field: &str, handle: &str) -> Option<ServerHandle> {
    fields.take(field, ServerHandle::parse(handle))
}

/// A source's name, or nothing for a server that was registered by hand.
pub fn source(fields: &mut Fields, field: &str, source: &str) {
    if !source.is_empty()
        && let Err(error) = check_name(source, 63, "._-")
    {
        fields.refuse(field, error);
    }
}

/// An etag, none where it is empty.
#[must_use]
pub fn etag(etag: String) -> Option<String> {
    (!etag.is_empty()).then_some(etag)
}

pub(super) fn port(fields: &mut Fields, field: String, port: u32) -> Option<Port> {
    fields.take(field, Port::try_from(port))
}

/// What a caller wrote, as it is told back: without control characters, and not more of it than a reader needs.
#[must_use]
pub fn told(text: &str) -> String {
    const MOST: usize = 64;
    let start: String = text.chars().take(MOST).collect();
    let rest = if text.chars().nth(MOST).is_some() { "…" } else { "" };
    format!("{}{rest}", start.escape_debug())
}

/// A value of an enum, none where it is unspecified.
pub(super) fn enumeration<E: TryFrom<i32>>(
    fields: &mut Fields,
    field: impl Into<String>,
    value: i32,
) -> Option<E> {
    let known = E::try_from(value);
    if known.is_err() {
        fields.refuse(field, format!("{value} is none of its values"));
    }
    known.ok()
}

fn protocol(fields: &mut Fields, field: String, value: i32) -> Option<Protocol> {
    match enumeration(fields, field, value)? {
        v1::Protocol::Unspecified => None,
        v1::Protocol::Tcp => Some(Protocol::Tcp),
        v1::Protocol::Udp => Some(Protocol::Udp),
    }
}

/// Amounts that may each be left out.
pub(super) fn resources(fields: &mut Fields, field: &str, amounts: Option<v1::Resources>) -> ResourceRequest {
    let amounts = amounts.unwrap_or_default();
    ResourceRequest {
        cpu_millis: cpu_millis(fields, field, amounts.cpu_millis),
        ram_mb: megabytes(fields, &format!("{field}.ram_mb"), amounts.ram_mb),
        disk_mb: megabytes(fields, &format!("{field}.disk_mb"), amounts.disk_mb),
    }
}

pub(super) fn cpu_millis(fields: &mut Fields, field: &str, amount: Option<u32>) -> Option<i64> {
    let amount = amount?;
    if amount > MAX_CPU_MILLIS {
        fields.refuse(format!("{field}.cpu_millis"), format!("must be at most {MAX_CPU_MILLIS}"));
    }
    Some(i64::from(amount))
}

pub(super) fn megabytes(fields: &mut Fields, field: &str, amount: Option<u64>) -> Option<i64> {
    let amount = amount?;
    if amount > MAX_MB {
        fields.refuse(field, format!("must be at most {MAX_MB}"));
    }
    i64::try_from(amount).ok()
}

/// Figures in percent that may each be left out.
pub(super) fn percentages(
    fields: &mut Fields,
    field: &str,
    figures: Option<v1::Percentages>,
    allowed: std::ops::RangeInclusive<i64>,
) -> PerResource<Option<i64>> {
    let figures = figures.unwrap_or_default();
    let mut percent = |name: &str, figure: Option<u32>| {
        let figure = i64::from(figure?);
        if !allowed.contains(&figure) {
            let (least, most) = (allowed.start(), allowed.end());
            fields.refuse(format!("{field}.{name}"), format!("must be {least} to {most} percent"));
        }
        Some(figure)
    };
    PerResource {
        cpu: percent("cpu", figures.cpu),
        ram: percent("ram", figures.ram),
        disk: percent("disk", figures.disk),
    }
}

/// Whether a character is not seen, or moves those around it: a text with one could look like another.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a text has at most so many characters, none of them hidden.
#[must_use]
pub fn is_legible(text: &str, most: usize) -> bool {
    text.chars().count() <= most && !text.chars().any(is_hidden)
}

/// Text for people.
pub(super) fn short_text(fields: &mut Fields, field: &str, text: &str) {
    if !is_legible(text, 255) {
        fields.refuse(field, "must be at most 255 characters, none of them hidden or a control character");
    }
}

/// Labels, of a server or of a selector.
pub(super) fn labels(
    fields: &mut Fields,
    field: &str,
    labels: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    if labels.len() > MAX_LABELS {
        fields.refuse(field, format!("must be at most {MAX_LABELS} labels"));
    }
    for (key, value) in labels.iter().take(MAX_LABELS) {
        if let Err(error) = check_name(key, 63, "._/-") {
            fields.refuse(format!("{field}[{}]", told(key)), format!("the key {error}"));
        }
        if !is_legible(value, 255) {
            let problem =
                "the value must be at most 255 characters, none of them hidden or a control character";
            fields.refuse(format!("{field}[{}]", told(key)), problem);
        }
    }
    labels
}

/// Modules: identical duplicates collapse, contradictory ones are refused (L8).
pub(super) fn modules(fields: &mut Fields, specs: Vec<v1::ModuleSpec>) -> Vec<ModuleRequest> {
    if specs.len() > MAX_MODULES {
        fields.refuse("modules", format!("must be at most {MAX_MODULES}"));
        return Vec::new();
    }
    let mut modules: Vec<ModuleRequest> = Vec::with_capacity(specs.len());
    let mut ports: BTreeMap<(Protocol, Port), usize> = BTreeMap::new();
    for (index, spec) in specs.into_iter().enumerate() {
        let path = format!("modules[{index}]");
        let name = fields.take(format!("{path}.name"), ModuleName::parse(&spec.name));
        let port = spec.port.and_then(|number| port(fields, format!("{path}.port"), number));
        let protocol = protocol(fields, format!("{path}.protocol"), spec.protocol);
        let Some(name) = name else { continue };
        let module = ModuleRequest { name, port, protocol };
        let tcp_by_default = |protocol: Option<Protocol>| protocol.unwrap_or(Protocol::Tcp);
        match modules.iter_mut().find(|known| known.name == module.name) {
            Some(known)
                if known.port == module.port
                    && tcp_by_default(known.protocol) == tcp_by_default(module.protocol) =>
            {
                known.protocol = known.protocol.or(module.protocol);
                continue;
            }
            Some(_) => {
                fields.refuse(path, format!("names `{}` again with another port or protocol", module.name));
                continue;
            }
            None => {}
        }
        if let Some(port) = module.port {
            let key = (module.protocol.unwrap_or(Protocol::Tcp), port);
            if let Some(first) = ports.insert(key, index) {
                fields.refuse(format!("{path}.port"), format!("is asked for by modules[{first}] already"));
            }
        }
        modules.push(module);
    }
    modules
}
