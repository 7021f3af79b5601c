//! One container in the shim: its state machine and its output.
//!
//! ```text
//! Creating ─ready─► Created ─start─► Starting ─executed─► Running
//!     │                │                │                   │
//!     └─failed─► gone  └────────────────┴──── reaped ───────┴─► Draining ─empty─► Exited
//! ```

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;

use super::attachment::{Attachment, Tap};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::birth::pidfd_of;
use crate::container::plan::ProcessPlan;
use crate::log::{self, Splitter, Stream};
use crate::protocol::{ContainerPhase, ContainerRecord, Descriptor, ExitRecord, Failure, Streams};
use crate::seccomp::Program;
use crate::sys::Cradle;
use crate::terminal;

/// How long a container's end is held back by processes that do not die.
const DRAIN_LIMIT_MS: u64 = 5_000;
/// Read at most this much of one output before others get their turn.
const READ_BYTES: usize = 64 << 10;

/// Where a container is; `waiting` is the connection to answer.
#[derive(Debug)]
pub(super) enum Stage {
    Creating { waiting: u64, failure: Option<Failure> },
    Created,
    Starting { waiting: u64, failure: Option<Failure> },
    Running,
    Draining { exit: ExitRecord, since_ms: u64, start_failure: Option<(u64, Failure)> },
    Exited,
}

/// An output of a container.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) fd: OwnedFd,
    splitter: Splitter,
}

impl Output {
    pub(super) fn new(fd: OwnedFd, stream: Stream) -> Self {
        Self { fd, splitter: Splitter::new(stream) }
    }
}

/// Standard input of a container.
#[derive(Debug)]
pub(super) enum Stdin {
    /// The null device, or closed.
    None,
    /// A pipe held open; each attachment gets a copy.
    Held(OwnedFd),
    /// A pipe that the first attachment takes away: its end is the end of the input.
    Once(OwnedFd),
    /// The terminal.
    Terminal,
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: ContainerRecord,
    pub(super) stage: Stage,
    pub(super) pidfd: OwnedFd,
    /// Where the process is a stage still: the number of its sibling, which is the container's.
    pub(super) cradle: Option<Cradle>,
    pub(super) channel: Option<OwnedFd>,
    pub(super) gate: Option<OwnedFd>,
    pub(super) is_terminal: bool,
    pub(super) stdin: Stdin,
    pub(super) attachments: Vec<Attachment>,
    pub(super) outputs: Vec<Output>,
    pub(super) log: log::Key,
    /// Its log was asked to be complete.
    pub(super) log_sync_asked: bool,
    /// When the loss of records was told last.
    pub(super) log_loss_told_ms: u64,
    pub(super) cgroup: Cgroup,
    pub(super) process: ProcessPlan,
    pub(super) home: Option<String>,
    pub(super) filter: Option<Rc<Program>>,
}

/// What somebody who attaches gets.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) kinds: Vec<Descriptor>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) taps: Vec<Tap>,
}

impl Opened {
    fn add(&mut self, kind: Descriptor, descriptor: OwnedFd) {
        self.kinds.push(kind);
        self.descriptors.push(descriptor);
    }
}

/// Whether more output may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    More,
    Empty,
    Ended,
}

impl Container {
    /// Takes the stage's sibling for the process, once it is there. Both are children of the shim.
    pub(super) fn adopt(&mut self) {
        let Some(pid) = self.cradle.as_ref().and_then(Cradle::child) else { return };
        if let Ok(pidfd) = pidfd_of(pid) {
            self.pidfd = pidfd;
        }
        (self.record.pid, self.cradle) = (pid, None);
    }

    /// Takes the pipes of standard output and error.
    pub(super) fn add_outputs(&mut self, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) {
        self.outputs.extend(stdout.map(|fd| Output::new(fd, Stream::Stdout)));
        self.outputs.extend(stderr.map(|fd| Output::new(fd, Stream::Stderr)));
    }

