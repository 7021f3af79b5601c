//! A shutdown of the host waits for its pods. Only a host with systemd-logind can show it: this runs in
//! the VM. logind is asked for a real power-off; while it waits, the unit that does it is masked, so that
//! logind gives up in the end, and the machine stays for the test to look at.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::image;
use crate::node::{NODE_IP, Node, berth, condition, succeed, wait};

const DROP_IN: &str = "/etc/systemd/logind.conf.d/99-kubelet.conf";
const LOGIN: [&str; 3] =
    ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
const SERVICES: [&str; 2] = ["systemd-logind", "dbus"];
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// Ends two seconds after it is told to, and tells when by the time since the boot.
fn slow(name: &str, class: &str) -> String {
    let script = "trap 'read at x < /proc/uptime; echo told $at; sleep 2; \
                  read at x < /proc/uptime; echo done $at; exit 0' TERM; \
                  echo up; while :; do usleep 100000; done";
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  {class}
  containers:
    - {{name: main, image: 'berth.local/busybox:1', command: [sh, -c, \"{script}\"]}}
---"
    )
}

fn idle(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {{name: main, image: 'berth.local/busybox:1', command: [sleep, '1000']}}
---"
    )
}

fn run(line: &str) -> String {
    let mut words = line.split(' ');
    succeed(Command::new(words.next().unwrap()).args(words))
}

/// The delay locks on shutdowns, by their owners' names.
fn locks() -> Vec<String> {
    let list = run("systemd-inhibit --list --no-legend --no-pager --mode=delay");
    let ours = list.lines().filter(|line| line.contains("shutdown") && line.ends_with("delay"));
    ours.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
}

fn wait_lock(what: &str, owners: &[&str]) {
    wait(what, || {
        let mut locks = locks();
        locks.sort();
        (locks == owners).then_some(())
    });
}

/// How often a lock was taken.
fn taken(node: &Node) -> usize {
    node.agent_log().matches("a shutdown waits for pods").count()
}

/// Holds the host up itself, as long as its input is open.
fn hold() -> Child {
    let words = ["--what=shutdown", "--mode=delay", "--who=test", "--why=looking on", "cat"];
    let mut command = Command::new("systemd-inhibit");
    let holder = command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    holder.expect("systemd-inhibit runs")
}

fn wait_ready(node: &Node, status: &str) -> Value {
    node.wait_for(&format!("the node's Ready to be {status}"), || {
        let seen = node.get("node", "node-1");
        (condition(&seen, "Ready") == status).then(|| {
            let conditions = seen["status"]["conditions"].as_array().unwrap();
            conditions.iter().find(|one| one["type"] == "Ready").unwrap().clone()
        })
    })
}

/// systemd gives a service another keyring with each start; these do without, so that the census sees none
/// come and go.
fn without_keyrings() {
    for service in SERVICES {
        let directory = format!("/run/systemd/system/{service}.service.d");
        fs::create_dir_all(&directory).unwrap();
        let text = "[Service]\nKeyringMode=inherit\n";
        fs::write(format!("{directory}/keyring.conf"), text).unwrap();
    }
    run("systemctl daemon-reload");
    for service in SERVICES {
        run(&format!("systemctl restart {service}.service"));
    }
}

/// When a container said something, in seconds since the boot.
fn at(node: &Node, pod: &str, what: &str) -> f64 {
    let log = node.kubectl(&["logs", pod]);
    let line = log.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{pod} has not said {what}: {log}")).parse().unwrap()
}

fn start() -> Node {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let manifests = node.path("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("web.yaml"), idle("web").replace("---", "")).unwrap();
    let file = node.path("node.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         shutdownGracePeriod: 3m\nshutdownGracePeriodCriticalPods: 1m\nstaticPodPath: {}\n\
         evictionHard: {{}}\n",
        manifests.display()
    );
    fs::write(&file, text).unwrap();
    // One image is enough, and quickly imported.
    let mut command = node.namespace().command(berth());
    command.arg("up").args(node.dir_flags()).args(["--node-name", "node-1"]);
    command.args(["--node-ip", NODE_IP]).arg("--import").arg(image::busybox());
    command.arg("--config").arg(&file);
    node.spawn(command);
    node.await_ready();
    node
}

#[test]
fn a_shutdown_waits_until_pods_have_ended_by_priority_and_can_be_called_off() {
    assert!(Path::new("/run/systemd/system").is_dir(), "this test needs systemd");
    without_keyrings();
    let node = start();
    wait_lock("the lock", &["berth"]);
    let property = ["get-property", LOGIN[0], LOGIN[1], LOGIN[2], "InhibitDelayMaxUSec"];
    assert_eq!(succeed(Command::new("busctl").args(property)).trim(), "t 180000000");
    assert!(fs::read_to_string(DROP_IN).unwrap().ends_with("InhibitDelayMaxSec=180\n"));
    for service in SERVICES {
        let before = taken(&node);
        run(&format!("systemctl restart {service}.service"));
        node.wait_for(&format!("the lock, after {service}"), || {
            (taken(&node) > before).then_some(())
        });
        wait_lock("one lock", &["berth"]);
    }

    node.apply(&slow("normal", "terminationGracePeriodSeconds: 60"));
    node.apply(&slow("critical", "priorityClassName: system-cluster-critical"));
    for pod in ["normal", "critical", "web-node-1"] {
        node.wait_ready(pod);
    }
    // Anybody may say so; only logind is believed.
    let mut emit = Command::new("busctl");
    succeed(emit.args(["emit", LOGIN[1], LOGIN[2], "PrepareForShutdown", "b", "true"]));
    node.apply(&idle("undisturbed"));
    node.wait_ready("undisturbed");

    let mut holder = hold();
    wait_lock("both locks", &["berth", "test"]);
    let mut power_off = Command::new("busctl");
    succeed(power_off.arg("call").args(LOGIN).args(["PowerOff", "b", "false"]));
    // Masked before, logind would refuse.
    run("systemctl mask --runtime poweroff.target");
    let ready = wait_ready(&node, "False");
    assert_eq!(ready["reason"], "KubeletNotReady");
    assert_eq!(ready["message"], "node is shutting down");
    node.apply(&idle("late").replace("spec:", "spec:\n  nodeName: node-1"));
    let late = node.wait_phase("late", "Failed");
    assert_eq!(late["status"]["reason"], "NodeShutdown");
    let message = late["status"]["message"].as_str().unwrap();
    assert!(message.ends_with("Pod was rejected as the node is shutting down."), "{message}");
    wait_lock("the lock to be let go", &["test"]);
    for name in ["normal", "critical", "undisturbed", "web-node-1"] {
        // A server that is slow may hear of it late; here it goes on meanwhile.
        let pod = node.wait_phase(name, "Failed");
        let status = &pod["status"];
        let told = (&status["phase"], &status["reason"], &status["message"]);
        let expected = (&"Failed".into(), &"Terminated".into(), &MESSAGE.into());
        assert_eq!(told, expected, "{name}");
        assert_eq!(condition(&pod, "DisruptionTarget"), "True", "{name}");
    }
    assert!(at(&node, "normal", "done") <= at(&node, "critical", "told"));
    assert_eq!(node.wait_event("node-1", "Shutdown"), "Shutdown manager detected shutdown event");

    // Nobody holds it any more: it goes down, and finds that it cannot.
    drop(holder.stdin.take());
    holder.wait().unwrap();
    wait_ready(&node, "True");
    wait_lock("the lock again", &["berth"]);
    node.wait_ready("web-node-1");
    assert_eq!(node.get("pod", "normal")["status"]["phase"], "Failed");
    node.apply(&idle("next"));
    node.wait_ready("next");
    let metrics = node.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    let seconds = |what: &str| -> f64 {
        let name = format!("kubelet_graceful_shutdown_{what}_time_seconds ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{name}is not in {metrics}")).parse().unwrap()
    };
    assert!(seconds("start") > 1e9 && seconds("end") >= seconds("start") + 4.0);
    assert!(node.path("state/graceful_node_shutdown_state").exists());

    node.kubectl(&["delete", "pod", "--all", "--wait=false"]);
    node.finish();
    assert!(!Path::new(DROP_IN).exists(), "the reset takes it back");
    run("systemctl unmask --runtime poweroff.target");
    for service in SERVICES {
        fs::remove_dir_all(format!("/run/systemd/system/{service}.service.d")).unwrap();
    }
}
