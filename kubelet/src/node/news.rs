//! What of a node's changes is an event: a reboot, a cordon and its end. Pure.

use k8s_openapi::api::core::v1::{Node, NodeStatus};

use crate::events::Severity;

/// An event's severity, reason and message.
pub(super) type News = (Severity, &'static str, String);

/// That the host was started anew since the status was reported last.
pub(super) fn reboot(name: &str, old: Option<&NodeStatus>, new: &NodeStatus) -> Option<News> {
    let boot = |status: &NodeStatus| {
        let id = status.node_info.as_ref().map(|info| info.boot_id.clone());
        id.filter(|id| !id.is_empty())
    };
    let (old, new) = (old.and_then(boot)?, boot(new)?);
    let message = format!("Node {name} has been rebooted, boot id: {new}");
    (old != new).then_some((Severity::Warning, "Rebooted", message))
}

/// That pods are to come to the node again, or no more.
pub(super) fn cordon(name: &str, old: &Node, new: &Node) -> Option<News> {
    let is_closed = |node: &Node| node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    // One that was not read yet says nothing.
    old.metadata.uid.as_ref()?;
    let reason = match (is_closed(old), is_closed(new)) {
        (false, true) => "NodeNotSchedulable",
        (true, false) => "NodeSchedulable",
        _ => return None,
    };
    Some((Severity::Normal, reason, format!("Node {name} status is now: {reason}")))
}

/// Whether `one` is an older form of the same node as `other`. Resource versions are numbers that grow
/// (KEP-5504).
pub(super) fn is_older(one: &Node, other: &Node) -> bool {
    let version = |node: &Node| node.metadata.resource_version.as_ref()?.parse::<u64>().ok();
    let of_same = one.metadata.uid == other.metadata.uid;
    of_same && version(one).zip(version(other)).is_some_and(|(one, other)| one < other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn booted(id: &str) -> NodeStatus {
        let info = json!({"bootID": id, "architecture": "", "containerRuntimeVersion": "",
            "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
            "operatingSystem": "", "osImage": "", "systemUUID": ""});
        serde_json::from_value(json!({"nodeInfo": info})).unwrap()
    }

    #[test]
    fn only_another_boot_is_a_reboot() {
        let told = |old: &NodeStatus| reboot("n", Some(old), &booted("b"));
        assert_eq!(told(&booted("b")), None);
        assert_eq!(told(&booted("")), None, "nothing was known");
        assert_eq!(reboot("n", None, &booted("b")), None);
        let (severity, reason, message) = told(&booted("a")).unwrap();
        assert_eq!((severity, reason), (Severity::Warning, "Rebooted"));
        assert_eq!(message, "Node n has been rebooted, boot id: b");
    }

    #[test]
    fn versions_are_compared_as_numbers_and_only_of_the_same_node() {
        let node = |uid: &str, version: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"uid": uid, "resourceVersion": version}}))
                .unwrap()
        };
        assert!(is_older(&node("u", "9"), &node("u", "10")));
        assert!(!is_older(&node("u", "10"), &node("u", "10")));
        assert!(!is_older(&node("v", "9"), &node("u", "10")));
        assert!(!is_older(&node("u", "opaque"), &node("u", "10")));
    }

    #[test]
    fn a_cordon_and_its_end_are_told_of_a_node_that_was_known() {
        let node = |uid: Option<&str>, closed: bool| -> Node {
            serde_json::from_value(
                json!({"metadata": {"uid": uid}, "spec": {"unschedulable": closed}}),
            )
            .unwrap()
        };
        let reason = |old, new| cordon("n", &old, &new).map(|(_, reason, _)| reason);
        let (open, closed) = (|| node(Some("u"), false), || node(Some("u"), true));
        assert_eq!(reason(open(), closed()), Some("NodeNotSchedulable"));
        assert_eq!(reason(closed(), open()), Some("NodeSchedulable"));
        assert_eq!(reason(closed(), closed()), None);
        assert_eq!(reason(node(None, false), closed()), None);
    }
}
