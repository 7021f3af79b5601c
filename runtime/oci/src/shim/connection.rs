//! One client: frames in, frames out, bounded; descriptors only at the front of an answer.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;

use crate::frame::{self, Decoder};
use crate::protocol::{self, Answer, Failure, MAX_FRAME_BYTES, Request};

/// A client that reads nothing while this much waits for it is dropped.
const MAX_PENDING_BYTES: usize = 2 * MAX_FRAME_BYTES;
/// Standard streams and a terminal.
const MAX_DESCRIPTORS: usize = 4;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The next request may come.
    Idle,
    /// A request is being carried out.
    Busy,
    /// Carries events only.
    Subscribed { log_losses: bool },
    /// Carries the end of a session only.
    Session,
}

/// A connected client.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    pending: Vec<u8>,
    pub(super) mode: Mode,
    pub(super) closed: bool,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// Takes a client, if it is root.
    pub(super) fn accept(stream: UnixStream) -> Option<Self> {
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        if !peer.uid.is_root() || stream.set_nonblocking(true).is_err() {
            return None;
        }
        Some(Self {
            stream,
            decoder: Decoder::default(),
            pending: Vec::new(),
            mode: Mode::Idle,
            closed: false,
        })
    }

    /// Whether there is something to be written.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Reads what has come.
    pub(super) fn read(&mut self) {
        // Requests are short. It is part of the loop's own stack, which stays.
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.closed = true,
            // Nothing may follow a session's request.
            Ok(_) if self.mode == Mode::Session => self.closed = true,
            Ok(count) => self.decoder.push(&chunk[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.closed = true,
        }
    }

    /// The next request, when the last one has been answered. A malformed frame ends the connection; a
    /// whole one that is no known request does not.
    pub(super) fn next_request(&mut self) -> Option<Result<Request, Failure>> {
        if self.mode != Mode::Idle || self.closed {
            return None;
        }
        match self.decoder.next_frame() {
            Ok(frame) => frame.map(|bytes| protocol::parse_request(&bytes)),
            Err(_) => {
                self.closed = true;
                None
            }
        }
    }

    /// Answers the present request.
    pub(super) fn answer(&mut self, answer: &Answer) {
        if self.mode == Mode::Busy {
            self.mode = Mode::Idle;
        }
        self.send(answer);
    }

    /// Answers the present request with descriptors; the connection is a session's from now on. A
    /// client that has left earlier answers unread gets none and is dropped.
    pub(super) fn open(&mut self, answer: &Answer, descriptors: &[OwnedFd]) {
        self.mode = Mode::Session;
        let Ok(bytes) = frame::encode(answer) else {
            self.closed = true;
            return;
        };
        if !self.pending.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
            self.closed = true;
            return;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        if !borrowed.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&borrowed));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, flags) {
            // The rest, if any, follows without descriptors.
            Ok(count) => self.pending.extend_from_slice(&bytes[count..]),
            Err(_) => self.closed = true,
        }
    }

    /// Queues a message and writes what can be written.
    pub(super) fn send<T: Serialize>(&mut self, message: &T) {
        match frame::encode(message) {
            Ok(bytes) => self.pending.extend_from_slice(&bytes),
            Err(_) => self.closed = true,
        }
        self.flush();
        if self.pending.len() > MAX_PENDING_BYTES {
            self.closed = true;
        }
    }

    /// Writes what can be written.
    pub(super) fn flush(&mut self) {
        while !self.pending.is_empty() && !self.closed {
            match self.stream.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
        }
        // A large answer must not be paid for as long as the connection lives.
        self.pending = Vec::new();
    }

    /// Writes the rest, waiting for the client at most a moment: the shim is about to exit.
    pub(super) fn flush_finally(&mut self) {
        let limit = Some(std::time::Duration::from_millis(500));
        if self.stream.set_nonblocking(false).is_ok()
            && self.stream.set_write_timeout(limit).is_ok()
        {
            // A client that does not read its answer sees the end of the stream.
            let _ = self.stream.write_all(&self.pending);
        }
    }
}
