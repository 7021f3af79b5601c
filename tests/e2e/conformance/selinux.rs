//! SELinux labels of pods on a host that has SELinux, enforced by a small policy. These run in the VM; on a
//! host without SELinux they fail.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{apply, pod};
use crate::node::{Node, succeed, wait};

const FILES: &str = "system_u:object_r:container_file_t:s0";

/// A container that writes its label, and more, to a directory of the host.
fn writer(name: &str, script: &str, context: Value) -> Value {
    let script =
        format!("cat /proc/self/attr/current >> /out/{name}; echo >> /out/{name}; {script}");
    json!({
        "name": name, "image": crate::image::BUSYBOX, "command": ["sh", "-c", script],
        "securityContext": context,
        "volumeMounts": [
            {"name": "out", "mountPath": "/out"}, {"name": "shared", "mountPath": "/shared"},
            {"name": "map", "mountPath": "/map"},
        ],
    })
}

fn labels(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.trim_end_matches('\0').to_owned()).collect()
}

#[test]
fn pods_have_labels_of_their_own_and_reach_their_own_volumes_alone() {
    berth_testkit::selinux::enforce();
    let mut node = Node::start();
    let out = node.path("out");
    fs::create_dir(&out).unwrap();
    let foreign = out.join("foreign");
    fs::write(&foreign, "seen").unwrap();
    succeed(Command::new("chcon").args(["-R", FILES]).arg(&out));
    succeed(Command::new("chcon").arg(format!("{FILES}:c1022,c1023")).arg(&foreign));

    let volumes = json!([
        {"name": "out", "hostPath": {"path": out}}, {"name": "shared", "emptyDir": {}},
        {"name": "map", "configMap": {"name": "map"}},
    ]);
    let make = "echo x > /shared/x && echo x > /dev/shm/x && echo x > /x && cat /map/key > /out/key; \
                cat /out/foreign; echo $? > /out/refused; echo > /shared/done; exec sleep 1000";
    let read = "until [ -e /shared/done ]; do sleep 0.1; done; cat /shared/x /dev/shm/x > /out/read; \
                until [ -e /out/again ]; do sleep 0.1; done";
    let asked = json!({"seLinuxOptions": {"type": "other_t", "level": "s0:c5,c6"}});
    let mut own = pod("own", "", json!({"volumes": volumes, "restartPolicy": "Always"}));
    own["spec"]["containers"] =
        json!([writer("first", make, json!({})), writer("second", read, json!({}))]);
    let mut other = pod("other", "", json!({"volumes": volumes}));
    other["spec"]["containers"] = json!([
        writer("third", "exec sleep 1000", json!({})),
        writer("asked", "exec sleep 1000", asked),
        writer("free", "exec sleep 1000", json!({"privileged": true})),
    ]);
    // Ids of its own make no difference.
    let mut mapped = pod("mapped", "", json!({"volumes": volumes, "hostUsers": false}));
    let ids =
        "cat /proc/self/uid_map > /out/ids && echo x > /shared/x && cat /map/key > /out/mapped-key";
    mapped["spec"]["containers"] = json!([writer("mapped", ids, json!({}))]);
    let none = json!({"container": {"securityContext": {"seLinuxOptions": {"type": "none_t"}}}});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"},
        "data": {"key": "value"}});
    apply(&node, vec![map, own, other, mapped, pod("none", "true", none)]);

    let label = |name: &str| {
        let path = out.join(name);
        wait(name, || labels(&path).into_iter().next())
    };
    let first = label("first");
    assert!(first.starts_with("system_u:system_r:container_t:s0:c"), "{first}");
    assert_eq!(label("second"), first);
    assert_ne!(label("third"), first);
    assert_eq!(label("asked"), "system_u:system_r:other_t:s0:c5,c6");
    assert!(label("free").contains(":kernel_t:"));
    wait("the second container's reading", || {
        (fs::read_to_string(out.join("read")).ok()? == "x\nx\n").then_some(())
    });
    assert_eq!(fs::read_to_string(out.join("key")).unwrap(), "value");
    assert_eq!(fs::read_to_string(out.join("refused")).unwrap(), "1\n");
    let mapped = wait("the mapped pod's reading", || {
        let key = fs::read_to_string(out.join("mapped-key")).ok()?;
        (key == "value").then(|| fs::read_to_string(out.join("ids")).unwrap())
    });
    assert!(mapped.ends_with(" 65536\n") && !mapped.ends_with(" 0 65536\n"), "{mapped:?}");
    let waits = node.wait_pod("none", "refused", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|text| text.contains("process.selinuxLabel"))
    });
    assert_eq!(waits["status"]["phase"], "Pending");

    // What is made after a restart of the agent has the pod's level still.
    node.kill_agent();
    fs::write(out.join("again"), "").unwrap();
    node.up(&[]);
    wait("the container's next run", || {
        let all = labels(&out.join("second"));
        (all.len() >= 2).then(|| assert!(all.iter().all(|label| *label == first), "{all:?}"))
    });
    node.finish();
}
