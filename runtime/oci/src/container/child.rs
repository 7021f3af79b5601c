//! What a container's first process does from its clone to the command.
//!
//! ```text
//! clone3 ─ harden ─ join namespaces ─ cut mounts off ─ open bind sources ─ make root ─ attach
//!   ─ resolve user ─ mounts ─ devices ─ terminal ─ sysctls ─ read-only and masked paths
//!   ─ pivot ─ host name ─ [`super::process`]
//! ```
//! It copies the shim's memory and is single-threaded as the shim is, so ordinary code may run here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::thread::move_into_link_name_space;

use super::plan::Plan;
use super::process::{self, Execution, Gate, Keeper};
use super::{Doing, Result, devices, masks, mounts, rootfs, stdio, sysctl};
use crate::seccomp::Program;
use crate::sys::{self, MountAttributes};

/// Descriptors and other things of the keeper that the child needs.
pub(crate) struct Environment<'a> {
    pub(crate) keeper: Keeper,
    /// The sandbox's pinned namespaces.
    pub(crate) namespaces: Vec<BorrowedFd<'a>>,
    /// A detached procfs.
    pub(crate) procfs: BorrowedFd<'a>,
    pub(crate) filter: Option<&'a Program>,
    /// A listening socket: whoever connects to it lets the command run, and is told how that went.
    /// Absent, a pipe is made for it.
    pub(crate) listener: Option<BorrowedFd<'a>>,
}

/// The child's ends.
pub(super) struct Ends {
    pub(super) channel: OwnedFd,
    /// Absent where the environment has a listener.
    pub(super) gate: Option<OwnedFd>,
    pub(super) stdio: stdio::Ends,
}

/// Becomes the container.
pub(super) fn run(plan: &Plan, environment: &Environment<'_>, ends: Ends) -> ! {
    let Err(error) = set_up(plan, environment, &ends);
    process::fail(ends.channel.as_fd(), error)
}

fn set_up(
    plan: &Plan,
    environment: &Environment<'_>,
    ends: &Ends,
) -> Result<std::convert::Infallible> {
    process::harden(environment.keeper)?;
    enter_namespaces(plan, environment)?;
    rustix::process::setsid().doing(|| "make a session")?;
    rustix::process::umask(Mode::empty());
    rootfs::cut_off(plan.root_propagation)?;
    let null = masks::open_null()?;
    let sources = mounts::open_sources(&plan.mounts)?;
    let root = rootfs::attach(rootfs::make(&plan.rootfs, environment.procfs)?)?;
    let identity = process::resolve_user(&root, &plan.user)?;
    for (mount, source) in plan.mounts.iter().zip(sources) {
        mounts::attach(&root, mount, source)?;
    }
    if let Some(list) = &plan.devices {
        devices::make(&root, list)?;
    }
    ends.stdio.connect(&root, stdio::Place::Console, ends.channel.as_fd())?;
    for one in &plan.sysctls {
        sysctl::write(environment.procfs, one)?;
    }
    masks::protect(&root, &plan.read_only)?;
    masks::mask(&root, &plan.masked, &null)?;
    finish_root(plan, root)?;
    let execution = Execution {
        plan: &plan.process,
        user: &identity.user,
        home: identity.home.as_deref(),
        filter: environment.filter,
        channel: ends.channel.as_fd(),
        gate: match (&ends.gate, environment.listener) {
            (Some(pipe), _) => Some(Gate::Pipe(pipe.as_fd())),
            (None, Some(listener)) => Some(Gate::Listener(listener)),
            (None, None) => None,
        },
        keeper: environment.keeper,
        warnings: Vec::new(),
    };
    process::execute(execution)
}

fn enter_namespaces(plan: &Plan, environment: &Environment<'_>) -> Result<()> {
    for namespace in &environment.namespaces {
        move_into_link_name_space(*namespace, None).doing(|| "enter a namespace of the sandbox")?;
    }
    for path in &plan.join {
        let operation = || format!("enter namespace {}", path.display());
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).doing(operation)?;
        move_into_link_name_space(file.as_fd(), None).doing(operation)?;
    }
    if plan.own_cgroup_namespace {
        // Not at the clone: its root would be the shim's cgroup.
        sys::unshare(libc::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace")?;
    }
    Ok(())
}

fn finish_root(plan: &Plan, root: super::rootfd::RootFd) -> Result<()> {
    if plan.root_read_only {
        let read_only = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        sys::set_mount_attributes(root.as_fd(), read_only).doing(|| "make the root read-only")?;
    }
    rootfs::pivot(&root)?;
    if let Some(propagation) = plan.root_propagation {
        sys::set_mount_attributes(root.as_fd(), propagation)
            .doing(|| "set the propagation of the root")?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).doing(|| "set the host name")?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).doing(|| "set the domain name")?;
    }
    Ok(())
}
