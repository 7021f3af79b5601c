//! Nodes: each gets a range of pod addresses; one whose lease is no longer renewed is marked
//! unknown. Its pods are left alone: on a single node there is nowhere else to run them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Happening, record};
use crate::api::Api;
use crate::failure::Failure;
use crate::object::{ObjectExt, parse_stamp, stamp};
use crate::resource::{Kind, key, prefix};
use crate::verbs::pod::set_condition;

/// How long a lease may go without renewal (upstream's monitor grace period).
const GRACE: Duration = Duration::from_secs(50);
/// How often leases are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// The most nodes that get a range.
const MAX_NODES: u32 = 256;

/// Gives nodes without a range the next free one.
pub(super) async fn give_ranges(api: &Api) -> Result<(), Failure> {
    let lacking = |node: &Value| node.text("/spec/podCIDR").is_empty();
    if !api.store.list(&prefix(Kind::Node, "")).items.iter().any(|(_, node)| lacking(node)) {
        return Ok(());
    }
    let base = api.settings.pod_cidr;
    api.store
        .write(move |tx| {
            let nodes = tx.list(&prefix(Kind::Node, ""));
            let mut taken: BTreeSet<String> =
                nodes.iter().map(|(_, node)| node.text("/spec/podCIDR").to_owned()).collect();
            for (key, node) in nodes.iter().filter(|(_, node)| lacking(node)) {
                let Some(range) = next_range(base, &taken) else { continue };
                taken.insert(range.clone());
                let mut node = Value::clone(node);
                node.put("/spec/podCIDRs", json!([range]));
                node.put("/spec/podCIDR", range);
                tx.put(key, node);
            }
            Ok(())
        })
        .await
}

/// The first range of the configured size, from the configured one on, that no node has.
fn next_range(base: Ipv4Net, taken: &BTreeSet<String>) -> Option<String> {
    let size = 1u64 << (32 - u32::from(base.prefix_len()));
    let first = u64::from(u32::from(base.network()));
    (0..u64::from(MAX_NODES))
        .filter_map(|index| u32::try_from(first + index * size).ok())
        .map(|start| format!("{}/{}", std::net::Ipv4Addr::from(start), base.prefix_len()))
        .find(|range| !taken.contains(range))
}

/// Marks nodes whose lease is stale.
pub(super) async fn watch_leases(api: Arc<Api>) {
    // After a start, agents first need time to find the server again.
    let mut wait = GRACE;
    loop {
        tokio::select! {
            () = api.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = PERIOD;
        for (_, node) in api.store.list(&prefix(Kind::Node, "")).items {
            let lease = api.store.get(&key(Kind::Lease, "kube-node-lease", node.name()));
            if is_lost(&node, lease.as_deref(), Timestamp::now())
                && let Err(failure) = mark_lost(&api, node.name()).await
            {
                tracing::warn!(%failure, node = node.name(), "mark a lost node");
            }
        }
    }
}

/// Whether a node stopped renewing and is not marked yet.
fn is_lost(node: &Value, lease: Option<&Value>, now: Timestamp) -> bool {
    let ready = node.list("/status/conditions").iter().find(|one| one.text("/type") == "Ready");
    let known = ready.is_some_and(|ready| ready.text("/status") != "Unknown");
    let renewed = lease.and_then(|lease| parse_stamp(lease.text("/spec/renewTime")));
    let heard = renewed.max(ready.and_then(|one| parse_stamp(one.text("/lastHeartbeatTime"))));
    let grace = i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX);
    known && heard.is_some_and(|heard| now.as_second() - heard.as_second() > grace)
}

async fn mark_lost(api: &Api, name: &str) -> Result<(), Failure> {
    let key = key(Kind::Node, "", name);
    api.store
        .write(move |tx| {
            let Some(node) = tx.get(&key) else { return Ok(()) };
            let mut lost = Value::clone(&node);
            for condition in node.list("/status/conditions") {
                let mut condition = condition.clone();
                condition.put("/status", "Unknown");
                condition.put("/reason", "NodeStatusUnknown");
                condition.put("/message", "Kubelet stopped posting node status.");
                condition.put("/lastTransitionTime", stamp(Timestamp::now()));
                set_condition(&mut lost, condition);
            }
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            record(
                tx,
                &Happening {
                    about: &node,
                    kind: Kind::Node,
                    class: "Normal",
                    reason: "NodeNotReady",
                    message: &message,
                    component: "node-controller",
                },
            );
            tx.put(&key, lost);
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_handed_out_in_order() {
        let base: Ipv4Net = "10.244.0.0/24".parse().unwrap();
        let mut taken = BTreeSet::new();
        assert_eq!(next_range(base, &taken).unwrap(), "10.244.0.0/24");
        taken.insert("10.244.0.0/24".to_owned());
        assert_eq!(next_range(base, &taken).unwrap(), "10.244.1.0/24");
    }

    #[test]
    fn a_node_is_lost_when_its_lease_is_old() {
        let node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let lease = json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
        let at = |text: &str| text.parse().unwrap();
        assert!(!is_lost(&node, Some(&lease), at("2026-01-01T00:00:40Z")));
        assert!(is_lost(&node, Some(&lease), at("2026-01-01T00:01:00Z")));
        assert!(!is_lost(&node, None, at("2026-01-01T00:01:00Z")), "never heard of");
    }
}
