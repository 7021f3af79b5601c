//! Pods that are given other resources while they run, and what the API says of it. What cgroup files hold
//! then is not looked at here.

use std::fs;

use serde_json::{Value, json};

use super::{apply, pod};
use crate::node::{Node, condition};

/// A container's amounts: CPU request and limit in thousandths, memory request and limit in MiB; 0 is none.
type Amounts = [u32; 4];

/// One pod of the suite: what it starts with, and what it is given.
struct Case {
    name: &'static str,
    before: Vec<Amounts>,
    after: Vec<Amounts>,
    /// Whether it is then given back what it had.
    and_back: bool,
}

/// Requests that equal their limits, each container a little more than the one before.
fn guaranteed(amounts: [(u32, u32); 3]) -> Vec<Amounts> {
    let one = |(index, (cpu, memory)): (u32, (u32, u32))| {
        let (cpu, memory) = (cpu + 2 * index, memory + 2 * index);
        [cpu, cpu, memory, memory]
    };
    (0..).zip(amounts).map(one).collect()
}

fn cases() -> Vec<Case> {
    let of_three = |name, after| Case {
        name,
        before: guaranteed([(20, 35); 3]),
        after: guaranteed(after),
        and_back: true,
    };
    vec![
        of_three("net-increase", [(25, 40), (25, 40), (15, 30)]),
        of_three("net-decrease", [(25, 40), (15, 30), (15, 30)]),
        of_three("mixed", [(25, 35), (15, 40), (25, 40)]),
        Case {
            name: "extended",
            before: vec![
                [20, 0, 0, 0],
                [0, 0, 35, 0],
                [20, 0, 35, 0],
                [20, 0, 0, 0],
                [0, 0, 35, 0],
            ],
            after: vec![
                [25, 35, 0, 0],
                [0, 0, 30, 50],
                [20, 0, 30, 0],
                [15, 0, 35, 0],
                [20, 0, 40, 0],
            ],
            and_back: false,
        },
        Case {
            name: "equivalents",
            before: vec![[2, 10, 0, 0]],
            after: vec![[1, 5, 0, 0]],
            and_back: true,
        },
    ]
}

fn resources([cpu_request, cpu_limit, memory_request, memory_limit]: Amounts) -> Value {
    let mut resources = json!({});
    for (list, cpu, memory) in
        [("requests", cpu_request, memory_request), ("limits", cpu_limit, memory_limit)]
    {
        if cpu > 0 {
            resources[list]["cpu"] = json!(format!("{cpu}m"));
        }
        if memory > 0 {
            resources[list]["memory"] = json!(format!("{memory}Mi"));
        }
    }
    resources
}

fn containers(amounts: &[Amounts]) -> Value {
    let one = |(index, amounts): (usize, &Amounts)| json!({"name": format!("c{}", index + 1), "resources": resources(*amounts)});
    amounts.iter().enumerate().map(one).collect()
}

fn sleeper(name: &str, amounts: &[Amounts]) -> Value {
    let mut containers = containers(amounts);
    for container in containers.as_array_mut().unwrap() {
        container["image"] = json!(crate::image::BUSYBOX);
        container["command"] = json!(["sleep", "1000"]);
    }
    pod(name, "", json!({"restartPolicy": "OnFailure", "containers": containers}))
}

fn patch(node: &Node, name: &str, containers: &Value) -> std::process::Output {
    let patch = json!({"spec": {"containers": containers}}).to_string();
    node.try_kubectl(&["patch", "pod", name, "--subresource", "resize", "-p", &patch])
}

/// Gives a running pod other resources; waits until it has them.
fn resize(node: &Node, name: &str, amounts: &[Amounts]) -> Value {
    let output = patch(node, name, &containers(amounts));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    resized(node, name)
}

/// Waits until a pod has what it is specified with.
fn resized(node: &Node, name: &str) -> Value {
    node.wait_pod(name, "resized", |pod| {
        pod["status"]["observedGeneration"] == pod["metadata"]["generation"]
            && ["PodResizePending", "PodResizeInProgress"]
                .iter()
                .all(|c| condition(pod, c).is_empty())
            && condition(pod, "Ready") == "True"
    })
}

/// The status of a pod says that its containers have these amounts, and never ended.
fn check(pod: &Value, amounts: &[Amounts]) {
    let name = &pod["metadata"]["name"];
    for (index, amounts) in amounts.iter().enumerate() {
        let (wanted, status) = (resources(*amounts), &pod["status"]["containerStatuses"][index]);
        let place = format!("{name}, container {index}: {status}");
        assert_eq!(pod["spec"]["containers"][index]["resources"], wanted, "{place}");
        assert_eq!(status["resources"], wanted, "{place}");
        assert_eq!(status["allocatedResources"], wanted["requests"], "{place}");
        assert_eq!(status["restartCount"], 0, "{place}");
    }
}

