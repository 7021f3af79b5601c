//! The pod network as the runtime needs it.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

use super::{PodIdentity, PortMapping, SandboxId};

/// A pod's wish for a network interface.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The pod.
    pub pod: PodIdentity,
    /// The pinned network namespace (`/run/berth/…/ns/net`).
    pub netns: PathBuf,
    /// Ports that the host forwards.
    pub port_mappings: Vec<PortMapping>,
}

/// Wires sandboxes to the pod network.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the sandbox its interface and addresses, primary first. Attaching twice returns the
    /// same addresses. On failure nothing is left.
    async fn attach(&self, request: AttachRequest) -> Result<Vec<IpAddr>, String>;

    /// Takes interface, addresses and ports back. Succeeds when they are gone.
    async fn detach(&self, sandbox: &SandboxId) -> Result<(), String>;

    /// Frees everything not held by one of `live`.
    async fn collect(&self, live: &[SandboxId]) -> Result<(), String>;
}
