//! The node's own certificates: asked of the cluster, kept on disk, renewed before they end, and used
//! without a restart (Kubernetes' TLS bootstrap; `certificates.k8s.io/v1`).
//!
//! ```text
//! bootstrap kubeconfig ─► request ─► pair on disk ─► kubeconfig that names it ─► session
//!                            ▲  at 70–90 % of its life, by the session; after its end, by the  │
//!                            └──────────────── bootstrap kubeconfig again ◄────────────────────┘
//! ```
//!
//! [`store`] keeps a certificate with its key, [`request`] gets one signed, [`kubeconfig`] writes and
//! reads how the API server is reached, [`session`] is the connection whose certificate is exchanged
//! under it, [`renewal`] decides when and does it.

pub mod kubeconfig;
pub mod renewal;
pub mod request;
pub mod session;
pub mod store;

#[cfg(test)]
mod tests;

pub use renewal::{Node, Serving, Trouble, join, keep_client, keep_serving};
pub use session::Session;
pub use store::Store;
