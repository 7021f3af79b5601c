//! Readiness of containers, told to whoever plays the service manager: NOTIFY_SOCKET, sd_notify(3).

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bundle::Bundle;

/// A bundle and the socket of a service manager.
fn managed(script: &str) -> (Bundle, UnixDatagram) {
    let bundle = Bundle::new(script);
    bundle.write();
    let manager = UnixDatagram::bind(bundle.path().join("manager")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (bundle, manager)
}

/// A command of a runtime that runs below the service manager.
fn below(bundle: &Bundle, arguments: &[&str]) -> Command {
    let mut command = bundle.command(arguments);
    command.env("NOTIFY_SOCKET", bundle.path().join("manager")).stdout(Stdio::null());
    command
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match found() {
            Some(found) => return found,
            None => assert!(Instant::now() < deadline, "no {what}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The socket as the container's first process finds it.
fn socket_inside(bundle: &Bundle, id: &str) -> (u32, PathBuf) {
    wait_for("command", || {
        let output = bundle.command(&["state", id]).output().unwrap();
        let state: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let pid = state["pid"].as_u64()? as u32;
        // Till it executes its command it has the variables of the runtime, which name another place.
        let variables = std::fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
        let name = variables.split('\0').find_map(|one| one.strip_prefix("NOTIFY_SOCKET="))?;
        let inside = name.starts_with("/run/notify/");
        inside.then(|| (pid, PathBuf::from(format!("/proc/{pid}/root{name}"))))
    })
}

fn say(socket: &PathBuf, text: &str) {
    UnixDatagram::unbound().unwrap().send_to(text.as_bytes(), socket).unwrap();
}

fn hear(manager: &UnixDatagram) -> String {
    let mut message = [0; 256];
    // The barrier's descriptor is dropped, which lifts it.
    let length = manager.recv(&mut message).unwrap();
    String::from_utf8_lossy(&message[..length]).into_owned()
}

fn ends_well(mut command: Child) {
    let status = wait_for("end", || command.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_start_lasts_until_the_container_is_ready_and_the_manager_knows() {
    let (bundle, manager) = managed("touch /run/notify/x || echo read-only; exec sleep 100");
    let (id, path) = (bundle.id(), bundle.path().to_str().unwrap());
    assert!(below(&bundle, &["create", "--bundle", path, &id]).status().unwrap().success());
    let mut start = below(&bundle, &["start", &id]).spawn().unwrap();
    let (pid, socket) = socket_inside(&bundle, &id);
    say(&socket, "STATUS=nearly\nMAINPID=1");
    std::thread::sleep(Duration::from_millis(50));
    assert!(start.try_wait().unwrap().is_none(), "it is not ready");
    say(&socket, "STATUS=done\nREADY=1\nMAINPID=1");
    let heard: Vec<String> = (0..3).map(|_| hear(&manager)).collect();
    assert_eq!(heard, ["READY=1\n".to_owned(), format!("MAINPID={pid}\n"), "BARRIER=1".to_owned()]);
    ends_well(start);
}

#[test]
fn what_is_run_detached_or_waited_for_is_told_of_with_the_process_to_watch() {
    for detached in [true, false] {
        let (bundle, manager) = managed("while ! test -e /tmp/end; do sleep 0.01; done");
        let (id, path) = (bundle.id(), bundle.path().to_str().unwrap());
        let mut arguments = vec!["run", "--bundle", path, &id];
        if detached {
            arguments.insert(1, "--detach");
        }
        let command = below(&bundle, &arguments).spawn().unwrap();
        let (pid, socket) = socket_inside(&bundle, &id);
        say(&socket, "READY=1");
        let main = if detached { pid } else { command.id() };
        assert_eq!(
            [hear(&manager), hear(&manager)],
            ["READY=1\n".to_owned(), format!("MAINPID={main}\n")]
        );
        assert_eq!(hear(&manager), "BARRIER=1");
        if detached {
            ends_well(command);
            continue;
        }
        // Whatever else it says is taken and goes nowhere.
        (0..100).for_each(|_| say(&socket, "READY=1\nWATCHDOG=1"));
        std::fs::write(bundle.image().join("tmp/end"), "").unwrap();
        ends_well(command);
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 16]).is_err());
    }
}

#[test]
fn a_container_that_ends_before_it_is_ready_is_not_waited_for() {
    let (bundle, _manager) = managed("true");
    let (id, path) = (bundle.id(), bundle.path().to_str().unwrap());
    ends_well(below(&bundle, &["run", "--detach", "--bundle", path, &id]).spawn().unwrap());
    ends_well(below(&bundle, &["run", "--bundle", path, &bundle.id()]).spawn().unwrap());
}

#[test]
fn a_container_made_without_the_socket_is_not_started_with_it() {
    let (bundle, _manager) = managed("true");
    let (id, path) = (bundle.id(), bundle.path().to_str().unwrap());
    let made = bundle.command(&["create", "--bundle", path, &id]).stdout(Stdio::null()).status();
    assert!(made.unwrap().success());
    let output = below(&bundle, &["start", &id]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("NOTIFY_SOCKET"), "{said}");
    assert!(bundle.command(&["start", &id]).status().unwrap().success());
}
