//! What `/stats/summary` calls system containers: the node's own parts, beside its pods.
//!
//! | Name | What |
//! |---|---|
//! | `kubelet` | the agent: its cgroup, where it is a service of systemd and so has one of its own, else its process |
//! | `runtime` | the same: pods are run by the agent's own threads and by their shims, which stand in the pods' cgroups, so that no other process is the runtime |
//! | `pods` | the cgroup above all pods' |
//!
//! `misc`, upstream's name for what the kubelet moves out of the root cgroup, is not there: berth moves
//! nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_runtime::cgroup::{Hierarchy, usage};
use berth_runtime::interface::{CpuUsage, MemoryDetails, MemoryUsage, Usage};

use super::host::{self, TICK_US, kilobytes};

/// Where the node's own parts are seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The agent's cgroup, where nothing else is in it.
    service: Option<PathBuf>,
    /// The cgroup above all pods', as a path of the host.
    pods: Option<PathBuf>,
}

/// What one of the node's own parts has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Part {
    /// What it has used.
    pub(super) usage: Usage,
    /// What its memory is held to.
    pub(super) limit_bytes: Option<u64>,
    /// Since when it is there, in milliseconds since the epoch, where that is known.
    pub(super) since_ms: Option<i64>,
}

/// What the node's own parts have used.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct System {
    /// The agent.
    pub(super) agent: Part,
    /// All pods.
    pub(super) pods: Option<Part>,
}

impl Places {
    /// Those of this host; `pods` is the cgroup above all pods', below the root. Blocking; reads two
    /// small files.
    pub fn of_host(pods: &Path) -> Self {
        let Ok(hierarchy) = Hierarchy::detect() else { return Self::default() };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self {
            service: service(&own).map(|path| hierarchy.root().join(path)),
            pods: Some(hierarchy.root().join(pods)),
        }
    }
}

/// The cgroup of a service of systemd, below the root, of what `/proc/<pid>/cgroup` says (cgroups(7)).
fn service(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    path.ends_with(".service").then_some(path)
}

/// Reads what the node's own parts have used. Blocking; a dozen small files.
pub(super) fn read(places: &Places, at_ms: i64) -> System {
    let controlled = places.service.as_deref().map(usage::counters);
    let controlled = controlled.filter(|usage| usage.memory.is_some());
    let usage = controlled.unwrap_or_else(|| process(at_ms));
    let agent = Part { usage, ..Part::default() };
    System { agent, pods: places.pods.as_deref().and_then(pods) }
}

fn pods(directory: &Path) -> Option<Part> {
    let metadata = fs::metadata(directory).ok()?;
    let limit = fs::read_to_string(directory.join("memory.max")).unwrap_or_default();
    Some(Part {
        usage: usage::counters(directory),
        limit_bytes: limit.trim().parse().ok(),
        // As cAdvisor: the kernel keeps no better one of a cgroup.
        since_ms: Some(metadata.ctime().saturating_mul(1000)),
    })
}

/// The agent's process alone (proc_pid_stat(5), proc_pid_status(5)).
fn process(at_ms: i64) -> Usage {
    let stat = host::stat_fields(&host::text("/proc/self/stat"));
    let field = |at: usize| stat.get(at).copied().unwrap_or(0);
    let status = host::text("/proc/self/status");
    let resident = kilobytes(&status, "VmRSS:");
    let (user_us, system_us) = (field(11) * TICK_US, field(12) * TICK_US);
    Usage {
        at_ms,
        cpu: Some(CpuUsage {
            total_us: user_us + system_us,
            user_us,
            system_us,
            ..CpuUsage::default()
        }),
        memory: Some(MemoryUsage {
            usage_bytes: resident,
            working_set_bytes: resident,
            details: Some(MemoryDetails {
                rss_bytes: kilobytes(&status, "RssAnon:"),
                swap_bytes: Some(kilobytes(&status, "VmSwap:")),
                faults: field(7) + field(9),
                major_faults: field(9),
                ..MemoryDetails::default()
            }),
        }),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_has_a_cgroup_of_its_own() {
        let berth = "13:pids:/x\n0::/system.slice/berth.service\n";
        assert_eq!(service(berth), Some("system.slice/berth.service"));
        for text in
            ["0::/\n", "0::/user.slice/session-1.scope\n", "1:name=systemd:/a.service\n", ""]
        {
            assert_eq!(service(text), None, "{text}");
        }
    }

    #[test]
    fn an_agent_without_a_cgroup_of_its_own_is_its_process() {
        let usage = read(&Places::default(), 7).agent.usage;
        let memory = usage.memory.unwrap();
        let details = memory.details.unwrap();
        assert_eq!(usage.at_ms, 7);
        assert!(details.rss_bytes > 0 && details.rss_bytes <= memory.usage_bytes, "{details:?}");
        assert!(details.faults > 100, "{details:?}");
    }

    #[test]
    fn a_cgroup_tells_what_it_has_and_is_held_to() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("kubepods/cpu.stat", "usage_usec 30\n");
        let places = Places {
            service: Some(root.path().join("a.service")),
            pods: Some(root.path().join("kubepods")),
        };
        let system = read(&places, 7);
        let pods = system.pods.unwrap();
        assert_eq!((pods.usage.cpu.unwrap().total_us, pods.usage.memory), (30, None));
        assert!(pods.limit_bytes.is_none() && pods.since_ms > Some(0));
        assert!(system.agent.usage.memory.unwrap().details.is_some(), "no controller: its process");
        write("kubepods/memory.current", "4096\n");
        write("kubepods/memory.max", "8192\n");
        write("a.service/memory.current", "1000\n");
        write("a.service/memory.stat", "anon 400\n");
        let System { agent, pods } = read(&places, 7);
        let pods = pods.unwrap();
        assert_eq!((pods.limit_bytes, pods.usage.memory.unwrap().usage_bytes), (Some(8192), 4096));
        assert_eq!(agent.usage.memory.unwrap().details.unwrap().rss_bytes, 400);
        let gone = Places { pods: Some(root.path().join("nothing")), ..Places::default() };
        assert_eq!(read(&gone, 7).pods, None, "no pod has ever run");
    }
}
