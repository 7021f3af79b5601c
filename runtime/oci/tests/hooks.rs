//! Hooks of all kinds, as programs that write down what they see.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use bundle::Bundle;
use serde_json::{Value, json};

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that runs a shell script; `$kind` names it.
fn hook(shell: &str, kind: &str, script: &str) -> Value {
    json!({"path": shell, "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin", format!("kind={kind}")]})
}

/// A bundle whose hooks all run a script, with `$log` a file of the host.
fn hooked(script: &str) -> (Bundle, std::path::PathBuf) {
    let mut bundle = Bundle::new("echo running");
    let log = bundle.path().join("log");
    for kind in KINDS {
        let (shell, log) = match kind {
            "startContainer" => ("/bin/sh", std::path::PathBuf::from("/log")),
            _ => ("/bin/sh", log.clone()),
        };
        let script = format!("log={}; {script}", log.display());
        bundle.spec["hooks"][kind] = json!([hook(shell, kind, &script)]);
    }
    std::fs::write(&log, "").unwrap();
    std::fs::write(bundle.image().join("log"), "").unwrap();
    bundle.spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/log", "source": log, "options": ["bind"]
    }));
    (bundle, log)
}

#[test]
fn each_kind_runs_once_in_order_and_is_told_the_state() {
    let (mut bundle, log) = hooked("echo \"$kind $(cat)\" >> $log");
    bundle.spec["annotations"] = json!({"k": "v"});
    assert_eq!(bundle.text(), "running\n");
    let text = std::fs::read_to_string(log).unwrap();
    let lines: Vec<(&str, Value)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(kind, state)| (kind, serde_json::from_str(state).unwrap()))
        .collect();
    let kinds: Vec<&str> = lines.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, KINDS, "{text}");
    let statuses: Vec<&str> =
        lines.iter().map(|(_, state)| state["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["creating", "creating", "creating", "created", "running", "stopped"]);
    let pid = lines[0].1["pid"].as_i64().unwrap();
    for (kind, state) in &lines {
        assert_eq!(state["bundle"].as_str().unwrap(), bundle.path().to_str().unwrap());
        assert_eq!(
            (&state["annotations"]["k"], &state["ociVersion"]),
            (&json!("v"), &json!("1.3.0"))
        );
        let expected = if *kind == "poststop" { Value::Null } else { json!(pid) };
        assert_eq!(state["pid"], expected, "{kind}");
    }
}

#[test]
fn each_kind_runs_in_the_namespaces_it_is_for() {
    let (bundle, log) = hooked(
        "echo $kind $(readlink /proc/self/ns/mnt) $(test -e /bin/busybox && ls -d /rootfs-only 2>&1 | wc -l) >> $log",
    );
    bundle.text();
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let text = std::fs::read_to_string(log).unwrap();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let in_host = words[1] == own.to_str().unwrap();
        let expected = !matches!(words[0], "createContainer" | "startContainer");
        assert_eq!(in_host, expected, "{text}");
    }
    assert_eq!(text.lines().count(), KINDS.len(), "{text}");
}

#[test]
fn a_hook_before_the_pivot_sees_the_container_s_mounts_at_the_root_s_path() {
    let mut bundle = Bundle::new("cat /tmp/made");
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
    let script = format!("echo by the hook > {}/tmp/made", bundle.image().display());
    bundle.spec["hooks"] = json!({"createContainer": [hook("/bin/sh", "x", &script)]});
    assert_eq!(bundle.text(), "by the hook\n");
    assert!(!bundle.image().join("tmp/made").exists());
}

