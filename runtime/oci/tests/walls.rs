//! What containers and users of the host find closed (CVE-2019-14271, 2020-15257, 2021-43784,
//! 2023-25809), and a runtime that would rather not start than look up paths unsafely.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_oci::protocol::*;
use fixture::oracle::Witness;
use fixture::{Shim, cgroup_root, sandbox, spec_with};
use serde_json::json;

/// The cgroup of a process, relative to the hierarchy's root.
fn cgroup_of(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    path.unwrap().trim_end_matches(" (deleted)").to_owned()
}

#[test]
fn a_container_is_in_the_cgroup_it_was_given_and_cannot_leave_it() {
    let mut shim = Shim::start(&sandbox());
    let script = "exec 2>&1; echo $$ > /sys/fs/cgroup/cgroup.procs; mkdir /sys/fs/cgroup/own; \
                  mount -o remount,rw /sys/fs/cgroup; umount /sys/fs/cgroup; cat /proc/1/cgroup; \
                  echo ready; sleep 100";
    let record = shim.create(shim.container("c", &["/bin/sh", "-c", script])).unwrap();
    let given = shim.cgroup.join("c");
    assert_eq!(cgroup_of(record.pid), given.to_str().unwrap());
    shim.ask(&Request::Start { id: "c".to_owned() }).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !shim.log_text("c").contains("ready") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let log = shim.log_text("c");
    for denied in [
        "can't create /sys/fs/cgroup/cgroup.procs: Read-only file system",
        "can't create directory '/sys/fs/cgroup/own': Read-only file system",
        "mount: permission denied",
        "umount: can't unmount /sys/fs/cgroup: Operation not permitted",
        "0::/\n",
    ] {
        assert!(log.contains(denied), "{denied}: {log}");
    }
    // A further process as well, and all of them know only their own part of the tree.
    let (_, output, _, _) =
        shim.exec("c", &["sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup/../c"]).unwrap();
    assert!(output.ends_with("0::/\n") && !output.contains("berth"), "{output}");
    let members = std::fs::read_to_string(cgroup_root().join(&given).join("cgroup.procs")).unwrap();
    assert!(members.lines().any(|pid| pid == record.pid.to_string()), "{members}");
    shim.shut_down();
}

