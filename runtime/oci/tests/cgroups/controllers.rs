//! Limits in force, changed, and reached.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::bundle::{Container, wait_for};

fn limited(name: &str, script: &str, resources: Value) -> Container {
    Container::new(name, script, |spec| spec["linux"]["resources"] = resources)
}

#[test]
fn an_update_changes_what_it_speaks_of_and_a_refused_one_nothing() {
    let resources = json!({
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
        "cpu": {"shares": 1024, "quota": 50000, "period": 100_000},
        "pids": {"limit": 20},
    });
    let container = limited("update", "sleep 1000", resources).start();
    let update = |arguments: &[&str]| {
        container.tell(&[&["update"], arguments, &[container.id.as_str()]].concat())
    };
    let files = || {
        ["memory.max", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max"]
            .map(|name| container.file(name))
    };
    assert_eq!(files(), ["67108864", "0", "100", "50000 100000", "20"]);
    update(&["--cpu-quota", "20000", "--pids-limit", "30"]);
    assert_eq!(files(), ["67108864", "0", "100", "20000 100000", "30"]);
    update(&["--memory", "96M", "--memory-swap", "128M", "--cpu-share", "2"]);
    assert_eq!(files(), ["100663296", "33554432", "1", "20000 100000", "30"]);
    // What an earlier update set stays.
    update(&["--memory", "-1"]);
    assert_eq!(files(), ["max", "max", "1", "20000 100000", "30"]);
    update(&["--cpu-idle", "1"]);
    assert_eq!(container.file("cpu.idle"), "1");
    let resources = container.path("resources.json");
    let shown = || ["cpu.idle", "cpu.weight"].map(|name| container.file(name));
    // Of idle and a weight the later word counts.
    update(&["--cpu-share", "2"]);
    assert_eq!(shown(), ["0", "1"]);
    fs::write(&resources, json!({"unified": {"cpu.weight": "8"}}).to_string()).unwrap();
    update(&["-r", resources.to_str().unwrap()]);
    assert_eq!(shown(), ["0", "8"]);
    update(&["--cpu-idle", "1"]);
    assert_eq!(container.file("cpu.idle"), "1");
    update(&["--cpu-idle", "0"]);

    let text = json!({"pids": {"limit": 5}, "memory": {"limit": 4096, "checkBeforeUpdate": true}});
    fs::write(&resources, text.to_string()).unwrap();
    let refused =
        container.ask(&["update", "-r", resources.to_str().unwrap(), container.id.as_str()]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.contains("linux.resources.memory.limit"), "{errors}");
    let burst =
        container.ask(&["update", "--pids-limit", "6", "--cpu-burst", "900000", &container.id]);
    let errors = String::from_utf8_lossy(&burst.stderr).into_owned();
    assert!(errors.contains("linux.resources.cpu.burst"), "{errors}");
    assert_eq!(container.file("pids.max"), "30", "as before");
}

#[test]
fn a_deadline_on_few_processors_is_refused_and_both_fields_are_named() {
    let container = Container::new("deadline", "sleep 1000", |spec| {
        spec["linux"]["resources"] = json!({"cpu": {"cpus": "0"}});
        spec["process"]["scheduler"] = json!({
            "policy": "SCHED_DEADLINE", "runtime": 42000, "deadline": 1_000_000, "period": 1_000_000,
        });
    });
    let refusal = container.try_start().unwrap_err();
    for field in ["process.scheduler", "linux.resources.cpu.cpus"] {
        assert!(refusal.contains(field), "{refusal}");
    }
}

#[test]
fn no_processes_are_a_limit_in_specifications_that_say_so() {
    for (version, limit) in [("1.2.1", "max"), ("1.3.0", "1")] {
        let container = Container::new("zero", "sleep 1000", |spec| {
            spec["ociVersion"] = json!(version);
            spec["linux"]["resources"] = json!({"pids": {"limit": 0}});
        });
        let container = container.start();
        assert_eq!(container.file("pids.max"), limit, "{version}");
        container.tell(&["update", "--pids-limit", "7", &container.id]);
        container.tell(&["update", "--pids-limit", "0", &container.id]);
        let updated = if limit == "max" { "7" } else { limit };
        assert_eq!(container.file("pids.max"), updated, "{version}");
    }
}

#[test]
fn a_kill_for_want_of_memory_is_an_event_and_takes_the_group_where_asked() {
    for (group, survives) in [("0", true), ("1", false)] {
        let resources = json!({
            "memory": {"limit": 24 << 20, "swap": 24 << 20},
            "unified": {"memory.oom.group": group},
        });
        let container = limited("oom", "sleep 1000", resources).start();
        let events = container
            .command(&["events", "--interval", "1h", &container.id])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let dd = ["exec", &container.id, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
        let code = container.ask(&dd).status.code();
        assert_eq!(code, Some(137));
        assert_eq!(container.status(), if survives { "running" } else { "stopped" });
        container.tell(&["delete", "--force", &container.id]);
        let output = events.wait_with_output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let expected = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}", container.id);
        // The kernel counts the processes of a group one after the other.
        assert!(!lines.is_empty() && lines.lines().all(|line| line == expected), "{lines}");
        assert!(lines.lines().count() <= if survives { 1 } else { 2 }, "{lines}");
    }
}

#[test]
fn a_fork_bomb_stays_within_its_limit() {
    // The shell that is refused a fork ends.
    let script = "sh -c 'while :; do sleep 1000 & done' 2> /dev/null; exec sleep 1000";
    let container = limited("bomb", script, json!({"pids": {"limit": 10}})).start();
    let refusals = || container.file("pids.events").trim_start_matches("max ").parse().unwrap_or(0);
    wait_for("refused forks", || refusals() > 0u64);
    assert!(container.file("pids.current").parse::<u32>().unwrap() <= 10);
    let stats: Value =
        serde_json::from_str(&container.tell(&["events", "--stats", &container.id])).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 10);
}

