//! What a container gets hold of of the runtime's own processes: those that wait for their start, and
//! those that enter it, in a PID namespace that it shares with them (CVE-2016-9962, 2024-21626).

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_oci::protocol::*;
use bundle::Bundle;
use fixture::oracle::{Witness, rounds};
use fixture::{Shim, compile, sandbox, spec_with};
use serde_json::{Value, json};

/// Nothing but what keeps the runtime's processes to themselves is in the way: as many privileges as the
/// runtime's processes are left with, and no filter.
fn unfiltered(spec: &mut Value) {
    spec["linux"]["seccomp"] = json!(null);
}

/// Waits until the spy has looked at processes of the runtime so many times more.
fn wait_for_rounds(text: impl Fn() -> String, more: usize) {
    let count = || text().matches("round").count();
    let (before, deadline) = (count(), Instant::now() + Duration::from_secs(20));
    while count() < before + more {
        assert!(Instant::now() < deadline, "the spy sees no process of the runtime: {}", text());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_nothing_got(text: &str) {
    let got: BTreeSet<&str> = text.lines().filter(|line| line.starts_with("got")).collect();
    assert!(got.is_empty(), "{got:?}");
}

#[test]
fn a_container_that_waits_for_its_start_is_closed_to_others_of_its_pod() {
    let witness = Witness::new();
    let mut config = sandbox();
    config.pid = PidNamespace::Sandbox;
    let mut shim = Shim::start(&config);
    compile("spy", &shim.image());
    let request = |shim: &Shim, id: &str, args: &[&str], user: &str| {
        let mut request = shim.container(id, args);
        request.spec = spec_with(args, unfiltered);
        request.user.user = user.to_owned();
        request
    };
    let spy = request(&shim, "spy", &["/bin/spy"], "");
    shim.launch(spy).unwrap();
    for (id, user) in [("root", ""), ("user", "web")] {
        let waiting = request(&shim, id, &["/bin/sleep", "60"], user);
        shim.create(waiting).unwrap();
        wait_for_rounds(|| shim.log_text("spy"), 20);
        shim.ask(&Request::Start { id: id.to_owned() }).unwrap();
    }
    for _ in 0..rounds(100).min(5_000) {
        let (code, _, error, _) = shim.exec("root", &["true"]).unwrap();
        assert_eq!(code, 0, "{error}");
    }
    assert_nothing_got(&shim.log_text("spy"));
    shim.shut_down();
    witness.assert_untouched();
}

/// Starts the bundle's container; returns its id.
fn run_detached(bundle: &Bundle) -> String {
    bundle.write();
    let id = bundle.id();
    let path = bundle.path().to_str().unwrap();
    let run =
        bundle.command(&["run", "--detach", "--bundle", path, &id]).stdout(Stdio::null()).status();
    assert!(run.unwrap().success());
    id
}

#[test]
fn a_command_line_that_enters_a_container_is_closed_to_it() {
    let witness = Witness::new();
    let bundle = Bundle::new("exec /bin/spy > /said");
    compile("spy", &bundle.image());
    let id = run_detached(&bundle);
    let said = || std::fs::read_to_string(bundle.image().join("said")).unwrap_or_default();
    let mut count = 0;
    while count < rounds(100).min(5_000) || !said().contains("round") {
        let status = bundle.command(&["exec", &id, "true"]).stdout(Stdio::null()).status();
        assert!(status.unwrap().success());
        count += 1;
        assert!(count < 10_000, "the spy sees no process of the runtime");
    }
    // One that waits for its start, in the namespace of the first.
    let state = bundle.command(&["state", &id]).output().unwrap();
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    let mut waiting = Bundle::new("sleep 60");
    let namespaces = waiting.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    namespaces.push(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", state["pid"])}));
    waiting.write();
    let other = waiting.id();
    let path = waiting.path().to_str().unwrap();
    let create =
        waiting.command(&["create", "--bundle", path, &other]).stdout(Stdio::null()).status();
    assert!(create.unwrap().success());
    wait_for_rounds(said, 20);
    assert_nothing_got(&said());
    for (bundle, id) in [(&waiting, &other), (&bundle, &id)] {
        assert!(bundle.command(&["delete", "--force", id]).status().unwrap().success());
    }
    witness.assert_untouched();
}

/// Lets a container trace, and its commands gain privileges, under a filter.
fn tracing(spec: &mut Value) {
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
    }
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}],
    });
}

