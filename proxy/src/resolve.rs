//! From a Service, its slices and the node's facts to what clients dial and where they go.
//!
//! Pure. Owns the choice of endpoints: readiness, the fallback to terminating ones, traffic
//! policies. Spec: the Service and EndpointSlice API; KEP-1669 (terminating endpoints), KEP-2086
//! (internal traffic policy).

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{
    Absent, Affinity, Backend, Condition, Facts, Place, Protocol, Service, ServicePort, Slice,
    TrafficPolicy, Vip, VipKey, VipKind,
};

/// A backend and whether it is only a fallback.
type Candidate = (Backend, Condition);

/// Resolves a Service: one entry for each port of each of its addresses, whose families stay
/// apart. A port number used twice keeps the first.
pub fn resolve(service: &Service, slices: &[&Slice], facts: &Facts) -> Vec<(VipKey, Vip)> {
    let mut vips = Vec::new();
    for port in &service.ports {
        for &cluster_ip in &service.cluster_ips {
            let candidates = candidates(port, slices, cluster_ip.is_ipv6());
            let key = VipKey { address: cluster_ip, protocol: port.protocol, port: port.port };
            vips.push((key, cluster_vip(service.internal_policy, &candidates)));
            for (address, number) in external(service, port, facts) {
                if address.is_ipv6() == cluster_ip.is_ipv6() {
                    let key = VipKey { address, protocol: port.protocol, port: number };
                    vips.push((key, external_vip(service.external_policy, &candidates)));
                }
            }
        }
    }
    let hold = hold(service.affinity);
    vips.iter_mut().for_each(|(_, vip)| vip.hold = hold);
    let mut seen = BTreeSet::new();
    vips.retain(|(key, _)| seen.insert(*key));
    vips
}

/// Whole seconds, at least one.
fn hold(affinity: Affinity) -> Option<u32> {
    match affinity {
        Affinity::None => None,
        Affinity::ClientIp(time) => {
            Some(u32::try_from(time.as_secs()).unwrap_or(u32::MAX / 1000).max(1))
        }
    }
}

/// What clients outside may dial for a port.
fn external(service: &Service, port: &ServicePort, facts: &Facts) -> Vec<(IpAddr, u16)> {
    let nodes = facts.node_addresses.iter();
    let nodes = nodes.filter_map(|address| Some((*address, port.node_port?)));
    let others = service.external_ips.iter().filter(|address| facts.may_be_external(**address));
    nodes.chain(others.map(|address| (*address, port.port))).collect()
}

/// All endpoints of a port, of one family, that take connections at all.
fn candidates(port: &ServicePort, slices: &[&Slice], v6: bool) -> Vec<Candidate> {
    let serves = |name: &str, protocol: Protocol| name == port.name && protocol == port.protocol;
    let mut found: Vec<Candidate> = slices
        .iter()
        .flat_map(|slice| {
            let ports = slice.ports.iter().filter(|p| serves(&p.name, p.protocol));
            ports.flat_map(|p| slice.endpoints.iter().map(move |endpoint| (p.port, endpoint)))
        })
        .filter(|(_, endpoint)| endpoint.condition != Condition::Unready)
        .filter(|(_, endpoint)| endpoint.address.is_ipv6() == v6)
        .map(|(port, endpoint)| {
            let address = (endpoint.address, port).into();
            (Backend { address, place: endpoint.place }, endpoint.condition)
        })
        .collect();
    // An endpoint may be in two slices while it moves between them: the better one counts.
    found.sort_by_key(|(backend, condition)| {
        (backend.address, *condition != Condition::Ready, backend.place)
    });
    found.dedup_by_key(|(backend, _)| backend.address);
    found
}

/// The ready ones, or else those that still serve while they terminate.
fn usable(candidates: &[Candidate], wanted: impl Fn(&Backend) -> bool) -> Vec<Backend> {
    let of = |condition| -> Vec<Backend> {
        let matching =
            candidates.iter().filter(|(backend, is)| *is == condition && wanted(backend));
        matching.map(|(backend, _)| *backend).collect()
    };
    let ready = of(Condition::Ready);
    if ready.is_empty() { of(Condition::Terminating) } else { ready }
}

fn here(backend: &Backend) -> bool {
    backend.place == Place::Here
}

/// Silence is for clients whose policy hides endpoints that exist.
fn absent(candidates: &[Candidate]) -> Absent {
    if candidates.is_empty() { Absent::Refuse } else { Absent::Drop }
}

fn cluster_vip(policy: TrafficPolicy, candidates: &[Candidate]) -> Vip {
    let backends = match policy {
        TrafficPolicy::Cluster => usable(candidates, |_| true),
        TrafficPolicy::Local => usable(candidates, here),
    };
    Vip { kind: VipKind::ClusterIp, backends, absent: absent(candidates), hold: None }
}

