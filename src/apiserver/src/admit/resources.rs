//! The names of resources that amounts are of, as upstream's validation tells them apart.

use serde_json::{Value, json};

use crate::failure::Cause;
use crate::selector::label;

/// What names huge pages of a size.
pub(super) const HUGE: &str = "hugepages-";

/// The names without a domain that mean something, besides those of containers.
const STANDARD: [&str; 11] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

fn is_for_containers(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE)
}

/// Checks the name of something that a container can ask for: what every node has, or what devices are
/// called.
pub(super) fn check_for_container(field: &str, name: &str, causes: &mut Vec<Cause>) {
    let problem = match name.contains('/') {
        _ if !label::is_qualified_name(name) => label::NAME_RULE,
        false if !is_for_containers(name) => "must be a standard resource for containers",
        true if name.starts_with("requests.") => "doesn't follow extended resource name standard",
        _ => return,
    };
    causes.push(Cause::invalid(field, &json!(name), problem));
}

/// Checks the name of anything that there are amounts of.
pub(super) fn check(field: &str, name: &str, causes: &mut Vec<Cause>) {
    let of_containers = ["requests.", "limits."].iter().find_map(|part| name.strip_prefix(part));
    let known = is_for_containers(of_containers.unwrap_or(name)) || STANDARD.contains(&name);
    let problem = match name.contains('/') {
        _ if !label::is_qualified_name(name) => label::NAME_RULE,
        false if !known => "must be a standard resource type or fully qualified",
        _ => return,
    };
    causes.push(Cause::invalid(field, &json!(name), problem));
}

/// Whether more of it may be limited than is asked for: the node's own resources but huge pages.
pub(super) fn may_be_overcommitted(name: &str) -> bool {
    (!name.contains('/') || name.contains("kubernetes.io/")) && !name.starts_with(HUGE)
}

/// The text of an amount.
pub(super) fn text(amount: &Value) -> &str {
    amount.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(check: fn(&str, &str, &mut Vec<Cause>), names: &[&str]) -> usize {
        let mut causes = Vec::new();
        names.iter().for_each(|name| check("f", name, &mut causes));
        causes.len()
    }

    #[test]
    fn containers_ask_for_what_nodes_and_devices_have() {
        let good = ["cpu", "memory", "ephemeral-storage", "hugepages-2Mi", "a.io/gpu"];
        assert_eq!(problems(check_for_container, &good), 0);
        let bad = ["pods", "storage", "gpu", "requests.a.io/gpu", "a b", ""];
        assert_eq!(problems(check_for_container, &bad), bad.len());
        assert_eq!(problems(check, &good), 0);
        assert_eq!(problems(check, &["storage", "pods", "requests.cpu", "limits.memory"]), 0);
        assert_eq!(problems(check, &["gpu", "requests.gpu", "a b"]), 3);
    }

    #[test]
    fn devices_and_huge_pages_are_not_overcommitted() {
        assert!(may_be_overcommitted("cpu") && may_be_overcommitted("kubernetes.io/x"));
        assert!(!may_be_overcommitted("a.io/gpu") && !may_be_overcommitted("hugepages-1Gi"));
    }
}
