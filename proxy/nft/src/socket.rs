//! The netlink socket: stays open, sends one transaction at a time, reads dumps.
//!
//! Closing such a socket right after a transaction waits for the kernel's deferred clean-up
//! (milliseconds); keep it. It belongs to the network namespace of the thread that opened it,
//! wherever it is used later.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};

use crate::attr::Attrs;
use crate::batch::{Finished, SUBSYSTEM, next_sequence};
use crate::{Batch, Error, Object, ObjectKind, Operation, sys};

/// Asked-for send buffer; a larger transaction raises it.
const SEND_BUFFER: usize = 8 << 20;
/// Asked-for receive buffer.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The largest datagram the kernel sends on a dump is 32 KiB.
const READ_BUFFER: usize = 128 << 10;
/// Length of a netlink header, and of the netfilter header after it.
const HEADER: usize = 16;
const SUBHEADER: usize = 4;
/// How often a dump is repeated when other changes interrupt it.
const DUMP_ATTEMPTS: usize = 8;

/// A netfilter netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    send_buffer: usize,
    read: Vec<u8>,
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    flags: u16,
    seq: u32,
    payload: &'a [u8],
}

/// The kernel's verdict on one message.
struct Reply {
    errno: Errno,
    hint: Option<String>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace. Blocks only for the calls.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let fd = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(Error::Open)?;
        let kernel = NetlinkAddr::new(0, 0);
        socket::bind(fd.as_raw_fd(), &kernel).map_err(Error::Open)?;
        // Connected to the kernel, the socket takes no message from another process.
        socket::connect(fd.as_raw_fd(), &kernel).map_err(Error::Open)?;
        sys::enable_netlink_option(fd.as_fd(), libc::NETLINK_EXT_ACK).map_err(Error::Open)?;
        sys::enable_netlink_option(fd.as_fd(), libc::NETLINK_CAP_ACK).map_err(Error::Open)?;
        let _ = socket::setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        let mut socket = Self { fd, send_buffer: 0, read: vec![0; READ_BUFFER] };
        socket.reserve(SEND_BUFFER)?;
        Ok(socket)
    }

    /// Raises the send buffer so that `length` bytes fit one datagram.
    fn reserve(&mut self, length: usize) -> Result<(), Error> {
        if length > self.send_buffer {
            socket::setsockopt(&self.fd, sockopt::SndBufForce, &length)
                .or_else(|_| socket::setsockopt(&self.fd, sockopt::SndBuf, &length))
                .map_err(Error::Open)?;
            self.send_buffer = length;
        }
        Ok(())
    }

    /// Applies a transaction: all of it, or nothing. An empty one is not sent. Blocks for the
    /// kernel's work, microseconds to tens of milliseconds.
    ///
    /// # Errors
    /// [`Error::Rejected`] names the object the kernel refused. After [`Error::Receive`] it is
    /// unknown whether the transaction was applied.
    pub fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        let Some(finished) = batch.finish()? else {
            return Ok(());
        };
        self.reserve(finished.bytes.len() + 4096)?;
        self.drain();
        self.send(&finished.bytes, Object::batch)?;
        self.await_answer(&finished)
    }

    fn send(&self, bytes: &[u8], object: impl Fn() -> Object) -> Result<(), Error> {
        loop {
            match socket::send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(source) => {
                    return Err(Error::Send { object: object(), source });
                }
            }
        }
    }

    /// Forgets answers to earlier transactions that failed half-way through being read.
    fn drain(&mut self) {
        while self.receive().is_ok() {}
    }

    /// The kernel answers before `send` returns, so there is nothing to wait for.
    fn receive(&mut self) -> Result<usize, Errno> {
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut self.read, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Reads until the last message is acknowledged; the first refusal wins.
    fn await_answer(&mut self, finished: &Finished) -> Result<(), Error> {
        let mut refusal = None;
        loop {
            let length = match self.receive() {
                Ok(length) => length,
                Err(source) => {
                    return Err(refusal
                        .unwrap_or_else(|| Error::Receive { object: Object::batch(), source }));
                }
            };
            let mut complete = false;
            for message in messages(self.read.get(..length).unwrap_or_default()) {
                let Some(reply) = reply(&message) else {
                    continue;
                };
                complete |= message.seq == finished.last || message.seq == finished.first;
                if reply.errno != Errno::from_raw(0) && refusal.is_none() {
                    refusal = Some(refused(finished, message.seq, reply));
                }
            }
            if complete {
                return refusal.map_or(Ok(()), Err);
            }
        }
    }

    /// Asks for a dump and feeds each message's family and attributes to `each`. Starts over
    /// (after `reset`) when another change interrupts it.
    pub(crate) fn dump<T>(
        &mut self,
        request: &Request<'_>,
        mut each: impl FnMut(&mut Vec<T>, u8, Attrs<'_>),
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            match self.dump_once(request, |family, attrs| each(&mut found, family, attrs)) {
                Ok(()) => return Ok(found),
                Err(Error::Interrupted { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Interrupted { object: request.object.clone() })
    }

    fn dump_once(
        &mut self,
        request: &Request<'_>,
        mut each: impl FnMut(u8, Attrs<'_>),
    ) -> Result<(), Error> {
        let object = || request.object.clone();
        self.drain();
        let flags = libc::NLM_F_REQUEST | request.flags;
        let (bytes, seq) = request.encode(flags as u16);
        self.send(&bytes, object)?;
        let mut interrupted = false;
        loop {
            let length =
                self.receive().map_err(|source| Error::Receive { object: object(), source })?;
            for message in messages(self.read.get(..length).unwrap_or_default()) {
                if message.seq != seq {
                    continue;
                }
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                if let Some(reply) = reply(&message) {
                    return match reply.errno {
                        Errno::EINTR => Err(Error::Interrupted { object: object() }),
                        errno if errno != Errno::from_raw(0) => {
                            Err(Error::Rejected { object: object(), source: errno })
                        }
                        _ if interrupted => Err(Error::Interrupted { object: object() }),
                        _ => Ok(()),
                    };
                }
                let payload = message.payload;
                let Some((sub, attrs)) = payload.split_at_checked(SUBHEADER) else {
                    return Err(Error::Malformed { object: object() });
                };
                each(sub[0], Attrs(attrs));
                if message.flags & libc::NLM_F_MULTI as u16 == 0 {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one request outside a transaction and waits for its acknowledgement.
    pub(crate) fn request(&mut self, request: &Request<'_>) -> Result<(), Error> {
        let object = || request.object.clone();
        self.drain();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | request.flags;
        let (bytes, seq) = request.encode(flags as u16);
        self.send(&bytes, object)?;
        loop {
            let length =
                self.receive().map_err(|source| Error::Receive { object: object(), source })?;
            for message in messages(self.read.get(..length).unwrap_or_default()) {
                let Some(reply) = reply(&message) else {
                    continue;
                };
                if message.seq == seq {
                    return match reply.errno {
                        errno if errno == Errno::from_raw(0) => Ok(()),
                        source => Err(Error::Rejected { object: object(), source }),
                    };
                }
            }
        }
    }
}

/// A request outside a transaction.
pub(crate) struct Request<'a> {
    pub(crate) subsystem: u16,
    pub(crate) message: u16,
    pub(crate) family: u8,
    pub(crate) flags: i32,
    pub(crate) attributes: &'a [u8],
    pub(crate) object: Object,
}

impl<'a> Request<'a> {
    /// A request to read nf_tables objects.
    pub(crate) fn read(message: i32, family: u8, kind: ObjectKind, attributes: &'a [u8]) -> Self {
        let object = Object {
            operation: Operation::Dump,
            kind,
            family: crate::Family::from_number(family),
            path: String::new(),
            detail: None,
        };
        Self {
            subsystem: SUBSYSTEM,
            message: message as u16,
            family,
            flags: libc::NLM_F_DUMP,
            attributes,
            object,
        }
    }

    fn encode(&self, flags: u16) -> (Vec<u8>, u32) {
        let seq = next_sequence();
        let mut out = Vec::with_capacity(HEADER + SUBHEADER + self.attributes.len());
        let length = (HEADER + SUBHEADER + self.attributes.len()) as u32;
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&((self.subsystem << 8) | self.message).to_ne_bytes());
        out.extend_from_slice(&flags.to_ne_bytes());
        out.extend_from_slice(&seq.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&[self.family, 0, 0, 0]);
        out.extend_from_slice(self.attributes);
        (out, seq)
    }
}

/// Splits a datagram; stops at the first malformed message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let length = word(0)? as usize;
        let payload = bytes.get(HEADER..length)?;
        let message = Message { kind: half(4)?, flags: half(6)?, seq: word(8)?, payload };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Reads an acknowledgement, an error or the end of a dump.
fn reply(message: &Message<'_>) -> Option<Reply> {
    const TLVS: u16 = 0x200;
    const HINT: u16 = 1;
    let kind = i32::from(message.kind);
    if kind != libc::NLMSG_ERROR && kind != libc::NLMSG_DONE {
        return None;
    }
    let code = message.payload.first_chunk::<4>().map_or(0, |raw| i32::from_ne_bytes(*raw));
    let hint = (kind == libc::NLMSG_ERROR && message.flags & TLVS != 0)
        .then(|| message.payload.get(4 + HEADER..))
        .flatten()
        .and_then(|attrs| Attrs(attrs).text(HINT))
        .map(str::to_owned);
    Some(Reply { errno: Errno::from_raw(code.wrapping_neg()), hint })
}

fn refused(finished: &Finished, seq: u32, reply: Reply) -> Error {
    let known = finished.objects.iter().find(|(sent, _)| *sent == seq);
    let mut object = known.map_or_else(Object::batch, |(_, object)| object.clone());
    if reply.hint.is_some() {
        object.detail = reply.hint;
    }
    Error::Rejected { object, source: reply.errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_with_a_lying_length_yields_no_message() {
        let mut bytes = vec![0u8; 20];
        bytes[0] = 200;
        assert_eq!(messages(&bytes).count(), 0);
        bytes[0] = 4;
        assert_eq!(messages(&bytes).count(), 0);
        bytes[0] = 20;
        assert_eq!(messages(&bytes).count(), 1);
    }

    #[test]
    fn an_error_message_carries_its_number() {
        let payload = (-2i32).to_ne_bytes();
        let message =
            Message { kind: libc::NLMSG_ERROR as u16, flags: 0, seq: 1, payload: &payload };
        assert_eq!(reply(&message).unwrap().errno, Errno::ENOENT);
    }
}
