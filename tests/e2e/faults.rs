//! What nodes are put through: too few descriptors, storms of probes, one name again and again.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{NODE_IP, Node, rounds, sleeper, succeed};

/// The administrator's certificate and key in one file.
fn identity(node: &Node) -> String {
    let file = node.path("admin.pem").display().to_string();
    let mut text = String::new();
    for part in ["client-certificate-data", "client-key-data"] {
        let path = format!("jsonpath={{.users[0].user.{part}}}");
        let encoded = node.kubectl(&["config", "view", "--raw", "-o", &path]);
        text += &succeed(Command::new("sh").args(["-c", "echo $1 | base64 -d", "sh", &encoded]));
    }
    fs::write(&file, text).unwrap();
    file
}

/// Asks the node's API for a thousand sessions, 200 at a time. Returns the statuses as they come.
fn thousand_sessions(node: &Node) -> Child {
    let url =
        format!("https://{NODE_IP}:10250/exec/default/box/main?output=1&command=sleep&command=3");
    let one = format!("url = \"{url}\"\noutput = /dev/null\n");
    let list = node.path("sessions");
    fs::write(&list, one.repeat(1000)).unwrap();
    let mut command = node.namespace().command("curl");
    command.args(["-sk", "--http1.1", "--no-keepalive", "-Z", "--parallel-immediate"]);
    command.args(["--parallel-max", "200", "--max-time", "60", "-w", "%{http_code}\\n"]);
    command.args(["-E", &identity(node), "-K"]).arg(list);
    for header in [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: v5.channel.k8s.io",
    ] {
        command.args(["-H", header]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Connections to a port of the node's loopback that say nothing, until it is dropped.
struct Silent(Child);

impl Silent {
    fn start(node: &Node, port: u16, count: usize) -> Self {
        let open =
            format!("for i in $(seq {count}); do exec {{f}}<> /dev/tcp/127.0.0.1/{port}; done");
        let mut command = node.namespace().command("bash");
        command.args(["-c", &format!("{open}; echo open; exec sleep 1000")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        Self(child)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The demo on a port of the node's loopback.
const PUBLISHED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: published}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/demo:1
      ports: [{containerPort: 8080, hostPort: 18081, hostIP: 127.0.0.1}]
---";

#[test]
fn a_node_with_few_descriptors_sheds_streams_and_goes_on_with_its_pods() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    node.up_with_descriptors(256, &[]);
    node.await_ready();
    node.apply(&(sleeper("box", "{}") + &sleeper("goes", "{}") + PUBLISHED));
    node.wait_ready("box");
    node.wait_ready("goes");
    node.wait_ready("published");
    let silent = [10248, 18081].map(|port| Silent::start(&node, port, 100));
    let sessions = thousand_sessions(&node);
    for round in 0..5 {
        let name = format!("comes-{round}");
        node.apply(&sleeper(&name, "{}"));
        node.wait_ready(&name);
        node.kubectl(&["delete", "pod", &name, "--timeout=60s"]);
    }
    node.kubectl(&["delete", "pod", "goes", "--timeout=60s"]);
    let output = sessions.wait_with_output().unwrap();
    let statuses = String::from_utf8(output.stdout).unwrap();
    let count = |status: &str| statuses.lines().filter(|line| *line == status).count();
    let (let_in, shed) = (count("101"), count("503"));
    assert!(let_in >= 8, "{let_in} were let in and {shed} shed");
    assert!(shed >= 100, "{let_in} were let in and {shed} shed");
    assert_eq!(node.kubectl(&["exec", "box", "--", "echo", "well"]), "well\n");
    let ask = |url: &str| {
        succeed(node.namespace().command("curl").args(["-sS", "--max-time", "30", url]))
    };
    assert_eq!(ask("http://127.0.0.1:10248/healthz"), "ok", "who says nothing gives way");
    drop(silent);
    assert!(ask("http://127.0.0.1:18081/").contains("published"));
    let log = node.agent_log();
    assert!(!log.contains("Too many open files"), "{log}");
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

/// Processes that want the machine for themselves, until this is dropped.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start(count: usize) -> Self {
        let hog = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap()
        };
        Self((0..count).map(hog).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

const PODS: usize = 20;

/// A pod with a probe of every kind but gRPC, each every second.
fn probed(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: served
      image: berth.local/demo:1
      startupProbe: {{periodSeconds: 1, failureThreshold: 60, tcpSocket: {{port: 8080}}}}
      livenessProbe: {{periodSeconds: 1, failureThreshold: 1, httpGet: {{path: /, port: 8080}}}}
      readinessProbe: {{periodSeconds: 1, failureThreshold: 1, tcpSocket: {{port: 8080}}}}
    - name: asked
      image: berth.local/busybox:1
      command: [sleep, '100000']
      livenessProbe: {{periodSeconds: 1, failureThreshold: 1, exec: {{command: ['true']}}}}
---"
    )
}

/// When a pod became Ready, and how often its containers were restarted.
fn standing(pod: &Value) -> (String, i64) {
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready" && c["status"] == "True");
    let since = ready.map_or_else(String::new, |c| c["lastTransitionTime"].to_string());
    let containers = pod["status"]["containerStatuses"].as_array().unwrap();
    (since, containers.iter().map(|c| c["restartCount"].as_i64().unwrap()).sum())
}

#[test]
fn a_storm_of_probes_on_a_busy_machine_fails_none_and_all_pods_go_at_once() {
    let node = Node::start();
    let names: Vec<_> = (0..PODS).map(|n| format!("probed-{n}")).collect();
    node.apply(&names.iter().map(|name| probed(name)).collect::<String>());
    let before: Vec<_> = names.iter().map(|name| standing(&node.wait_ready(name))).collect();
    let hogs = Hogs::start(4);
    std::thread::sleep(Duration::from_secs(20));
    let list: Value = serde_json::from_str(&node.kubectl(&["get", "pods", "-o", "json"])).unwrap();
    drop(hogs);
    for (name, before) in names.iter().zip(before) {
        let pods = list["items"].as_array().unwrap();
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == **name).unwrap();
        assert_eq!(before.1, 0, "{name}");
        assert_eq!(standing(pod), before, "{name}");
    }
    let begun = Instant::now();
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    node.finish();
}

/// Says over and over who it is, and does not end by being asked to.
fn alone(directory: &Path) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: same}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: host, hostPath: {{path: {}}}}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, 'trap \"\" TERM; id=$(cat /proc/sys/kernel/random/uuid); echo $id >> /host/said; echo $id >> /host/runs; while :; do echo $id >> /host/said; usleep 10000; done']
      ports: [{{containerPort: 80, hostPort: 18080}}]
      volumeMounts: [{{name: host, mountPath: /host}}]
",
        directory.display()
    )
}

