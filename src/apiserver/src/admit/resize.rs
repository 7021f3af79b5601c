//! pods/resize: other amounts of processor time and memory for a pod that is there already
//! (KEP-1287; `ValidatePodResize`, and what the PodResizeValidator plugin asks of the node).

use serde_json::{Value, json};

use super::{is_mirror, pod_rules, qos_class, quantity};
use crate::failure::Cause;
use crate::object::ObjectExt;

const LISTS: [&str; 2] = ["containers", "initContainers"];
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Of an update nothing but the resources counts. Containers that were added, taken away or renamed
/// are left in it, for [`check`] to name.
pub(super) fn prepare(current: &Value, wanted: &mut Value) {
    let asked = std::mem::replace(wanted, current.clone());
    for list in LISTS {
        let pointer = format!("/spec/{list}");
        if !are_the_same(current.list(&pointer), asked.list(&pointer)) {
            pod_rules::restore(wanted, &asked, &pointer);
            continue;
        }
        for (kept, new) in wanted.list_mut(&pointer).iter_mut().zip(asked.list(&pointer)) {
            pod_rules::restore(kept, new, "/resources");
            pod_rules::restore(kept, new, "/resizePolicy");
        }
    }
    pod_rules::restore(wanted, &asked, "/spec/resources");
}

fn are_the_same(before: &[Value], after: &[Value]) -> bool {
    let names = |list: &[Value]| -> Vec<String> {
        list.iter().map(|container| container.text("/name").to_owned()).collect()
    };
    names(before) == names(after)
}

/// Checks that only amounts of processor time and memory change, none goes, and the class stays.
pub(super) fn check(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    if is_mirror(current) {
        causes.push(Cause::forbidden("", "static pods cannot be resized"));
        return;
    }
    check_policies(wanted, causes);
    let class = match current.text("/status/qosClass") {
        "" => qos_class(current),
        class => class,
    };
    let becomes = qos_class(wanted);
    if becomes != class {
        let detail = "Pod QOS Class may not change as a result of resizing";
        causes.push(Cause::invalid("spec", &json!(becomes), detail));
    }
    if !is_supported(current) {
        let detail = "Pod running on node without support for resize";
        causes.push(Cause::forbidden("spec", detail));
    }
    check_pod_level(current, wanted, causes);
    for list in LISTS {
        check_list(list, (current, wanted), causes);
    }
}

/// A node that resizes says of running containers what they have.
fn is_supported(pod: &Value) -> bool {
    let statuses = pod.list("/status/containerStatuses").iter();
    let mut running = statuses.filter(|status| status.has("/state/running"));
    running.next().is_none_or(|status| status.has("/resources"))
}

fn check_pod_level(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let (before, after) = (&current["spec"]["resources"], &wanted["spec"]["resources"]);
    if before.is_object() && !after.is_object() {
        let detail = "pod-level resources cannot be removed";
        causes.push(Cause::forbidden("spec.resources", detail));
        return;
    }
    for (of, what) in [("requests", "requests"), ("limits", "limits")] {
        if is_removed(before, after, of) {
            let detail = format!("pod-level resource {what} cannot be removed");
            causes.push(Cause::forbidden(format!("spec.resources.{of}"), &detail));
        }
    }
    if fixed(before) != fixed(after) {
        let detail = "only cpu and memory resources are mutable at pod-level";
        causes.push(Cause::forbidden("spec", detail));
    }
}

fn check_list(list: &str, (current, wanted): (&Value, &Value), causes: &mut Vec<Cause>) {
    let pointer = format!("/spec/{list}");
    let (before, after) = (current.list(&pointer), wanted.list(&pointer));
    if before.len() != after.len() {
        let detail = format!("{list} may not be added or removed on resize");
        causes.push(Cause::forbidden(format!("spec.{list}"), &detail));
        return;
    }
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        let path = format!("spec.{list}[{index}]");
        if before.text("/name") != after.text("/name") {
            let detail = format!("{list} may not be renamed or reordered on resize");
            causes.push(Cause::forbidden(format!("{path}.name"), &detail));
            continue;
        }
        pod_rules::check_resources(&path, after, causes);
        for of in ["requests", "limits"] {
            if is_removed(&before["resources"], &after["resources"], of) {
                let detail = format!("resource {of} cannot be removed");
                causes.push(Cause::forbidden(format!("{path}.resources.{of}"), &detail));
            }
        }
        let changes_more = fixed(&before["resources"]) != fixed(&after["resources"])
            || before.get("resizePolicy") != after.get("resizePolicy");
        let changes = before.get("resources") != after.get("resources");
        let restarts = after
            .list("/resizePolicy")
            .iter()
            .any(|policy| policy.text("/restartPolicy") == "RestartContainer");
        if changes_more && list == "containers" {
            let detail = "only cpu and memory resources are mutable";
            causes.push(Cause::forbidden("spec", detail));
        } else if changes_more {
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            causes.push(Cause::forbidden(path, detail));
        } else if changes && restarts && is_plain_init(list, after) {
            let detail = "non-sidecar init containers with a resize policy of RestartContainer \
                          cannot be resized";
            causes.push(Cause::forbidden(path, detail));
        }
    }
}

