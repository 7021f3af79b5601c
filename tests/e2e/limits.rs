//! What only a host with cgroup v2 controllers can show: limits in force and changed, the QoS tree, OOM
//! kills and lowered OOM scores. These run in the VM; on a host without controllers they fail.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::conformance::resize::{self, Amounts};
use crate::node::{Node, rounds};

const CGROUPS: &str = "/sys/fs/cgroup";

/// One pod a QoS class.
const CLASSES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: guaranteed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sleep, "1000"]
      resources: {limits: {cpu: 250m, memory: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: burstable}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sleep, "1000"]
      resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {memory: 128Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: besteffort}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "berth.local/busybox:1", command: [sleep, "1000"]}]
"#;

/// The pod's cgroup and its container's.
fn groups(node: &Node, name: &str) -> (PathBuf, PathBuf) {
    let (pod, mut containers) = groups_of(&node.wait_ready(name));
    (pod, containers.remove(0))
}

/// A running pod's cgroup and its containers'.
fn groups_of(pod: &Value) -> (PathBuf, Vec<PathBuf>) {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let class = match pod["status"]["qosClass"].as_str().unwrap() {
        "Guaranteed" => "",
        "Burstable" => "burstable",
        _ => "besteffort",
    };
    let group = Path::new(CGROUPS).join("kubepods").join(class).join(format!("pod{uid}"));
    let one = |status: &Value| {
        let container = group.join(&status["containerID"].as_str().unwrap()["berth://".len()..]);
        assert!(container.is_dir(), "{} is missing", container.display());
        container
    };
    let containers = pod["status"]["containerStatuses"].as_array().unwrap().iter().map(one);
    let containers = containers.collect();
    (group, containers)
}

fn read(group: &Path, file: &str) -> String {
    let path = group.join(file);
    fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .trim()
        .to_owned()
}

/// `oom_score_adj` of the container's first process.
fn oom_score(container: &Path) -> i32 {
    let pid = read(container, "cgroup.procs").lines().next().unwrap().to_owned();
    read(Path::new("/proc").join(pid).as_path(), "oom_score_adj").parse().unwrap()
}

#[test]
fn requests_and_limits_become_cgroup_files_by_qos_class() {
    let node = Node::start();
    node.apply(CLASSES);

    let (pod, container) = groups(&node, "guaranteed");
    assert_eq!(read(&container, "cpu.max"), "25000 100000");
    assert_eq!(read(&container, "memory.max"), (64 << 20).to_string());
    assert_eq!(read(&container, "memory.oom.group"), "1");
    assert_eq!(
        (read(&pod, "cpu.max"), read(&pod, "memory.max")),
        ("25000 100000".into(), (64 << 20).to_string())
    );
    assert_eq!(oom_score(&container), -997);

    let (pod, container) = groups(&node, "burstable");
    assert_eq!(read(&container, "cpu.max"), "max 100000");
    assert_eq!(read(&container, "memory.max"), (128 << 20).to_string());
    // The kubelet's linear formula for the pod: 1 + (102 - 2) * 9999 / 262142.
    assert_eq!(read(&pod, "cpu.weight"), "4");
    let score = oom_score(&container);
    assert!((2..1000).contains(&score), "{score}");

    let (pod, container) = groups(&node, "besteffort");
    assert_eq!(
        (read(&pod, "cpu.weight"), read(&container, "memory.max")),
        ("1".into(), "max".into())
    );
    assert_eq!(oom_score(&container), 1000);
    assert_ne!(read(&container, "pids.max"), "");

    // The classes weigh what their pods request together, and a class without requests the least.
    for (class, weight) in [("burstable", "4"), ("besteffort", "1")] {
        let group = Path::new(CGROUPS).join("kubepods").join(class);
        node.wait_for(&format!("{class} to weigh {weight}"), || {
            (read(&group, "cpu.weight") == weight).then_some(())
        });
    }

    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

/// Who a cgroup is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Pod,
    Container,
}

/// `cpu.weight`, `cpu.max` and `memory.max`.
fn files(group: &Path) -> [String; 3] {
    ["cpu.weight", "cpu.max", "memory.max"].map(|file| read(group, file))
}

