//! SELinux labels, enforced by a small policy: on the first process, on further ones, and on what is
//! mounted.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::bundle::{Container, wait_for};
use crate::labels::assert_refused;

#[path = "../../../../tests/kit/src/selinux.rs"]
mod policy;

const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

fn label(path: &Path, context: &str) {
    let done = Command::new("chcon").args(["-R", context]).arg(path).status();
    assert!(done.unwrap().success());
}

/// The label of a file, as the kernel has it.
fn label_of(path: &Path) -> String {
    let mut value = vec![0; 256];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut value).unwrap();
    value.truncate(length);
    String::from_utf8(value).unwrap().trim_end_matches('\0').to_owned()
}

fn labelled(name: &str, script: &str, process: &str, mounts: &str) -> Container {
    policy::enforce();
    let container = Container::new(name, script, |spec| {
        spec["process"]["selinuxLabel"] = json!(process);
        spec["linux"]["mountLabel"] = json!(mounts);
    });
    fs::write(container.path("rootfs/foreign"), "seen").unwrap();
    label(&container.path("rootfs"), FILES);
    label(&container.path("rootfs/foreign"), &FILES.replace("c1,c2", "c1,c3"));
    container
}

#[test]
fn labels_are_on_processes_and_on_what_is_mounted() {
    let script = "cat /proc/1/attr/current > /label; cat /foreign > /content; \
                  echo $? > /status; echo > /dev/shm/made; echo > /done; sleep 1000";
    let container = labelled("selinux", script, PROCESS, FILES).start();
    wait_for("end of the script", || container.text("done").ends_with('\n'));
    assert_eq!(container.text("label").trim_end_matches('\0'), PROCESS);
    assert_eq!(["content", "status"].map(|name| container.text(name)), ["", "1\n"]);
    let state: Value = serde_json::from_str(&container.tell(&["state", &container.id])).unwrap();
    let root = Path::new("/proc").join(state["pid"].to_string()).join("root");
    for place in ["dev", "dev/null", "dev/pts/0", "dev/shm/made", "dev/mqueue"] {
        let path = root.join(place);
        // There is a terminal only for a while.
        if path.exists() {
            assert_eq!(label_of(&path), FILES, "{place}");
        }
    }
    let exec = |options: &[&str]| {
        let command = [options, &[container.id.as_str(), "cat", "/proc/self/attr/current"]];
        container.ask(&[&["exec"], command.concat().as_slice()].concat())
    };
    let told = |options: &[&str]| String::from_utf8(exec(options).stdout).unwrap();
    assert_eq!(told(&[]).trim_end_matches('\0'), PROCESS);
    let other = "system_u:system_r:other_t:s0:c1,c2";
    assert_eq!(told(&["--process-label", other]).trim_end_matches('\0'), other);
    let unknown = exec(&["--process-label", "system_u:system_r:none_t:s0"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("process.selinuxLabel"));
}

#[test]
fn labels_that_the_policy_does_not_know_are_refused_with_nothing_left() {
    let none = "system_u:system_r:none_t:s0";
    assert_refused(&labelled("none", "true", none, FILES), "process.selinuxLabel");
    assert_refused(&labelled("files", "true", PROCESS, none), "make tmpfs mount /dev");
}
