//! Route netlink, as much of it as moving a network device takes.
//!
//! Owns the wire form of links and addresses and one blocking exchange at a time; which device goes
//! where is [`crate::container`]'s. rtnetlink(7), netlink(7).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ATTRIBUTE_BYTES: usize = 4;
/// The kernel makes no message of a dump larger.
const BUFFER_BYTES: usize = 64 << 10;
/// How often a list is asked for that changes while the kernel writes it.
const DUMP_ATTEMPTS: u32 = 20;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const DUMP: u16 = 0x300;
/// `NLM_F_EXCL | NLM_F_CREATE`.
const CREATE: u16 = 0x600;

/// `IFA_RT_PRIORITY`.
const ROUTE_PRIORITY: u16 = 9;
/// A flag of an address that lasts until it is taken away.
const PERMANENT: u32 = 0x80;
/// What a flag of an address says of how it is to be used, not of what the kernel found out about it:
/// `NODAD`, `HOMEADDRESS`, `MANAGETEMPADDR`, `NOPREFIXROUTE`, `MCAUTOJOIN`.
const WISHES: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;

/// A link of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: Vec<u8>,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    family: u8,
    prefix_length: u8,
    scope: u8,
    flags: u32,
    /// Its own, its peer's, its broadcast address and its routes' priority, as they came.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// Whether it is meant to last, and of global scope.
    pub(crate) fn is_permanent_and_global(&self) -> bool {
        self.flags & PERMANENT != 0 && self.scope == libc::RT_SCOPE_UNIVERSE
    }
}

/// Where a link goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) namespace: BorrowedFd<'a>,
    /// Its name there, or one with `%d` for a number that the kernel chooses.
    pub(crate) name: &'a str,
    /// Its index there. Linux 5.13.
    pub(crate) index: u32,
}

/// A socket that asks for and changes links of the network namespace it was made in.
#[derive(Debug)]
pub(crate) struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl From<OwnedFd> for Route {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0 }
    }
}

impl AsFd for Route {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Route {
    /// One of the present network namespace.
    pub(crate) fn open() -> Result<Self, Errno> {
        socket().map(Self::from)
    }

    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Errno> {
        self.list(libc::RTM_GETLINK, &[0; LINK_BYTES], libc::RTM_NEWLINK, link)
    }

    /// All addresses of all links.
    pub(crate) fn addresses(&mut self) -> Result<Vec<Address>, Errno> {
        self.list(libc::RTM_GETADDR, &[0; ADDRESS_BYTES], libc::RTM_NEWADDR, address)
    }

    /// Moves a link to another network namespace; there it is down and has no addresses. Refused, it
    /// stays as it was.
    pub(crate) fn send_away(&mut self, link: u32, to: &Destination<'_>) -> Result<(), Errno> {
        let mut body = link_header(link, 0);
        let name = [to.name.as_bytes(), b"\0"].concat();
        attribute(&mut body, libc::IFLA_IFNAME, &name)?;
        attribute(&mut body, libc::IFLA_NET_NS_FD, &to.namespace.as_raw_fd().to_ne_bytes())?;
        attribute(&mut body, libc::IFLA_NEW_IFINDEX, &to.index.to_ne_bytes())?;
        self.change(libc::RTM_NEWLINK, 0, &body)
    }

    /// Gives a link an address that another one had.
    pub(crate) fn add_address(&mut self, link: u32, address: &Address) -> Result<(), Errno> {
        let mut body = vec![address.family, address.prefix_length, 0, address.scope];
        body.extend(link.to_ne_bytes());
        for (kind, value) in &address.attributes {
            attribute(&mut body, *kind, value)?;
        }
        attribute(&mut body, libc::IFA_FLAGS, &(address.flags & WISHES).to_ne_bytes())?;
        self.change(libc::RTM_NEWADDR, CREATE, &body)
    }

    /// Sets a link up.
    pub(crate) fn set_up(&mut self, link: u32) -> Result<(), Errno> {
        self.change(libc::RTM_NEWLINK, 0, &link_header(link, libc::IFF_UP as u32))
    }

    fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        self.exchange(kind, flags | ACKNOWLEDGE, body, |_, _| {}).map(drop)
    }

    fn list<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        expected: u16,
        parse: fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let whole = self.exchange(kind, DUMP, body, |kind, body| {
                found.extend((kind == expected).then(|| parse(body)).flatten());
            })?;
            if whole {
                return Ok(found);
            }
        }
        Err(Errno::INTR)
    }

    /// Sends a request and takes every answer to it. False where what was listed changed meanwhile.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut take: impl FnMut(u16, &[u8]),
    ) -> Result<bool, Errno> {
        self.sequence += 1;
        let length = u32::try_from(HEADER_BYTES + body.len()).map_err(|_| Errno::MSGSIZE)?;
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend((REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        rustix::net::send(&self.socket, &request, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut whole = true;
        loop {
            let receive = || rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC);
            let (count, real) = rustix::io::retry_on_intr(receive)?;
            if real > count {
                return Err(Errno::MSGSIZE);
            }
            for message in messages(&buffer[..count]) {
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    // A list ends with a code as well, zero where nothing is wrong.
                    ERROR | DONE => return verdict(message.body).map(|()| whole),
                    kind => take(kind, message.body),
                }
            }
        }
    }
}

