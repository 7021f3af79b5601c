//! The embedded API server of the standalone mode: the part of the Kubernetes API that one node
//! needs, over TLS, with its objects in an embedded database (Kubernetes API conventions and the
//! API reference for 1.36).
//!
//! ```text
//! http ──► verbs ──► admit (defaults, rules) ──► store (one writer, history) ──► redb
//!                                                  ▲ │
//!                          control (small loops) ──┘ ▼ watches
//! ```
//!
//! It is no control plane: one node, no workload controllers, no server-side apply. Discovery lists what is there and nothing else.

mod admit;
mod api;
mod codec;
mod control;
mod discovery;
mod failure;
mod http;
mod object;
mod openapi;
mod patch;
mod pki;
mod proto;
mod rbac;
mod resource;
mod schema;
mod selector;
mod server;
mod signing;
mod store;
mod table;
mod tokens;
mod verbs;

pub use pki::Error as PkiError;
pub use server::{Config, Credentials, Error, KeyFiles, Server, start};
pub use store::{Error as StoreError, Recovery};

/// The version that `/version` reports.
pub const VERSION: &str = concat!("v1.36.0+berth.", env!("CARGO_PKG_VERSION"));
