//! The process between a keeper and the child of a container with a user, time or foreign PID
//! namespace: it is in the host's user namespace still, and clones the child as its sibling.
//!
//! ```text
//! keeper ─ clone ─► stage: mount namespace ─ namespaces by path ─ opens what the host has
//!   │                 │      ─ time namespace ─ clone as sibling ─ tells the child ─ exits
//!   ├─ writes maps ◄──┘        │
//!   └─ releases ──────────────►│ child: root of its user namespace ─ [`super::child`]
//! ```
//! Whoever may trace in a foreign PID namespace sees the child before it has left the host's root, where it
//! cannot be cloned last ([`super::birth`]).
//!
//! An ordinary user's stage has the new user namespace itself, since it can do none of this without.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use super::channel::{self, Message};
use super::child::{self, Ends, Environment};
use super::host::Host;
use super::namespaces::{User, outside};
use super::plan::Plan;
use super::{Doing, Error, Result, idmap, placement, process, sysctl};
use crate::sys::{self, CloneFlags, Cloned};

/// What the caller of a stage may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// CAP_SYS_ADMIN over the host's namespaces.
    Root,
    /// None but its own user namespaces.
    Ordinary,
}

impl Power {
    fn of_caller() -> Result<Self> {
        let own = rustix::thread::capabilities(None).doing(|| "read capabilities")?.effective;
        let root = own.contains(CapabilitySet::SYS_ADMIN);
        Ok(if root { Self::Root } else { Self::Ordinary })
    }
}

/// Clones the child of a plan by way of a stage: its number and pidfd.
pub(super) fn launch(
    plan: &Plan,
    environment: &Environment<'_>,
    cgroup: BorrowedFd<'_>,
    channel: OwnedFd,
    ends: Ends,
) -> Result<(OwnedFd, i32, OwnedFd)> {
    let power = Power::of_caller()?;
    if power == Power::Root && plan.namespaces.user != User::Shared {
        // Whoever made it may have kept it to itself; the container sees it as somebody else's.
        rustix::fs::fchmod(cgroup, Mode::from_raw_mode(0o755))
            .doing(|| "let the user namespace see its cgroup")?;
    }
    let own_user = power == Power::Ordinary && matches!(plan.namespaces.user, User::New(_));
    let namespaces = if own_user { libc::CLONE_NEWUSER as u64 } else { 0 };
    match sys::clone3(&CloneFlags { namespaces, cgroup: Some(cgroup) })
        .doing(|| "clone a process into its cgroup")?
    {
        Cloned::Child => {
            drop(channel);
            placement::spread();
            let Err(error) = run(plan, environment, &ends, power);
            process::fail(ends.channel.as_fd(), error)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(ends);
            let child = keep(plan, environment.procfs, pid, channel.as_fd());
            if child.is_err() {
                // Our unreaped child; with it goes nothing else, as it has cloned nobody yet.
                let _ = sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
            }
            idmap::reap(pidfd.as_fd());
            child.map(|(pid, pidfd)| (channel, pid, pidfd))
        }
    }
}

/// The keeper's part: maps ids, and learns of the child.
fn keep(
    plan: &Plan,
    procfs: BorrowedFd<'_>,
    stage: i32,
    channel: BorrowedFd<'_>,
) -> Result<(i32, OwnedFd)> {
    let mut mapped = false;
    loop {
        let received =
            channel::wait(channel).doing(|| "listen to the process of a new container")?;
        let Some(received) = received else {
            return Err(Errno::PIPE).doing(|| "the process ended while the container was made");
        };
        match (received.message, received.descriptor) {
            (Message::Mappings, _) => {
                if let User::New(mappings) = &plan.namespaces.user {
                    idmap::write(procfs, stage, mappings)?;
                    mapped = true;
                }
                channel::release(channel)?;
            }
            (Message::Child, Some(pidfd)) => {
                return match adopt(plan, procfs, mapped, pidfd.as_fd()) {
                    Ok(pid) => {
                        channel::release(channel)?;
                        Ok((pid, pidfd))
                    }
                    Err(error) => {
                        // It waits to be released, and is our child.
                        let _ = sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
                        idmap::reap(pidfd.as_fd());
                        Err(error)
                    }
                };
            }
            (Message::Failed(failure), _) => return Err(Error::Told(failure)),
            (
                Message::Child
                | Message::Hooks
                | Message::Interfaces
                | Message::Ids { .. }
                | Message::Console
                | Message::Ready { .. },
                _,
            ) => {
                return Err(Errno::BADMSG).doing(|| "listen to the process of a new container");
            }
        }
    }
}

fn adopt(plan: &Plan, procfs: BorrowedFd<'_>, mapped: bool, pidfd: BorrowedFd<'_>) -> Result<i32> {
    let pid = idmap::pid_of(procfs, pidfd)?;
    match &plan.namespaces.user {
        User::New(mappings) if !mapped => idmap::write(procfs, pid, mappings)?,
        User::Joined { expected: Some(mappings), .. } => idmap::check(procfs, pid, mappings)?,
        User::New(_) | User::Joined { .. } | User::Shared => {}
    }
    Ok(pid)
}

