//! The last clone of a process that enters a PID namespace where others are already.
//!
//! Whoever has CAP_SYS_PTRACE there gets hold of every process it sees, undumpable or not. So what
//! comes to be seen has nothing more than its command will have: a stage in the keeper's PID namespace
//! enters the others, takes on the user, the labels and the filter, and gives up privileges and
//! descriptors; its sibling, cloned then, executes the command.
//!
//! ```text
//! keeper ─ clone ─► stage: namespaces ─ user ─ labels ─ filter ─ clone as sibling ─ exits
//!                                                                  │
//!                                    seen by others from here on:  └─► session ─ execve
//! ```
//! A filter that forbids what the sibling calls, or asks a listener about calls, leaves no room for this.
//! Memory is copied: without the environment of the keeper, and with what it has read of the container.

use rustix::process::Signal;
use rustix::stdio::stdin;

use super::console;
use super::process::Keeper;
use super::{Doing, Result};
use crate::seccomp::{Call, Program};
use crate::sys::{self, Cradle, Side};

/// What is left to be done at the last clone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Birth<'a> {
    pub(super) cradle: &'a Cradle,
    pub(super) terminal: Terminal,
}

/// Whether standard input is to control the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    Controls,
    None,
}

impl Birth<'_> {
    /// Goes on as the sibling; this process ends.
    pub(super) fn go_on(self, keeper: Keeper) -> Result<()> {
        match self.cradle.clone_child().doing(|| "clone the process into its PID namespace")? {
            Side::Child => {}
            Side::Sibling => sys::exit_now(0),
        }
        rustix::process::setsid().doing(|| "make a session")?;
        if self.terminal == Terminal::Controls {
            console::control(stdin())?;
        }
        match keeper {
            // A clone does not inherit it.
            Keeper::Shim => rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                .doing(|| "set the parent death signal"),
            Keeper::CommandLine(_) => Ok(()),
        }
    }
}

/// Whether a filter leaves room for it.
pub(super) fn is_let(filter: &Program, terminal: Terminal) -> bool {
    let call = |number, arguments: [u64; 3]| {
        let [first, second, third] = arguments;
        filter.lets(&Call { number, arguments: [first, second, third, 0, 0, 0] })
    };
    filter.listener.is_none()
        && call(libc::SYS_clone, [sys::BIRTH_FLAGS, 0, 0])
        && call(libc::SYS_exit_group, [0; 3])
        && call(libc::SYS_setsid, [0; 3])
        && call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0])
        && (terminal == Terminal::None || call(libc::SYS_ioctl, [0, libc::TIOCSCTTY, 0]))
}
