//! The systemd services that `berth join --systemd` and `berth install-kubelet` install. Only a host run
//! by systemd can show them: this runs in the VM, on the host's own network, with the usual directories.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::cri::Client;
use crate::joining::{make_token, pin};
use crate::node::{Node, berth, condition, succeed, wait};

const UNIT: &str = "/etc/systemd/system/berth.service";

/// What a service manager tells its service; no container may see it.
const TOLD: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD",
];

fn systemctl(line: &str) -> String {
    succeed(Command::new("systemctl").args(line.split(' ')))
}

fn property(name: &str) -> String {
    systemctl(&format!("show berth.service --value -p {name}")).trim().to_owned()
}

/// The API server, in a network namespace of its own, on a link with the host.
fn server() -> Node {
    let mut first = Node::prepare("node-1");
    let ip = |line: &str| {
        first.namespace().run("ip", &line.split(' ').collect::<Vec<_>>());
    };
    ip("link add wire type veth peer name wire netns 1");
    ip("link set wire addrgenmode none");
    ip("link set wire up");
    ip("address add 192.0.2.1/24 dev wire");
    ip("route add default via 192.0.2.2");
    let host = |line: &str| succeed(Command::new("ip").args(line.split(' ')));
    host("link set wire up");
    host("address add 192.0.2.2/24 dev wire");
    // No pod runs there: its images are not needed.
    let mut command = first.namespace().command(berth());
    command.arg("up").args(first.dir_flags()).args(["--node-name", "node-1"]);
    command.args(["--node-ip", "192.0.2.1", "--api", "192.0.2.1:6443"]);
    first.spawn(command);
    first.await_ready();
    make_token(&first);
    first
}

fn container(first: &Node) -> (Value, Value) {
    let status = first.get("pod", "there")["status"]["containerStatuses"][0].clone();
    (status["containerID"].clone(), status["restartCount"].clone())
}

fn wait_ready(first: &Node) {
    first.wait_for("the joined node to be Ready", || {
        (condition(&first.get("node", "node-2"), "Ready") == "True").then_some(())
    });
}

#[test]
fn a_joined_node_is_a_service_whose_pods_outlive_it() {
    assert!(Path::new("/run/systemd/system").is_dir(), "this test needs systemd");
    let first = server();
    let hash = pin(&first);
    let mut join = Command::new(berth());
    join.args(["join", "192.0.2.1:6443", "--token", "abcdef.0123456789abcdef"]);
    join.args(["--discovery-token-ca-cert-hash", &hash, "--systemd"]);
    succeed(join.args(["--node-name", "node-2", "--node-ip", "192.0.2.2"]));
    assert_eq!(property("ActiveState"), "active");
    for (name, value) in [("Type", "notify"), ("KillMode", "process"), ("Delegate", "yes")] {
        assert_eq!(property(name), value, "{name}");
    }
    wait_ready(&first);

    let image = crate::image::busybox();
    succeed(Command::new(berth()).args(["images", "import"]).arg(image));
    first.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: there}\nspec:\n  nodeName: node-2\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: \
         'berth.local/busybox:1', imagePullPolicy: Never, command: [sh, -c, \
         'env; echo score $(cat /proc/self/oom_score_adj); sleep 1000']}\n",
    );
    first.wait_ready("there");
    let log = first.wait_for("the container to tell", || {
        let log = first.try_kubectl(&["logs", "there"]).stdout;
        let log = String::from_utf8(log).unwrap();
        log.contains("score").then_some(log)
    });
    assert!(TOLD.iter().all(|name| !log.contains(name)), "{log}");
    assert!(log.contains("score 1000"), "{log}");

    let before = container(&first);
    systemctl("restart berth.service");
    wait_ready(&first);
    assert_eq!(container(&first), before);

    // An agent that hangs is ended and started again; its pods do not notice.
    fs::create_dir_all("/run/systemd/system/berth.service.d").unwrap();
    let short = "[Service]\nWatchdogSec=10\nTimeoutStopSec=2\nTimeoutAbortSec=2\n";
    fs::write("/run/systemd/system/berth.service.d/short.conf", short).unwrap();
    systemctl("daemon-reload");
    systemctl("restart berth.service");
    let hung = property("MainPID");
    succeed(Command::new("kill").args(["-STOP", &hung]));
    wait("another agent", || {
        let now = property("MainPID");
        (now != hung && now != "0" && property("ActiveState") == "active").then_some(())
    });
    wait_ready(&first);
    assert_eq!(container(&first), before);

    first.kubectl(&["delete", "pod", "there"]);
    fs::remove_dir_all("/run/systemd/system/berth.service.d").unwrap();
    succeed(Command::new(berth()).arg("reset"));
    assert!(!Path::new(UNIT).exists());
    assert_ne!(property("ActiveState"), "active");
    first.finish();
}

#[test]
fn installed_as_the_kubelet_berth_is_what_kubeadm_looks_for() {
    assert!(Path::new("/run/systemd/system").is_dir(), "this test needs systemd");
    succeed(Command::new(berth()).arg("install-kubelet"));
    let version = succeed(Command::new("kubelet").arg("--version"));
    assert!(version.starts_with("Kubernetes v1.36."), "{version}");
    assert_eq!(systemctl("is-enabled kubelet.service").trim(), "enabled");
    let cri = Client::connect(Path::new("/run/berth/berth.sock"));
    assert_eq!(cri.conditions()[0], ("RuntimeReady".to_owned(), true));
    drop(cri);
    // Before kubeadm has written what it runs with, the kubelet waits: it does not fail.
    systemctl("start kubelet.service");
    for (property, value) in [("ActiveState", "inactive"), ("ConditionResult", "no")] {
        let shown = systemctl(&format!("show kubelet.service --value -p {property}"));
        assert_eq!(shown.trim(), value, "{property}");
    }

    succeed(Command::new(berth()).args(["reset", "--state-dir", "/var/lib/kubelet"]));
    for path in ["/usr/bin/kubelet", "/etc/systemd/system/kubelet.service"] {
        assert!(fs::symlink_metadata(path).is_err(), "{path} is left");
    }
    assert!(!Path::new("/etc/systemd/system/berth-cri.service").exists());
}
