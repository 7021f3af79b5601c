//! What only a host with cgroup v2 controllers can show: limits in force, the QoS tree, OOM kills and
//! lowered OOM scores. These run in the VM; on a host without controllers they fail.

use std::fs;
use std::path::{Path, PathBuf};

use crate::node::Node;

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
fn groups(node: &Node, name: &str, class: &str) -> (PathBuf, PathBuf) {
    let pod = node.wait_ready(name);
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let id = id.strip_prefix("berth://").unwrap();
    let group = Path::new(CGROUPS).join("kubepods").join(class).join(format!("pod{uid}"));
    let container = group.join(id);
    assert!(container.is_dir(), "{} is missing", container.display());
    (group, container)
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

    let (pod, container) = groups(&node, "guaranteed", "");
    assert_eq!(read(&container, "cpu.max"), "25000 100000");
    assert_eq!(read(&container, "memory.max"), (64 << 20).to_string());
    assert_eq!(read(&container, "memory.oom.group"), "1");
    assert_eq!(
        (read(&pod, "cpu.max"), read(&pod, "memory.max")),
        ("25000 100000".into(), (64 << 20).to_string())
    );
    assert_eq!(oom_score(&container), -997);

    let (pod, container) = groups(&node, "burstable", "burstable");
    assert_eq!(read(&container, "cpu.max"), "max 100000");
    assert_eq!(read(&container, "memory.max"), (128 << 20).to_string());
    // The kubelet's linear formula for the pod: 1 + (102 - 2) * 9999 / 262142.
    assert_eq!(read(&pod, "cpu.weight"), "4");
    let score = oom_score(&container);
    assert!((2..1000).contains(&score), "{score}");

    let (pod, container) = groups(&node, "besteffort", "besteffort");
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

#[test]
fn a_container_over_its_memory_limit_is_reported_as_oom_killed() {
    let node = Node::start();
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, "tail /dev/zero"]
      resources: {limits: {memory: 24Mi}}
"#,
    );
    let pod = node.wait_phase("greedy", "Failed");
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&"OOMKilled".into(), &137.into()));
    node.kubectl(&["delete", "pod", "greedy"]);
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