    /// Whether its first process lives.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.stage, Stage::Draining { .. } | Stage::Exited)
    }

    /// Whether more may be written to its log.
    pub(super) fn has_log(&self) -> bool {
        !matches!(self.stage, Stage::Exited)
    }

    /// Reads an output once into the log.
    pub(super) fn read_output(&mut self, index: usize, logs: &mut log::Link) -> Flow {
        let Some(output) = self.outputs.get_mut(index) else { return Flow::Ended };
        let mut chunk = [0; READ_BYTES];
        let flow = match terminal::read(&output.fd, &mut chunk) {
            Ok(0) | Err(Errno::IO) => Flow::Ended, // EIO: the last slave of a terminal closed.
            Ok(count) => {
                let time = clock::rfc3339_nano(clock::now());
                let mut batch = logs.batch(self.log, clock::monotonic_ms());
                output.splitter.push(&chunk[..count], &time, |record| batch.add(record));
                drop(batch);
                let stream = output.splitter.stream();
                self.show(stream, &chunk[..count]);
                return Flow::More;
            }
            Err(Errno::AGAIN | Errno::INTR) => return Flow::Empty,
            Err(_) => Flow::Ended,
        };
        self.close_output(index, logs);
        flow
    }

    /// The descriptors for somebody who attaches, and the taps that feed them.
    pub(super) fn open_streams(&mut self, streams: Streams) -> Result<Opened, Errno> {
        let mut opened = Opened::default();
        let terminal = if self.is_terminal { self.outputs.first() } else { None };
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|_| Errno::MFILE);
        for (wanted, kind, stream) in [
            (streams.stdout, Descriptor::Stdout, Stream::Stdout),
            (streams.stderr && !self.is_terminal, Descriptor::Stderr, Stream::Stderr),
        ] {
            if wanted {
                let (tap, reader) = Tap::new(stream)?;
                opened.add(kind, reader);
                opened.taps.push(tap);
            }
        }
        if let Some(output) = terminal {
            opened.add(Descriptor::Terminal, copy(&output.fd)?);
        }
        if streams.stdin {
            match std::mem::replace(&mut self.stdin, Stdin::None) {
                Stdin::None => {}
                Stdin::Once(pipe) => opened.add(Descriptor::Stdin, pipe),
                Stdin::Held(pipe) => {
                    let given = copy(&pipe);
                    self.stdin = Stdin::Held(pipe);
                    opened.add(Descriptor::Stdin, given?);
                }
                Stdin::Terminal => {
                    self.stdin = Stdin::Terminal;
                    if let Some(output) = terminal {
                        opened.add(Descriptor::Stdin, copy(&output.fd)?);
                    }
                }
            }
        }
        Ok(opened)
    }

    /// Gives output to those attached.
    fn show(&mut self, stream: Stream, chunk: &[u8]) {
        let now = clock::monotonic_ms();
        let taps = self.attachments.iter_mut().flat_map(|attachment| &mut attachment.taps);
        for tap in taps.filter(|tap| tap.stream == stream) {
            tap.offer(chunk, now);
        }
    }

    /// Goes on with those attached that hold output back.
    pub(super) fn advance_taps(&mut self, now_ms: u64) {
        for tap in self.attachments.iter_mut().flat_map(|attachment| &mut attachment.taps) {
            if tap.is_holding() {
                tap.advance(now_ms);
            }
        }
    }

    /// The outputs to be read now: those that nobody attached holds back.
    pub(super) fn readable_outputs(&self) -> impl Iterator<Item = (usize, &Output)> {
        let held = |output: &Output| {
            let stream = Some(output.splitter.stream());
            self.attachments.iter().any(|attachment| attachment.holds(stream))
        };
        self.outputs.iter().enumerate().filter(move |(_, output)| !held(output))
    }

    fn close_output(&mut self, index: usize, logs: &mut log::Link) {
        let mut output = self.outputs.swap_remove(index);
        let time = clock::rfc3339_nano(clock::now());
        let mut batch = logs.batch(self.log, clock::monotonic_ms());
        output.splitter.finish(&time, |record| batch.add(record));
    }

    /// The first process has ended: kills the rest and starts draining.
    pub(super) fn reaped(&mut self, exit_code: i32) {
        let started_at = match &self.record.state {
            ContainerPhase::Running { started_at } => *started_at,
            _ => 0,
        };
        let mut exit = ExitRecord {
            started_at,
            finished_at: clock::now(),
            exit_code,
            oom_killed: self.cgroup.oom_killed(),
            message: String::new(),
        };
        // An empty cgroup has nothing to kill; a kernel without cgroup.kill is refused by the agent.
        let _ = self.cgroup.kill();
        let start_failure = match std::mem::replace(&mut self.stage, Stage::Exited) {
            Stage::Starting { waiting, failure: Some(failure) } => {
                exit.started_at = 0;
                exit.message = failure.message.clone();
                exit.exit_code = failure.exit_code.unwrap_or(128);
                Some((waiting, failure))
            }
            _ => None,
        };
        self.record.pid = 0;
        self.gate = None;
        self.channel = None;
        self.stdin = Stdin::None;
        self.stage = Stage::Draining { exit, since_ms: clock::monotonic_ms(), start_failure };
    }

    /// Drains what is left; `true` once the end may be announced.
    pub(super) fn is_drained(&mut self, logs: &mut log::Link) -> bool {
        let Stage::Draining { since_ms, .. } = &self.stage else { return false };
        let overdue = clock::monotonic_ms().saturating_sub(*since_ms) > DRAIN_LIMIT_MS;
        if !overdue && (self.is_held(logs) || !self.outputs.is_empty() && !self.cgroup.is_empty()) {
            return false;
        }
        // Nobody of this container writes any more; whoever else holds the pipe is not waited for.
        while !self.outputs.is_empty() {
            let mut flow = Flow::More;
            for _ in 0..64 {
                flow = self.read_output(0, logs);
                if flow != Flow::More {
                    break;
                }
                if !overdue && self.is_held(logs) {
                    return false;
                }
            }
            if flow != Flow::Ended {
                self.close_output(0, logs);
            }
        }
        if !std::mem::replace(&mut self.log_sync_asked, true) {
            logs.sync(self.log, clock::monotonic_ms());
        }
        overdue || logs.is_synced(self.log)
    }

    /// Whether its log or somebody attached holds its output back.
    fn is_held(&self, logs: &log::Link) -> bool {
        logs.is_holding() || self.attachments.iter().any(|attachment| attachment.holds(None))
    }
}
