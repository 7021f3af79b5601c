//! A further process in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::hooks::Subject;
use super::plan::ProcessPlan;
use super::process::{self, Execution, Keeper};
use super::rootfd::RootFd;
use super::stdio::{self, Ends, Stdio, Streams};
use super::{Doing, Result, channel, idmap, labels, notify, placement, rootfs, sysctl};
use crate::protocol::{ResolvedUser, UserSelector};
use crate::seccomp::Program;
use crate::sys::{self, CloneFlags, Cloned};

/// What a process joins.
pub(crate) struct Target<'a> {
    /// The container's first process.
    pub(crate) init: BorrowedFd<'a>,
    pub(crate) cgroup: BorrowedFd<'a>,
    /// The PID namespace to return to once the process is cloned; absent stays.
    pub(crate) own_pid_namespace: Option<BorrowedFd<'a>>,
    pub(crate) keeper: Keeper,
    pub(crate) stdio: Stdio,
    pub(crate) identity: Who<'a>,
    pub(crate) filter: Option<&'a Program>,
    /// What a listener is told of the container.
    pub(crate) subject: &'a Subject,
}

/// Who a joined process is.
pub(crate) enum Who<'a> {
    /// Known from the container's making.
    Known { user: &'a ResolvedUser, home: Option<&'a str> },
    /// To be looked up in the container.
    Selected(&'a UserSelector),
}

/// A joined process and the keeper's ends.
pub(crate) struct Joined {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: OwnedFd,
    pub(crate) streams: Streams,
}

/// Clones a process into a container.
pub(crate) fn join(plan: &ProcessPlan, target: &Target<'_>) -> Result<Joined> {
    let (channel, child_channel) = channel::pair()?;
    let (streams, child_streams) = stdio::make(target.stdio)?;
    let flags = CloneFlags { namespaces: 0, cgroup: Some(target.cgroup) };
    rustix::thread::move_into_thread_name_spaces(target.init, ThreadNameSpaceType::PROCESS_ID)
        .doing(|| "enter the container's PID namespace")?;
    let elsewhere = placement::start_on(&plan.placement)?;
    let cloned = sys::clone3(&flags);
    if !matches!(cloned, Ok(Cloned::Child)) {
        drop(elsewhere);
    }
    if let Ok(Cloned::Child) = cloned {
        drop((channel, streams));
        let Err(error) = enter(plan, target, &child_channel, &child_streams);
        process::fail(child_channel.as_fd(), error);
    }
    if let Some(own) = target.own_pid_namespace {
        rustix::thread::move_into_link_name_space(own, Some(LinkNameSpaceType::ProcessID))
            .doing(|| "return to the own PID namespace")?;
    }
    match cloned.doing(|| "clone a process into the container's cgroup")? {
        Cloned::Parent { pid, pidfd } => Ok(Joined { pid, pidfd, channel, streams }),
        Cloned::Child => sys::exit_now(1),
    }
}

fn enter(
    plan: &ProcessPlan,
    target: &Target<'_>,
    channel: &OwnedFd,
    streams: &Ends,
) -> Result<std::convert::Infallible> {
    process::harden(target.keeper)?;
    let listener = notify::connect(target.filter, (target.subject, "running"), host_pid)?;
    let labels = match plan.apparmor.is_some() || plan.selinux.is_some() {
        // One of this process' PID namespace, which is the container's already.
        true => labels::open(sysctl::detached_procfs()?.as_fd(), plan)?,
        false => Vec::new(),
    };
    enter_namespaces(target.init)?;
    placement::settle(&plan.placement)?;
    rustix::process::setsid().doing(|| "make a session")?;
    let root = RootFd::from(rootfs::open_root()?);
    streams.connect(&root, stdio::Place::Elsewhere, channel.as_fd())?;
    let found;
    let (user, home) = match target.identity {
        Who::Known { user, home } => (user, home),
        Who::Selected(selector) => {
            found = process::resolve_user(&root, selector, target.keeper)?;
            (&found.user, found.home.as_deref())
        }
    };
    let execution = Execution {
        plan,
        user,
        home,
        filter: target.filter,
        channel: channel.as_fd(),
        gate: None,
        keeper: target.keeper,
        listener,
        start_hooks: None,
        labels,
        warnings: Vec::new(),
    };
    process::execute(execution)
}

/// This process' number on the host, while it is in the host's mount namespace still.
fn host_pid() -> Result<i32> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let operation = || "find the own process' number";
    let procfs = rustix::fs::open("/proc", flags, Mode::empty()).doing(operation)?;
    match rustix::fs::fstatfs(&procfs).doing(operation)?.f_type {
        rustix::fs::PROC_SUPER_MAGIC => idmap::own_pid(procfs.as_fd()),
        _ => Err(Errno::NODEV).doing(operation),
    }
}

/// Enters the namespaces of a process. Which of them are others than one's own only the kernel knows:
/// it refuses to enter the user namespace one is in, and older kernels know no time namespaces.
fn enter_namespaces(process: BorrowedFd<'_>) -> Result<()> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    let user = ThreadNameSpaceType::USER;
    let time = ThreadNameSpaceType::TIME;
    let attempts = [all | user | time, all | time, all | user, all];
    let last = attempts.len() - 1;
    for (index, namespaces) in attempts.into_iter().enumerate() {
        match rustix::thread::move_into_thread_name_spaces(process, namespaces) {
            Err(Errno::INVAL) if index < last => {}
            result => return result.doing(|| "enter the container's namespaces"),
        }
    }
    Ok(())
}
