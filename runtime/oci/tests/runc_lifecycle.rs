//! A container's life by the command line: what each command says, does and leaves.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bundle::Bundle;
use serde_json::{Value, json};

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ask(bundle: &Bundle, arguments: &[&str]) -> Output {
    bundle.command(arguments).output().unwrap()
}

/// A command that must end well, and what it prints.
fn must(bundle: &Bundle, arguments: &[&str]) -> String {
    let output = ask(bundle, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A command that must fail, and what it says.
fn refused(bundle: &Bundle, arguments: &[&str]) -> String {
    let output = ask(bundle, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    errors(&output)
}

fn create(bundle: &Bundle) -> String {
    bundle.write();
    let id = bundle.id();
    // Whatever of it outlives the command must not hold the pipes of this test.
    let status = bundle
        .command(&["create", "--bundle", bundle.path().to_str().unwrap()])
        .args(["--pid-file", bundle.path().join("pid").to_str().unwrap(), &id])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    id
}

fn state(bundle: &Bundle, id: &str) -> Value {
    serde_json::from_str(&must(bundle, &["state", id])).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> {
        let entries = path.read_dir().into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let mut found = Vec::new();
    let mut open = vec![fixture::cgroup_root().to_owned()];
    while let Some(path) = open.pop() {
        let children = list(&path);
        found.extend(children.iter().filter(|child| child.ends_with(id)).cloned());
        open.extend(children);
    }
    found
}

/// Under runc and crun it counts as stopped, and nothing ends it.
#[test]
fn a_process_whose_first_thread_has_ended_runs_until_it_is_killed() {
    let mut bundle = Bundle::new("");
    fixture::compile("headless", &bundle.image());
    bundle.spec["process"]["args"] = json!(["/bin/headless"]);
    let id = create(&bundle);
    must(&bundle, &["start", &id]);
    let stat = format!("/proc/{}/stat", state(&bundle, &id)["pid"]);
    wait_until("its first thread ends", || {
        std::fs::read_to_string(&stat).unwrap().contains(") Z ")
    });
    assert_eq!(state(&bundle, &id)["status"], "running");
    assert!(refused(&bundle, &["delete", &id]).contains("that is not stopped: running"));
    must(&bundle, &["kill", &id, "KILL"]);
    wait_until("it stops", || state(&bundle, &id)["status"] == "stopped");
    must(&bundle, &["delete", &id]);
}

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    let bundle = Bundle::new("sleep 100");
    let id = create(&bundle);
    let created = state(&bundle, &id);
    let pid = std::fs::read_to_string(bundle.path().join("pid")).unwrap();
    assert_eq!(created["status"], "created");
    assert_eq!(created["pid"].to_string(), pid);
    assert_eq!((&created["id"], &created["ociVersion"]), (&json!(id), &json!("1.3.0")));
    assert_eq!(created["bundle"], bundle.path().to_str().unwrap());
    let bundle_path = bundle.path().to_str().unwrap();
    let again = refused(&bundle, &["create", "--bundle", bundle_path, &id]);
    assert!(again.contains("container with given ID already exists"), "{again}");
    must(&bundle, &["start", &id]);
    assert_eq!(state(&bundle, &id)["status"], "running");
    let twice = refused(&bundle, &["start", &id]);
    assert!(twice.contains("cannot start an already running container"), "{twice}");
    let running = refused(&bundle, &["delete", &id]);
    assert!(
        running.contains(&format!("cannot delete container {id} that is not stopped: running"))
    );
    let list: Value = serde_json::from_str(&must(&bundle, &["list", "--format", "json"])).unwrap();
    assert_eq!(list[0]["id"], id);
    assert_eq!(must(&bundle, &["list", "-q"]), format!("{id}\n"));
    must(&bundle, &["kill", &id, "KILL"]);
    wait_until("it stops", || state(&bundle, &id)["status"] == "stopped");
    assert_eq!(state(&bundle, &id)["pid"], 0);
    assert!(refused(&bundle, &["kill", &id, "TERM"]).contains("container not running"));
    must(&bundle, &["kill", "--all", &id, "TERM"]);
    assert!(
        refused(&bundle, &["start", &id]).contains("cannot start a container that has stopped")
    );
    must(&bundle, &["delete", &id]);
    for arguments in [["state", &id], ["start", &id], ["kill", &id], ["delete", &id]] {
        assert!(refused(&bundle, &arguments).contains("container does not exist"));
    }
    must(&bundle, &["delete", "--force", &id]);
    assert_eq!(cgroups_of(&id), Vec::<PathBuf>::new());
}

#[test]
fn run_ends_as_the_container_does() {
    let mut bundle = Bundle::new("exit 7");
    assert_eq!(bundle.run().status.code(), Some(7));
    bundle.spec["process"]["args"] = json!(["/bin/sh", "-c", "kill -9 $$"]);
    // PID 1 cannot be killed from inside: the shell ends by itself.
    assert_eq!(bundle.run().status.code(), Some(0));
    bundle.spec["process"]["args"] = json!(["/bin/sh", "-c", "echo out; echo err >&2"]);
    let output = bundle.run();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(must(&bundle, &["list", "-q"]), "");
}

#[test]
fn signals_of_run_are_the_container_s() {
    let bundle = Bundle::new("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done");
    bundle.write();
    let id = bundle.id();
    let mut run = bundle
        .command(&["run", "--bundle", bundle.path().to_str().unwrap(), &id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(9));
    assert_eq!(cgroups_of(&id), Vec::<PathBuf>::new());
}

#[test]
fn a_killed_container_s_code_is_its_signal_s() {
    let bundle = Bundle::new("echo up; sleep 100");
    bundle.write();
    let id = bundle.id();
    let mut run = bundle
        .command(&["run", "--keep", "--bundle", bundle.path().to_str().unwrap(), &id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    must(&bundle, &["kill", &id, "9"]);
    assert_eq!(run.wait().unwrap().code(), Some(137));
    assert_eq!(state(&bundle, &id)["status"], "stopped");
    must(&bundle, &["delete", &id]);
}

#[test]
fn start_says_why_a_command_cannot_be_executed() {
    let mut bundle = Bundle::new("");
    let image = bundle.image();
    let mut foreign = std::fs::read(image.join("bin/busybox")).unwrap();
    // The machine of the ELF header: none.
    foreign[18..20].copy_from_slice(&[0xff, 0xff]);
    for (name, bytes, message) in [
        ("foreign", foreign.as_slice(), "exec format error"),
        ("script", &b"#!/no/such/interpreter\n"[..], "no such file or directory"),
    ] {
        let path = image.join("bin").join(name);
        std::fs::write(&path, bytes).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        bundle.spec["process"]["args"] = json!([format!("/bin/{name}")]);
        let id = create(&bundle);
        let said = refused(&bundle, &["start", &id]);
        assert!(said.contains(message), "{said}");
        wait_until("it stops", || state(&bundle, &id)["status"] == "stopped");
        must(&bundle, &["delete", &id]);
    }
}

#[test]
fn what_a_crash_leaves_is_deleted_by_force() {
    let bundle = Bundle::new("echo up; sleep 100");
    bundle.write();
    let id = bundle.id();
    let mut run = bundle
        .command(&["run", "--bundle", bundle.path().to_str().unwrap(), &id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(state(&bundle, &id)["status"], "running");
    must(&bundle, &["delete", "--force", &id]);
    assert_eq!(cgroups_of(&id), Vec::<PathBuf>::new());
    // Interrupted before the record was written, and with one that is torn.
    for text in [None, Some("{\"id\":")] {
        let directory = bundle.path().join("state").join(&id);
        std::fs::create_dir(&directory).unwrap();
        if let Some(text) = text {
            std::fs::write(directory.join("state.json"), text).unwrap();
        }
        must(&bundle, &["delete", "--force", &id]);
        assert!(!directory.exists());
    }
}

#[test]
fn failures_are_in_the_log_that_callers_read() {
    let bundle = Bundle::new("true");
    let log = bundle.path().join("log.json");
    let log_path = log.to_str().unwrap();
    let said = refused(&bundle, &["--log", log_path, "--log-format", "json", "state", "none"]);
    assert_eq!(said, "container does not exist\n");
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        (&line["level"], &line["msg"]),
        (&json!("error"), &json!("container does not exist"))
    );
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
}
