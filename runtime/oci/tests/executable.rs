//! The runtime's own file stays what it is, whatever containers do with the processes of the runtime
//! that they see (CVE-2019-5736): by the command line, executed from a copy that may be lost.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bundle::Bundle;
use fixture::oracle::rounds;
use serde_json::{Value, json};

/// A runtime that nobody else uses.
struct Runtime {
    directory: tempfile::TempDir,
    content: Vec<u8>,
}

impl Runtime {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let original = env!("CARGO_BIN_EXE_berth-oci");
        std::fs::copy(original, directory.path().join("runtime")).unwrap();
        Self { directory, content: std::fs::read(original).unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("runtime")
    }

    fn command(&self, bundle: &Bundle, arguments: &[&str]) -> Command {
        let command = bundle.command(arguments);
        let mut own = Command::new(self.path());
        own.args(command.get_args()).stdin(Stdio::null());
        own.stdout(Stdio::null()).stderr(Stdio::null());
        own
    }

    /// Makes a container; starts it as well where the command is `run`.
    fn make(&self, bundle: &Bundle, command: &[&str]) -> String {
        bundle.write();
        let id = bundle.id();
        let log = bundle.path().join("log");
        let mut arguments = vec!["--log", log.to_str().unwrap()];
        arguments.extend(command);
        arguments.extend(["--bundle", bundle.path().to_str().unwrap(), &id]);
        let status = self.command(bundle, &arguments).status().unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
        id
    }

    fn assert_unchanged(&self) {
        assert!(std::fs::read(self.path()).unwrap() == self.content, "the runtime was changed");
    }
}

/// With nothing in its way but what keeps the runtime safe.
fn unbound(bundle: &mut Bundle) {
    let all = json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    bundle.spec["process"]["capabilities"] =
        json!({"bounding": all, "effective": all, "permitted": all});
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn wait_for(what: &str, file: &Path, text: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = std::fs::read_to_string(file).unwrap_or_default();
        if found.contains(text) {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}; {} bytes were said", found.len());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_descriptor_held_on_a_waiting_runtime_writes_nothing_once_nobody_runs_it() {
    let runtime = Runtime::new();
    let victim = Bundle::new("sleep 60");
    let waiting = runtime.make(&victim, &["create"]);
    let state = runtime.command(&victim, &["state", &waiting]).stdout(Stdio::piped()).output();
    let state: Value = serde_json::from_slice(&state.unwrap().stdout).unwrap();
    // It sees the other's first process, which is the runtime until its start.
    let mut attacker = Bundle::new(
        "exec 9< /proc/1/exe; readlink /proc/1/exe > /said; \
         while :; do (echo bad > /proc/self/fd/9) 2>> /errors && echo overwritten >> /said; \
         (echo bad >> /proc/self/fd/9) 2>> /errors && echo appended >> /said; \
         (dd of=/proc/self/fd/9 conv=notrunc if=/bin/busybox bs=4 count=1) 2>> /errors && \
         echo patched >> /said; echo round >> /said; done",
    );
    unbound(&mut attacker);
    let namespaces = attacker.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    namespaces.push(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", state["pid"])}));
    let id = runtime.make(&attacker, &["run", "--detach"]);
    let said = attacker.image().join("said");
    let found = wait_for("attack", &said, "round");
    // What it holds is the runtime, on an overlay or in memory, and not its own shell.
    let held = found.lines().next().unwrap();
    assert!(held == "/runtime" || held.starts_with("/memfd:"), "{held}");
    assert!(runtime.command(&victim, &["start", &waiting]).status().unwrap().success());
    let rounds = std::fs::read_to_string(&said).unwrap().matches("round").count();
    let more = "round\n".repeat(rounds + 20);
    wait_for("more attacks", &said, &more);
    let found = std::fs::read_to_string(&said).unwrap();
    for success in ["overwritten", "appended", "patched"] {
        assert!(!found.contains(success), "{success}");
    }
    let errors = std::fs::read_to_string(attacker.image().join("errors")).unwrap();
    let denials = ["Read-only file system", "Operation not permitted"];
    assert!(denials.iter().any(|denial| errors.contains(denial)), "refused for other reasons");
    for (bundle, id) in [(&attacker, &id), (&victim, &waiting)] {
        assert!(runtime.command(bundle, &["delete", "--force", id]).status().unwrap().success());
    }
    runtime.assert_unchanged();
}

#[test]
fn commands_that_are_the_runtime_again_give_an_attacker_nothing_to_write_to() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(
        "while :; do for p in /proc/[0-9]*; do \
         case $(readlink $p/exe) in */busybox|'') continue;; esac; \
         (exec 9< $p/exe; echo held >> /said; n=0; while [ $n -lt 10 ]; do \
         (echo bad > /proc/self/fd/9) && echo overwritten >> /said; \
         (echo bad >> /proc/self/fd/9) && echo appended >> /said; n=$((n + 1)); done) 2> /dev/null; \
         done; done",
    );
    unbound(&mut bundle);
    script(&bundle.image().join("victim"), "#!/proc/self/exe\n");
    let id = runtime.make(&bundle, &["run", "--detach"]);
    let said = bundle.image().join("said");
    let mut count = 0;
    while count < rounds(25).min(1_000)
        || !std::fs::read_to_string(&said).unwrap_or_default().contains("held")
    {
        let status = runtime.command(&bundle, &["exec", &id, "/victim"]).status().unwrap();
        assert!(!status.success());
        count += 1;
        assert!(count < 5_000, "the attacker saw nothing of the runtime");
    }
    assert!(runtime.command(&bundle, &["delete", "--force", &id]).status().unwrap().success());
    let found = std::fs::read_to_string(&said).unwrap();
    assert!(!found.contains("overwritten") && !found.contains("appended"), "it wrote");
    // As the first process too.
    bundle.spec["process"]["args"] = json!(["/victim"]);
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let status = runtime.command(&bundle, &["run", "--bundle", path, &bundle.id()]).status();
    assert!(!status.unwrap().success());
    runtime.assert_unchanged();
}
