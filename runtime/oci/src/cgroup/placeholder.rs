//! A process that holds a scope open until the container's first process is born into it.
//!
//! systemd starts no scope without a process, and one moved there by it would be accounted, and have
//! started, elsewhere; a move also waits for a grace period of the kernel. So a process that does
//! nothing is moved, the limits are written, the container's first process is cloned straight into the
//! cgroup under them, and this one ends. The order is then the same for both drivers.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::container::{Doing, Result};
use crate::sys::{self, CloneFlags, Cloned};

/// It ends when this is dropped, or with this process.
#[derive(Debug)]
pub(super) struct Placeholder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Placeholder {
    pub(super) fn start() -> Result<Self> {
        let parent = rustix::process::getpid();
        let flags = CloneFlags { namespaces: 0, cgroup: None };
        match sys::clone3(&flags).doing(|| "clone a process to start a unit with")? {
            Cloned::Child => {
                let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                // The parent may have ended just before.
                while bound.is_ok() && rustix::process::getppid() == Some(parent) {
                    let _ = rustix::event::poll(&mut [], None);
                }
                sys::exit_now(0)
            }
            Cloned::Parent { pid, pidfd } => Ok(Self { pid, pidfd }),
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // Our own unreaped child: neither can fail but for being interrupted.
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        let pid = Pid::from_raw(self.pid);
        while matches!(
            rustix::process::waitpid(pid, WaitOptions::empty()),
            Err(rustix::io::Errno::INTR)
        ) {}
    }
}
