//! What a pod may send: frames from its own MAC and addresses, to the node or to groups, and
//! nothing else.
//!
//! One bridge-family table. Pod ports are known by the prefix of their names; a frame from one is
//! accepted only if port, MAC and source address (for ARP also the sender fields) are in a set,
//! so a pod cannot forge neighbours (CVE-2020-10749, CVE-2020-13401 and the CAP_NET_RAW class),
//! and a pod whose elements are removed is cut off at once, before its link is gone. Pure.

use std::net::{IpAddr, Ipv6Addr};

use berth_nft::{
    Base, BaseHeader, Batch, Chain, Cmp, Data, DataType, Element, Expr, Family, Field, Hook, Load,
    Meta, Reg, Rule, Set, Table,
};

use crate::ipam::Record;
use crate::link::{mac_of, veth};

/// Before anything else in the bridge family.
const PRIORITY: i32 = -300;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Marks a destination MAC as a group: broadcast or multicast.
const GROUP_BIT: [u8; 6] = [1, 0, 0, 0, 0, 0];

/// The guard's objects.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) table: Table,
    chain: Chain,
    sources4: Set,
    sources6: Set,
    bridge: String,
    /// The bridge's MAC, the only one that pods speak to.
    node: [u8; 6],
}

impl Guard {
    pub(crate) fn new(table: &str, bridge: &str, node: [u8; 6]) -> Result<Self, berth_nft::Error> {
        use DataType::{Ether, Ifname, Ipv4, Ipv6};
        let table = Table::new(Family::Bridge, table)?;
        Ok(Self {
            chain: Chain::base(&table, "guard", Base::filter(Hook::Prerouting, PRIORITY))?,
            sources4: Set::of_keys(&table, "sources4", &[Ifname, Ether, Ipv4])?,
            sources6: Set::of_keys(&table, "sources6", &[Ifname, Ether, Ipv6])?,
            table,
            bridge: bridge.to_owned(),
            node,
        })
    }

    /// Everything, into an empty table.
    pub(crate) fn build(&self, batch: &mut Batch, records: &[Record]) {
        batch.add_table(&self.table);
        batch.add_set(&self.sources4);
        batch.add_set(&self.sources6);
        batch.add_chain(&self.chain);
        for rule in self.rules() {
            batch.add_rule(&rule);
        }
        for record in records {
            self.add(batch, record);
        }
    }

    pub(crate) fn add(&self, batch: &mut Batch, record: &Record) {
        let (v4, v6) = elements(&self.bridge, record);
        add(batch, &self.sources4, &v4);
        add(batch, &self.sources6, &v6);
    }

    pub(crate) fn remove(&self, batch: &mut Batch, record: &Record) {
        let (v4, v6) = elements(&self.bridge, record);
        remove(batch, &self.sources4, &v4);
        remove(batch, &self.sources6, &v6);
    }

    fn rules(&self) -> Vec<Rule> {
        let from_pod = || self.rule();
        let source = |load| [Load::Iifname, Load::EtherSaddr, load];
        // Past the node, pod to pod, no policy would see it.
        let past_node = from_pod()
            .masked(Load::EtherDaddr, GROUP_BIT.to_vec(), (Cmp::Equal, vec![0; 6]))
            .is_not(Load::EtherDaddr, Field::Ether(self.node));
        vec![
            past_node.drop(),
            ethertype(from_pod(), ETHERTYPE_IPV4)
                .in_set(&source(Load::Ip4Saddr), &self.sources4)
                .accept(),
            ethertype(from_pod(), ETHERTYPE_IPV6)
                .in_set(&source(Load::Ip6Saddr), &self.sources6)
                .accept(),
            self.arp(ethertype(from_pod(), ETHERTYPE_ARP)).accept(),
            from_pod().drop(),
        ]
    }

    /// A rule for frames from this bridge's pods: all their ports share the start of their names.
    fn rule(&self) -> Rule {
        let prefix = veth::prefix(&self.bridge).into_bytes();
        Rule::new(&self.chain)
            .expr(Expr::Meta { key: Meta::Iifname, to: Reg::word(0) })
            .expr(Expr::Compare { reg: Reg::word(0), op: Cmp::Equal, data: prefix })
    }

    /// Port, Ethernet source and sender address in the set, and the sender MAC as well.
    fn arp(&self, rule: Rule) -> Rule {
        let network =
            |offset, len, to| Expr::Payload { base: BaseHeader::Network, offset, len, to };
        let port = || Expr::Meta { key: Meta::Iifname, to: Reg::word(0) };
        let frame_mac =
            Expr::Payload { base: BaseHeader::Link, offset: 6, len: 6, to: Reg::word(4) };
        // arp_sha and arp_spa of ARP for Ethernet and IPv4.
        rule.expr(port())
            .expr(frame_mac)
            .expr(network(14, 4, Reg::word(6)))
            .expr(Expr::lookup(&self.sources4, Reg::word(0), None))
            .expr(port())
            .expr(network(8, 6, Reg::word(4)))
            .expr(network(14, 4, Reg::word(6)))
            .expr(Expr::lookup(&self.sources4, Reg::word(0), None))
    }
}

fn ethertype(rule: Rule, number: u16) -> Rule {
    let data = number.to_be_bytes().to_vec();
    rule.expr(Expr::Meta { key: Meta::Protocol, to: Reg::word(0) }).expr(Expr::Compare {
        reg: Reg::word(0),
        op: Cmp::Equal,
        data,
    })
}

/// A record's elements: its addresses, and the link-local address that its MAC gives it.
fn elements(bridge: &str, record: &Record) -> (Vec<Element>, Vec<Element>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let Some(primary) = record.addresses.first() else {
        return (v4, v6);
    };
    let mac = mac_of(*primary);
    let port = veth::name(bridge, &record.attachment);
    let Some(port) = Field::ifname(&port) else {
        return (v4, v6);
    };
    let element = |ip: IpAddr| Element::key(Data::from([port, Field::Ether(mac), ip.into()]));
    for ip in &record.addresses {
        if ip.is_ipv6() {
            v6.push(element(*ip));
            v6.push(element(link_local(mac).into()));
        } else {
            v4.push(element(*ip));
        }
    }
    (v4, v6)
}

/// The link-local address that the kernel derives from a MAC (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let tail = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    (0xfe80_u128 << 112 | u128::from(u64::from_be_bytes(tail))).into()
}

pub(crate) fn add(batch: &mut Batch, set: &Set, elements: &[Element]) {
    if !elements.is_empty() {
        batch.add_elements(set, elements);
    }
}

pub(crate) fn remove(batch: &mut Batch, set: &Set, elements: &[Element]) {
    if !elements.is_empty() {
        batch.delete_elements(set, elements);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_the_kernels() {
        let address = link_local([0x02, 0xbe, 10, 1, 2, 3]);
        assert_eq!(address.to_string(), "fe80::be:aff:fe01:203");
    }

    #[test]
    fn a_dual_stack_pod_may_use_three_addresses() {
        let record = Record {
            attachment: "a".try_into().unwrap(),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ports: Vec::new(),
        };
        let (v4, v6) = elements("berth0", &record);
        assert_eq!((v4.len(), v6.len()), (1, 2));
    }
}
