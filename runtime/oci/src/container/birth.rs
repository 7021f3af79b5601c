//! The last clone of a process that is to be in a PID namespace where others are already.
//!
//! Whoever has CAP_SYS_PTRACE there gets hold of every process it sees, undumpable or not. So what
//! comes to be seen has nothing more than its command will have: a stage in the keeper's PID namespace
//! enters the others, takes on the user, the labels and the filter, and gives up privileges and
//! descriptors; its sibling, cloned then, executes the command.
//!
//! ```text
//! keeper ─ clone ─► stage: namespaces ─ user ─ labels ─ filter ─ clone as sibling ─ exits
//!                                                                  │
//!                                    seen by others from here on:  └─► session ─ wait ─ execve
//! ```
//! A container's first process mounts the procfs of the namespace before it is in it, which takes the
//! option `pidns`: Linux 6.17. Hooks are told its number, and a user namespace has a stage of its own
//! ([`super::stage`]): with either it is in the namespace from the start, as on older kernels.
//!
//! A filter that forbids what the sibling calls, or asks a listener about calls, leaves no room for this.
//! Memory is copied: without the environment of the keeper, and with what it has read of the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::io::Errno;
use rustix::mount::FsOpenFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::stdio::stdin;
use rustix::thread::LinkNameSpaceType;

use super::child::{self, Environment};
use super::namespaces::User;
use super::plan::Plan;
use super::process::Keeper;
use super::{Doing, Result, console, idmap, launch};
use crate::seccomp::{Call, Program};
use crate::sys::{self, CloneFlags, Cloned, Cradle, Side};

/// PID namespaces of a keeper.
#[derive(Clone, Copy)]
pub(crate) struct Birthplace<'a> {
    /// That which it is in itself.
    pub(crate) outside: BorrowedFd<'a>,
    /// That which its children are born into.
    pub(crate) children: BorrowedFd<'a>,
}

/// What a container's first process needs that is in its PID namespace only at last.
pub(super) struct Late {
    pub(super) namespace: OwnedFd,
    pub(super) cradle: Cradle,
}

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

/// What a sibling does before it executes the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// It reports, and waits until it may.
    Waits,
    Executes,
}

impl Late {
    /// Present where a plan's first process enters a PID namespace of others, and can do so at last.
    pub(super) fn of(
        plan: &Plan,
        environment: &Environment<'_>,
        terminal: Terminal,
    ) -> Result<Option<Self>> {
        let joined = plan.namespaces.join.iter().find(|one| one.kind == LinuxNamespaceType::Pid);
        let namespace = match (environment.birthplace, joined) {
            (Some(place), _) => {
                place.children.try_clone_to_owned().doing(|| "keep a PID namespace")?
            }
            (None, Some(join)) => child::open_namespace(&join.path)?,
            (None, None) => return Ok(None),
        };
        if !leaves_room(plan, environment.filter, terminal) || !has_procfs(namespace.as_fd()) {
            return Ok(None);
        }
        let cradle = Cradle::new().doing(|| "map memory to share with a child")?;
        Ok(Some(Self { namespace, cradle }))
    }

    /// The first acts of the stage.
    pub(super) fn begin(&self, plan: &Plan, environment: &Environment<'_>) -> Result<()> {
        take_apart(&self.cradle)?;
        if let Some(score) = plan.process.oom_score_adj {
            // Inherited by the sibling. The keeper tells of refusals.
            let own = idmap::own_pid(environment.procfs)?;
            let _ = launch::adjust_oom_score(environment.procfs, own, score);
        }
        Ok(())
    }
}

/// Whether a plan leaves room for a last clone.
fn leaves_room(plan: &Plan, filter: Option<&Program>, terminal: Terminal) -> bool {
    plan.namespaces.user == User::Shared
        && plan.namespaces.time.is_none()
        && !plan.hooks.run_while_made()
        && !plan.process.placement.ends_at_clone()
        && filter.is_none_or(|filter| is_let(filter, terminal, Part::Waits))
}

/// Keeps to a stage what its sibling is not to have: the cradle, and the keeper's variables, which are not
/// the container's.
pub(super) fn take_apart(cradle: &Cradle) -> Result<()> {
    cradle.withhold().doing(|| "keep memory to this process")?;
    sys::forget_environment();
    Ok(())
}

/// Whether the kernel makes a procfs of a PID namespace for those who are not in it.
fn has_procfs(namespace: BorrowedFd<'_>) -> bool {
    rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).is_ok_and(|context| {
        rustix::mount::fsconfig_set_fd(&context, PROCFS_OPTION, namespace).is_ok()
    })
}

/// The option of procfs that names its PID namespace.
pub(super) const PROCFS_OPTION: &str = "pidns";

/// Lets children be born into a PID namespace.
pub(crate) fn enter_pid_namespace(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID))
}

/// Clones a process in a keeper's own PID namespace.
pub(super) fn clone_outside(
    place: Option<Birthplace<'_>>,
    flags: &CloneFlags<'_>,
) -> Result<Cloned> {
    let enter = || place.map_or(Ok(()), |place| enter_pid_namespace(place.outside));
    clone_elsewhere(enter, place, flags)
}

/// Clones a process in the PID namespace that `enter` enters. Further children of the keeper are born where
/// they were before.
pub(super) fn clone_elsewhere(
    enter: impl FnOnce() -> Result<(), Errno>,
    place: Option<Birthplace<'_>>,
    flags: &CloneFlags<'_>,
) -> Result<Cloned> {
    let operation = || "enter a PID namespace";
    enter().doing(operation)?;
    let cloned = sys::clone3(flags);
    if !matches!(cloned, Ok(Cloned::Child)) {
        let back = place.map_or(Ok(()), |place| enter_pid_namespace(place.children));
        back.doing(operation)?;
    }
    cloned.doing(|| "clone a process into its cgroup")
}

/// Waits until a stage has ended: the number and the pidfd of its sibling, if that was cloned. Blocking.
pub(super) fn await_sibling(
    stage: BorrowedFd<'_>,
    cradle: &Cradle,
) -> Result<Option<(i32, OwnedFd)>> {
    idmap::reap(stage);
    cradle.child().map(|pid| Ok((pid, pidfd_of(pid)?))).transpose()
}

/// The descriptor of a child that has not been waited for.
pub(crate) fn pidfd_of(child: i32) -> Result<OwnedFd> {
    let operation = || "open the process in the container";
    let pid = Pid::from_raw(child).ok_or(Errno::SRCH).doing(operation)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).doing(operation)
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

/// What is called, besides, by one that reports and waits.
const OF_WAITING: [i64; 6] = [
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_accept4,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
];

/// Whether a filter leaves room for it.
pub(super) fn is_let(filter: &Program, terminal: Terminal, part: Part) -> bool {
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
        && (part == Part::Executes || OF_WAITING.iter().all(|number| call(*number, [0; 3])))
}