/// The pods of the suite are resized one after the other.
fn resize_all(node: &Node) {
    let cases = cases();
    apply(node, cases.iter().map(|case| sleeper(case.name, &case.before)).collect());
    for case in &cases {
        check(&node.wait_ready(case.name), &case.before);
    }
    for case in &cases {
        check(&resize(node, case.name, &case.after), &case.after);
        if case.and_back {
            check(&resize(node, case.name, &case.before), &case.before);
        }
    }
    node.kubectl(&["delete", "pod", "--all", "--force"]);
    replace(node);
}

/// The subresource is replaced as a whole, and reads as the pod does.
fn replace(node: &Node) {
    apply(node, vec![sleeper("replaced", &[[20, 0, 35, 0]])]);
    let mut pod = node.wait_ready("replaced");
    assert_eq!(pod["metadata"]["generation"], 1);
    let after = [25, 0, 40, 0];
    pod["spec"]["containers"][0]["resources"] = resources(after);
    pod["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let file = node.path("replaced.json");
    fs::write(&file, pod.to_string()).unwrap();
    node.kubectl(&["replace", "--subresource", "resize", "-f", file.to_str().unwrap()]);
    let pod = resized(node, "replaced");
    assert_eq!(pod["metadata"]["generation"], 2);
    check(&pod, &[after]);
    let read = node.kubectl(&["get", "pod", "replaced", "--subresource", "resize", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&read).unwrap(), node.get("pod", "replaced"));
}

#[test]
fn running_pods_take_other_sizes_and_say_so() {
    let node = Node::start();
    resize_all(&node);
    let message = node.wait_event("replaced", "ResizeCompleted");
    let told = r#"Pod resize completed: {"containers":[{"name":"c1","resources":{"requests":{"cpu":"25m","memory":"40Mi"}}}],"generation":2}"#;
    assert_eq!(message, told);
    for (amounts, text) in [
        (
            json!([{"name": "c1", "resources": {"limits": {"cpu": "25m"}, "requests": {"memory": null}}}]),
            "cannot be removed",
        ),
        (json!([{"name": "c2", "resources": {}}]), "may not be added or removed on resize"),
        (
            json!([{"name": "c1", "resources": {"requests": {"cpu": "900"}}}]),
            "allocatable resources: cpu",
        ),
    ] {
        let output = patch(&node, "replaced", &amounts);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(text), "{said}");
    }
    node.kubectl(&["delete", "pod", "--all", "--force"]);

    let mut restarted = sleeper("restarted", &[[20, 20, 35, 35]]);
    restarted["spec"]["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    apply(&node, vec![restarted]);
    node.wait_ready("restarted");
    check(&resize(&node, "restarted", &[[25, 25, 35, 35]]), &[[25, 25, 35, 35]]);
    let output = patch(&node, "restarted", &containers(&[[25, 25, 40, 40]]));
    assert!(output.status.success());
    node.wait_pod("restarted", "started again", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1
            && status["resources"] == resources([25, 25, 40, 40])
            && condition(pod, "Ready") == "True"
    });
    node.kubectl(&["delete", "pod", "--all", "--force"]);

    let processors = node.get("node", "node-1")["status"]["allocatable"]["cpu"].clone();
    let processors: u32 = processors.as_str().unwrap().parse().unwrap();
    apply(&node, vec![sleeper("first", &[[700, 0, 0, 0]]), sleeper("second", &[[100, 0, 0, 0]])]);
    let grown = [processors * 1000 - 600, 0, 0, 0];
    for name in ["first", "second"] {
        node.wait_ready(name);
    }
    assert!(patch(&node, "second", &containers(&[grown])).status.success());
    let waits = node
        .wait_pod("second", "waiting for room", |pod| condition(pod, "PodResizePending") == "True");
    let mut conditions = waits["status"]["conditions"].as_array().unwrap().iter();
    let pending = conditions.find(|c| c["type"] == "PodResizePending").unwrap();
    assert_eq!(pending["reason"], "Deferred");
    let message = pending["message"].as_str().unwrap();
    assert!(message.starts_with("Node didn't have enough resource: cpu, requested: "), "{message}");
    let status = &waits["status"]["containerStatuses"][0];
    assert_eq!(status["allocatedResources"], json!({"cpu": "100m"}));
    node.kubectl(&["delete", "pod", "first", "--force"]);
    check(&resized(&node, "second"), &[grown]);
    node.kubectl(&["delete", "pod", "--all", "--force"]);
    node.finish();
}
