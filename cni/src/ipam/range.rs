//! The addresses of one subnet that pods can have, with `host-local`'s arithmetic.
//!
//! The network address, the gateway (the first address) and, for IPv4, the broadcast address are
//! left out. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A subnet with room for at least a gateway and a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u128,
    last: u128,
    v6: bool,
}

/// A subnet without room for pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("network {0} too small to allocate from")]
pub struct RangeError(IpNet);

impl Range {
    /// The range of a subnet.
    ///
    /// # Errors
    /// When fewer than two bits are left for hosts.
    pub fn new(subnet: IpNet) -> Result<Self, RangeError> {
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(RangeError(subnet));
        }
        let v6 = matches!(subnet, IpNet::V6(_));
        let last = number(subnet.broadcast());
        Ok(Self { first: number(subnet.network()) + 1, last: if v6 { last } else { last - 1 }, v6 })
    }

    /// The node's own address in the subnet: the first.
    pub fn gateway(&self) -> IpAddr {
        self.address(self.first)
    }

    /// How many pods fit.
    pub fn capacity(&self) -> u128 {
        self.last - self.first
    }

    /// Whether a pod may have this address.
    pub fn allows(&self, ip: IpAddr) -> bool {
        ip.is_ipv6() == self.v6 && (self.first + 1..=self.last).contains(&number(ip))
    }

    /// The addresses in the order they are to be tried: those behind `previous`, then from the
    /// start up to and with `previous`.
    pub fn after(&self, previous: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + use<> {
        let range = *self;
        let pods = range.first + 1;
        let start = match previous.filter(|ip| range.allows(*ip)).map(number) {
            Some(previous) if previous < range.last => previous + 1,
            _ => pods,
        };
        (start..=range.last).chain(pods..start).map(move |n| range.address(n))
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.v6 {
            Ipv6Addr::from(number).into()
        } else {
            // Built from an IPv4 subnet, so it fits 32 bits.
            Ipv4Addr::from(number as u32).into()
        }
    }
}

/// First and last address, as `host-local` prints a range.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.address(self.first), self.address(self.last))
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        Range::new(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_28_has_thirteen_pods_between_gateway_and_broadcast() {
        let range = range("10.0.0.0/28");
        assert_eq!(range.to_string(), "10.0.0.1-10.0.0.14");
        assert_eq!(range.gateway().to_string(), "10.0.0.1");
        assert_eq!(range.capacity(), 13);
        let all: Vec<_> = range.after(None).map(|ip| ip.to_string()).collect();
        assert_eq!(all.len(), 13);
        assert_eq!((all[0].as_str(), all[12].as_str()), ("10.0.0.2", "10.0.0.14"));
    }

    #[test]
    fn a_24_and_a_64_have_the_expected_ends() {
        assert_eq!(range("192.168.7.0/24").to_string(), "192.168.7.1-192.168.7.254");
        assert_eq!(range("192.168.7.0/24").capacity(), 253);
        let v6 = range("fd00::/64");
        assert_eq!(v6.to_string(), "fd00::1-fd00::ffff:ffff:ffff:ffff");
        assert_eq!(v6.capacity(), (1 << 64) - 2);
    }

    #[test]
    fn the_order_goes_on_behind_the_previous_address_and_wraps() {
        let range = range("10.0.0.0/29");
        let order = |previous: &str| {
            range.after(previous.parse().ok()).map(|ip| ip.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(order("10.0.0.4"), ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(order("10.0.0.6")[0], "10.0.0.2");
        assert_eq!(
            order("10.9.9.9")[0],
            "10.0.0.2",
            "an address of elsewhere means from the start"
        );
    }

    #[test]
    fn network_gateway_broadcast_and_the_other_family_are_not_for_pods() {
        let range = range("10.0.0.0/28");
        for ip in ["10.0.0.0", "10.0.0.1", "10.0.0.15", "10.0.1.2", "::10.0.0.2"] {
            assert!(!range.allows(ip.parse().unwrap()), "{ip}");
        }
        assert!(range.allows("10.0.0.14".parse().unwrap()));
    }

    #[test]
    fn a_subnet_without_room_is_refused() {
        assert!(Range::new("10.0.0.0/31".parse().unwrap()).is_err());
        assert!(Range::new("fd00::/127".parse().unwrap()).is_err());
        assert_eq!(range("10.0.0.0/30").capacity(), 1);
    }
}
