//! Scopes of systemd.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::bundle::{Container, read};
use crate::fixture::cgroup_root;

/// A container in `berth-units.slice`, its unit's name and its cgroup.
fn scope(name: &str, change: impl FnOnce(&mut Value)) -> (Container, String, PathBuf) {
    let path = format!("berth-units.slice:test:{name}");
    let container = Container::new(name, "sleep 1000", |spec| {
        spec["linux"]["cgroupsPath"] = json!(path);
        change(spec);
    });
    let unit = format!("test-{name}.scope");
    let cgroup = cgroup_root().join("berth.slice/berth-units.slice").join(&unit);
    (container.by_systemd(), unit, cgroup)
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", unit, "--value", "-p", property])
}

#[test]
fn systemd_knows_the_limits_keeps_them_and_forgets_the_unit() {
    let (container, unit, cgroup) = scope("limits", |spec| {
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20, "swap": 64 << 20},
            "cpu": {"shares": 512, "quota": 12345, "cpus": "0"},
            "pids": {"limit": 20},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}],
        });
        spec["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "7"});
    });
    let container = container.start();
    let properties = [
        ("MemoryMax", "67108864"),
        ("MemorySwapMax", "0"),
        ("CPUWeight", "59"),
        ("CPUQuotaPerSecUSec", "130ms"),
        ("AllowedCPUs", "0"),
        ("TasksMax", "20"),
        ("TimeoutStopUSec", "7s"),
        ("Delegate", "yes"),
        ("Slice", "berth-units.slice"),
        ("ActiveState", "active"),
    ];
    for (property, value) in properties {
        assert_eq!(show(&unit, property), value, "{property}");
    }
    let files =
        || ["memory.max", "cpu.max", "pids.max", "hugetlb.2MB.max"].map(|name| read(&cgroup, name));
    assert_eq!(files(), ["67108864", "13000 100000", "20", "2097152"]);
    assert_eq!(read(&cgroup, "cgroup.procs").lines().count(), 1, "nobody else is in it");

    let options = ["--memory", "128M", "--memory-swap", "128M", "--pids-limit", "30"];
    container.tell(&[&["update"], &options[..], &[container.id.as_str()]].concat());
    assert_eq!(show(&unit, "MemoryMax"), (128 << 20).to_string());
    systemctl(&["daemon-reload"]);
    assert_eq!(files(), ["134217728", "13000 100000", "30", "2097152"]);

    container.tell(&["kill", &container.id, "KILL"]);
    container.tell(&["delete", "--force", &container.id]);
    assert_eq!(show(&unit, "LoadState"), "not-found");
    assert!(!cgroup.exists());
}

#[test]
fn a_scope_for_a_single_process_starts_with_it() {
    let (container, _, cgroup) = scope("single", |spec| {
        spec["linux"]["resources"] = json!({"pids": {"limit": 1}});
        spec["process"]["args"] = json!(["sleep", "1000"]);
    });
    let container = container.start();
    assert_eq!(read(&cgroup, "pids.max"), "1");
    assert_eq!(read(&cgroup, "pids.current"), "1");
    assert_eq!(container.status(), "running");
}

#[test]
fn what_systemd_refuses_is_said_and_leaves_nothing() {
    for (annotation, value, reason) in [
        ("org.systemd.property.NoSuchProperty", "1", "NoSuchProperty"),
        ("org.systemd.property.MemoryMax", "wrong", "annotations[org.systemd.property.MemoryMax]"),
    ] {
        let (container, unit, cgroup) =
            scope("refused", |spec| spec["annotations"] = json!({annotation: value}));
        let errors = container.try_start().unwrap_err();
        assert!(errors.contains(reason), "{errors}");
        assert_eq!(show(&unit, "LoadState"), "not-found");
        assert!(!cgroup.exists());
    }
}

/// The first process of a frozen one would never run, and nobody would be told.
#[test]
fn a_scope_whose_cgroup_is_frozen_or_in_use_already_takes_no_container() {
    let (container, unit, cgroup) = scope("taken", |_| {});
    fs::create_dir_all(&cgroup).unwrap();
    let freeze = |frozen: &str| fs::write(cgroup.join("cgroup.freeze"), frozen).unwrap();
    freeze("1");
    assert!(container.try_start().unwrap_err().contains("container's cgroup unexpectedly frozen"));
    freeze("0");
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(cgroup.join("cgroup.procs"), other.id().to_string()).unwrap();
    assert!(container.try_start().unwrap_err().contains("container's cgroup is not empty: "));
    assert!(other.try_wait().unwrap().is_none(), "it is left alone");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(show(&unit, "LoadState"), "not-found");
    fs::remove_dir(&cgroup).unwrap();
}

#[test]
fn without_systemds_own_socket_the_bus_is_asked() {
    let (container, unit, cgroup) = scope("bus", |spec| {
        spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    });
    // A mount namespace in which nobody listens there.
    let hidden = |arguments: &[&str]| {
        let inner = container.command(arguments);
        let mut command = Command::new("unshare");
        let script = "mount --bind /dev/null /run/systemd/private && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(inner.get_program());
        command.args(inner.get_args()).stdin(std::process::Stdio::null());
        let status = command.stdout(std::process::Stdio::null()).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    let bundle = container.path("");
    hidden(&["run", "-d", "--bundle", bundle.to_str().unwrap(), &container.id]);
    assert_eq!(show(&unit, "MemoryMax"), (64 << 20).to_string());
    hidden(&["delete", "--force", &container.id]);
    assert_eq!(show(&unit, "LoadState"), "not-found");
    assert!(!cgroup.exists());
}
