//! What is known of the cluster's Services, and which ports a change of it touches.
//!
//! Pure. Owns the rule for two Services that claim one address and port: the first by name has
//! it, the other gets it when the first gives it up.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::{Facts, Service, ServiceName, Slice, Vip, VipKey};
use crate::resolve::resolve;

/// A change of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A Service is there, or changed.
    Service(Service),
    /// A Service is gone, or is none of ours any more.
    NoService(ServiceName),
    /// A slice is there, or changed.
    Slice(Slice),
    /// A slice is gone. The name is the slice's own; its Service is looked up.
    NoSlice(SliceName),
}

/// A slice's own name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Services and slices, and what they claim.
#[derive(Debug, Default)]
pub struct Cluster {
    services: HashMap<ServiceName, Service>,
    slices: HashMap<ServiceName, BTreeMap<String, Slice>>,
    owners: HashMap<SliceName, ServiceName>,
    claims: HashMap<VipKey, Vec<(ServiceName, Vip)>>,
    held: HashMap<ServiceName, Vec<VipKey>>,
    dirty: BTreeSet<ServiceName>,
}

impl Cluster {
    /// Takes note of a change.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Service(service) => {
                self.dirty.insert(service.name.clone());
                self.services.insert(service.name.clone(), service);
            }
            Update::NoService(name) => {
                self.services.remove(&name);
                self.dirty.insert(name);
            }
            Update::Slice(slice) => self.put_slice(slice),
            Update::NoSlice(name) => self.drop_slice(&name),
        }
    }

    fn put_slice(&mut self, slice: Slice) {
        let name =
            SliceName { namespace: slice.service.namespace.clone(), name: slice.name.clone() };
        if self.owners.get(&name).is_some_and(|owner| *owner != slice.service) {
            self.drop_slice(&name);
        }
        self.dirty.insert(slice.service.clone());
        self.owners.insert(name, slice.service.clone());
        self.slices.entry(slice.service.clone()).or_default().insert(slice.name.clone(), slice);
    }

    fn drop_slice(&mut self, name: &SliceName) {
        let Some(owner) = self.owners.remove(name) else { return };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&name.name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.insert(owner);
    }

    /// Forgets Services a fresh list did not hold.
    pub fn retain_services(&mut self, listed: &BTreeSet<ServiceName>) {
        let gone: Vec<_> =
            self.services.keys().filter(|name| !listed.contains(name)).cloned().collect();
        gone.into_iter().for_each(|name| self.update(Update::NoService(name)));
    }

    /// Forgets slices a fresh list did not hold.
    pub fn retain_slices(&mut self, listed: &BTreeSet<SliceName>) {
        let gone: Vec<_> =
            self.owners.keys().filter(|name| !listed.contains(name)).cloned().collect();
        gone.into_iter().for_each(|name| self.drop_slice(&name));
    }

    /// Whether something changed since the last call of [`Self::changes`].
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The ports that changed since the last call, with what they are now.
    pub fn changes(&mut self, facts: &Facts) -> Vec<(VipKey, Option<Vip>)> {
        let mut touched = BTreeSet::new();
        for name in std::mem::take(&mut self.dirty) {
            for key in self.held.remove(&name).unwrap_or_default() {
                if let Some(claims) = self.claims.get_mut(&key) {
                    claims.retain(|(claimant, _)| *claimant != name);
                    if claims.is_empty() {
                        self.claims.remove(&key);
                    }
                }
                touched.insert(key);
            }
            let Some(service) = self.services.get(&name) else { continue };
            let slices: Vec<&Slice> =
                self.slices.get(&name).into_iter().flat_map(BTreeMap::values).collect();
            let vips = resolve(service, &slices, facts);
            let mut keys = Vec::with_capacity(vips.len());
            for (key, vip) in vips {
                let claims = self.claims.entry(key).or_default();
                let at = claims.partition_point(|(claimant, _)| *claimant < name);
                claims.insert(at, (name.clone(), vip));
                if claims.len() > 1 {
                    tracing::warn!(service = %name, port = %key, "claimed by two Services");
                }
                keys.push(key);
                touched.insert(key);
            }
            self.held.insert(name, keys);
        }
        touched.into_iter().map(|key| (key, self.vip(&key).cloned())).collect()
    }

    fn vip(&self, key: &VipKey) -> Option<&Vip> {
        self.claims.get(key)?.first().map(|(_, vip)| vip)
    }

    /// All ports. Call after [`Self::changes`].
    pub fn all(&self) -> Vec<(VipKey, Vip)> {
        let first = |claims: &Vec<(ServiceName, Vip)>| Some(claims.first()?.1.clone());
        self.claims.iter().filter_map(|(key, claims)| Some((*key, first(claims)?))).collect()
    }

    /// Resolves everything anew, because the facts changed.
    pub fn touch_all(&mut self) {
        self.dirty.extend(self.services.keys().cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Affinity, Protocol, ServicePort, TrafficPolicy};

    fn service(name: &str, ip: &str) -> Service {
        Service {
            name: ServiceName { namespace: "default".into(), name: name.into() },
            cluster_ips: vec![ip.parse().unwrap()],
            external_ips: vec![],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: Affinity::None,
        }
    }

    fn name(name: &str) -> ServiceName {
        ServiceName { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn a_claimed_port_passes_to_the_other_service_when_its_owner_goes() {
        let mut cluster = Cluster::default();
        let facts = Facts::default();
        cluster.update(Update::Service(service("b", "10.96.0.1")));
        cluster.update(Update::Service(service("a", "10.96.0.1")));
        assert_eq!(cluster.changes(&facts).len(), 1);
        assert_eq!(cluster.all().len(), 1);
        cluster.update(Update::NoService(name("a")));
        let changes = cluster.changes(&facts);
        assert!(matches!(changes.as_slice(), [(_, Some(_))]), "{changes:?}");
        cluster.update(Update::NoService(name("b")));
        assert!(matches!(cluster.changes(&facts).as_slice(), [(_, None)]));
        assert!(cluster.all().is_empty());
    }

    #[test]
    fn a_slice_that_moves_to_another_service_touches_both() {
        let mut cluster = Cluster::default();
        let facts = Facts::default();
        cluster.update(Update::Service(service("a", "10.96.0.1")));
        cluster.update(Update::Service(service("b", "10.96.0.2")));
        let slice = |owner| Slice {
            name: "s".into(),
            service: name(owner),
            ports: vec![],
            endpoints: vec![],
        };
        cluster.update(Update::Slice(slice("a")));
        cluster.changes(&facts);
        cluster.update(Update::Slice(slice("b")));
        assert_eq!(cluster.changes(&facts).len(), 2);
        let gone = SliceName { namespace: "default".into(), name: "s".into() };
        cluster.update(Update::NoSlice(gone.clone()));
        assert_eq!(cluster.changes(&facts).len(), 1);
        cluster.update(Update::NoSlice(gone));
        assert!(!cluster.is_dirty());
    }

    #[test]
    fn what_a_fresh_list_does_not_hold_is_forgotten() {
        let mut cluster = Cluster::default();
        let facts = Facts::default();
        cluster.update(Update::Service(service("a", "10.96.0.1")));
        cluster.update(Update::Service(service("b", "10.96.0.2")));
        cluster.changes(&facts);
        cluster.retain_services(&[name("b")].into());
        assert!(matches!(cluster.changes(&facts).as_slice(), [(_, None)]));
        assert_eq!(cluster.all().len(), 1);
    }
}
