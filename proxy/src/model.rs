//! Services and their endpoints as plain values, as the proxy sees them.
//!
//! Owns: the values and their obvious checks. Not owned: Kubernetes types (`watch`), and which
//! endpoint a client gets (`resolve`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::names::{Audience, Scope};

/// A namespaced name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol a Service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with a number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }
}

/// Which endpoints a class of clients may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Those on the client's node, or on the node the client came in by.
    Local,
}

/// Whether a client keeps its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Affinity {
    /// Each connection picks anew.
    #[default]
    None,
    /// Connections of one client address go to one endpoint, until none came for as long.
    ClientIp(Duration),
}

/// A Service with at least one cluster IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its virtual addresses, at most one of a family.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses outside the cluster that lead to this node: external and load balancer ones.
    pub external_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Policy for clients in the cluster.
    pub internal_policy: TrafficPolicy,
    /// Policy for clients outside.
    pub external_policy: TrafficPolicy,
    /// Affinity.
    pub affinity: Affinity,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which slices refer to it; empty when the Service has one port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the virtual address.
    pub port: u16,
    /// Port on the node's addresses.
    pub node_port: Option<u16>,
}

/// Some of the endpoints of a Service, of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Its own name, within the Service's namespace.
    pub name: String,
    /// The Service.
    pub service: ServiceName,
    /// Its ports; each endpoint has all of them.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One port of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the endpoint.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address. Kubernetes says that all addresses of an endpoint are fungible and that
    /// clients use the first.
    pub address: IpAddr,
    /// What it can do.
    pub condition: Condition,
    /// Where it is.
    pub place: Place,
}

/// Whether an endpoint takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Ready: takes connections. Also set for Services that publish unready addresses.
    Ready,
    /// Terminating, but still serving: used when nothing is ready.
    Terminating,
    /// Takes none.
    Unready,
}

impl Condition {
    /// Reads the three conditions of an endpoint; an absent one has the API's default.
    pub fn from_flags(
        ready: Option<bool>,
        serving: Option<bool>,
        terminating: Option<bool>,
    ) -> Self {
        let ready = ready.unwrap_or(true);
        if ready {
            Self::Ready
        } else if serving.unwrap_or(ready) && terminating.unwrap_or(false) {
            Self::Terminating
        } else {
            Self::Unready
        }
    }
}

/// Where an endpoint is, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// On this node.
    Here,
    /// On another node, or unknown.
    Elsewhere,
}

/// What clients dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl fmt::Display for VipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// Where connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address and port.
    pub address: SocketAddr,
    /// Where it is.
    pub place: Place,
}

/// What happens to clients for whom there is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Absent {
    /// Tell them: there is none anywhere.
    Refuse,
    /// Stay silent: there are some, but a policy keeps them away.
    Drop,
}

/// Which kind of address a [`VipKey`] has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VipKind {
    /// A cluster IP: other ports of the address are refused.
    ClusterIp,
    /// An address for clients outside, who are masqueraded: a node port, an external or load
    /// balancer address.
    External,
    /// The same, keeping clients' sources: those from outside get the endpoints in the list,
    /// all of them on this node.
    LocalExternal(Vec<Backend>),
}

/// All there is to know about what clients dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// Kind of address.
    pub kind: VipKind,
    /// Where connections go, for clients without a list of their own. As programmed, the order
    /// is that of the slots.
    pub backends: Vec<Backend>,
    /// What happens when the list is empty.
    pub absent: Absent,
    /// For how many seconds a client keeps its endpoint.
    pub hold: Option<u32>,
}

impl Vip {
    /// The lists of endpoints, and whom they are for.
    pub fn lists(&self) -> impl Iterator<Item = (Scope, &[Backend])> {
        let local = match &self.kind {
            VipKind::LocalExternal(local) => Some((Audience::Outside, local.as_slice())),
            _ => None,
        };
        [(Audience::Any, self.backends.as_slice())]
            .into_iter()
            .chain(local)
            .map(|(audience, list)| (Scope { audience, hold: self.hold }, list))
    }

    /// The list for an audience; empty when it has none of its own.
    pub fn list(&self, audience: Audience) -> &[Backend] {
        self.lists().find(|(scope, _)| scope.audience == audience).map_or(&[], |(_, list)| list)
    }
}

/// What the proxy must know about its node and cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Addresses that node ports are served on.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Pod networks: clients from there keep their source, and count as inside.
    pub pod_cidrs: Vec<IpNet>,
    /// Networks of cluster IPs, if known.
    pub service_cidrs: Vec<IpNet>,
    /// Which clients of cluster IPs are masqueraded.
    pub masquerade: MasqueradeScope,
}

/// Which clients of cluster IPs are masqueraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MasqueradeScope {
    /// Those from outside the pod networks; none when no pod network is known.
    #[default]
    OffCluster,
    /// All of them.
    All,
}

impl Facts {
    /// Whether an address may be taken for a Service from outside: never one of the node, of a
    /// pod or of another Service (CVE-2020-8554).
    pub fn may_be_external(&self, address: IpAddr) -> bool {
        let inside = |cidrs: &[IpNet]| cidrs.iter().any(|cidr| cidr.contains(&address));
        may_be_endpoint(address)
            && !self.node_addresses.contains(&address)
            && !inside(&self.pod_cidrs)
            && !inside(&self.service_cidrs)
    }
}

/// Whether an address may be an endpoint. Loopback, link-local, multicast and unspecified ones
/// would turn a Service into a way into the node (CVE-2021-25737).
pub fn may_be_endpoint(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(address.is_loopback() || address.is_multicast() || address.is_unspecified() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_node_itself_may_not_be_endpoints() {
        for bad in ["127.0.0.1", "169.254.169.254", "fe80::1", "::1", "224.0.0.1", "0.0.0.0", "::"]
            .into_iter()
            .chain(["::ffff:127.0.0.1", "255.255.255.255", "ff02::1"])
        {
            assert!(!may_be_endpoint(bad.parse().unwrap()), "{bad}");
        }
        assert!(may_be_endpoint("10.244.0.7".parse().unwrap()));
        assert!(may_be_endpoint("fd00::7".parse().unwrap()));
    }

    #[test]
    fn absent_conditions_have_the_defaults_of_the_api() {
        assert_eq!(Condition::from_flags(None, None, None), Condition::Ready);
        assert_eq!(Condition::from_flags(Some(false), None, Some(true)), Condition::Unready);
        assert_eq!(
            Condition::from_flags(Some(false), Some(true), Some(true)),
            Condition::Terminating
        );
        assert_eq!(Condition::from_flags(Some(false), Some(true), Some(false)), Condition::Unready);
    }
}