/// The stage's own part.
fn run(
    plan: &Plan,
    environment: &Environment<'_>,
    ends: &Ends,
    power: Power,
) -> Result<std::convert::Infallible> {
    let channel = ends.channel.as_fd();
    let user = match &plan.namespaces.user {
        User::Joined { path, .. } => Some(child::open_namespace(path)?),
        User::New(_) | User::Shared => None,
    };
    if power == Power::Ordinary {
        if let User::New(_) = plan.namespaces.user {
            // Undumpable it would belong to the host's root, and its mapping could not be written.
            channel::send(channel, &Message::Mappings, None)?;
            channel::await_release(channel)?;
        }
        enter_user(user.as_ref())?;
        become_root()?;
    }
    if power == Power::Root {
        process::harden(environment.keeper)?;
        give_streams(plan, ends)?;
    }
    sys::unshare(libc::CLONE_NEWNS).doing(|| "make a mount namespace")?;
    let joined = child::enter_namespaces(plan, environment, None)?;
    let host = Host::open(plan, environment.procfs, None)?;
    if let Some(offsets) = &plan.namespaces.time {
        sys::unshare(libc::CLONE_NEWTIME).doing(|| "make a time namespace")?;
        let operation = || "linux.timeOffsets: set the clocks of the time namespace";
        let path = format!("{}/timens_offsets", idmap::own_pid(environment.procfs)?);
        for line in offsets.0.split_inclusive('\n') {
            sysctl::write_proc(environment.procfs, Path::new(&path), line.as_bytes())
                .doing(operation)?;
        }
    }
    process::harden(environment.keeper)?;
    if power == Power::Root {
        enter_user(user.as_ref())?;
    }
    child::enter_mounts(&joined)?;
    clone_child(plan, environment, ends, (power, host))
}

fn clone_child(
    plan: &Plan,
    environment: &Environment<'_>,
    ends: &Ends,
    (power, host): (Power, Host),
) -> Result<std::convert::Infallible> {
    let channel = ends.channel.as_fd();
    let mut namespaces = plan.namespaces.create & !(libc::CLONE_NEWNS as u64);
    let other_user = power == Power::Root && plan.namespaces.user != User::Shared;
    if other_user && !plan.namespaces.joins(LinuxNamespaceType::Mount) {
        // The stage's own belongs to the host's user namespace.
        namespaces |= libc::CLONE_NEWNS as u64;
    }
    if other_user && matches!(plan.namespaces.user, User::New(_)) {
        namespaces |= libc::CLONE_NEWUSER as u64;
    }
    let queues = namespaces & libc::CLONE_NEWIPC as u64;
    if other_user {
        namespaces &= !queues;
    }
    match sys::clone_sibling(namespaces).doing(|| "clone the container's first process")? {
        Cloned::Child => {
            process::harden(environment.keeper)?;
            channel::await_release(channel)?;
            if other_user {
                become_root()?;
                make_queues(queues as i32)?;
            }
            child::set_up(plan, environment, ends, host, None)
        }
        Cloned::Parent { pidfd, .. } => {
            if let Err(error) = channel::send(channel, &Message::Child, Some(pidfd.as_fd())) {
                // A sibling that nobody has heard of waits for ever.
                let _ = sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
                return Err(error);
            }
            sys::exit_now(0)
        }
    }
}

fn enter_user(namespace: Option<&OwnedFd>) -> Result<()> {
    match namespace {
        // Of another type it would be entered just as well, and the container be the host's root.
        Some(namespace) => rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::User),
        )
        .doing(|| "linux.namespaces: enter the user namespace"),
        None => Ok(()),
    }
}

/// Makes an IPC namespace, if that is wanted: message queues belong to who makes it, and only the root of
/// the user namespace can label them there.
pub(super) fn make_queues(namespace: i32) -> Result<()> {
    match namespace & libc::CLONE_NEWIPC {
        0 => Ok(()),
        ipc => sys::unshare(ipc).doing(|| "make an IPC namespace"),
    }
}

/// Becomes the root of the user namespace, as far as it has one.
pub(super) fn become_root() -> Result<()> {
    let tolerate = |result: Result<(), Errno>| match result {
        // Not mapped, or groups are not set here.
        Err(Errno::INVAL | Errno::PERM) => Ok(()),
        result => result.doing(|| "become the root of the user namespace"),
    };
    tolerate(rustix::thread::set_thread_groups(&[]))?;
    let (gid, uid) = (Gid::ROOT, Uid::ROOT);
    tolerate(rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    tolerate(rustix::thread::set_thread_res_uid(uid, uid, uid))
}

/// Gives the pipes to the container's root, so that `/dev/stdout` can be opened by it.
fn give_streams(plan: &Plan, ends: &Ends) -> Result<()> {
    let (User::New(mappings) | User::Joined { expected: Some(mappings), .. }) =
        &plan.namespaces.user
    else {
        return Ok(());
    };
    let (Some(uid), Some(gid)) = (outside(&mappings.uids, 0), outside(&mappings.gids, 0)) else {
        return Ok(());
    };
    ends.stdio.give_to(Uid::from_raw(uid), Gid::from_raw(gid))
}
