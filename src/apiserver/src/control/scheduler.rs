//! Binds pods to nodes that fit, and says why none does. The checks are the ones a single node
//! can fail: readiness, cordon, taints, selectors, host ports, resources.
//!
//! Differs: no scores, no preemption, no spreading; the first node that fits gets the pod.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::ephemeral::{claim_name, is_of};
use super::{Happening, record};
use crate::admit::quantity;
use crate::api::Api;
use crate::failure::Failure;
use crate::http::route::Target;
use crate::object::ObjectExt;
use crate::resource::{Kind, key, prefix};
use crate::store::Tx;
use crate::verbs::pod::{bound_to, set_condition};

const NAME: &str = "default-scheduler";

type Object = (String, Arc<Value>);

/// Binds what can be bound.
pub(super) async fn reconcile(api: &Api) -> Result<(), Failure> {
    if !api.store.list(&prefix(Kind::Pod, "")).items.iter().any(|(_, pod)| is_pending(pod)) {
        return Ok(());
    }
    api.store
        .write(|tx| {
            let nodes = tx.list(&prefix(Kind::Node, ""));
            let mut pods = tx.list(&prefix(Kind::Pod, ""));
            for index in waiting(&pods) {
                let (key, pod) = pods[index].clone();
                let waits = waits_for_claim(tx, &pod);
                match waits.map_or_else(|| choose(&pod, &nodes, &pods), Err) {
                    Ok(node) => pods[index].1 = bind(tx, (&key, &pod), &node)?,
                    Err(why) => refuse(tx, (&key, &pod), &why),
                }
            }
            Ok(())
        })
        .await
}

/// Which pods wait for a node: those of higher priority first, then those that wait longer.
fn waiting(pods: &[Object]) -> Vec<usize> {
    let mut waiting: Vec<usize> = (0..pods.len()).filter(|at| is_pending(&pods[*at].1)).collect();
    waiting.sort_by_key(|at| {
        let pod = &pods[*at].1;
        let priority = pod.int("/spec/priority").unwrap_or(0);
        (Reverse(priority), pod.text("/metadata/creationTimestamp"))
    });
    waiting
}

fn is_pending(pod: &Value) -> bool {
    pod.text("/spec/nodeName").is_empty()
        && !pod.is_terminating()
        && pod.text("/spec/schedulerName") == NAME
        && pod.list("/spec/schedulingGates").is_empty()
        && !matches!(pod.text("/status/phase"), "Succeeded" | "Failed")
}

fn bind(tx: &mut Tx<'_>, (key, pod): (&str, &Value), node: &str) -> Result<Arc<Value>, Failure> {
    let target = Target::of(Kind::Pod, pod.namespace(), pod.name());
    let bound = tx.put(key, bound_to(&target, pod, node)?);
    let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
    record(
        tx,
        &Happening {
            about: pod,
            kind: Kind::Pod,
            class: "Normal",
            reason: "Scheduled",
            message: &message,
            component: NAME,
        },
    );
    Ok(bound)
}

/// Why a pod waits for its claims, in upstream's words.
fn waits_for_claim(tx: &Tx<'_>, pod: &Value) -> Option<String> {
    pod.list("/spec/volumes").iter().find_map(|volume| {
        let name = claim_name(pod, volume);
        if name.is_empty() {
            return None;
        }
        let is_own = volume.has("/ephemeral");
        match tx.get(&key(Kind::PersistentVolumeClaim, pod.namespace(), &name)) {
            None if is_own => Some(format!(
                "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
            )),
            Some(claim) if is_own && !is_of(&claim, pod) => {
                let (namespace, pod) = (pod.namespace(), pod.name());
                Some(format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
                ))
            }
            None => Some(format!("persistentvolumeclaim {name:?} not found")),
            Some(claim) if claim.text("/status/phase") == "Bound" => None,
            Some(claim) if claim.text("/status/phase") == "Lost" => Some(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}",
                claim.text("/spec/volumeName")
            )),
            Some(_) => Some("pod has unbound immediate PersistentVolumeClaims".to_owned()),
        }
    })
}

fn refuse(tx: &mut Tx<'_>, (key, pod): (&str, &Value), why: &str) {
    let mut refused = pod.clone();
    let changed = set_condition(
        &mut refused,
        json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
        }),
    );
    if changed {
        tx.put(key, refused);
        record(
            tx,
            &Happening {
                about: pod,
                kind: Kind::Pod,
                class: "Warning",
                reason: "FailedScheduling",
                message: why,
                component: NAME,
            },
        );
    }
}

/// The node for a pod, or why there is none, in upstream's words.
fn choose(pod: &Value, nodes: &[Object], pods: &[Object]) -> Result<String, String> {
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".into());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut full = 0;
    for (_, node) in nodes {
        let problems = problems(pod, node, pods);
        if problems.is_empty() {
            return Ok(node.name().to_owned());
        }
        full += usize::from(problems.iter().any(|problem| !problem.starts_with("node(s)")));
        for problem in problems {
            *reasons.entry(problem).or_default() += 1;
        }
    }
    let mut list: Vec<String> =
        reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    list.sort();
    let all = nodes.len();
    let unhelpful = all - full;
    let mut preemption = Vec::new();
    if full > 0 {
        preemption.push(format!("{full} No preemption victims found for incoming pod"));
    }
    if unhelpful > 0 {
        preemption.push(format!("{unhelpful} Preemption is not helpful for scheduling"));
    }
    Err(format!(
        "0/{all} nodes are available: {}. preemption: 0/{all} nodes are available: {}.",
        list.join(", "),
        preemption.join(", ")
    ))
}

