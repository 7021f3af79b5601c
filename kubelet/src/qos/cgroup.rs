//! From requests and limits to cgroup v2 values.
//!
//! Pod and QoS-level cgroups use the kubelet's linear conversion of CPU shares to `cpu.weight`;
//! containers use the quadratic one that runc and crun adopted in 2025, so that tests which read
//! either cgroup find what they expect.

use std::collections::BTreeMap;

use berth_runtime::interface::Resources;

use super::{Class, ContainerDemand, Driver, PodDemand, ResourceAmounts};
use crate::quantity::Quantity;

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const MIN_QUOTA_US: u64 = 1_000;

/// What of a node's configuration and hardware decides cgroup limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPolicy {
    /// Who makes cgroups (`cgroupDriver`).
    pub driver: Driver,
    /// Whether all pods together are held to what is not kept back (`enforceNodeAllocatable`).
    pub enforce_allocatable: bool,
    /// Whether CPU limits are enforced (`cpuCFSQuota`).
    pub enforce_cpu_limits: bool,
    /// The enforcement period (`cpuCFSQuotaPeriod`), in microseconds.
    pub cpu_period_us: u64,
    /// Whether an OOM kills a single process, not the container (`singleProcessOOMKill`).
    pub single_process_oom_kill: bool,
    /// `podPidsLimit`.
    pub pod_pids_limit: Option<u64>,
    /// Sizes of huge pages the kernel offers, by cgroup name (`2MB`) and bytes.
    pub hugepage_sizes: BTreeMap<String, u64>,
}

impl Default for CgroupPolicy {
    fn default() -> Self {
        Self {
            driver: Driver::default(),
            enforce_allocatable: true,
            enforce_cpu_limits: true,
            cpu_period_us: 100_000,
            single_process_oom_kill: false,
            pod_pids_limit: None,
            hugepage_sizes: BTreeMap::new(),
        }
    }
}

/// CPU shares of a request: 1024 a core, at least 2.
pub fn shares(cpu_millis: i64) -> u64 {
    let millis = u64::try_from(cpu_millis).unwrap_or(0);
    (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `cpu.weight` of a pod or QoS cgroup: 2–262144 shares mapped linearly to 1–10000.
pub fn linear_weight(shares: u64) -> u64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - MIN_SHARES) * 9_999 / (MAX_SHARES - MIN_SHARES)
}