fn is_plain_init(list: &str, container: &Value) -> bool {
    list == "initContainers" && container.text("/restartPolicy") != "Always"
}

/// Whether an amount that was set is set no more.
fn is_removed(before: &Value, after: &Value, of: &str) -> bool {
    let pointer = format!("/{of}");
    let after = after.map(&pointer);
    let mut names = before.map(&pointer).into_iter().flatten().map(|(name, _)| name);
    names.any(|name| after.is_none_or(|after| !after.contains_key(name)))
}

/// What of resources no resize changes.
fn fixed(resources: &Value) -> Value {
    let mut rest = resources.clone();
    if rest.is_null() {
        rest = json!({});
    }
    for of in ["requests", "limits"] {
        if let Some(amounts) = rest.get_mut(of).and_then(Value::as_object_mut) {
            amounts.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
            if amounts.is_empty() {
                rest.take_out(&format!("/{of}"));
            }
        }
    }
    rest
}

/// Resize policies: of cpu and memory, each once; none that restarts what is never restarted.
pub(super) fn check_policies(pod: &Value, causes: &mut Vec<Cause>) {
    for list in LISTS {
        for (index, container) in pod.list(&format!("/spec/{list}")).iter().enumerate() {
            let path = format!("spec.{list}[{index}].resizePolicy");
            check_container_policies((&path, list, container), pod, causes);
        }
    }
}

fn check_container_policies(
    (path, list, container): (&str, &str, &Value),
    pod: &Value,
    causes: &mut Vec<Cause>,
) {
    let policies = container.list("/resizePolicy");
    for (index, policy) in policies.iter().enumerate() {
        let (resource, restart) = (policy.text("/resourceName"), policy.text("/restartPolicy"));
        if policies[..index].iter().any(|other| other.text("/resourceName") == resource) {
            causes.push(Cause::duplicate(format!("{path}[{index}]"), &policy["resourceName"]));
        }
        let choices =
            [(resource, &RESIZABLE[..]), (restart, &["NotRequired", "RestartContainer"][..])];
        for (value, allowed) in choices {
            match value {
                "" => causes.push(Cause::required(path, "")),
                value if !allowed.contains(&value) => {
                    causes.push(Cause::unsupported(path, &json!(value), allowed));
                }
                _ => {}
            }
        }
        if pod.text("/spec/restartPolicy") == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            causes.push(Cause::invalid(path, &json!(restart), detail));
        }
        if restart == "RestartContainer" && is_plain_init(list, container) {
            let field = format!("{path}[{index}].restartPolicy");
            let detail = "must not be set to 'RestartContainer' for non-sidecar initContainers";
            causes.push(Cause::invalid(field, &json!(restart), detail));
        }
    }
}