/// Why a node cannot take a pod; nothing when it can. Only the resource check gives several.
fn problems(pod: &Value, node: &Value, pods: &[Object]) -> Vec<String> {
    let one = |text: &str| vec![text.to_owned()];
    if node.is_terminating() || node.flag("/spec/unschedulable") && !tolerates(pod, &cordon()) {
        return one("node(s) were unschedulable");
    }
    let ready = node
        .list("/status/conditions")
        .iter()
        .any(|one| one.text("/type") == "Ready" && one.text("/status") == "True");
    let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    let barred = node
        .list("/spec/taints")
        .iter()
        .filter(|taint| taint.text("/effect") != "PreferNoSchedule")
        .any(|taint| !tolerates(pod, taint));
    if barred || (!ready && !tolerates(pod, &not_ready)) {
        return one("node(s) had untolerated taint(s)");
    }
    if !selects(pod, node) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    let neighbours: Vec<&Value> = pods
        .iter()
        .map(|(_, other)| other.as_ref())
        .filter(|other| other.text("/spec/nodeName") == node.name())
        .filter(|other| !matches!(other.text("/status/phase"), "Succeeded" | "Failed"))
        .collect();
    let wanted = host_ports(pod);
    if neighbours.iter().flat_map(|other| host_ports(other)).any(|port| {
        wanted.iter().any(|own| {
            let same_address = own.2 == port.2 || is_any(own.2) || is_any(port.2);
            (own.0, own.1) == (port.0, port.1) && same_address
        })
    }) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    lacking(pod, node, &neighbours)
}

fn cordon() -> Value {
    json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})
}

fn tolerates(pod: &Value, taint: &Value) -> bool {
    pod.list("/spec/tolerations").iter().any(|toleration| {
        let effect = toleration.text("/effect");
        let key = toleration.text("/key");
        let exists = toleration.text("/operator") == "Exists";
        (effect.is_empty() || effect == taint.text("/effect"))
            && (key == taint.text("/key") || (key.is_empty() && exists))
            && (exists || toleration.text("/value") == taint.text("/value"))
    })
}

fn selects(pod: &Value, node: &Value) -> bool {
    let simple = pod
        .map("/spec/nodeSelector")
        .into_iter()
        .flatten()
        .all(|(key, value)| node.label(key) == value.as_str());
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = pod.list(required);
    simple && (terms.is_empty() || terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &Value, node: &Value) -> bool {
    let (by_label, by_field) = (term.list("/matchExpressions"), term.list("/matchFields"));
    if by_label.is_empty() && by_field.is_empty() {
        return false;
    }
    by_label.iter().all(|rule| rule_holds(rule, node.label(rule.text("/key"))))
        && by_field
            .iter()
            .all(|rule| rule.text("/key") == "metadata.name" && rule_holds(rule, Some(node.name())))
}

fn rule_holds(rule: &Value, value: Option<&str>) -> bool {
    let listed = value.is_some_and(|value| rule.list("/values").iter().any(|one| one == value));
    let numbers = || -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, rule.text("/values/0").parse().ok()?))
    };
    match rule.text("/operator") {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, limit)| value > limit),
        "Lt" => numbers().is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

/// Port, protocol and address of each host port.
fn host_ports(pod: &Value) -> Vec<(i64, &str, &str)> {
    pod.list("/spec/containers")
        .iter()
        .flat_map(|container| container.list("/ports"))
        .filter_map(|port| {
            let number = port.int("/hostPort").filter(|number| *number > 0)?;
            Some((number, port.text("/protocol"), port.text("/hostIP")))
        })
        .collect()
}

fn is_any(address: &str) -> bool {
    matches!(address, "" | "0.0.0.0" | "::")
}

/// The resources a node lacks for a pod.
fn lacking(pod: &Value, node: &Value, neighbours: &[&Value]) -> Vec<String> {
    let mut problems = Vec::new();
    let allocatable = |resource: &str| {
        let map: Option<&Map<String, Value>> = node.map("/status/allocatable");
        map?.get(resource)?.as_str().and_then(quantity::millis)
    };
    let room = allocatable("pods").map(|pods| pods / 1000);
    if room.is_some_and(|room| neighbours.len() as i128 >= room) {
        problems.push("Too many pods".to_owned());
    }
    for (resource, wanted) in requests(pod) {
        if wanted == 0 {
            continue;
        }
        let used: i128 = neighbours
            .iter()
            .map(|other| requests(other).get(&resource).copied().unwrap_or(0))
            .sum();
        let fits = match allocatable(&resource) {
            Some(all) => used + wanted <= all,
            // A node that does not report cpu or memory yet is not held to them.
            None => matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage"),
        };
        if !fits {
            problems.push(format!("Insufficient {resource}"));
        }
    }
    problems
}

