//! `cgroupDriver: systemd`: pods are slices with their limits, which systemd keeps and forgets with the
//! pod. Only a host run by systemd can show it: this runs in the VM.

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use berth_runtime::cri::CgroupDriver;
use serde_json::Value;

use crate::cri::Client;
use crate::image;
use crate::node::{NODE_IP, Node, berth, sleeper, succeed};

const CGROUPS: &str = "/sys/fs/cgroup";

fn systemctl(line: &str) -> String {
    succeed(Command::new("systemctl").args(line.split(' '))).trim().to_owned()
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&format!("show {unit} --value -p {name}"))
}

/// The units that systemd has of pods, whatever has become of them.
fn units() -> Vec<String> {
    let shown = systemctl("list-units --all --plain --no-legend kubepods* berth-*.scope");
    shown.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

fn config(node: &Node, driver: &str) -> String {
    let file = node.path(&format!("{driver}.yaml"));
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         podPidsLimit: 64\ncgroupDriver: {driver}\n"
    );
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

fn start(driver: &str) -> Node {
    assert!(Path::new("/run/systemd/system").is_dir(), "this test needs systemd");
    let mut node = Node::prepare("node-1");
    node.uplink();
    let config = config(&node, driver);
    node.up(&["--config", &config]);
    node.await_ready();
    node
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().replace('-', "_")
}

fn container_id(pod: &Value) -> String {
    pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap()["berth://".len()..]
        .to_owned()
}

/// The pod's scope, the only unit in its slice.
fn scope(slice: &Path) -> PathBuf {
    let inside = fs::read_dir(slice).unwrap().map(|entry| entry.unwrap().path());
    let scopes: Vec<_> = inside.filter(|path| path.extension() == Some("scope".as_ref())).collect();
    assert_eq!(scopes.len(), 1, "{scopes:?}");
    scopes.into_iter().next().unwrap()
}

fn read(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file)).unwrap().trim().to_owned()
}

fn files(group: &Path) -> [String; 4] {
    ["cpu.weight", "cpu.max", "memory.max", "pids.max"].map(|file| read(group, file))
}

#[test]
fn pods_are_slices_whose_limits_systemd_keeps() {
    let mut node = start("systemd");
    let limited = "{requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 255m, memory: 128Mi}}";
    let whole = "{limits: {cpu: 100m, memory: 64Mi}}";
    for (name, resources) in [("burstable", limited), ("guaranteed", whole), ("besteffort", "{}")] {
        node.apply(&sleeper(name, resources));
    }
    let before = node.wait_ready("burstable");
    let class = "kubepods.slice/kubepods-burstable.slice";
    let slice = format!("kubepods-burstable-pod{}.slice", uid(&before));
    let relative = Path::new(class).join(&slice);
    let group = Path::new(CGROUPS).join(&relative);
    let expected = [
        ("ActiveState", "active"),
        ("MemoryMax", "134217728"),
        ("CPUWeight", "4"),
        // Whole percents are what systemd can express.
        ("CPUQuotaPerSecUSec", "260ms"),
        ("CPUQuotaPeriodUSec", "100ms"),
        ("TasksMax", "64"),
    ];
    for (name, value) in expected {
        assert_eq!(property(&slice, name), value, "{name}");
    }
    let scope = scope(&group);
    let unit = scope.file_name().unwrap().to_str().unwrap().to_owned();
    for (name, value) in [("Delegate", "yes"), ("Slice", &slice), ("ActiveState", "active")] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    let container = scope.join(container_id(&before));
    assert_eq!(read(&container, "cgroup.procs").lines().count(), 1);
    assert_eq!(read(&scope.join("shim"), "cgroup.procs").lines().count(), 1);
    let tree = succeed(Command::new("systemd-cgls").args(["--no-pager", "--unit", &slice]));
    assert!(tree.contains(&unit) && tree.contains("sleep 100000"), "{tree}");

    let others = [("guaranteed", "kubepods-pod"), ("besteffort", "kubepods-besteffort-pod")];
    for (name, stem) in others {
        let slice = format!("{stem}{}.slice", uid(&node.wait_ready(name)));
        assert_eq!(property(&slice, "ActiveState"), "active", "{slice}");
    }
    // The class's weight follows from its pods.
    node.wait_for("the class to weigh 4", || {
        (property("kubepods-burstable.slice", "CPUWeight") == "4").then_some(())
    });

    // What systemd writes anew is what was there.
    let all = || [files(&group), files(&container)];
    let limits = all();
    assert_eq!(limits[0], ["4", "26000 100000", "134217728", "64"]);
    systemctl("daemon-reload");
    assert_eq!(all(), limits);
    node.wait_event("node-1", "NodeAllocatableEnforced");
    let most = property("kubepods.slice", "MemoryMax");
    assert_eq!(read(&Path::new(CGROUPS).join("kubepods.slice"), "memory.max"), most);
    assert_ne!(most, "infinity");

    told_everywhere(&node, &relative, &container);
    survives_the_agent_and_systemd(&mut node, &before);
    assert_eq!(all(), limits);

    let sizes = r#"{"spec":{"containers":[{"name":"main","resources":{
        "requests":{"cpu":"150m"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}"#;
    node.kubectl(&["patch", "pod", "burstable", "--subresource", "resize", "-p", sizes]);
    node.wait_for("the slice to be resized", || {
        (property(&slice, "MemoryMax") == (96 << 20).to_string()).then_some(())
    });
    node.wait_for("the quota to be resized", || {
        (property(&slice, "CPUQuotaPerSecUSec") == "300ms").then_some(())
    });
    systemctl("daemon-reload");
    assert_eq!(read(&group, "memory.max"), (96 << 20).to_string());
    assert_eq!(read(&group, "cpu.max"), "30000 100000");

    node.kubectl(&["delete", "pod", "--all"]);
    let of_pods = |unit: &String| unit.contains("-pod") || unit.ends_with(".scope");
    node.wait_for("the units to go", || (!units().iter().any(of_pods)).then_some(()));
    assert!(!group.exists());
    node.finish();
    assert_eq!(units(), Vec::<String>::new());
}