#[test]
fn pods_that_follow_each_other_under_one_name_never_overlap() {
    let node = Node::start();
    let directory = node.path("host");
    fs::create_dir(&directory).unwrap();
    let mut uids = Vec::new();
    for round in 0..rounds(12) {
        // What is being deleted is not replaced yet.
        node.wait_for("the name to be free", || {
            let output = node.try_apply(&alone(&directory));
            let made = String::from_utf8_lossy(&output.stdout).contains("created");
            made.then_some(())
        });
        let pod = node.wait_pod("same", "running once more", |pod| {
            let runs = fs::read_to_string(directory.join("runs")).unwrap_or_default();
            runs.lines().count() == round + 1 && pod["status"]["phase"] == "Running"
        });
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let container = &pod["status"]["containerStatuses"][0];
        assert_eq!(container["restartCount"], 0, "round {round}");
        assert!(!uids.contains(&uid));
        uids.push(uid);
        let how: &[&str] = match round % 3 {
            0 => &["delete", "pod", "same", "--force", "--grace-period=0", "--wait=false"],
            1 => &["delete", "pod", "same", "--wait=false"],
            _ => &["delete", "pod", "same"],
        };
        node.kubectl(how);
    }
    // Whoever began has the last word until the next one begins.
    let said = fs::read_to_string(directory.join("said")).unwrap();
    let mut turns: Vec<&str> = said.lines().collect();
    turns.dedup();
    let runs = fs::read_to_string(directory.join("runs")).unwrap();
    assert_eq!(turns, runs.lines().collect::<Vec<_>>(), "two lived at once");
    node.finish();
}
