//! The fixed rules of one family: what is dropped, translated and masqueraded.
//!
//! ```text
//! prerouting  -300  protect      loopback addresses from the wire, router advertisements and
//!                                foreign source addresses from pods: dropped
//! prerouting   -90  host-ports   to a local address: DNAT by map (Services at -100 come first)
//! output       -90  host-ports-local   the same for the node's own connections
//! forward        0  sane         to or from pods in conntrack state invalid: dropped
//! postrouting  100  outbound     masquerade a pod to itself through its host port; pods to the outside
//! ```
//! Rules never change after start; pods, ports and peers are elements. Names of tables, chains
//! and sets are no interface.

use berth_nft::{
    Base, BaseHeader, Batch, Chain, Cmp, CtState, DataType, Element, Expr, Family, Field, Hook,
    Key, Load, Reg, Rule, Set, Table,
};
use ipnet::IpNet;

use crate::guard::{add, remove};
use crate::hostport;
use crate::ipam::Record;

const RAW: i32 = -300;
const AFTER_SERVICES: i32 = -90;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;
const ICMPV6: u8 = 58;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// One family's table and what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) table: Table,
    family: Family,
    bridge: String,
    pods: IpNet,
    /// Destinations for which pods keep their address.
    cluster: Set,
    host_ports: Set,
    host_ports_on: Set,
    hairpin: Set,
}

impl Rules {
    pub(crate) fn new(table: &str, bridge: &str, pods: IpNet) -> Result<Self, berth_nft::Error> {
        use DataType::{Proto, Service};
        let (family, ip) = match pods {
            IpNet::V4(_) => (Family::Ip, DataType::Ipv4),
            IpNet::V6(_) => (Family::Ip6, DataType::Ipv6),
        };
        let table = Table::new(family, table)?;
        Ok(Self {
            cluster: Set::of_keys(&table, "cluster", &[ip])?.interval(),
            host_ports: Set::map(&table, "host-ports", &[Proto, Service], &[ip, Service])?,
            host_ports_on: Set::map(
                &table,
                "host-ports-on",
                &[ip, Proto, Service],
                &[ip, Service],
            )?,
            hairpin: Set::of_keys(&table, "hairpin", &[ip, ip])?,
            table,
            family,
            bridge: bridge.to_owned(),
            pods,
        })
    }

    /// Everything, into an empty table.
    pub(crate) fn build(
        &self,
        batch: &mut Batch,
        records: &[Record],
        cluster: &[IpNet],
    ) -> Result<(), berth_nft::Error> {
        batch.add_table(&self.table);
        for set in [&self.cluster, &self.host_ports, &self.host_ports_on, &self.hairpin] {
            batch.add_set(set);
        }
        self.protect(batch)?;
        self.translate(batch)?;
        self.sane(batch)?;
        self.masquerade(batch)?;
        self.add_ports(batch, records.iter());
        add(batch, &self.cluster, &self.cluster_elements(cluster));
        Ok(())
    }

    /// Replaces the destinations for which pods keep their address.
    pub(crate) fn set_cluster(&self, batch: &mut Batch, cluster: &[IpNet]) {
        batch.flush_set(&self.cluster);
        add(batch, &self.cluster, &self.cluster_elements(cluster));
    }

