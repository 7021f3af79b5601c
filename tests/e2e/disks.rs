//! What pods use of disks, as `/stats/summary` and the metrics tell it, and images that go for want of
//! space.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::image;
use crate::images::Registry;
use crate::node::{Node, succeed};

const MIB: u64 = 1 << 20;

/// A node that follows this configuration.
fn node(fields: &str) -> Node {
    let mut node = Node::prepare("node-1");
    node.uplink();
    configured(&mut node, fields);
    node.await_ready();
    node
}

fn configured(node: &mut Node, fields: &str) {
    let file = node.path("node.yaml");
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    fs::write(&file, format!("{head}{fields}")).unwrap();
    node.up(&["--config", file.to_str().unwrap()]);
}

fn page(node: &Node, path: &str) -> String {
    node.kubectl(&["get", "--raw", &format!("/api/v1/nodes/node-1/proxy/{path}")])
}

const WRITER: &str = r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: data}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: manual
  local: {path: LOCAL}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: manual, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
    - {name: scratch, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
    - {name: data, persistentVolumeClaim: {claimName: data}}
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c]
      args:
        - |
          dd if=/dev/zero of=/root-file bs=1M count=2 2>/dev/null
          dd if=/dev/zero of=/scratch/one bs=1M count=3 2>/dev/null
          ln /scratch/one /scratch/two
          dd if=/dev/zero of=/memory/file bs=1M count=1 2>/dev/null
          dd if=/dev/zero bs=1k count=600 2>/dev/null | tr '\0' x | fold -w 1000
          exec sleep 1000
      volumeMounts:
        - {name: scratch, mountPath: /scratch}
        - {name: memory, mountPath: /memory}
        - {name: data, mountPath: /data}
"#;

fn used(of: &Value) -> u64 {
    of["usedBytes"].as_u64().unwrap_or(0)
}

#[test]
fn what_a_pod_writes_is_told_where_it_wrote_it() {
    let node = node("volumeStatsAggPeriod: 200ms\n");
    let local = node.path("local");
    fs::create_dir(&local).unwrap();
    node.apply(&WRITER.replace("LOCAL", local.to_str().unwrap()));
    let pod = node.wait_ready("writer");
    let volume = |pod: &Value, name: &str| -> Value {
        let all = pod["volume"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|volume| volume["name"] == name).unwrap_or_default()
    };
    let told = |until: &dyn Fn(&Value) -> bool| {
        node.wait_for("the summary to tell what was written", || {
            let summary: Value = serde_json::from_str(&page(&node, "stats/summary")).ok()?;
            let pod = summary["pods"].as_array()?.first()?;
            until(pod).then(|| summary.clone())
        })
    };
    let summary = told(&|pod| {
        let logs = used(&pod["containers"][0]["logs"]);
        logs >= 600 << 10 && used(&volume(pod, "memory")) >= MIB
    });
    let told_pod = &summary["pods"][0];
    let (root, logs) = (&told_pod["containers"][0]["rootfs"], &told_pod["containers"][0]["logs"]);
    let scratch = volume(told_pod, "scratch");
    for (what, of, least) in [("root", root, 2 * MIB), ("scratch", &scratch, 3 * MIB)] {
        assert!((least..least + MIB / 2).contains(&used(of)), "{what}: {told_pod}");
        assert!(of["capacityBytes"].as_u64() > Some(8 * MIB) && of["inodes"].is_u64(), "{of}");
    }
    assert_eq!(scratch["inodesUsed"], 2, "the directory, and one file with two names: {scratch}");
    let memory = volume(told_pod, "memory");
    assert_eq!((used(&memory), &memory["capacityBytes"]), (MIB, &(8 * MIB).into()));
    let ephemeral = used(&told_pod["ephemeral-storage"]);
    assert_eq!(ephemeral, used(root) + used(logs) + used(&scratch), "{told_pod}");
    let data = volume(told_pod, "data");
    assert_eq!(data["pvcRef"], serde_json::json!({"name": "data", "namespace": "default"}));
    for fs in ["/node/fs", "/node/runtime/imageFs", "/node/runtime/containerFs"] {
        assert!(used(summary.pointer(fs).unwrap()) > 0, "{fs}: {summary}");
    }
    assert!(summary["node"]["rlimit"]["maxpid"].is_u64(), "{summary}");

    let cadvisor = page(&node, "metrics/cadvisor");
    let usage = cadvisor.lines().find(|line| {
        line.starts_with("container_fs_usage_bytes{container=\"main\",device=\"")
            && line.contains("namespace=\"default\",pod=\"writer\"")
    });
    let value = usage.and_then(|line| line.rsplit(' ').nth(1)?.parse::<u64>().ok());
    assert!(value.is_some_and(|bytes| bytes >= 2 * MIB), "{usage:?}");
    let own = page(&node, "metrics");
    let claim = "{namespace=\"default\",persistentvolumeclaim=\"data\"}";
    for name in ["capacity_bytes", "available_bytes", "used_bytes", "inodes"] {
        assert!(own.contains(&format!("kubelet_volume_stats_{name}{claim} ")), "{name}: {own}");
    }

    // What somebody mounts inside a volume is not in it.
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let place = node.path(&format!("state/pods/{uid}/volumes/kubernetes.io~empty-dir/scratch"));
    let inside = place.join("inside");
    fs::create_dir(&inside).unwrap();
    succeed(Command::new("mount").args(["-t", "tmpfs", "inside"]).arg(&inside));
    fs::write(inside.join("large"), vec![1; 16 << 20]).unwrap();
    fs::write(place.join("more"), vec![1; 1 << 20]).unwrap();
    let summary = told(&|pod| used(&volume(pod, "scratch")) >= 4 * MIB);
    succeed(Command::new("umount").arg(&inside));
    assert!(used(&volume(&summary["pods"][0], "scratch")) < 5 * MIB, "{summary}");
    node.kubectl(&["delete", "pod", "writer"]);
    node.kubectl(&["delete", "pvc", "data"]);
    node.finish();
}

