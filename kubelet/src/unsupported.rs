//! What of a pod this node does not do: nothing is ignored in silence.
//!
//! Every field of a pod's specification stands in one of the tables of [`tables`], which say whether
//! it is honoured, reported (the pod runs, an event tells what is not done) or refused (running it
//! without would be wrong or unsafe). A test holds the tables against the API's own list of fields,
//! so that a new one cannot be forgotten. Whoever makes a field work changes its line there.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

pub mod tables;

/// What happens to a field that is set.
#[derive(Clone, Copy)]
pub enum Support {
    /// It has its effect, or belongs to somebody else (the scheduler, the API server).
    Honoured,
    /// The pod runs without; the text says what is missing.
    Report(&'static str),
    /// The pod is turned away; the text says why.
    Refuse(&'static str),
    /// It depends on the value, and on the object that it stands in.
    Depends(Judge),
    /// An object with a table of its own.
    Object(&'static Table),
    /// A list of objects with a table of their own.
    List(&'static Table),
}

/// Judges a field's value in its object.
pub type Judge = fn(&Value, &serde_json::Map<String, Value>) -> Option<(Severity, &'static str)>;

/// A type of the API and what is done with its fields.
pub struct Table {
    /// The type's name in the API.
    pub name: &'static str,
    /// Its fields by their JSON names.
    pub fields: &'static [(&'static str, Support)],
}

/// How bad it is that a field is not honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The pod runs, and an event says what is not done.
    Report,
    /// The pod is not run.
    Refuse,
}

/// A field that is set and not honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: `spec.containers[0].lifecycle.preStop`.
    pub path: String,
    /// How bad.
    pub severity: Severity,
    /// What is not done, or why not.
    pub message: &'static str,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Everything in a pod's specification that this node does not honour, in the order of the fields.
pub fn audit(pod: &Pod) -> Vec<Finding> {
    let mut findings = Vec::new();
    match serde_json::to_value(&pod.spec) {
        Ok(Value::Object(spec)) => walk(&tables::POD_SPEC, &spec, "spec", &mut findings),
        Ok(_) => {}
        Err(_) => findings.push(Finding {
            path: "spec".to_owned(),
            severity: Severity::Refuse,
            message: "the specification cannot be read",
        }),
    }
    findings
}

/// Everything in one container that this node does not honour: ephemeral ones come when the pod has
/// long been admitted.
pub fn audit_container(container: &Container) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(Value::Object(fields)) = serde_json::to_value(container) {
        walk(&tables::CONTAINER, &fields, &container.name, &mut findings);
    }
    findings
}

/// The findings that keep a pod from running, as one sentence.
pub fn refusal(findings: &[Finding]) -> Option<String> {
    let refused: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Refuse)
        .map(Finding::to_string)
        .collect();
    (!refused.is_empty()).then(|| refused.join("; "))
}

fn walk(table: &Table, object: &serde_json::Map<String, Value>, at: &str, out: &mut Vec<Finding>) {
    for (field, value) in object {
        if is_unset(value) {
            continue;
        }
        let path = format!("{at}.{field}");
        let known = table.fields.iter().find(|(name, _)| name == field);
        let mut note = |severity, message| {
            out.push(Finding { path: path.clone(), severity, message });
        };
        match known.map(|(_, support)| *support) {
            Some(Support::Honoured) => {}
            Some(Support::Report(message)) => note(Severity::Report, message),
            Some(Support::Refuse(message)) => note(Severity::Refuse, message),
            Some(Support::Depends(judge)) => {
                if let Some((severity, message)) = judge(value, object) {
                    note(severity, message);
                }
            }
            Some(Support::Object(table)) => {
                if let Value::Object(inner) = value {
                    walk(table, inner, &path, out);
                }
            }
            Some(Support::List(table)) => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    if let Value::Object(inner) = item {
                        walk(table, inner, &format!("{path}[{index}]"), out);
                    }
                }
            }
            None => note(Severity::Refuse, "this node does not know the field"),
        }
    }
}

/// A field that says no more than its absence would.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests;
