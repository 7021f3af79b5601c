//! What happens in a cgroup: kills for want of memory, and its emptying.
//!
//! The kernel wakes who polls `memory.events` and `cgroup.events` for POLLPRI when they change.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::directory::{Directory, find_key, reread};
use crate::clock;

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happening {
    /// The kernel killed processes for want of memory, since the last time that it was told.
    OomKill,
    /// No process is left, or the cgroup is gone.
    Empty,
    /// The deadline came.
    Elapsed,
}

/// A watched cgroup.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Absent without the controller.
    memory: Option<OwnedFd>,
    events: OwnedFd,
    kills: u64,
}

impl Watch {
    /// What happened before is not told.
    pub(super) fn new(directory: &Directory) -> Result<Self, Errno> {
        let mut watch = Self {
            memory: directory.open_to_read("memory.events").ok(),
            events: directory.open_to_read("cgroup.events")?,
            kills: 0,
        };
        watch.kills = watch.count_kills();
        Ok(watch)
    }

    fn count_kills(&self) -> u64 {
        let text = self.memory.as_ref().and_then(|file| reread(file).ok());
        // With the cgroup its counters go.
        text.and_then(|text| find_key(&text, "oom_kill")).unwrap_or(self.kills)
    }

    /// Waits for something to happen, until `deadline_ms` of the monotonic clock.
    pub(crate) fn wait(&mut self, deadline_ms: u64) -> Result<Happening, Errno> {
        loop {
            let kills = self.count_kills();
            if kills > self.kills {
                self.kills = kills;
                return Ok(Happening::OomKill);
            }
            match reread(&self.events) {
                Ok(text) if find_key(&text, "populated") != Some(0) => {}
                Ok(_) | Err(Errno::NODEV) => return Ok(Happening::Empty),
                Err(error) => return Err(error),
            }
            let left = deadline_ms.saturating_sub(clock::monotonic_ms());
            if left == 0 {
                return Ok(Happening::Elapsed);
            }
            let timeout = Timespec {
                tv_sec: (left / 1000) as i64,
                tv_nsec: (left % 1000 * 1_000_000) as i64,
            };
            let mut files: Vec<PollFd<'_>> = [Some(&self.events), self.memory.as_ref()]
                .into_iter()
                .flatten()
                .map(|file| PollFd::new(file, PollFlags::PRI))
                .collect();
            match poll(&mut files, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
