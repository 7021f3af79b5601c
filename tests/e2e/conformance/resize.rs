//! Pods that are given other resources while they run, and what the API says of it; `limits` looks at
//! the cgroup files as well, by the same pods.

use std::fs;

use serde_json::{Value, json};

use super::{apply, pod};
use crate::node::{Node, condition};

/// A container's amounts: CPU request and limit in thousandths, memory request and limit in MiB; 0 is none.
pub(crate) type Amounts = [u32; 4];

/// Looks whether a pod has these amounts, and whether its containers were restarted this often.
pub(crate) type Look = fn(&Value, &[Amounts], i64);

/// One pod of the suite: what it starts with, and what it is then given, one after the other.
struct Case {
    name: &'static str,
    sizes: Vec<Vec<Amounts>>,
}

/// Requests that equal their limits, each container a little more than the one before.
fn guaranteed(amounts: [(u32, u32); 3]) -> Vec<Amounts> {
    let one = |(index, (cpu, memory)): (u32, (u32, u32))| {
        let (cpu, memory) = (cpu + 2 * index, memory + 2 * index);
        [cpu, cpu, memory, memory]
    };
    (0..).zip(amounts).map(one).collect()
}

/// The suite's, with five times its CPU: a container that starts with a fiftieth of an emulated
/// processor takes a minute. For the same reason the smallest limits are met on the way.
fn cases() -> Vec<Case> {
    let before = || guaranteed([(100, 35); 3]);
    let of_three = |name, after| Case { name, sizes: vec![before(), guaranteed(after), before()] };
    let extended = [
        vec![[100, 0, 0, 0], [0, 0, 35, 0], [100, 0, 35, 0], [100, 0, 0, 0], [0, 0, 35, 0]],
        vec![[125, 175, 0, 0], [0, 0, 30, 50], [100, 0, 30, 0], [75, 0, 35, 0], [100, 0, 40, 0]],
    ];
    let equivalents = [[2, 100, 0, 0], [2, 10, 0, 0], [1, 5, 0, 0], [2, 10, 0, 0]];
    vec![
        of_three("net-increase", [(125, 40), (125, 40), (75, 30)]),
        of_three("net-decrease", [(125, 40), (75, 30), (75, 30)]),
        of_three("mixed", [(125, 35), (75, 40), (125, 40)]),
        Case { name: "extended", sizes: extended.into() },
        Case { name: "equivalents", sizes: equivalents.map(|amounts| vec![amounts]).into() },
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

/// Gives a running pod other resources.
fn resize(node: &Node, name: &str, amounts: &[Amounts]) {
    let output = patch(node, name, &containers(amounts));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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

/// The status of a pod says that its containers have these amounts.
pub(crate) fn check(pod: &Value, amounts: &[Amounts], restarts: i64) {
    let name = &pod["metadata"]["name"];
    for (index, amounts) in amounts.iter().enumerate() {
        let (wanted, status) = (resources(*amounts), &pod["status"]["containerStatuses"][index]);
        let place = format!("{name}, container {index}: {status}");
        assert_eq!(pod["spec"]["containers"][index]["resources"], wanted, "{place}");
        assert_eq!(status["resources"], wanted, "{place}");
        assert_eq!(status["allocatedResources"], wanted["requests"], "{place}");
        assert_eq!(status["restartCount"], restarts, "{place}");
    }
}

/// The pods of the suite are resized, beside each other.
pub(crate) fn resize_all(node: &Node, look: Look) {
    let cases = cases();
    apply(node, cases.iter().map(|case| sleeper(case.name, &case.sizes[0])).collect());
    for case in &cases {
        look(&node.wait_ready(case.name), &case.sizes[0], 0);
    }
    for round in 1..4 {
        let sizes = cases.iter().filter_map(|case| Some((case.name, case.sizes.get(round)?)));
        for (name, size) in sizes.clone() {
            resize(node, name, size);
        }
        for (name, size) in sizes {
            look(&resized(node, name), size, 0);
        }
    }
    node.kubectl(&["delete", "pod", "--all", "--force"]);
    replace(node, look);
}

/// The subresource is replaced as a whole, and reads as the pod does.
fn replace(node: &Node, look: Look) {
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
    look(&pod, &[after], 0);
    let read = node.kubectl(&["get", "pod", "replaced", "--subresource", "resize", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&read).unwrap(), node.get("pod", "replaced"));
}

/// What a policy says restarts the container, and nothing else does.
pub(crate) fn restart_by_policy(node: &Node, look: Look) {
    let mut restarted = sleeper("restarted", &[[100, 100, 35, 35]]);
    restarted["spec"]["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    apply(node, vec![restarted]);
    node.wait_ready("restarted");
    let (more_cpu, more_memory) = ([[125, 125, 35, 35]], [[125, 125, 40, 40]]);
    resize(node, "restarted", &more_cpu);
    look(&resized(node, "restarted"), &more_cpu, 0);
    resize(node, "restarted", &more_memory);
    let pod = node.wait_pod("restarted", "started again", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1
            && status["resources"] == resources(more_memory[0])
            && condition(pod, "Ready") == "True"
    });
    look(&pod, &more_memory, 1);
    node.kubectl(&["delete", "pod", "--all", "--force"]);
}

#[test]
fn running_pods_take_other_sizes_and_say_so() {
    let node = Node::start();
    resize_all(&node, check);
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

    restart_by_policy(&node, check);

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
    check(&resized(&node, "second"), &[grown], 0);
    node.kubectl(&["delete", "pod", "--all", "--force"]);
    node.finish();
}
