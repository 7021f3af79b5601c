//! What is kept of a container between commands, and what it is at a moment.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use super::Result;
use super::journal::{Journal, Level};
use super::store::Entry;
use crate::cgroup::Cgroup;
use crate::cgroup::place::Place;
use crate::container::hooks::{self, Hook, Subject};
use crate::sys;

/// A container's record: `state.json`. Written before anything is made, and again with the first
/// process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) oci_version: String,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// Absent until it has been made.
    pub(super) init: Option<Init>,
    pub(super) cgroup: Place,
    /// Till then what is there is somebody else's, and not to be killed or removed.
    #[serde(default)]
    pub(super) cgroup_made: bool,
    /// The first process is the first of a PID namespace, whose others die with it.
    pub(super) own_pid_namespace: bool,
    /// Hooks that are still to run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) poststart: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) poststop: Vec<Hook>,
}

/// How long an ending process may take.
const END_LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The first process. Its start time tells it from another that got its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Init {
    pub(super) pid: i32,
    /// In clock ticks since boot.
    pub(super) start_time: u64,
}

/// A container's status. OCI runtime spec, `runtime.md`, State.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Init {
    /// The process with a number, now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let line = StatusLine::parse(&String::from_utf8_lossy(&text))?;
        (!line.has_ended()).then_some(Self { pid, start_time: line.start_time })
    }

    /// Opens it, if it lives.
    pub(super) fn open(self) -> Option<OwnedFd> {
        let pidfd =
            rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after it was opened: it is the one that was opened.
        (Self::of(self.pid)? == self).then_some(pidfd)
    }

    /// Whether it lives.
    pub(super) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// What the kernel says of a process: proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StatusLine {
    /// Of its first thread.
    pub(crate) state: char,
    threads: u32,
    start_time: u64,
}

impl StatusLine {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything.
        let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?.chars().next()?;
        let threads = fields.nth(16)?.parse().ok()?;
        Some(Self { state, threads, start_time: fields.nth(1)?.parse().ok()? })
    }

    /// Whether nothing of it runs. A process goes on without its first thread while it has another.
    ///
    /// Differs: runc and crun take such a process for ended, and can neither kill it nor clear up after it.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

impl Record {
    /// What hooks and listeners are told of the container.
    pub(super) fn subject(&self) -> Subject {
        Subject {
            version: self.oci_version.clone(),
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }

    /// Runs the hooks that follow the start. The container ends with one that fails.
    pub(super) fn run_poststart(&self) -> Result<()> {
        if self.poststart.is_empty() {
            return Ok(());
        }
        let pid = self.init.map(|init| init.pid);
        let subject = self.subject();
        hooks::run_in_bundle(&self.poststart, &subject.state("running", pid)).inspect_err(
            |_| {
                if let Some(init) = self.init.and_then(Init::open) {
                    // It may have ended meanwhile.
                    let _ = sys::signal_process(init.as_fd(), libc::SIGKILL);
                }
                self.await_end();
            },
        )?;
        Ok(())
    }

    /// Waits for the end of a first process that is ending, so that whoever is told of a failure finds
    /// the container stopped and can delete it.
    pub(super) fn await_end(&self) {
        let Some(init) = self.init.and_then(Init::open) else { return };
        let mut waiting = [PollFd::new(&init, PollFlags::IN)];
        // What cannot die, in a system call of a broken disk, say, is not waited for.
        let _ = rustix::io::retry_on_intr(|| poll(&mut waiting, Some(&END_LIMIT)));
    }

    /// Runs the hooks that follow the deletion, each whatever the others do; failures are warnings.
    pub(super) fn run_poststop(&self, journal: &Journal) {
        if self.poststop.is_empty() {
            return;
        }
        let subject = self.subject();
        for error in hooks::run_all(&self.poststop, &subject.state("stopped", None)) {
            journal.say(Level::Warning, &error.to_string());
        }
    }

    /// What the container is now.
    pub(super) fn status(&self, entry: &Entry) -> Status {
        let Some(init) = self.init else {
            return if entry.is_held() { Status::Creating } else { Status::Stopped };
        };
        if !init.is_alive() {
            return Status::Stopped;
        }
        let paused = || Cgroup::open(&self.cgroup).is_ok_and(|cgroup| cgroup.is_frozen());
        if paused() {
            Status::Paused
        } else if entry.waits() {
            Status::Created
        } else {
            Status::Running
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::runc) fn record(id: &str) -> Record {
        Record {
            oci_version: "1.2.0".to_owned(),
            id: id.to_owned(),
            bundle: PathBuf::from("/b"),
            rootfs: PathBuf::from("/b/rootfs"),
            created: "2026-01-02T03:04:05.000000000Z".to_owned(),
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            init: Some(Init { pid: 1, start_time: 2 }),
            cgroup: Place { path: PathBuf::from("/sys/fs/cgroup/x"), unit: None },
            cgroup_made: true,
            own_pid_namespace: true,
            poststart: Vec::new(),
            poststop: Vec::new(),
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_status_line() {
        let rest = "S 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3";
        for name in ["sh", "a) Z 9 (b", ")", "((", ""] {
            let line = format!("7 ({name}) {rest}\n");
            let read = StatusLine { state: 'S', threads: 1, start_time: 4711 };
            assert_eq!(StatusLine::parse(&line), Some(read), "{line}");
        }
        for line in ["", "7 (sh", "7 (sh) S 1", ")"] {
            assert_eq!(StatusLine::parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_number_that_was_given_again_is_another_process() {
        let own = Init::of(std::process::id() as i32).unwrap();
        assert!(own.is_alive() && own.open().is_some());
        let other = Init { start_time: own.start_time + 1, ..own };
        assert!(!other.is_alive() && other.open().is_none());
    }
}
