//! Keeps the API server believing in the node: the Lease every few seconds, the status when it
//! changes and from time to time. A server that is away is asked again; pods do not notice.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use berth_runtime::interface::Images;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::extended::Advertised;
use super::facts::{self, Places};
use super::object::{self, Pressure};
use super::{Shared, news, patch_status};
use crate::api_retry::Retry;
use crate::config::Config;
use crate::events::{Recorder, Severity};
use crate::eviction::Conditions;
use crate::shutdown::Standing;

/// What is seen of the node beyond its facts.
#[derive(Clone)]
pub struct Signs {
    /// What of it is short.
    pub conditions: watch::Receiver<Conditions>,
    /// Whether it is about to go down.
    pub standing: Standing,
}

/// Where leases of nodes live.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// How long one request may take, so that one that hangs does not cost a lease.
const REQUEST: Duration = Duration::from_secs(8);

/// Renews the lease until shutdown.
pub async fn keep_lease(
    config: Config,
    client: kube::Client,
    node: Shared,
    shutdown: CancellationToken,
) {
    let api: Api<Lease> = Api::namespaced(client, LEASE_NAMESPACE);
    let mut retry = Retry::default();
    let mut known: Option<Lease> = None;
    loop {
        let renewal = renew(&api, &config, &node, known.take());
        let wait = match tokio::time::timeout(REQUEST, renewal).await {
            Ok(Ok(lease)) => {
                known = Some(lease);
                retry.reset();
                config.heartbeat.lease_duration / 4
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "lease not renewed, trying again");
                // As long as it is, a lease is not waited for longer than it is renewed at.
                let wait = retry.next_wait(crate::api_retry::retry_after(&error));
                wait.min(config.heartbeat.lease_duration / 4)
            }
            Err(_) => {
                tracing::warn!("lease not renewed in time, trying again");
                retry.next_wait(None).min(config.heartbeat.lease_duration / 4)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Renews the lease as it was last seen; looks at it anew where somebody else changed it.
async fn renew(
    api: &Api<Lease>,
    config: &Config,
    node: &Shared,
    known: Option<Lease>,
) -> Result<Lease, kube::Error> {
    let now = config.clock.now();
    if let Some(lease) = known {
        let renewed = renewed(lease, config, now);
        let replaced = api.replace(&config.node_name, &PostParams::default(), &renewed).await;
        match replaced {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            other => return other,
        }
    }
    match api.get_opt(&config.node_name).await? {
        Some(lease) => {
            let renewed = renewed(lease, config, now);
            api.replace(&config.node_name, &PostParams::default(), &renewed).await
        }
        None => {
            let lease = fresh(config, node, now);
            api.create(&PostParams::default(), &lease).await
        }
    }
}

fn fresh(config: &Config, node: &Shared, now: Timestamp) -> Lease {
    let uid = {
        let node = node.read().unwrap_or_else(PoisonError::into_inner);
        node.metadata.uid.clone()
    };
    let owner = uid.map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: config.node_name.clone(),
        uid,
        ..OwnerReference::default()
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: None,
    };
    renewed(lease, config, now)
}

fn renewed(mut lease: Lease, config: &Config, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(config.node_name.clone());
    let seconds = config.heartbeat.lease_duration.as_secs();
    spec.lease_duration_seconds = i32::try_from(seconds).ok();
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// Reports the node's status until shutdown.
pub async fn keep_status(
    config: Config,
    client: kube::Client,
    (node, images, Signs { mut conditions, standing }): (Shared, Arc<dyn Images>, Signs),
    events: Recorder,
    shutdown: CancellationToken,
) {
    let api: Api<Node> = Api::all(client);
    let places = Places::host(&config.root_dir);
    let mut reported: Option<(NodeStatus, Instant)> = None;
    let mut endings = standing.changes();
    loop {
        let known = {
            let node = node.read().unwrap_or_else(PoisonError::into_inner);
            node.status.clone()
        };
        // Who looks after nodes may have taken this one for gone: it says at once that it is not.
        reported.take_if(|(status, _)| {
            known.as_ref().is_some_and(|known| object::contradicts(known, status))
        });
        let advertised = Advertised::of(known.as_ref());
        let are_clouds = object::has_addresses_of_cloud(&config, known.as_ref());
        let previous = reported.as_ref().map(|(status, _)| status.clone()).or(known);
        let facts = facts::read(&places);
        let ending = *endings.borrow_and_update();
        let pressure = Pressure { ending, ..Pressure::from(&*conditions.borrow_and_update()) };
        let mut wanted =
            object::status(&config, &facts, pressure, (config.clock.now(), previous.as_ref()));
        advertised.add_to(&mut wanted);
        wanted.addresses = wanted.addresses.filter(|_| !are_clouds);
        wanted.images = match images.list().await {
            Ok(all) => Some(super::images::told(all, config.max_images)),
            Err(error) => {
                tracing::warn!(%error, "images not listed");
                previous.as_ref().and_then(|status| status.images.clone())
            }
        };
        let is_due = reported.as_ref().is_none_or(|(status, at)| {
            !object::says_the_same(status, &wanted)
                || advertised.is_news()
                || at.elapsed() >= config.heartbeat.status_report
        });
        if is_due {
            let patch = json!({"status": wire(&wanted, &advertised)});
            let patching = patch_status(&api, &config.node_name, patch);
            match tokio::time::timeout(REQUEST, patching).await {
                Ok(Ok(updated)) => {
                    tell_changes(&config, &events, previous.as_ref(), &wanted);
                    super::take(&node, updated, (&events, &config.node_name));
                    reported = Some((wanted, Instant::now()));
                    standing.note_reported(ending);
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                    // Somebody deleted the node while it lives: it comes back.
                    tracing::warn!(node = %config.node_name, "node was deleted, registering it again");
                    reported = None;
                    let client = api.clone().into_client();
                    if let Ok(again) = super::register(&config, &client, &facts, &shutdown).await {
                        *node.write().unwrap_or_else(PoisonError::into_inner) = again;
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "node status not reported"),
                Err(_) => tracing::warn!("node status not reported in time"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(config.heartbeat.status_check) => {}
            Ok(()) = conditions.changed() => {}
            Ok(()) = endings.changed() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// The status as it is patched: addresses are replaced as a whole, since a merge would keep old ones.
fn wire(status: &NodeStatus, advertised: &Advertised) -> Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    advertised.withdraw_from(&mut body);
    if let Some(Value::Array(addresses)) = body.get_mut("addresses") {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    body
}

fn tell_changes(
    config: &Config,
    events: &Recorder,
    previous: Option<&NodeStatus>,
    status: &NodeStatus,
) {
    if let Some((severity, reason, message)) = news::reboot(&config.node_name, previous, status) {
        events.node(&config.node_name, severity, reason, message);
    }
    let before = |type_: &str| {
        let conditions = previous.and_then(|p| p.conditions.as_ref());
        let mut found = conditions.into_iter().flatten().filter(|c| c.type_ == type_);
        found.next().map(|c| c.status.clone())
    };
    for condition in status.conditions.iter().flatten() {
        if before(&condition.type_).as_deref() == Some(&condition.status) {
            continue;
        }
        let reason = match (condition.type_.as_str(), condition.status.as_str()) {
            ("MemoryPressure", "False") => "NodeHasSufficientMemory",
            ("MemoryPressure", _) => "NodeHasInsufficientMemory",
            ("DiskPressure", "False") => "NodeHasNoDiskPressure",
            ("DiskPressure", _) => "NodeHasDiskPressure",
            ("PIDPressure", "False") => "NodeHasSufficientPID",
            ("PIDPressure", _) => "NodeHasInsufficientPID",
            ("Ready", "True") => "NodeReady",
            _ => "NodeNotReady",
        };
        let message = format!("Node {} status is now: {reason}", config.node_name);
        events.node(&config.node_name, Severity::Normal, reason, message);
    }
}

#[cfg(test)]
mod tests;