/// Why the pod's node could never give what a resize asks for.
pub(crate) fn beyond(pod: &Value, node: &Value) -> Option<String> {
    let requests = crate::control::scheduler::requests(pod);
    let lacks = |resource: &str, unit: i128| {
        let allocatable = node.text(&format!("/status/allocatable/{resource}"));
        let allocatable = quantity::millis(allocatable).unwrap_or(0);
        let wanted = requests.get(resource).copied().unwrap_or(0);
        let counted = |millis: i128| (millis + unit - 1) / unit;
        (wanted > allocatable).then(|| {
            let (wanted, allocatable) = (counted(wanted), counted(allocatable));
            format!("{resource}, requested: {wanted}, allocatable: {allocatable}")
        })
    };
    // Thousandths of a processor, and bytes.
    let lacking: Vec<String> =
        [lacks("cpu", 1), lacks("memory", 1000)].into_iter().flatten().collect();
    let text = "node didn't have enough allocatable resources";
    (!lacking.is_empty()).then(|| format!("{text}: {}", lacking.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {
            "restartPolicy": "Always", "nodeName": "n", "containers": containers}})
    }

    fn one(resources: Value) -> Value {
        pod(json!([{"name": "c", "image": "i", "resources": resources}]))
    }

    fn problems(before: &Value, after: &Value) -> Vec<String> {
        let mut wanted = after.clone();
        prepare(before, &mut wanted);
        let mut causes = Vec::new();
        check(before, &wanted, &mut causes);
        causes.iter().map(Cause::line).collect()
    }

    #[test]
    fn amounts_change_and_may_be_added() {
        let before = one(json!({"requests": {"cpu": "20m"}}));
        for after in [
            json!({"requests": {"cpu": "10m"}}),
            json!({"requests": {"cpu": "20m", "memory": "1Mi"}}),
            json!({"requests": {"cpu": "20m"}, "limits": {"cpu": "30m"}}),
        ] {
            assert_eq!(problems(&before, &one(after.clone())), Vec::<String>::new(), "{after}");
        }
    }

    #[test]
    fn what_upstream_refuses_is_refused_in_its_words() {
        let guaranteed = json!({"cpu": "20m", "memory": "35Mi"});
        let burstable = json!({"requests": {"cpu": "20m", "memory": "35Mi"}});
        for (before, after, text) in [
            (json!({}), json!({"requests": {"memory": "1Mi"}}), "Pod QOS Class may not change"),
            (
                json!({"requests": guaranteed, "limits": guaranteed}),
                json!({"requests": guaranteed}),
                "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
            ),
            (burstable.clone(), json!({"requests": {"cpu": "20m"}}), "requests cannot be removed"),
            (
                json!({"requests": {"cpu": "20m", "ephemeral-storage": "1"}}),
                json!({"requests": {"cpu": "20m", "ephemeral-storage": "3"}}),
                "only cpu and memory resources are mutable",
            ),
            (
                burstable.clone(),
                json!({"requests": {"cpu": "20m", "memory": "35Mi"}, "limits": {"cpu": "1m"}}),
                "must be less than or equal to cpu limit",
            ),
        ] {
            let found = problems(&one(before), &one(after.clone()));
            assert!(found.iter().any(|cause| cause.contains(text)), "{after}: {found:?}");
        }
    }

    #[test]
    fn containers_keep_their_names_places_and_number() {
        let two = |a: &str, b: &str| pod(json!([{"name": a}, {"name": b}]));
        let found = problems(&two("a", "b"), &two("b", "a"));
        assert_eq!(
            found,
            [0, 1].map(|i| format!(
                "spec.containers[{i}].name: Forbidden: containers may not be renamed or reordered \
                 on resize"
            ))
        );
        let found = problems(&two("a", "b"), &pod(json!([{"name": "a"}])));
        assert_eq!(
            found,
            ["spec.containers: Forbidden: containers may not be added or removed on resize"]
        );
    }

    #[test]
    fn nothing_but_resources_is_taken_from_a_resize() {
        let before = one(json!({"requests": {"cpu": "1"}}));
        let mut wanted = one(json!({"requests": {"cpu": "2"}}));
        wanted.put("/metadata/labels", json!({"a": "b"}));
        wanted["spec"]["containers"][0]["image"] = json!("other");
        prepare(&before, &mut wanted);
        assert_eq!(wanted, one(json!({"requests": {"cpu": "2"}})));
    }

    #[test]
    fn a_node_that_is_too_small_is_named_with_its_numbers() {
        let node = json!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}});
        let fits = one(json!({"requests": {"cpu": "2", "memory": "1Gi"}}));
        assert_eq!(beyond(&fits, &node), None);
        let big = one(json!({"requests": {"cpu": "2500m", "memory": "2Gi"}}));
        assert_eq!(
            beyond(&big, &node).unwrap(),
            "node didn't have enough allocatable resources: cpu, requested: 2500, allocatable: \
             2000; memory, requested: 2147483648, allocatable: 1073741824"
        );
    }

    #[test]
    fn policies_name_cpu_and_memory_once_and_restart_only_what_is_restarted() {
        let with = |policies: Value| pod(json!([{"name": "c", "resizePolicy": policies}]));
        let policy = |resource: &str, restart: &str| json!({"resourceName": resource, "restartPolicy": restart});
        let count = |pod: &Value| {
            let mut causes = Vec::new();
            check_policies(pod, &mut causes);
            causes.len()
        };
        let good =
            with(json!([policy("cpu", "NotRequired"), policy("memory", "RestartContainer")]));
        assert_eq!(count(&good), 0);
        for bad in [
            json!([policy("cpu", "NotRequired"), policy("cpu", "NotRequired")]),
            json!([policy("disk", "NotRequired")]),
            json!([policy("cpu", "Perhaps")]),
            json!([policy("", "NotRequired")]),
        ] {
            assert_eq!(count(&with(bad.clone())), 1, "{bad}");
        }
        let mut never = good.clone();
        never["spec"]["restartPolicy"] = json!("Never");
        assert_eq!(count(&never), 1);
        let mut init = pod(json!([]));
        init["spec"]["initContainers"] =
            json!([{"name": "i", "resizePolicy": [policy("cpu", "RestartContainer")]}]);
        assert_eq!(count(&init), 1);
        init["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
        assert_eq!(count(&init), 0);
    }
}
