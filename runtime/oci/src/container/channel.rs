//! What a child tells the shim: messages over a seqpacket socket that closes when the command is
//! executed.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::{Doing, Result};
use crate::protocol::{Failure, ResolvedUser};

const MAX_MESSAGE: usize = 64 << 10;

/// A message of the child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The terminal's master side comes with it.
    Console,
    /// Everything is set up; the child waits at the gate.
    Ready { user: ResolvedUser, home: Option<String>, warnings: Vec<String> },
    /// It failed and exits.
    Failed(Failure),
    /// The sender is in a new user namespace and waits until its ids are mapped.
    Mappings,
    /// The sender's sibling, whose pidfd comes with it, is the container's first process and waits.
    Child,
    /// The namespaces are there and the root is not yet changed: the child waits until the hooks of
    /// the runtime have run.
    Hooks,
    /// The sender is in the container's network namespace, whose route socket comes with it, and waits
    /// until its network devices are there.
    Interfaces,
    /// The tree of a mount of the plan comes along, whose ids the sender has no power to map: it waits
    /// until they are.
    Ids { mount: usize },
}

/// A received message, with the descriptor that came along.
pub(crate) struct Received {
    pub(crate) message: Message,
    pub(crate) descriptor: Option<OwnedFd>,
}

/// The two ends: the shim's (non-blocking to read) and the child's.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .doing(|| "make a socket pair")
}

/// Sends a message. Blocking.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<()> {
    // A message is made of plain strings and numbers: encoding cannot fail.
    let bytes = serde_json::to_vec(message).unwrap_or_default();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        .doing(|| "report to the shim")?;
    Ok(())
}

/// Waits for the next message; `None` at the end.
pub(crate) fn wait(socket: BorrowedFd<'_>) -> Result<Option<Received>, Errno> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        match receive(socket) {
            Err(Errno::AGAIN) => {
                let mut waiting = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
                rustix::io::retry_on_intr(|| poll(&mut waiting, None))?;
            }
            Err(Errno::INTR) => {}
            received => return received,
        }
    }
}

/// Lets a child that waits for it go on.
pub(crate) fn release(socket: BorrowedFd<'_>) -> Result<()> {
    rustix::net::send(socket, b"r", SendFlags::NOSIGNAL)
        .map(drop)
        .doing(|| "release the process of a new container")
}

/// The child's side of [`release`]; exits when the keeper is gone.
pub(super) fn await_release(socket: BorrowedFd<'_>) -> Result<()> {
    let mut byte = [0; 1];
    let read = || rustix::io::read(socket, &mut byte[..]);
    match rustix::io::retry_on_intr(read).doing(|| "wait for the keeper")? {
        0 => crate::sys::exit_now(1),
        _ => Ok(()),
    }
}

/// Takes the next message: `Ok(None)` at the end, `EAGAIN` when there is none yet.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Received>, Errno> {
    // No more memory than the message takes: a large buffer would be cleared each time.
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let (_, length) = rustix::net::recv(socket, &mut [0; 0][..], flags)?;
    let mut bytes = vec![0; length.min(MAX_MESSAGE)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = {
        let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        rustix::net::recvmsg(socket.as_fd(), &mut slices, &mut control, flags)?
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    let message = serde_json::from_slice(&bytes[..received.bytes]).map_err(|_| Errno::BADMSG)?;
    Ok(Some(Received { message, descriptor }))
}
