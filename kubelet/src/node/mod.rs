//! The Node object: registered, kept up to date, and kept alive by its Lease.
//!
//! [`facts`] reads what the host is, [`object`] turns that into the Node (pure), [`extended`] adds what
//! others advertise, [`heartbeat`] brings it to the API server, [`peers`] follows the node's own pod
//! address ranges and those of the others.

mod extended;
pub mod facts;
pub mod heartbeat;
mod images;
mod news;
pub mod object;
pub mod peers;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api_retry::{self, Retry};
use crate::config::Config;
use crate::events::Recorder;
use crate::server::tls;
use facts::Facts;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(15);

/// Why the node is not registered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent ended before the API server answered.
    #[error("the agent ended before node {node:?} was registered")]
    Shutdown {
        /// The node.
        node: String,
    },
    /// The API server does not allow it, and asking again will not help.
    #[error("the API server refuses to register node {node:?}")]
    Refused {
        /// The node.
        node: String,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The annotation by which a node tells which certificate it shows, where no authority has signed it:
/// the SHA-256 of the certificate, hexadecimal. Only the node itself may write it, so that an API
/// server that finds it can trust that certificate and no other.
pub const SERVING_CERTIFICATE: &str = "berth.io/serving-certificate-sha256";

/// Registers the node, or takes over the object of its name; tries until the API server answers.
/// Returns the object as the server has it.
pub async fn register(
    config: &Config,
    client: &kube::Client,
    facts: &Facts,
    shutdown: &CancellationToken,
) -> Result<Node, Error> {
    let api: Api<Node> = Api::all(client.clone());
    let starting = object::Pressure { starting: true, ..object::Pressure::default() };
    let mut wanted = object::node(config, facts, starting, config.clock.now());
    if let Some(digest) = tls::own_digest(config) {
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        annotations.insert(SERVING_CERTIFICATE.to_owned(), digest);
    }
    let mut retry = Retry::default();
    loop {
        let attempt = tokio::time::timeout(REQUEST, register_once(&api, config, &wanted)).await;
        let asked = match attempt {
            Ok(Ok(node)) => return Ok(node),
            Ok(Err(error)) if is_final(&error) => {
                return Err(Error::Refused {
                    node: config.node_name.clone(),
                    source: Box::new(error),
                });
            }
            Ok(Err(error)) => {
                tracing::warn!(node = %config.node_name, %error, "node not registered, trying again");
                api_retry::retry_after(&error)
            }
            Err(_) => {
                tracing::warn!(node = %config.node_name, "node not registered in time");
                None
            }
        };
        tokio::select! {
            () = tokio::time::sleep(retry.next_wait(asked)) => {}
            () = shutdown.cancelled() => {
                return Err(Error::Shutdown { node: config.node_name.clone() });
            }
        }
    }
}

fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 422))
}

async fn register_once(
    api: &Api<Node>,
    config: &Config,
    wanted: &Node,
) -> Result<Node, kube::Error> {
    match api.create(&PostParams::default(), wanted).await {
        Ok(node) => {
            tracing::info!(node = %config.node_name, "node registered");
            // A server that keeps status apart has dropped it at creation.
            let patch = json!({"status": wanted.status});
            return match node.status.as_ref().and_then(|s| s.node_info.as_ref()) {
                Some(_) => Ok(node),
                None => patch_status(api, &config.node_name, patch).await,
            };
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error),
    }
    // It exists: its labels are brought up to date, its taints are others' business, and its status
    // is left to the heartbeat, so that a restart of the agent does not make it flap.
    let metadata = json!({"metadata": {
        "labels": wanted.metadata.labels,
        "annotations": wanted.metadata.annotations,
    }});
    api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(metadata)).await
}

pub(crate) async fn patch_status(
    api: &Api<Node>,
    name: &str,
    patch: serde_json::Value,
) -> Result<Node, kube::Error> {
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await
}

/// A node whose newest state is known to all who ask: admission, downward API.
pub type Shared = Arc<std::sync::RwLock<Node>>;

/// Takes in what the API server has of the node, and tells of a cordon or its end. What is older than
/// what is known is not taken in: the answer to a write may overtake the watch.
pub(crate) fn take(shared: &Shared, newest: Node, (events, name): (&Recorder, &str)) {
    let mut node = shared.write().unwrap_or_else(PoisonError::into_inner);
    if news::is_older(&newest, &node) {
        return;
    }
    if let Some((severity, reason, message)) = news::cordon(name, &node, &newest) {
        events.node(name, severity, reason, message);
    }
    *node = newest;
}
