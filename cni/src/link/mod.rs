//! Links of the pod network, over rtnetlink: the bridge, the pods' veth pairs and their deletion.
//!
//! A [`Socket`] is a netlink socket that was opened inside a namespace and is used from the
//! runtime. Every link made here carries a group number derived from the bridge's name, so that a
//! later start knows its own without a file.

pub(crate) mod bridge;
pub(crate) mod pod;
pub(crate) mod reaper;
pub(crate) mod veth;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::Handle;

use crate::Error;
use crate::netns::NetNs;

/// How often, and in which steps, to look whether the kernel's workers have caught up.
const SETTLE_ATTEMPTS: u32 = 100;
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

/// Opens a netlink socket inside `ns` and drives it on the current runtime until the last handle
/// is dropped. `prepare` runs inside as well, before.
pub(crate) async fn connect<F>(ns: &NetNs, prepare: F) -> Result<Handle, Error>
where
    F: FnOnce() -> Result<(), Error> + Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    let opened = ns
        .inside(move || {
            prepare()?;
            let _guard = runtime.enter();
            rtnetlink::new_connection().map_err(Error::netlink("open a netlink socket"))
        })
        .await?;
    let (connection, handle, _unsolicited) = opened?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The system error in an rtnetlink error.
pub(crate) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// An action on a link of a name, for error messages.
pub(crate) fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let action = action.into();
    move |error| Error::netlink(action)(io_error(error))
}

/// Treats "no such thing" as done.
pub(crate) fn absent_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

pub(crate) fn is_absent(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return false;
    };
    matches!(
        message.to_io().raw_os_error().map(nix::errno::Errno::from_raw),
        Some(
            nix::errno::Errno::ENODEV
                | nix::errno::Errno::ENOENT
                | nix::errno::Errno::ESRCH
                | nix::errno::Errno::EADDRNOTAVAIL
        )
    )
}

/// A link as it is in the kernel, reduced to what is looked at here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) group: u32,
    /// Index of the bridge it belongs to.
    pub(crate) bridge: Option<u32>,
    /// Index of the other end of a veth, in its own namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) mtu: u32,
    pub(crate) mac: Vec<u8>,
    pub(crate) is_bridge: bool,
    pub(crate) is_up: bool,
    /// It has a carrier and its queue runs.
    pub(crate) is_operational: bool,
    /// It is a port of a bridge, and open.
    pub(crate) is_forwarding: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        use netlink_packet_route::link::{
            BridgePortState, InfoBridgePort, InfoKind, InfoPortData, LinkFlags, LinkInfo, State,
        };
        let forwarding = InfoBridgePort::State(BridgePortState::Forwarding);
        let forwards = |info: &LinkInfo| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => port.contains(&forwarding),
            _ => false,
        };
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            group: 0,
            bridge: None,
            peer: None,
            mtu: 0,
            mac: Vec::new(),
            is_bridge: false,
            is_up: message.header.flags.contains(LinkFlags::Up),
            is_operational: false,
            is_forwarding: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::Controller(index) => link.bridge = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::OperState(state) => link.is_operational = state == State::Up,
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_forwarding = infos.iter().any(forwards);
                }
                _ => {}
            }
        }
        link
    }
}

/// The link of a name, if there is one.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, Error> {
    let answer = handle.link().get().match_name(name).execute().try_next().await;
    match answer {
        Ok(message) => Ok(message.map(Link::from)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(failed(format!("look up link {name}"))(error)),
    }
}

/// All links of the namespace.
pub(crate) async fn list(handle: &Handle) -> Result<Vec<Link>, Error> {
    let links = handle.link().get().execute().map_ok(Link::from).try_collect().await;
    links.map_err(failed("list links"))
}

/// FNV-1a: short stable names and numbers from long ones. Not for secrets.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The MAC that belongs to an address: locally administered, and the same whenever the address
/// is given again, so that no neighbour cache can be out of date.
pub(crate) fn mac_of(ip: IpAddr) -> [u8; 6] {
    let low = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
    };
    [0x02, 0xbe, low[0], low[1], low[2], low[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_unicast_and_local_and_follows_the_address() {
        let mac = mac_of("10.1.2.3".parse().unwrap());
        assert_eq!(mac, [0x02, 0xbe, 10, 1, 2, 3]);
        assert_eq!(mac[0] & 0b11, 0b10);
        assert_eq!(mac_of("fd00::a:b".parse().unwrap()), [0x02, 0xbe, 0, 0xa, 0, 0xb]);
    }
}