/// Does something on a busy machine: of two idle processors one makes a process run through what it has to
/// do before the spy on the other has met it.
fn amid_others(work: impl FnOnce()) {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    let processors = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for _ in 0..2 * processors {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let _done = Done(&done);
        work();
    });
}

/// How many processes of the runtime the spy has held still.
fn held(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("round")).count()
}

#[test]
fn a_tracer_in_a_container_gets_of_a_process_that_enters_only_what_its_command_has() {
    let witness = Witness::new();
    for gaining in [true, false] {
        let mut bundle = Bundle::new("exec /bin/spy held > /said");
        tracing(&mut bundle.spec);
        bundle.spec["process"]["noNewPrivileges"] = json!(!gaining);
        compile("spy", &bundle.image());
        let id = run_detached(&bundle);
        let said = || std::fs::read_to_string(bundle.image().join("said")).unwrap_or_default();
        let mut count = 0;
        while count < rounds(30).min(5_000) || held(&said()) < 3 {
            let mut exec = bundle.command(&["exec", &id, "true"]);
            assert!(exec.stdout(Stdio::null()).status().unwrap().success());
            count += 1;
            assert!(count < 10_000, "the spy holds no process of the runtime: {}", said());
        }
        assert_nothing_got(&said());
        println!("held {} of {count}", held(&said()));
        assert!(bundle.command(&["delete", "--force", &id]).status().unwrap().success());
    }
    witness.assert_untouched();
}

#[test]
fn a_tracer_in_a_pod_gets_of_a_process_that_enters_only_what_its_command_has() {
    let mut config = sandbox();
    config.pid = PidNamespace::Sandbox;
    let mut shim = Shim::start(&config);
    compile("spy", &shim.image());
    let arguments = ["/bin/spy", "held"];
    let mut spy = shim.container("spy", &arguments);
    spy.spec = spec_with(&arguments, tracing);
    shim.launch(spy).unwrap();
    let mut count = 0;
    amid_others(|| {
        while count < rounds(30).min(5_000) || held(&shim.log_text("spy")) < 3 {
            let (code, _, error, _) = shim.exec("spy", &["true"]).unwrap();
            assert_eq!(code, 0, "{error}");
            count += 1;
            assert!(count < 10_000, "the spy holds no process of the runtime");
        }
    });
    assert_nothing_got(&shim.log_text("spy"));
    println!("held {} of {count}", held(&shim.log_text("spy")));
    shim.shut_down();
}

/// Linux 6.17, as the next.
#[test]
fn a_tracer_in_a_pod_gets_of_a_container_that_is_made_only_what_its_command_has() {
    let mut config = sandbox();
    config.pid = PidNamespace::Sandbox;
    let mut shim = Shim::start(&config);
    compile("spy", &shim.image());
    let request = |shim: &Shim, id: &str, args: &[&str]| {
        let mut request = shim.container(id, args);
        request.spec = spec_with(args, tracing);
        request
    };
    let spy = request(&shim, "spy", &["/bin/spy", "made"]);
    shim.launch(spy).unwrap();
    let waiting = request(&shim, "waiting", &["/bin/sleep", "60"]);
    shim.create(waiting).unwrap();
    wait_for_rounds(|| shim.log_text("spy"), 20);
    shim.ask(&Request::Start { id: "waiting".to_owned() }).unwrap();
    let before = held(&shim.log_text("spy"));
    let mut count = 0;
    amid_others(|| {
        while count < rounds(30).min(5_000) || held(&shim.log_text("spy")) < before + 3 {
            let made = request(&shim, &format!("made{count}"), &["/bin/true"]);
            let (exit, _) = shim.run_request(made);
            assert_eq!(exit.exit_code, 0);
            count += 1;
            assert!(count < 10_000, "the spy holds no process of the runtime");
        }
    });
    assert_nothing_got(&shim.log_text("spy"));
    println!("held {} of {count}", held(&shim.log_text("spy")) - before);
    shim.shut_down();
}

