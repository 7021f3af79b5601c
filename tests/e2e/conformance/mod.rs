//! What upstream's conformance suite asks of a node, under its names: pods that run to their end and
//! say what they saw ([`environment`], [`files`], [`apparmor`]), and pods that are watched and changed
//! ([`lives`], [`resize`]).
//! [`table`] holds the list of all names against the tests.

mod apparmor;
mod environment;
mod files;
mod lives;
pub(crate) mod resize;
mod selinux;
mod table;

use serde_json::{Value, json};

use crate::image;
use crate::node::Node;

/// A pod that runs to its end, and what is to be seen then.
struct Case {
    /// The public tests it stands for.
    names: &'static [&'static str],
    pod: Value,
    check: Check,
}

/// Says what is wrong with the pod, which has ended, and with what it has said.
type Check = Box<dyn Fn(&Value, &str) -> Vec<String>>;

/// A pod of busybox that runs `script`; `more` goes into its specification, and `more.container` into
/// its container.
fn pod(name: &str, script: &str, more: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image::BUSYBOX, "command": ["sh", "-c", script]}],
        },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        match field.as_str() {
            "container" => {
                for (field, value) in value.as_object().into_iter().flatten() {
                    pod["spec"]["containers"][0][field] = value.clone();
                }
            }
            "metadata" => {
                for (field, value) in value.as_object().into_iter().flatten() {
                    pod["metadata"][field] = value.clone();
                }
            }
            _ => pod["spec"][field] = value.clone(),
        }
    }
    pod
}

/// The pod succeeds and has said these lines, among others.
fn says(lines: &[&str]) -> Check {
    let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    Box::new(move |pod, log| said(pod, log, &lines))
}

/// What of `lines` the pod has not said.
fn said(pod: &Value, log: &str, lines: &[String]) -> Vec<String> {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    let mut faults: Vec<String> = lines
        .iter()
        .filter(|wanted| !log.lines().any(|line| line.trim_end() == wanted.as_str()))
        .map(|wanted| format!("{wanted:?} was not said"))
        .collect();
    if phase != "Succeeded" {
        faults.push(format!("phase {phase}: {}", pod["status"]));
    }
    faults
}

/// Applies objects with one command.
fn apply(node: &Node, objects: Vec<Value>) {
    let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
    node.apply(&documents.join("\n---\n"));
}

/// Runs all cases beside each other on a node and tells of everything that is wrong.
fn run(node: &Node, cases: Vec<Case>) {
    apply(node, cases.iter().map(|case| case.pod.clone()).collect());
    let mut faults = Vec::new();
    for case in &cases {
        let name = case.pod["metadata"]["name"].as_str().unwrap();
        let ended = node.wait_pod(name, "over", |pod| {
            matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        });
        let log = node.kubectl(&["logs", name]);
        let found = (case.check)(&ended, &log);
        if !found.is_empty() {
            faults.push(format!("{name}: {:?}\n{found:#?}\nit said:\n{log}", case.names));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    node.kubectl(&["delete", "pod", "--all"]);
}
