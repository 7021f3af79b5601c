//! A further process in a container: its output collected, or its streams given away.

use std::os::fd::{AsFd, OwnedFd};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::io::Errno;

use crate::container::birth::pidfd_of;
use crate::protocol::{Answer, Descriptor, Failure, FailureKind, MAX_FRAME_BYTES, Reply};
use crate::sys::{self, Cradle};

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

/// The name of an execution that is carried out once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Once {
    pub(super) container: String,
    pub(super) name: String,
}

/// What an execution is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// The output is collected, each stream up to the limit; it ends with its client, unless it is
    /// one that is carried out once.
    Collect { captures: [Capture; 2], limit: usize, once: Option<Once> },
    /// The streams are given away once the command is executed.
    Session {
        descriptors: Vec<(Descriptor, OwnedFd)>,
        /// What its terminal stands for, once the child has made it.
        of_terminal: Vec<Descriptor>,
        opened: bool,
    },
}

/// The process of an execution: its stage, until the sibling that executes the command is there. Both
/// are children of the shim, so that their numbers are theirs until they are reaped.
#[derive(Debug)]
pub(super) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    cradle: Option<Cradle>,
    killed: bool,
}

/// What the end of a child is to an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process of another.
    Other,
    /// The stage, whose sibling lives on.
    Stage,
    Command,
}

impl Process {
    pub(super) fn new(pid: i32, pidfd: OwnedFd, cradle: Option<Cradle>) -> Self {
        Self { pid, pidfd, cradle, killed: false }
    }

    /// Kills what there is of it, and what comes.
    pub(super) fn kill(&mut self) {
        self.killed = true;
        // Unreaped children: the signals cannot reach anybody else.
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        self.kill_sibling();
    }

    fn kill_sibling(&self) {
        if let Some(pid) = self.cradle.as_ref().and_then(Cradle::child)
            && let Ok(pidfd) = pidfd_of(pid)
        {
            let _ = sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// A child has ended, and is reaped.
    pub(super) fn ended(&mut self, pid: i32) -> Ended {
        let sibling = self.cradle.as_ref().and_then(Cradle::child);
        match sibling {
            Some(sibling) if sibling == pid => Ended::Command,
            Some(sibling) if self.pid == pid => {
                if self.killed {
                    self.kill_sibling();
                }
                if let Ok(pidfd) = pidfd_of(sibling) {
                    self.pidfd = pidfd;
                }
                (self.pid, self.cradle) = (sibling, None);
                Ended::Stage
            }
            None if self.pid == pid => Ended::Command,
            Some(_) | None => Ended::Other,
        }
    }
}

/// A running execution.
#[derive(Debug)]
pub(super) struct Execution {
    /// Whom to answer, if it is still there.
    pub(super) waiting: u64,
    pub(super) process: Process,
    pub(super) channel: Option<OwnedFd>,
    pub(super) purpose: Purpose,
    pub(super) deadline_ms: Option<u64>,
    pub(super) timed_out: bool,
    pub(super) failure: Option<Failure>,
}

impl Execution {
    /// The streams being collected that are open.
    pub(super) fn open_captures(&self) -> impl Iterator<Item = (usize, &OwnedFd)> {
        let captures = match &self.purpose {
            Purpose::Collect { captures, .. } => captures.as_slice(),
            Purpose::Session { .. } => &[],
        };
        captures.iter().enumerate().filter_map(|(index, c)| c.fd.as_ref().map(|fd| (index, fd)))
    }

    /// Reads one stream once.
    pub(super) fn read(&mut self, index: usize) -> bool {
        let Purpose::Collect { captures, limit, .. } = &mut self.purpose else { return false };
        let other = captures[1 - index].bytes.len();
        let limit = (*limit).min(MAX_TOTAL_BYTES.saturating_sub(other));
        captures[index].read(limit)
    }

    /// Takes the terminal that the child has made.
    pub(super) fn take_terminal(&mut self, master: &OwnedFd) {
        let Purpose::Session { descriptors, of_terminal, .. } = &mut self.purpose else { return };
        if rustix::io::ioctl_fionbio(master, true).is_ok() {
            let copies = of_terminal.drain(..);
            descriptors.extend(copies.filter_map(|kind| Some((kind, master.try_clone().ok()?))));
        }
    }

    /// Whether its process is through with its client: a session's never is.
    pub(super) fn ends_with_client(&self) -> bool {
        matches!(self.purpose, Purpose::Collect { once: None, .. })
    }

    /// Its name, if it is carried out once.
    pub(super) fn once(&self) -> Option<&Once> {
        match &self.purpose {
            Purpose::Collect { once, .. } => once.as_ref(),
            Purpose::Session { .. } => None,
        }
    }

    /// The answer with which a session opens, at most once.
    pub(super) fn opening(&mut self) -> Option<(Answer, Vec<OwnedFd>)> {
        let Purpose::Session { descriptors, opened, .. } = &mut self.purpose else { return None };
        if *opened || self.failure.is_some() {
            return None;
        }
        *opened = true;
        let (kinds, fds) = std::mem::take(descriptors).into_iter().unzip();
        Some((Ok(Reply::Opened { descriptors: kinds }), fds))
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
        match self.purpose {
            Purpose::Session { .. } => Ok(Reply::Ended { exit_code, dropped_bytes: 0 }),
            Purpose::Collect { captures, .. } => {
                let [stdout, stderr] = captures.map(|capture| STANDARD.encode(capture.bytes));
                Ok(Reply::Executed { exit_code, stdout, stderr, timed_out: self.timed_out })
            }
        }
    }
}
