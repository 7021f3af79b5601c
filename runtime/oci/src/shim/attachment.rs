//! Who is attached to a container: its output once more, through pipes of their own.
//!
//! What the container prints goes to the log first and then to each attachment's pipe, which the agent
//! reads: no byte waits in a queue. Policy for a reader that is slower than the container:
//!
//! ```text
//! Flowing ─pipe full─► Holding ─taken within [`PATIENCE_MS`]─► Flowing
//!    ▲                    └─not taken─► Skipping (rest of the chunk and what follows is counted, not kept)
//!    └────────────── pipe empty, at the next line ──────────────┘
//! ```
//! While one is holding, the container's output is not read: it waits at most that long at a time, and
//! never for a reader that takes nothing. The log never waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::log::Stream;

/// How long a reader may hold the container's output back before it misses some.
pub(super) const PATIENCE_MS: u64 = 1_000;
/// What the pipe of an attachment keeps, where the kernel allows it.
const PIPE_BYTES: usize = 256 << 10;

/// Where a reader's pipe stands.
#[derive(Debug)]
enum Flow {
    Flowing,
    /// The rest of a chunk, since when.
    Holding {
        rest: Vec<u8>,
        since_ms: u64,
    },
    /// Nothing is given until the pipe is empty and a line begins.
    Skipping,
}

/// One stream of an attachment.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) stream: Stream,
    fd: OwnedFd,
    flow: Flow,
    dropped: u64,
    broken: bool,
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Tap {
    /// A tap and the end that its reader gets.
    pub(super) fn new(stream: Stream) -> Result<(Self, OwnedFd), Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A host that limits pipes gives a smaller one.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        let tap = Self { stream, fd: write, flow: Flow::Flowing, dropped: 0, broken: false };
        Ok((tap, read))
    }

    /// Whether the container's output waits for this reader.
    pub(super) fn is_holding(&self) -> bool {
        matches!(self.flow, Flow::Holding { .. })
    }

    /// When the wait is over.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        match &self.flow {
            Flow::Holding { since_ms, .. } => Some(since_ms + PATIENCE_MS),
            _ => None,
        }
    }

    /// Gives a chunk of output.
    pub(super) fn offer(&mut self, chunk: &[u8], now_ms: u64) {
        match &mut self.flow {
            _ if self.broken => {}
            Flow::Holding { rest, .. } => {
                // The container's last output, which cannot be left in its pipe.
                rest.extend_from_slice(chunk);
                self.advance(now_ms);
            }
            Flow::Flowing => self.give(chunk, now_ms),
            Flow::Skipping => {
                let empty = matches!(rustix::io::ioctl_fionread(&self.fd), Ok(0));
                match chunk.iter().position(|byte| *byte == b'\n') {
                    Some(end) if empty => {
                        self.dropped += end as u64 + 1;
                        self.flow = Flow::Flowing;
                        self.give(&chunk[end + 1..], now_ms);
                    }
                    _ => self.dropped += chunk.len() as u64,
                }
            }
        }
    }

    /// Goes on with what is held, or gives up on it when its time is over.
    pub(super) fn advance(&mut self, now_ms: u64) {
        let Flow::Holding { rest, since_ms } = std::mem::replace(&mut self.flow, Flow::Flowing)
        else {
            self.flow = Flow::Flowing;
            return;
        };
        self.give(&rest, since_ms);
        if let Flow::Holding { rest, since_ms } = &self.flow
            && now_ms.saturating_sub(*since_ms) >= PATIENCE_MS
        {
            self.dropped += rest.len() as u64;
            self.flow = Flow::Skipping;
        }
    }

    fn give(&mut self, mut bytes: &[u8], since_ms: u64) {
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.flow = Flow::Holding { rest: bytes.to_vec(), since_ms };
                    return;
                }
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }
}

/// Somebody who is attached.
#[derive(Debug)]
pub(super) struct Attachment {
    /// Whom to tell the end.
    pub(super) connection: u64,
    pub(super) taps: Vec<Tap>,
}

impl Attachment {
    /// Whether it holds a stream, or any, back.
    pub(super) fn holds(&self, stream: Option<Stream>) -> bool {
        let mut taps = self.taps.iter().filter(|tap| stream.is_none_or(|s| s == tap.stream));
        taps.any(Tap::is_holding)
    }

    /// Bytes that its reader missed.
    pub(super) fn dropped_bytes(&self) -> u64 {
        self.taps.iter().map(|tap| tap.dropped).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(fd: &OwnedFd) -> Vec<u8> {
        let mut all = Vec::new();
        let mut chunk = [0; 8192];
        while let Ok(count @ 1..) = rustix::io::read(fd, &mut chunk) {
            all.extend_from_slice(&chunk[..count]);
        }
        all
    }

    #[test]
    fn a_reader_that_keeps_up_misses_nothing_and_holds_nobody() {
        let (mut tap, reader) = Tap::new(Stream::Stdout).unwrap();
        for _ in 0..100 {
            tap.offer(&[b'x'; 64 << 10], 0);
            assert!(!tap.is_holding());
            assert_eq!(read_all(&reader).len(), 64 << 10);
        }
        assert_eq!(tap.dropped, 0);
    }

    #[test]
    fn a_slow_reader_holds_the_output_back_and_misses_nothing_in_time() {
        let (mut tap, reader) = Tap::new(Stream::Stdout).unwrap();
        let mut offered = 0;
        while !tap.is_holding() {
            tap.offer(&[b'x'; 64 << 10], 5);
            offered += 64 << 10;
        }
        assert_eq!(tap.deadline_ms(), Some(5 + PATIENCE_MS));
        tap.advance(6);
        let mut read = read_all(&reader).len();
        tap.advance(7);
        assert!(!tap.is_holding());
        read += read_all(&reader).len();
        assert_eq!((read, tap.dropped), (offered, 0));
    }

    #[test]
    fn a_dead_reader_holds_once_and_is_told_what_it_missed() {
        let (mut tap, reader) = Tap::new(Stream::Stdout).unwrap();
        let line = [b"0123456789abcde\n".repeat(4096), b"torn".to_vec()].concat();
        let mut offered = 0;
        while !tap.is_holding() {
            tap.offer(&line, 0);
            offered += line.len();
        }
        tap.advance(PATIENCE_MS);
        assert!(!tap.is_holding(), "it holds nobody any more");
        for _ in 0..10 {
            tap.offer(&line, 0);
            offered += line.len();
            assert!(!tap.is_holding());
        }
        // It reads again: from the next line on, it is given everything.
        let mut read = read_all(&reader).len();
        tap.offer(b"rest of a line\nnew\n", 0);
        offered += 19;
        let text = read_all(&reader);
        assert_eq!(text, b"new\n");
        read += text.len();
        assert_eq!(read as u64 + tap.dropped, offered as u64);
    }

    #[test]
    fn a_closed_reader_costs_nothing() {
        let (mut tap, reader) = Tap::new(Stream::Stderr).unwrap();
        drop(reader);
        // Tests do not block SIGPIPE as the shim does; Rust programs ignore it.
        for _ in 0..100 {
            tap.offer(&[b'x'; 64 << 10], 0);
            assert!(!tap.is_holding());
        }
        assert!(tap.broken);
    }
}