/// A route socket of the present network namespace.
pub(crate) fn socket() -> Result<OwnedFd, Errno> {
    // Without a protocol it is the one for routes.
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

fn verdict(body: &[u8]) -> Result<(), Errno> {
    match body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
        0 => Ok(()),
        code => Err(Errno::from_raw_os_error(code.saturating_neg())),
    }
}

fn link_header(index: u32, flags: u32) -> Vec<u8> {
    // Family, padding, type; index, flags, and which flags are to be changed.
    let mut header = vec![0; 4];
    header.extend(index.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) -> Result<(), Errno> {
    let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).map_err(|_| Errno::MSGSIZE)?;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
    Ok(())
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Takes the next of several aligned pieces, each as long as it says.
fn piece<'a>(rest: &mut &'a [u8], length: usize, header: usize) -> Option<&'a [u8]> {
    let piece = rest.get(..length).filter(|_| length >= header)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(piece)
}

fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let message = piece(&mut rest, length, HEADER_BYTES)?;
        Some(Message {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            body: &message[HEADER_BYTES..],
        })
    })
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let attribute = piece(&mut rest, length, ATTRIBUTE_BYTES)?;
        Some((u16_at(attribute, 2)?, &attribute[ATTRIBUTE_BYTES..]))
    })
}

fn link(body: &[u8]) -> Option<Link> {
    let index = u32_at(body, 4)?;
    let mut attributes = attributes(body.get(LINK_BYTES..)?);
    let (_, name) = attributes.find(|(kind, _)| *kind == libc::IFLA_IFNAME)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default().to_owned();
    Some(Link { index, name })
}

fn address(body: &[u8]) -> Option<Address> {
    let &[family, prefix_length, flags, scope] = body.first_chunk()?;
    let mut address = Address {
        link: u32_at(body, 4)?,
        family,
        prefix_length,
        scope,
        flags: flags.into(),
        attributes: Vec::new(),
    };
    for (kind, value) in attributes(body.get(ADDRESS_BYTES..)?) {
        match kind {
            libc::IFA_FLAGS => address.flags = u32_at(value, 0)?,
            libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST | ROUTE_PRIORITY => {
                address.attributes.push((kind, value.to_owned()));
            }
            _ => {}
        }
    }
    Some(address)
}

/// Everything that can be read out of what a socket gives.
#[cfg(test)]
pub(crate) fn read_all(bytes: &[u8]) -> (Vec<Link>, Vec<Address>) {
    let bodies = || messages(bytes).map(|message| message.body);
    (bodies().filter_map(link).collect(), bodies().filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend([0; HEADER_BYTES - 4]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn links_and_addresses_are_read_from_a_row_of_messages() {
        let mut body = link_header(7, 0);
        body[4..8].copy_from_slice(&7u32.to_ne_bytes());
        body.resize(LINK_BYTES, 0);
        attribute(&mut body, libc::IFLA_IFNAME, b"eth0\0").unwrap();
        let mut other = vec![2, 24, 0x80, 0, 7, 0, 0, 0];
        attribute(&mut other, libc::IFA_LOCAL, &[10, 0, 0, 1]).unwrap();
        attribute(&mut other, libc::IFA_FLAGS, &0x280u32.to_ne_bytes()).unwrap();
        let bytes = [message(&body), message(&other)].concat();
        let (links, addresses) = read_all(&bytes);
        assert!(links.contains(&Link { index: 7, name: b"eth0".to_vec() }));
        let address = addresses.last().unwrap();
        assert_eq!((address.link, address.prefix_length, address.flags), (7, 24, 0x280));
        assert!(address.is_permanent_and_global());
        assert_eq!(address.attributes, [(libc::IFA_LOCAL, vec![10, 0, 0, 1])]);
    }

    #[test]
    fn addresses_that_pass_or_reach_no_further_than_the_link_stay() {
        let address = |flags, scope| {
            let body = [2, 24, flags, scope, 7, 0, 0, 0];
            address(&body).unwrap().is_permanent_and_global()
        };
        assert!(address(0x80, 0));
        for (flags, scope) in [(0, 0), (0x80, 253), (0x80, 254)] {
            assert!(!address(flags, scope), "{flags} {scope}");
        }
    }

    #[test]
    fn an_attribute_longer_than_its_length_can_say_is_refused() {
        assert_eq!(attribute(&mut Vec::new(), 1, &[0; 70_000]), Err(Errno::MSGSIZE));
        assert_eq!(attribute(&mut Vec::new(), 1, &[0; 65_532]), Err(Errno::MSGSIZE));
    }

    #[test]
    fn a_refusal_is_the_error_it_names() {
        assert_eq!(verdict(&(-17i32).to_ne_bytes()), Err(Errno::EXIST));
        assert_eq!(verdict(&[0; 4]), Ok(()));
        assert_eq!(verdict(&[]), Ok(()));
    }
}
