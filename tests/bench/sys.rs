//! Running a program and learning what it took: `wait4(2)`, which the standard library does not offer.

use std::mem::zeroed;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a program took, with the children it waited for.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) success: bool,
    /// Absent where the whole operation is timed from outside.
    pub(crate) wall: Option<Duration>,
    pub(crate) cpu: Duration,
    pub(crate) peak_kib: i64,
}

impl Usage {
    /// Both, one after the other.
    pub(crate) fn and(self, next: Self) -> Self {
        Self {
            success: self.success && next.success,
            wall: self.wall.zip(next.wall).map(|(one, other)| one + other),
            cpu: self.cpu + next.cpu,
            peak_kib: self.peak_kib.max(next.peak_kib),
        }
    }
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Usage {
    // Makes the library fork. What shares our memory until it executes the program, as it does else,
    // has our peak counted as its own.
    // SAFETY: it does nothing.
    unsafe { command.pre_exec(|| Ok(())) };
    let began = Instant::now();
    #[allow(clippy::zombie_processes, reason = "it is waited for below")]
    let child = command.spawn().expect("start a program");
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid: plain integers.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: both pointers are valid for the call; the child is nobody else's to wait for.
    let pid = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(pid, child.id() as i32, "wait for a program");
    let time = |value: libc::timeval| {
        Duration::from_secs(value.tv_sec as u64) + Duration::from_micros(value.tv_usec as u64)
    };
    Usage {
        success: status == 0,
        wall: Some(began.elapsed()),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_kib: usage.ru_maxrss,
    }
}