#[test]
fn a_tracer_gets_of_a_command_line_that_makes_another_container_only_what_its_command_has() {
    let witness = Witness::new();
    let mut bundle = Bundle::new("exec /bin/spy made > /said");
    tracing(&mut bundle.spec);
    compile("spy", &bundle.image());
    let id = run_detached(&bundle);
    let said = || std::fs::read_to_string(bundle.image().join("said")).unwrap_or_default();
    let state = bundle.command(&["state", &id]).output().unwrap();
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    let mut other = Bundle::new("true");
    tracing(&mut other.spec);
    other.spec["root"]["path"] = json!(bundle.image());
    for namespace in other.spec["linux"]["namespaces"].as_array_mut().unwrap() {
        let kind = namespace["type"].as_str().unwrap().to_owned();
        let file = match kind.as_str() {
            "network" => "net",
            kind => kind,
        };
        if !matches!(kind.as_str(), "mount" | "cgroup") {
            namespace["path"] = json!(format!("/proc/{}/ns/{file}", state["pid"]));
        }
    }
    other.write();
    let (other_id, path) = (other.id(), other.path().to_str().unwrap());
    let mut count = 0;
    amid_others(|| {
        while count < rounds(10).min(5_000) || held(&said()) < 23 {
            let mut create = other.command(&["create", "--bundle", path, &other_id]);
            assert!(create.stdout(Stdio::null()).status().unwrap().success());
            if count == 0 {
                wait_for_rounds(said, 20);
            }
            for arguments in [["start", &other_id].as_slice(), &["delete", "--force", &other_id]] {
                assert!(other.command(arguments).status().unwrap().success());
            }
            count += 1;
            assert!(count < 10_000, "the spy holds no process of the runtime: {}", said());
        }
    });
    assert_nothing_got(&said());
    assert!(bundle.command(&["delete", "--force", &id]).status().unwrap().success());
    witness.assert_untouched();
}

/// What the descriptors of a process refer to, by number.
fn descriptors(pid: i64) -> Vec<(i32, String)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut found: Vec<(i32, String)> = entries
        .map(|entry| {
            let target = std::fs::read_link(entry.path()).unwrap();
            let number = entry.file_name().to_str().unwrap().parse().unwrap();
            (number, target.to_string_lossy().into_owned())
        })
        .collect();
    found.sort();
    found
}

/// Asserts that of a created process' descriptors, past its standard streams, there are no more than
/// what it hears of its start by.
fn assert_no_strays(pid: i64) {
    let found = descriptors(pid);
    let streams: Vec<i32> = found.iter().map(|(number, _)| *number).take(3).collect();
    assert_eq!(streams, [0, 1, 2], "{found:?}");
    let others = &found[3..];
    let is_wire = |target: &str| {
        ["socket:", "pipe:", "anon_inode:[signalfd]"].iter().any(|kind| target.starts_with(kind))
    };
    assert!(others.len() <= 3 && others.iter().all(|(_, target)| is_wire(target)), "{found:?}");
}

#[test]
fn a_created_process_holds_its_streams_and_what_starts_it_and_nothing_else() {
    let mut shim = Shim::start(&sandbox());
    let record = shim.create(shim.container("c", &["/bin/sleep", "60"])).unwrap();
    assert_no_strays(record.pid.into());
    shim.ask(&Request::Start { id: "c".to_owned() }).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors(record.pid.into()).len() != 3 {
        assert!(Instant::now() < deadline, "{:?}", descriptors(record.pid.into()));
        std::thread::sleep(Duration::from_millis(5));
    }
    shim.shut_down();
    let bundle = Bundle::new("sleep 60");
    bundle.write();
    let id = bundle.id();
    let path = bundle.path().to_str().unwrap();
    // Descriptors of the caller are not the container's.
    let kept = std::fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
    let create = bundle.command(&["create", "--bundle", path, &id]).stdout(Stdio::null()).status();
    drop(kept);
    assert!(create.unwrap().success());
    let state = bundle.command(&["state", &id]).output().unwrap();
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    assert_no_strays(state["pid"].as_i64().unwrap());
    assert!(bundle.command(&["delete", "--force", &id]).status().unwrap().success());
}

#[test]
fn no_descriptor_is_a_working_directory() {
    let witness = Witness::new();
    let mut bundle = Bundle::new("sleep 60");
    for number in 3..=64 {
        bundle.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let refusal = bundle.refusal();
        assert!(refusal.contains("chdir to cwd"), "{refusal}");
    }
    bundle.spec["process"]["cwd"] = json!("/");
    let id = run_detached(&bundle);
    for number in 3..=64 {
        let cwd = format!("/proc/self/fd/{number}");
        let output = bundle.command(&["exec", "--cwd", &cwd, &id, "ls"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("chdir to cwd"), "{error}");
    }
    assert!(bundle.command(&["delete", "--force", &id]).status().unwrap().success());
    witness.assert_untouched();
}
