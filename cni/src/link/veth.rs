//! The pod's veth pair, seen from the node.
//!
//! One RTM_NEWLINK makes both ends, the inner one in the pod's namespace and the outer one a port
//! of the bridge. The port learns nothing and floods nothing, so no pod can listen or answer in
//! another's place. Pods have the node as only neighbour: pod to pod traffic is routed, where
//! connection tracking and policies see it. Differs: the reference bridge plugin switches between
//! pods and needs br_netfilter for Services. Where br_netfilter is on, the kernel bridges what a
//! rule translates to another pod; isolated ports would drop that, and a pod that reaches itself
//! through a Service needs hairpin mode.
//!
//! A static forwarding entry and permanent neighbours say where each address is.

use std::net::IpAddr;

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute,
};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::bridge::Bridge;
use super::{Link, SETTLE_ATTEMPTS, SETTLE_PAUSE, absent_is_fine, failed, find, hash, mac_of};
use crate::Error;
use crate::attachment::AttachmentId;
use crate::ipam::Record;
use crate::netns::NetNs;

/// The interface's name inside the pod.
pub(crate) const INSIDE: &str = "eth0";

/// What the outer ends of one bridge's pods start with, so that one rule can match them all.
pub(crate) fn prefix(bridge: &str) -> String {
    format!("bv{:03x}", hash(bridge) & 0xfff)
}

/// The outer end's name, 15 bytes.
pub(crate) fn name(bridge: &str, id: &AttachmentId) -> String {
    format!("{}{:010x}", prefix(bridge), hash(id.as_str()) & 0xff_ffff_ffff)
}

/// What is written on the outer end: enough to rebuild a lost lease.
pub(crate) fn alias(record: &Record) -> String {
    let addresses: Vec<_> = record.addresses.iter().map(ToString::to_string).collect();
    format!("berth {} {}", record.attachment, addresses.join(" "))
}

/// The inverse of [`alias`]. Host ports are not in it.
pub(crate) fn parse_alias(alias: &str) -> Option<Record> {
    let mut words = alias.split(' ');
    if words.next() != Some("berth") {
        return None;
    }
    let attachment = AttachmentId::try_from(words.next()?).ok()?;
    let addresses: Vec<IpAddr> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    let fits = (1..=2).contains(&addresses.len());
    fits.then_some(Record { attachment, addresses, host_ports: Vec::new() })
}

/// Makes the pair, or takes the one that is there and whole, and returns the outer end.
pub(crate) async fn ensure(
    handle: &Handle,
    bridge: &Bridge,
    record: &Record,
    pod: &NetNs,
    inner: Option<&Link>,
) -> Result<Link, Error> {
    let name = name(&bridge.name, &record.attachment);
    if let Some(outer) = find(handle, &name).await? {
        match outer.alias.as_deref().and_then(parse_alias) {
            Some(other) if other.attachment != record.attachment => {
                return Err(Error::Request(format!(
                    "link {name} of {} belongs to {}",
                    record.attachment, other.attachment
                )));
            }
            _ if outer.group != bridge.group() => {
                return Err(Error::Request(format!("link {name} exists and is not berth's")));
            }
            _ => {}
        }
        // Indexes are per namespace, so each end must name the other.
        let pair =
            |inner: &Link| outer.peer == Some(inner.index) && inner.peer == Some(outer.index);
        if inner.is_some_and(pair) {
            finish(handle, bridge, &outer, record).await?;
            return Ok(outer);
        }
        // Left from a start that was cut off, or of an earlier namespace of the same pod.
        delete(handle, outer.index).await?;
    }
    if inner.is_some() {
        let path = pod.path().display();
        return Err(Error::Request(format!("{INSIDE} already exists in {path}")));
    }
    create(handle, bridge, record, pod, &name).await?;
    let Some(outer) = find(handle, &name).await? else {
        return Err(Error::NotReady(format!("link {name} vanished as soon as it was made")));
    };
    match finish(handle, bridge, &outer, record).await {
        Ok(()) => Ok(outer),
        Err(error) => {
            delete(handle, outer.index).await?;
            Err(error)
        }
    }
}

async fn create(
    handle: &Handle,
    bridge: &Bridge,
    record: &Record,
    pod: &NetNs,
    name: &str,
) -> Result<(), Error> {
    let mac = record.addresses.first().map(|ip| mac_of(*ip)).unwrap_or_default();
    // Not UP for the inner end: the kernel refuses it (ENOTCONN) before the outer end exists.
    let inner = LinkMessageBuilder::<LinkUnspec>::new()
        .name(INSIDE)
        .mtu(bridge.mtu)
        .address(mac.to_vec())
        .setns_by_fd(pod.raw_fd())
        .build();
    let outer = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .mtu(bridge.mtu)
        .link_group(bridge.group())
        .controller(bridge.index)
        .up()
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inner)))
        .build();
    let action = format!("make {INSIDE} of {} in {}", record.attachment, pod.path().display());
    handle.link().add(outer).execute().await.map_err(failed(action))
}

