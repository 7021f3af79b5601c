//! AppArmor profiles of pods on a host that has AppArmor, as the node conformance suite asks, and the
//! runtime's default. These run in the VM; on a host without AppArmor they fail.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Case, apply, pod, run, said};
use crate::node::{Node, told};

/// One that forbids writing, and one that only tells of it.
const PROFILES: &str = "
profile berth-test-reads flags=(attach_disconnected) { file, deny /** w, }
profile berth-test-tells flags=(attach_disconnected) { file, audit /** w, }
";

/// Replaces profiles in the kernel, or removes them.
fn parser(option: &str, text: &str) {
    let mut command = Command::new("/sbin/apparmor_parser");
    command.args([option, "--quiet", "--skip-cache"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "apparmor_parser: {}", told(&output));
}

/// A pod that writes a file, with a profile of the host by the field or by the annotation.
fn writer(name: &str, by: &str, profile: &str) -> Value {
    let more = match by {
        "field" => json!({"container": {"securityContext":
            {"appArmorProfile": {"type": "Localhost", "localhostProfile": profile}}}}),
        _ => json!({"metadata": {"annotations": {
            "container.apparmor.security.beta.kubernetes.io/main": format!("localhost/{profile}")}}}),
    };
    pod(&format!("{name}-{by}"), "touch /file", more)
}

fn ended(phase: &'static str) -> super::Check {
    Box::new(move |pod, _| {
        let status = &pod["status"];
        (status["phase"] != phase).then(|| status.to_string()).into_iter().collect()
    })
}

/// What the pod says of its own profile, with all that a mount needs besides.
fn says(name: &str, context: Value, lines: &'static [&'static str]) -> Case {
    let script = "cat /proc/self/attr/current; mount -t tmpfs none /tmp && echo mounted; true";
    let pod = pod(name, script, json!({"container": {"securityContext": context}}));
    let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    let check: super::Check = Box::new(move |pod, log| {
        let mut faults = said(pod, log, &lines);
        if log.contains("mounted") != lines.iter().any(|line| line == "mounted") {
            faults.push("it mounted, or did not, against its profile".to_owned());
        }
        faults
    });
    Case { names: &[], pod, check }
}

#[test]
fn profiles_confine_containers_and_those_that_are_not_there_stop_them() {
    let node = Node::start();
    parser("--replace", PROFILES);
    let mut cases = Vec::new();
    for by in ["field", "annotation"] {
        let names: &[&str] = &["should enforce a profile blocking writes"];
        let pod = writer("reads", by, "berth-test-reads");
        cases.push(Case { names, pod, check: ended("Failed") });
        let names: &[&str] = &["should enforce a permissive profile"];
        let pod = writer("tells", by, "berth-test-tells");
        cases.push(Case { names, pod, check: ended("Succeeded") });
    }
    let admin = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    let mut confined = admin.clone();
    confined["appArmorProfile"] = json!({"type": "RuntimeDefault"});
    cases.push(says("default", confined, &["berth-default (enforce)"]));
    let mut unasked = says("unasked", admin.clone(), &["berth-default (enforce)"]);
    unasked.pod["spec"]["hostNetwork"] = json!(true);
    cases.push(unasked);
    let mut free = admin;
    free["appArmorProfile"] = json!({"type": "Unconfined"});
    cases.push(says("without", free, &["unconfined", "mounted"]));
    let privileged = json!({"privileged": true,
        "appArmorProfile": {"type": "Localhost", "localhostProfile": "berth-test-reads"}});
    cases.push(says("privileged", privileged, &["unconfined", "mounted"]));
    run(&node, cases);

    // "should reject an unloaded profile"; it is looked for again.
    apply(&node, ["field", "annotation"].map(|by| writer("none", by, "berth-test-none")).into());
    for by in ["field", "annotation"] {
        let waits = node.wait_pod(&format!("none-{by}"), "refused", |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerError"
        });
        let waiting = &waits["status"]["containerStatuses"][0]["state"]["waiting"];
        assert_eq!(waiting["message"], "apparmor profile not found berth-test-none");
    }
    node.kubectl(&["delete", "pod", "--all", "--force"]);

    // A command that is executed in a container is confined as the container is.
    apply(&node, vec![pod("stays", "exec sleep 1000", json!({}))]);
    node.wait_ready("stays");
    let profile = node.kubectl(&["exec", "stays", "--", "cat", "/proc/self/attr/current"]);
    assert_eq!(profile.trim(), "berth-default (enforce)");
    node.kubectl(&["delete", "pod", "--all", "--force"]);
    parser("--remove", PROFILES);
    node.finish();
    let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap();
    assert!(!loaded.contains("berth-"), "{loaded}");
}
