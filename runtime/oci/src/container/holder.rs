//! A process in the new namespaces of a pod with a user namespace: it configures them from inside, as
//! only their own root may, and goes once they are held by descriptors, or stays as the reaper of
//! their PID namespace.
//!
//! ```text
//! shim ─ clone: user, network, UTS (PID, mount) ───────► holder
//!   ├─ writes maps ─ releases ─────────────────────────►│ root of them ─ makes IPC ─ configures ─ tells
//!   ├─ opens the namespaces ◄───────────────────────────┘
//!   └─ kills it, or releases it ───────────────────────►  reaps for ever
//! ```
//! The user namespace is made with or before the others, so that it owns them. user_namespaces(7).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::channel::{self, Message};
use super::namespaces::{Mappings, Range};
use super::process::{self, Keeper};
use super::{Doing, Error, Result, empty_root, idmap, stage};
use crate::protocol::UserIds;
use crate::sys::{self, CloneFlags, Cloned};

/// What to make.
pub(crate) struct Wanted<'a> {
    /// A procfs of the host's PID namespace.
    pub(crate) procfs: BorrowedFd<'a>,
    /// Names and `CLONE_NEW*` of the namespaces besides the user namespace.
    pub(crate) kinds: &'a [(&'static str, i32)],
    pub(crate) ids: UserIds,
    pub(crate) afterwards: Afterwards,
}

impl Wanted<'_> {
    /// All kinds besides the user namespace.
    fn all(&self) -> i32 {
        self.kinds.iter().fold(0, |flags, (_, one)| flags | one)
    }
}

/// What becomes of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Afterwards {
    Ends,
    /// It is PID 1 of a PID namespace and reaps.
    Reaps,
}

/// Namespaces by their descriptors.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) user: OwnedFd,
    /// As they were wanted.
    pub(crate) others: Vec<OwnedFd>,
    pub(crate) reaper: Option<OwnedFd>,
}

/// Makes the namespaces; `configure` runs inside, as their root.
pub(crate) fn hold(wanted: &Wanted<'_>, configure: impl FnOnce() -> Result<()>) -> Result<Held> {
    let (channel, child_channel) = channel::pair()?;
    let mut flags = libc::CLONE_NEWUSER | (wanted.all() & !libc::CLONE_NEWIPC);
    if wanted.afterwards == Afterwards::Reaps {
        flags |= libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    }
    match sys::clone3(&CloneFlags { namespaces: flags as u64, cgroup: None })
        .doing(|| "make a user namespace")?
    {
        Cloned::Child => {
            drop(channel);
            let Err(error) = be_held(child_channel.as_fd(), wanted, configure);
            process::fail(child_channel.as_fd(), error)
        }
        Cloned::Parent { pidfd, .. } => {
            drop(child_channel);
            let made = take(wanted, channel.as_fd(), pidfd.as_fd());
            let stays = made.is_ok() && wanted.afterwards == Afterwards::Reaps;
            if !stays {
                // Our own unreaped child.
                let _ = sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
                idmap::reap(pidfd.as_fd());
            }
            let (user, others) = made?;
            Ok(Held { user, others, reaper: stays.then_some(pidfd) })
        }
    }
}

fn take(
    wanted: &Wanted<'_>,
    channel: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
) -> Result<(OwnedFd, Vec<OwnedFd>)> {
    let UserIds { first, count } = wanted.ids;
    let ids = || vec![Range { inside: 0, outside: first, size: count }];
    let pid = idmap::pid_of(wanted.procfs, pidfd)?;
    idmap::write(wanted.procfs, pid, &Mappings { uids: ids(), gids: ids() })?;
    channel::release(channel)?;
    let operation = || "listen to the holder of namespaces";
    match channel::wait(channel).doing(operation)?.map(|received| received.message) {
        Some(Message::Child) => {}
        Some(Message::Failed(failure)) => return Err(Error::Told(failure)),
        Some(_) => return Err(Errno::BADMSG).doing(operation),
        None => return Err(Errno::PIPE).doing(operation),
    }
    let open = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(wanted.procfs, format!("{pid}/ns/{name}"), flags, Mode::empty())
            .doing(|| format!("open the {name} namespace"))
    };
    let user = open("user")?;
    let others = wanted.kinds.iter().map(|(name, _)| open(name)).collect::<Result<_>>()?;
    channel::release(channel)?;
    Ok((user, others))
}

/// The process' own part.
fn be_held(
    channel: BorrowedFd<'_>,
    wanted: &Wanted<'_>,
    configure: impl FnOnce() -> Result<()>,
) -> Result<std::convert::Infallible> {
    process::harden(Keeper::Shim)?;
    channel::await_release(channel)?;
    stage::become_root()?;
    stage::make_queues(wanted.all())?;
    // A change of ids takes it away again.
    process::harden(Keeper::Shim)?;
    configure()?;
    channel::send(channel, &Message::Child, None)?;
    channel::await_release(channel)?;
    match wanted.afterwards {
        Afterwards::Ends => loop {
            sys::wait_signal();
        },
        Afterwards::Reaps => match empty_root::retire(&[]) {
            Ok(()) => empty_root::reap_for_ever(),
            // Nobody listens any more; its end is seen.
            Err(_) => sys::exit_now(1),
        },
    }
}
