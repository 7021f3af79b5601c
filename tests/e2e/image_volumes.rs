//! Volumes that are images, pulled from a registry: what they hold, what cannot be done with them, and
//! what is said when they cannot be had.
//!
//! | Public test | Here |
//! |---|---|
//! | ImageVolume should succeed with pod and pull policy of Always | [`images_are_volumes_of_pods`] |
//! | ImageVolume, subPath: a valid one, one that is not in the image (e2e_node) | [`images_are_volumes_of_pods`] |

use serde_json::Value;

use crate::image;
use crate::images::Registry;
use crate::node::{Node, told};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reads}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
    - {name: files, image: {reference: "127.0.0.1:5000/tools/files:1", pullPolicy: Always}}
    - {name: local, image: {reference: "berth.local/busybox:1"}}
  containers:
    - name: test-container
      image: berth.local/busybox:1
      env: [{name: WHERE, value: etc}]
      command: [/bin/sh, -c, "while true; do echo test; sleep 1; done"]
      volumeMounts:
        - {name: files, mountPath: /volume}
        - {name: files, mountPath: /part, subPathExpr: $(WHERE)}
        - {name: files, mountPath: /one, subPath: data.json}
        - {name: local, mountPath: /local}
    - name: other
      image: berth.local/busybox:1
      command: [/bin/sh, -c, "cat /volume/data.json; echo; exec sleep 1000"]
      volumeMounts: [{name: files, mountPath: /volume}]
---
apiVersion: v1
kind: Pod
metadata: {name: mapped}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 0
  volumes: [{name: files, image: {reference: "127.0.0.1:5000/tools/files:1"}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [/bin/sh, -c, "stat -c %u:%g /volume/data.json; exec sleep 1000"]
      volumeMounts: [{name: files, mountPath: /volume}]
---
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: files, image: {reference: "127.0.0.1:5000/tools/files:1"}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sleep, "1000"]
      volumeMounts: [{name: files, mountPath: /volume, subPath: not/there}]
---
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: files, image: {reference: "127.0.0.1:5000/tools/absent:1"}}]
  containers:
    - {name: plain, image: "berth.local/busybox:1", command: [sleep, "1000"]}
    - name: main
      image: berth.local/busybox:1
      command: [sleep, "1000"]
      volumeMounts: [{name: files, mountPath: /volume}]
"#;

fn exec(node: &Node, args: &[&str]) -> std::process::Output {
    let mut all = vec!["exec", "reads", "-c", "test-container", "--"];
    all.extend(args);
    node.try_kubectl(&all)
}

fn waiting<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let found = statuses.into_iter().flatten().find(|status| status["name"] == container);
    found.map_or(&Value::Null, |status| &status["state"]["waiting"])
}

#[test]
fn images_are_volumes_of_pods() {
    let mut node = Node::start();
    let registry = Registry::start(&node);
    registry.push(&node, &image::files(), "tools/files:1");
    node.apply(PODS);
    node.wait_ready("reads");
    for (file, expected) in [
        ("/volume/data.json", "kitten.jpg"),
        ("/volume/etc/os-release", "Berth Linux"),
        ("/part/os-release", "Berth Linux"),
        ("/one", "kitten.jpg"),
        ("/local/etc/passwd", "alice"),
    ] {
        let text = told(&exec(&node, &["/bin/cat", file]));
        assert!(text.contains(expected), "{file}: {text}");
    }
    for (command, why) in [
        ("touch /volume/new", "Read-only file system"),
        ("rm /part/os-release", "Read-only file system"),
        ("/local/bin/busybox true", "Permission denied"),
    ] {
        let output = exec(&node, &["/bin/sh", "-c", command]);
        assert!(!output.status.success() && told(&output).contains(why), "{}", told(&output));
    }
    node.wait_for("the other container's line", || {
        node.kubectl(&["logs", "reads", "-c", "other"]).contains("kitten.jpg").then_some(())
    });
    let pulled = node.wait_event("reads", "Pulling");
    assert_eq!(pulled, "Pulling image \"127.0.0.1:5000/tools/files:1\"");
    let shown = node.get("pod", "reads");
    assert_eq!(shown["spec"]["volumes"][1]["image"]["pullPolicy"], "IfNotPresent");

    node.wait_ready("mapped");
    node.wait_for("the owner of a mapped file", || {
        (node.kubectl(&["logs", "mapped"]) == "0:0\n").then_some(())
    });
    let missing = node.wait_pod("missing", "told what is missing", |pod| {
        waiting(pod, "main")["reason"] == "CreateContainerError"
    });
    let message = waiting(&missing, "main")["message"].as_str().unwrap();
    assert!(message.starts_with("ImageVolumeMountFailed: "), "{message}");
    let absent = node.wait_pod("absent", "backing off", |pod| {
        waiting(pod, "main")["reason"] == "ImagePullBackOff" && waiting(pod, "plain").is_null()
    });
    let message = waiting(&absent, "main")["message"].as_str().unwrap();
    let begin = "Back-off pulling image \"127.0.0.1:5000/tools/absent:1\": ErrImagePull: ";
    assert!(message.starts_with(begin), "{message}");

    node.kill_agent();
    node.up(&[]);
    node.await_ready();
    assert!(told(&exec(&node, &["/bin/cat", "/volume/data.json"])).contains("kitten.jpg"));
    let gone = ["delete", "pod", "reads", "mapped", "missing", "absent", "--wait"];
    node.kubectl(&gone);
    drop(registry);
    node.finish();
}
