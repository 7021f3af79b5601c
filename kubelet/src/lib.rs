//! Syncs the pods bound to a node with what runs on it.
//!
//! [`run`] is the agent: it follows the pods of its node ([`source`]), gives each a worker
//! ([`worker`]) that observes, plans and applies, and tells the API server what became of them
//! ([`status`], [`events`]). [`node`] keeps the Node object, [`server`] the node's HTTP API. What a
//! pod needs is decided by pure functions in modules of their own ([`container_config`],
//! [`environment`], [`volumes`], [`qos`], …).
//!
//! Knows the Kubernetes API and the runtime's seam; knows nothing of how containers, networks or
//! Services are made.

pub mod admission;
mod agent;
pub mod api_retry;
pub mod backoff;
pub mod cache;
pub mod clock;
pub mod config;
pub mod container_config;
pub mod credentials;
pub mod discovery;
pub mod disk;
pub mod downward;
pub mod environment;
pub mod events;
pub mod eviction;
pub mod expansion;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod fuzz;
pub mod gate;
mod grpc_call;
mod hooks;
mod http_call;
pub mod image_access;
pub mod image_gc;
pub mod image_policy;
mod inquiry;
pub mod meters;
pub mod node;
pub mod objects;
pub mod pod_files;
pub mod pod_resources;
pub mod probe;
mod profile;
pub mod qos;
pub mod quantity;
pub mod replace;
pub mod resize;
pub mod runtime_class;
pub mod server;
pub mod shelf;
pub mod shutdown;
mod slack;
pub mod source;
pub mod static_pods;
pub mod status;
#[allow(unsafe_code)]
mod sys;
pub mod unsupported;
pub mod volumes;
pub mod worker;

pub use agent::{Error, Parts, register_node, run};
pub use config::Config;
