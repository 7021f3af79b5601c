//! Bad input: each is refused by name, with nothing left of the container.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::os::unix::fs::{PermissionsExt, symlink};

use bundle::Bundle;
use serde_json::{Value, json};

/// A change to a good specification, and what must be said of it.
type Case = (fn(&mut Value), &'static str);

const SPECIFICATIONS: &[Case] = &[
    (|spec| spec["process"]["args"] = json!([]), "process.args: is empty"),
    (|spec| spec["process"]["args"] = json!(["a", 5]), "process.args[1]: "),
    (|spec| spec["process"]["args"] = json!(["a\u{0}b"]), "NUL byte"),
    (|spec| spec["process"]["cwd"] = json!("tmp"), "process.cwd: is not an absolute path"),
    (|spec| spec["process"]["user"]["uid"] = json!("root"), "process.user.uid: "),
    (|spec| spec["process"]["user"]["uid"] = json!(4_294_967_295u32), "uid 4294967295 is not in"),
    (|spec| spec["process"] = Value::Null, "process: is missing"),
    (|spec| spec["process"]["args"] = json!(["nope"]), "executable file not found in $PATH"),
    (|spec| spec["process"]["args"] = json!(["/etc/passwd"]), "permission denied"),
    (|spec| spec["process"]["args"] = json!(["/etc"]), "is a directory"),
    (|spec| spec["process"]["args"] = json!(["/no/such"]), "no such file or directory"),
    (
        |spec| spec["process"]["rlimits"] = json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
        "process.rlimits[0].type: ",
    ),
    (|spec| spec["root"]["path"] = json!("none"), "root.path: "),
    (|spec| spec["root"] = Value::Null, "root: is missing"),
    (|spec| spec["ociVersion"] = json!("3.0.0"), "ociVersion: "),
    (|spec| spec["linux"]["namespaces"][0]["type"] = json!("x"), "linux.namespaces[0].type: "),
    (|spec| spec["linux"]["cgroupsPath"] = json!("/"), "linux.cgroupsPath: "),
    (|spec| spec["mounts"][0]["options"] = json!(["bind"]), "mounts[/proc].source: open"),
    (
        |spec| spec["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"}),
        "sysctl kernel.core_pattern",
    ),
    (
        |spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_X"}),
        "linux.seccomp.defaultAction: ",
    ),
];

#[test]
fn a_specification_that_is_wrong_is_refused_by_its_field() {
    for (change, message) in SPECIFICATIONS {
        let mut bundle = Bundle::new("true");
        std::fs::set_permissions(
            bundle.image().join("etc/passwd"),
            std::fs::Permissions::from_mode(0o644),
        )
        .unwrap();
        change(&mut bundle.spec);
        eprintln!("refused with {message:?}?");
        let said = bundle.refusal();
        assert!(said.contains(message), "{message:?} is not in {said:?}");
    }
}

#[test]
fn a_bundle_that_is_no_bundle_is_refused() {
    let bundle = Bundle::new("true");
    let run = |text: Option<&str>| {
        match text {
            Some(text) => std::fs::write(bundle.path().join("config.json"), text).unwrap(),
            None => drop(std::fs::remove_file(bundle.path().join("config.json"))),
        }
        let path = bundle.path().to_str().unwrap();
        let output = bundle.command(&["run", "--bundle", path, "x"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!bundle.path().join("state/x").exists());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(None).contains("JSON specification file not found"));
    for text in ["", "{", "[]", "null", "\"x\"", "{} {}", "{\"process\": {\"cwd\": 5}}", "\u{0}"] {
        assert!(run(Some(text)).contains("config.json"), "{text:?}");
    }
}

#[test]
fn arguments_that_are_wrong_are_refused() {
    let bundle = Bundle::new("true");
    bundle.write();
    for (arguments, message) in [
        (&["run"][..], "a container ID is needed"),
        (&["run", "a", "b"], "too many arguments"),
        (&["run", "../a"], "invalid container ID format"),
        (&["run", "--nonsense", "a"], "flag provided but not defined"),
        (&["run", "--preserve-fds", "x", "a"], "is no valid number"),
        (&["kill", "a", "NOPE"], "unknown signal"),
        (&["state"], "a container ID is needed"),
        (&["frobnicate"], "No help topic for 'frobnicate'"),
        (&["list", "--format", "xml"], "invalid format option"),
        (&["--log-format", "xml", "list"], "invalid log-format"),
    ] {
        let output = bundle.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(message), "{arguments:?}: {said}");
    }
    let path = bundle.path().to_str().unwrap();
    let output =
        bundle.command(&["run", "--bundle", path, "--preserve-fds", "1", "a"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("descriptor 3 is not open"), "{said}");
}

#[test]
fn a_root_file_system_of_links_and_special_files_harms_nobody() {
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    std::fs::write(&canary, "unharmed").unwrap();
    for (name, target) in
        [("proc", outside.path()), ("dev", outside.path()), ("etc/passwd", canary.as_path())]
    {
        let bundle = Bundle::new("true");
        let place = bundle.image().join(name);
        match place.is_dir() {
            true => std::fs::remove_dir(&place).unwrap(),
            false => std::fs::remove_file(&place).unwrap(),
        }
        symlink(target, &place).unwrap();
        // Refused or led inside: either way it ends, and the host is as before.
        let _ = bundle.run();
        assert_eq!(outside.path().read_dir().unwrap().count(), 1, "{name}");
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "unharmed");
    }
    let bundle = Bundle::new("true");
    let passwd = bundle.image().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(bundle.refusal().contains("/etc/passwd: is not a regular file"));
}

#[test]
fn standard_streams_that_are_closed_are_the_null_device() {
    let bundle = Bundle::new("for fd in 0 2; do stat -L -c %t:%T /proc/self/fd/$fd; done");
    bundle.write();
    let id = bundle.id();
    let run = bundle.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &id]);
    let mut closing = std::process::Command::new("sh");
    closing.args(["-c", "exec \"$@\" 0<&- 2>&-", "sh"]).arg(run.get_program());
    let output = closing.args(run.get_args()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1:3\n1:3\n", "{output:?}");
}
