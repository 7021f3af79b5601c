//! What the operator asks for ([`Config`]) and what it resolves to on this node ([`Layout`]).
//!
//! Resolving is pure: it sees neither the kernel nor the disk. Clashes with interfaces that exist
//! are found when the network is opened.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::ipam::{Range, RangeError};
use crate::link::mac_of;
use crate::sysctl::Family as Use;

/// Where and how the pod network is built.
#[derive(Debug, Clone)]
pub struct Config {
    /// The bridge's name, at most 15 bytes.
    pub bridge: String,
    /// The node's pod ranges: one, or one of each family. The first is the primary family.
    pub pod_cidrs: Vec<IpNet>,
    /// Where pods keep their own source address. May equal `pod_cidrs`; peers' ranges are added
    /// as they become known.
    pub cluster_cidrs: Vec<IpNet>,
    /// The MTU of bridge and pods. Absent: that of the interface with the default route.
    pub mtu: Option<u32>,
    /// Holds the leases. Absolute.
    pub state_dir: PathBuf,
    /// The node's network namespace, when it is not the process's own: several nodes on one
    /// machine.
    pub netns: Option<PathBuf>,
    /// The name of the nftables tables.
    pub table: String,
}

impl Config {
    /// A configuration with the usual names: bridge `berth0`, table `berth-cni`.
    pub fn new(pod_cidrs: Vec<IpNet>, state_dir: PathBuf) -> Self {
        Self {
            bridge: "berth0".into(),
            cluster_cidrs: pod_cidrs.clone(),
            pod_cidrs,
            mtu: None,
            state_dir,
            netns: None,
            table: "berth-cni".into(),
        }
    }
}

/// Why a configuration cannot work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The bridge's name.
    #[error("bridge name {0:?} is not 1 to 15 letters, digits, dots, underscores or dashes")]
    BridgeName(String),
    /// The table's name.
    #[error("table name {0:?} is not 1 to 63 letters, digits, underscores or dashes")]
    TableName(String),
    /// No range.
    #[error("no pod CIDR is given")]
    NoPodCidr,
    /// Two ranges of one family.
    #[error("pod CIDRs {0} and {1} are of the same family")]
    SameFamily(IpNet, IpNet),
    /// Bits set behind the prefix.
    #[error("{0} has bits set behind its prefix; {1} is meant")]
    HostBits(IpNet, IpNet),
    /// Not a range for hosts.
    #[error("{0} is not a range for pods: it is {1}")]
    NotUnicast(IpNet, &'static str),
    /// Too small a range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// An impossible MTU.
    #[error("MTU {0} is not between {1} and 65535")]
    Mtu(u32, u32),
    /// The state directory.
    #[error("state directory {0:?} is not an absolute path")]
    StateDir(PathBuf),
    /// A range that is in use on another interface.
    #[error("pod CIDR {pod} overlaps {network} of interface {interface}")]
    Overlap {
        /// The pod range.
        pod: IpNet,
        /// What is there.
        network: IpNet,
        /// And where.
        interface: String,
    },
}

/// One family of the resolved network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) subnet: IpNet,
    pub(crate) range: Range,
}

impl Family {
    /// The node's address on the bridge, the pods' next hop.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.range.gateway()
    }

    pub(crate) fn is_v6(&self) -> bool {
        matches!(self.subnet, IpNet::V6(_))
    }
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) bridge: String,
    pub(crate) families: Vec<Family>,
    pub(crate) cluster: Vec<IpNet>,
    pub(crate) mtu: Option<u32>,
    pub(crate) state_dir: PathBuf,
    pub(crate) table: String,
}

impl Layout {
    pub(crate) fn resolve(config: &Config) -> Result<Self, Error> {
        check_name(&config.bridge, 15, ".").ok_or(Error::BridgeName(config.bridge.clone()))?;
        check_name(&config.table, 63, "").ok_or(Error::TableName(config.table.clone()))?;
        if !config.state_dir.is_absolute() {
            return Err(Error::StateDir(config.state_dir.clone()));
        }
        let families = families(&config.pod_cidrs)?;
        let mut cluster = config.pod_cidrs.clone();
        for cidr in &config.cluster_cidrs {
            check_prefix(*cidr)?;
            cluster.push(*cidr);
        }
        let least = if families.iter().any(Family::is_v6) { 1280 } else { 576 };
        if let Some(mtu) = config.mtu.filter(|mtu| !(least..=65535).contains(mtu)) {
            return Err(Error::Mtu(mtu, least));
        }
        Ok(Self {
            bridge: config.bridge.clone(),
            families,
            cluster: IpNet::aggregate(&cluster),
            mtu: config.mtu,
            state_dir: config.state_dir.clone(),
            table: config.table.clone(),
        })
    }

    pub(crate) fn has_v6(&self) -> bool {
        self.families.iter().any(Family::is_v6)
    }

    pub(crate) fn uses_v4(&self) -> Use {
        if self.families.iter().any(|family| !family.is_v6()) { Use::Used } else { Use::Unused }
    }

    pub(crate) fn uses_v6(&self) -> Use {
        if self.has_v6() { Use::Used } else { Use::Unused }
    }

    /// The bridge's MAC: that of the primary gateway.
    pub(crate) fn bridge_mac(&self) -> [u8; 6] {
        self.families.first().map(|family| mac_of(family.gateway())).unwrap_or_default()
    }

    pub(crate) fn family_of(&self, ip: IpAddr) -> Option<&Family> {
        self.families.iter().find(|family| family.is_v6() == ip.is_ipv6())
    }

