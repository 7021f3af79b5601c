//! What the command line says: warnings, traces, help, and messages that runc's callers look for.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bundle::Bundle;
use serde_json::{Value, json};

fn words(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Sets of `/proc/self/status` as numbers, in its order: inheritable, permitted, effective, bounding,
/// ambient.
fn sets(status: &str) -> Vec<u64> {
    let value = |line: &str| {
        let (_, value) = line.strip_prefix("Cap")?.split_once(":\t")?;
        u64::from_str_radix(value, 16).ok()
    };
    status.lines().filter_map(value).collect()
}

#[test]
fn unknown_capabilities_are_warned_of() {
    let mut bundle = Bundle::new("cat /proc/self/status");
    bundle.spec["process"]["noNewPrivileges"] = json!(true);
    bundle.spec["process"]["capabilities"] = json!({"bounding": ["CAP_UNKNOWN", "CAP_KILL", "X"]});
    let output = bundle.run();
    let (status, warnings) = words(&output);
    assert!(output.status.success(), "{warnings}");
    assert_eq!(sets(&status), [0, 0, 0, 1 << 5, 0]);
    assert!(warnings.contains("level=warning"), "{warnings}");
    let expected = "ignoring unknown or unavailable capabilities: [CAP_UNKNOWN X]";
    assert!(warnings.contains(expected), "{warnings}");
}

#[test]
fn ambient_capabilities_are_raised_as_far_as_they_are_permitted_and_inheritable() {
    const CHOWN: u64 = 1;
    const KILL: u64 = 1 << 5;
    const SYSLOG: u64 = 1 << 34;
    let mut bundle = Bundle::new("cat /proc/self/status; sleep 100");
    // Root would have all of its bounding set anew otherwise.
    bundle.spec["process"]["noNewPrivileges"] = json!(true);
    bundle.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL", "CAP_CHOWN"], "inheritable": ["CAP_CHOWN", "CAP_SYSLOG"],
        "ambient": ["CAP_CHOWN", "CAP_KILL"]
    });
    bundle.write();
    let (id, log) = (bundle.id(), bundle.path().join("log"));
    let path = bundle.path().to_str().unwrap();
    let status = bundle
        .command(&["--log", log.to_str().unwrap(), "run", "--detach", "--bundle", path, &id])
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let warnings = std::fs::read_to_string(log).unwrap();
    assert!(warnings.contains("can't raise ambient capability CAP_KILL: "), "{warnings}");
    assert!(!warnings.contains("CAP_CHOWN"), "{warnings}");
    let exec = |more: &[&str]| {
        let mut command = bundle.command(&["exec"]);
        let output = command.args(more).args([&id, "cat", "/proc/self/status"]).output().unwrap();
        sets(&words(&output).0)
    };
    // The inheritable set is no larger than the ambient one.
    let all = KILL | CHOWN | SYSLOG;
    assert_eq!(exec(&[]), [CHOWN, KILL | CHOWN, KILL | CHOWN, all, CHOWN]);
    let with = CHOWN | SYSLOG;
    assert_eq!(exec(&["--cap", "CAP_SYSLOG"]), [with, all, all, all, with]);
}

#[test]
fn what_could_never_be_inherited_is_refused_by_the_kernel() {
    let mut bundle = Bundle::new("true");
    let one = json!(["CAP_SYS_ADMIN"]);
    bundle.spec["process"]["capabilities"] =
        json!({"effective": one, "permitted": one, "inheritable": one});
    for no_new_privileges in [true, false] {
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let refusal = bundle.refusal();
        assert!(refusal.contains("set capabilities: Operation not permitted"), "{refusal}");
    }
}

#[test]
fn a_trace_goes_where_the_log_goes_and_nowhere_else() {
    let mut bundle = Bundle::new("echo hello");
    bundle.spec["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]});
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let run = |options: &[&str]| {
        let output =
            bundle.command(options).args(["run", "--bundle", path, &bundle.id()]).output().unwrap();
        let (text, said) = words(&output);
        assert_eq!(text, "hello\n", "{said}");
        said
    };
    assert_eq!(run(&[]), "");
    let said = run(&["--debug"]);
    for expected in
        ["level=debug msg=\"read the bundle ", "seccomp filter flags: 2\"", "ended with 0\""]
    {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    for format in ["text", "json"] {
        let log = bundle.path().join(format);
        let options = ["--debug", "--log", log.to_str().unwrap(), "--log-format", format];
        assert_eq!(run(&options), "");
        let lines = std::fs::read_to_string(log).unwrap();
        assert!(lines.lines().count() > 4, "{lines}");
        for line in lines.lines() {
            let level = match format {
                "json" => serde_json::from_str::<Value>(line).unwrap()["level"] == "debug",
                _ => line.contains(" level=debug "),
            };
            assert!(level, "{line}");
        }
    }
}

#[test]
fn help_is_there_for_every_command_and_for_no_other() {
    let bundle = Bundle::new("true");
    let (help, _) = words(&bundle.command(&["--help"]).output().unwrap());
    assert!(help.starts_with("NAME:\n   berth-oci - "), "{help}");
    let commands = help.split_once("COMMANDS:\n").unwrap().1.split_once("\n\n").unwrap().0;
    assert_eq!(commands.lines().count(), 15);
    for line in commands.lines() {
        let name = line.split_whitespace().next().unwrap();
        for flag in ["-h", "--help"] {
            let output = bundle.command(&[name, flag]).output().unwrap();
            let (help, _) = words(&output);
            let expected = format!("NAME:\n   berth-oci {name} - ");
            assert!(output.status.success() && help.starts_with(&expected), "{help}");
            assert!(help.contains(&format!("[global options] {name}")), "{help}");
        }
    }
    let output = bundle.command(&["foo", "-h"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(words(&output).1.contains("No help topic for 'foo'"));
}

#[test]
fn a_script_without_its_interpreter_is_told_in_one_line() {
    let mut bundle = Bundle::new("true");
    let script = bundle.image().join("run.sh");
    std::fs::write(&script, "#!/nowhere x\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    bundle.spec["process"]["args"] = json!(["/run.sh"]);
    assert_eq!(bundle.refusal(), "exec /run.sh: no such file or directory\n");
}

#[test]
fn a_root_that_is_not_there_has_no_list() {
    let bundle = Bundle::new("true");
    let output = bundle.command(&["list"]).output().unwrap();
    assert!(!output.status.success() && words(&output).1.contains("read state directory"));
}

#[test]
fn a_container_that_was_not_started_ends_by_a_signal() {
    let bundle = Bundle::new("true");
    bundle.write();
    let (id, path) = (bundle.id(), bundle.path().to_str().unwrap());
    let made = bundle.command(&["create", "--bundle", path, &id]).stdout(Stdio::null()).status();
    assert!(made.unwrap().success());
    let status = || {
        let (state, _) = words(&bundle.command(&["state", &id]).output().unwrap());
        serde_json::from_str::<Value>(&state).unwrap()["status"].as_str().unwrap().to_owned()
    };
    assert!(bundle.command(&["kill", &id, "USR1"]).status().unwrap().success());
    assert_eq!(status(), "created");
    assert!(bundle.command(&["kill", &id, "TERM"]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(10);
    while status() != "stopped" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}