/// What the three hold for a request in thousandths of a processor, and limits of which 0 is none. A pod's
/// weight is the kubelet's straight line, a container's the curve that runtimes have drawn since 2025.
fn wanted(of: Of, cpu: u32, cpu_limit: u32, mebibytes: u32) -> [String; 3] {
    let shares = (cpu * 1024 / 1000).max(2);
    let log = f64::from(shares).log2();
    let weight = match of {
        Of::Pod => 1 + (shares - 2) * 9999 / 262_142,
        Of::Container if shares == 2 => 1,
        Of::Container => 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u32,
    };
    let or_max = |limit: u32, text: String| if limit == 0 { "max".into() } else { text };
    [
        weight.to_string(),
        or_max(cpu_limit, (cpu_limit * 100).max(1000).to_string()) + " 100000",
        or_max(mebibytes, (u64::from(mebibytes) << 20).to_string()),
    ]
}

/// The pod says that it has these amounts, and its cgroups have them.
fn in_force(pod: &Value, amounts: &[Amounts], restarts: i64) {
    resize::check(pod, amounts, restarts);
    let name = &pod["metadata"]["name"];
    let (group, containers) = groups_of(pod);
    assert_eq!(containers.len(), amounts.len(), "{name}");
    for (index, (container, [cpu, cpu_limit, _, memory])) in
        containers.iter().zip(amounts).enumerate()
    {
        let wanted = wanted(Of::Container, *cpu, *cpu_limit, *memory);
        assert_eq!(files(container), wanted, "{name}, container {index}");
        assert_eq!(read(container, "cgroup.procs").lines().count(), 1, "{name}, container {index}");
    }
    // A pod is held to a sum only if every container is held to its part.
    let sum = |index: usize| amounts.iter().map(|amounts| amounts[index]).sum::<u32>();
    let limit = |index: usize| {
        if amounts.iter().any(|amounts| amounts[index] == 0) { 0 } else { sum(index) }
    };
    assert_eq!(files(&group), wanted(Of::Pod, sum(0), limit(1), limit(3)), "{name}");
}

#[test]
fn all_pods_together_are_held_to_what_is_not_kept_back() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let file = node.path("node.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                kubeReserved: {cpu: 250m, memory: 96Mi}\nsystemReserved: {memory: 32Mi, pid: '100'}\n";
    fs::write(&file, text).unwrap();
    node.up(&["--config", file.to_str().unwrap()]);
    node.await_ready();
    let message = node.wait_event("node-1", "NodeAllocatableEnforced");
    assert_eq!(message, "Updated Node Allocatable limit across pods");
    let number = |path: &str| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
    let kernel = |name: &str| number(&format!("/proc/sys/kernel/{name}"));
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    let processors = std::thread::available_parallelism().unwrap().get() as u64;
    let all = Path::new(CGROUPS).join("kubepods");
    assert_eq!(read(&all, "memory.max"), ((total << 10) - (128 << 20)).to_string());
    let pids = kernel("pid_max").min(kernel("threads-max")) - 100;
    assert_eq!(read(&all, "pids.max"), pids.to_string());
    let shares = (processors * 1000 - 250) * 1024 / 1000;
    let weight = 1 + (shares - 2) * 9999 / 262_142;
    assert_eq!(read(&all, "cpu.weight"), weight.to_string());
    node.finish();
}

#[test]
fn cgroup_files_follow_a_resize_as_the_conformance_suite_asks() {
    let node = Node::start();
    resize::resize_all(&node, in_force);
    resize::restart_by_policy(&node, in_force);
    node.finish();
}

#[test]
fn containers_over_their_memory_limits_are_reported_as_oom_killed_each_time() {
    // The first process, at once; a child, whose parent would have gone on; one of many.
    const COMMANDS: [&str; 3] = [
        "exec tail /dev/zero",
        "tail /dev/zero; exec sleep 1000",
        "sleep 1000 & sleep 1000 & tail /dev/zero & wait; exec sleep 1000",
    ];
    let container = |n: usize| {
        let command = COMMANDS[n % COMMANDS.len()];
        format!(
            "
    - name: main-{n}
      image: berth.local/busybox:1
      command: [sh, -c, '{command}']
      resources: {{limits: {{memory: 12Mi}}}}"
        )
    };
    let node = Node::start();
    for round in 0..rounds(3) {
        let name = format!("greedy-{round}");
        let head = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n");
        let containers: String = (0..9).map(container).collect();
        node.apply(&format!("{head}  restartPolicy: Never\n  containers:{containers}\n"));
        let pod = node.wait_phase(&name, "Failed");
        for status in pod["status"]["containerStatuses"].as_array().unwrap() {
            let (name, ended) = (&status["name"], &status["state"]["terminated"]);
            let told = (&ended["reason"], &ended["exitCode"]);
            assert_eq!(told, (&"OOMKilled".into(), &137.into()), "{name}");
        }
        node.kubectl(&["delete", "pod", &name]);
    }
    node.finish();
}

