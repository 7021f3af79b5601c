//! What every request and every controller works on.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio_util::sync::CancellationToken;

use crate::pki::{Authority, Live};
use crate::store::Store;
use crate::tokens::Signer;

/// The shared parts of a running server.
#[derive(Debug)]
pub(crate) struct Api {
    /// The objects.
    pub store: Store,
    /// What was configured.
    pub settings: Arc<Settings>,
    /// TLS towards the nodes' own APIs.
    pub kubelet: Arc<Live<rustls::ClientConfig>>,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// Signs service account tokens.
    pub signer: Arc<Signer>,
    /// Ends watches and controllers.
    pub stop: CancellationToken,
}

/// What was configured, resolved.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where the server can be reached.
    pub advertise: SocketAddr,
    /// Where pods can reach the server; what the `kubernetes` Service leads to.
    pub for_pods: SocketAddr,
    /// Addresses for Services.
    pub service_cidr: Ipv4Net,
    /// Addresses for the node's pods.
    pub pod_cidr: Ipv4Net,
    /// Ports for Services of type NodePort.
    pub node_ports: RangeInclusive<u16>,
    /// How long events are kept.
    pub event_ttl: std::time::Duration,
    /// The CA certificate, for `kube-root-ca.crt`.
    pub ca_pem: String,
}
