//! A container's life over the shim's socket: create, start, signal, exec, exit, delete, shutdown.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::path::Path;
use std::time::{Duration, Instant};

use berth_oci::protocol::*;
use fixture::{Shim, cgroup_root, compile, sandbox, spec_with};
use serde_json::json;

#[test]
fn a_container_runs_and_its_output_and_exit_code_are_kept() {
    let mut shim = Shim::start(&sandbox());
    let (exit, text) = shim.run("one", "echo hello; hostname; echo $HOME $A; echo err >&2; exit 7");
    assert_eq!(exit.exit_code, 7);
    for line in ["hello\n", "pod-one\n", "/root b\n", "err\n"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(exit.started_at > 0 && exit.finished_at >= exit.started_at && !exit.oom_killed);
    let log = std::fs::read_to_string(shim.log("one")).unwrap();
    assert!(log.lines().any(|line| line.ends_with("Z stderr F err")), "{log}");
    let state = std::fs::read(shim.directory().join("containers/one/state.json")).unwrap();
    let record: ContainerRecord = serde_json::from_slice(&state).unwrap();
    assert_eq!((record.state, record.pid), (ContainerPhase::Exited(exit), 0));
    let delete = Request::Delete { id: "one".to_owned() };
    assert_eq!(shim.ask(&delete), Ok(Reply::Done));
    assert_eq!(shim.ask(&delete), Ok(Reply::Done));
    assert!(!shim.directory().join("containers/one").exists());
    assert!(!cgroup_root().join(&shim.cgroup).join("one").exists());
    shim.shut_down();
}

#[test]
fn a_created_container_waits_with_no_descriptor_of_the_host() {
    let mut shim = Shim::start(&sandbox());
    let record = shim.create(shim.container("c", &["/bin/sh", "-c", "exit 3"])).unwrap();
    assert_eq!(record.state, ContainerPhase::Created);
    let fds = Path::new("/proc").join(record.pid.to_string()).join("fd");
    let mut open: Vec<String> = std::fs::read_dir(fds)
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .map(|target| target.split(':').next().unwrap().to_owned())
        .collect();
    open.sort();
    // Standard streams, the report socket and the gate.
    assert_eq!(open, ["/dev/null", "pipe", "pipe", "pipe", "socket"]);
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", record.pid)).unwrap();
    let expected = format!("0::/{}/c", shim.cgroup.display());
    assert!(cgroup.lines().any(|line| line == expected), "{cgroup}");
    shim.ask(&Request::Start { id: "c".to_owned() }).unwrap();
    assert_eq!(shim.wait("c").exit_code, 3);
    shim.shut_down();
}

#[test]
fn the_shim_goes_by_its_own_name() {
    let mut shim = Shim::start(&sandbox());
    let name = std::fs::read_to_string(format!("/proc/{}/comm", shim.pid())).unwrap();
    assert_eq!(name, "berth-oci\n");
    shim.shut_down();
}

#[test]
fn signals_reach_the_first_process_or_all() {
    let mut shim = Shim::start(&sandbox());
    let trap = "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done";
    shim.launch(shim.container("trap", &["/bin/sh", "-c", trap])).unwrap();
    shim.launch(shim.container("kill", &["/bin/sh", "-c", "sleep 100 & sleep 100"])).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while shim.log_text("trap").is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let signal = |id: &str, signal, target| Request::Signal { id: id.to_owned(), signal, target };
    assert_eq!(shim.ask(&signal("trap", 15, SignalTarget::Init)), Ok(Reply::Done));
    assert_eq!(shim.wait("trap").exit_code, 9);
    assert_eq!(shim.ask(&signal("kill", 9, SignalTarget::All)), Ok(Reply::Done));
    assert_eq!(shim.wait("kill").exit_code, 137);
    assert_eq!(shim.ask(&signal("kill", 9, SignalTarget::Init)), Ok(Reply::Done));
    let missing = shim.ask(&signal("nobody", 9, SignalTarget::Init)).unwrap_err();
    assert_eq!(missing.kind, FailureKind::NotFound);
    shim.shut_down();
}

/// `pthread_exit` in `main` does this.
#[test]
fn a_process_whose_first_thread_has_ended_is_killed_with_its_cgroup() {
    let mut shim = Shim::start(&sandbox());
    compile("headless", &shim.image());
    let record = shim.create(shim.container("headless", &["/bin/headless"])).unwrap();
    shim.ask(&Request::Start { id: record.id.clone() }).unwrap();
    let stat = format!("/proc/{}/stat", record.pid);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        assert!(Instant::now() < deadline, "its first thread ends");
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = Request::Signal { id: record.id, signal: 9, target: SignalTarget::All };
    assert_eq!(shim.ask(&kill), Ok(Reply::Done));
    assert_eq!(shim.wait("headless").exit_code, 137);
    shim.shut_down();
}

/// Those that containers are first in, and those where others are already.
const PID_NAMESPACES: [PidNamespace; 2] = [PidNamespace::Container, PidNamespace::Sandbox];

#[test]
fn a_command_that_cannot_be_executed_fails_the_start() {
    for pid in PID_NAMESPACES {
        let mut shim = Shim::start(&ShimConfig { pid, ..sandbox() });
        std::fs::write(shim.image().join("bin/text"), "plain").unwrap();
        std::fs::write(shim.image().join("bin/script"), "#!/no/interpreter\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(shim.image().join("bin/script"), mode).unwrap();
        let cases = [
            ("foo", 127, "exec: \"foo\": executable file not found in $PATH"),
            ("/foo", 127, "exec: \"/foo\": stat /foo: no such file or directory"),
            ("/bin/text", 126, "exec: \"/bin/text\": permission denied"),
            ("/etc", 126, "exec: \"/etc\": is a directory"),
            ("/bin/script", 127, "exec /bin/script: no such file or directory"),
        ];
        for (index, (command, exit_code, message)) in cases.into_iter().enumerate() {
            let id = format!("c{index}");
            let result = shim.launch(shim.container(&id, &[command]));
            let failure = result.expect_err(command);
            assert_eq!(failure.kind, FailureKind::Start, "{failure:?}");
            assert_eq!((failure.exit_code, failure.message.as_str()), (Some(exit_code), message));
            let exit = shim.wait(&id);
            assert_eq!((exit.exit_code, exit.message.as_str()), (exit_code, message));
            assert_eq!(exit.started_at, 0, "it never ran");
        }
        shim.shut_down();
    }
}

#[test]
fn a_failed_create_leaves_nothing() {
    for pid in PID_NAMESPACES {
        let mut shim = Shim::start(&ShimConfig { pid, ..sandbox() });
        let mut request = shim.container("bad", &["/bin/true"]);
        request.rootfs = Rootfs::Directory("/nonexistent".into());
        let failure = shim.create(request).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Create);
        assert!(failure.message.contains("/nonexistent"), "{failure:?}");
        let mut request = shim.container("bad", &["/bin/true"]);
        request.user.user = "nobody-here".to_owned();
        assert_eq!(shim.create(request).unwrap_err().kind, FailureKind::Invalid);
        assert!(!cgroup_root().join(&shim.cgroup).join("bad").exists());
        let (exit, _) = shim.run("bad", "true");
        assert_eq!(exit.exit_code, 0);
        let waiting = shim.container("waiting", &["/bin/true"]);
        shim.create(waiting).unwrap();
        let kill =
            Request::Signal { id: "waiting".to_owned(), signal: 9, target: SignalTarget::Init };
        assert_eq!(shim.ask(&kill), Ok(Reply::Done));
        assert_eq!(shim.wait("waiting").exit_code, 137);
        shim.shut_down();
    }
}

#[test]
fn exec_joins_the_container_and_collects_its_output() {
    let mut shim = Shim::start(&sandbox());
    let mut request = shim.container("c", &["/bin/sleep", "100"]);
    request.user.user = "web".to_owned();
    request.spec = spec_with(&["/bin/sleep", "100"], |spec| {
        spec["process"]["oomScoreAdj"] = json!(500);
        spec["process"]["noNewPrivileges"] = json!(true);
    });
    shim.launch(request).unwrap();
    let script =
        "id; hostname; pwd; echo $HOME; cat /proc/self/cgroup; ps | wc -l; echo oops >&2; exit 5";
    let (code, out, err, late) = shim.exec("c", &["sh", "-c", script]).unwrap();
    assert_eq!((code, err.as_str(), late), (5, "oops\n", false));
    assert!(out.starts_with("uid=33(web) gid=34(web) groups=34(web),50(log)"), "{out}");
    assert!(out.contains("pod-one\n/\n/srv/web\n") && out.contains("0::/\n"), "{out}");
    let script =
        "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/oom_score_adj";
    let (_, out, _, _) = shim.exec("c", &["sh", "-c", script]).unwrap();
    for line in [
        "CapInh:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "500",
    ] {
        assert!(out.lines().any(|got| got == line), "{line}: {out}");
    }
    let failure = shim.exec("c", &["nothing"]).unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::Start, Some(127)));
    shim.shut_down();
}

