//! The command line: what it prints, how it exits, and what it says of bad input.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::node::{Node, berth, told};

/// Runs `berth` with a node's directories and expects it to fail within ten seconds.
fn refused(node: &Node, args: &[&str]) -> String {
    let began = Instant::now();
    let output: Output = node
        .namespace()
        .command("timeout")
        .arg("30")
        .arg(berth())
        .args(args)
        .args(node.dir_flags())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(began.elapsed() < Duration::from_secs(20), "{args:?} took {:?}", began.elapsed());
    told(&output)
}

#[test]
fn a_configuration_with_an_unknown_field_is_refused_with_its_line() {
    let node = Node::prepare("node-1");
    let file = node.path("node.yaml");
    std::fs::write(
        &file,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPodz: 3\n",
    )
    .unwrap();
    let text = refused(&node, &["up", "--config", file.to_str().unwrap()]);
    assert!(text.contains("line 3") && text.contains("maxPodz"), "{text}");
    node.finish();
}

#[test]
fn a_cgroup_driver_that_the_host_has_not_is_refused() {
    let node = Node::prepare("node-1");
    node.uplink();
    let file = node.path("node.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: systemd\n";
    std::fs::write(&file, text).unwrap();
    // A host where systemd is installed, and does not run.
    let script = "mount -t tmpfs none /run/systemd; exec \"$@\"";
    for command in ["check", "up"] {
        let mut hidden = node.namespace().command("timeout");
        hidden.args(["60", "unshare", "--mount", "sh", "-c", script, "sh"]).arg(berth());
        hidden.arg(command).arg("--config").arg(&file).args(node.dir_flags());
        let output = hidden.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert!(told(&output).contains("cgroupDriver"), "{}", told(&output));
    }
    node.finish();
}

#[test]
fn a_kubeconfig_that_points_nowhere_is_named() {
    let node = Node::prepare("node-1");
    node.uplink();
    let missing = refused(&node, &["agent", "--kubeconfig", "/nonexistent/kubeconfig"]);
    assert!(missing.contains("/nonexistent/kubeconfig"), "{missing}");
    let file = node.path("kubeconfig");
    std::fs::write(&file, "apiVersion: v1\nkind: Config\ncurrent-context: gone\n").unwrap();
    let broken = refused(&node, &["agent", "--kubeconfig", file.to_str().unwrap()]);
    assert!(broken.contains("gone"), "{broken}");
    node.finish();
}

#[test]
fn a_taken_port_is_named_and_nothing_is_left() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let listen = || TcpListener::bind(("127.0.0.1", 6443)).unwrap();
    let listener = node.namespace().within(listen);
    node.up(&[]);
    node.wait_for("the agent to refuse", || node.agent_log().contains("6443").then_some(()));
    drop(listener);
    node.finish();
}

#[test]
fn check_says_what_is_not_enforced_and_how_to_mend_it() {
    let node = Node::prepare("node-1");
    let text = node.berth(&["check"]);
    assert!(text.starts_with("kernel "), "{text}");
    assert!(text.contains("this host can run a node"), "{text}");
    for finding in text.split("\nlimited: ").skip(1) {
        assert!(finding.contains("\n  then: ") && finding.contains("\n  mend: "), "{finding}");
    }
    node.finish();
}

#[test]
fn reset_leaves_nothing_of_a_running_pod() {
    let mut node = Node::start();
    node.apply(include_str!("../demo/demo.yaml"));
    node.wait_ready("demo-1");
    node.kill_agent();
    // finish() resets and takes the census.
    node.finish();
}

#[test]
fn pods_and_logs_work_while_the_api_server_is_down() {
    let mut node = Node::start();
    node.apply(include_str!("../demo/demo.yaml"));
    node.wait_ready("demo-1");
    let events = node.berth(&["events", "demo-1"]);
    assert!(events.contains("Started") && events.contains("pod/default/demo-1"), "{events}");
    audit(&node);
    node.stop_agent();
    let untold = refused(&node, &["events"]);
    assert!(untold.contains("kept by the agent"), "{untold}");
    let pods = node.berth(&["pods"]);
    let row = pods.lines().find(|line| line.contains("demo-1")).unwrap_or_else(|| panic!("{pods}"));
    assert!(row.contains("Running"), "{row}");
    assert!(node.berth(&["logs", "demo-1"]).contains("demo-1 listens on port 8080"));
    assert!(node.berth(&["images"]).contains("berth.local/demo"));
    let stats = node.berth(&["stats"]);
    let row =
        stats.lines().find(|line| line.contains("demo-1")).unwrap_or_else(|| panic!("{stats}"));
    assert!(row.contains("Mi") && row.contains('m'), "{row}");
    node.finish();
}

