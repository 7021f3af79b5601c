//! What a container's first process does from its clone to the command.
//!
//! ```text
//! clone3 ─ harden ─ join namespaces ─ cut mounts off ─ open what the host has ─ attach the root
//!   ─ resolve user ─ mounts ─ devices ─ terminal ─ sysctls ─ read-only and masked paths
//!   ─ hooks ─ pivot ─ host name ─ [`super::process`]
//! ```
//! It copies the keeper's memory and is single-threaded as the keeper is, so ordinary code may run
//! here. With a user namespace the first four steps are those of [`super::stage`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::birth::{self, Birth, Birthplace, Late};
use super::channel::{self, Message};
use super::hooks::{self, Hooks, Subject};
use super::host::Host;
use super::mounts::Mapper;
use super::namespaces::{Join, User};
use super::plan::Plan;
use super::process::{self, Execution, Gate, Keeper, RootChange, StartHooks};
use super::rootfd::RootFd;
use super::{
    Doing, Error, Result, devices, idmap, labels, masks, mounts, notify, rootfs, stdio, sysctl,
};
use crate::netlink;
use crate::protocol::Rootfs;
use crate::seccomp::Program;
use crate::sys::{self, MountAttributes};

/// Descriptors and other things of the keeper that the child needs.
pub(crate) struct Environment<'a> {
    pub(crate) keeper: Keeper,
    /// The sandbox's pinned namespaces.
    pub(crate) namespaces: Vec<BorrowedFd<'a>>,
    /// Absent where the keeper's children are born into its own PID namespace.
    pub(crate) birthplace: Option<Birthplace<'a>>,
    /// A detached procfs.
    pub(crate) procfs: BorrowedFd<'a>,
    pub(crate) filter: Option<&'a Program>,
    /// What hooks are told of the container.
    pub(crate) subject: &'a Subject,
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
pub(super) fn run(
    plan: &Plan,
    environment: &Environment<'_>,
    ends: Ends,
    late: Option<&Late>,
) -> ! {
    let Err(error) = run_directly(plan, environment, &ends, late);
    process::fail(ends.channel.as_fd(), error)
}

fn run_directly(
    plan: &Plan,
    environment: &Environment<'_>,
    ends: &Ends,
    late: Option<&Late>,
) -> Result<std::convert::Infallible> {
    process::harden(environment.keeper)?;
    late.map_or(Ok(()), |late| late.begin(plan, environment))?;
    let joined = enter_namespaces(plan, environment, late)?;
    let host = Host::open(plan, environment.procfs, late)?;
    enter_mounts(&joined)?;
    set_up(plan, environment, ends, host, late)
}

/// All that is done in the container's own namespaces.
pub(super) fn set_up(
    plan: &Plan,
    environment: &Environment<'_>,
    ends: &Ends,
    host: Host,
    late: Option<&Late>,
) -> Result<std::convert::Infallible> {
    if plan.namespaces.own_cgroup {
        // Not at the clone: its root would be the keeper's cgroup.
        sys::unshare(libc::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace")?;
    }
    rustix::process::setsid().doing(|| "make a session")?;
    fetch_interfaces(plan, ends.channel.as_fd())?;
    rustix::process::umask(Mode::empty());
    let root = rootfs::attach(host.rootfs, place_of_root(plan))?;
    let identity = process::resolve_user(&root, &plan.user, environment.keeper)?;
    let mut read_only_at_last = Vec::new();
    for (index, (mount, source)) in plan.mounts.iter().zip(host.sources).enumerate() {
        let mapper = match (environment.keeper, &plan.namespaces.user) {
            (Keeper::CommandLine(_), User::New(_) | User::Joined { .. }) => {
                Mapper::Keeper { channel: ends.channel.as_fd(), mount: index }
            }
            (Keeper::Shim, _) | (_, User::Shared) => Mapper::Own,
        };
        read_only_at_last.extend(mounts::attach(&root, mount, source, mapper)?);
    }
    match (&plan.devices, &host.devices) {
        (Some(list), Some(nodes)) => devices::bind(&root, list, nodes)?,
        (Some(list), None) => devices::make(&root, list)?,
        (None, _) => {}
    }
    let place = match late {
        Some(_) => stdio::Place::ConsoleOfSibling,
        None => stdio::Place::Console,
    };
    ends.stdio.connect(&root, place, ends.channel.as_fd())?;
    for one in &plan.sysctls {
        sysctl::write(environment.procfs, one)?;
    }
    masks::protect(&root, &plan.read_only)?;
    masks::mask(&root, &plan.masked, &host.null)?;
    let listener = notify::connect(environment.filter, (environment.subject, "creating"), || {
        idmap::own_pid(environment.procfs)
    })?;
    let labels = labels::open(environment.procfs, &plan.process)?;
    let pid = run_hooks(plan, environment, ends.channel.as_fd(), root.as_fd())?;
    mounts::finish(&read_only_at_last)?;
    finish_root(plan, root, environment)?;
    if let Some(late) = late {
        birth::enter_pid_namespace(late.namespace.as_fd()).doing(|| "enter the PID namespace")?;
    }
    let execution = Execution {
        start_hooks: pid.map(|pid| StartHooks {
            hooks: &plan.hooks.start_container,
            state: environment.subject.state("created", Some(pid)),
        }),
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
        labels,
        listener,
        warnings: Vec::new(),
        birth: late.map(|late| Birth { cradle: &late.cradle, terminal: ends.stdio.terminal() }),
    };
    process::execute(execution)
}

/// Where the root is attached: over the host's, or where hooks look for it with all its mounts. Those of
/// the runtime enter the mount namespace themselves.
fn place_of_root(plan: &Plan) -> &Path {
    let Hooks { create_runtime, create_container, .. } = &plan.hooks;
    let is_looked_for = !create_runtime.is_empty() || !create_container.is_empty();
    match &plan.rootfs {
        Rootfs::Directory(path) if is_looked_for => path,
        Rootfs::Directory(_) | Rootfs::Overlay { .. } => Path::new("/"),
    }
}

/// Has the keeper move network devices of the host here: over them this process may have no power.
fn fetch_interfaces(plan: &Plan, channel: BorrowedFd<'_>) -> Result<()> {
    if plan.interfaces.is_empty() {
        return Ok(());
    }
    let socket = netlink::socket().doing(|| "linux.netDevices: open a route socket")?;
    channel::send(channel, &Message::Interfaces, Some(socket.as_fd()))?;
    channel::await_release(channel)
}

/// Lets the keeper run its hooks, then runs those of the container. Returns this process' number on
/// the host where later hooks are told it.
fn run_hooks(
    plan: &Plan,
    environment: &Environment<'_>,
    channel: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
) -> Result<Option<i32>> {
    let Hooks { create_runtime, create_container, start_container, .. } = &plan.hooks;
    if !create_runtime.is_empty() {
        channel::send(channel, &Message::Hooks, None)?;
        channel::await_release(channel)?;
    }
    if create_container.is_empty() && start_container.is_empty() {
        return Ok(None);
    }
    let pid = idmap::own_pid(environment.procfs)?;
    rustix::process::fchdir(root).doing(|| "enter the root file system")?;
    hooks::run(create_container, &environment.subject.state("creating", Some(pid)))?;
    Ok(Some(pid))
}

/// Opens a namespace by its path on the host.
pub(super) fn open_namespace(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty())
        .doing(|| format!("linux.namespaces: open {}", path.display()))
}