#[test]
fn exec_is_bounded_in_time_and_output() {
    let mut shim = Shim::start(&sandbox());
    shim.launch(shim.container("c", &["/bin/sleep", "100"])).unwrap();
    let request = |args: &[&str], timeout_ms, output_limit_bytes| ExecSync {
        id: "c".to_owned(),
        args: args.iter().map(|text| (*text).to_owned()).collect(),
        timeout_ms,
        output_limit_bytes,
        once: None,
    };
    let start = Instant::now();
    let (code, out, _, late) =
        shim.exec_with(request(&["sh", "-c", "echo x; sleep 50"], Some(1000), 1000)).unwrap();
    assert_eq!((code, out.as_str(), late), (137, "x\n", true));
    assert!(start.elapsed() < Duration::from_secs(5));
    let flood = ["sh", "-c", "dd if=/dev/zero bs=1M count=40 2>/dev/null; echo done >&2"];
    let (code, out, err, _) = shim.exec_with(request(&flood, None, 1000)).unwrap();
    assert_eq!((code, out.len(), err.as_str()), (0, 1000, "done\n"));
    // A process left behind holds the pipe: the answer does not wait for it.
    let start = Instant::now();
    let (code, out, _, _) = shim.exec("c", &["sh", "-c", "sleep 60 & echo y"]).unwrap();
    assert_eq!((code, out.as_str()), (0, "y\n"));
    assert!(start.elapsed() < Duration::from_secs(5));
    // Other requests are served while one runs.
    let mut other = shim.connect();
    let long = Request::ExecSync(Box::new(request(&["sleep", "30"], None, 10)));
    berth_oci::write_frame(&mut other, &long).unwrap();
    assert!(matches!(shim.ask(&Request::Hello), Ok(Reply::Shim { .. })));
    shim.shut_down();
}

