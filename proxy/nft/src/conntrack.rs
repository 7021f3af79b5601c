//! Conntrack entries: list those of a protocol, delete single ones.
//!
//! For flows whose service endpoint is gone: UDP has no end, so an entry would send packets to a
//! dead address until it times out. Spec: `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use nix::libc;

use crate::attr::{Attrs, put, put_nested};
use crate::socket::Request;
use crate::{Error, Family, Object, ObjectKind, Operation, Socket};

const SUBSYSTEM: u16 = 1;
const MESSAGE_GET: u16 = 1;
const MESSAGE_DELETE: u16 = 2;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const FILTER: u16 = 25;

const STATUS_DST_NAT: u32 = 1 << 5;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// As the client sent it.
    pub original: Tuple,
    /// As the answer is expected: its source is the endpoint after address translation.
    pub reply: Tuple,
    /// Whether the destination was translated.
    pub translated: bool,
    id: u32,
}

impl Socket {
    /// Lists the tracked connections of a family and protocol. Kernels before 5.8 ignore the
    /// protocol filter and send more; the rest is dropped here.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn flows(&mut self, family: Family, protocol: u8) -> Result<Vec<Flow>, Error> {
        let attributes = protocol_filter(protocol);
        let request = Request {
            subsystem: SUBSYSTEM,
            message: MESSAGE_GET,
            family: inet_family(family),
            flags: libc::NLM_F_DUMP,
            attributes: &attributes,
            object: object(Operation::Dump, family),
        };
        self.dump(&request, |out, _, attrs| {
            out.extend(flow(attrs).filter(|flow| flow.original.protocol == protocol));
        })
    }

    /// Deletes a tracked connection; one that is gone already is fine. A newer connection of the
    /// same addresses and ports is left alone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_flow(&mut self, flow: &Flow) -> Result<(), Error> {
        let family = if flow.original.source.is_ipv6() { Family::Ip6 } else { Family::Ip };
        let mut attributes = Vec::new();
        put_tuple(&mut attributes, &flow.original);
        put(&mut attributes, ID, &flow.id.to_be_bytes());
        let mut object = object(Operation::Delete, family);
        object.path = format!("{:?}", flow.original);
        let request = Request {
            subsystem: SUBSYSTEM,
            message: MESSAGE_DELETE,
            family: inet_family(family),
            flags: 0,
            attributes: &attributes,
            object,
        };
        match self.request(&request) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn object(operation: Operation, family: Family) -> Object {
    Object {
        operation,
        kind: ObjectKind::Flow,
        family: Some(family),
        path: String::new(),
        detail: None,
    }
}

fn inet_family(family: Family) -> u8 {
    if family == Family::Ip6 { libc::AF_INET6 as u8 } else { libc::AF_INET as u8 }
}

/// Lets the kernel leave other protocols out of a dump.
fn protocol_filter(protocol: u8) -> Vec<u8> {
    const FILTER_ORIG_FLAGS: u16 = 1;
    const FILTER_REPLY_FLAGS: u16 = 2;
    const BY_PROTOCOL: u32 = 1 << 3;
    let mut out = Vec::new();
    put_nested(&mut out, TUPLE_ORIG, |tuple| {
        put_nested(tuple, 2, |proto| put(proto, 1, &[protocol]));
    });
    put_nested(&mut out, FILTER, |filter| {
        put(filter, FILTER_ORIG_FLAGS, &BY_PROTOCOL.to_ne_bytes());
        put(filter, FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    });
    out
}

fn put_tuple(out: &mut Vec<u8>, tuple: &Tuple) {
    put_nested(out, TUPLE_ORIG, |nested| {
        put_nested(nested, 1, |ip| match (tuple.source, tuple.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                put(ip, 1, &source.octets());
                put(ip, 2, &destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                put(ip, 3, &source.octets());
                put(ip, 4, &destination.octets());
            }
            _ => {}
        });
        put_nested(nested, 2, |proto| {
            put(proto, 1, &[tuple.protocol]);
            put(proto, 2, &tuple.source_port.to_be_bytes());
            put(proto, 3, &tuple.destination_port.to_be_bytes());
        });
    });
}

fn flow(attrs: Attrs<'_>) -> Option<Flow> {
    Some(Flow {
        original: tuple(attrs.nested(TUPLE_ORIG)?)?,
        reply: tuple(attrs.nested(TUPLE_REPLY)?)?,
        translated: attrs.be32(STATUS)? & STATUS_DST_NAT != 0,
        id: attrs.be32(ID)?,
    })
}

fn tuple(attrs: Attrs<'_>) -> Option<Tuple> {
    let ip = attrs.nested(1)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = ip.find(v4) {
            return Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
        }
        Some(IpAddr::from(<[u8; 16]>::try_from(ip.find(v6)?).ok()?))
    };
    let proto = attrs.nested(2)?;
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: *proto.find(1)?.first()?,
        source_port: proto.be16(2).unwrap_or(0),
        destination_port: proto.be16(3).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_reads_back_as_written() {
        let written = Tuple {
            source: "fd00::1".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            protocol: 17,
            source_port: 4000,
            destination_port: 53,
        };
        let mut out = Vec::new();
        put_tuple(&mut out, &written);
        assert_eq!(tuple(Attrs(&out).nested(TUPLE_ORIG).unwrap()), Some(written));
    }
}