    /// Whether an address that another interface has makes these ranges unusable.
    ///
    /// A wider network around a pod range is fine (the narrower route wins); an address inside a
    /// pod range, or the same network twice, is not.
    pub(crate) fn check_foreign(&self, interface: &str, address: IpNet) -> Result<(), Error> {
        let network = address.trunc();
        let clash =
            |family: &&Family| family.subnet == network || family.subnet.contains(&address.addr());
        match self.families.iter().find(clash) {
            None => Ok(()),
            Some(family) => Err(Error::Overlap {
                pod: family.subnet,
                network: address,
                interface: interface.to_owned(),
            }),
        }
    }
}

fn families(pod_cidrs: &[IpNet]) -> Result<Vec<Family>, Error> {
    if pod_cidrs.is_empty() {
        return Err(Error::NoPodCidr);
    }
    let mut families: Vec<Family> = Vec::new();
    for &subnet in pod_cidrs {
        check_prefix(subnet)?;
        let family = Family { subnet, range: Range::new(subnet)? };
        if let Some(other) = families.iter().find(|other| other.is_v6() == family.is_v6()) {
            return Err(Error::SameFamily(other.subnet, subnet));
        }
        families.push(family);
    }
    Ok(families)
}

/// Refuses prefixes that are no unicast range. Also used for what peers claim.
pub(crate) fn check_prefix(net: IpNet) -> Result<(), Error> {
    if net.trunc() != net {
        return Err(Error::HostBits(net, net.trunc()));
    }
    let special =
        |text: &str| text.parse().is_ok_and(|s: IpNet| s.contains(&net) || net.contains(&s));
    let reason = match net {
        _ if net.prefix_len() == 0 => "everything",
        IpNet::V4(_) if special("127.0.0.0/8") => "loopback",
        IpNet::V4(_) if special("169.254.0.0/16") => "link-local",
        IpNet::V4(_) if special("224.0.0.0/4") => "multicast",
        IpNet::V4(_) if special("0.0.0.0/8") => "this host",
        IpNet::V4(_) if special("255.255.255.255/32") => "broadcast",
        IpNet::V6(_) if special("::/96") => "unspecified, loopback or IPv4-compatible",
        IpNet::V6(_) if special("::ffff:0:0/96") => "IPv4-mapped",
        IpNet::V6(_) if special("fe80::/10") => "link-local",
        IpNet::V6(_) if special("ff00::/8") => "multicast",
        _ => return Ok(()),
    };
    Err(Error::NotUnicast(net, reason))
}

/// A name that is also a file name below `/proc/sys/net/ipv4/conf`.
fn check_name(name: &str, longest: usize, also: &str) -> Option<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || also.contains(c);
    let reserved = matches!(name, "." | ".." | "all" | "default" | "lo");
    let fits = (1..=longest).contains(&name.len()) && name.chars().all(allowed);
    (fits && !reserved).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cidrs: &[&str]) -> Config {
        let cidrs = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        Config::new(cidrs, "/var/lib/berth/ipam".into())
    }

    fn refusal(config: &Config) -> String {
        Layout::resolve(config).unwrap_err().to_string()
    }

    #[test]
    fn a_dual_stack_node_resolves_with_the_first_address_as_gateway() {
        let layout = Layout::resolve(&config(&["10.1.2.0/24", "fd00:1::/64"])).unwrap();
        let gateways: Vec<_> = layout.families.iter().map(|f| f.gateway().to_string()).collect();
        assert_eq!(gateways, ["10.1.2.1", "fd00:1::1"]);
    }

    #[test]
    fn ranges_that_cannot_hold_pods_are_refused_with_the_reason() {
        assert_eq!(refusal(&config(&[])), "no pod CIDR is given");
        assert_eq!(
            refusal(&config(&["10.1.2.3/24"])),
            "10.1.2.3/24 has bits set behind its prefix; 10.1.2.0/24 is meant"
        );
        assert_eq!(
            refusal(&config(&["10.1.0.0/24", "10.2.0.0/24"])),
            "pod CIDRs 10.1.0.0/24 and 10.2.0.0/24 are of the same family"
        );
        for special in ["127.0.0.0/16", "0.0.0.0/0", "224.1.0.0/16", "169.254.0.0/24", "fe80::/64"]
        {
            assert!(refusal(&config(&[special])).contains("not a range for pods"), "{special}");
        }
        assert!(refusal(&config(&["10.1.2.0/31"])).contains("too small"));
    }

    #[test]
    fn names_that_are_paths_or_kernel_words_are_refused() {
        for bad in ["", "a/b", "..", "all", "default", "lo", "a b", "sixteen-bytes-xx"] {
            let mut config = config(&["10.1.2.0/24"]);
            config.bridge = bad.into();
            assert!(refusal(&config).starts_with("bridge name"), "{bad:?}");
        }
    }

    #[test]
    fn an_mtu_below_what_the_family_needs_is_refused() {
        let mut config = config(&["10.1.2.0/24", "fd00:1::/64"]);
        config.mtu = Some(1000);
        assert_eq!(refusal(&config), "MTU 1000 is not between 1280 and 65535");
    }

    #[test]
    fn only_a_real_clash_with_another_interface_is_refused() {
        let layout = Layout::resolve(&config(&["10.1.2.0/24"])).unwrap();
        let check = |net: &str| layout.check_foreign("eth0", net.parse().unwrap());
        assert!(check("10.0.0.7/8").is_ok(), "a wider network around the range");
        assert!(check("192.168.0.1/24").is_ok());
        assert!(check("10.1.2.77/16").is_err(), "an address inside the range");
        assert!(check("10.1.2.1/24").is_err(), "the same network");
    }
}
