//! The keeper's side of a new container: the clone, and what it keeps of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::birth::{self, Late};
pub(crate) use super::child::Environment;
use super::child::{self, Ends};
use super::plan::Plan;
pub(crate) use super::process::{Keeper, Keyring, Manner, RootChange};
pub(crate) use super::stdio::{Stdio, Streams};
use super::{Doing, Result, channel, placement, stage, stdio};
use crate::sys::{CloneFlags, Cloned, Cradle};

/// A cloned child and the keeper's ends.
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: OwnedFd,
    /// A byte written here lets the command run; absent where something else does.
    pub(crate) gate: Option<OwnedFd>,
    pub(crate) streams: Streams,
    /// Where the process is a stage: the number of its sibling, which is the container's.
    pub(crate) cradle: Option<Cradle>,
}

impl Launched {
    /// Takes the stage's sibling for the process, once that has said that it is ready. Blocking.
    pub(crate) fn await_birth(&mut self) -> Result<()> {
        let Some(cradle) = self.cradle.take() else { return Ok(()) };
        let sibling = birth::await_sibling(self.pidfd.as_fd(), &cradle)?;
        (self.pid, self.pidfd) = sibling.ok_or(Errno::SRCH).doing(|| "find the first process")?;
        Ok(())
    }
}

/// Clones the child of a plan into its cgroup.
pub(crate) fn launch(
    plan: &Plan,
    environment: &Environment<'_>,
    cgroup: BorrowedFd<'_>,
    stdio: Stdio,
) -> Result<Launched> {
    let (channel, child_channel) = channel::pair()?;
    let (child_gate, gate) = match environment.listener {
        Some(_) => (None, None),
        None => {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .doing(|| "make the pipe that a start is told by")?;
            (Some(read), Some(write))
        }
    };
    let (streams, child_stdio) = stdio::make(stdio)?;
    let late = Late::of(plan, environment, child_stdio.terminal())?;
    if late.is_none() && plan.namespaces.needs_stage() {
        let ends = Ends { channel: child_channel, gate: child_gate, stdio: child_stdio };
        let (channel, pid, pidfd) = stage::launch(plan, environment, cgroup, channel, ends)?;
        return Ok(Launched { pid, pidfd, channel, gate, streams, cradle: None });
    }
    let flags = CloneFlags { namespaces: plan.namespaces.create, cgroup: Some(cgroup) };
    let place = environment.birthplace.filter(|_| late.is_some());
    match birth::clone_outside(place, &flags)? {
        Cloned::Child => {
            drop((channel, gate, streams));
            placement::spread();
            let ends = Ends { channel: child_channel, gate: child_gate, stdio: child_stdio };
            child::run(plan, environment, ends, late.as_ref())
        }
        Cloned::Parent { pid, pidfd } => {
            let cradle = late.map(|late| late.cradle);
            Ok(Launched { pid, pidfd, channel, gate, streams, cradle })
        }
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
