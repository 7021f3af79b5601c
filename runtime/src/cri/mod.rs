//! The CRI v1 socket: what `kubeadm` and `crictl` ask of a container runtime.
//!
//! ```text
//! connection ─► Server: path ─► message ─► Calls: a task of its own ─► Backend (agent, or the disk)
//! ```
//!
//! berth's kubelet needs no CRI: it calls the runtime. So what makes sandboxes and containers is not
//! served, and says so by name ([`Code::Unimplemented`]); what looks at them, ends them and keeps images
//! is, and checkpoints are made. A call that has begun goes on when its client leaves, since half a removal is of no use to anyone.

mod calls;
pub mod messages;
mod server;
#[cfg(test)]
mod tests;
mod view;

use std::path::PathBuf;

use async_trait::async_trait;
pub use tonic::Code;

pub use self::messages::CgroupDriver;
pub use self::server::serve;
use crate::interface::{Checkpoint, ContainerId, Credentials, Image, SandboxId, SandboxStatus};

/// Whoever owns the sandboxes and images, wherever it runs. What fails is told in words.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// All sandboxes with their containers.
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, String>;
    /// Ends a sandbox; one that is gone has ended.
    async fn stop_sandbox(&self, sandbox: SandboxId) -> Result<(), String>;
    /// Removes a sandbox with its containers; one that is gone is removed.
    async fn remove_sandbox(&self, sandbox: SandboxId) -> Result<(), String>;
    /// Writes a running container into an archive.
    async fn checkpoint(&self, container: ContainerId, to: Checkpoint) -> Result<(), String>;
    /// All images.
    async fn images(&self) -> Result<Vec<Image>, String>;
    /// The image that a reference or an id names.
    async fn image(&self, reference: String) -> Result<Option<Image>, String>;
    /// Pulls an image.
    async fn pull(&self, reference: String, login: Option<Credentials>) -> Result<Image, String>;
    /// Removes an image; one that is not there is removed.
    async fn remove_image(&self, reference: String) -> Result<(), String>;
    /// Why pods cannot have a network yet.
    async fn network(&self) -> Result<(), String>;
    /// Who makes the cgroups of new pods.
    async fn cgroup_driver(&self) -> CgroupDriver;
    /// Whether pods can have user namespaces.
    async fn user_namespaces(&self) -> Result<bool, String>;
}

/// What the node says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// berth's version.
    pub version: &'static str,
    /// Where images are.
    pub images: PathBuf,
    /// Where the writable layers of containers are.
    pub layers: PathBuf,
    /// What runtime classes may name besides nothing.
    pub handlers: Vec<String>,
}
