//! Host ports: which of the node's ports lead to which pod, as elements of two maps a family.
//!
//! A port is matched only for packets to one of the node's own addresses, never for traffic that
//! merely passes (CVE-2025-67499), and after Services, so a host port cannot shadow a NodePort.
//! Loopback is left out: reaching a pod from it would need `route_localnet`, which exposes the
//! node's loopback to its neighbours (CVE-2020-8558). What asks for a port on loopback alone has a
//! listener ([`crate::loopback`]). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_nft::{Element, Field};

use crate::Error;
use crate::attachment::{HostPort, Protocol};
use crate::config::Layout;
use crate::ipam::Record;
use crate::ipam::ledger::overlap;
use crate::loopback::is_loopback;

/// Refuses host ports that could never work.
pub(crate) fn check(ports: &[HostPort], layout: &Layout) -> Result<(), Error> {
    for (index, port) in ports.iter().enumerate() {
        let name = format!("host port {}/{}", port.host_port, port.protocol);
        if port.host_port == 0 || port.pod_port == 0 {
            return Err(Error::Request(format!("{name}: ports are 1 to 65535")));
        }
        if ports[..index].iter().any(|other| overlap(other, port)) {
            return Err(Error::Request(format!("{name} is asked for twice")));
        }
        match port.host_ip {
            Some(ip) if ip.is_loopback() && port.protocol == Protocol::Tcp => {}
            Some(ip) if ip.is_loopback() || ip.is_multicast() => {
                return Err(Error::Request(format!("{name}: address {ip} cannot lead to a pod")));
            }
            Some(ip) if layout.family_of(ip).is_none() => {
                return Err(Error::Request(format!(
                    "{name}: address {ip} is of a family that pods do not have"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Elements of one family's maps and set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Elements {
    /// Protocol and port, on any address.
    pub(crate) any: Vec<Element>,
    /// Address, protocol and port.
    pub(crate) on: Vec<Element>,
    /// Pods that may reach themselves through a host port: their address, twice.
    pub(crate) hairpin: Vec<Element>,
}

/// The elements of some records in one family. Of two that claim one port (which only a damaged
/// lease can), the first wins.
pub(crate) fn elements<'r>(records: impl Iterator<Item = &'r Record>, v6: bool) -> Elements {
    let mut any = BTreeMap::new();
    let mut on = BTreeMap::new();
    let mut hairpin = BTreeSet::new();
    for record in records {
        let Some(pod) = record.addresses.iter().copied().find(|ip| ip.is_ipv6() == v6) else {
            continue;
        };
        for port in record.host_ports.iter().filter(|port| !is_loopback(port)) {
            let to = [Field::from(pod), Field::Port(port.pod_port)];
            let protocol = Field::Proto(port.protocol.number());
            let from = Field::Port(port.host_port);
            match port.host_ip {
                Some(ip) if ip.is_ipv6() != v6 => continue,
                Some(ip) if !ip.is_unspecified() => {
                    on.entry([Field::from(ip), protocol, from]).or_insert(to);
                }
                _ => {
                    any.entry([protocol, from]).or_insert(to);
                }
            }
            hairpin.insert(pod);
        }
    }
    let twice = |ip: IpAddr| Element::key(berth_nft::Data::from([Field::from(ip), ip.into()]));
    Elements {
        any: any.into_iter().map(|(key, to)| data(key, to)).collect(),
        on: on.into_iter().map(|(key, to)| data(key, to)).collect(),
        hairpin: hairpin.into_iter().map(twice).collect(),
    }
}

fn data<const N: usize>(key: [Field; N], to: [Field; 2]) -> Element {
    Element::data(berth_nft::Data::from(key), to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::AttachmentId;
    use crate::config::Config;

    fn port(host_ip: Option<&str>, host_port: u16) -> HostPort {
        HostPort {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            pod_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn layout() -> Layout {
        let config = Config::new(vec!["10.0.0.0/24".parse().unwrap()], "/x".into());
        Layout::resolve(&config).unwrap()
    }

    fn record(name: &str, ports: Vec<HostPort>) -> Record {
        Record {
            attachment: AttachmentId::try_from(name).unwrap(),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ports: ports,
        }
    }

    #[test]
    fn ports_that_could_never_work_are_refused_with_the_reason() {
        let refusal = |ports: &[HostPort]| check(ports, &layout()).unwrap_err().to_string();
        assert_eq!(refusal(&[port(None, 0)]), "host port 0/tcp: ports are 1 to 65535");
        assert_eq!(
            refusal(&[port(None, 80), port(Some("192.0.2.1"), 80)]),
            "host port 80/tcp is asked for twice"
        );
        let udp = HostPort { protocol: Protocol::Udp, ..port(Some("127.0.0.1"), 80) };
        assert!(refusal(&[udp]).contains("cannot lead to a pod"));
        check(&[port(Some("127.0.0.1"), 80), port(Some("::1"), 80)], &layout()).unwrap();
        assert!(refusal(&[port(Some("2001:db8::1"), 80)]).contains("family"));
        check(&[port(Some("192.0.2.1"), 80), port(Some("192.0.2.2"), 80)], &layout()).unwrap();
    }

    #[test]
    fn an_address_of_one_family_puts_nothing_into_the_other() {
        let records = [record("a", vec![port(Some("0.0.0.0"), 80), port(Some("2001:db8::1"), 81)])];
        let v4 = elements(records.iter(), false);
        assert_eq!((v4.any.len(), v4.on.len(), v4.hairpin.len()), (1, 0, 1));
        let v6 = elements(records.iter(), true);
        assert_eq!((v6.any.len(), v6.on.len(), v6.hairpin.len()), (0, 1, 1));
    }

    #[test]
    fn a_port_on_loopback_is_no_element() {
        let records = [record("a", vec![port(Some("127.0.0.1"), 80), port(Some("::1"), 80)])];
        for v6 in [false, true] {
            assert_eq!(elements(records.iter(), v6), Elements::default());
        }
    }

    #[test]
    fn two_damaged_records_with_one_port_make_one_element() {
        let records = [record("a", vec![port(None, 80)]), record("b", vec![port(None, 80)])];
        assert_eq!(elements(records.iter(), false).any.len(), 1);
    }
}
