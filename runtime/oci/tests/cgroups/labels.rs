//! AppArmor profiles, where the kernel has them (row A4): on the first process and on further ones, and
//! refused as long as the container is made.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::bundle::{Container, wait_for};

const NAME: &str = "berth-test-label";
/// `apparmor_parser -QKS` of the following, compressed:
///
/// ```text
/// profile berth-test-label flags=(attach_disconnected) {
///   file, capability, network, mount, umount, pivot_root, signal, ptrace, unix,
///   deny /forbidden r,
/// }
/// ```
const PROFILE: &str = concat!(
    "H4sIAAAAAAACA+1TQU7DMBCcOHaSNjTQWyXeUIkD4sZXQC44tFLURImFKnGAI3wC/tKPwXoTQ1vlUKGqp441WUe7Xt",
    "vjXZng2dTNolxCKAAyQVWX+aIwiNUYM1Pb+dSaxk4LPTMFZIS80E8NYkHR+PskMkWl7fy+dQvpHN+EnTgZ40FXzc01",
    "ZehxJ7SB1o+5RvThznN5t7olMwHUO7AsbV6YlQsM4HZwuIDH1/qV6efeSlz9+nb5uX7huLgn33/wJlorevMF3T2dDb",
    "u5j4uIik9CMhCHxAExZa+E2MoX8vqQIltuDhbSxwcpr+4bh4Hgkx8PipUBzjBidbLu/VoMcI4T9ke4VSeC/hVpOSQd",
    "U1I4I40Ppafr2GNWiuDuAd/DddOoqx509ZKdHn9/JD9j1200KQYAAA==",
);

/// The directory of AppArmor's files.
fn files() -> PathBuf {
    let root = Path::new("/sys/kernel/security");
    if !root.join("apparmor").exists() {
        let mount =
            Command::new("mount").args(["-t", "securityfs", "securityfs"]).arg(root).status();
        assert!(mount.unwrap().success());
    }
    root.join("apparmor")
}

/// The profile, as long as this lives.
struct Loaded;

impl Loaded {
    fn new() -> Self {
        let packed = STANDARD.decode(PROFILE).unwrap();
        let mut policy = Vec::new();
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut policy).unwrap();
        fs::write(files().join(".replace"), policy).unwrap();
        Self
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = fs::write(files().join(".remove"), NAME);
    }
}

fn labelled(name: &str, script: &str, profile: &str, change: impl FnOnce(&mut Value)) -> Container {
    let container = Container::new(name, script, |spec| {
        spec["process"]["apparmorProfile"] = json!(profile);
        change(spec);
    });
    fs::write(container.path("rootfs/forbidden"), "seen").unwrap();
    container
}

/// Asserts that a container cannot be created and leaves nothing.
pub fn assert_refused(container: &Container, reason: &str) {
    let bundle = container.path("");
    let arguments = ["create", "--bundle", bundle.to_str().unwrap(), &container.id];
    // A container that is made after all would keep a pipe open.
    let told = fs::File::create(container.path("told")).unwrap();
    let mut command = container.command(&arguments);
    let status = command.stdout(Stdio::null()).stderr(told).status().unwrap();
    let errors = fs::read_to_string(container.path("told")).unwrap();
    assert!(!status.success() && errors.contains(reason), "{errors}");
    assert_eq!(fs::read_dir(container.path("state")).into_iter().flatten().count(), 0);
    assert!(!container.cgroup().exists());
}

#[test]
fn a_profile_confines_the_first_process_and_further_ones() {
    let _loaded = Loaded::new();
    let script = "cat /proc/self/attr/current > /label; cat /forbidden > /content; \
                  echo $? > /status; sleep 1000";
    let container = labelled("label", script, NAME, |_| {}).start();
    wait_for("end of the script", || container.text("status").ends_with('\n'));
    let own = format!("{NAME} (enforce)\n");
    let files = ["label", "content", "status"].map(|name| container.text(name));
    assert_eq!(files, [own.as_str(), "", "1\n"]);
    let exec =
        |command: &[&str]| container.ask(&[&["exec", container.id.as_str()], command].concat());
    assert_eq!(exec(&["cat", "/proc/self/attr/current"]).stdout, own.as_bytes());
    assert!(!exec(&["cat", "/forbidden"]).status.success());
    let unknown = container.ask(&["exec", "--apparmor", "berth-none", &container.id, "true"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("process.apparmorProfile"));
    let free =
        container.tell(&["exec", "--apparmor", "unconfined", &container.id, "cat", "/forbidden"]);
    assert_eq!(free, "seen");
}

#[test]
fn a_profile_that_is_not_there_and_a_false_proc_are_refused_with_nothing_left() {
    let _loaded = Loaded::new();
    assert_refused(&labelled("none", "true", "berth-none", |_| {}), "process.apparmorProfile");
    let fake = tempfile::tempdir().unwrap();
    for name in ["self/attr/apparmor", "1/attr/apparmor"] {
        fs::create_dir_all(fake.path().join(name)).unwrap();
        fs::write(fake.path().join(name).join("exec"), "").unwrap();
    }
    let bound = labelled("bound", "true", NAME, |spec| {
        let proc = spec["mounts"].as_array_mut().unwrap();
        let proc = proc.iter_mut().find(|mount| mount["destination"] == "/proc").unwrap();
        *proc = json!({"destination": "/proc", "type": "bind", "source": fake.path(), "options": ["bind"]});
    });
    assert_refused(&bound, "is no procfs");
    // Without a procfs in the container the kernel is told all the same.
    let image = labelled("image", "sleep 1000", NAME, |spec| {
        spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
        for list in ["maskedPaths", "readonlyPaths"] {
            spec["linux"].as_object_mut().unwrap().remove(list);
        }
    });
    fs::create_dir_all(image.path("rootfs/proc/self/attr/apparmor")).unwrap();
    fs::write(image.path("rootfs/proc/self/attr/apparmor/exec"), "").unwrap();
    let image = image.start();
    let state: Value = serde_json::from_str(&image.tell(&["state", &image.id])).unwrap();
    let label = fs::read_to_string(format!("/proc/{}/attr/current", state["pid"])).unwrap();
    assert_eq!(label, format!("{NAME} (enforce)\n"));
    assert_eq!(image.text("proc/self/attr/apparmor/exec"), "");
}
