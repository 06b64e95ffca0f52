//! Who asked for what is written down: a name that goes with a row's JSON, and costs nothing where there is none.

use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    actor: String,
}

/// Writes a row's JSON, an object, with the name in it.
pub(super) fn encode(value: &impl Serialize, actor: &str) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    match json.strip_prefix('{') {
        Some(rest) if !actor.is_empty() => {
            let comma = if rest == "}" { "" } else { "," };
            Ok(format!(r#"{{"actor":{}{comma}{rest}"#, serde_json::to_string(actor)?))
        }
        _ => Ok(json),
    }
}

/// The name in a row's JSON; empty where there is none.
pub(super) fn find(json: &str) -> String {
    // Most rows have none where nobody shows who calls, and need not be read twice.
    if !json.contains(r#""actor""#) {
        return String::new();
    }
    serde_json::from_str::<Asked>(json).map(|asked| asked.actor).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_name_is_found_where_it_was_written() {
        let values = [BTreeMap::new(), BTreeMap::from([("a", "b")]), BTreeMap::from([("a", "\"actor\":1")])];
        for value in &values {
            for name in ["", "deploy", "CN=\"a\\b"] {
                let json = encode(value, name).unwrap();
                assert_eq!(find(&json), name, "{json}");
                let mut read: BTreeMap<String, String> = serde_json::from_str(&json).unwrap();
                read.remove("actor");
                assert_eq!(read.len(), value.len(), "{json}");
            }
        }
    }
}