/// Metrics, the CRI and the configuration tell the slices, and an exec goes into the container's cgroup.
fn told_everywhere(node: &Node, pod: &Path, container: &Path) {
    let proxied =
        |page: &str| node.kubectl(&["get", "--raw", &format!("/api/v1/nodes/node-1/proxy/{page}")]);
    let cadvisor = proxied("metrics/cadvisor");
    let container_id = container.strip_prefix(CGROUPS).unwrap();
    for id in [pod, container_id] {
        assert!(cadvisor.contains(&format!("id=\"/{}\"", id.display())), "{id:?}\n{cadvisor}");
    }
    assert!(proxied("configz").contains("\"cgroupDriver\":\"systemd\""));
    let summary: Value = serde_json::from_str(&proxied("stats/summary")).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    let ours = pods.iter().find(|pod| pod["podRef"]["name"] == "burstable").unwrap();
    assert!(ours["memory"]["workingSetBytes"].as_u64().unwrap() > 0, "{ours}");
    assert!(ours["network"]["interfaces"].as_array().is_some_and(|all| all.len() == 1), "{ours}");
    let cri = Client::connect(&node.path("run/berth.sock"));
    assert_eq!(cri.driver(), CgroupDriver::Systemd);
    node.kubectl(&["exec", "burstable", "--", "sh", "-c", "sleep 100000 >&- 2>&- &"]);
    assert_eq!(read(container, "cgroup.procs").lines().count(), 2);
}

/// A pod does not notice when the agent is killed, nor when systemd executes itself anew meanwhile.
fn survives_the_agent_and_systemd(node: &mut Node, before: &Value) {
    node.kill_agent();
    systemctl("daemon-reexec");
    let config = config(node, "systemd");
    node.up(&["--config", &config]);
    node.await_ready();
    let after = node.wait_ready("burstable");
    assert_eq!(container_id(&after), container_id(before));
    // The agent's next question meets another systemd than its last.
    systemctl("daemon-reexec");
    node.apply(&sleeper("another", "{}"));
    node.wait_ready("another");
}

#[test]
fn a_container_that_runs_out_of_memory_ends_alone() {
    let node = start("systemd");
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
    - name: modest
      image: berth.local/busybox:1
      command: [sleep, "100000"]
    - name: greedy
      image: berth.local/busybox:1
      command: [sh, -c, "tail /dev/zero"]
      resources: {limits: {memory: 24Mi}}
"#,
    );
    let status = |pod: &Value, name: &str| {
        let mut all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        all.find(|one| one["name"] == name).cloned().unwrap_or_default()
    };
    let pod = node.wait_pod("two", "out of memory", |pod| {
        !status(pod, "greedy")["state"]["terminated"].is_null()
    });
    assert_eq!(status(&pod, "greedy")["state"]["terminated"]["reason"], "OOMKilled");
    // systemd has had time to take it for the end of the unit.
    systemctl("daemon-reload");
    node.kubectl(&["exec", "two", "-c", "modest", "--", "true"]);
    let pod = node.get("pod", "two");
    assert!(!status(&pod, "modest")["state"]["running"].is_null(), "{pod}");
    node.kubectl(&["delete", "pod", "two"]);
    node.finish();
    assert_eq!(units(), Vec::<String>::new());
}

