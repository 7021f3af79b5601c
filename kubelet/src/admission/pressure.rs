//! Whom a node under pressure takes in.

use k8s_openapi::api::core::v1::{Pod, Taint};

use super::{Rejection, tolerates};
use crate::eviction::threshold::Condition;
use crate::eviction::{self, Conditions};
use crate::qos::{self, Class, PodDemand};

/// Why a pod is not taken while these conditions hold. Critical pods always are; where memory alone is
/// short, so are all but those of class BestEffort that do not tolerate it.
pub fn under_pressure(pod: &Pod, demand: &PodDemand, conditions: &Conditions) -> Option<Rejection> {
    if conditions.is_empty() || qos::is_critical(pod) {
        return None;
    }
    let only_memory = conditions.iter().eq([&Condition::Memory]);
    if only_memory && (demand.class() != Class::BestEffort || tolerates_it(pod)) {
        return None;
    }
    let names: Vec<_> = conditions.iter().map(|condition| condition.name()).collect();
    let message = format!("The node had condition: [{}]. ", names.join(" "));
    Some(Rejection { reason: eviction::REASON.to_owned(), message })
}

fn tolerates_it(pod: &Pod) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/memory-pressure".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.into_iter().any(|toleration| tolerates(toleration, &taint))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pressure_turns_away_whom_upstream_turns_away() {
        let refused = |spec: Value, conditions: &[Condition]| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let demand = PodDemand::parse(&pod).unwrap();
            under_pressure(&pod, &demand, &conditions.iter().copied().collect())
        };
        let memory = [Condition::Memory];
        let best_effort = json!({"containers": [{"name": "c"}]});
        let burstable =
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1m"}}}]});
        let mut critical = best_effort.clone();
        critical["priority"] = json!(2_000_000_000);
        let mut tolerant = best_effort.clone();
        let key = "node.kubernetes.io/memory-pressure";
        tolerant["tolerations"] = json!([{"key": key, "operator": "Exists"}]);
        assert_eq!(refused(best_effort.clone(), &[]), None);
        let rejection = refused(best_effort, &memory).unwrap();
        assert_eq!(rejection.reason, "Evicted");
        assert_eq!(
            rejection.status_message(),
            "Pod was rejected: The node had condition: [MemoryPressure]. "
        );
        assert_eq!(refused(burstable.clone(), &memory), None);
        assert_eq!(refused(tolerant.clone(), &memory), None);
        for pressed in
            [&[Condition::Disk][..], &[Condition::Pid], &[Condition::Memory, Condition::Disk]]
        {
            assert!(refused(burstable.clone(), pressed).is_some(), "{pressed:?}");
            assert!(refused(tolerant.clone(), pressed).is_some(), "{pressed:?}");
            assert_eq!(refused(critical.clone(), pressed), None, "{pressed:?}");
        }
    }
}
