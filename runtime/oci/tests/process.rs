//! What a specification says of a process besides its command: scheduling, labels, notifications.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use bundle::Bundle;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

#[test]
fn a_process_is_scheduled_as_is_said() {
    let script = "grep -E '^(prio|policy)' /proc/self/sched | tr -d ' '; \
                  grep -E '^Mems_allowed_list' /proc/self/status; cat /proc/self/personality";
    let mut bundle = Bundle::new(script);
    bundle.spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    bundle.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    bundle.spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    bundle.spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    bundle.spec["linux"]["readonlyPaths"] = json!([]);
    let text = bundle.text();
    for line in ["policy:3\n", "prio:127\n", "00000008\n"] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn what_the_kernel_refuses_names_the_field() {
    let mut bundle = Bundle::new("true");
    bundle.spec["process"]["scheduler"] =
        json!({"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 4, "period": 3});
    let refusal = bundle.refusal();
    assert!(refusal.contains("process.scheduler"), "{refusal}");
    let mut bundle = Bundle::new("true");
    bundle.spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "900"});
    let refusal = bundle.refusal();
    assert!(refusal.contains("linux.memoryPolicy"), "{refusal}");
}

#[test]
fn labels_of_modules_that_the_host_has_not_are_refused() {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.starts_with(b"Y")) {
        let mut bundle = Bundle::new("true");
        bundle.spec["process"]["apparmorProfile"] = json!("some");
        let refusal = bundle.refusal();
        assert!(refusal.contains("process.apparmorProfile: apparmor is not enabled"), "{refusal}");
    }
    assert!(!std::path::Path::new("/sys/fs/selinux/enforce").exists());
    for (place, name) in [("process", "selinuxLabel"), ("linux", "mountLabel")] {
        let mut bundle = Bundle::new("true");
        bundle.spec[place][name] = json!("system_u:system_r:x_t:s0");
        let refusal = bundle.refusal();
        let expected = format!("{place}.{name}: SELinux is not enabled on this host");
        assert!(refusal.contains(&expected), "{refusal}");
    }
}

#[test]
fn a_further_process_runs_on_the_processors_it_is_given() {
    let mut bundle = Bundle::new("sleep 60");
    bundle.write();
    let id = bundle.id();
    let directory = bundle.path().to_str().unwrap().to_owned();
    let created = bundle.command(&["run", "--detach", "--bundle", &directory, &id]).status();
    assert!(created.unwrap().success());
    let script = ["/bin/grep", "Cpus_allowed_list", "/proc/self/status"];
    bundle.spec["process"]["args"] = json!(script);
    for (affinity, expected) in
        [(json!({"initial": "0"}), "0"), (json!({"initial": "0", "final": "0"}), "0")]
    {
        bundle.spec["process"]["execCPUAffinity"] = affinity;
        let process = bundle.path().join("process.json");
        std::fs::write(&process, bundle.spec["process"].to_string()).unwrap();
        let output = bundle
            .command(&["--debug", "exec", "--process", process.to_str().unwrap(), &id])
            .output()
            .unwrap();
        let trace = String::from_utf8(output.stderr).unwrap();
        assert!(trace.contains("initial CPU affinity: 0x1"), "{trace}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.split_whitespace().nth(1), Some(expected), "{text}");
    }
}

#[test]
fn processes_run_on_all_processors_whatever_their_runtime_is_confined_to() {
    let allowed = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    let own = allowed(&std::fs::read_to_string("/proc/self/status").unwrap());
    assert_ne!(own, "0", "a machine with one processor shows nothing");
    let mut bundle = Bundle::new("cat /proc/self/status; sleep 60");
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    for user_namespace in [false, true] {
        if user_namespace {
            bundle.spec["linux"]["uidMappings"] = map.clone();
            bundle.spec["linux"]["gidMappings"] = map.clone();
            let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({"type": "user"}));
        }
        bundle.write();
        let id = bundle.id();
        let confined = |arguments: &[&str]| {
            let command = bundle.command(arguments);
            let mut taskset = std::process::Command::new("taskset");
            taskset.args(["-c", "0"]).arg(command.get_program()).args(command.get_args());
            taskset
        };
        let directory = bundle.path().to_str().unwrap();
        let log = bundle.path().join("log");
        let status = confined(&["run", "--detach", "--bundle", directory, &id])
            .stdout(std::fs::File::create(&log).unwrap())
            .status();
        assert!(status.unwrap().success());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let text = loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.contains("nonvoluntary_ctxt_switches") {
                break text;
            }
            assert!(std::time::Instant::now() < deadline, "{text}");
        };
        assert_eq!(allowed(&text), own);
        let output = confined(&["exec", &id, "cat", "/proc/self/status"]).output().unwrap();
        assert_eq!(allowed(&String::from_utf8(output.stdout).unwrap()), own);
    }
}

