//! One client: frames in, frames out, bounded.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::Serialize;

use crate::frame::{self, Decoder};
use crate::protocol::{Answer, MAX_FRAME_BYTES, Request};

/// A client that reads nothing while this much waits for it is dropped.
const MAX_PENDING_BYTES: usize = 2 * MAX_FRAME_BYTES;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The next request may come.
    Idle,
    /// A request is being carried out.
    Busy,
    /// Carries events only.
    Subscribed,
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
        let mut chunk = [0; 64 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.closed = true,
            Ok(count) => self.decoder.push(&chunk[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.closed = true,
        }
    }

    /// The next request, when the last one has been answered. Malformed ones end the connection.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        if self.mode != Mode::Idle || self.closed {
            return None;
        }
        match self.decoder.next_message() {
            Ok(request) => request,
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
