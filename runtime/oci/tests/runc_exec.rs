//! `exec`, terminals over sockets, and descriptors that are passed on.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bundle::Bundle;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

/// A running container and its id.
fn running() -> (Bundle, String) {
    let bundle = Bundle::new("sleep 100");
    bundle.write();
    let id = bundle.id();
    let path = bundle.path().to_str().unwrap();
    let mut command = bundle.command(&["run", "--detach", "--bundle", path, &id]);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    (bundle, id)
}

fn exec(bundle: &Bundle, arguments: &[&str]) -> Output {
    bundle.command(&["exec"]).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What arrives on a socket: the descriptor and its name.
fn receive(listener: &UnixListener) -> (OwnedFd, String) {
    let (stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(stream.as_fd(), &mut slices, &mut control, flags).unwrap().bytes;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    (descriptor.unwrap(), String::from_utf8_lossy(&bytes[..got]).into_owned())
}

#[test]
fn flags_change_the_container_s_own_process() {
    let (bundle, id) = running();
    let output = exec(
        &bundle,
        &[
            "--cwd",
            "/tmp",
            "--env",
            "X=y",
            "-u",
            "5:6",
            "-g",
            "7",
            &id,
            "sh",
            "-c",
            "id; pwd; echo $X $A",
        ],
    );
    assert_eq!(text(&output), "uid=5 gid=6 groups=7\n/tmp\ny b\n");
    let caps = |flags: &[&str]| {
        let mut arguments = flags.to_vec();
        arguments.extend([id.as_str(), "grep", "Cap[PE]", "/proc/self/status"]);
        text(&exec(&bundle, &arguments))
    };
    assert_ne!(caps(&[]), caps(&["--cap", "CAP_SYS_ADMIN"]));
    let privileges =
        text(&exec(&bundle, &["--no-new-privs", &id, "grep", "NoNewPrivs", "/proc/self/status"]));
    assert!(privileges.ends_with("1\n"));
    assert_eq!(exec(&bundle, &[&id, "sh", "-c", "exit 9"]).status.code(), Some(9));
    assert_eq!(exec(&bundle, &[&id, "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    let output = exec(&bundle, &[&id, "--", "echo", "--env"]);
    assert_eq!(text(&output), "--env\n");
}

#[test]
fn a_file_describes_a_process_and_its_id_is_written() {
    let (bundle, id) = running();
    let file = bundle.path().join("process.json");
    let process = json!({
        "user": {"uid": 33, "gid": 34}, "args": ["sh", "-c", "echo $HOME; sleep 50"], "cwd": "/",
        "env": ["PATH=/bin"]
    });
    std::fs::write(&file, process.to_string()).unwrap();
    let pid_file = bundle.path().join("exec.pid");
    let output_file = bundle.path().join("out");
    let status = bundle
        .command(&["exec", "--detach", "--process", file.to_str().unwrap()])
        .args(["--pid-file", pid_file.to_str().unwrap(), &id])
        .stdout(std::fs::File::create(&output_file).unwrap())
        .status();
    assert!(status.unwrap().success());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.lines().any(|line| line == "Uid:\t33\t33\t33\t33"), "{status}");
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(own.lines().any(|line| line.starts_with("0::") && line.ends_with(&id)), "{own}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::fs::read_to_string(&output_file).unwrap() != "/srv/web\n" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    std::fs::write(&file, "{\"args\": 5}").unwrap();
    let output = exec(&bundle, &["--process", file.to_str().unwrap(), &id]);
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("process.json: args: "));
}

#[test]
fn failures_of_exec_are_not_the_command_s() {
    let (bundle, id) = running();
    let failed = |arguments: &[&str], message: &str| {
        let output = exec(&bundle, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(255), "{arguments:?}");
        assert!(said.contains(message), "{arguments:?}: {said}");
    };
    failed(&[&id, "nope"], "executable file not found in $PATH");
    failed(&[&id], "process args cannot be empty");
    failed(&["--user", "root", &id, "true"], "--user: ");
    failed(&["--cap", "CAP_X", &id, "true"], "--cap: ");
    failed(&["--cwd", "tmp", &id, "true"], "process.cwd: ");
    failed(&["--cgroup", "../x", &id, "true"], "bad sub cgroup path");
    failed(&["--detach", "--tty", &id, "true"], "cannot allocate tty");
    failed(&["none", "true"], "container does not exist");
    assert!(bundle.command(&["kill", &id, "KILL"]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !String::from_utf8_lossy(&bundle.command(&["state", &id]).output().unwrap().stdout)
        .contains("stopped")
    {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    failed(&[&id, "true"], "cannot exec in a stopped container");
}

#[test]
fn terminals_are_sent_over_the_console_socket() {
    let mut bundle =
        Bundle::new("tty; stty size 2>/dev/null; read line; echo \"<$line>\"; ls -l /dev/console");
    bundle.spec["process"]["terminal"] = json!(true);
    bundle.write();
    let id = bundle.id();
    let path = bundle.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let directory = bundle.path().to_str().unwrap();
    let socket = path.to_str().unwrap();
    let status = bundle
        .command(&["create", "--bundle", directory, "--console-socket", socket, &id])
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let (master, name) = receive(&listener);
    assert_eq!(name, "/dev/ptmx");
    assert!(bundle.command(&["start", &id]).status().unwrap().success());
    let mut terminal = std::fs::File::from(master);
    terminal.write_all(b"typed\n").unwrap();
    let mut shown = String::new();
    let mut chunk = [0; 256];
    // EIO once the last process has let go of the other side.
    while let Ok(count) = terminal.read(&mut chunk) {
        shown.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    assert!(shown.contains("/dev/pts/0\r\n") && shown.contains("<typed>"), "{shown}");
    assert!(shown.contains("/dev/console"), "{shown}");
}

#[test]
fn an_executed_process_can_have_a_terminal_too() {
    let (bundle, id) = running();
    let path = bundle.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let socket = path.to_str().unwrap();
    let arguments =
        ["--tty", "--detach", "--console-socket", socket, &id, "sh", "-c", "tty; echo done"];
    let status = bundle.command(&["exec"]).args(arguments).stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
    let mut terminal = std::fs::File::from(receive(&listener).0);
    let mut shown = Vec::new();
    let _ = terminal.read_to_end(&mut shown);
    assert_eq!(String::from_utf8_lossy(&shown), "/dev/pts/0\r\ndone\r\n");
}

#[test]
fn only_the_descriptors_that_are_named_are_passed_on() {
    let bundle = Bundle::new("cat <&3; ls /proc/self/fd | wc -l");
    bundle.write();
    let file = bundle.path().join("passed");
    std::fs::write(&file, "passed\n").unwrap();
    let run = |count: &str| {
        let script = format!("exec 3<{0} 4<{0} 5<{0}; exec \"$0\" \"$@\"", file.display());
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_berth-oci"), "--root"])
            .arg(bundle.path().join("state"))
            .args(["run", "--preserve-fds", count, "--bundle", bundle.path().to_str().unwrap()])
            .arg(bundle.id())
            .output()
            .unwrap();
        text(&output)
    };
    // Standard streams, those passed on, and the directory that is read.
    assert_eq!(run("1"), "passed\n5\n");
    assert_eq!(run("3"), "passed\n7\n");
}

#[test]
fn pidfds_are_sent_over_their_socket() {
    let bundle = Bundle::new("true");
    bundle.write();
    let id = bundle.id();
    let path = bundle.path().join("pidfd");
    let listener = UnixListener::bind(&path).unwrap();
    let directory = bundle.path().to_str().unwrap();
    let arguments =
        ["create", "--bundle", directory, "--pidfd-socket", path.to_str().unwrap(), &id];
    assert!(bundle.command(&arguments).stdout(Stdio::null()).status().unwrap().success());
    let (pidfd, name) = receive(&listener);
    assert_eq!(name, "pidfd");
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_command_that_cannot_be_executed_leaves_nobody_a_process_to_wait_for() {
    let (bundle, id) = running();
    // What loses its parent comes to this process, as it would to the host's init.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    for command in ["/missing", "/etc", "/bin/sh"] {
        let fails = command != "/bin/sh";
        let output = exec(&bundle, &[&id, command, "-c", "exit 0"]);
        assert_eq!(output.status.success(), !fails, "{output:?}");
        let left = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        assert_eq!(left.map(|ended| ended.is_some()), Err(rustix::io::Errno::CHILD), "{command}");
    }
}
