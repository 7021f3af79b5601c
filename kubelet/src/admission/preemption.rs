//! Which pods end so that a critical one fits (`pkg/kubelet/preemption`). Pure.
//!
//! Pods that are not critical, or of less priority, of as low a QoS class as will do. Of a class those
//! first that free most of what is missing, so that few end; of equals the one that asks for less.

use k8s_openapi::api::core::v1::Pod;

use super::{Admitted, Shortage, counted};
use crate::qos::{Class, is_critical};

/// Too little would be freed if all that may end did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no set of running pods found to reclaim resources: {}", listed(.0))]
pub(super) struct NoneFound(Vec<(String, i64)>);

fn listed(needs: &[(String, i64)]) -> String {
    let needs = needs.iter().map(|(name, amount)| format!("(res: {name}, q: {amount}), "));
    format!("[{}]", needs.collect::<String>())
}

/// An amount of a resource that has to become free.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Need {
    resource: String,
    amount: i64,
}

/// A pod that may end.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    /// Its place among the others.
    place: usize,
    other: Admitted<'a>,
    class: Class,
}

impl Candidate<'_> {
    /// What it frees of a resource.
    fn frees(&self, resource: &str) -> i64 {
        match resource {
            "pods" => 1,
            _ => {
                let requests = self.other.demand.requests();
                requests.get(resource).map_or(0, |amount| counted(resource, *amount))
            }
        }
    }

    /// Memory before CPU: of two equal candidates the smaller ends.
    fn size(&self) -> (i64, i64) {
        (self.frees("memory"), self.frees("cpu"))
    }
}

/// The places among `others` of the pods that have to end so that `pod` gets what it lacks.
///
/// # Errors
/// When the pods that may end do not have so much.
pub(super) fn victims(
    pod: &Pod,
    others: &[Admitted<'_>],
    shortages: &[Shortage],
) -> Result<Vec<usize>, NoneFound> {
    let needs: Vec<Need> = shortages
        .iter()
        .map(|s| Need { resource: s.resource.clone(), amount: s.missing() })
        .collect();
    let candidates: Vec<Candidate<'_>> = others
        .iter()
        .enumerate()
        .filter(|(_, other)| may_end(pod, other.pod))
        .map(|(place, other)| Candidate { place, other: *other, class: other.demand.class() })
        .collect();
    let lacking = remaining(&needs, candidates.iter());
    if !lacking.is_empty() {
        return Err(NoneFound(lacking.into_iter().map(|n| (n.resource, n.amount)).collect()));
    }
    // From the dearest class to the cheapest, each as if all of the cheaper ones had ended already.
    let mut chosen: Vec<Candidate<'_>> = Vec::new();
    for class in [Class::Guaranteed, Class::Burstable, Class::BestEffort] {
        let is_cheaper = |c: &&Candidate<'_>| rank(c.class) < rank(class);
        let cheaper = candidates.iter().filter(is_cheaper);
        let needs = remaining(&needs, cheaper.chain(&chosen));
        let of_class: Vec<_> = candidates.iter().filter(|c| c.class == class).copied().collect();
        chosen.extend(closest(of_class, needs));
    }
    chosen.reverse();
    Ok(chosen.into_iter().map(|candidate| candidate.place).collect())
}

fn rank(class: Class) -> u8 {
    match class {
        Class::BestEffort => 0,
        Class::Burstable => 1,
        Class::Guaranteed => 2,
    }
}

/// Whether `other` may be ended for `pod`, which is critical.
fn may_end(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    !is_critical(other) || matches!((priority(pod), priority(other)), (Some(a), Some(b)) if a > b)
}

/// What is still needed once `freed` have ended.
fn remaining<'c, 'a: 'c>(
    needs: &[Need],
    freed: impl Iterator<Item = &'c Candidate<'a>> + Clone,
) -> Vec<Need> {
    let left = needs.iter().filter_map(|need| {
        let freed = freed.clone().map(|candidate| candidate.frees(&need.resource));
        let amount = freed.fold(need.amount, i64::saturating_sub);
        (amount > 0).then(|| Need { resource: need.resource.clone(), amount })
    });
    left.collect()
}

/// Takes one candidate after the other, each the one that leaves least of the needs.
fn closest<'a>(mut candidates: Vec<Candidate<'a>>, mut needs: Vec<Need>) -> Vec<Candidate<'a>> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let order = |a: &Candidate<'_>, b: &Candidate<'_>| {
            distance(&needs, a).total_cmp(&distance(&needs, b)).then(a.size().cmp(&b.size()))
        };
        let best = (0..candidates.len()).min_by(|a, b| order(&candidates[*a], &candidates[*b]));
        let Some(best) = best else { break };
        let taken = candidates.remove(best);
        needs = remaining(&needs, std::iter::once(&taken));
        chosen.push(taken);
    }
    chosen
}

