//! The pod address ranges of this node and the other nodes, as the API server has them.
//!
//! The binary feeds the network from here: its own ranges before the first pod, the other nodes'
//! ranges whenever they change.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::source::{self, Event, Selection};

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its internal addresses, primary first.
    pub addresses: Vec<IpAddr>,
    /// The address ranges of its pods.
    pub pod_cidrs: Vec<IpNet>,
}

/// What is known of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nodes {
    /// The ranges of this node's own pods; empty until somebody gives it any.
    pub own_pod_cidrs: Vec<IpNet>,
    /// The other nodes that have an address and a range, by name.
    pub peers: Vec<Peer>,
}

/// The pod address ranges of a node; what cannot be read is left out.
pub fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let listed = spec.pod_cidrs.iter().flatten();
    let mut cidrs: Vec<IpNet> = listed.filter_map(|c| c.parse().ok()).collect();
    if cidrs.is_empty() {
        let single = spec.pod_cidr.as_deref();
        let single: Option<IpNet> = single.and_then(|c| c.parse().ok());
        cidrs.extend(single);
    }
    cidrs
}

fn peer(node: &Node) -> Option<Peer> {
    let status = node.status.as_ref()?;
    let addresses: Vec<IpAddr> = status
        .addresses
        .iter()
        .flatten()
        .filter(|a| a.type_ == "InternalIP")
        .filter_map(|a| a.address.parse().ok())
        .filter(|ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast())
        .collect();
    let pod_cidrs = pod_cidrs(node);
    let name = node.metadata.name.clone()?;
    (!addresses.is_empty() && !pod_cidrs.is_empty()).then_some(Peer { name, addresses, pod_cidrs })
}

/// The others that have an address and a range.
fn peers(nodes: &BTreeMap<String, Node>, own: &str) -> Vec<Peer> {
    let others = nodes.iter().filter(|(name, _)| *name != own);
    others.filter_map(|(_, node)| peer(node)).collect()
}

/// Follows all nodes until shutdown; `nodes` always has the newest view.
///
/// The node's own object has a watch of its own: the Node authorizer lets a node see no other, and one
/// that may not is to know its range all the same.
pub async fn follow(
    client: kube::Client,
    own: String,
    nodes: watch::Sender<Nodes>,
    shutdown: CancellationToken,
) {
    let api: Api<Node> = Api::all(client);
    let only_own = Selection { fields: Some(format!("metadata.name={own}")), labels: None };
    let follow = |selection| {
        let (sender, changes) = mpsc::channel(64);
        (source::follow(api.clone(), selection, sender, shutdown.clone()), changes)
    };
    let (following_own, changes_of_own) = follow(only_own);
    let (following_all, changes_of_all) = follow(Selection::default());
    let keep_own = keep(changes_of_own, |known| {
        let cidrs = known.get(&own).map(pod_cidrs).unwrap_or_default();
        update(&nodes, |nodes| nodes.own_pod_cidrs = cidrs);
    });
    let keep_all = keep(changes_of_all, |known| {
        let peers = peers(known, &own);
        update(&nodes, |nodes| nodes.peers = peers);
    });
    tokio::join!(following_own, following_all, keep_own, keep_all);
}

/// Keeps the set that the changes make, and shows it after each.
async fn keep(mut changes: mpsc::Receiver<Event<Node>>, show: impl Fn(&BTreeMap<String, Node>)) {
    let mut known: BTreeMap<String, Node> = BTreeMap::new();
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    while let Some(change) = changes.recv().await {
        match change {
            Event::Synced(all) => {
                known = all.into_iter().map(|n| (name(&n), n)).collect();
            }
            Event::Applied(node) => {
                known.insert(name(&node), node);
            }
            Event::Deleted(node) => {
                known.remove(&name(&node));
            }
        }
        show(&known);
    }
}

/// Changes the view; who waits for it hears of it where it is another one then.
fn update(nodes: &watch::Sender<Nodes>, change: impl FnOnce(&mut Nodes)) {
    nodes.send_if_modified(|current| {
        let before = current.clone();
        change(current);
        *current != before
    });
}

/// Waits until the node has pod address ranges. `None` when the agent ends before.
pub async fn wait_for_pod_cidrs(
    nodes: &mut watch::Receiver<Nodes>,
    shutdown: &CancellationToken,
) -> Option<Vec<IpNet>> {
    tokio::select! {
        found = nodes.wait_for(|n| !n.own_pod_cidrs.is_empty()) => {
            found.ok().map(|n| n.own_pod_cidrs.clone())
        }
        () = shutdown.cancelled() => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, ip: &str, cidrs: &[&str]) -> (String, Node) {
        let node = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDRs": cidrs},
            "status": {"addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": ip},
            ]},
        }));
        (name.to_owned(), node.unwrap())
    }

    #[test]
    fn peers_need_an_address_and_a_range_and_exclude_the_node_itself() {
        let nodes = BTreeMap::from([
            node("a", "10.0.0.1", &["10.244.0.0/24"]),
            node("b", "10.0.0.2", &["10.244.1.0/24", "fd00:1::/64"]),
            node("c", "10.0.0.3", &[]),
            node("d", "127.0.0.1", &["10.244.3.0/24"]),
            node("e", "nonsense", &["10.244.4.0/24"]),
        ]);
        let peers = peers(&nodes, "a");
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].name, "b");
        assert_eq!(peers[0].pod_cidrs.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_may_see_no_other_knows_its_own_range() {
        let (_, own) = node("a", "10.0.0.1", &["10.244.0.0/24"]);
        let router = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let own = own.clone();
            async move {
                let refusal = json!({"kind": "Status", "status": "Failure", "code": 403});
                match (query.contains("metadata.name"), query.contains("watch=true")) {
                    (false, _) => (axum::http::StatusCode::FORBIDDEN, axum::Json(refusal)),
                    (true, true) => std::future::pending().await,
                    (true, false) => {
                        let list = json!({"metadata": {"resourceVersion": "1"}, "items": [own]});
                        (axum::http::StatusCode::OK, axum::Json(list))
                    }
                }
            }
        });
        let client = kube::Client::new(router, "default");
        let (sender, mut nodes) = watch::channel(Nodes::default());
        let shutdown = CancellationToken::new();
        let following = tokio::spawn(follow(client, "a".to_owned(), sender, shutdown.clone()));
        let cidrs = wait_for_pod_cidrs(&mut nodes, &shutdown).await.unwrap();
        assert_eq!(cidrs, ["10.244.0.0/24".parse::<IpNet>().unwrap()]);
        shutdown.cancel();
        following.await.unwrap();
    }
}
