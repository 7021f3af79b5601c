//! A further process in a running container: a stage outside of its PID namespace becomes all that the
//! command will be, and clones what executes it last (see [`super::birth`]). Where that cannot be, the
//! process is born into the PID namespace at once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use super::birth::{self, Birth, Birthplace, Part};
use super::channel::Message;
use super::hooks::Subject;
use super::plan::ProcessPlan;
use super::process::{self, Execution, Keeper};
use super::rootfd::RootFd;
use super::stdio::{self, Ends, Place, Stdio, Streams};
use super::{
    Doing, Error, Result, channel, idmap, labels, launch, notify, placement, rootfs, sysctl,
};
use crate::protocol::{ResolvedUser, UserSelector};
use crate::seccomp::Program;
use crate::sys::{CloneFlags, Cloned, Cradle};

/// What a process joins.
pub(crate) struct Target<'a> {
    /// The container's first process.
    pub(crate) init: BorrowedFd<'a>,
    pub(crate) cgroup: BorrowedFd<'a>,
    /// Absent where the keeper's children are born into its own PID namespace, and need not be any more.
    pub(crate) birthplace: Option<Birthplace<'a>>,
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
    /// Where the process is a stage: the number of its sibling, which is the command's.
    pub(crate) cradle: Option<Cradle>,
}

impl Joined {
    /// Waits until the stage has ended and takes its sibling for it. Blocking.
    pub(crate) fn await_birth(&mut self) -> Result<()> {
        let Some(cradle) = self.cradle.take() else { return Ok(()) };
        if let Some(sibling) = birth::await_sibling(self.pidfd.as_fd(), &cradle)? {
            (self.pid, self.pidfd) = sibling;
            return Ok(());
        }
        let operation = || "listen to the process that enters the container";
        while let Some(received) = channel::wait(self.channel.as_fd()).doing(operation)? {
            if let Message::Failed(failure) = received.message {
                return Err(Error::Told(failure));
            }
        }
        Err(Errno::PIPE).doing(|| "the process ended while it entered the container")
    }
}

/// Clones a process into a container, or the stage of one.
pub(crate) fn join(plan: &ProcessPlan, target: &Target<'_>) -> Result<Joined> {
    let (channel, child_channel) = channel::pair()?;
    let (streams, child_streams) = stdio::make(target.stdio)?;
    let terminal = child_streams.terminal();
    let is_let = target.filter.is_none_or(|filter| birth::is_let(filter, terminal, Part::Executes));
    let cradle = match is_let && !plan.placement.ends_at_clone() {
        true => Some(Cradle::new().doing(|| "map memory to share with a child")?),
        false => None,
    };
    let elsewhere = placement::start_on(&plan.placement)?;
    let flags = CloneFlags { namespaces: 0, cgroup: Some(target.cgroup) };
    let cloned = match cradle {
        Some(_) => birth::clone_outside(target.birthplace, &flags),
        None => {
            let enter = || enter_pid_namespace_of(target.init);
            birth::clone_elsewhere(enter, target.birthplace, &flags)
        }
    };
    match cloned? {
        Cloned::Child => {
            drop((channel, streams));
            std::mem::forget(elsewhere);
            let birth = cradle.as_ref().map(|cradle| Birth { cradle, terminal });
            let Err(error) = enter(plan, target, (&child_channel, &child_streams), birth);
            process::fail(child_channel.as_fd(), error)
        }
        Cloned::Parent { pid, pidfd } => Ok(Joined { pid, pidfd, channel, streams, cradle }),
    }
}

/// Lets children be born into the PID namespace of a process.
fn enter_pid_namespace_of(process: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)
}

fn enter(
    plan: &ProcessPlan,
    target: &Target<'_>,
    (channel, streams): (&OwnedFd, &Ends),
    birth: Option<Birth<'_>>,
) -> Result<std::convert::Infallible> {
    process::harden(target.keeper)?;
    if let Some(birth) = birth {
        birth::take_apart(birth.cradle)?;
        if let Some(score) = plan.oom_score_adj {
            // Inherited by the sibling. The keeper tells of refusals.
            let procfs = host_procfs()?;
            let own = idmap::own_pid(procfs.as_fd())?;
            let _ = launch::adjust_oom_score(procfs.as_fd(), own, score);
        }
        enter_pid_namespace_of(target.init).doing(|| "enter the container's PID namespace")?;
    }
    let listener = notify::connect(target.filter, (target.subject, "running"), || {
        idmap::own_pid(host_procfs()?.as_fd())
    })?;
    let labels = match plan.apparmor.is_some() || plan.selinux.is_some() {
        // One of the PID namespace that this process is in.
        true => labels::open(sysctl::detached_procfs()?.as_fd(), plan)?,
        false => Vec::new(),
    };
    enter_namespaces(target.init)?;
    placement::settle(&plan.placement)?;
    let place = match birth {
        Some(_) => Place::OfSibling,
        None => {
            rustix::process::setsid().doing(|| "make a session")?;
            Place::Elsewhere
        }
    };
    let root = RootFd::from(rootfs::open_root()?);
    streams.connect(&root, place, channel.as_fd())?;
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
        birth,
    };
    process::execute(execution)
}

/// The host's procfs, while this process is in the host's mount namespace still.
fn host_procfs() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let operation = || "open the host's procfs";
    let procfs = rustix::fs::open("/proc", flags, Mode::empty()).doing(operation)?;
    match rustix::fs::fstatfs(&procfs).doing(operation)?.f_type {
        rustix::fs::PROC_SUPER_MAGIC => Ok(procfs),
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