/// Port settings, alias, forwarding entry and neighbours. Idempotent.
pub(crate) async fn finish(
    handle: &Handle,
    bridge: &Bridge,
    outer: &Link,
    record: &Record,
) -> Result<(), Error> {
    let action = || format!("configure link {}", outer.name);
    if outer.bridge != Some(bridge.index) {
        // Port data is refused where there is no port yet.
        let enslave = LinkUnspec::new_with_index(outer.index).controller(bridge.index).build();
        handle.link().set(enslave).execute().await.map_err(failed(action()))?;
    }
    let port = vec![
        InfoBridgePort::HairpinMode(true),
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        // What the node itself sends to groups is not held back by these.
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
    ];
    let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let mut change = LinkUnspec::new_with_index(outer.index)
        .alias(alias(record))
        .up()
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(port));
    if bridge.has_v6 {
        change = change.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_address]));
    }
    // Port data is read by RTM_NEWLINK on an existing link, not by RTM_SETLINK.
    let request = handle.link().add(change.build()).set_flags(NLM_F_REQUEST | NLM_F_ACK);
    request.execute().await.map_err(failed(action()))?;

    let Some(primary) = record.addresses.first() else {
        return Ok(());
    };
    let mac = mac_of(*primary);
    let entry = handle
        .neighbours()
        .add_bridge(outer.index, &mac)
        .state(NeighbourState::Noarp)
        .flags(NeighbourFlags::Controller)
        .replace();
    entry.execute().await.map_err(failed(action()))?;
    for ip in &record.addresses {
        let neighbour =
            handle.neighbours().add(bridge.index, *ip).link_layer_address(&mac).replace();
        neighbour.execute().await.map_err(failed(format!("make neighbour {ip}")))?;
    }
    Ok(())
}

/// Waits until port and bridge pass frames. The kernel starts their queues a moment after the
/// inner end is up (the bridge's with its first port); what is sent until then is lost, and a
/// lost SYN costs a second. Gives up silently: a link that somebody takes down stays down.
pub(crate) async fn settled(handle: &Handle, bridge: &Bridge, name: &str) -> Result<(), Error> {
    for _ in 0..SETTLE_ATTEMPTS {
        let port = find(handle, name).await?;
        let passes = port.is_none_or(|port| port.is_operational && port.is_forwarding);
        if passes && find(handle, &bridge.name).await?.is_none_or(|link| link.is_operational) {
            return Ok(());
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
    Ok(())
}

/// Forgets the pod's addresses. The pair itself goes later.
pub(crate) async fn forget(handle: &Handle, bridge: &Bridge, record: &Record) -> Result<(), Error> {
    for ip in &record.addresses {
        let mut entry = handle.neighbours().add(bridge.index, *ip);
        let message = std::mem::take(entry.message_mut());
        let gone = handle.neighbours().del(message).execute().await;
        absent_is_fine(gone).map_err(failed(format!("remove neighbour {ip}")))?;
    }
    Ok(())
}

/// Deletes a pair at once. Waits for the kernel's grace period, 10 to 25 ms.
pub(crate) async fn delete(handle: &Handle, index: u32) -> Result<(), Error> {
    let gone = handle.link().del(index).execute().await;
    absent_is_fine(gone).map_err(failed(format!("delete link {index}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> AttachmentId {
        AttachmentId::try_from(text).unwrap()
    }

    #[test]
    fn names_fit_the_kernel_and_differ() {
        let one = name("berth0", &id("0123456789abcdef0123456789abcdef"));
        assert_eq!(one.len(), 15);
        assert_ne!(one, name("berth0", &id("0123456789abcdef0123456789abcdee")));
    }

    #[test]
    fn an_alias_rebuilds_the_record_and_foreign_text_does_not() {
        let record = Record {
            attachment: id("pod-1"),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ports: Vec::new(),
        };
        assert_eq!(parse_alias(&alias(&record)), Some(record));
        for foreign in ["", "uplink", "berth", "berth pod-1", "berth a/b 10.0.0.2", "berth a x"] {
            assert_eq!(parse_alias(foreign), None, "{foreign}");
        }
    }
}