#[test]
fn a_fork_bomb_is_held_by_the_pods_limit() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let file = node.path("node.yaml");
    let text =
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodPidsLimit: 32\n";
    fs::write(&file, text).unwrap();
    node.up(&["--config", file.to_str().unwrap()]);
    node.await_ready();
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: bomb}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, "while :; do sleep 1000 & done 2> /dev/null"]
"#,
    );
    node.wait_pod("bomb", "held", |pod| !pod["status"]["containerStatuses"].is_null());
    let uid = node.get("pod", "bomb")["metadata"]["uid"].as_str().unwrap().to_owned();
    let group = Path::new(CGROUPS).join(format!("kubepods/besteffort/pod{uid}"));
    assert_eq!(read(&group, "pids.max"), "32");
    assert!(read(&group, "pids.current").parse::<u32>().unwrap() <= 32);
    node.kubectl(&["delete", "pod", "bomb"]);
    node.finish();
}

/// Memory that is free, or that the kernel gives back without ado, in mebibytes.
fn available_mebibytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    (of("MemFree:") + of("Inactive(file):")) >> 10
}

/// How many processes the kernel has killed for want of memory.
fn oom_kills() -> String {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    text.lines().find(|line| line.starts_with("oom_kill ")).unwrap().to_owned()
}

#[test]
fn the_greediest_pod_is_evicted_before_the_kernel_has_to_kill() {
    const THRESHOLD: u64 = 1200;
    let mut node = Node::prepare("node-1");
    node.uplink();
    let file = node.path("node.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         evictionHard: {{memory.available: {THRESHOLD}Mi}}\nevictionPressureTransitionPeriod: 10s\n"
    );
    fs::write(&file, text).unwrap();
    node.up(&["--config", file.to_str().unwrap()]);
    node.await_ready();
    let (kills, pod) = (oom_kills(), |name: &str, more: &str, command: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, '{command}']
      volumeMounts: [{{name: memory, mountPath: /memory}}]
      {more}
  volumes: [{{name: memory, emptyDir: {{medium: Memory}}}}]
---"
        )
    });
    let modest = "resources: {requests: {memory: 64Mi}}";
    node.apply(&pod("modest", modest, "exec sleep 1000"));
    node.wait_ready("modest");
    let wanted = available_mebibytes().checked_sub(THRESHOLD - 128).expect("enough memory");
    let fill = format!("dd if=/dev/zero of=/memory/file bs=1M count={wanted}; exec sleep 1000");
    node.apply(&pod("greedy", "", &fill));
    let greedy = node.wait_phase("greedy", "Failed");
    let status = &greedy["status"];
    assert_eq!(status["reason"], "Evicted");
    let message = status["message"].as_str().unwrap();
    let head = format!("The node was low on resource: memory. Threshold quantity: {THRESHOLD}Mi, ");
    assert!(message.starts_with(&head), "{message}");
    assert!(message.contains("Container main was using ") && message.contains("request is 0, "));
    let conditions = status["conditions"].as_array().unwrap();
    let disruption = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!(disruption["reason"], "TerminationByKubelet");
    assert_eq!(node.wait_event("greedy", "Evicted"), message);
    let reclaim = "Attempting to reclaim memory";
    assert_eq!(node.wait_event("node-1", "EvictionThresholdMet"), reclaim);
    assert_eq!(node.get("pod", "modest")["status"]["phase"], "Running");
    assert_eq!(oom_kills(), kills);

    // The memory is free again, and so is the node.
    node.wait_event("node-1", "NodeHasInsufficientMemory");
    node.wait_for("the pressure to be over", || {
        let found = node.get("node", "node-1");
        (crate::node::condition(&found, "MemoryPressure") == "False").then_some(())
    });
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
