//! Patterns of the scenario: what they stand for is told at its head.

use std::collections::HashMap;

use serde_json::Value;

/// Compares, and remembers what is captured.
#[derive(Default)]
pub struct Matcher {
    captured: HashMap<String, Value>,
}

impl Matcher {
    /// A request with what was remembered in place of its references.
    pub fn resolve(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::Array(elements) => {
                elements.iter().map(|element| self.resolve(element)).collect::<Result<_, _>>()?
            }
            Value::Object(fields) => match fields.get("$ref") {
                Some(name) => self.remembered(name)?.clone(),
                None => Value::Object(
                    fields
                        .iter()
                        .map(|(key, field)| Ok((key.clone(), self.resolve(field)?)))
                        .collect::<Result<_, String>>()?,
                ),
            },
            value => value.clone(),
        })
    }

    /// Says where a value is not what the pattern says.
    pub fn check(&mut self, path: &str, pattern: &Value, value: Option<&Value>) -> Result<(), String> {
        // What is null was left out.
        let value = value.filter(|value| !value.is_null());
        match pattern {
            Value::Null => Ok(()),
            Value::Object(fields) if fields.keys().any(|key| key.starts_with('$')) => {
                fields.iter().try_for_each(|(operator, operand)| self.apply(path, operator, operand, value))
            }
            Value::Object(fields) => {
                expect(value.is_some_and(Value::is_object), path, value, &"an object")?;
                fields.iter().try_for_each(|(key, field)| {
                    self.check(&format!("{path}.{key}"), field, value.and_then(|value| value.get(key)))
                })
            }
            Value::Array(elements) => {
                let size = elements.len();
                expect(is_list_of(value, size), path, value, &format!("a list of {size}"))?;
                elements.iter().enumerate().try_for_each(|(index, element)| {
                    self.check(&format!("{path}[{index}]"), element, value.and_then(|value| value.get(index)))
                })
            }
            pattern => expect(value == Some(pattern), path, value, pattern),
        }
    }

    fn apply(
        &mut self,
        path: &str,
        operator: &str,
        operand: &Value,
        value: Option<&Value>,
    ) -> Result<(), String> {
        let holds = match operator {
            "$any" => value.is_some(),
            "$absent" => value.is_none(),
            "$capture" => {
                let name = operand.as_str().unwrap_or_default().to_owned();
                value.map(|value| self.captured.insert(name, value.clone())).is_some()
            }
            "$ref" => value == Some(self.remembered(operand)?),
            "$not" => self.check(path, operand, value).is_err(),
            "$size" => {
                operand.as_u64().is_some_and(|size| is_list_of(value, usize::try_from(size).unwrap_or(0)))
            }
            "$contains" => value.and_then(Value::as_array).is_some_and(|elements| {
                elements.iter().any(|element| self.check(path, operand, Some(element)).is_ok())
            }),
            operator => return Err(format!("{path}: no runner knows {operator}")),
        };
        expect(holds, path, value, &format!("{operator} {operand}"))
    }

    fn remembered(&self, name: &Value) -> Result<&Value, String> {
        let value = name.as_str().and_then(|name| self.captured.get(name));
        value.ok_or_else(|| format!("{name} was not captured"))
    }
}

fn is_list_of(value: Option<&Value>, size: usize) -> bool {
    value.and_then(Value::as_array).is_some_and(|elements| elements.len() == size)
}

fn expect(
    holds: bool,
    path: &str,
    value: Option<&Value>,
    pattern: &dyn std::fmt::Display,
) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{path} is {}, not {pattern}", value.unwrap_or(&Value::Null))) }
}
