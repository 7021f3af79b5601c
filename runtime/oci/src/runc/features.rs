//! `features`: what this runtime offers, for callers that choose by it. OCI runtime spec, `features.md`.
//!
//! What can be asked of the code is asked: the seccomp part lists what the compiler takes.

use lexopt::Parser;
use oci_spec::runtime::Process;
use serde_json::{Value, json};

use super::state::print_json;
use super::{Context, Result, arguments};
use crate::seccomp;

/// The version of the specification that is followed.
pub(super) const SPEC_VERSION: &str = "1.3.0";

pub(super) const USAGE: &str = "features";

const HOOKS: &[&str] =
    &["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
    "newinstance",
];

const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
const ARCHITECTURES: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];
const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

const MEMORY_MODES: &[&str] = &[
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];
const MEMORY_FLAGS: &[&str] =
    &["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// In the order of their numbers: capabilities(7).
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Prints what is offered.
pub(super) fn features(_context: &Context, parser: &mut Parser) -> Result<u8> {
    arguments::collect(parser, |flag, _| Err(arguments::unknown(flag)))?;
    print_json(&offered());
    Ok(0)
}

fn offered() -> Value {
    let enabled = |enabled: bool| json!({"enabled": enabled});
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": HOOKS,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": CAPABILITIES,
            "cgroup": {
                "v1": false, "v2": true, "systemd": true, "systemdUser": false, "rdma": true
            },
            "seccomp": {
                "enabled": true,
                "actions": taken(ACTIONS, action),
                "operators": taken(OPERATORS, operator),
                "archs": taken(ARCHITECTURES, |arch| {
                    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch]})
                }),
                "knownFlags": FLAGS,
                "supportedFlags": taken(FLAGS, |flag| {
                    json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": [flag]})
                })
            },
            "apparmor": enabled(labels_are_taken("apparmorProfile")),
            "selinux": enabled(labels_are_taken("selinuxLabel")),
            "intelRdt": enabled(false),
            "memoryPolicy": {
                "modes": taken_memory_policies(MEMORY_MODES, |mode| json!({"mode": mode})),
                "flags": taken_memory_policies(MEMORY_FLAGS, |flag| {
                    json!({"mode": "MPOL_BIND", "flags": [flag]})
                })
            },
            "mountExtensions": {"idmap": enabled(true)},
            "netDevices": enabled(true)
        },
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "false"},
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."]
    })
}

fn action(action: &str) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": "/listener",
        "syscalls": [{"names": ["read"], "action": action}]
    })
}

fn operator(operator: &str) -> Value {
    let argument = json!({"index": 0, "value": 1, "valueTwo": 1, "op": operator});
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [argument]}]
    })
}

/// Those of a list whose profile the compiler takes.
fn taken<'a>(list: &[&'a str], profile: impl Fn(&str) -> Value) -> Vec<&'a str> {
    let compiles = |one: &&&str| {
        let profile = crate::spec::typed(&profile(one));
        profile.is_ok_and(|profile| seccomp::compile(&profile).is_ok())
    };
    list.iter().filter(compiles).copied().collect()
}

/// Those of a list whose memory policy can be planned, with nodes or without.
fn taken_memory_policies<'a>(list: &[&'a str], policy: impl Fn(&str) -> Value) -> Vec<&'a str> {
    let process = crate::spec::read_process(json!({"cwd": "/", "args": ["a"]}));
    let Ok((process, _)) = process else { return Vec::new() };
    let planned = |mut policy: Value, nodes: &str| {
        policy["nodes"] = nodes.into();
        let linux = crate::spec::typed(&json!({"memoryPolicy": policy}));
        linux
            .is_ok_and(|linux| crate::container::plan::plan_process(&process, Some(&linux)).is_ok())
    };
    let taken = |one: &&&str| ["", "0"].into_iter().any(|nodes| planned(policy(one), nodes));
    list.iter().filter(taken).copied().collect()
}

fn process(value: &Value) -> serde_json::Result<Process> {
    let text = value.to_string();
    let mut parser = serde_json::Deserializer::from_slice(text.as_bytes());
    crate::spec::read_process(&mut parser).map(|(process, _)| process)
}

/// Whether a process with a label can be planned.
fn labels_are_taken(field: &str) -> bool {
    let mut process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"]});
    process[field] = "x".into();
    let process = self::process(&process);
    process.is_ok_and(|process| crate::container::plan::plan_process(&process, None).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::mount_options;

    #[test]
    fn every_mount_option_that_is_named_is_understood() {
        // Those that the file system's superblock takes as its own.
        let superblock = ["dirsync", "lazytime", "mand", "nolazytime", "sync"];
        for option in MOUNT_OPTIONS {
            let parsed = mount_options::parse("mounts", &[(*option).to_owned()]).unwrap();
            assert_eq!(!parsed.data.is_empty(), superblock.contains(option), "{option}");
        }
    }

    #[test]
    fn what_the_compiler_takes_is_offered_and_nothing_else() {
        let offered = offered();
        let seccomp = &offered["linux"]["seccomp"];
        let list = |name: &str| {
            let values = seccomp[name].as_array().unwrap().iter();
            values.map(|value| value.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(list("operators"), OPERATORS);
        assert_eq!(list("archs"), ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]);
        let memory = &offered["linux"]["memoryPolicy"];
        assert_eq!(memory, &json!({"modes": MEMORY_MODES, "flags": MEMORY_FLAGS}));
        assert!(
            list("actions").len() == ACTIONS.len() && list("supportedFlags").len() == FLAGS.len()
        );
    }

    #[test]
    fn the_capabilities_are_those_of_the_specification() {
        for name in CAPABILITIES {
            let parsed: Result<oci_spec::runtime::Capability, _> =
                serde_json::from_value((*name).into());
            assert!(parsed.is_ok(), "{name}");
        }
    }
}
