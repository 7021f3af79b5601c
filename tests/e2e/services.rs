//! Services: ClusterIP and NodePort, TCP and UDP, seen by clients in pods, on the node and outside.

use std::collections::BTreeSet;

use crate::node::{NODE_IP, Node};

/// A pod that answers by TCP and UDP on one port number, and its service.
const ECHO: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports:
    - {name: tcp, port: 7, targetPort: 8080, nodePort: 30007}
    - {name: udp, protocol: UDP, port: 7, targetPort: 8080, nodePort: 30007}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "berth.local/demo:1"}]
"#;

/// Asks until `replicas` different pods have answered.
fn answers(node: &Node, url: &str, replicas: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    node.wait_for(&format!("{replicas} pods to answer on {url}"), || {
        let curl = ["-sS", "--max-time", "2", url];
        let output = node.namespace().command("curl").args(curl).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        seen.extend(text.split_whitespace().next().map(str::to_owned));
        (seen.len() >= replicas).then_some(())
    });
    seen
}

#[test]
fn every_replica_answers_on_the_cluster_ip_and_the_node_port() {
    let node = Node::start();
    node.apply(include_str!("../demo/demo.yaml"));
    node.wait_ready("demo-1");
    node.wait_ready("demo-2");
    let service = node.get("service", "demo");
    let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let expected: BTreeSet<_> = ["demo-1".to_owned(), "demo-2".to_owned()].into();
    assert_eq!(answers(&node, &format!("http://{cluster_ip}/"), 2), expected);
    assert_eq!(answers(&node, &format!("http://{NODE_IP}:30080/"), 2), expected);

    node.kubectl(&["delete", "pod", "demo-2"]);
    let url = format!("http://{cluster_ip}/");
    for _ in 0..20 {
        let answer = node.namespace().run("curl", &["-sS", "--max-time", "2", &url]);
        assert!(answer.starts_with("demo-1 "), "{answer}");
    }

    node.kubectl(&["delete", "pod", "demo-1"]);
    node.wait_for("a service without endpoints to refuse", || {
        let curl = ["-sS", "--max-time", "2", &url];
        let output = node.namespace().command("curl").args(curl).output().ok()?;
        (output.status.code() == Some(7)).then_some(())
    });
    node.kubectl(&["delete", "service", "demo"]);
    node.finish();
}

#[test]
fn tcp_and_udp_share_a_port_number() {
    let node = Node::start();
    node.apply(ECHO);
    node.wait_ready("echo");
    let service = node.get("service", "echo");
    let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    for (address, port) in [(cluster_ip.as_str(), 7), (NODE_IP, 30007)] {
        answers(&node, &format!("http://{address}:{port}/"), 1);
        let ask = format!("echo hi | timeout 3 socat -t 1 - UDP:{address}:{port}");
        node.wait_for("an answer by UDP", || {
            let output = node.namespace().command("sh").args(["-c", &ask]).output().ok()?;
            (output.stdout == b"echo heard hi\n").then_some(())
        });
    }
    node.kubectl(&["delete", "pod,service", "echo"]);
    node.finish();
}

#[test]
fn pods_reach_services_and_the_outside_by_the_nodes_address() {
    let node = Node::start();
    node.apply(include_str!("../demo/demo.yaml"));
    node.wait_ready("demo-1");
    node.wait_ready("demo-2");
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c]
      # Debian's static busybox cannot resolve names, nor service names, so its wget does not work.
      args:
        - |
          get() { { printf 'GET / HTTP/1.0\r\n\r\n'; sleep 1; } | timeout 5 nc $1 $2 | tail -n 1; }
          for i in 1 2 3 4 5 6 7 8; do get $DEMO_SERVICE_HOST $DEMO_SERVICE_PORT; done
          get NODE 30080
"#
        .replace("NODE", NODE_IP)
        .as_str(),
    );
    node.wait_phase("asker", "Succeeded");
    let log = node.kubectl(&["logs", "asker"]);
    assert_eq!(log.lines().count(), 9, "{log}");
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
