//! What every host can do: tracking, freezing, killing, the device filter, refusals.

use std::fs;

use serde_json::{Value, json};

use crate::bundle::{Container, first_disk, parent, read, wait_for};
use crate::fixture::cgroup_root;

const COUNTING: &str = "n=0; while :; do n=$((n+1)); echo $n > /tmp/n; done";

#[test]
fn a_paused_container_stands_still_and_a_resumed_one_goes_on() {
    let container = Container::new("pause", COUNTING, |_| {}).start();
    let counted = || container.text("tmp/n");
    wait_for("counting", || !counted().is_empty());
    container.tell(&["pause", &container.id]);
    assert_eq!(container.status(), "paused");
    assert_eq!(container.file("cgroup.freeze"), "1");
    let before = counted();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(counted(), before);
    let again = container.ask(&["pause", &container.id]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("not running or created"));
    container.tell(&["resume", &container.id]);
    assert_eq!(container.status(), "running");
    wait_for("counting again", || counted() != before);
    assert!(!container.ask(&["resume", &container.id]).status.success());
}

#[test]
fn a_paused_container_can_be_killed_and_deleted() {
    let container = Container::new("frozen", "sleep 1000", |_| {}).start();
    container.tell(&["pause", &container.id]);
    container.tell(&["delete", "--force", &container.id]);
    assert!(!container.cgroup().exists());
}

