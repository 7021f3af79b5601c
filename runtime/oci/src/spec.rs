//! Reading the part of a runtime specification that concerns Linux.
//!
//! The sections of other systems are passed over. Where the crate's own reading would link a regular
//! expression engine, a quarter of the executable, or spells a name otherwise than the specification,
//! fields are read here. OCI runtime spec, `config.md`.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use oci_spec::runtime::{
    Box as ConsoleSize, Capability, ExecCPUAffinity, Hooks, Linux, LinuxCapabilities,
    LinuxIOPriority, LinuxResources, LinuxSchedulerFlag, LinuxSchedulerPolicy, Mount, PosixRlimit,
    Process, Root, Scheduler, Spec, User,
};
use serde::de::{DeserializeOwned, Error, IntoDeserializer, value};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Deserializes a specification.
pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spec, D::Error> {
    let (spec, unknown) = read_leniently(deserializer)?;
    match unknown.first() {
        Some(name) => Err(D::Error::custom(format!("process.capabilities: {name:?} is unknown"))),
        None => Ok(spec),
    }
}

/// The same without what is no capability, whose names are returned: callers of the command line give
/// those of newer kernels, and are warned.
pub(crate) fn read_leniently<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<(Spec, Vec<String>), D::Error> {
    let fields = SpecFields::deserialize(deserializer)?;
    let unknown = fields.process.as_ref().map(ProcessFields::unknown_capabilities);
    let mut spec = Spec::from(fields);
    let version = spec.version().clone();
    let linux = spec.linux_mut().as_mut();
    if let Some(resources) = linux.and_then(|linux| linux.resources_mut().as_mut()) {
        settle_pids(&version, resources);
    }
    Ok((spec, unknown.unwrap_or_default()))
}

/// Before version 1.3 a limit of zero processes was no limit, as runc had it: it is what a field that
/// was left out came as. From then on it is a limit like others.
pub(crate) fn settle_pids(version: &str, resources: &mut LinuxResources) {
    let minor = version.strip_prefix("1.").and_then(|rest| rest.split('.').next()?.parse().ok());
    let is_before = minor.is_none_or(|minor: u32| minor < 3);
    if is_before && resources.pids().as_ref().is_some_and(|pids| pids.limit() == 0) {
        resources.set_pids(None);
    }
}

/// Deserializes the description of a process. Returns the names of unknown capabilities, too.
pub(crate) fn read_process<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<(Process, Vec<String>), D::Error> {
    let fields = ProcessFields::deserialize(deserializer)?;
    let unknown = fields.unknown_capabilities();
    Ok((Process::from(fields), unknown))
}