#[test]
fn libraries_and_configuration_of_an_image_are_never_opened_by_the_runtime() {
    let mut shim = Shim::start(&sandbox());
    let bait = [
        "etc/ld.so.preload",
        "etc/ld.so.cache",
        "etc/nsswitch.conf",
        "etc/localtime",
        "etc/locale.alias",
        "etc/resolv.conf",
        "lib/x86_64-linux-gnu/libnss_files.so.2",
        "lib64/libnss_files.so.2",
        "usr/lib/libnss_files.so.2",
        "usr/lib/locale/locale-archive",
        "usr/lib/x86_64-linux-gnu/gconv/gconv-modules",
    ];
    for path in bait {
        let path = shim.image().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "/evil.so").unwrap();
    }
    let trace = shim.root.path().join("trace");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=%file,openat2,fchdir,open_tree", "-o"])
        .arg(&trace)
        .args(["-p", &shim.pid().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = format!("/proc/{}/status", shim.pid());
    while !std::fs::read_to_string(&status)
        .unwrap()
        .contains(&format!("TracerPid:\t{}", strace.id()))
    {
        assert!(Instant::now() < deadline, "strace does not attach");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut request = shim.container("c", &["/bin/sleep", "100"]);
    request.user.user = "web".to_owned();
    shim.launch(request).unwrap();
    for _ in 0..3 {
        shim.exec("c", &["/bin/true"]).unwrap();
    }
    shim.shut_down();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(&trace).unwrap();
    assert!(text.contains("openat2(") && text.contains("etc/passwd"), "{text}");
    assert_eq!(text.matches("execve(").count(), 4, "{text}");
    for path in bait {
        assert!(!text.contains(path), "{path} was looked at: {text}");
    }
}

#[test]
fn sockets_of_a_shim_are_out_of_reach() {
    let abstract_names = || -> Vec<String> {
        let table = std::fs::read_to_string("/proc/net/unix").unwrap();
        let names = table.lines().filter_map(|line| line.split_whitespace().nth(7));
        names.filter(|name| name.starts_with('@')).map(str::to_owned).collect()
    };
    let before = abstract_names();
    let mut config = sandbox();
    config.new_network = false;
    let mut shim = Shim::start(&config);
    let args = ["/bin/cat", "/proc/net/unix"];
    let mut request = shim.container("c", &args);
    request.spec = spec_with(&args, |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
    });
    let (_, seen) = shim.run_request(request);
    // It has the host's network, so it sees what is there: only names in directories closed to it.
    assert!(seen.contains("shim.sock"), "{seen}");
    let ours: Vec<_> = abstract_names().into_iter().filter(|name| !before.contains(name)).collect();
    let ours: Vec<_> = ours.iter().filter(|name| name.contains("berth")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    let socket = shim.directory().join("shim.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Where the directories were open, the socket itself would not be, nor who stands behind it.
    for directory in [shim.root.path().to_owned(), shim.directory()] {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    }
    assert!(dial_as_nobody(&socket).1.contains("Permission denied"));
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let (answer, error) = dial_as_nobody(&socket);
    assert_eq!(answer, "", "{error}");
    assert!(!error.contains("Permission denied"), "{error}");
    assert!(matches!(shim.ask(&Request::Hello), Ok(Reply::Shim { .. })));
    shim.shut_down();
}

/// Says hello to a socket as an ordinary user; what came back, and socat's complaint.
fn dial_as_nobody(socket: &std::path::Path) -> (String, String) {
    let mut client = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["socat", "-t", "2", "-", &format!("UNIX-CONNECT:{}", socket.display())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let hello = berth_oci::frame::encode(&Request::Hello).unwrap();
    // It may be gone already.
    let _ = client.stdin.take().unwrap().write_all(&hello);
    let output = client.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_map_of_ten_thousand_entries_is_refused_before_anything_is_cloned() {
    let mut shim = Shim::start(&sandbox());
    let before = children(shim.pid());
    for field in ["uidMappings", "gidMappings"] {
        let mut request = shim.container("c", &["/bin/true"]);
        request.spec = spec_with(&["/bin/true"], |spec| {
            let one =
                |index: u32| json!({"containerID": index, "hostID": 100_000 + index, "size": 1});
            let many: Vec<_> = (0..10_000).map(one).collect();
            let few = json!([one(0)]);
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
            spec["linux"]["uidMappings"] = few.clone();
            spec["linux"]["gidMappings"] = few;
            spec["linux"][field] = json!(many);
        });
        let failure = shim.create(request).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid, "{failure:?}");
        assert!(failure.message.starts_with("linux."), "{failure:?}");
        assert_eq!(children(shim.pid()), before);
        assert!(!cgroup_root().join(shim.cgroup.join("c")).exists());
    }
    shim.shut_down();
}

fn children(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
}

#[test]
fn without_openat2_nothing_starts_and_the_reason_is_named() {
    let witness = Witness::new();
    let root = tempfile::tempdir().unwrap();
    let text = serde_json::to_vec(&sandbox()).unwrap();
    std::fs::write(root.path().join("sandbox.json"), text).unwrap();
    let directory = root.path().to_owned();
    let start = std::thread::spawn(move || {
        fixture::sys::refuse_openat2();
        let mut command = Command::new("timeout");
        command
            .args(["-s", "KILL", "10", env!("CARGO_BIN_EXE_berth-oci"), "shim", "--dir"])
            .arg(directory)
            .output()
            .unwrap()
    });
    let output = start.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("openat2"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1, "something was made");
    witness.assert_untouched();
}

#[test]
fn nobody_but_root_looks_into_the_command_line_s_state() {
    let bundle = bundle::Bundle::new("sleep 60");
    bundle.write();
    // Up to there everybody may go.
    std::fs::set_permissions(bundle.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let id = bundle.id();
    let run = ["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), &id];
    let status = bundle.command(&run).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    let state = bundle.path().join("state");
    assert!(state.join(&id).is_dir());
    for (path, depth) in [(&state, "1"), (&state.join(&id), "0")] {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "find"])
            .arg(path)
            .args(["-mindepth", depth])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.stdout.is_empty() && error.contains("Permission denied"), "{error}");
    }
}
