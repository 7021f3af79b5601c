//! The bridge that pods hang on, and the node's addresses on it.
//!
//! Its MAC is set, not borrowed from a port, so that pods' neighbour caches outlive any port.

use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::BridgeStpState;
use netlink_packet_route::route::RouteAttribute;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use super::{Link, absent_is_fine, failed, find, hash, list};
use crate::Error;
use crate::config::Layout;

const MTU_DEFAULT: u32 = 1500;

/// The bridge as it was found or made.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    pub(crate) has_v6: bool,
}

impl Bridge {
    /// The group of this bridge's pod links.
    pub(crate) fn group(&self) -> u32 {
        group(&self.name)
    }

    /// Whether a link is the outer end of one of this bridge's pods.
    pub(crate) fn owns(&self, link: &Link) -> bool {
        link.group == self.group() || link.group == self.doomed()
    }

    /// The group of links that are about to be deleted.
    pub(crate) fn doomed(&self) -> u32 {
        doomed(&self.name)
    }
}

/// A number nobody else is likely to use, never 0 (the default group).
pub(crate) fn group(bridge: &str) -> u32 {
    (hash(&format!("{bridge} pods")) as u32) | 0x4000_0000
}

pub(crate) fn doomed(bridge: &str) -> u32 {
    (hash(&format!("{bridge} doomed")) as u32 & !0x4000_0000) | 0x2000_0000
}

/// Makes or adopts the bridge, without its addresses.
pub(crate) async fn ensure(handle: &Handle, layout: &Layout) -> Result<Bridge, Error> {
    let name = &layout.bridge;
    let existing = find(handle, name).await?;
    if existing.as_ref().is_some_and(|link| !link.is_bridge) {
        return Err(Error::Request(format!("link {name} exists and is not a bridge")));
    }
    let mtu = match (layout.mtu, &existing) {
        (Some(mtu), _) => mtu,
        (None, Some(link)) => link.mtu,
        (None, None) => uplink_mtu(handle).await?,
    };
    let mac = layout.bridge_mac();
    if existing.is_none() {
        let wish = LinkBridge::new(name)
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
            .address(mac.to_vec())
            .mtu(mtu)
            .build();
        let made = handle.link().add(wish).execute().await;
        made.map_err(failed(format!("make bridge {name}")))?;
    }
    let Some(link) = find(handle, name).await? else {
        return Err(Error::NotReady(format!("bridge {name} vanished as soon as it was made")));
    };
    if link.mac != mac || link.mtu != mtu || !link.is_up {
        let change = LinkUnspec::new_with_index(link.index).address(mac.to_vec()).mtu(mtu).up();
        let changed = handle.link().set(change.build()).execute().await;
        changed.map_err(failed(format!("configure bridge {name}")))?;
    }
    Ok(Bridge { name: name.clone(), index: link.index, mtu, has_v6: layout.has_v6() })
}

/// Gives the bridge the gateways' addresses and takes those of earlier ranges away.
pub(crate) async fn address(
    handle: &Handle,
    layout: &Layout,
    bridge: &Bridge,
) -> Result<(), Error> {
    let wanted: Vec<IpNet> = layout.families.iter().map(gateway_net).collect();
    let present = addresses(handle).await?;
    for (index, net) in present {
        if index == bridge.index && !wanted.contains(&net) {
            let mut request = handle.address().add(index, net.addr(), net.prefix_len());
            let message = std::mem::take(request.message_mut());
            let gone = handle.address().del(message).execute().await;
            absent_is_fine(gone).map_err(failed(format!("remove address {net}")))?;
        }
    }
    for net in wanted {
        super::pod::add_address(handle, bridge.index, net).await?;
        super::pod::received(handle, net.addr()).await?;
    }
    Ok(())
}

fn gateway_net(family: &crate::config::Family) -> IpNet {
    // The prefix comes from a subnet of the same family.
    IpNet::new_assert(family.gateway(), family.subnet.prefix_len())
}

/// Refuses ranges that another interface's addresses make unusable.
pub(crate) async fn check_foreign(handle: &Handle, layout: &Layout) -> Result<(), Error> {
    let links = list(handle).await?;
    for (index, net) in addresses(handle).await? {
        let name = links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
        match name {
            Some(name) if name != layout.bridge => layout.check_foreign(name, net)?,
            _ => {}
        }
    }
    Ok(())
}

/// The node's own addresses, as single-address ranges.
pub(crate) async fn own_addresses(handle: &Handle) -> Result<Vec<IpNet>, Error> {
    Ok(addresses(handle).await?.into_iter().map(|(_, net)| IpNet::from(net.addr())).collect())
}

/// Whether the bridge still is as [`ensure`] and [`address`] left it.
pub(crate) async fn check(handle: &Handle, layout: &Layout, bridge: &Bridge) -> Result<(), Error> {
    let missing = |what: String| Err(Error::NotReady(what));
    match find(handle, &bridge.name).await? {
        None => return missing(format!("bridge {} is gone", bridge.name)),
        Some(link) if link.index != bridge.index => {
            return missing(format!("bridge {} was replaced", bridge.name));
        }
        Some(Link { is_up: false, .. }) => {
            return missing(format!("bridge {} is down", bridge.name));
        }
        Some(_) => {}
    }
    let present = addresses(handle).await?;
    for net in layout.families.iter().map(gateway_net) {
        if !present.contains(&(bridge.index, net)) {
            return missing(format!("bridge {} has lost its address {net}", bridge.name));
        }
    }
    Ok(())
}

/// Addresses with more than link scope, and the index of their interface.
async fn addresses(handle: &Handle) -> Result<Vec<(u32, IpNet)>, Error> {
    let dump = handle.address().get().execute().try_collect::<Vec<AddressMessage>>().await;
    let messages = dump.map_err(failed("list addresses"))?;
    let global = messages.into_iter().filter(|m| m.header.scope == AddressScope::Universe);
    Ok(global.filter_map(|message| Some((message.header.index, net_of(&message)?))).collect())
}

fn net_of(message: &AddressMessage) -> Option<IpNet> {
    // IFA_LOCAL is the interface's own address where there is a peer; IPv6 has IFA_ADDRESS alone.
    let mut local = None;
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

/// The MTU of the interface that the default route leaves by.
async fn uplink_mtu(handle: &Handle) -> Result<u32, Error> {
    for query in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.map_err(failed("list routes"))? {
            let via = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            if let (0, Some(index)) = (route.header.destination_prefix_length, via) {
                let link = handle.link().get().match_index(index).execute().try_next().await;
                if let Ok(Some(link)) = link {
                    let mtu = Link::from(link).mtu;
                    // A loopback default route says nothing about the wire.
                    if (1280..=9216).contains(&mtu) {
                        return Ok(mtu);
                    }
                }
            }
        }
    }
    Ok(MTU_DEFAULT)
}
