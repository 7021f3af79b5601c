//! Pod interfaces, addresses and node-to-node routes.
//!
//! Owns the node's pod network as a library: a bridge, a veth pair a pod, addresses with
//! `host-local`'s semantics, host ports, masquerading, and routes to other nodes' pods. Everything
//! goes through netlink from inside the process; nothing is executed. It knows no Kubernetes
//! types, no Services and no network policy, and leaves containers and namespaces to others.
//!
//! | module | |
//! |---|---|
//! | `config` | what is asked for, and what it resolves to |
//! | `ipam` | addresses: arithmetic, decisions, files |
//! | `link` | bridge, veth pairs, the inside of a pod, batched deletion |
//! | `route` | routes to peers' pods |
//! | `hostport`, `masquerade`, `guard` | the nftables rules, as values |
//! | `firewall` | puts them into the kernel |
//! | `loopback` | host ports on the node's loopback, which the rules leave out |
//! | `network` | the order of things |
//! | `netns`, `sysctl` | entering namespaces, kernel settings |
//!
//! How a packet goes: pods have single addresses (/32, /128) and the node as only neighbour.
//! Whatever a pod sends is received by the node, checked by the guard, and routed: to another pod,
//! to a peer, or, masqueraded, to the outside.
//!
//! One [`Network`] a network namespace and state directory.

mod attachment;
mod config;
mod error;
mod firewall;
mod guard;
mod hostport;
mod ipam;
mod link;
mod loopback;
mod masquerade;
mod netns;
mod network;
mod route;
mod sysctl;

pub use attachment::{Attach, AttachmentId, HostPort, Protocol};
pub use config::{Config, Error as ConfigError};
pub use error::Error;
pub use ipam::{Error as LeaseError, Range, RangeError};
pub use ipnet::IpNet;
pub use network::Network;
pub use route::Peer;
