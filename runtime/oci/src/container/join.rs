//! A further process in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::launch::{Input, Streams, pipes};
use super::plan::ProcessPlan;
use super::process::{self, Execution};
use super::{Doing, Result, channel};
use crate::protocol::ResolvedUser;
use crate::seccomp::Program;
use crate::sys::{self, CloneFlags, Cloned};

/// What a process joins.
pub(crate) struct Target<'a> {
    /// The container's first process.
    pub(crate) init: BorrowedFd<'a>,
    pub(crate) cgroup: BorrowedFd<'a>,
    /// The PID namespace that the shim's children have otherwise.
    pub(crate) own_pid_namespace: BorrowedFd<'a>,
    pub(crate) user: &'a ResolvedUser,
    pub(crate) home: Option<&'a str>,
    pub(crate) filter: Option<&'a Program>,
}

/// A joined process and the shim's ends.
pub(crate) struct Joined {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: OwnedFd,
    pub(crate) streams: Streams,
}

/// Clones a process into a container.
pub(crate) fn join(plan: &ProcessPlan, target: &Target<'_>) -> Result<Joined> {
    let (channel, child_channel) = channel::pair()?;
    let (streams, child_streams) = pipes(Input::Null)?;
    let flags = CloneFlags { namespaces: 0, cgroup: Some(target.cgroup) };
    rustix::thread::move_into_thread_name_spaces(target.init, ThreadNameSpaceType::PROCESS_ID)
        .doing(|| "enter the container's PID namespace")?;
    let cloned = sys::clone3(&flags);
    if let Ok(Cloned::Child) = cloned {
        drop((channel, streams));
        let Err(error) = enter(plan, target, &child_channel, &child_streams);
        process::fail(child_channel.as_fd(), error);
    }
    rustix::thread::move_into_link_name_space(
        target.own_pid_namespace,
        Some(LinkNameSpaceType::ProcessID),
    )
    .doing(|| "return to the sandbox's PID namespace")?;
    match cloned.doing(|| "clone a process into the container's cgroup")? {
        Cloned::Parent { pid, pidfd } => Ok(Joined { pid, pidfd, channel, streams }),
        Cloned::Child => sys::exit_now(1),
    }
}

fn enter(
    plan: &ProcessPlan,
    target: &Target<'_>,
    channel: &OwnedFd,
    streams: &[OwnedFd; 3],
) -> Result<std::convert::Infallible> {
    process::harden()?;
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    rustix::thread::move_into_thread_name_spaces(target.init, all)
        .doing(|| "enter the container's namespaces")?;
    rustix::process::setsid().doing(|| "make a session")?;
    let [stdin, stdout, stderr] = streams;
    rustix::stdio::dup2_stdin(stdin).doing(|| "set standard input")?;
    rustix::stdio::dup2_stdout(stdout).doing(|| "set standard output")?;
    rustix::stdio::dup2_stderr(stderr).doing(|| "set standard error")?;
    let execution = Execution {
        plan,
        user: target.user,
        home: target.home,
        filter: target.filter,
        channel: channel.as_fd(),
        gate: None,
        warnings: Vec::new(),
    };
    process::execute(execution)
}