/// `cpu.weight` of a container: a curve through (2, 1), (1024, 100) and (262144, 10000).
pub fn container_weight(shares: u64) -> u64 {
    if shares <= MIN_SHARES {
        return 1;
    }
    if shares >= MAX_SHARES {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// `cpu.max` of a limit, at least a millisecond a period.
pub fn quota_us(cpu_millis: i64, period_us: u64) -> Option<u64> {
    let millis = u64::try_from(cpu_millis).ok().filter(|m| *m > 0)?;
    Some((millis.saturating_mul(period_us) / 1000).max(MIN_QUOTA_US))
}

fn quota_of(limit: Option<Quantity>, policy: &CgroupPolicy) -> Option<u64> {
    let limit = limit.filter(|_| policy.enforce_cpu_limits)?;
    quota_us(limit.milli_value(), policy.cpu_period_us)
}

fn hugetlb(limits: &ResourceAmounts, policy: &CgroupPolicy) -> BTreeMap<String, u64> {
    let mut by_size =
        policy.hugepage_sizes.keys().map(|name| (name.clone(), 0)).collect::<BTreeMap<_, _>>();
    for (resource, amount) in limits {
        let size =
            resource.strip_prefix("hugepages-").and_then(|size| size.parse::<Quantity>().ok());
        let Some(size) = size else { continue };
        let name = policy.hugepage_sizes.iter().find(|(_, bytes)| **bytes == size.unsigned_value());
        if let Some((name, _)) = name {
            by_size.insert(name.clone(), amount.unsigned_value());
        }
    }
    by_size
}

/// What a pod's own cgroup is held to.
pub fn pod_resources(demand: &PodDemand, policy: &CgroupPolicy) -> Resources {
    let requests = demand.requests();
    let limits = demand.limits();
    let class = demand.class();
    let cpu_request = requests.get("cpu").copied().unwrap_or_default();
    let bounded = |resource: &str| {
        let applies = match class {
            Class::Guaranteed => true,
            Class::Burstable => demand.every_container_limits(resource),
            Class::BestEffort => false,
        };
        let limit = limits.get(resource).copied();
        limit.filter(|limit| applies && limit.is_positive())
    };
    let shares = match class {
        Class::BestEffort => MIN_SHARES,
        Class::Guaranteed | Class::Burstable => shares(cpu_request.milli_value()),
    };
    let quota = quota_of(bounded("cpu"), policy);
    Resources {
        cpu_weight: Some(linear_weight(shares)),
        cpu_quota_us: quota,
        cpu_period_us: quota.map(|_| policy.cpu_period_us),
        memory_limit_bytes: bounded("memory").map(|limit| limit.unsigned_value()),
        memory_swap_bytes: None,
        oom_group: false,
        pids_limit: policy.pod_pids_limit,
        hugetlb: hugetlb(&limits, policy),
    }
}

/// What a container's cgroup is held to. A container without a limit of its own is held to the pod's
/// (pod-level resources). Swap is never used (`NoSwap`).
pub fn container_resources(
    demand: &PodDemand,
    container: &ContainerDemand,
    policy: &CgroupPolicy,
) -> Resources {
    let limit = |resource: &str| {
        let of_pod = || demand.pod.as_ref().and_then(|own| own.limit(resource));
        container.limit(resource).or_else(of_pod)
    };
    let cpu_limit = limit("cpu");
    let requested = container.requests.get("cpu").copied().or(cpu_limit);
    let quota = quota_of(cpu_limit, policy);
    Resources {
        cpu_weight: Some(container_weight(shares(requested.unwrap_or_default().milli_value()))),
        cpu_quota_us: quota,
        cpu_period_us: quota.map(|_| policy.cpu_period_us),
        memory_limit_bytes: limit("memory").map(|limit| limit.unsigned_value()),
        memory_swap_bytes: Some(0),
        oom_group: !policy.single_process_oom_kill,
        pids_limit: None,
        hugetlb: hugetlb(&container.limits, policy),
    }
}

/// `cpu.weight` of `kubepods/burstable` and `kubepods/besteffort`, in this order, for the pods that
/// are on the node.
pub fn class_weights<'p>(pods: impl IntoIterator<Item = &'p PodDemand>) -> (u64, u64) {
    let burstable = pods
        .into_iter()
        .filter(|demand| demand.class() == Class::Burstable)
        .map(|demand| demand.requests().get("cpu").copied().unwrap_or_default())
        .sum::<Quantity>();
    (linear_weight(shares(burstable.milli_value())), linear_weight(MIN_SHARES))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn demand(spec: serde_json::Value) -> PodDemand {
        PodDemand::parse(&serde_json::from_value(json!({"spec": spec})).unwrap()).unwrap()
    }

    #[test]
    fn weights_meet_both_upstream_curves() {
        for (millis, linear, quadratic) in [
            (0, 1, 1),
            (1, 1, 1),
            (100, 4, 17),
            (1000, 39, 100),
            (2000, 79, 174),
            (256_000, 10_000, 10_000),
            (i64::MAX, 10_000, 10_000),
        ] {
            let shares = shares(millis);
            assert_eq!(linear_weight(shares), linear, "{millis} linear");
            assert_eq!(container_weight(shares), quadratic, "{millis} quadratic");
        }
    }

    #[test]
    fn quotas_are_at_least_a_millisecond() {
        assert_eq!(quota_us(1000, 100_000), Some(100_000));
        assert_eq!(quota_us(250, 100_000), Some(25_000));
        assert_eq!(quota_us(1, 100_000), Some(1_000));
        assert_eq!(quota_us(0, 100_000), None);
    }

    #[test]
    fn what_a_runtime_class_adds_is_the_pods_and_no_containers() {
        let amounts = json!({"cpu": "100m", "memory": "100Mi"});
        let demand = demand(json!({
            "containers": [{"name": "a", "resources": {"limits": amounts, "requests": amounts}}],
            "overhead": {"cpu": "200m", "memory": "140Mi"},
        }));
        let policy = CgroupPolicy::default();
        let pod = pod_resources(&demand, &policy);
        let bounds = |of: &Resources| (of.cpu_quota_us, of.memory_limit_bytes);
        assert_eq!(bounds(&pod), (Some(30_000), Some(240 << 20)));
        assert_eq!(pod.cpu_weight, Some(linear_weight(shares(300))));
        let one = container_resources(&demand, &demand.containers[0], &policy);
        assert_eq!(bounds(&one), (Some(10_000), Some(100 << 20)));
    }

    #[test]
    fn a_guaranteed_pod_is_held_to_its_limits() {
        let demand = demand(json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}},
            {"name": "b", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}},
        ]}));
        let policy = CgroupPolicy { pod_pids_limit: Some(100), ..CgroupPolicy::default() };
        let pod = pod_resources(&demand, &policy);
        assert_eq!(pod.cpu_weight, Some(39));
        assert_eq!(pod.cpu_quota_us, Some(100_000));
        assert_eq!(pod.memory_limit_bytes, Some(128 << 20));
        assert_eq!(pod.pids_limit, Some(100));
        let one = container_resources(&demand, &demand.containers[0], &policy);
        assert_eq!(one.cpu_weight, Some(59));
        assert_eq!(one.cpu_quota_us, Some(50_000));
        assert_eq!(one.memory_limit_bytes, Some(64 << 20));
        assert_eq!(one.memory_swap_bytes, Some(0));
        assert!(one.oom_group);
    }

    #[test]
    fn a_burstable_pod_is_bounded_only_where_every_container_is() {
        let demand = demand(json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}},
            {"name": "b", "resources": {"limits": {"memory": "64Mi"}}},
        ]}));
        let pod = pod_resources(&demand, &CgroupPolicy::default());
        assert_eq!(pod.cpu_quota_us, None);
        assert_eq!(pod.memory_limit_bytes, Some(128 << 20));
        let unlimited =
            container_resources(&demand, &demand.containers[1], &CgroupPolicy::default());
        assert_eq!(unlimited.cpu_weight, Some(1));
        assert_eq!(unlimited.cpu_quota_us, None);
    }

    #[test]
    fn containers_without_limits_are_held_to_the_pods() {
        let demand = demand(json!({
            "containers": [{"name": "a"}],
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
        }));
        let container =
            container_resources(&demand, &demand.containers[0], &CgroupPolicy::default());
        assert_eq!(container.cpu_quota_us, Some(200_000));
        assert_eq!(container.memory_limit_bytes, Some(1 << 30));
    }

    #[test]
    fn cpu_limits_can_be_switched_off() {
        let demand = demand(
            json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}),
        );
        let policy = CgroupPolicy { enforce_cpu_limits: false, ..CgroupPolicy::default() };
        assert_eq!(pod_resources(&demand, &policy).cpu_quota_us, None);
    }

    #[test]
    fn huge_pages_nobody_asked_for_are_forbidden() {
        let policy = CgroupPolicy {
            hugepage_sizes: BTreeMap::from([("2MB".into(), 2 << 20), ("1GB".into(), 1 << 30)]),
            ..CgroupPolicy::default()
        };
        let demand = demand(json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "8Mi"}}},
        ]}));
        let expected = BTreeMap::from([("2MB".to_owned(), 8 << 20), ("1GB".to_owned(), 0)]);
        assert_eq!(pod_resources(&demand, &policy).hugetlb, expected);
        let container = container_resources(&demand, &demand.containers[0], &policy);
        assert_eq!(container.hugetlb, expected);
    }

    #[test]
    fn class_weights_sum_the_burstable_requests() {
        let burstable =
            demand(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}));
        let best_effort = demand(json!({"containers": [{"name": "a"}]}));
        assert_eq!(class_weights([&burstable, &burstable, &best_effort]), (79, 1));
        assert_eq!(class_weights([]), (1, 1));
    }

    proptest! {
        #[test]
        fn weights_are_in_range_and_never_fall(a in 0..400_000i64, b in 0..400_000i64) {
            let (low, high) = (shares(a.min(b)), shares(a.max(b)));
            for weight in [linear_weight, container_weight] {
                prop_assert!(weight(low) <= weight(high));
                prop_assert!((1..=10_000).contains(&weight(high)));
            }
        }
    }
}
