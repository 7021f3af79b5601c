//! A further process in a container, its output collected.

use std::os::fd::OwnedFd;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::io::Errno;

use crate::protocol::{Answer, Failure, FailureKind, MAX_FRAME_BYTES, Reply};

/// Both streams together must fit into one frame, encoded.
const MAX_TOTAL_BYTES: usize = MAX_FRAME_BYTES / 4 * 3 - (64 << 10);

/// A stream being collected.
#[derive(Debug)]
pub(super) struct Capture {
    pub(super) fd: Option<OwnedFd>,
    bytes: Vec<u8>,
}

impl Capture {
    pub(super) fn new(fd: Option<OwnedFd>) -> Self {
        Self { fd, bytes: Vec::new() }
    }

    /// Reads once, keeping at most `limit` bytes. Returns whether there may be more.
    fn read(&mut self, limit: usize) -> bool {
        let Some(fd) = &self.fd else { return false };
        let mut chunk = [0; 64 << 10];
        match rustix::io::read(fd, &mut chunk) {
            Ok(0) => self.fd = None,
            Ok(count) => {
                let room = limit.saturating_sub(self.bytes.len());
                self.bytes.extend_from_slice(&chunk[..count.min(room)]);
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.fd = None,
        }
        false
    }
}

/// A running execution.
#[derive(Debug)]
pub(super) struct Execution {
    /// Whom to answer; absent once the client is gone.
    pub(super) waiting: u64,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) channel: Option<OwnedFd>,
    pub(super) captures: [Capture; 2],
    pub(super) limit: usize,
    pub(super) deadline_ms: Option<u64>,
    pub(super) timed_out: bool,
    pub(super) failure: Option<Failure>,
}

impl Execution {
    /// Reads one stream once.
    pub(super) fn read(&mut self, index: usize) -> bool {
        let other = self.captures[1 - index].bytes.len();
        let limit = self.limit.min(MAX_TOTAL_BYTES.saturating_sub(other));
        self.captures[index].read(limit)
    }

    /// The answer once the process has been reaped. What is in the pipes is taken; processes that it
    /// left behind and that hold them are not waited for.
    pub(super) fn answer(mut self, exit_code: i32) -> Answer {
        if let Some(failure) = self.failure {
            let kind = match failure.kind {
                FailureKind::Create => FailureKind::Start,
                kind => kind,
            };
            return Err(Failure { kind, ..failure });
        }
        for index in 0..2 {
            let mut budget = 64;
            while budget > 0 && self.read(index) {
                budget -= 1;
            }
        }
        let [stdout, stderr] = self.captures.map(|capture| STANDARD.encode(capture.bytes));
        Ok(Reply::Executed { exit_code, stdout, stderr, timed_out: self.timed_out })
    }
}