/// Reads a value as what it is to be, by way of its text: types that are read from text elsewhere would
/// else be compiled once more, to be read from values.
pub(crate) fn typed<T: DeserializeOwned>(value: &Value) -> serde_json::Result<T> {
    serde_json::from_slice(value.to_string().as_bytes())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecFields {
    #[serde(default, rename = "ociVersion")]
    version: String,
    root: Option<Root>,
    mounts: Option<Vec<Mount>>,
    process: Option<ProcessFields>,
    hostname: Option<String>,
    domainname: Option<String>,
    hooks: Option<Hooks>,
    annotations: Option<HashMap<String, String>>,
    linux: Option<Linux>,
}

impl From<SpecFields> for Spec {
    fn from(fields: SpecFields) -> Self {
        let mut spec = Self::default();
        spec.set_version(fields.version);
        spec.set_root(fields.root);
        spec.set_mounts(fields.mounts);
        spec.set_process(fields.process.map(Process::from));
        spec.set_hostname(fields.hostname);
        spec.set_domainname(fields.domainname);
        spec.set_hooks(fields.hooks);
        spec.set_annotations(fields.annotations);
        spec.set_linux(fields.linux);
        spec
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProcessFields {
    terminal: Option<bool>,
    console_size: Option<ConsoleSize>,
    #[serde(default)]
    user: User,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: PathBuf,
    capabilities: Option<CapabilityFields>,
    rlimits: Option<Vec<PosixRlimit>>,
    no_new_privileges: Option<bool>,
    apparmor_profile: Option<String>,
    oom_score_adj: Option<i32>,
    selinux_label: Option<String>,
    io_priority: Option<LinuxIOPriority>,
    scheduler: Option<SchedulerFields>,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Option<AffinityFields>,
}

impl ProcessFields {
    /// Each once, in order.
    fn unknown_capabilities(&self) -> Vec<String> {
        let names = self.capabilities.iter().flat_map(CapabilityFields::sets).flatten().flatten();
        let mut unknown: Vec<String> =
            names.filter(|name| capability(name).is_none()).cloned().collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }
}

#[derive(Deserialize)]
struct CapabilityFields {
    bounding: Option<Vec<String>>,
    effective: Option<Vec<String>>,
    inheritable: Option<Vec<String>>,
    permitted: Option<Vec<String>>,
    ambient: Option<Vec<String>>,
}

impl CapabilityFields {
    fn sets(&self) -> [Option<&Vec<String>>; 5] {
        [&self.bounding, &self.effective, &self.inheritable, &self.permitted, &self.ambient]
            .map(Option::as_ref)
    }
}

/// The capability of a name, where it has one.
pub(crate) fn capability(name: &str) -> Option<Capability> {
    let name: value::StrDeserializer<'_, value::Error> = name.into_deserializer();
    Capability::deserialize(name).ok()
}

impl From<CapabilityFields> for LinuxCapabilities {
    fn from(fields: CapabilityFields) -> Self {
        let known = |names: Option<&Vec<String>>| {
            names.map(|names| names.iter().filter_map(|name| capability(name)).collect())
        };
        let [bounding, effective, inheritable, permitted, ambient]: [Option<HashSet<Capability>>;
            5] = fields.sets().map(known);
        let mut sets = Self::default();
        sets.set_bounding(bounding)
            .set_effective(effective)
            .set_inheritable(inheritable)
            .set_permitted(permitted)
            .set_ambient(ambient);
        sets
    }
}

#[derive(Deserialize)]
struct SchedulerFields {
    policy: LinuxSchedulerPolicy,
    nice: Option<i32>,
    priority: Option<i32>,
    #[serde(default)]
    flags: Vec<SchedulerFlag>,
    runtime: Option<u64>,
    deadline: Option<u64>,
    period: Option<u64>,
}

/// Those of the specification, one of which the crate spells otherwise.
#[derive(Clone, Copy, Deserialize)]
enum SchedulerFlag {
    #[serde(rename = "SCHED_RESET_ON_FORK", alias = "SCHED_FLAG_RESET_ON_FORK")]
    ResetOnFork,
    #[serde(rename = "SCHED_FLAG_RECLAIM")]
    Reclaim,
    #[serde(rename = "SCHED_FLAG_DL_OVERRUN")]
    DeadlineOverrun,
    #[serde(rename = "SCHED_FLAG_KEEP_POLICY")]
    KeepPolicy,
    #[serde(rename = "SCHED_FLAG_KEEP_PARAMS")]
    KeepParams,
    #[serde(rename = "SCHED_FLAG_UTIL_CLAMP_MIN")]
    UtilClampMin,
    #[serde(rename = "SCHED_FLAG_UTIL_CLAMP_MAX")]
    UtilClampMax,
}

impl From<SchedulerFields> for Scheduler {
    fn from(fields: SchedulerFields) -> Self {
        use LinuxSchedulerFlag as F;
        let flag = |flag: SchedulerFlag| match flag {
            SchedulerFlag::ResetOnFork => F::SchedResetOnFork,
            SchedulerFlag::Reclaim => F::SchedFlagReclaim,
            SchedulerFlag::DeadlineOverrun => F::SchedFlagDLOverrun,
            SchedulerFlag::KeepPolicy => F::SchedFlagKeepPolicy,
            SchedulerFlag::KeepParams => F::SchedFlagKeepParams,
            SchedulerFlag::UtilClampMin => F::SchedFlagUtilClampMin,
            SchedulerFlag::UtilClampMax => F::SchedFlagUtilClampMax,
        };
        let mut scheduler = Self::default();
        scheduler.set_policy(fields.policy);
        scheduler.set_nice(fields.nice);
        scheduler.set_priority(fields.priority);
        scheduler.set_flags(Some(fields.flags.into_iter().map(flag).collect()));
        scheduler.set_runtime(fields.runtime);
        scheduler.set_deadline(fields.deadline);
        scheduler.set_period(fields.period);
        scheduler
    }
}

/// Read without the crate's check, which is the regular expression; the plan has its own.
#[derive(Deserialize)]
struct AffinityFields {
    initial: Option<String>,
    #[serde(rename = "final")]
    last: Option<String>,
}

impl From<AffinityFields> for ExecCPUAffinity {
    fn from(fields: AffinityFields) -> Self {
        let mut affinity = Self::default();
        affinity.set_initial(fields.initial);
        affinity.set_cpu_affinity_final(fields.last);
        affinity
    }
}

impl From<ProcessFields> for Process {
    fn from(fields: ProcessFields) -> Self {
        let mut process = Self::default();
        process.set_terminal(fields.terminal);
        process.set_console_size(fields.console_size);
        process.set_user(fields.user);
        process.set_args(fields.args);
        process.set_command_line(None);
        process.set_env(fields.env);
        process.set_cwd(fields.cwd);
        process.set_capabilities(fields.capabilities.map(LinuxCapabilities::from));
        process.set_rlimits(fields.rlimits);
        process.set_no_new_privileges(fields.no_new_privileges);
        process.set_apparmor_profile(fields.apparmor_profile);
        process.set_oom_score_adj(fields.oom_score_adj);
        process.set_selinux_label(fields.selinux_label);
        process.set_io_priority(fields.io_priority);
        process.set_scheduler(fields.scheduler.map(Scheduler::from));
        process.set_exec_cpu_affinity(fields.exec_cpu_affinity.map(ExecCPUAffinity::from));
        process
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn whole() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "options": ["nosuid"]}],
            "hostname": "h",
            "domainname": "d",
            "annotations": {"a": "b"},
            "linux": {"maskedPaths": ["/proc/kcore"], "resources": {"pids": {"limit": 5}}},
            "process": {
                "terminal": true,
                "consoleSize": {"height": 1, "width": 2},
                "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
                "args": ["a"],
                "env": ["A=b"],
                "cwd": "/x",
                "capabilities": {"bounding": ["CAP_KILL"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}],
                "noNewPrivileges": true,
                "apparmorProfile": "p",
                "oomScoreAdj": -5,
                "selinuxLabel": "l"
            }
        })
    }

    #[test]
    fn nothing_that_concerns_linux_is_lost() {
        let minimal = json!({"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/"}});
        for value in [whole(), minimal, json!({})] {
            let expected: Spec = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(read(value).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_capability_is_refused_or_named() {
        let mut value = whole();
        value["process"]["capabilities"] =
            json!({"bounding": ["CAP_X", "CAP_KILL"], "ambient": ["X", "CAP_X"]});
        let refusal = read(value.clone()).unwrap_err().to_string();
        assert_eq!(refusal, "process.capabilities: \"CAP_X\" is unknown");
        let (spec, unknown) = read_leniently(value.clone()).unwrap();
        assert_eq!(unknown, ["CAP_X", "X"]);
        let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding(), &Some(HashSet::from([Capability::Kill])));
        assert_eq!(sets.ambient(), &Some(HashSet::new()));
        assert_eq!(read_process(value["process"].take()).unwrap().1, ["CAP_X", "X"]);
    }

    #[test]
    fn no_processes_are_a_limit_since_the_specification_says_so() {
        for (version, limit) in [
            ("", None),
            ("1.0.2-dev", None),
            ("1.2.1", None),
            ("1.3.0", Some(0)),
            ("1.10.0", Some(0)),
        ] {
            let mut value = whole();
            value["ociVersion"] = json!(version);
            value["linux"]["resources"]["pids"]["limit"] = json!(0);
            let linux = read(value).unwrap().linux().clone().unwrap();
            let pids = linux.resources().as_ref().unwrap().pids().as_ref();
            assert_eq!(pids.map(|pids| pids.limit()), limit, "{version}");
        }
    }

    #[test]
    fn what_the_crate_would_read_by_a_regular_expression_is_read_alike() {
        let mut value = whole();
        value["hooks"] = json!({"poststop": [{"path": "/x", "timeout": 5}]});
        value["process"]["scheduler"] =
            json!({"policy": "SCHED_FIFO", "priority": 3, "flags": ["SCHED_RESET_ON_FORK"]});
        value["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 1});
        value["process"]["execCPUAffinity"] = json!({"initial": "0-3", "final": "1"});
        let expected: Spec = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(read(value).unwrap(), expected);
    }
}
