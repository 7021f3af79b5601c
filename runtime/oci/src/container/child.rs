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

use super::channel::{self, Message};
use super::plan::Plan;
use super::process::{self, Execution};
use super::{Doing, Result, console, devices, masks, mounts, rootfs, sysctl};
use crate::seccomp::Program;
use crate::sys::{self, MountAttributes};

/// Descriptors and other things of the shim that the child needs.
pub(crate) struct Environment<'a> {
    /// The sandbox's pinned namespaces.
    pub(crate) namespaces: Vec<BorrowedFd<'a>>,
    /// A detached procfs.
    pub(crate) procfs: BorrowedFd<'a>,
    pub(crate) filter: Option<&'a Program>,
}

/// The child's ends.
pub(super) struct Ends {
    pub(super) channel: OwnedFd,
    pub(super) gate: OwnedFd,
    /// Standard input, output and error; absent with a terminal.
    pub(super) streams: Option<[OwnedFd; 3]>,
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
    process::harden()?;
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
    match &ends.streams {
        Some([stdin, stdout, stderr]) => {
            rustix::stdio::dup2_stdin(stdin).doing(|| "set standard input")?;
            rustix::stdio::dup2_stdout(stdout).doing(|| "set standard output")?;
            rustix::stdio::dup2_stderr(stderr).doing(|| "set standard error")?;
        }
        None => {
            let console = console::open(&root)?;
            console::bind(&root, &console.slave)?;
            console::take(&console.slave)?;
            channel::send(ends.channel.as_fd(), &Message::Console, Some(console.master.as_fd()))?;
        }
    }
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
        gate: Some(ends.gate.as_fd()),
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
