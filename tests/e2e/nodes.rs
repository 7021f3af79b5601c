//! Two nodes, in two network namespaces of one machine: one with the API server, one that joined it.

use std::fs;

use crate::node::Node;

/// Two nodes with nothing on them, 192.0.2.1 and 192.0.2.2 on one link.
pub(crate) fn linked() -> (Node, Node) {
    let first = Node::prepare("node-1");
    let second = Node::prepare("node-2");
    let link = ["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns"];
    let peer = second.namespace().pid().to_string();
    first.namespace().run("ip", &[&link[..], &[&peer]].concat());
    for (node, address, other) in
        [(&first, "192.0.2.1", "192.0.2.2"), (&second, "192.0.2.2", "192.0.2.1")]
    {
        let ip = |line: &str| {
            node.namespace().run("ip", &line.split(' ').collect::<Vec<_>>());
        };
        ip("link set wire addrgenmode none");
        ip("link set wire up");
        ip(&format!("address add {address}/24 dev wire"));
        ip(&format!("route add default via {other}"));
    }
    (first, second)
}

#[test]
fn pods_on_two_nodes_reach_each_other_by_routes() {
    let (mut first, mut second) = linked();
    first.up(&["--node-ip", "192.0.2.1", "--api", "192.0.2.1:6443"]);
    first.await_ready();
    let kubeconfig = second.path("kubeconfig");
    fs::copy(first.path("state/standalone/admin.kubeconfig"), &kubeconfig).unwrap();
    let configuration = second.path("node.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodCIDR: 10.244.1.0/24\n";
    fs::write(&configuration, text).unwrap();
    let configuration = configuration.display().to_string();
    second.join(&kubeconfig, &["--node-ip", "192.0.2.2", "--config", &configuration]);
    first.wait_for("the second node to be Ready", || {
        let nodes = first.kubectl(&["get", "nodes", "--no-headers"]);
        nodes
            .lines()
            .any(|line| line.starts_with("node-2") && line.contains(" Ready "))
            .then_some(())
    });

    let pod = |name: &str, node: &str, container: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: main, imagePullPolicy: Never, {container}}}\n"
        )
    };
    for archive in [crate::image::busybox(), crate::image::demo()] {
        second.berth(&["images", "import", archive.to_str().unwrap()]);
    }
    let serve = "image: 'berth.local/demo:1'";
    first.apply(&[pod("here", "node-1", serve), pod("there", "node-2", serve)].concat());
    let address =
        |name: &str| first.wait_ready(name)["status"]["podIP"].as_str().unwrap().to_owned();
    let (here, there) = (address("here"), address("there"));
    assert_ne!(here.rsplit_once('.').unwrap().0, there.rsplit_once('.').unwrap().0, "own ranges");

    let ask = |from: &str, node: &str, target: &str| {
        let script = format!(
            "{{ printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1; }} | timeout 5 nc {target} 8080 \
             | tail -n 1; echo asked; sleep 1000"
        );
        let asker = format!("image: 'berth.local/busybox:1', command: [sh, -c, {script:?}]");
        first.apply(&pod(from, node, &asker));
        first.wait_for("an answer over the wire", || {
            let log = String::from_utf8(first.try_kubectl(&["logs", from]).stdout).unwrap();
            log.contains("asked").then_some(log)
        })
    };
    assert_eq!(ask("asker-1", "node-1", &there), "there request 1\nasked\n");
    assert_eq!(ask("asker-2", "node-2", &here), "here request 1\nasked\n");

    // The second node shows a certificate of its own, which its Node object vouches for.
    assert_eq!(first.kubectl(&["exec", "asker-2", "--", "echo", "hello"]), "hello\n");

    first.kubectl(&["delete", "pod", "--all"]);
    Node::finish_all([second, first]);
}