    pub(crate) fn add_ports<'r>(
        &self,
        batch: &mut Batch,
        records: impl Iterator<Item = &'r Record>,
    ) {
        let elements = hostport::elements(records, self.is_v6());
        add(batch, &self.host_ports, &elements.any);
        add(batch, &self.host_ports_on, &elements.on);
        add(batch, &self.hairpin, &elements.hairpin);
    }

    pub(crate) fn remove_ports(&self, batch: &mut Batch, record: &Record) {
        let elements = hostport::elements(std::iter::once(record), self.is_v6());
        remove(batch, &self.host_ports, &elements.any);
        remove(batch, &self.host_ports_on, &elements.on);
        remove(batch, &self.hairpin, &elements.hairpin);
    }

    fn is_v6(&self) -> bool {
        self.family == Family::Ip6
    }

    /// Intervals of a set must not overlap, so prefixes inside others are left out.
    fn cluster_elements(&self, cluster: &[IpNet]) -> Vec<Element> {
        let mine = |net: &&IpNet| matches!(net, IpNet::V6(_)) == self.is_v6();
        let own: Vec<IpNet> = cluster.iter().filter(mine).copied().collect();
        let prefixes = IpNet::aggregate(&own);
        prefixes.iter().map(|net| Element::key(Key::prefix(net.addr(), net.prefix_len()))).collect()
    }

    fn protect(&self, batch: &mut Batch) -> Result<(), berth_nft::Error> {
        let chain = self.chain(batch, "protect", Base::filter(Hook::Prerouting, RAW))?;
        let loopback = self.loopback();
        for address in [Load::daddr(self.family), Load::saddr(self.family)] {
            let rule = interface(Rule::new(&chain), Load::Iifname, Cmp::NotEqual, "lo");
            batch.add_rule(&rule.in_prefix(address, loopback.addr(), loopback.prefix_len()).drop());
        }
        let from_pods = || interface(Rule::new(&chain), Load::Iifname, Cmp::Equal, &self.bridge);
        let foreign = self.not_in(from_pods(), Load::saddr(self.family), self.pods);
        if self.is_v6() {
            for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
                batch.add_rule(&icmpv6(from_pods(), kind).drop());
            }
            // Neighbour discovery speaks from link-local addresses, or from none.
            let link_local = IpNet::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10);
            let none = IpNet::new_assert([0u16; 8].into(), 128);
            let foreign = self.not_in(foreign, Load::Ip6Saddr, link_local);
            batch.add_rule(&self.not_in(foreign, Load::Ip6Saddr, none).drop());
        } else {
            batch.add_rule(&foreign.drop());
        }
        Ok(())
    }

    fn translate(&self, batch: &mut Batch) -> Result<(), berth_nft::Error> {
        let daddr = Load::daddr(self.family);
        let port = [Load::L4Proto, Load::Dport];
        let on = [daddr, Load::L4Proto, Load::Dport];
        let chain = self.chain(batch, "host-ports", Base::nat(Hook::Prerouting, AFTER_SERVICES))?;
        let local = || Rule::new(&chain).daddr_is_local();
        batch.add_rule(&local().dnat_map(&on, &self.host_ports_on));
        batch.add_rule(&local().dnat_map(&port, &self.host_ports));

        let base = Base::nat(Hook::Output, AFTER_SERVICES);
        let chain = self.chain(batch, "host-ports-local", base)?;
        // A connection from loopback could not come back.
        let local = || Rule::new(&chain).daddr_is_local();
        let beyond = |rule| self.not_in(rule, daddr, self.loopback());
        batch.add_rule(&beyond(local()).dnat_map(&on, &self.host_ports_on));
        batch.add_rule(&beyond(local()).dnat_map(&port, &self.host_ports));
        Ok(())
    }

    fn sane(&self, batch: &mut Batch) -> Result<(), berth_nft::Error> {
        let chain = self.chain(batch, "sane", Base::filter(Hook::Forward, FILTER))?;
        for side in [Load::Iifname, Load::Oifname] {
            let rule = interface(Rule::new(&chain), side, Cmp::Equal, &self.bridge);
            batch.add_rule(&rule.ct_state(CtState::INVALID).drop());
        }
        Ok(())
    }

    fn masquerade(&self, batch: &mut Batch) -> Result<(), berth_nft::Error> {
        let chain = self.chain(batch, "outbound", Base::nat(Hook::Postrouting, SOURCE_NAT))?;
        let (saddr, daddr) = (Load::saddr(self.family), Load::daddr(self.family));
        let hairpin = Rule::new(&chain).in_set(&[saddr, daddr], &self.hairpin);
        batch.add_rule(&hairpin.masquerade());
        let rule = interface(Rule::new(&chain), Load::Oifname, Cmp::NotEqual, &self.bridge)
            .in_prefix(saddr, self.pods.addr(), self.pods.prefix_len())
            .not_in_set(&[daddr], &self.cluster);
        batch.add_rule(&self.not_in(rule, daddr, self.multicast()).masquerade());
        Ok(())
    }

    fn chain(&self, batch: &mut Batch, name: &str, base: Base) -> Result<Chain, berth_nft::Error> {
        let chain = Chain::base(&self.table, name, base)?;
        batch.add_chain(&chain);
        Ok(chain)
    }

    fn not_in(&self, rule: Rule, fact: Load, net: IpNet) -> Rule {
        rule.not_in_prefix(fact, net.addr(), net.prefix_len())
    }

    fn loopback(&self) -> IpNet {
        if self.is_v6() {
            IpNet::new_assert([0, 0, 0, 0, 0, 0, 0, 1].into(), 128)
        } else {
            IpNet::new_assert([127, 0, 0, 0].into(), 8)
        }
    }

    fn multicast(&self) -> IpNet {
        if self.is_v6() {
            IpNet::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)
        } else {
            IpNet::new_assert([224, 0, 0, 0].into(), 4)
        }
    }
}

/// Matches an interface by its whole name.
fn interface(rule: Rule, side: Load, op: Cmp, name: &str) -> Rule {
    match (Field::ifname(name), op) {
        (Some(field), Cmp::NotEqual) => rule.is_not(side, field),
        (Some(field), _) => rule.is(side, field),
        // The configuration was checked: no name is longer than the kernel takes.
        (None, _) => rule,
    }
}

fn icmpv6(rule: Rule, kind: u8) -> Rule {
    rule.is(Load::L4Proto, Field::Proto(ICMPV6))
        .expr(Expr::Payload { base: BaseHeader::Transport, offset: 0, len: 1, to: Reg::word(0) })
        .expr(Expr::Compare { reg: Reg::word(0), op: Cmp::Equal, data: vec![kind] })
}
