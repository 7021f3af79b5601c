//! Services and endpoint slices as nftables elements: what kube-proxy does, in the agent.
//!
//! Fixed rules, moving elements: the rules are written once, and a Service or endpoint is only
//! elements of sets and maps, so that a change costs the same at ten Services and at ten
//! thousand. `ruleset` draws the data plane; `plan` is the pure part; `dataplane` applies.
//!
//! Served: ClusterIP, NodePort, external and load balancer addresses, for TCP, UDP and SCTP, in
//! both families, with internal and external traffic policies and client affinity. Said, but not
//! yet honoured: load balancer source ranges, traffic distribution, health check node ports.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use tokio::sync::watch as channel;

mod address;
pub mod cluster;
mod convert;
pub mod dataplane;
pub mod flows;
pub mod hold;
pub mod model;
pub mod names;
pub mod plan;
pub mod resolve;
pub mod route;
pub mod ruleset;
mod watch;
mod worker;

pub use address::NodePortAddresses;
pub use convert::ExternalIps;
pub use model::MasqueradeScope;
pub use route::ServiceRoute;
pub use watch::run;

/// How the proxy serves one node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name, as endpoints name it.
    pub node_name: String,
    /// Pod networks of the cluster; of this node alone if the cluster's are not known.
    pub pod_cidrs: Vec<IpNet>,
    /// Networks of cluster IPs, if known: closed until the first sync, and unallocated
    /// addresses in them are dropped.
    pub service_cidrs: Vec<IpNet>,
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// Which clients of cluster IPs are masqueraded.
    pub masquerade: MasqueradeScope,
    /// Whether external addresses of Services are served.
    pub external_ips: ExternalIps,
    /// What to do where no route covers the Service networks.
    pub service_route: ServiceRoute,
    /// The network namespace to serve, if not the process's own.
    pub netns: Option<PathBuf>,
    /// Told `true` after the first sync: from then on Services work, and the node's network may
    /// be called ready.
    pub synced: Option<channel::Sender<bool>>,
}

impl Config {
    /// A node's configuration with the usual choices.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::Primary(Vec::new()),
            masquerade: MasqueradeScope::default(),
            external_ips: ExternalIps::default(),
            service_route: ServiceRoute::default(),
            netns: None,
            synced: None,
        }
    }
}

/// Why the proxy cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker's thread could not be started.
    #[error("cannot start the proxy's thread")]
    Thread(#[source] std::io::Error),
    /// The network namespace could not be entered.
    #[error("cannot enter the network namespace {path}", path = path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused.
    #[error("cannot program Services")]
    Kernel(#[from] berth_nft::Error),
    /// The worker's thread panicked.
    #[error("the proxy's thread panicked")]
    Panicked,
}

/// Whether this kernel and process can use nf_tables at all.
pub fn supported() -> bool {
    berth_nft::Socket::open().and_then(|mut socket| socket.generation()).is_ok()
}

/// Removes everything the proxy wrote in a network namespace, the process's own if none is
/// given. Blocking; doing it twice does no harm.
///
/// # Errors
/// When the kernel refuses.
pub fn teardown(netns: Option<&Path>) -> Result<(), Error> {
    let thread = worker::in_namespace(netns, || Ok(dataplane::remove()?))?;
    thread.join().map_err(|_| Error::Panicked)?
}