/// The images that the node has.
fn images(node: &Node) -> BTreeSet<String> {
    let all: Value = serde_json::from_str(&node.berth(&["images", "--json"])).unwrap();
    let tags = |image: &Value| image["tags"].as_array().cloned().unwrap_or_default();
    let tags = all.as_array().unwrap().iter().flat_map(tags);
    tags.map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

const USER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: files, image: {reference: "127.0.0.1:5000/tools/files:1"}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sleep, "1000"]
      volumeMounts: [{name: files, mountPath: /files}]
"#;

#[test]
fn on_a_full_disk_images_that_nothing_uses_go_with_their_layers() {
    // No disk is so empty that it would not be too full.
    let fields =
        "imageGCHighThresholdPercent: 1\nimageGCLowThresholdPercent: 0\nimageMinimumGCAge: 1ns\n";
    let mut node = node(fields);
    let registry = Registry::start(&node);
    registry.push(&node, &image::files(), "tools/files:1");
    registry.push(&node, &image::numbers(), "tools/numbers:1");
    for name in ["files", "numbers"] {
        node.berth(&["pull", &format!("127.0.0.1:5000/tools/{name}:1")]);
    }
    node.apply(USER);
    node.wait_ready("user");
    let layers = node.path("state/images/layers");
    let count = || fs::read_dir(&layers).unwrap().count();
    let before = count();
    node.stop_agent();
    assert!(node.path("state/image-uses.json").exists());
    // An agent that begins looks at once. What was imported stays, and what a pod has.
    configured(&mut node, fields);
    node.await_ready();
    let left = ["127.0.0.1:5000/tools/files:1", "berth.local/busybox:1", "berth.local/demo:1"]
        .map(str::to_owned);
    node.wait_for("the unused image to go", || {
        (images(&node) == left.clone().into()).then_some(())
    });
    node.wait_for("its layer to go", || (count() == before - 1).then_some(()));
    let message = node.wait_event("node-1", "FreeDiskSpaceFailed");
    assert!(message.contains("on the node's image filesystem"), "{message}");
    let removed = "kubelet_image_garbage_collected_total{reason=\"space\"} 1\n";
    assert!(page(&node, "metrics").contains(removed));
    assert_eq!(node.kubectl(&["exec", "user", "--", "ls", "/files/etc"]), "os-release\n");
    node.kubectl(&["delete", "pod", "user"]);
    drop(registry);
    node.finish();
}
