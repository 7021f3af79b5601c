//! Which tracked connections point to endpoints that are gone.
//!
//! Pure. UDP has no end: an entry would send a client's packets to a dead address for as long
//! as the client keeps sending. TCP and SCTP connections end by themselves.
//! Differs: kube-proxy 1.36 keeps the entries when the last endpoint goes (kubernetes#139628).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use berth_nft::conntrack::Flow;

use crate::model::{Protocol, Vip, VipKey};

/// What became of the ports that changed.
pub type Changed<'a> = HashMap<VipKey, Option<&'a Vip>>;

/// Whether a connection must be forgotten, so that its next packet is translated anew.
pub fn is_stale(flow: &Flow, changed: &Changed<'_>) -> bool {
    let Some(protocol) = Protocol::from_number(flow.original.protocol) else { return false };
    let address = flow.original.destination;
    let key = VipKey { address, protocol, port: flow.original.destination_port };
    match changed.get(&key) {
        None => false,
        // An untranslated connection to an address that is no Service's is somebody else's.
        Some(None) => flow.translated,
        Some(Some(vip)) => {
            let endpoint = SocketAddr::new(flow.reply.source, flow.reply.source_port);
            !serves(vip, endpoint)
        }
    }
}

fn serves(vip: &Vip, endpoint: SocketAddr) -> bool {
    vip.lists().flat_map(|(_, list)| list).any(|backend| backend.address == endpoint)
}

/// Whether a port's change can have left connections behind.
pub fn may_leave_flows(key: &VipKey, before: Option<&Vip>, after: Option<&Vip>) -> bool {
    if key.protocol != Protocol::Udp {
        return false;
    }
    let empty = |vip: Option<&Vip>| vip.is_none_or(|vip| vip.backends.is_empty());
    let lost = before.is_some_and(|before| {
        let mut old = before.lists().flat_map(|(_, list)| list);
        old.any(|backend| after.is_none_or(|after| !serves(after, backend.address)))
    });
    lost || (empty(before) && !empty(after))
}

/// Families with a changed port, so that only their connections are listed.
pub fn families(changed: &Changed<'_>) -> Vec<berth_nft::Family> {
    let has = |v6| changed.keys().any(|key| matches!(key.address, IpAddr::V6(_)) == v6);
    [(false, berth_nft::Family::Ip), (true, berth_nft::Family::Ip6)]
        .into_iter()
        .filter(|(v6, _)| has(*v6))
        .map(|(_, family)| family)
        .collect()
}