/// Enters the sandbox's namespaces and those of paths, but a PID namespace that is entered late. A mount
/// namespace is only returned: before it is entered, what the host has must have been opened.
pub(super) fn enter_namespaces(
    plan: &Plan,
    environment: &Environment<'_>,
    late: Option<&Late>,
) -> Result<Option<OwnedFd>> {
    for namespace in &environment.namespaces {
        move_into_link_name_space(*namespace, None).doing(|| "enter a namespace of the sandbox")?;
    }
    let mut mount = None;
    let is_late = |join: &&Join| late.is_some() && join.kind == LinuxNamespaceType::Pid;
    for join in plan.namespaces.join.iter().filter(|join| !is_late(join)) {
        let namespace = open_namespace(&join.path)?;
        refuse_own(plan, environment, (join.kind, &namespace))?;
        if join.kind == LinuxNamespaceType::Mount {
            mount = Some(namespace);
            continue;
        }
        move_into_link_name_space(namespace.as_fd(), Some(link_type(join.kind)))
            .doing(|| format!("linux.namespaces: enter {}", join.path.display()))?;
    }
    Ok(mount)
}

/// What the file of a namespace must be.
fn link_type(kind: LinuxNamespaceType) -> LinkNameSpaceType {
    use LinuxNamespaceType as N;
    match kind {
        N::Mount => LinkNameSpaceType::Mount,
        N::Cgroup => LinkNameSpaceType::ControlGroup,
        N::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        N::Ipc => LinkNameSpaceType::InterProcessCommunication,
        N::User => LinkNameSpaceType::User,
        N::Pid => LinkNameSpaceType::ProcessID,
        N::Network => LinkNameSpaceType::Network,
        N::Time => LinkNameSpaceType::Time,
    }
}

/// Enters a mount namespace of a path.
pub(super) fn enter_mounts(namespace: &Option<OwnedFd>) -> Result<()> {
    match namespace {
        Some(namespace) => {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
                .doing(|| "linux.namespaces: enter the mount namespace")
        }
        None => Ok(()),
    }
}

/// A sysctl must not reach the host by way of a path that names the host's own namespace.
fn refuse_own(
    plan: &Plan,
    environment: &Environment<'_>,
    (kind, namespace): (LinuxNamespaceType, &OwnedFd),
) -> Result<()> {
    let Some(sysctl) = plan.sysctls.iter().find(|one| one.namespace() == Some(kind)) else {
        return Ok(());
    };
    let operation = || "compare namespaces";
    let own = format!("{}/ns/{kind}", idmap::own_pid(environment.procfs)?);
    let own = rustix::fs::statat(environment.procfs, own, rustix::fs::AtFlags::empty());
    let (own, other) = (own.doing(operation)?, rustix::fs::fstat(namespace).doing(operation)?);
    if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino) {
        let reason = "the namespace of the path is the host's own";
        return Err(Error::invalid(format!("sysctl {}", sysctl.name()), reason));
    }
    Ok(())
}

fn finish_root(plan: &Plan, root: RootFd, environment: &Environment<'_>) -> Result<()> {
    if plan.root_read_only {
        let read_only = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        sys::set_mount_attributes(root.as_fd(), read_only).doing(|| "make the root read-only")?;
    }
    match environment.keeper.root_change() {
        RootChange::Pivot => rootfs::pivot(&root)?,
        RootChange::Chroot => rootfs::chroot(&root, environment.procfs)?,
    }
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