/// What berth runs by itself passes every item; a file that others read fails its own.
fn audit(node: &Node) {
    let unit = node.path("no-unit");
    let unit = unit.to_str().unwrap();
    let table = node.berth(&["audit", "--unit", unit]);
    assert!(table.ends_with("\n25 pass, 0 fail, 0 warn\n"), "{table}");
    let file = node.kubeconfig();
    let open = |mode| std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    open(0o644);
    let mut again = node.namespace().command(berth());
    again.args(["audit", "--unit", unit, "-o", "json"]).args(node.dir_flags());
    let output = again.output().unwrap();
    open(0o600);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = report["items"].as_array().unwrap().iter();
    let failed: Vec<_> = items.filter(|item| item["state"] == "FAIL").collect();
    let numbers: Vec<_> = failed.iter().map(|item| item["item"].as_str().unwrap()).collect();
    assert_eq!(numbers, ["4.1.3", "4.1.5"], "{report}");
    assert!(failed[0]["found"].as_str().unwrap().contains("is 644"), "{report}");
}

#[test]
fn help_names_every_command() {
    let output = Command::new(berth()).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for command in
        ["up", "agent", "check", "reset", "pods", "logs", "images", "pull", "audit", "events"]
    {
        assert!(
            text.lines().any(|line| line.trim_start().starts_with(command)),
            "{command}: {text}"
        );
    }
}

#[test]
fn the_oci_runtime_is_written_to_a_file_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("berth-oci");
    std::fs::write(&file, "something older").unwrap();
    let write =
        |to: &std::path::Path| Command::new(berth()).arg("oci-runtime").arg(to).output().unwrap();
    let written = write(&file);
    assert!(written.status.success(), "{}", told(&written));
    let version = Command::new(&file).arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(text.starts_with("berth-oci version ") && text.contains("spec: 1."), "{text}");
    let nowhere = write(&directory.path().join("missing/berth-oci"));
    assert!(!nowhere.status.success() && told(&nowhere).contains("missing/berth-oci"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn the_written_runtime_shows_containers_an_executable_that_nothing_writes_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let runtime = path("berth-oci");
    let run = |program: &std::path::Path, args: &[&str]| {
        let output = Command::new(program)
            .arg("--root")
            .arg(path("state"))
            .args(args)
            .current_dir(directory.path())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", told(&output));
    };
    let written = Command::new(berth()).arg("oci-runtime").arg(&runtime).output().unwrap();
    assert!(written.status.success(), "{}", told(&written));
    run(&runtime, &["spec"]);
    let spec = std::fs::read_to_string(path("config.json")).unwrap();
    std::fs::write(path("config.json"), spec.replace("\"terminal\": true", "\"terminal\": false"))
        .unwrap();
    // What is to be executed must be there before the container is created.
    std::fs::create_dir_all(path("rootfs/bin")).unwrap();
    std::fs::copy("/bin/true", path("rootfs/bin/sh")).unwrap();
    let id = format!("berth-e2e-{}", std::process::id());
    let pid = path("pid");
    // Its streams are the container's, which nobody may wait for.
    let mut create = Command::new(&runtime);
    create.arg("--root").arg(path("state")).args(["create", "--pid-file"]).arg(&pid).arg(&id);
    create.current_dir(directory.path()).stdin(std::process::Stdio::null());
    create.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(create.status().unwrap().success());
    let pid = std::fs::read_to_string(&pid).unwrap();
    let shown = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    run(&runtime, &["delete", "--force", &id]);
    // The name below the overlay's root: neither the file itself nor a copy in memory.
    assert_eq!(shown, std::path::Path::new("/berth-oci"));
}