#[test]
fn ps_lists_processes_of_the_cgroups_below_as_well() {
    let script = "mkdir /sys/fs/cgroup/below; sleep 1000 & \
                  echo $! > /sys/fs/cgroup/below/cgroup.procs; sleep 1001";
    let writable = |spec: &mut Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").unwrap();
        cgroup["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
    };
    let container = Container::new("ps", script, writable).start();
    wait_for("a cgroup below", || {
        !read(&container.cgroup().join("below"), "cgroup.procs").is_empty()
    });
    let pids: Vec<u32> =
        serde_json::from_str(&container.tell(&["ps", "-f", "json", &container.id])).unwrap();
    assert_eq!(pids.len(), 2, "{pids:?}");
    let table = container.tell(&["ps", &container.id, "-o", "pid,args"]);
    assert!(table.starts_with("  ") || table.starts_with("PID"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    container.tell(&["kill", "--all", &container.id, "KILL"]);
    // The cgroup is empty a moment before its processes count as ended.
    wait_for("its end", || container.status() == "stopped");
    container.tell(&["delete", &container.id]);
    assert!(!container.cgroup().exists(), "the cgroup below is removed too");
}

#[test]
fn the_container_sees_its_own_cgroup_as_the_root_and_cannot_write_to_it() {
    let script = "cat /proc/self/cgroup > /tmp/own; \
                  (echo 0 > /sys/fs/cgroup/cgroup.procs) 2> /tmp/refused; sleep 1000";
    let container = Container::new("view", script, |_| {}).start();
    wait_for("a refusal", || !container.text("tmp/refused").is_empty());
    assert!(container.text("tmp/own").lines().any(|line| line == "0::/"));
    assert!(container.text("tmp/refused").contains("Read-only file system"));
    // And it is where it was to be: seen from outside.
    let pid = container.file("cgroup.procs").lines().next().unwrap().to_owned();
    let placed = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let expected = format!("0::{}/{}", parent(), container.id);
    assert!(placed.lines().any(|line| line == expected), "{placed}");
}

#[test]
fn a_further_process_follows_the_first_one_that_has_moved() {
    let elsewhere = format!("{}/elsewhere", parent());
    let script = format!(
        "mkdir -p /sys/fs/cgroup{elsewhere}; \
         echo 0 > /sys/fs/cgroup{elsewhere}/cgroup.procs && echo yes > /tmp/moved; \
         exec sleep 1000"
    );
    let container = Container::new("moved", &script, |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        let mounts = spec["mounts"].as_array_mut().unwrap();
        let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").unwrap();
        cgroup["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
    })
    .start();
    wait_for("a move", || !container.text("tmp/moved").is_empty());
    fs::remove_dir(container.cgroup()).unwrap();
    let placed = container.tell(&["exec", &container.id, "cat", "/proc/self/cgroup"]);
    assert!(placed.lines().any(|line| line == format!("0::{elsewhere}")), "{placed}");
    let outside = container.ask(&["exec", "--cgroup", "..", &container.id, "true"]);
    assert!(!outside.status.success());
    container.tell(&["delete", "--force", &container.id]);
    let left = cgroup_root().join(elsewhere.trim_start_matches('/'));
    wait_for("its end", || fs::remove_dir(&left).is_ok());
}

#[test]
fn a_user_namespace_s_user_owns_a_cgroup_that_it_may_write_to_and_no_other() {
    const FIRST: u32 = 200_000;
    let start = |name: &str, mount: &[&str], own_view: bool| {
        let script = "mkdir /sys/fs/cgroup/below 2> /said; \
                      echo 0 > /sys/fs/cgroup/below/cgroup.procs 2>> /said; echo done >> /said; \
                      exec sleep 1000";
        let container = Container::new(name, script, |spec| {
            let map = json!([{"containerID": 0, "hostID": FIRST, "size": 65_536}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| own_view || namespace["type"] != "cgroup");
            namespaces.push(json!({"type": "user"}));
            let mounts = spec["mounts"].as_array_mut().unwrap();
            let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").unwrap();
            cgroup["options"] = json!(mount);
        });
        for path in [container.path(""), container.path("rootfs")] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(path, mode).unwrap();
        }
        let container = container.start();
        wait_for("an attempt", || container.text("said").contains("done"));
        container
    };
    let owner = |container: &Container, file: &str| {
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(container.cgroup().join(file)).unwrap())
    };
    let given = start("given", &["nosuid", "noexec", "nodev"], true);
    for (file, uid) in
        [("", FIRST), ("cgroup.procs", FIRST), ("cgroup.kill", 0), ("cgroup.freeze", 0)]
    {
        assert_eq!(owner(&given, file), uid, "{file:?}");
    }
    assert_eq!(given.text("said"), "done\n");
    assert!(!given.file("below/cgroup.procs").is_empty(), "it has moved to a cgroup of its own");
    given.tell(&["delete", "--force", &given.id]);
    assert!(!given.cgroup().exists());
    for (name, mount, own_view) in
        [("kept", &["nosuid", "ro"][..], true), ("seen", &["nosuid", "nodev"][..], false)]
    {
        let kept = start(name, mount, own_view);
        assert_eq!((owner(&kept, ""), owner(&kept, "cgroup.procs")), (0, 0), "{name}");
    }
}

#[test]
fn only_listed_devices_open_and_an_update_replaces_the_list() {
    let (major, minor) = first_disk();
    let script = format!(
        "mknod /tmp/disk b {major} {minor}; while :; do \
           r=no w=no; (: < /tmp/disk) 2> /dev/null && r=yes; (: >> /tmp/disk) 2> /dev/null && w=yes; \
           echo $r $w > /tmp/new; mv /tmp/new /tmp/seen; sleep 0.02; done"
    );
    let rule = |access: &str| {
        json!([{"allow": false, "access": "rwm"},
               {"allow": true, "type": "b", "major": major, "minor": minor, "access": access}])
    };
    let change = |spec: &mut Value| {
        spec["linux"]["resources"]["devices"] = rule("r");
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/tmp");
    };
    let container = Container::new("devices", &script, change).start();
    let sees =
        |expected: &str| wait_for(expected, || container.text("tmp/seen").trim() == expected);
    sees("yes no");
    let resources = container.path("resources.json");
    let update = |devices: Value| {
        fs::write(&resources, json!({ "devices": devices }).to_string()).unwrap();
        container.tell(&["update", "--resources", resources.to_str().unwrap(), &container.id]);
    };
    update(json!([{"allow": false, "access": "rwm"}]));
    sees("no no");
    update(json!([{"allow": true, "access": "rwm"}]));
    sees("yes yes");
}

#[test]
fn a_limit_that_nobody_enforces_is_refused_by_name_and_nothing_is_left() {
    let change =
        |spec: &mut Value| spec["linux"]["resources"]["unified"] = json!({"nosuch.max": "1"});
    let container = Container::new("refused", "true", change);
    let errors = container.try_start().unwrap_err();
    assert!(errors.contains("linux.resources.unified[nosuch.max]"), "{errors}");
    assert!(errors.contains("can't be set: controller"), "{errors}");
    assert!(!container.cgroup().exists());
    assert!(!container.ask(&["state", &container.id]).status.success());
}

#[test]
fn a_period_that_no_scheduler_keeps_is_refused() {
    // Too short for the kernel where it has the controller, and not enforced where it has not.
    let change = |spec: &mut Value| spec["linux"]["resources"]["cpu"] = json!({"period": 100});
    let container = Container::new("period", "true", change);
    let errors = container.try_start().unwrap_err();
    assert!(errors.contains("linux.resources.cpu.quota"), "{errors}");
    assert!(!container.cgroup().exists());
}

#[test]
fn a_cgroup_that_holds_somebody_else_or_is_frozen_is_refused() {
    let first = Container::new("first", "sleep 1000", |_| {}).start();
    let path = format!("{}/{}", parent(), first.id);
    let shared = |spec: &mut Value| spec["linux"]["cgroupsPath"] = json!(path);
    let second = Container::new("second", "true", shared);
    assert!(second.try_start().unwrap_err().contains("container's cgroup is not empty: "));
    assert_eq!(first.status(), "running", "who was there first stays");
    let own = cgroup_root().join(parent().trim_start_matches('/')).join("frozen");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("cgroup.freeze"), "1").unwrap();
    let frozen = format!("{}/frozen", parent());
    let third = Container::new("third", "true", |spec| {
        spec["linux"]["cgroupsPath"] = json!(frozen);
    });
    assert!(third.try_start().unwrap_err().contains("container's cgroup unexpectedly frozen"));
    fs::remove_dir(&own).unwrap();
}

#[test]
fn events_have_counters_and_end_with_the_container() {
    let container = Container::new("events", "sleep 1000", |_| {}).start();
    let stats: Value =
        serde_json::from_str(&container.tell(&["events", "--stats", &container.id])).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(container.id)));
    assert_eq!(stats["data"]["pids"]["current"], 1);
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    let events = container
        .command(&["events", "--interval", "20ms", &container.id])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    container.tell(&["kill", &container.id, "KILL"]);
    let output = events.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().all(|line| line.starts_with(r#"{"type":"stats","id":""#)), "{lines}");
    assert!(lines.lines().count() >= 2, "{lines}");
}
