//! What pods and containers are held to, in cAdvisor's families. A limit of a controller that the host
//! lacks holds nobody, and is left out. Pure.

use berth_runtime::interface::{PodUsage, Resources, Usage};

use super::cadvisor::labels;
use super::exposition::{Exposition, Kind, number};

/// A cgroup's period where nothing else was written (`cpu.max`).
const PERIOD_US: u64 = 100_000;

/// A number of a limit; what was used tells which controllers there are.
type Pick = fn(&Resources, &Usage) -> Option<u64>;

fn cpu(usage: &Usage, value: Option<u64>) -> Option<u64> {
    let has = usage.cpu.as_ref().is_some_and(|cpu| cpu.throttling.is_some());
    value.filter(|_| has)
}

/// No limit is 0 here.
fn memory(usage: &Usage, value: Option<u64>) -> Option<u64> {
    let has = usage.memory.as_ref().is_some_and(|memory| memory.details.is_some());
    has.then(|| value.unwrap_or(0))
}

/// The shares that a weight stands for, by the kubelet's linear rule.
fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1) * 262_142 / 9_999
}

const FAMILIES: [(&str, &str, Pick); 7] = [
    ("container_spec_cpu_period", "CPU period of the container.", |limits, usage| {
        cpu(usage, Some(limits.cpu_period_us.unwrap_or(PERIOD_US)))
    }),
    ("container_spec_cpu_quota", "CPU quota of the container.", |limits, usage| {
        cpu(usage, limits.cpu_quota_us)
    }),
    ("container_spec_cpu_shares", "CPU share of the container.", |limits, usage| {
        cpu(usage, Some(shares(limits.cpu_weight.unwrap_or(100))))
    }),
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", |limits, usage| {
        memory(usage, limits.memory_limit_bytes)
    }),
    (
        "container_spec_memory_reservation_limit_bytes",
        "Memory reservation limit for the container.",
        |_, usage| memory(usage, None),
    ),
    (
        "container_spec_memory_swap_limit_bytes",
        "Memory swap limit for the container.",
        |limits, usage| memory(usage, limits.memory_swap_bytes),
    ),
    (
        "container_threads_max",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        |limits, usage| usage.threads.map(|_| limits.pids_limit.unwrap_or(0)),
    ),
];

/// Writes what pods and their containers are held to.
pub(super) fn write(text: &mut Exposition, pods: &[PodUsage]) {
    for (name, help, pick) in FAMILIES {
        let mut family = text.family(name, Kind::Gauge, help);
        for pod in pods {
            let place = [pod.pod.namespace.as_str(), &pod.pod.name];
            if let Some(value) = pick(&pod.limits, &pod.total) {
                let labels = labels("", &pod.cgroup, ["", ""], place);
                family.at(&labels, number(value), Some(pod.total.at_ms));
            }
            for container in &pod.containers {
                let Some(value) = pick(&container.limits, &container.usage) else { continue };
                let of = [container.image.as_str(), container.id.as_str()];
                let labels = labels(&container.name, &container.cgroup, of, place);
                family.at(&labels, number(value), Some(container.usage.at_ms));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_runtime::interface::{CpuUsage, MemoryDetails, MemoryUsage, Throttling};

    use super::*;

    #[test]
    fn limits_are_told_where_they_hold() {
        let limits = Resources {
            cpu_weight: Some(39),
            cpu_quota_us: Some(50_000),
            memory_limit_bytes: Some(4096),
            pids_limit: Some(100),
            ..Resources::default()
        };
        let all =
            |limits: &Resources, usage: &Usage| FAMILIES.map(|(_, _, pick)| pick(limits, usage));
        let throttling = Some(Throttling::default());
        let memory =
            MemoryUsage { details: Some(MemoryDetails::default()), ..MemoryUsage::default() };
        let usage = Usage {
            cpu: Some(CpuUsage { throttling, ..CpuUsage::default() }),
            memory: Some(memory),
            threads: Some(3),
            ..Usage::default()
        };
        let told = [100_000, 50_000, 998, 4096, 0, 0, 100].map(Some);
        assert_eq!(all(&limits, &usage), told);
        let free = [Some(100_000), None, Some(2597), Some(0), Some(0), Some(0), Some(0)];
        assert_eq!(all(&Resources::default(), &usage), free);
        let uncontrolled = Usage { cpu: Some(CpuUsage::default()), ..Usage::default() };
        assert_eq!(all(&limits, &uncontrolled), [None; 7]);
    }
}
