//! The lives of containers on a real kernel: sidecars, restart rules, ephemeral containers, readiness
//! gates, static pods. What a table can say is in the kubelet's own tests; here are those that show
//! that it holds on processes. All cases of a test share one node.

use serde_json::Value;

use crate::node::{Node, condition};

/// A pod whose containers run these scripts; `more` is YAML of the pod's specification.
fn pod(name: &str, more: &str, containers: &[(&str, &str)]) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 5\n  volumes: [{{name: work, emptyDir: {{}}}}]\n{more}  \
         containers:\n"
    );
    for (name, script) in containers {
        text.push_str(&container(name, script, ""));
    }
    text
}

fn container(name: &str, script: &str, more: &str) -> String {
    format!(
        "  - name: {name}\n    image: berth.local/busybox:1\n    command: [sh, -c, {script:?}]\n    \
         volumeMounts: [{{name: work, mountPath: /work}}]\n{more}"
    )
}

fn status<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let all = pod["status"][list].as_array().unwrap();
    all.iter().find(|status| status["name"] == name).unwrap()
}

const SIDECAR: &str = "trap 'echo said goodbye; exit 7' TERM; touch /work/up; echo up; \
                       while :; do sleep 0.1; done";

#[test]
fn containers_live_as_long_as_their_kind_says() {
    let node = Node::start();
    let startup = "    restartPolicy: Always\n    startupProbe: {exec: {command: [test, -e, /work/up]}, \
                   periodSeconds: 1, failureThreshold: 60}\n";
    let sidecar = format!("  initContainers:\n{}", container("side", SIDECAR, startup));
    let rule = |action: &str| {
        format!(
            "    restartPolicy: Never\n    restartPolicyRules: [{{action: {action}, exitCodes: \
             {{operator: In, values: [42]}}}}]\n"
        )
    };
    // The first run leaves a file behind and asks to be run again.
    let again = "test -e /work/again && exit 0; touch /work/again; exit 42";
    let by_rule = pod("by-rule", "", &[]) + &container("main", again, &rule("Restart"));
    let all = pod("all-again", "", &[("other", "test -e /work/again || sleep 1000")])
        + &container("main", again, &rule("RestartAllContainers"));
    let gated = pod(
        "gated",
        "  readinessGates: [{conditionType: example.com/gate}]\n",
        &[("main", "exec sleep 4242")],
    );
    let served = pod("served", &sidecar, &[("main", "test -e /work/up && echo found it")]);
    node.apply(&[served, by_rule, all, gated].concat());

    let done = node.wait_phase("served", "Succeeded");
    assert_eq!(node.kubectl(&["logs", "served", "-c", "main"]), "found it\n");
    assert_eq!(node.kubectl(&["logs", "served", "-c", "side"]), "up\nsaid goodbye\n");
    let side = &status(&done, "initContainerStatuses", "side")["state"]["terminated"];
    assert_eq!(side["exitCode"], 7, "its end decides nothing");

    let done = node.wait_phase("by-rule", "Succeeded");
    assert_eq!(status(&done, "containerStatuses", "main")["restartCount"], 1);

    let done = node.wait_phase("all-again", "Succeeded");
    for name in ["main", "other"] {
        let status = status(&done, "containerStatuses", name);
        assert_eq!(status["restartCount"], 1, "{status}");
        assert_eq!(status["lastState"]["terminated"]["reason"], "RestartingAllContainers");
    }

    let waiting = node.wait_pod("gated", "up", |pod| condition(pod, "ContainersReady") == "True");
    assert_eq!(condition(&waiting, "Ready"), "False");
    let open = r#"{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}"#;
    node.kubectl(&["patch", "pod", "gated", "--subresource=status", "-p", open]);
    node.wait_ready("gated");

    let script = "tr '\\0' ' ' < /proc/1/cmdline; echo; exec sleep 1000";
    node.kubectl(&[
        "debug",
        "gated",
        "--image=berth.local/busybox:1",
        "--target=main",
        "--container=look",
        "--profile=general",
        "--",
        "sh",
        "-c",
        script,
    ]);
    node.wait_pod("gated", "looked into", |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
    });
    node.wait_for("the target's first process to be seen", || {
        node.kubectl(&["logs", "gated", "-c", "look"]).contains("sleep 4242").then_some(())
    });
    // Another one beside it.
    let image = "--image=berth.local/busybox:1";
    let again = ["debug", "gated", image, "--container=again", "--profile=general", "--"];
    node.kubectl(&[&again[..], &["echo", "seen", "again"]].concat());
    let both = node.wait_pod("gated", "looked into again", |pod| {
        pod["status"]["ephemeralContainerStatuses"][1]["state"]["terminated"].is_object()
    });
    let first = &both["status"]["ephemeralContainerStatuses"][0];
    assert!(first["state"]["running"].is_object(), "{first}");
    assert_eq!(node.kubectl(&["logs", "gated", "-c", "again"]), "seen again\n");
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

#[test]
fn a_static_pod_is_run_shown_and_ended_with_its_file() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let manifests = node.path("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let config = node.path("config.yaml");
    let document = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: {}\n\
         crashLoopBackOff: {{maxContainerRestartPeriod: 2s}}\n",
        manifests.display()
    );
    std::fs::write(&config, document).unwrap();
    node.up(&["--config", config.to_str().unwrap()]);
    node.await_ready();
    let file = manifests.join("web.yaml");
    std::fs::write(&file, pod("web", "", &[("main", "echo one; exec sleep 1000")])).unwrap();
    std::fs::write(
        manifests.join("bad.yaml"),
        pod("bad", "  serviceAccountName: default\n", &[("main", "exit 0")]),
    )
    .unwrap();
    let first = node.wait_ready("web-node-1");
    let annotation = |pod: &Value, name: &str| {
        pod["metadata"]["annotations"][format!("kubernetes.io/config.{name}")].clone()
    };
    assert_eq!(annotation(&first, "mirror"), annotation(&first, "hash"));
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node");
    let volumes = first["spec"]["volumes"].as_array().map_or(0, Vec::len);
    assert_eq!((volumes, &first["spec"]["serviceAccountName"]), (1, &Value::Null), "{first}");
    assert_eq!(node.kubectl(&["logs", "web-node-1"]), "one\n");
    // The picture can be torn up; what it shows goes on.
    node.kubectl(&["delete", "pod", "web-node-1"]);
    let again = node.wait_pod("web-node-1", "shown again", |pod| {
        pod["metadata"]["uid"] != first["metadata"]["uid"] && condition(pod, "Ready") == "True"
    });
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&again), id(&first));
    std::fs::write(&file, pod("web", "", &[("main", "echo two; exec sleep 1000")])).unwrap();
    node.wait_for("the changed file to be run", || {
        let logs = node.try_kubectl(&["logs", "web-node-1"]);
        (logs.stdout == b"two\n").then_some(())
    });
    assert!(node.agent_log().contains("serviceaccounts"), "the bad file is told of");
    std::fs::remove_file(&file).unwrap();
    node.wait_for("the pod to be gone", || {
        let listed = node.kubectl(&["get", "pods", "-o", "name"]);
        listed.is_empty().then_some(())
    });
    node.finish();
}
