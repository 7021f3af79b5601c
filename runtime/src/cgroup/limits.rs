//! Which files of a cgroup hold which limit (kernel documentation, *Control Group v2*).

use std::collections::BTreeSet;

use crate::interface::Resources;

/// A controller that pods are held by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU weight and quota.
    Cpu,
    /// CPU and memory node placement.
    Cpuset,
    /// Huge pages.
    HugeTlb,
    /// I/O weight and rates.
    Io,
    /// Memory limit.
    Memory,
    /// Number of processes.
    Pids,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Cpu, Self::Cpuset, Self::HugeTlb, Self::Io, Self::Memory, Self::Pids];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::HugeTlb => "hugetlb",
            Self::Io => "io",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// Reads `cgroup.controllers` or `cgroup.subtree_control`.
pub(super) fn parse_controllers(listed: &str) -> BTreeSet<Controller> {
    let known = |word: &str| Controller::ALL.into_iter().find(|c| c.name() == word);
    listed.split_whitespace().filter_map(known).collect()
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The file's name.
    pub file: String,
    /// Its content.
    pub value: String,
}

const DEFAULT_PERIOD_US: u64 = 100_000;

/// The files that hold the limits, as far as the controllers are there.
pub fn plan(resources: &Resources, available: &BTreeSet<Controller>) -> Vec<Limit> {
    let mut limits: Vec<(Controller, String, String)> = Vec::new();
    let mut add = |controller, file: &str, value: String| {
        limits.push((controller, file.to_owned(), value));
    };
    if let Some(weight) = resources.cpu_weight {
        add(Controller::Cpu, "cpu.weight", weight.clamp(1, 10_000).to_string());
    }
    if resources.cpu_quota_us.is_some() || resources.cpu_period_us.is_some() {
        let period = resources.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
        let quota = resources
            .cpu_quota_us
            .map_or_else(|| "max".to_owned(), |quota| quota.max(1000).to_string());
        add(Controller::Cpu, "cpu.max", format!("{quota} {period}"));
    }
    if let Some(bytes) = resources.memory_limit_bytes {
        add(Controller::Memory, "memory.max", bytes.to_string());
    }
    if let Some(bytes) = resources.memory_swap_bytes {
        add(Controller::Memory, "memory.swap.max", bytes.to_string());
    }
    if resources.oom_group {
        add(Controller::Memory, "memory.oom.group", "1".to_owned());
    }
    if let Some(count) = resources.pids_limit {
        add(Controller::Pids, "pids.max", count.to_string());
    }
    for (size, bytes) in &resources.hugetlb {
        if size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let file = format!("hugetlb.{size}.max");
            add(Controller::HugeTlb, &file, bytes.to_string());
        }
    }
    limits
        .into_iter()
        .filter(|(controller, ..)| available.contains(controller))
        .map(|(_, file, value)| Limit { file, value })
        .collect()
}

/// The files to write so that what is held by `old` is held by `new`.
pub fn changes(old: &Resources, new: &Resources, available: &BTreeSet<Controller>) -> Vec<Limit> {
    let (old, new) = (plan(old, available), plan(new, available));
    let is_set = |file: &str| new.iter().any(|limit| limit.file == file);
    let lifted = old.iter().filter(|limit| !is_set(&limit.file)).filter_map(|limit| {
        let value = unlimited(&limit.file)?.to_owned();
        Some(Limit { file: limit.file.clone(), value })
    });
    let changed = new.iter().filter(|limit| !old.contains(limit)).cloned();
    lifted.chain(changed).collect()
}

/// What the kernel has in a file before anything is written.
fn unlimited(file: &str) -> Option<&'static str> {
    match file {
        "cpu.weight" => Some("100"),
        "cpu.max" => Some("max 100000"),
        "memory.oom.group" => Some("0"),
        _ => file.ends_with(".max").then_some("max"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn written(resources: &Resources) -> Vec<(String, String)> {
        let all = Controller::ALL.into_iter().collect();
        let limits = plan(resources, &all);
        limits.into_iter().map(|l| (l.file, l.value)).collect()
    }

    #[test]
    fn nothing_is_written_without_limits() {
        assert!(written(&Resources::default()).is_empty());
    }

    #[test]
    fn a_quota_is_written_with_its_period_and_not_below_a_millisecond() {
        let quota = |quota, period| {
            written(&Resources {
                cpu_quota_us: quota,
                cpu_period_us: period,
                ..Resources::default()
            })
        };
        assert_eq!(quota(Some(50_000), None), [("cpu.max".into(), "50000 100000".into())]);
        assert_eq!(quota(Some(10), Some(20_000)), [("cpu.max".into(), "1000 20000".into())]);
        assert_eq!(quota(None, Some(20_000)), [("cpu.max".into(), "max 20000".into())]);
    }

    #[test]
    fn limits_without_their_controller_are_left_out() {
        let resources =
            Resources { memory_limit_bytes: Some(1), pids_limit: Some(2), ..Resources::default() };
        let limits = plan(&resources, &BTreeSet::from([Controller::Pids]));
        assert_eq!(limits.len(), 1);
        assert_eq!(limits[0].file, "pids.max");
    }

    proptest! {
        #[test]
        fn what_was_held_by_the_old_limits_is_held_by_the_new_ones(
            old in resources(),
            new in resources(),
        ) {
            let all = Controller::ALL.into_iter().collect();
            let fresh = |resources: &Resources| {
                let limits = plan(resources, &all).into_iter().map(|l| (l.file, l.value));
                limits.collect::<BTreeMap<_, _>>()
            };
            let mut files = fresh(&old);
            for limit in changes(&old, &new, &all) {
                files.insert(limit.file, limit.value);
            }
            let mut expected = fresh(&new);
            for file in files.keys() {
                let untouched = || unlimited(file).unwrap().to_owned();
                expected.entry(file.clone()).or_insert_with(untouched);
            }
            prop_assert_eq!(files, expected);
            prop_assert_eq!(changes(&new, &new, &all), []);
        }
    }

    fn resources() -> impl Strategy<Value = Resources> {
        let some = || proptest::option::of(1000..5000u64);
        (some(), some(), some(), some(), any::<bool>(), some()).prop_map(
            |(weight, quota, memory, swap, oom_group, pids)| Resources {
                cpu_weight: weight,
                cpu_quota_us: quota,
                memory_limit_bytes: memory,
                memory_swap_bytes: swap,
                oom_group,
                pids_limit: pids,
                ..Resources::default()
            },
        )
    }

    #[test]
    fn a_page_size_cannot_become_a_path() {
        let mut resources = Resources::default();
        resources.hugetlb.insert("../x".into(), 1);
        resources.hugetlb.insert("2MB".into(), 1);
        assert_eq!(written(&resources), [("hugetlb.2MB.max".into(), "1".into())]);
    }
}
