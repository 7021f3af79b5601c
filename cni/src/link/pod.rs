//! The inside of a pod's namespace: loopback, addresses and routes, through a socket opened there.
//!
//! Addresses have full length (/32, /128) and the only ways out are the gateway and, through it,
//! everything: pods of one node talk through the node, never past it. Every step can be repeated.

use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::veth::INSIDE;
use super::{Link, SETTLE_ATTEMPTS, SETTLE_PAUSE, failed, find};
use crate::config::Layout;
use crate::netns::NetNs;
use crate::{Error, sysctl};

const LOOPBACK: u32 = 1;

/// A socket inside a pod's namespace.
#[derive(Debug)]
pub(crate) struct Pod {
    handle: Handle,
}

impl Pod {
    /// Enters the namespace once, writes the settings that the interface is to inherit and opens
    /// the socket.
    pub(crate) async fn open(ns: &NetNs, layout: &Layout) -> Result<Self, Error> {
        let settings = sysctl::pod(layout.uses_v4(), layout.uses_v6());
        let prepare = move || settings.iter().try_for_each(sysctl::Setting::apply);
        Ok(Self { handle: super::connect(ns, prepare).await? })
    }

    /// The pod's interface, if it has one.
    pub(crate) async fn interface(&self) -> Result<Option<Link>, Error> {
        find(&self.handle, INSIDE).await
    }

    /// Gives interface and loopback everything they need.
    pub(crate) async fn configure(
        &self,
        layout: &Layout,
        addresses: &[IpAddr],
    ) -> Result<(), Error> {
        let Some(link) = self.interface().await? else {
            return Err(Error::NotReady(format!("{INSIDE} vanished from the pod")));
        };
        self.up(LOOPBACK).await?;
        for ip in addresses {
            add_address(&self.handle, link.index, IpNet::from(*ip)).await?;
        }
        self.up(link.index).await?;
        for ip in addresses {
            if let Some(family) = layout.family_of(*ip) {
                for route in routes(link.index, family.gateway(), *ip) {
                    let done = self.handle.route().add(route).replace().execute().await;
                    done.map_err(failed("add the pod's route"))?;
                }
            }
        }
        for ip in addresses {
            received(&self.handle, *ip).await?;
        }
        Ok(())
    }

    async fn up(&self, index: u32) -> Result<(), Error> {
        let change = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(change).execute().await.map_err(failed("set the pod's link up"))
    }
}

/// Adds an address, or finds it there. IPv6 addresses are usable at once.
pub(crate) async fn add_address(handle: &Handle, index: u32, net: IpNet) -> Result<(), Error> {
    let mut request = handle.address().add(index, net.addr(), net.prefix_len()).replace();
    if net.addr().is_ipv6() {
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    request.execute().await.map_err(failed(format!("add address {net}")))
}

/// Waits until packets to the address are received. IPv6 arranges that in a worker of its own,
/// also when it need not look for duplicates; until then what arrives is sent back to the node.
/// Gives up silently: a later packet will find it done.
pub(crate) async fn received(handle: &Handle, ip: IpAddr) -> Result<(), Error> {
    let IpAddr::V6(v6) = ip else {
        return Ok(());
    };
    for _ in 0..SETTLE_ATTEMPTS {
        let query = RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128);
        let found = handle.route().get(query.build()).execute().try_next().await;
        if found.is_ok_and(|route| route.is_some_and(|r| r.header.kind == RouteType::Local)) {
            return Ok(());
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
    Ok(())
}

/// The gateway as a neighbour, and everything through it.
fn routes(index: u32, gateway: IpAddr, source: IpAddr) -> Vec<RouteMessage> {
    match (gateway, source) {
        (IpAddr::V4(gateway), IpAddr::V4(source)) => {
            let builder = || {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                    .output_interface(index)
                    .protocol(RouteProtocol::Boot)
            };
            vec![
                builder()
                    .destination_prefix(gateway, 32)
                    .scope(RouteScope::Link)
                    .pref_source(source)
                    .build(),
                builder().gateway(gateway).build(),
            ]
        }
        (IpAddr::V6(gateway), IpAddr::V6(_)) => {
            let builder = || {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                    .output_interface(index)
                    .protocol(RouteProtocol::Boot)
            };
            vec![
                builder().destination_prefix(gateway, 128).build(),
                builder().gateway(gateway).build(),
            ]
        }
        _ => Vec::new(),
    }
}
