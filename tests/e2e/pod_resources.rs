//! The podresources socket on a real node, asked by a gRPC client over the socket itself, as metrics agents
//! do that have its directory mounted.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use berth_kubelet::pod_resources::messages::*;
use berth_runtime::cri::Code;

use crate::cri::Client;
use crate::node::Node;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: both}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
    - {name: first, image: "berth.local/busybox:1", command: ["true"]}
    - {name: side, image: "berth.local/busybox:1", command: [sleep, "1000"], restartPolicy: Always}
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sleep, "1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  restartPolicy: Never
  containers:
    - {name: main, image: "berth.local/busybox:1", command: ["true"]}
"#;

/// Each pod with its containers.
fn list(client: &Client) -> Vec<(String, Vec<String>)> {
    let path = "/v1.PodResourcesLister/List";
    let answer: ListPodResourcesResponse = client.call(path, ListPodResourcesRequest {}).unwrap();
    let names = |pod: PodResources| pod.containers.into_iter().map(|one| one.name).collect();
    answer.pod_resources.into_iter().map(|pod| (pod.name.clone(), names(pod))).collect()
}

#[test]
fn agents_are_told_of_the_nodes_pods_by_the_podresources_socket() {
    let mut node = Node::start();
    node.apply(PODS);
    node.wait_ready("both");
    node.wait_phase("done", "Succeeded");
    let socket = node.path("state/pod-resources/kubelet.sock");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(socket.as_path()), mode(socket.parent().unwrap())), (0o600, 0o750));
    let client = Client::connect(&socket);
    let both = ("both".to_owned(), ["side", "main"].map(str::to_owned).to_vec());
    assert_eq!(list(&client), std::slice::from_ref(&both), "those that have not ended");
    let get = |pod_name: &str| {
        let (pod_name, pod_namespace) = (pod_name.to_owned(), "default".to_owned());
        let request = GetPodResourcesRequest { pod_name, pod_namespace };
        client.call::<_, GetPodResourcesResponse>("/v1.PodResourcesLister/Get", request)
    };
    assert_eq!(get("done").unwrap().pod_resources.unwrap().containers.len(), 1);
    let unknown = get("nobody").unwrap_err();
    let text = "pod nobody in namespace default not found";
    assert_eq!((unknown.code(), unknown.message()), (Code::Unknown, text));
    let refused = (0..1000).find_map(|_| get("both").err()).expect("a rate that is held");
    let rate = (Code::ResourceExhausted, "rejected by rate limit");
    assert_eq!((refused.code(), refused.message()), rate);

    // What an agent that was killed leaves is replaced, and one that ends leaves nothing.
    node.kill_agent();
    assert!(socket.exists());
    node.up(&[]);
    node.await_ready();
    let client = Client::connect(&socket);
    node.wait_for("the pod to be told of again", || {
        (list(&client) == [both.clone()]).then_some(())
    });
    node.stop_agent();
    assert!(!socket.exists());
    node.up(&[]);
    node.await_ready();
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
