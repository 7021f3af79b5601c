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

use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::plan::ProcessPlan;
use crate::log::{LogFile, Splitter, Stream};
use crate::protocol::{ContainerPhase, ContainerRecord, ExitRecord, Failure};
use crate::seccomp::Program;

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

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: ContainerRecord,
    pub(super) stage: Stage,
    pub(super) pidfd: OwnedFd,
    pub(super) channel: Option<OwnedFd>,
    pub(super) gate: Option<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) outputs: Vec<Output>,
    pub(super) log: LogFile,
    pub(super) cgroup: Cgroup,
    pub(super) process: ProcessPlan,
    pub(super) home: Option<String>,
    pub(super) filter: Option<Rc<Program>>,
}

/// Whether more output may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    More,
    Empty,
    Ended,
}

impl Container {
    /// Takes the pipes of standard output and error.
    pub(super) fn add_outputs(&mut self, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) {
        self.outputs.extend(stdout.map(|fd| Output::new(fd, Stream::Stdout)));
        self.outputs.extend(stderr.map(|fd| Output::new(fd, Stream::Stderr)));
    }

    /// Whether its first process lives.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.stage, Stage::Draining { .. } | Stage::Exited)
    }

    /// Reads an output once into the log.
    pub(super) fn read_output(&mut self, index: usize) -> Flow {
        let Some(output) = self.outputs.get_mut(index) else { return Flow::Ended };
        let mut chunk = [0; READ_BYTES];
        let flow = match rustix::io::read(&output.fd, &mut chunk) {
            Ok(0) | Err(Errno::IO) => Flow::Ended, // EIO: the last slave of a terminal closed.
            Ok(count) => {
                let time = clock::rfc3339_nano(clock::now());
                let log = &mut self.log;
                output.splitter.push(&chunk[..count], &time, |record| log.append(record));
                self.log.flush();
                return Flow::More;
            }
            Err(Errno::AGAIN | Errno::INTR) => return Flow::Empty,
            Err(_) => Flow::Ended,
        };
        self.close_output(index);
        flow
    }

    fn close_output(&mut self, index: usize) {
        let mut output = self.outputs.swap_remove(index);
        let time = clock::rfc3339_nano(clock::now());
        let log = &mut self.log;
        output.splitter.finish(&time, |record| log.append(record));
        self.log.flush();
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
                exit.message = failure.message.clone();
                exit.exit_code = failure.exit_code.unwrap_or(128);
                Some((waiting, failure))
            }
            _ => None,
        };
        self.record.pid = 0;
        self.gate = None;
        self.channel = None;
        self.stdin = None;
        self.stage = Stage::Draining { exit, since_ms: clock::monotonic_ms(), start_failure };
    }

    /// Drains what is left; `true` once the end may be announced.
    pub(super) fn is_drained(&mut self) -> bool {
        let Stage::Draining { since_ms, .. } = &self.stage else { return false };
        let overdue = clock::monotonic_ms().saturating_sub(*since_ms) > DRAIN_LIMIT_MS;
        if !overdue && !self.outputs.is_empty() && !self.cgroup.is_empty() {
            return false;
        }
        // Nobody of this container writes any more; whoever else holds the pipe is not waited for.
        while !self.outputs.is_empty() {
            let mut flow = Flow::More;
            for _ in 0..64 {
                flow = self.read_output(0);
                if flow != Flow::More {
                    break;
                }
            }
            if flow != Flow::Ended {
                self.close_output(0);
            }
        }
        true
    }
}