/// Takes what a runtime sends to a listener.
fn take(listener: &UnixListener) -> (Value, OwnedFd) {
    let (mut socket, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received =
        rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    bytes.truncate(received.bytes);
    socket.read_to_end(&mut bytes).unwrap();
    (serde_json::from_slice(&bytes).unwrap(), descriptor.unwrap())
}

#[test]
fn a_listener_gets_the_notifications_of_the_filter_and_decides() {
    for no_new_privileges in [false, true] {
        let mut bundle = Bundle::new("mkdir /tmp/one; echo $?");
        let path = bundle.path().join("listener");
        let listener = UnixListener::bind(&path).unwrap();
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "listenerMetadata": "some data",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]
        });
        let supervisor = std::thread::spawn(move || {
            let (state, notifications) = take(&listener);
            fixture::sys::deny_one_notification(notifications.as_fd(), libc::EXDEV);
            state
        });
        let text = bundle.text();
        assert_eq!(text, "1\n", "mkdir fails");
        let state = supervisor.join().unwrap();
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], json!("some data"));
        assert_eq!(state["state"]["status"], json!("creating"));
        assert_eq!(state["state"]["pid"], state["pid"]);
        assert_eq!(state["state"]["bundle"].as_str(), bundle.path().to_str());
    }
}

#[test]
fn a_listener_hears_of_a_container_at_its_creation_unless_the_wait_is_what_it_decides() {
    for (calls, at_creation) in [(json!(["getcwd"]), true), (json!(["getcwd", "ppoll"]), false)] {
        let mut bundle = Bundle::new("true");
        let path = bundle.path().join("listener");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        bundle.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": calls, "action": "SCMP_ACT_NOTIFY"}]
        });
        for no_new_privileges in [false, true] {
            bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            bundle.write();
            let (id, directory) = (bundle.id(), bundle.path().to_str().unwrap());
            let made = bundle
                .command(&["create", "--bundle", directory, &id])
                .stdout(std::process::Stdio::null())
                .status();
            assert!(made.unwrap().success());
            let (state, _notifications) = match at_creation {
                true => take(&listener),
                false => {
                    // It is connected already, and nothing is said.
                    let (socket, _) = listener.accept().unwrap();
                    socket.set_nonblocking(true).unwrap();
                    let error = (&socket).read(&mut [0; 16]).unwrap_err();
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    continue;
                }
            };
            assert_eq!(
                (&state["state"]["id"], &state["state"]["status"]),
                (&json!(id), &json!("creating"))
            );
            assert!(bundle.command(&["start", &id]).status().unwrap().success());
        }
    }
}

#[test]
fn a_filter_that_nobody_listens_to_or_that_hides_its_listener_is_refused() {
    let profile = |names: Value, path: Value| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]
        })
    };
    for (profile, expected) in [
        (profile(json!(["mkdir"]), Value::Null), "linux.seccomp.listenerPath: is no absolute path"),
        (profile(json!(["sendmsg"]), json!("/none")), "SCMP_ACT_NOTIFY needs sendmsg"),
        (
            profile(json!(["mkdir"]), json!("/none")),
            "linux.seccomp.listenerPath: failed to connect with seccomp agent /none",
        ),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.spec["linux"]["seccomp"] = profile;
        let refusal = bundle.refusal();
        assert!(refusal.contains(expected), "{refusal}");
    }
}
