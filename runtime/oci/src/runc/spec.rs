//! `spec`: a specification to begin with, in the form that people edit.

use lexopt::Parser;
use serde_json::{Value, json};

use super::arguments::{self, path, switch};
use super::error::During;
use super::features::SPEC_VERSION;
use super::{Context, Error, Result};

pub(super) const USAGE: &str = "spec [--bundle DIR] [--rootless]";

const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// Writes `config.json`, which must not exist.
pub(super) fn spec(_context: &Context, parser: &mut Parser) -> Result<u8> {
    let mut bundle = std::path::PathBuf::from(".");
    let mut rootless = false;
    arguments::collect(parser, |flag, parser| {
        match flag {
            "b" | "bundle" => bundle = path(parser)?,
            "rootless" => rootless = switch(parser)?,
            _ => return Err(arguments::unknown(flag)),
        }
        Ok(())
    })?;
    let mut config = example();
    if rootless {
        make_rootless(&mut config);
    }
    let file = bundle.join("config.json");
    // Plain strings and numbers: encoding cannot fail.
    let text = serde_json::to_string_pretty(&config).unwrap_or_default();
    let mut options = std::fs::OpenOptions::new();
    let opened = match options.write(true).create_new(true).open(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let reason = "exists already. Remove it first".to_owned();
            return Err(Error::File { path: file, reason });
        }
        opened => opened,
    };
    opened
        .and_then(|mut opened| std::io::Write::write_all(&mut opened, text.as_bytes()))
        .during(|| format!("write {}", file.display()))?;
    Ok(0)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    let mut mount = json!({"destination": destination, "type": kind, "source": source});
    if !options.is_empty() {
        mount["options"] = json!(options);
    }
    mount
}

fn mounts() -> Vec<Value> {
    let none = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [&none[..], more].concat();
    vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &with(&["mode=1777", "size=65536k"])),
        mount("/dev/mqueue", "mqueue", "mqueue", &none),
        mount("/sys", "sysfs", "sysfs", &with(&["ro"])),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &with(&["relatime", "ro"])),
    ]
}

fn example() -> Value {
    json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm"
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "berth",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"},
                {"type": "network"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"}
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY
        }
    })
}

/// What a user without privileges may have: the own ids, the host's network, no limits.
fn make_rootless(config: &mut Value) {
    let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    let linux = &mut config["linux"];
    linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
    linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    linux["namespaces"] =
        json!(["pid", "ipc", "uts", "mount", "cgroup", "user"].map(|kind| json!({"type": kind})));
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    let bound = ["rbind", "nosuid", "noexec", "nodev", "ro"];
    for one in config["mounts"].as_array_mut().into_iter().flatten() {
        match one["destination"].as_str() {
            Some("/dev/pts") => {
                let options = one["options"].as_array_mut();
                options.into_iter().for_each(|options| options.retain(|option| option != "gid=5"));
            }
            Some("/sys") => *one = mount("/sys", "none", "/sys", &bound),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_specifications() {
        let mut config = example();
        for _ in 0..2 {
            let text = serde_json::to_vec(&config).unwrap();
            let (spec, _) = crate::runc::bundle::parse("x".as_ref(), &text).unwrap();
            assert_eq!(spec.process().as_ref().unwrap().args().as_ref().unwrap(), &["sh"]);
            make_rootless(&mut config);
        }
        let options = config["mounts"][2]["options"].as_array().unwrap();
        assert!(!options.contains(&json!("gid=5")));
        assert!(config["linux"]["resources"].is_null());
    }
}
