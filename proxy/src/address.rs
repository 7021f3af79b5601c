//! The facts about the node that are read from it: the addresses node ports are served on.
//!
//! Reads the interfaces of the calling thread's network namespace.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Config;
use crate::model::{Facts, may_be_endpoint};

/// On which of the node's addresses node ports are served. Loopback is never among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// These: the node's primary ones.
    Primary(Vec<IpAddr>),
    /// Those the node has in these networks.
    Networks(Vec<IpNet>),
}

/// Gathers what the configuration and the interfaces say.
pub(crate) fn facts(config: &Config) -> Facts {
    let node_addresses = match &config.node_port_addresses {
        NodePortAddresses::Primary(addresses) => addresses.iter().copied().collect(),
        NodePortAddresses::Networks(networks) => own_addresses(networks),
    };
    Facts {
        node_addresses: node_addresses.into_iter().filter(|ip| may_be_endpoint(*ip)).collect(),
        pod_cidrs: config.pod_cidrs.clone(),
        service_cidrs: config.service_cidrs.clone(),
        masquerade: config.masquerade,
    }
}

fn own_addresses(networks: &[IpNet]) -> BTreeSet<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "cannot list interfaces; no node ports are served");
            return BTreeSet::new();
        }
    };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    addresses.filter(|ip| networks.iter().any(|network| network.contains(ip))).collect()
}