/// How much of the needs a candidate leaves: the sum of the squares of the parts left.
fn distance(needs: &[Need], candidate: &Candidate<'_>) -> f64 {
    let parts = needs.iter().map(|need| {
        let left = need.amount.saturating_sub(candidate.frees(&need.resource)).max(0);
        (left as f64 / need.amount as f64).powi(2)
    });
    parts.sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::qos::PodDemand;

    fn pod(name: &str, priority: i32, resources: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]},
        }))
        .unwrap()
    }

    fn burstable(name: &str, cpu: &str, memory: &str) -> Pod {
        pod(name, 0, json!({"requests": {"cpu": cpu, "memory": memory}}))
    }

    fn guaranteed(name: &str, cpu: &str, memory: &str) -> Pod {
        let amounts = json!({"cpu": cpu, "memory": memory});
        pod(name, 0, json!({"requests": amounts, "limits": amounts}))
    }

    const CRITICAL: i32 = 2_000_000_000;

    /// The names of those that end so that so much CPU, memory and room for pods is freed.
    fn chosen(priority: i32, others: &[Pod], needs: &[(&str, i64)]) -> Result<Vec<String>, String> {
        let demands: Vec<_> = others.iter().map(|pod| PodDemand::parse(pod).unwrap()).collect();
        let pairs = others.iter().zip(&demands);
        let admitted: Vec<_> = pairs.map(|(pod, demand)| Admitted { pod, demand }).collect();
        let shortage = |(resource, missing): &(&str, i64)| Shortage {
            resource: (*resource).to_owned(),
            requested: *missing,
            used: 7,
            capacity: 7,
        };
        let shortages: Vec<_> = needs.iter().map(shortage).collect();
        let places = victims(&pod("new", priority, json!({})), &admitted, &shortages);
        let places = places.map_err(|error| error.to_string())?;
        let mut names: Vec<String> =
            places.into_iter().map(|n| others[n].metadata.name.clone().unwrap()).collect();
        names.sort();
        Ok(names)
    }

    const MI: i64 = 1 << 20;

    #[test]
    fn as_few_end_as_will_do_and_of_equals_the_smaller() {
        let others = [
            burstable("small", "100m", "10Mi"),
            burstable("middle", "300m", "10Mi"),
            burstable("large", "900m", "500Mi"),
            burstable("slim", "900m", "20Mi"),
        ];
        let cpu = |amount| chosen(CRITICAL, &others, &[("cpu", amount)]).unwrap();
        assert_eq!(cpu(50), ["small"]);
        assert_eq!(cpu(300), ["middle"]);
        assert_eq!(cpu(301), ["slim"], "one is better than two, and the slimmer of both");
        assert_eq!(cpu(1000), ["slim", "small"]);
        assert_eq!(cpu(1500), ["large", "slim"]);
        let both = chosen(CRITICAL, &others, &[("cpu", 200), ("memory", 300 * MI)]).unwrap();
        assert_eq!(both, ["large"], "one for both needs");
    }

    #[test]
    fn a_dearer_class_is_touched_only_when_the_cheaper_ones_do_not_have_enough() {
        let others = [
            guaranteed("g", "2", "100Mi"),
            burstable("b", "500m", "100Mi"),
            pod("e", 0, json!({})),
        ];
        let ended = |needs: &[(&str, i64)]| chosen(CRITICAL, &others, needs).unwrap();
        assert_eq!(ended(&[("cpu", 500)]), ["b"]);
        assert_eq!(ended(&[("cpu", 501)]), ["g"], "then nothing of the cheaper one is needed");
        assert_eq!(ended(&[("pods", 1)]), ["e"], "those without requests free a place as well");
        assert_eq!(ended(&[("cpu", 100), ("pods", 2)]), ["b", "e"]);
        assert_eq!(ended(&[("cpu", 2500), ("pods", 1)]), ["b", "g"]);
    }

    #[test]
    fn critical_pods_end_only_for_those_of_more_priority() {
        let others = [
            pod("dns", CRITICAL, json!({"requests": {"cpu": "1"}})),
            burstable("web", "200m", "1Mi"),
        ];
        assert_eq!(chosen(CRITICAL, &others, &[("cpu", 100)]).unwrap(), ["web"]);
        let refused = chosen(CRITICAL, &others, &[("cpu", 300)]).unwrap_err();
        assert!(refused.ends_with("reclaim resources: [(res: cpu, q: 100), ]"), "{refused}");
        assert_eq!(chosen(CRITICAL + 1000, &others, &[("cpu", 300)]).unwrap(), ["dns"]);
    }
}
