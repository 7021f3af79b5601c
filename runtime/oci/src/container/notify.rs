//! Handing the descriptor of a filter's notifications to whoever listens for them.
//!
//! The socket is connected to before the container's own root is entered. The descriptor exists only
//! once the filter is loaded, so that the filter must let sendmsg(2) pass, which the compiler checks.
//! OCI runtime spec, `config-linux.md`, The Container Process State; seccomp_unotify(2).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde::Serialize;

use super::hooks::{State, Subject};
use super::{Doing, Result};
use crate::seccomp::{Moment, Program};

/// The name that the specification gives the descriptor.
const DESCRIPTOR: &str = "seccompFd";

/// What is sent along with the descriptor.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    /// In the host's PID namespace.
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: &'a State<'a>,
}

/// A listener that waits for the descriptor.
pub(super) struct Listener {
    socket: OwnedFd,
    message: Vec<u8>,
    pub(super) moment: Moment,
}

/// Connects to the listener of a filter, if it has one. `pid` is the process' on the host.
pub(super) fn connect(
    filter: Option<&Program>,
    (subject, status): (&Subject, &str),
    pid: impl FnOnce() -> Result<i32>,
) -> Result<Option<Listener>> {
    let Some(listener) = filter.and_then(|filter| filter.listener.as_ref()) else {
        return Ok(None);
    };
    let operation = || {
        format!(
            "linux.seccomp.listenerPath: failed to connect with seccomp agent {}",
            listener.path.display()
        )
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.doing(operation)?;
    let address = SocketAddrUnix::new(listener.path.as_path()).doing(operation)?;
    rustix::net::connect(&socket, &address).doing(operation)?;
    let pid = pid()?;
    let state = subject.state(status, Some(pid));
    let message = ProcessState {
        oci_version: &subject.version,
        fds: [DESCRIPTOR],
        pid,
        metadata: &listener.metadata,
        state: &state,
    };
    // Plain strings and numbers: encoding cannot fail.
    let message = serde_json::to_vec(&message).unwrap_or_default();
    Ok(Some(Listener { socket, message, moment: listener.moment }))
}

impl Listener {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends the descriptor. This process is under the filter already.
    pub(super) fn hand_over(&self, notifications: OwnedFd) -> Result<()> {
        let sent = self.send(notifications.as_fd());
        if self.moment == Moment::Start {
            // The execution closes it: closing may be what the filter notifies of.
            std::mem::forget(notifications);
        }
        sent
    }

    fn send(&self, notifications: BorrowedFd<'_>) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [notifications];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let message = [IoSlice::new(&self.message)];
        rustix::net::sendmsg(&self.socket, &message, &mut control, SendFlags::NOSIGNAL)
            .map(drop)
            .doing(|| "linux.seccomp.listenerPath: hand over the notifications")
    }
}