#[test]
fn pods_stay_where_they_are_when_the_driver_changes() {
    let mut node = start("cgroupfs");
    node.apply(&sleeper("directory", "{limits: {cpu: 100m, memory: 64Mi}}"));
    let directory = node.wait_ready("directory");
    node.stop_agent();
    let systemd = config(&node, "systemd");
    node.up(&["--config", &systemd]);
    node.await_ready();
    node.apply(&sleeper("slice", "{}"));
    let slice = node.wait_ready("slice");
    assert_eq!(container_id(&node.wait_ready("directory")), container_id(&directory));
    let unit = format!("kubepods-besteffort-pod{}.slice", uid(&slice));
    assert_eq!(property(&unit, "ActiveState"), "active");

    node.stop_agent();
    let cgroupfs = config(&node, "cgroupfs");
    node.up(&["--config", &cgroupfs]);
    node.await_ready();
    assert_eq!(container_id(&node.wait_ready("slice")), container_id(&slice));
    node.kubectl(&["delete", "pod", "directory"]);
    let plain = Path::new(CGROUPS).join("kubepods/pod").display().to_string()
        + directory["metadata"]["uid"].as_str().unwrap();
    node.wait_for("the cgroup to go", || (!Path::new(&plain).exists()).then_some(()));

    // An operator's hand: the pod is lost with its slice, and made again as pods are made now.
    systemctl(&format!("kill --signal=KILL {unit}"));
    node.wait_pod("slice", "made again", |pod| {
        crate::node::condition(pod, "Ready") == "True" && container_id(pod) != container_id(&slice)
    });
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
    assert_eq!(units(), Vec::<String>::new());
}

/// systemd's own socket.
const SYSTEMD: &str = "/run/systemd/private";

/// Stands between the agent and systemd: takes what is said, and passes it on only once `answers`.
fn stand_between(listener: UnixListener, answers: Arc<AtomicBool>) {
    let mut silenced = Vec::new();
    for stream in listener.incoming() {
        let ours = stream.unwrap();
        if !answers.load(Ordering::SeqCst) {
            silenced.push(ours);
            continue;
        }
        let theirs = UnixStream::connect(SYSTEMD).unwrap();
        for (mut from, mut to) in [
            (ours.try_clone().unwrap(), theirs.try_clone().unwrap()),
            (theirs.try_clone().unwrap(), ours.try_clone().unwrap()),
        ] {
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
        }
    }
}

#[test]
fn a_systemd_that_does_not_answer_is_told_and_asked_again() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let socket = node.path("systemd.sock");
    let answers = Arc::new(AtomicBool::new(false));
    let (listener, passes) = (UnixListener::bind(&socket).unwrap(), Arc::clone(&answers));
    thread::spawn(move || stand_between(listener, passes));
    // The agent has a mount namespace in which that is systemd's socket.
    let script = format!("mount --bind {} {SYSTEMD} && exec \"$@\"", socket.display());
    let mut command = node.namespace().command("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(berth()).arg("up");
    command.args(node.dir_flags()).args(["--node-name", "node-1", "--node-ip", NODE_IP]);
    command.arg("--config").arg(config(&node, "systemd")).arg("--import").arg(image::busybox());
    node.spawn(command);
    node.await_ready();
    node.apply(&sleeper("waits", "{}"));
    let message = node.wait_event("waits", "FailedCreatePodSandBox");
    assert!(message.contains("no answer before the deadline"), "{message}");
    answers.store(true, Ordering::SeqCst);
    let pod = node.wait_ready("waits");
    let slice = format!("kubepods-besteffort-pod{}.slice", uid(&pod));
    assert_eq!(property(&slice, "ActiveState"), "active");
    node.kubectl(&["delete", "pod", "waits"]);
    node.finish();
    assert_eq!(units(), Vec::<String>::new());
}