/// What a pod asks for, in thousandths: the sum of its containers, or an init container's part
/// if that is more; sidecars count with the containers.
pub(crate) fn requests(pod: &Value) -> BTreeMap<String, i128> {
    let of = |container: &Value| -> Vec<(String, i128)> {
        container
            .map("/resources/requests")
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), quantity::millis(value.as_str()?)?)))
            .collect()
    };
    let mut total: BTreeMap<String, i128> = BTreeMap::new();
    let sidecars = pod
        .list("/spec/initContainers")
        .iter()
        .filter(|one| one.text("/restartPolicy") == "Always");
    for (name, amount) in pod.list("/spec/containers").iter().chain(sidecars).flat_map(of) {
        *total.entry(name).or_default() += amount;
    }
    for (name, amount) in pod.list("/spec/initContainers").iter().flat_map(of) {
        let entry = total.entry(name).or_default();
        *entry = (*entry).max(amount);
    }
    for (name, amount) in pod.pointer("/spec").into_iter().flat_map(of) {
        total.insert(name, amount);
    }
    for (name, value) in pod.map("/spec/overhead").into_iter().flatten() {
        let amount = value.as_str().and_then(quantity::millis).unwrap_or(0);
        *total.entry(name.clone()).or_default() += amount;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(extra: Value) -> Object {
        let mut node = json!({"metadata": {"name": "n", "labels": {"disk": "fast"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}});
        node["spec"] = extra;
        ("nodes//n".into(), Arc::new(node))
    }

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec})
    }

    fn asks(cpu: &str) -> Value {
        pod(json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]}))
    }

    #[test]
    fn a_fitting_node_is_chosen() {
        assert_eq!(choose(&asks("2"), &[node(json!({}))], &[]), Ok("n".into()));
    }

    #[test]
    fn each_refusal_has_its_words() {
        let after = |text: &str, preemption: &str| {
            Err(format!(
                "0/1 nodes are available: 1 {text}. preemption: 0/1 nodes are available: 1 {preemption}."
            ))
        };
        let unhelpful = "Preemption is not helpful for scheduling";
        assert_eq!(
            choose(&asks("3"), &[node(json!({}))], &[]),
            after("Insufficient cpu", "No preemption victims found for incoming pod")
        );
        assert_eq!(
            choose(&asks("1"), &[node(json!({"unschedulable": true}))], &[]),
            after("node(s) were unschedulable", unhelpful)
        );
        let tainted = node(json!({"taints": [{"key": "a", "effect": "NoSchedule"}]}));
        assert_eq!(
            choose(&asks("1"), &[tainted], &[]),
            after("node(s) had untolerated taint(s)", unhelpful)
        );
        let picky = pod(json!({"nodeSelector": {"disk": "slow"}}));
        assert_eq!(
            choose(&picky, &[node(json!({}))], &[]),
            after("node(s) didn't match Pod's node affinity/selector", unhelpful)
        );
        assert_eq!(choose(&asks("1"), &[], &[]), Err("no nodes available to schedule pods".into()));
    }

    #[test]
    fn a_pod_of_higher_priority_chooses_before_those_that_wait_longer() {
        let waits = |name: &str, priority: i64, since: &str| {
            let mut pod = pod(json!({"schedulerName": NAME, "priority": priority}));
            pod.put("/metadata/creationTimestamp", since);
            (name.to_owned(), Arc::new(pod))
        };
        let mut bound = pod(json!({"schedulerName": NAME, "nodeName": "n", "priority": 9}));
        bound.put("/metadata/creationTimestamp", "2026-01-01T00:00:00Z");
        let pods = [
            waits("a", 0, "2026-01-01T00:00:02Z"),
            waits("b", 0, "2026-01-01T00:00:01Z"),
            ("c".to_owned(), Arc::new(bound)),
            waits("d", 5, "2026-01-01T00:00:03Z"),
        ];
        assert_eq!(waiting(&pods), [3, 1, 0]);
    }

    #[test]
    fn pods_that_are_there_take_room_and_ports() {
        let there = |name: &str| {
            let mut pod = pod(json!({"nodeName": "n", "containers": [
                {"ports": [{"hostPort": 80, "protocol": "TCP"}], "resources": {"requests": {"cpu": "1"}}}]}));
            pod.put("/metadata/name", name);
            (name.to_owned(), Arc::new(pod))
        };
        let nodes = [node(json!({}))];
        assert!(choose(&asks("1500m"), &nodes, &[there("a")]).is_err());
        assert!(choose(&asks("1"), &nodes, &[there("a")]).is_ok());
        assert!(choose(&asks("0"), &nodes, &[there("a"), there("b")]).is_err(), "two pods at most");
        let same_port =
            pod(json!({"containers": [{"ports": [{"hostPort": 80, "protocol": "TCP"}]}]}));
        assert!(choose(&same_port, &nodes, &[there("a")]).unwrap_err().contains("free ports"));
    }
}
