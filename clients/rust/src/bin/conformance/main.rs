//! Plays tests/conformance/scenario.yaml in Rust: on tonic and the stubs that build.rs generates from proto/.
//!
//! Usage: `conformance SCENARIO`; `RESOURCE_ALLOCATOR_ENDPOINT` names the service, which must have been started anew.

mod calls;
mod matcher;

use std::{collections::BTreeMap, env, error::Error, fs, process::ExitCode};

use serde::Deserialize;
use serde_json::Value;
use tonic::transport::Endpoint;

use self::calls::Runner;

#[derive(Deserialize)]
struct Scenario {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    name: String,
    call: Option<String>,
    stream: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default = "empty")]
    request: Value,
    answer: Option<Value>,
    #[serde(default)]
    messages: Vec<Value>,
    refused: Option<Value>,
}

fn empty() -> Value {
    Value::Object(serde_json::Map::new())
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: conformance SCENARIO")?;
    let scenario: Scenario = serde_yaml_ng::from_str(&fs::read_to_string(path)?)?;
    let channel = Endpoint::from_shared(env::var("RESOURCE_ALLOCATOR_ENDPOINT")?)?.connect().await?;
    let mut runner = Runner::new(channel)?;
    let (mut passed, mut failed) = (0, 0);
    for step in &scenario.steps {
        match runner.play(step).await {
            Ok(()) => passed += 1,
            Err(problem) => {
                failed += 1;
                println!("FAILED {}: {problem}", step.name);
            }
        }
    }
    println!("rust: {passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
