//! Pods that cannot run: each says what is wrong where its owner looks, leaves nothing, and the rest
//! of the node goes on.

use serde_json::Value;

use crate::node::{Node, condition, told};

fn pod(name: &str, container: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, {container}}}\n"
    )
}

fn waiting(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

#[test]
fn pods_that_cannot_run_say_why_and_harm_nobody() {
    let node = Node::start();
    node.apply(
        &[
            pod("no-image", "image: 'berth.local/nothing:1', imagePullPolicy: Never"),
            pod("no-registry", "image: '127.0.0.1:1/nothing:1'"),
            pod("no-command", "image: 'berth.local/busybox:1', command: [/bin/nothing]"),
            pod(
                "no-settings",
                "image: 'berth.local/busybox:1', envFrom: [{configMapRef: {name: nothing}}]",
            ),
            pod(
                "not-root",
                "image: 'berth.local/busybox:1', securityContext: {runAsNonRoot: true}",
            ),
            pod("no-volumes", "image: 'berth.local/busybox:1'")
                + "  volumes: [{name: a, secret: {secretName: none}}, \
                   {name: b, configMap: {name: neither}}]\n",
            pod("good", "image: 'berth.local/busybox:1', command: [sleep, '1000']"),
        ]
        .concat(),
    );
    node.wait_pod("no-image", "refused its image", |pod| waiting(pod) == "ErrImageNeverPull");
    node.wait_pod("no-registry", "backing off", |pod| waiting(pod) == "ImagePullBackOff");
    node.wait_event("no-registry", "BackOff");
    assert!(
        node.kubectl(&["describe", "pod", "no-registry"])
            .contains("Failed to pull image \"127.0.0.1:1/nothing:1\"")
    );
    let failed = node.wait_phase("no-command", "Failed");
    let terminated = &failed["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(terminated["reason"], "StartError", "{terminated}");
    assert!(terminated["message"].as_str().unwrap().contains("/bin/nothing"), "{terminated}");
    let missing = node.wait_pod("no-settings", "refused its configuration", |pod| {
        waiting(pod) == "CreateContainerConfigError"
    });
    let message = &missing["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert_eq!(message, "configmap \"nothing\" not found");
    node.wait_pod("not-root", "refused its user", |pod| {
        waiting(pod) == "CreateContainerConfigError"
    });
    for (volume, what) in [("a", "secret \"none\""), ("b", "configmap \"neither\"")] {
        let expected =
            format!("MountVolume.SetUp failed for volume \"{volume}\" : {what} not found");
        node.wait_for(&expected, || {
            node.kubectl(&["describe", "pod", "no-volumes"]).contains(&expected).then_some(())
        });
    }
    node.wait_ready("good");

    node.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: nothing}\n");
    node.wait_phase("no-settings", "Succeeded");
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

#[test]
fn a_pod_that_fits_no_node_stays_pending_and_says_so() {
    let node = Node::start();
    let request = "image: 'berth.local/busybox:1', resources: {requests: {cpu: 1000}}";
    node.apply(&pod("huge", request));
    let message = node.wait_event("huge", "FailedScheduling");
    assert!(message.contains("0/1 nodes are available"), "{message}");
    // Bound by hand, the node itself refuses it.
    node.apply(&pod("bound", request).replace("spec:", "spec:\n  nodeName: node-1"));
    let refused = node.wait_phase("bound", "Failed");
    assert_eq!(refused["status"]["reason"], "OutOfcpu");
    a_critical_pod_takes_the_place_of_another(&node);
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

fn a_critical_pod_takes_the_place_of_another(node: &Node) {
    let allocatable = node.get("node", "node-1")["status"]["allocatable"]["cpu"].clone();
    let cpu = allocatable.as_str().unwrap();
    let millis = match cpu.strip_suffix('m') {
        Some(millis) => millis.parse::<u64>().unwrap(),
        None => cpu.parse::<u64>().unwrap() * 1000,
    };
    let most = millis * 3 / 5;
    let request = format!(
        "image: 'berth.local/busybox:1', command: [sleep, '1000'], \
         resources: {{requests: {{cpu: {most}m}}}}"
    );
    node.apply(&pod("lesser", &request));
    node.wait_ready("lesser");
    let urgent = "spec:\n  nodeName: node-1\n  priorityClassName: system-node-critical";
    node.apply(&pod("urgent", &request).replace("spec:", urgent));
    node.wait_ready("urgent");
    let ended = node.wait_phase("lesser", "Failed");
    assert_eq!(ended["status"]["reason"], "Preempting");
    assert_eq!(condition(&ended, "DisruptionTarget"), "True");
    let message = node.wait_event("lesser", "Preempting");
    assert_eq!(message, "Preempted in order to admit critical pod");
}

#[test]
fn what_the_api_cannot_accept_is_refused_before_it_is_stored() {
    let node = Node::start();
    let good = pod("typo", "image: 'berth.local/busybox:1'");
    let typo = node.try_apply(&good.replace("restartPolicy", "restartPolice"));
    assert!(told(&typo).contains("unknown field \"spec.restartPolice\""), "{}", told(&typo));
    let name = node.try_apply(&good.replace("name: typo", "name: Bad_Name"));
    assert!(told(&name).contains("Invalid value"), "{}", told(&name));
    let deployment = node.try_apply("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n");
    assert!(!deployment.status.success(), "{}", told(&deployment));
    let taken = node.try_apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: taken}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 1}]}\n",
    );
    assert!(told(&taken).contains("provided IP is already allocated"), "{}", told(&taken));
    node.finish();
}

#[test]
fn an_exhausted_address_range_is_said_and_mended() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let configuration = node.path("node.yaml");
    std::fs::write(
        &configuration,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodCIDR: 10.77.0.0/30\n",
    )
    .unwrap();
    node.up(&["--config", configuration.to_str().unwrap()]);
    node.await_ready();
    let sleeper = "image: 'berth.local/busybox:1', command: [sleep, '1000']";
    node.apply(&pod("first", sleeper));
    node.wait_ready("first");
    node.apply(&pod("second", sleeper));
    let message = node.wait_event("second", "FailedCreatePodSandBox");
    assert!(message.contains("no IP addresses available in range set"), "{message}");
    node.kubectl(&["delete", "pod", "first"]);
    node.wait_ready("second");
    node.kubectl(&["delete", "pod", "second"]);
    node.finish();
}