#[test]
fn a_grandchild_that_holds_the_pipe_does_not_delay_the_end() {
    let mut config = sandbox();
    config.pid = PidNamespace::Host;
    let mut shim = Shim::start(&config);
    let start = Instant::now();
    let (exit, text) = shim.run("c", "echo first; sleep 60 & echo last; exit 4");
    assert_eq!((exit.exit_code, text.as_str()), (4, "first\nlast\n"));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    shim.shut_down();
}

#[test]
fn a_shared_pid_namespace_has_a_reaper_and_all_see_each_other() {
    let mut config = sandbox();
    config.pid = PidNamespace::Sandbox;
    let mut shim = Shim::start(&config);
    shim.launch(shim.container("a", &["/bin/sleep", "77"])).unwrap();
    let (_, text) =
        shim.run("b", "ps; sh -c 'sleep 0.1 &'; sleep 0.3; ps; ls /proc/1/root/; echo $?");
    assert_eq!(text.matches("sleep 77").count(), 2, "{text}");
    assert!(!text.contains(" Z "), "{text}");
    assert!(!text.contains("etc"), "the host's root is visible: {text}");
    let (code, out, _, _) =
        shim.exec("a", &["sh", "-c", "echo $$; kill -9 1; ps | grep -c sleep"]).unwrap();
    assert_eq!(code, 0, "{out}");
    assert!(matches!(shim.ask(&Request::Hello), Ok(Reply::Shim { .. })));
    shim.shut_down();
}

#[test]
fn containers_die_with_a_shim_that_crashes() {
    let mut shim = Shim::start(&sandbox());
    let record = shim.create(shim.container("c", &["/bin/sleep", "100"])).unwrap();
    shim.ask(&Request::Start { id: "c".to_owned() }).unwrap();
    let running = Path::new("/proc").join(record.pid.to_string());
    assert!(running.exists());
    let kill = |signal: &str| {
        let status =
            std::process::Command::new("kill").args([signal, &shim.pid().to_string()]).status();
        assert!(status.unwrap().success());
    };
    kill("-TERM");
    assert!(matches!(shim.ask(&Request::Hello), Ok(Reply::Shim { .. })), "SIGTERM is ignored");
    let pid = shim.pid().to_string();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(5);
    while running.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!running.exists());
}

#[test]
fn namespaces_are_pinned_configured_and_shared() {
    let mut config = sandbox();
    config.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    let mut shim = Shim::start(&config);
    for name in ["net", "ipc", "uts"] {
        let pin = shim.directory().join("ns").join(name);
        let own = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&pin.metadata().unwrap());
        assert!(!own.display().to_string().contains(&inode.to_string()));
    }
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /sys/class/net/lo/operstate; \
                  readlink /proc/self/ns/net; readlink /proc/self/ns/ipc";
    let (_, first) = shim.run("a", script);
    let (_, second) = shim.run("b", script);
    assert!(first.starts_with("0\nunknown\n"), "{first}");
    assert_eq!(first, second);
    shim.shut_down();
}

#[test]
fn sysctls_of_the_host_are_refused() {
    for name in ["kernel.core_pattern", "vm.swappiness", "net.ipv4/../../kernel/core_pattern"] {
        let root = tempfile::tempdir().unwrap();
        let mut config = sandbox();
        config.sysctls.insert(name.to_owned(), "1".to_owned());
        let text = serde_json::to_vec(&config).unwrap();
        std::fs::write(root.path().join("sandbox.json"), text).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_berth-oci"))
            .args(["shim", "--dir"])
            .arg(root.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(&format!("sysctl {name}")), "{error}");
        assert!(
            !std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(root.path().to_str().unwrap())
        );
    }
}