fn external_vip(policy: TrafficPolicy, candidates: &[Candidate]) -> Vip {
    let kind = match policy {
        TrafficPolicy::Cluster => VipKind::External,
        TrafficPolicy::Local => VipKind::LocalExternal(usable(candidates, here)),
    };
    let backends = usable(candidates, |_| true);
    Vip { kind, backends, absent: absent(candidates), hold: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, ServiceName, SlicePort};

    fn service(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
        Service {
            name: ServiceName { namespace: "default".into(), name: "web".into() },
            cluster_ips: vec!["10.96.0.10".parse().unwrap(), "fd00:96::10".parse().unwrap()],
            external_ips: vec![],
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30080),
            }],
            internal_policy: internal,
            external_policy: external,
            affinity: Affinity::None,
        }
    }

    fn slice(endpoints: &[(&str, Condition, Place)]) -> Slice {
        Slice {
            name: "web-1".into(),
            service: ServiceName { namespace: "default".into(), name: "web".into() },
            ports: vec![
                SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 },
                SlicePort { name: "other".into(), protocol: Protocol::Tcp, port: 9090 },
            ],
            endpoints: endpoints
                .iter()
                .map(|(address, condition, place)| Endpoint {
                    address: address.parse().unwrap(),
                    condition: *condition,
                    place: *place,
                })
                .collect(),
        }
    }

    fn facts() -> Facts {
        let node: IpAddr = "192.0.2.1".parse().unwrap();
        Facts { node_addresses: [node].into(), ..Facts::default() }
    }

    fn addresses(backends: &[Backend]) -> Vec<String> {
        backends.iter().map(|backend| backend.address.to_string()).collect()
    }

    fn find<'a>(vips: &'a [(VipKey, Vip)], address: &str, port: u16) -> &'a Vip {
        let address: IpAddr = address.parse().unwrap();
        &vips.iter().find(|(key, _)| key.address == address && key.port == port).unwrap().1
    }

    use Condition::{Ready, Terminating, Unready};
    use Place::{Elsewhere, Here};
    use TrafficPolicy::{Cluster, Local};

    #[test]
    fn families_do_not_mix() {
        let slices = [
            slice(&[("10.244.0.5", Ready, Here)]),
            slice(&[("fd00:244::5", Ready, Here), ("10.244.0.6", Ready, Here)]),
        ];
        let vips = resolve(&service(Cluster, Cluster), &slices.each_ref()[..], &facts());
        assert_eq!(
            addresses(&find(&vips, "10.96.0.10", 80).backends),
            ["10.244.0.5:8080", "10.244.0.6:8080"]
        );
        assert_eq!(addresses(&find(&vips, "fd00:96::10", 80).backends), ["[fd00:244::5]:8080"]);
        assert_eq!(vips.len(), 3);
    }

    #[test]
    fn terminating_endpoints_serve_only_when_nothing_is_ready() {
        let both = slice(&[("10.244.0.5", Ready, Here), ("10.244.0.6", Terminating, Here)]);
        let vips = resolve(&service(Cluster, Cluster), &[&both], &facts());
        assert_eq!(addresses(&find(&vips, "10.96.0.10", 80).backends), ["10.244.0.5:8080"]);
        let one = slice(&[("10.244.0.5", Unready, Here), ("10.244.0.6", Terminating, Here)]);
        let vips = resolve(&service(Cluster, Cluster), &[&one], &facts());
        assert_eq!(addresses(&find(&vips, "10.96.0.10", 80).backends), ["10.244.0.6:8080"]);
    }

    #[test]
    fn local_policies_fall_back_to_local_terminating_endpoints_not_to_remote_ready_ones() {
        let mixed = slice(&[("10.244.1.5", Ready, Elsewhere), ("10.244.0.6", Terminating, Here)]);
        let vips = resolve(&service(Local, Local), &[&mixed], &facts());
        assert_eq!(addresses(&find(&vips, "10.96.0.10", 80).backends), ["10.244.0.6:8080"]);
        let node = find(&vips, "192.0.2.1", 30080);
        assert_eq!(addresses(&node.backends), ["10.244.1.5:8080"]);
        let VipKind::LocalExternal(local) = &node.kind else { panic!("{node:?}") };
        assert_eq!(addresses(local), ["10.244.0.6:8080"]);
    }

    #[test]
    fn no_endpoints_are_refused_and_hidden_endpoints_are_silent() {
        let nothing = slice(&[("10.244.0.5", Unready, Here)]);
        let vips = resolve(&service(Cluster, Cluster), &[&nothing], &facts());
        assert_eq!(find(&vips, "10.96.0.10", 80).absent, Absent::Refuse);
        let remote = slice(&[("10.244.1.5", Ready, Elsewhere)]);
        let vips = resolve(&service(Local, Cluster), &[&remote], &facts());
        let vip = find(&vips, "10.96.0.10", 80);
        assert_eq!((vip.backends.len(), vip.absent), (0, Absent::Drop));
    }

    #[test]
    fn an_external_address_may_not_take_over_the_node_a_pod_or_a_service() {
        let endpoints = slice(&[("10.244.0.5", Ready, Here)]);
        let mut service = service(Cluster, Cluster);
        let wanted = ["192.0.2.1", "10.244.3.3", "10.96.0.1", "203.0.113.9"];
        service.external_ips = wanted.map(|ip| ip.parse().unwrap()).to_vec();
        let facts = Facts {
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            ..facts()
        };
        let vips = resolve(&service, &[&endpoints], &facts);
        let dialled: Vec<_> = vips.iter().map(|(key, _)| key.address.to_string()).collect();
        assert_eq!(dialled, ["10.96.0.10", "192.0.2.1", "203.0.113.9", "fd00:96::10"]);
    }

    #[test]
    fn an_endpoint_in_two_slices_counts_once() {
        let old = slice(&[("10.244.0.5", Terminating, Here)]);
        let new = slice(&[("10.244.0.5", Ready, Here)]);
        let vips = resolve(&service(Cluster, Cluster), &[&old, &new], &facts());
        assert_eq!(addresses(&find(&vips, "10.96.0.10", 80).backends), ["10.244.0.5:8080"]);
    }
}