#[test]
fn a_hook_of_the_runtime_that_enters_the_mount_namespace_finds_the_root_at_its_path() {
    let mut bundle = Bundle::new("cat /tmp/made");
    let (image, log) = (bundle.image(), bundle.path().join("log"));
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
         enter() {{ nsenter --mount=/proc/$pid/ns/mnt \"$@\"; }}; pwd > {log}; \
         enter mount -t tmpfs none {image}/tmp && enter sh -c 'echo by the hook > {image}/tmp/made'",
        image = image.display(),
        log = log.display()
    );
    let of_container = format!("pwd >> {}; test -x ./bin/busybox", log.display());
    for (kind, script) in [("createRuntime", &script), ("createContainer", &of_container)] {
        bundle.spec["hooks"][kind] = json!([hook("/bin/sh", kind, script)]);
    }
    assert_eq!(bundle.text(), "by the hook\n");
    assert!(!image.join("tmp/made").exists());
    let expected = format!("{}\n{}\n", bundle.path().display(), image.display());
    assert_eq!(std::fs::read_to_string(&log).unwrap(), expected);
    bundle.spec["hooks"].as_object_mut().unwrap().remove("createContainer");
    assert_eq!(bundle.text(), "by the hook\n");
}

#[test]
fn a_failing_hook_undoes_the_container_and_later_ones_but_poststop_do_not_run() {
    for (failing, expected) in [
        ("prestart", vec!["prestart", "poststop"]),
        ("createContainer", vec!["prestart", "createRuntime", "createContainer", "poststop"]),
        (
            "startContainer",
            vec!["prestart", "createRuntime", "createContainer", "startContainer", "poststop"],
        ),
        ("poststart", KINDS.to_vec()),
        ("poststop", KINDS.to_vec()),
    ] {
        let script =
            format!("echo $kind >> $log; test $kind != {failing} || {{ echo no more; exit 4; }}");
        let (mut bundle, log) = hooked(&script);
        bundle.spec["process"]["args"] = json!(["/bin/true"]);
        match failing {
            "poststop" => {
                let output = bundle.run();
                assert!(output.status.success());
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(
                    errors.contains("error running poststop hook #0: exit status 4: no more"),
                    "{errors}"
                );
            }
            kind => {
                let refusal = bundle.refusal();
                let expected = format!("error running {kind} hook #0: exit status 4: no more");
                assert!(refusal.contains(&expected), "{refusal}");
            }
        }
        let text = std::fs::read_to_string(log).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{failing}");
    }
}

#[test]
fn a_container_whose_start_fails_has_stopped_and_can_be_deleted_at_once() {
    for kind in ["startContainer", "poststart"] {
        let (mut bundle, log) = hooked("echo $kind >> $log");
        bundle.spec["hooks"][kind] = json!([hook("/bin/sh", kind, "exit 4")]);
        bundle.spec["process"]["args"] = json!(["/bin/sleep", "100"]);
        bundle.write();
        for _ in 0..5 {
            let (id, path) = (bundle.id(), bundle.path().to_str().unwrap());
            let mut create = bundle.command(&["create", "--bundle", path, &id]);
            assert!(create.stdout(std::process::Stdio::null()).status().unwrap().success());
            let start = bundle.command(&["start", &id]).output().unwrap();
            let said = String::from_utf8_lossy(&start.stderr).into_owned();
            assert!(!start.status.success() && said.contains("exit status 4"), "{said}");
            let delete = bundle.command(&["delete", &id]).output().unwrap();
            assert!(delete.status.success(), "{}", String::from_utf8_lossy(&delete.stderr));
        }
        let text = std::fs::read_to_string(log).unwrap();
        assert_eq!(text.matches("poststop").count(), 5, "{text}");
    }
}

#[test]
fn hooks_run_for_containers_with_a_user_namespace_too() {
    let (mut bundle, log) = hooked("echo $kind >> $log");
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&log, mode).unwrap();
    assert_eq!(bundle.text(), "running\n");
    let text = std::fs::read_to_string(log).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), KINDS);
}

#[test]
fn a_hook_that_hangs_is_killed_and_so_is_the_container() {
    let mut bundle = Bundle::new("echo never");
    let mut slow = hook("/bin/sh", "x", "exec sleep 100");
    slow["timeout"] = json!(1);
    bundle.spec["hooks"] = json!({"createRuntime": [slow]});
    let before = std::time::Instant::now();
    let refusal = bundle.refusal();
    assert!(
        refusal.contains("error running createRuntime hook #0: did not end within"),
        "{refusal}"
    );
    assert!(before.elapsed().as_secs() < 20);
}

#[test]
fn a_hook_in_the_container_has_its_environment_and_its_filter() {
    let mut bundle = Bundle::new("echo running");
    bundle.spec["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
    let script = "test \"$ONE $HOME\" = 'two /root'";
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
    bundle.spec["hooks"] = json!({"startContainer": [hook]});
    assert_eq!(bundle.text(), "running\n");
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}]
    });
    bundle.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    let hook = json!({"path": "/bin/mkdir", "args": ["mkdir", "/tmp/made"]});
    bundle.spec["hooks"] = json!({"startContainer": [hook]});
    for no_new_privileges in [true, false] {
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let refusal = bundle.refusal();
        let expected = "error running startContainer hook #0: signal: bad system call";
        assert!(refusal.contains(expected), "{refusal}");
    }
    assert!(!bundle.image().join("tmp/made").exists());
}
