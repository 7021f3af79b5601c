//! Routes to other nodes' pods, where the nodes share a link.
//!
//! What peers claim comes from the cluster's API, so every claim is judged ([`accept`], pure);
//! then the difference to what is in the kernel is planned ([`plan`], pure) and applied. Only
//! routes with this crate's protocol number in the main table are looked at. Tunnels are not
//! made here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::Error;
use crate::config::check_prefix;
use crate::link::{absent_is_fine, failed};

/// The number that marks routes as made here (`ip route` shows `proto 190`).
const PROTOCOL: u8 = 190;

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its pods' ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its address on a link that both nodes share. Of the same family as `pod_cidrs`: a
    /// dual-stack node is two peers.
    pub via: IpAddr,
}

/// Destinations and next hops.
pub(crate) type Routes = BTreeMap<IpNet, IpAddr>;

/// A route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) destination: IpNet,
    pub(crate) via: Option<IpAddr>,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Removes one route.
    Delete(IpNet, Option<IpAddr>),
    /// Makes a route, or changes the one that is there.
    Set(IpNet, IpAddr),
}

/// Sorts the peers' claims into routes and refusals. `own` are addresses and ranges of this node
/// that no peer may take.
pub(crate) fn accept(peers: &[Peer], own: &[IpNet]) -> (Routes, Vec<Error>) {
    let mut routes = Routes::new();
    let mut refused = Vec::new();
    for peer in peers {
        for &cidr in &peer.pod_cidrs {
            match judge(cidr, peer.via, own, &routes) {
                Ok(()) => {
                    routes.insert(cidr, peer.via);
                }
                Err(reason) => refused.push(Error::Request(format!(
                    "route to pods {cidr} via {}: {reason}",
                    peer.via
                ))),
            }
        }
    }
    (routes, refused)
}

fn judge(cidr: IpNet, via: IpAddr, own: &[IpNet], routes: &Routes) -> Result<(), String> {
    check_prefix(cidr).map_err(|error| error.to_string())?;
    let overlaps = |net: &IpNet| overlap(net, &cidr);
    if cidr.addr().is_ipv6() != via.is_ipv6() {
        return Err("range and next hop are of different families".into());
    }
    if via.is_unspecified() || via.is_loopback() || via.is_multicast() {
        return Err("the next hop is no address of a node".into());
    }
    if cidr.contains(&via) {
        return Err("the range contains its own next hop".into());
    }
    if let Some(mine) = own.iter().find(|net| overlaps(net)) {
        return Err(format!("the range overlaps {mine} of this node"));
    }
    match routes.iter().find(|(other, _)| overlaps(other)) {
        Some((&other, &hop)) if other != cidr || hop != via => {
            Err(format!("the range overlaps {other} via {hop}"))
        }
        _ => Ok(()),
    }
}

/// The routes that are there, without those that overlap a range of this node.
pub(crate) fn apart_from(present: &[Present], own: &[IpNet]) -> Routes {
    let foreign = |route: &&Present| !own.iter().any(|net| overlap(net, &route.destination));
    let known = present.iter().filter(foreign);
    known.filter_map(|route| Some((route.destination, route.via?))).collect()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The changes that turn `present` into `desired`: removals first.
pub(crate) fn plan(desired: &Routes, present: &[Present]) -> Vec<Action> {
    let stale = present
        .iter()
        .filter(|route| desired.get(&route.destination).copied() != route.via)
        .map(|route| Action::Delete(route.destination, route.via));
    let missing = desired
        .iter()
        .filter(|&(&destination, &via)| !present.contains(&Present { destination, via: Some(via) }))
        .map(|(&destination, &via)| Action::Set(destination, via));
    stale.chain(missing).collect()
}

/// Carries the changes out, going on past failures.
pub(crate) async fn apply(handle: &Handle, actions: &[Action]) -> Vec<Error> {
    let mut errors = Vec::new();
    for action in actions {
        let done = match *action {
            Action::Set(destination, via) => {
                let request = handle.route().add(message(destination, Some(via))).replace();
                let what = format!("add route to {destination} via {via}");
                request.execute().await.map_err(failed(what))
            }
            Action::Delete(destination, via) => {
                let gone = handle.route().del(message(destination, via)).execute().await;
                absent_is_fine(gone).map_err(failed(format!("remove route to {destination}")))
            }
        };
        errors.extend(done.err());
    }
    errors
}

/// The routes that are there and were made here.
pub(crate) async fn present(handle: &Handle) -> Result<Vec<Present>, Error> {
    let mut found = Vec::new();
    for query in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.map_err(failed("list routes"))? {
            found.extend(read(&route));
        }
    }
    Ok(found)
}

