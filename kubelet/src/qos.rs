//! QoS classes and what follows from them: cgroup paths and limits, OOM scores.
//!
//! Serves the Kubernetes QoS rules (pod-level resources included) and cgroup v2. All but `classes` is
//! a pure function of the pod; writing cgroups is the runtime's.

use k8s_openapi::api::core::v1::Pod;

mod ceiling;
mod cgroup;
mod classes;
mod demand;
mod driver;

pub use ceiling::TooMuch;
pub(crate) use ceiling::{hold as hold_all, limits as limits_of_all};
pub use cgroup::{
    CgroupPolicy, class_weights, container_resources, container_weight, linear_weight,
    pod_resources, quota_us, shares,
};
pub(crate) use classes::keep as keep_classes;
pub use demand::{ContainerDemand, InvalidResource, PodDemand, ResourceAmounts};
pub use driver::Driver;

/// The quality-of-service class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Every container has equal requests and limits for CPU and memory.
    Guaranteed,
    /// Some request or limit is set.
    Burstable,
    /// No CPU or memory request or limit is set.
    BestEffort,
}

impl Class {
    /// As it is written in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

const GUARANTEED_OOM_SCORE: i64 = -997;
const BEST_EFFORT_OOM_SCORE: i64 = 1000;
/// The priority from which on pods are critical (`2 · HighestUserDefinablePriority`).
pub(crate) const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Whether a pod comes before those that are not critical: it runs from a file, or its priority is
/// one of the system's.
pub fn is_critical(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = |key: &str| annotations.and_then(|a| a.get(key));
    let is_static = annotated("kubernetes.io/config.source").is_some_and(|source| source != "api");
    let is_mirror = annotated("kubernetes.io/config.mirror").is_some();
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    is_static || is_mirror || priority >= CRITICAL_PRIORITY
}

/// Whether the node cannot do without the pod: a critical pod of `system-node-critical`.
pub fn is_node_critical(pod: &Pod) -> bool {
    let class = pod.spec.as_ref().and_then(|spec| spec.priority_class_name.as_deref());
    is_critical(pod) && class == Some("system-node-critical")
}

/// The `oom_score_adj` of a container: −997 for guaranteed and node-critical pods, 1000 for
/// best-effort ones, and in between the less the more memory is requested.
///
/// A sidecar is no likelier a victim than the likeliest main container: its score is at most theirs.
pub fn oom_score_adj(
    pod: &Pod,
    demand: &PodDemand,
    container: &str,
    memory_capacity_bytes: u64,
) -> i32 {
    if is_node_critical(pod) {
        return GUARANTEED_OOM_SCORE as i32;
    }
    match demand.class() {
        Class::Guaranteed => return GUARANTEED_OOM_SCORE as i32,
        Class::BestEffort => return BEST_EFFORT_OOM_SCORE as i32,
        Class::Burstable => {}
    }
    let Some(own) = demand.container(container) else {
        return BEST_EFFORT_OOM_SCORE as i32;
    };
    let share = demand.unclaimed_memory_bytes_a_container();
    let score = |c: &ContainerDemand| {
        let request = c.request("memory").value().saturating_add(share);
        let capacity = i128::from(memory_capacity_bytes.max(1));
        let used = i128::from(request) * 1000 / capacity;
        1000 - i64::try_from(used).unwrap_or(i64::MAX)
    };
    let mut adjustment = score(own);
    if own.is_sidecar {
        let highest = demand.containers.iter().map(score).max();
        adjustment = adjustment.min(highest.unwrap_or(adjustment));
    }
    let bounded =
        adjustment.clamp(BEST_EFFORT_OOM_SCORE + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1);
    bounded as i32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn demand(pod: &Pod) -> PodDemand {
        PodDemand::parse(pod).unwrap()
    }

    fn class_of(spec: serde_json::Value) -> Class {
        demand(&pod(spec)).class()
    }

    fn container(resources: serde_json::Value) -> serde_json::Value {
        json!({"name": "c", "resources": resources})
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}});
        let limits_only = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let lower = json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}});
        let zero = json!({"requests": {"cpu": "0"}, "limits": {"memory": "0"}});
        let storage = json!({"requests": {"ephemeral-storage": "1Gi"}});
        for (containers, expected) in [
            (vec![json!({})], Class::BestEffort),
            (vec![zero], Class::BestEffort),
            (vec![storage], Class::BestEffort),
            (vec![full.clone()], Class::Guaranteed),
            (vec![limits_only], Class::Guaranteed),
            (vec![lower], Class::Burstable),
            (vec![full.clone(), json!({})], Class::Burstable),
            (vec![json!({"limits": {"cpu": "1"}})], Class::Burstable),
        ] {
            let containers: Vec<_> = containers.into_iter().map(container).collect();
            assert_eq!(class_of(json!({"containers": containers})), expected, "{containers:?}");
        }
        let with_init = json!({"containers": [container(full.clone())], "initContainers": [container(json!({}))]});
        assert_eq!(class_of(with_init), Class::Burstable);
    }

    #[test]
    fn pod_level_resources_decide_the_class_alone() {
        let spec = json!({
            "containers": [container(json!({}))],
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        });
        assert_eq!(class_of(spec), Class::Guaranteed);
        let spec = json!({
            "containers": [container(json!({}))],
            "resources": {"requests": {"cpu": "1"}},
        });
        assert_eq!(class_of(spec), Class::Burstable);
    }

    #[test]
    fn oom_scores_follow_the_class_and_the_memory_request() {
        const CAPACITY: u64 = 4_000_000_000;
        let score = |resources: serde_json::Value| {
            let pod = pod(json!({"containers": [container(resources)]}));
            oom_score_adj(&pod, &demand(&pod), "c", CAPACITY)
        };
        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({"limits": {"cpu": "1", "memory": "1G"}})), -997);
        assert_eq!(score(json!({"requests": {"memory": "1G"}})), 750);
        assert_eq!(score(json!({"requests": {"memory": "4G"}})), 3);
        assert_eq!(score(json!({"requests": {"memory": "8Ei"}})), 3);
        assert_eq!(score(json!({"requests": {"cpu": "1"}})), 999);
    }

    #[test]
    fn node_critical_pods_score_like_guaranteed_ones() {
        let mut pod = pod(json!({
            "containers": [container(json!({}))],
            "priority": 2_000_001_000,
            "priorityClassName": "system-node-critical",
        }));
        let demand = demand(&pod);
        assert_eq!(oom_score_adj(&pod, &demand, "c", 1 << 30), -997);
        pod.spec.as_mut().unwrap().priority_class_name = Some("system-cluster-critical".into());
        assert_eq!(oom_score_adj(&pod, &demand, "c", 1 << 30), 1000);
    }

    #[test]
    fn pod_level_memory_is_shared_by_the_containers() {
        let pod = pod(json!({
            "containers": [
                {"name": "a", "resources": {"requests": {"memory": "1G"}}},
                {"name": "b"},
            ],
            "resources": {"requests": {"memory": "2G"}},
        }));
        let demand = demand(&pod);
        assert_eq!(oom_score_adj(&pod, &demand, "a", 4_000_000_000), 625);
        assert_eq!(oom_score_adj(&pod, &demand, "b", 4_000_000_000), 875);
    }

    #[test]
    fn a_sidecar_is_no_likelier_a_victim_than_the_main_containers() {
        let with = |memory: &str| json!({"requests": {"memory": memory}});
        let pod = pod(json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "resources": with("1G")}, {"name": "b", "resources": with("2G")}],
        }));
        let demand = demand(&pod);
        assert_eq!(oom_score_adj(&pod, &demand, "s", 4_000_000_000), 750);
    }
}
