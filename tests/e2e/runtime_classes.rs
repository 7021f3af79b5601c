//! Runtime classes: a pod whose class has a handler that the node knows runs, others wait and say why.

use crate::node::Node;

fn class(name: &str, handler: &str) -> String {
    format!(
        "---\napiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {name}}}\nhandler: {handler}\n"
    )
}

fn pod(name: &str, class: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  runtimeClassName: {class}\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: \
         'berth.local/busybox:1', command: [sleep, '1000']}}\n"
    )
}

#[test]
fn a_pod_runs_with_a_class_whose_handler_is_configured() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let configuration = node.path("node.yaml");
    let handlers = "apiVersion: berth/v1alpha1\nkind: NodeConfiguration\nruntimeHandlers: [fast]\n";
    std::fs::write(&configuration, handlers).unwrap();
    node.up(&["--config", configuration.to_str().unwrap()]);
    node.await_ready();
    let told = node.get("node", "node-1")["status"]["runtimeHandlers"].clone();
    let names: Vec<_> = told.as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["", "fast"], "{told}");

    node.apply(&[class("ours", "fast"), class("others", "kata")].concat());
    node.apply(&[pod("runs", "ours"), pod("waits", "others")].concat());
    node.wait_ready("runs");
    let message = node.wait_event("waits", "FailedCreatePodSandBox");
    assert!(message.contains("no runtime for \"kata\" is configured"), "{message}");
    assert_eq!(node.get("pod", "waits")["status"]["phase"], "Pending");

    // The class that it waits for goes, and comes back as one that the node can run.
    node.kubectl(&["delete", "runtimeclass", "others"]);
    node.wait_for("the pod to say that its class is gone", || {
        let events = node.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"]);
        events.contains("runtimeclass.node.k8s.io \"others\" not found").then_some(())
    });
    node.apply(&class("others", "fast"));
    node.wait_ready("waits");
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
