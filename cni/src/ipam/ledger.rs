//! Who holds what: decides on addresses and host ports. Pure; [`super::store`] writes it down.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::{Error, Range, Record};
use crate::attachment::{AttachmentId, HostPort};

/// The leases of one node.
#[derive(Debug)]
pub(crate) struct Ledger {
    pools: Vec<Pool>,
    records: BTreeMap<AttachmentId, Record>,
    holders: HashMap<IpAddr, AttachmentId>,
}

#[derive(Debug)]
struct Pool {
    range: Range,
    /// The address given last: the search goes on behind it, so that one that was freed rests for
    /// as long as possible.
    previous: Option<IpAddr>,
    /// Addresses that something unknown holds on disk.
    blocked: BTreeSet<IpAddr>,
}

impl Ledger {
    pub(crate) fn new(ranges: Vec<Range>) -> Self {
        let pool = |range| Pool { range, previous: None, blocked: BTreeSet::new() };
        Self {
            pools: ranges.into_iter().map(pool).collect(),
            records: BTreeMap::new(),
            holders: HashMap::new(),
        }
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub(crate) fn get(&self, id: &AttachmentId) -> Option<&Record> {
        self.records.get(id)
    }

    /// Takes a record as it was found on disk. An address that is held already makes it invalid;
    /// one outside the ranges does not (the node's range may have changed under running pods).
    pub(crate) fn admit(&mut self, record: Record) -> Result<(), Record> {
        let taken = |ip: &IpAddr| self.holders.contains_key(ip);
        if self.records.contains_key(&record.attachment) || record.addresses.iter().any(taken) {
            return Err(record);
        }
        self.insert(record);
        Ok(())
    }

    /// Goes on behind this address.
    pub(crate) fn resume_after(&mut self, ip: IpAddr) {
        if let Some(pool) = self.pools.iter_mut().find(|pool| pool.range.allows(ip)) {
            pool.previous = Some(ip);
        }
    }

    /// Never gives this address away.
    pub(crate) fn block(&mut self, ip: IpAddr) {
        if let Some(pool) = self.pools.iter_mut().find(|pool| pool.range.allows(ip)) {
            pool.blocked.insert(ip);
        }
    }

    /// Leases one address of each family, or none at all. What `id` holds already is returned
    /// again.
    pub(crate) fn reserve(
        &mut self,
        id: &AttachmentId,
        host_ports: &[HostPort],
    ) -> Result<Record, Error> {
        if let Some(record) = self.records.get(id) {
            return if record.host_ports == host_ports {
                Ok(record.clone())
            } else {
                Err(Error::OtherHostPorts(id.clone()))
            };
        }
        self.check_ports(host_ports)?;
        let addresses = self
            .pools
            .iter()
            .map(|pool| pool.next(&self.holders))
            .collect::<Result<Vec<_>, _>>()?;
        for ip in &addresses {
            self.resume_after(*ip);
        }
        let record = Record { attachment: id.clone(), addresses, host_ports: host_ports.to_vec() };
        self.insert(record.clone());
        Ok(record)
    }

    pub(crate) fn release(&mut self, id: &AttachmentId) -> Option<Record> {
        let record = self.records.remove(id)?;
        for ip in &record.addresses {
            self.holders.remove(ip);
        }
        Some(record)
    }

    fn insert(&mut self, record: Record) {
        for ip in &record.addresses {
            self.holders.insert(*ip, record.attachment.clone());
        }
        self.records.insert(record.attachment.clone(), record);
    }

    fn check_ports(&self, wanted: &[HostPort]) -> Result<(), Error> {
        for port in wanted {
            let clash = |record: &&Record| record.host_ports.iter().any(|p| overlap(p, port));
            if let Some(holder) = self.records.values().find(clash) {
                return Err(Error::HostPortTaken {
                    port: port.host_port,
                    protocol: port.protocol,
                    ip: port.host_ip,
                    holder: holder.attachment.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Pool {
    fn next(&self, holders: &HashMap<IpAddr, AttachmentId>) -> Result<IpAddr, Error> {
        let free = |ip: &IpAddr| !holders.contains_key(ip) && !self.blocked.contains(ip);
        self.range.after(self.previous).find(free).ok_or(Error::Exhausted(self.range))
    }
}

/// Whether some packet could match both host ports.
pub(crate) fn overlap(a: &HostPort, b: &HostPort) -> bool {
    let addresses = match (a.host_ip, b.host_ip) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => {
            a.is_ipv6() == b.is_ipv6() && (a == b || a.is_unspecified() || b.is_unspecified())
        }
    };
    addresses && a.protocol == b.protocol && a.host_port == b.host_port
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::Protocol;

    fn ledger(cidrs: &[&str]) -> Ledger {
        Ledger::new(cidrs.iter().map(|c| Range::new(c.parse().unwrap()).unwrap()).collect())
    }

    fn id(n: usize) -> AttachmentId {
        AttachmentId::try_from(format!("pod-{n}")).unwrap()
    }

    fn port(ip: Option<&str>, host_port: u16, protocol: Protocol) -> HostPort {
        HostPort { host_ip: ip.map(|ip| ip.parse().unwrap()), host_port, pod_port: 80, protocol }
    }

    #[test]
    fn a_freed_address_is_given_again_only_after_all_others() {
        let mut ledger = ledger(&["10.0.0.0/29"]);
        let first = ledger.reserve(&id(0), &[]).unwrap();
        ledger.release(&id(0)).unwrap();
        for n in 1..5 {
            assert_ne!(ledger.reserve(&id(n), &[]).unwrap().addresses, first.addresses);
        }
        assert_eq!(ledger.reserve(&id(5), &[]).unwrap().addresses, first.addresses);
        assert_eq!(
            ledger.reserve(&id(6), &[]).unwrap_err().to_string(),
            "no IP addresses available in range set: 10.0.0.1-10.0.0.6"
        );
    }

    #[test]
    fn when_one_family_is_exhausted_no_address_of_the_other_is_lost() {
        let mut ledger = ledger(&["10.0.0.0/24", "fd00::/126"]);
        ledger.reserve(&id(0), &[]).unwrap();
        ledger.reserve(&id(1), &[]).unwrap();
        assert!(ledger.reserve(&id(2), &[]).is_err());
        assert_eq!(ledger.holders.len(), 4);
        ledger.release(&id(0)).unwrap();
        assert_eq!(ledger.reserve(&id(2), &[]).unwrap().addresses[0].to_string(), "10.0.0.4");
    }

    #[test]
    fn a_second_request_returns_what_is_held_and_refuses_other_ports() {
        let mut ledger = ledger(&["10.0.0.0/24"]);
        let ports = [port(None, 80, Protocol::Tcp)];
        let first = ledger.reserve(&id(0), &ports).unwrap();
        assert_eq!(ledger.reserve(&id(0), &ports).unwrap(), first);
        assert!(matches!(ledger.reserve(&id(0), &[]), Err(Error::OtherHostPorts(_))));
    }

    #[test]
    fn host_ports_clash_when_one_packet_could_match_both() {
        let mut ledger = ledger(&["10.0.0.0/24"]);
        ledger.reserve(&id(0), &[port(Some("192.0.2.1"), 53, Protocol::Udp)]).unwrap();
        let free = [
            port(Some("192.0.2.2"), 53, Protocol::Udp),
            port(None, 53, Protocol::Tcp),
            port(Some("::"), 53, Protocol::Udp),
        ];
        ledger.reserve(&id(1), &free).unwrap();
        for taken in [None, Some("0.0.0.0"), Some("192.0.2.1")] {
            let error = ledger.reserve(&id(2), &[port(taken, 53, Protocol::Udp)]).unwrap_err();
            assert!(error.to_string().starts_with("host port 53/udp"), "{error}");
        }
    }

    #[test]
    fn a_record_from_disk_that_claims_a_held_address_is_handed_back() {
        let mut ledger = ledger(&["10.0.0.0/24"]);
        let mut record = ledger.reserve(&id(0), &[]).unwrap();
        record.attachment = id(1);
        assert!(ledger.admit(record).is_err());
        assert_eq!(ledger.records().count(), 1);
    }
}
