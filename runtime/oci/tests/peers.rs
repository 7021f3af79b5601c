//! What callers parse, beside runc on the same bundle: `state`, `list`, `ps`, `events`, `features` and `spec`
//! have runc's members, of the same types and, where they say the same thing, with the same values.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::path::{Path, PathBuf};
use std::process::Command;

use bundle::Bundle;
use serde_json::{Value, json};

fn runc() -> PathBuf {
    let runc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/peers/bin/runc");
    assert!(runc.exists(), "run tests/setup/peers.sh runtimes");
    runc
}

fn ours() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_berth-oci"))
}

/// A detached container of one runtime, where cgroup v2 is at its usual place.
struct Peer<'a> {
    runtime: PathBuf,
    bundle: &'a Bundle,
    state: PathBuf,
}

const ID: &str = "berth-peers";

impl<'a> Peer<'a> {
    fn new(runtime: PathBuf, bundle: &'a Bundle) -> Self {
        let name = runtime.file_name().unwrap().to_str().unwrap();
        let state = bundle.path().join(format!("state-of-{name}"));
        Self { runtime, bundle, state }
    }

    fn start(runtime: PathBuf, bundle: &'a Bundle) -> Self {
        let peer = Self::new(runtime, bundle);
        let path = bundle.path().to_str().unwrap();
        peer.ask(&["run", "--detach", "--bundle", path, ID]);
        peer
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // runc looks for the hierarchy at one place only.
        let script = "test -d /sys/fs/cgroup/unified && mount --bind /sys/fs/cgroup/unified \
                      /sys/fs/cgroup; exec \"$0\" \"$@\" < /dev/null";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&self.runtime);
        command.arg("--root").arg(&self.state).args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let file = tempfile::NamedTempFile::new_in(self.bundle.path()).unwrap();
        // The container would keep a pipe open.
        let errors = tempfile::NamedTempFile::new_in(self.bundle.path()).unwrap();
        let status = self
            .command(arguments)
            .stdout(file.reopen().unwrap())
            .stderr(errors.reopen().unwrap())
            .status();
        let said = std::fs::read_to_string(errors.path()).unwrap();
        assert!(status.unwrap().success(), "{:?} {arguments:?}: {said}", self.runtime);
        std::fs::read_to_string(file.path()).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ask(arguments)).unwrap()
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", ID]).output();
    }
}

/// What `ours` lacks of `theirs`, or has as another type, by path. Elements of a list are held against
/// its first one; where theirs is null ours may be anything.
fn lacking(path: &str, theirs: &Value, ours: &Value) -> Vec<String> {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => theirs
            .iter()
            .flat_map(|(name, value)| match ours.get(name) {
                Some(own) => lacking(&format!("{path}.{name}"), value, own),
                None => vec![format!("{path}.{name}")],
            })
            .collect(),
        (Value::Array(theirs), Value::Array(ours)) => match (theirs.first(), ours.first()) {
            (Some(theirs), Some(ours)) => lacking(&format!("{path}[]"), theirs, ours),
            (None, _) => Vec::new(),
            (Some(_), None) => vec![format!("{path}[]")],
        },
        (Value::Null, _) => Vec::new(),
        (theirs, ours) if std::mem::discriminant(theirs) == std::mem::discriminant(ours) => {
            Vec::new()
        }
        _ => vec![path.to_owned()],
    }
}

/// Asks one runtime all there is to ask.
fn answers(runtime: PathBuf, bundle: &Bundle) -> [Value; 5] {
    let peer = Peer::start(runtime, bundle);
    let mut running = peer.json(&["state", ID]);
    let pid = running["pid"].as_i64().unwrap();
    assert_eq!(peer.json(&["ps", "--format", "json", ID]), json!([pid]));
    let mut list = peer.json(&["list", "--format", "json"]);
    let events = peer.json(&["events", "--stats", ID]);
    let features = peer.json(&["features"]);
    let mut listed = running.clone();
    assert_eq!((listed["owner"].take(), &list[0]["owner"]), (json!(""), &json!("root")));
    listed["owner"] = json!("root");
    assert_eq!(list, json!([listed]), "a list has the states");
    for state in [&mut running, &mut list[0]] {
        // What differs from one container to the next.
        assert!(state["pid"].take().is_i64());
        assert_eq!(state["ociVersion"].take(), features["ociVersionMax"]);
        let created = state["created"].take().as_str().unwrap().to_owned();
        assert!(created.starts_with("20") && created.ends_with('Z'), "{created}");
    }
    peer.ask(&["kill", ID, "KILL"]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut stopped = peer.json(&["state", ID]);
    while stopped["status"] != "stopped" {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(5));
        stopped = peer.json(&["state", ID]);
    }
    stopped["created"].take();
    stopped["ociVersion"].take();
    [running, stopped, list, events, features]
}

#[test]
fn what_is_printed_as_json_has_the_members_of_runc() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.spec["annotations"] = json!({"a": "b", "c": ""});
    bundle.write();
    let [running, stopped, list, events, features] = answers(runc(), &bundle);
    let [own_running, own_stopped, own_list, own_events, own_features] = answers(ours(), &bundle);
    assert_eq!(own_running, running);
    assert_eq!(own_stopped, stopped);
    assert_eq!(own_list, list);
    // What the kernel does not count for want of a controller is nowhere.
    let none: [&str; 0] = [];
    assert_eq!(lacking("events", &events, &own_events), none);
    let missing: Vec<String> = lacking("features", &features, &own_features)
        .into_iter()
        // Those of runc's own name, and of the library it is built with.
        .filter(|path| {
            !path.contains("annotations.org.opencontainers.runc.") && !path.contains("libseccomp")
        })
        .collect();
    assert_eq!(missing, none);
    for member in ["ociVersionMin", "hooks"] {
        assert_eq!(own_features[member], features[member], "{member}");
    }
    for member in ["namespaces", "capabilities"] {
        assert_eq!(own_features["linux"][member], features["linux"][member], "{member}");
    }
    let options = |features: &Value| features["mountOptions"].as_array().unwrap().clone();
    let lacking: Vec<Value> = options(&features)
        .into_iter()
        .filter(|one| !options(&own_features).contains(one))
        .collect();
    // Which the kernel's present mount API has no word for.
    assert_eq!(lacking, [json!("iversion")]);
}

#[test]
fn the_specification_to_begin_with_is_runc_s() {
    let bundle = Bundle::new("true");
    let example = |runtime: PathBuf| {
        let peer = Peer::new(runtime, &bundle);
        let directory = bundle.path().to_str().unwrap();
        let file = bundle.path().join("config.json");
        peer.ask(&["spec", "--bundle", directory]);
        let spec: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        std::fs::remove_file(file).unwrap();
        spec
    };
    let (mut theirs, mut own) = (example(runc()), example(ours()));
    // Its own name and the version that it follows.
    for spec in [&mut theirs, &mut own] {
        assert!(spec["hostname"].take().is_string() && spec["ociVersion"].take().is_string());
    }
    assert_eq!(own, theirs);
}