#[test]
fn a_parent_with_processes_of_its_own_has_no_controllers_to_give() {
    let holder = limited("holder", "sleep 1000", json!({})).start();
    let path = format!("{}/{}/inner", crate::bundle::parent(), holder.id);
    let container = Container::new("inner", "true", |spec| {
        spec["linux"]["cgroupsPath"] = json!(path);
        spec["linux"]["resources"] = json!({"memory": {"limit": 1 << 26}});
    });
    let errors = container.try_start().unwrap_err();
    assert!(errors.contains("linux.resources.memory.limit"), "{errors}");
    assert!(!container.cgroup().exists());
    assert_eq!(holder.file("cgroup.type"), "domain", "it is not made threaded either");
}

#[test]
fn a_threaded_cgroup_is_refused() {
    let holder = limited("threads", "sleep 1000", json!({})).start();
    let inner = holder.cgroup().join("threaded");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("cgroup.type"), "threaded").unwrap();
    let path = format!("{}/{}/threaded", crate::bundle::parent(), holder.id);
    let change = |spec: &mut Value| spec["linux"]["cgroupsPath"] = json!(path);
    let container = Container::new("threaded", "true", change);
    let errors = container.try_start().unwrap_err();
    assert!(errors.contains("threaded mode"), "{errors}");
    assert!(inner.exists());
    fs::remove_dir(&inner).unwrap();
}

#[test]
fn a_user_namespace_s_limits_are_those_of_its_real_cgroup_and_out_of_its_reach() {
    let script = "(echo 0 > /sys/fs/cgroup/cgroup.procs) 2> /said; \
                  for file in memory.max pids.max; do \
                  (echo max > /sys/fs/cgroup/$file) 2>> /said; done; \
                  mkdir /sys/fs/cgroup/own 2>> /said; cat /sys/fs/cgroup/memory.max >> /said; \
                  exec sleep 1000";
    let container = Container::new("mapped", script, |spec| {
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        spec["linux"]["resources"] = json!({"memory": {"limit": 48 << 20}, "pids": {"limit": 17}});
    });
    for path in [container.path(""), container.path("rootfs")] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(path, mode).unwrap();
    }
    let container = container.start();
    // Where the kernel says that its first process is, whoever was asked to put it there.
    let state: Value = serde_json::from_str(&container.tell(&["state", &container.id])).unwrap();
    let list = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"])).unwrap();
    let real = list.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let real = crate::fixture::cgroup_root().join(real);
    assert_eq!(real, container.cgroup());
    wait_for("attempts", || container.text("said").contains("50331648"));
    let said = container.text("said");
    assert_eq!(said.matches("Read-only file system").count(), 4, "{said}");
    for (file, value) in [("memory.max", "50331648"), ("pids.max", "17")] {
        assert_eq!(crate::bundle::read(&real, file), value, "{file}: {said}");
    }
    let mapped = fs::read_to_string(format!("/proc/{}/uid_map", state["pid"])).unwrap();
    assert!(mapped.split_whitespace().eq(["0", "200000", "65536"]), "{mapped}");
}
