//! The shim's side of a new container: pipes, the clone, and what it keeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

pub(crate) use super::child::Environment;
use super::child::{self, Ends};
use super::plan::Plan;
use super::{Doing, Result, channel};
use crate::sys::{self, CloneFlags, Cloned};

/// A cloned child and the shim's ends.
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: OwnedFd,
    /// A byte written here lets the command run.
    pub(crate) gate: OwnedFd,
    pub(crate) streams: Streams,
}

/// The shim's ends of the standard streams.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Where standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// The null device.
    Null,
    /// A pipe.
    Pipe,
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe")
}

fn read_null() -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty()).doing(|| "open the null device")
}

/// Pipes for a process: the shim's ends and the child's.
pub(super) fn pipes(input: Input) -> Result<(Streams, [OwnedFd; 3])> {
    let (child_in, stdin) = match input {
        Input::Null => (read_null()?, None),
        Input::Pipe => {
            let (read, write) = pipe()?;
            (read, Some(write))
        }
    };
    let (stdout, child_out) = pipe()?;
    let (stderr, child_err) = pipe()?;
    for fd in [&stdout, &stderr].into_iter().chain(stdin.as_ref()) {
        rustix::io::ioctl_fionbio(fd, true).doing(|| "make a pipe non-blocking")?;
    }
    let ours = Streams { stdin, stdout: Some(stdout), stderr: Some(stderr) };
    Ok((ours, [child_in, child_out, child_err]))
}

/// Clones the child of a plan into its cgroup.
pub(crate) fn launch(
    plan: &Plan,
    environment: &Environment<'_>,
    cgroup: BorrowedFd<'_>,
    input: Input,
) -> Result<Launched> {
    let (channel, child_channel) = channel::pair()?;
    let (child_gate, gate) = pipe()?;
    let (streams, child_streams) = match plan.terminal {
        true => (Streams::default(), None),
        false => pipes(input).map(|(ours, theirs)| (ours, Some(theirs)))?,
    };
    let flags = CloneFlags { namespaces: plan.namespaces, cgroup: Some(cgroup) };
    match sys::clone3(&flags).doing(|| "clone a process into its cgroup")? {
        Cloned::Child => {
            drop((channel, gate, streams));
            let ends = Ends { channel: child_channel, gate: child_gate, streams: child_streams };
            child::run(plan, environment, ends)
        }
        Cloned::Parent { pid, pidfd } => Ok(Launched { pid, pidfd, channel, gate, streams }),
    }
}

/// Writes a child's `oom_score_adj` through the shim's procfs. Lowering it takes CAP_SYS_RESOURCE;
/// without that the refusal is returned as a warning.
pub(crate) fn adjust_oom_score(
    procfs: BorrowedFd<'_>,
    pid: i32,
    score: i32,
) -> Result<Option<String>> {
    use rustix::io::Errno;
    let path = format!("{pid}/oom_score_adj");
    match super::sysctl::write_proc(procfs.as_fd(), Path::new(&path), score.to_string().as_bytes())
    {
        Ok(()) => Ok(None),
        Err(error @ (Errno::ACCESS | Errno::PERM)) => {
            Ok(Some(format!("process.oomScoreAdj: cannot be lowered to {score}: {error}")))
        }
        Err(error) => Err(error).doing(|| format!("set process.oomScoreAdj to {score}")),
    }
}