fn read(message: &RouteMessage) -> Option<Present> {
    let header = &message.header;
    if u8::from(header.protocol) != PROTOCOL || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let mut destination = None;
    let mut via = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            _ => {}
        }
    }
    let destination = IpNet::new(destination?, header.destination_prefix_length).ok()?;
    Some(Present { destination, via })
}

fn message(destination: IpNet, via: Option<IpAddr>) -> RouteMessage {
    let protocol = RouteProtocol::from(PROTOCOL);
    match destination {
        IpNet::V4(net) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .protocol(protocol);
            match via {
                Some(IpAddr::V4(via)) => builder.gateway(via).build(),
                _ => builder.build(),
            }
        }
        IpNet::V6(net) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .protocol(protocol);
            match via {
                Some(IpAddr::V6(via)) => builder.gateway(via).build(),
                _ => builder.build(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(cidr: &str, via: &str) -> Peer {
        Peer { pod_cidrs: vec![cidr.parse().unwrap()], via: via.parse().unwrap() }
    }

    #[test]
    fn what_a_peer_may_not_claim_is_refused_and_the_others_stay() {
        let own = ["10.1.0.0/24".parse().unwrap(), "192.0.2.1/32".parse().unwrap()];
        let peers = [
            peer("10.1.1.0/24", "192.0.2.2"),
            peer("10.1.0.0/16", "192.0.2.3"),
            peer("10.1.0.128/25", "192.0.2.3"),
            peer("0.0.0.0/0", "192.0.2.3"),
            peer("192.0.2.0/24", "192.0.2.3"),
            peer("10.1.1.0/24", "192.0.2.4"),
            peer("fd00::/64", "192.0.2.4"),
            peer("10.1.2.3/24", "192.0.2.4"),
            peer("10.1.9.0/24", "0.0.0.0"),
            peer("10.1.1.0/24", "192.0.2.2"),
        ];
        let (routes, refused) = accept(&peers, &own);
        assert_eq!(routes, Routes::from([("10.1.1.0/24".parse().unwrap(), peers[0].via)]));
        assert_eq!(refused.len(), 8, "the last one repeats the first");
    }

    fn routes() -> impl Strategy<Value = Routes> {
        prop::collection::btree_map((0..8u8, 0..2u8), 1..5u8, 0..10).prop_map(|raw| {
            let route = |((net, v6), hop): ((u8, u8), u8)| {
                if v6 == 1 {
                    let net = Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, 0);
                    (IpNet::new_assert(net.into(), 64), Ipv6Addr::from(u128::from(hop)).into())
                } else {
                    let net = Ipv4Addr::new(10, 0, net, 0);
                    (IpNet::new_assert(net.into(), 24), Ipv4Addr::new(192, 0, 2, hop).into())
                }
            };
            raw.into_iter().map(route).collect()
        })
    }

    fn as_present(routes: &Routes) -> Vec<Present> {
        routes.iter().map(|(&destination, &via)| Present { destination, via: Some(via) }).collect()
    }

    proptest! {
        #[test]
        fn applying_the_plan_gives_what_is_desired(old in routes(), new in routes()) {
            let mut present = as_present(&old);
            for action in plan(&new, &present) {
                match action {
                    Action::Delete(destination, via) => {
                        present.retain(|route| (route.destination, route.via) != (destination, via));
                    }
                    Action::Set(destination, via) => {
                        prop_assert!(!present.iter().any(|route| route.destination == destination));
                        present.push(Present { destination, via: Some(via) });
                    }
                }
            }
            present.sort_by_key(|route| route.destination);
            prop_assert_eq!(&present, &as_present(&new));
            prop_assert!(plan(&new, &present).is_empty());
        }

        #[test]
        fn a_route_reads_back_from_its_message(routes in routes()) {
            for present in as_present(&routes) {
                let read = read(&message(present.destination, present.via));
                prop_assert_eq!(read, Some(present));
            }
        }
    }
}
