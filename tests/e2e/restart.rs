//! The agent killed, stopped and started again: running containers notice nothing, and what happened
//! meanwhile is known afterwards.

use std::process::Command;

use serde_json::Value;

use crate::node::{Node, succeed};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: stays}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sh, -c, "i=0; while :; do i=$((i+1)); echo $i; usleep 50000; done"]}
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  volumes: [{name: host, hostPath: {path: HOSTPATH}}]
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sh, -c, "until [ -e /host/go ]; do usleep 50000; done; exit 7"], volumeMounts: [{name: host, mountPath: /host}]}
"#;

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn containers_outlive_the_agent_and_their_exits_are_learned() {
    let mut node = Node::start();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    node.apply(&PODS.replace("HOSTPATH", host.to_str().unwrap()));
    let before = node.wait_ready("stays");
    node.wait_ready("ends");

    node.kill_agent();
    std::fs::write(host.join("go"), "").unwrap();
    node.up(&[]);
    node.await_ready();
    let ended = node.wait_phase("ends", "Failed");
    assert_eq!(container(&ended)["state"]["terminated"]["exitCode"], 7);

    let after = node.wait_ready("stays");
    for field in ["containerID", "restartCount", "state"] {
        assert_eq!(container(&before)[field], container(&after)[field], "{field}");
    }
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    let log = node.kubectl(&["logs", "stays"]);
    let numbers: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "no line was lost");

    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

#[test]
fn agents_killed_again_and_again_leave_pods_and_addresses_alone() {
    let mut node = Node::start();
    node.apply(&PODS[..PODS.find("---").unwrap()]);
    let before = node.wait_ready("stays");
    for _ in 0..5 {
        node.kill_agent();
        node.up(&[]);
    }
    node.await_ready();
    let after = node.wait_ready("stays");
    assert_eq!(container(&before)["containerID"], container(&after)["containerID"]);
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

#[test]
fn agents_killed_while_they_make_pods_restart_no_container() {
    const PODS: usize = 10;
    let mut node = Node::start();
    let manifest = node.path("many.yaml");
    std::fs::write(&manifest, (0..PODS).map(of_three).collect::<String>()).unwrap();
    for shims in [1, 4, 7, PODS] {
        let mut apply = node.kubectl_command();
        let mut apply = apply.arg("apply").arg("-f").arg(&manifest).spawn().unwrap();
        node.wait_for("some of the shims", || (node.shims().len() >= shims).then_some(()));
        node.kill_agent();
        // It may have been killed before it had taken all pods.
        apply.wait().unwrap();
        node.up(&[]);
        node.await_ready();
        node.kubectl(&["apply", "-f", manifest.to_str().unwrap()]);
        for number in 0..PODS {
            let status = node.wait_ready(&format!("p{number}"))["status"].take();
            for kind in ["initContainerStatuses", "containerStatuses"] {
                for container in status[kind].as_array().unwrap() {
                    assert_eq!(container["restartCount"], 0, "{container}");
                }
            }
        }
        node.kubectl(&["delete", "pod", "--all"]);
    }
    let log = node.agent_log();
    assert!(!log.contains(" ERROR "), "{log}");
    node.finish();
}

/// A pod of an init container and two others.
fn of_three(number: usize) -> String {
    format!(
        r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: p{number}}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{{name: shared, emptyDir: {{}}}}]
  initContainers:
    - {{name: first, image: "berth.local/busybox:1", command: [touch, /shared/there], volumeMounts: [{{name: shared, mountPath: /shared}}]}}
  containers:
    - {{name: one, image: "berth.local/busybox:1", command: [sleep, "1000"], volumeMounts: [{{name: shared, mountPath: /shared}}]}}
    - {{name: two, image: "berth.local/busybox:1", command: [sleep, "1000"]}}
"#
    )
}

#[test]
fn a_lost_shim_costs_the_pod_a_restart_and_nothing_else() {
    let node = Node::start();
    node.apply(&PODS[..PODS.find("---").unwrap()]);
    let before = node.wait_ready("stays");
    let shim = node.shims().remove(0);
    succeed(Command::new("kill").args(["-KILL", &shim]));
    node.wait_pod("stays", "running anew", |pod| {
        container(pod)["containerID"] != container(&before)["containerID"]
            && !container(pod)["state"]["running"].is_null()
    });
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

#[test]
fn what_the_api_forgot_meanwhile_is_ended() {
    let mut node = Node::start();
    node.apply(&PODS[..PODS.find("---").unwrap()]);
    node.wait_ready("stays");
    node.stop_agent();
    // Another state directory: an API server that has never heard of the pod.
    std::fs::rename(node.path("state/standalone"), node.path("forgotten")).unwrap();
    node.up(&[]);
    node.await_ready();
    node.wait_for("the unknown pod to be ended", || {
        node.berth(&["pods"]).lines().all(|line| !line.contains("stays")).then_some(())
    });
    node.finish();
}
