//! Pods that take more of the node's disk than they may, or than there is.

use std::fs;
use std::process::Command;

use crate::node::{Node, sleeper, succeed, wait};

/// Writes as many kibibytes to its scratch space, of which it may have 1 MiB, and stays.
fn writer(name: &str, kibibytes: u32) -> String {
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
      command: [sh, -c, 'dd if=/dev/zero of=/scratch/file bs=1024 count={kibibytes}; exec sleep 1000']
      volumeMounts: [{{name: scratch, mountPath: /scratch}}]
  volumes: [{{name: scratch, emptyDir: {{sizeLimit: 1Mi}}}}]
---"
    )
}

#[test]
fn a_pod_over_its_scratch_space_is_evicted_and_one_within_it_stays() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let file = node.path("node.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                volumeStatsAggPeriod: 1s\n";
    fs::write(&file, text).unwrap();
    node.up(&["--config", file.to_str().unwrap()]);
    node.await_ready();
    node.apply(&[writer("greedy", 2048), writer("modest", 512)].concat());
    node.wait_ready("modest");
    let pod = node.wait_phase("greedy", "Failed");
    let message = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ";
    let status = &pod["status"];
    assert_eq!((&status["reason"], &status["message"]), (&"Evicted".into(), &message.into()));
    assert_eq!(node.wait_event("greedy", "Evicted"), message);
    assert_eq!(node.get("pod", "modest")["status"]["phase"], "Running");
    let metrics = node.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    let counted = "kubelet_evictions{eviction_signal=\"emptydirfs.limit\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    for state in ["actual_state_of_world\"} ", "desired_state_of_world\"} 1\n"] {
        let of = "volume_manager_total_volumes{plugin_name=\"kubernetes.io/empty-dir\",state=\"";
        assert!(metrics.contains(&[of, state].concat()), "{metrics}");
    }
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

/// How many mebibytes are free on the file system of the node's pods.
fn free(node: &Node) -> u64 {
    let mut df = Command::new("df");
    let text = succeed(df.args(["--block-size=1M", "--output=avail"]).arg(node.path("state")));
    text.lines().last().unwrap().trim().parse().unwrap()
}

/// A Job's pods that nobody has deleted yet hold what they wrote; others must not end for it.
#[test]
fn short_of_disk_a_node_takes_back_what_ended_pods_wrote_before_it_ends_any() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    node.mount_tmpfs("state", "size=256M");
    let low = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
               evictionHard: {nodefs.available: 40Mi}\nevictionPressureTransitionPeriod: 0s\n";
    fs::write(node.path("disks/disks.conf"), low).unwrap();
    node.up(&[]);
    node.await_ready();
    let done = "
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, 'dd if=/dev/zero of=/file bs=1M count=80 2> /dev/null; echo written']
---";
    node.apply(&[sleeper("stays", "{}"), done.to_owned()].concat());
    node.wait_ready("stays");
    let ended = node.wait_phase("done", "Succeeded");
    assert_eq!(node.kubectl(&["logs", "done"]), "written\n");
    let ballast = free(&node).checked_sub(30).unwrap();
    let mut fill = Command::new("fallocate");
    succeed(fill.arg(format!("--length={ballast}MiB")).arg(node.path("state/ballast")));
    assert!(free(&node) <= 30);
    wait("the disk of the pod that has ended", || (free(&node) >= 100).then_some(()));
    assert_eq!(
        node.wait_event("node-1", "EvictionThresholdMet"),
        "Attempting to reclaim ephemeral-storage"
    );
    let gone = node.try_kubectl(&["logs", "done"]).stderr;
    let gone = String::from_utf8(gone).unwrap();
    assert!(gone.contains("unable to retrieve container logs for berth://"), "{gone}");
    assert_eq!(node.get("pod", "done")["status"], ended["status"]);
    assert_eq!(node.get("pod", "stays")["status"]["phase"], "Running");
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
