//! Checkpoints of containers (KEP-2008): criu, as Debian has it, dumps what runs in a pod, the archive is
//! read back, and the container goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_runtime::cri::messages::{CheckpointContainerRequest, CheckpointContainerResponse};
use serde_json::Value;

use crate::cri::Client;
use crate::node::{NODE_IP, Node, told};

/// Counts into a file of its root, which is whole at any time, and has removed one of its image.
const COUNT: &str = "rm /bin/uudecode; echo begun > /data/begun; n=0; \
                     while :; do n=$((n+1)); echo $n > /tmp/new; mv /tmp/new /tmp/count; \
                     echo at $n; sleep 0.1; done";
/// Keeps a file open that has no name any more and is larger than what criu takes of such.
const GHOST: &str = "dd if=/dev/zero of=/ghost bs=1M count=3; exec 3< /ghost; rm /ghost; \
                     n=0; while :; do n=$((n+1)); echo at $n; sleep 0.1; done";

/// The directory of the programs that tests get from elsewhere.
fn peers() -> PathBuf {
    let peers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache/peers/bin");
    let criu = peers.join("criu");
    assert!(criu.exists(), "{} is missing: run tests/setup/peers.sh criu", criu.display());
    peers
}

/// Starts the node's agent; `criu` is where the path begins.
fn up(node: &mut Node, criu: &Path, flags: &[&str]) {
    let path = std::env::var("PATH").unwrap();
    let path = format!("PATH={}:{path}", criu.display());
    node.up_through(&["env", &path], flags);
}

fn started() -> Node {
    let mut node = Node::prepare("node-1");
    node.uplink();
    up(&mut node, &peers(), &[]);
    node.await_ready();
    node
}

fn counter(name: &str, script: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  \
         volumes: [{{name: disk, emptyDir: {{}}}}, {{name: memory, emptyDir: {{medium: Memory}}}}]\n  \
         containers:\n  - name: main\n    image: berth.local/busybox:1\n    \
         imagePullPolicy: Never\n    command: [sh, -c, {script:?}]\n    volumeMounts: \
         [{{name: disk, mountPath: /data}}, {{name: memory, mountPath: /memory}}]\n"
    )
}

/// A request to the node's API.
fn ask(node: &Node, path: &str) -> Command {
    let mut command = node.namespace().command("curl");
    command.args(["-sS", "-X", "POST", "-w", "\n%{http_code}", "--cacert"]);
    command.arg(node.path("state/standalone/pki/ca.crt"));
    command.arg(format!("https://{NODE_IP}:10250{path}"));
    command
}

/// The same as the API server.
fn post_command(node: &Node, path: &str) -> Command {
    let mut command = ask(node, path);
    for (flag, name) in [("--cert", "crt"), ("--key", "key")] {
        let name = format!("state/standalone/pki/apiserver-kubelet-client.{name}");
        command.arg(flag).arg(node.path(&name));
    }
    command
}

/// Its status and its body.
fn answer(command: &mut Command) -> (u32, String) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn post(node: &Node, path: &str) -> (u32, String) {
    answer(&mut post_command(node, path))
}

/// The last number that a pod has counted to.
fn count(node: &Node, pod: &str) -> u64 {
    node.wait_for("a number", || {
        let log = node.kubectl(&["logs", pod, "--tail=1"]);
        log.trim().strip_prefix("at ")?.parse().ok()
    })
}

/// Demands that a pod counts on without having been started again.
fn goes_on(node: &Node, pod: &str) {
    let before = count(node, pod);
    node.wait_for("the container to go on", || (count(node, pod) > before + 3).then_some(()));
    let status = &node.get("pod", pod)["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0, "{status}");
}

/// An archive's entries with what they hold.
fn entries(archive: impl Read) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        })
        .collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Reads an archive back as others would.
fn is_whole(node: &Node, archive: &Path) {
    let of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(of(archive), 0o600);
    assert_eq!(of(archive.parent().unwrap()), 0o700);
    let entries = entries(File::open(archive).unwrap());
    let json = |name: &str| -> Value { serde_json::from_slice(&entries[name]).unwrap() };
    let status = &node.get("pod", "counter")["status"]["containerStatuses"][0];
    let id = status["containerID"].as_str().unwrap().split_once("://").unwrap().1.to_owned();
    let config = json("config.dump");
    assert_eq!(config["id"], *id);
    assert_eq!(config["name"], "main");
    assert_eq!(config["rootfsImageName"], "berth.local/busybox:1");
    let spec = json("spec.dump");
    assert_eq!(spec["process"]["args"][2], COUNT);
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-name"], "counter");
    assert_eq!(json("status.dump")["id"], *id);
    assert!(json("status")["Pid"].as_i64().unwrap() > 0);
    assert!(entries.contains_key("checkpoint/inventory.img"));
    assert!(
        entries.keys().any(|name| name.starts_with("checkpoint/core-")),
        "{:?}",
        entries.keys()
    );
    assert!(entries.contains_key("stats-dump"));
    let log = String::from_utf8_lossy(&entries["dump.log"]);
    assert!(log.contains("Dumping finished successfully"), "{log}");
    assert!(String::from_utf8_lossy(&entries["container.log"]).contains("stdout F at 1\n"));

    // The files are as old as the memory: what the shell has as its number, or had a moment ago.
    let layer = self::entries(entries["rootfs-diff.tar"].as_slice());
    let counted: u64 = String::from_utf8_lossy(&layer["tmp/count"]).trim().parse().unwrap();
    assert!(layer.contains_key("bin/.wh.uudecode"), "{:?}", layer.keys());
    assert!(!layer.keys().any(|name| name.contains("begun")), "volumes are not in it");
    let pages = entries.iter().filter(|(name, _)| name.starts_with("checkpoint/pages-"));
    let texts = [counted, counted + 1].map(|number| format!("n={number}\0"));
    let said = pages.flat_map(|(_, pages)| {
        texts.iter().map(|text| pages.windows(text.len()).any(|part| part == text.as_bytes()))
    });
    assert!(said.into_iter().any(|found| found), "{counted} is in no page");
}

