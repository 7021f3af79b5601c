//! Fills the runtime's network seam with the `cni` crate.
//!
//! The network can only be made once the API has told the node its pod range, so sandboxes that are
//! asked for earlier are told why they must wait.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use berth_cni::{Attach, AttachmentId, HostPort, Network, Peer};
use berth_runtime::interface::{AttachRequest, PodNetwork, PortMapping, Protocol, SandboxId};
use tracing::warn;

/// The pod network, from before it exists.
#[derive(Default)]
pub(crate) struct LateNetwork {
    network: OnceLock<Network>,
    /// The whole network is about to be removed, so that no sandbox need be taken from it.
    goes: AtomicBool,
}

impl LateNetwork {
    /// A network that is not there yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// It is there now.
    pub(crate) fn set(&self, network: Network) {
        if self.network.set(network).is_err() {
            warn!("the pod network was opened twice; the first stays");
        }
    }

    /// The whole network will be removed once the sandboxes are: they need not be detached.
    pub(crate) fn remove_later(&self) {
        self.goes.store(true, Ordering::Relaxed);
    }

    /// Routes to other nodes' pods.
    pub(crate) async fn set_peers(&self, peers: Vec<Peer>) -> Result<(), berth_cni::Error> {
        match self.network.get() {
            Some(network) => network.set_peers(peers).await,
            None => Ok(()),
        }
    }

    /// Waits for links that are being deleted behind the scenes.
    pub(crate) async fn flush(&self) {
        if let Some(network) = self.network.get()
            && let Err(error) = network.flush().await
        {
            warn!(error = &error as &dyn std::error::Error, "links were not all deleted");
        }
    }

    /// Frees what sandboxes that are gone have left.
    pub(crate) async fn free_all_but(&self, live: &[SandboxId]) {
        if let Err(error) = self.collect(live).await {
            warn!(error, "addresses of earlier pods were not all freed");
        }
    }

    fn get(&self) -> Result<&Network, String> {
        self.network.get().ok_or_else(|| "the node has no pod CIDR yet".to_owned())
    }
}

#[async_trait]
impl PodNetwork for LateNetwork {
    async fn attach(&self, request: AttachRequest) -> Result<Vec<IpAddr>, String> {
        let attach = Attach {
            id: attachment(&request.sandbox)?,
            netns: request.netns,
            host_ports: request.port_mappings.iter().map(host_port).collect(),
        };
        self.get()?.attach(attach).await.map_err(chain)
    }

    async fn detach(&self, sandbox: &SandboxId) -> Result<(), String> {
        if self.goes.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.network.get() {
            Some(network) => network.detach(&attachment(sandbox)?).await.map_err(chain),
            // What it has is freed once the network is open.
            None => Ok(()),
        }
    }

    async fn collect(&self, live: &[SandboxId]) -> Result<(), String> {
        let live: Vec<_> = live.iter().map(attachment).collect::<Result<_, _>>()?;
        match self.network.get() {
            Some(network) => network.collect(&live).await.map_err(chain),
            // What is there is looked at once the network is open.
            None => Ok(()),
        }
    }
}

fn attachment(sandbox: &SandboxId) -> Result<AttachmentId, String> {
    AttachmentId::try_from(sandbox.as_str().to_owned()).map_err(chain)
}

fn host_port(mapping: &PortMapping) -> HostPort {
    HostPort {
        host_ip: mapping.host_ip,
        host_port: mapping.host_port,
        pod_port: mapping.container_port,
        protocol: match mapping.protocol {
            Protocol::Tcp => berth_cni::Protocol::Tcp,
            Protocol::Udp => berth_cni::Protocol::Udp,
            Protocol::Sctp => berth_cni::Protocol::Sctp,
        },
    }
}

/// An error and its causes in one line: the seam carries text.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
