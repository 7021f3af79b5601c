//! Pods that take more of the node's disk than they may.

use std::fs;

use crate::node::Node;

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
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