#[test]
fn a_container_is_checkpointed_and_goes_on() {
    let mut node = started();
    let terminal =
        counter("terminal", COUNT).replace("- name: main", "- tty: true\n    name: main");
    node.apply(&(counter("counter", COUNT) + &counter("ghost", GHOST) + &terminal));
    node.wait_ready("counter");
    node.wait_ready("terminal");
    node.wait_ready("ghost");
    count(&node, "counter");
    let (status, body) = post(&node, "/checkpoint/default/counter/main?timeout=300");
    assert_eq!(status, 200, "{body}");
    let reply: Value = serde_json::from_str(&body).unwrap();
    let archive = PathBuf::from(reply["items"][0].as_str().unwrap());
    assert_eq!(archive.parent().unwrap(), node.path("state/checkpoints"));
    is_whole(&node, &archive);
    goes_on(&node, "counter");

    let missing = |path: &str| {
        let (status, body) = post(&node, path);
        assert_eq!(status, 404, "{body}");
        body
    };
    assert_eq!(missing("/checkpoint/default/nobody/main"), "pod does not exist");
    assert_eq!(missing("/checkpoint/default/counter/other"), "container other does not exist");
    let path = "/checkpoint/default/counter/main";
    assert_eq!(answer(&mut ask(&node, path)).0, 401);
    let bearer = node.kubectl(&["create", "token", "default"]);
    let bearer = format!("Authorization: Bearer {}", bearer.trim());
    assert_eq!(answer(ask(&node, path).args(["-H", &bearer])).0, 403);

    // What criu cannot take is told in its words, and goes on.
    let (status, body) = post(&node, "/checkpoint/default/ghost/main");
    assert_eq!(status, 500, "{body}");
    assert!(body.starts_with("checkpointing of default/ghost/main failed ("), "{body}");
    assert!(body.contains("criu: Can't dump ghost file"), "{body}");
    goes_on(&node, "ghost");
    let (status, body) = post(&node, "/checkpoint/default/terminal/main");
    assert_eq!(status, 200, "{body}");
    goes_on(&node, "terminal");
    assert_eq!(names(&node.path("state/checkpoints")).len(), 2);
    assert_eq!(names(&node.path("state/checkpointing")), [""; 0]);

    // The same over the CRI.
    let id = node.get("pod", "counter")["status"]["containerStatuses"][0]["containerID"].clone();
    let id = id.as_str().unwrap().split_once("://").unwrap().1;
    let location = node.path("archive.tar");
    let client = Client::connect(&node.path("run/berth.sock"));
    let checkpoint = |location: &Path| {
        let question = CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.display().to_string(),
            timeout: 0,
        };
        let path = "/runtime.v1.RuntimeService/CheckpointContainer";
        client.call::<_, CheckpointContainerResponse>(path, question)
    };
    checkpoint(&location).unwrap();
    assert!(checkpoint(&location).unwrap_err().message().contains("File exists"));
    assert!(entries(File::open(&location).unwrap()).contains_key("checkpoint/inventory.img"));
    goes_on(&node, "counter");

    node.stop_agent();
    let off = node.path("off.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                featureGates: {ContainerCheckpoint: false}\n";
    fs::write(&off, text).unwrap();
    up(&mut node, &peers(), &["--config", off.to_str().unwrap()]);
    node.await_ready();
    let (status, body) = post(&node, "/checkpoint/default/counter/main");
    assert_eq!((status, body.as_str()), (404, "404 page not found\n"));
    goes_on(&node, "counter");
    node.finish();
}

#[test]
fn an_agent_that_is_killed_meanwhile_leaves_the_container_and_nothing_else() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    // A criu that is slow to begin, so that the agent is surely killed before its end.
    let slow = node.path("slow");
    fs::create_dir(&slow).unwrap();
    let real = peers().join("criu").canonicalize().unwrap();
    let script = format!("#!/bin/sh\nsleep 2\nexec {} \"$@\"\n", real.display());
    fs::write(slow.join("criu"), script).unwrap();
    fs::set_permissions(slow.join("criu"), fs::Permissions::from_mode(0o755)).unwrap();
    up(&mut node, &slow, &[]);
    node.await_ready();
    node.apply(&counter("counter", COUNT));
    node.wait_ready("counter");
    count(&node, "counter");

    let mut asked = post_command(&node, "/checkpoint/default/counter/main");
    let mut asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let stages = node.path("state/checkpointing");
    node.wait_for("a checkpoint to begin", || names(&stages).pop());
    node.kill_agent();
    assert!(!asked.wait().unwrap().success());
    up(&mut node, &slow, &[]);
    node.await_ready();
    node.wait_for("what is left to be removed", || names(&stages).is_empty().then_some(()));
    assert_eq!(names(&node.path("state/checkpoints")), [""; 0]);
    goes_on(&node, "counter");
    let (status, body) = post(&node, "/checkpoint/default/counter/main");
    assert_eq!(status, 200, "{body}");
    goes_on(&node, "counter");
    node.finish();
}
