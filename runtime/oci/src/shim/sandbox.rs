//! A pod's namespaces: made, pinned by bind mounts, held as descriptors.
//!
//! `ns/` in the sandbox directory becomes a private mount of itself; the pins are mounts below it, so
//! one unmount takes them all. A shared PID namespace has a reaper as its PID 1.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{ThreadNameSpaceType, move_into_link_name_space};

use crate::container::birth;
use crate::container::holder::{self, Afterwards, Held, Wanted};
use crate::container::sysctl;
use crate::container::{Doing, Error, Result, empty_root};
use crate::log::Birthplace;
use crate::protocol::{PidNamespace, ShimConfig, UserIds};
use crate::sys::{self, CloneFlags, Cloned, MountAttributes};

/// The namespaces of a pod.
#[derive(Debug)]
pub(crate) struct Sandbox {
    directory: PathBuf,
    /// Own network, IPC and UTS namespaces.
    namespaces: Vec<OwnedFd>,
    /// Attached nowhere: no container can cover it (CVE-2025-52881).
    procfs: OwnedFd,
    /// The PID namespace of the shim itself.
    host_pid_namespace: OwnedFd,
    /// The PID namespace that children are born into.
    pid_namespace: OwnedFd,
    reaper: Option<OwnedFd>,
}

const KINDS: [(&str, i32); 3] =
    [("net", libc::CLONE_NEWNET), ("ipc", libc::CLONE_NEWIPC), ("uts", libc::CLONE_NEWUTS)];

impl Sandbox {
    /// Makes and pins what `config` asks for. On failure nothing is left.
    pub(super) fn make(directory: &Path, config: &ShimConfig) -> Result<Self> {
        let result = Self::try_make(directory, config);
        if result.is_err() {
            // The failure to make is what counts.
            let _ = unpin(directory);
        }
        result
    }

    fn try_make(directory: &Path, config: &ShimConfig) -> Result<Self> {
        let procfs = sysctl::detached_procfs()?;
        let wanted = [config.new_network, config.new_ipc, config.hostname.is_some()];
        let kinds: Vec<_> = KINDS
            .into_iter()
            .zip(wanted)
            .filter(|(_, wanted)| *wanted)
            .map(|(kind, _)| kind)
            .collect();
        let (namespaces, reaper) = match config.user_ids {
            None => {
                let namespaces = make_namespaces(&procfs, &kinds, config)?;
                pin(directory, pins(&kinds, &namespaces))?;
                let reaper = match config.pid {
                    PidNamespace::Sandbox => Some(start_reaper(&namespaces)?),
                    PidNamespace::Container | PidNamespace::Host => None,
                };
                (namespaces, reaper)
            }
            Some(ids) => {
                let held = hold_namespaces(&procfs, &kinds, (ids, config))?;
                let user = std::iter::once(("user", held.user.as_fd()));
                pin(directory, user.chain(pins(&kinds, &held.others)))?;
                (held.others, held.reaper)
            }
        };
        if let Some(reaper) = &reaper {
            let kind = ThreadNameSpaceType::PROCESS_ID;
            rustix::thread::move_into_thread_name_spaces(reaper.as_fd(), kind)
                .doing(|| "enter the sandbox's PID namespace")?;
        }
        let pid_namespace = open_own(&procfs, "pid_for_children")?;
        let host_pid_namespace = open_own(&procfs, "pid")?;
        let directory = directory.to_owned();
        Ok(Self { directory, namespaces, procfs, host_pid_namespace, pid_namespace, reaper })
    }

    /// The namespaces every container enters.
    pub(super) fn namespaces(&self) -> Vec<BorrowedFd<'_>> {
        self.namespaces.iter().map(AsFd::as_fd).collect()
    }

    /// A procfs of the host's PID namespace.
    pub(super) fn procfs(&self) -> BorrowedFd<'_> {
        self.procfs.as_fd()
    }

    /// The shim's PID namespace and that which its children are born into.
    pub(super) fn pid_namespaces(&self) -> birth::Birthplace<'_> {
        let (outside, children) = (self.host_pid_namespace.as_fd(), self.pid_namespace.as_fd());
        birth::Birthplace { outside, children }
    }

    /// The same where children are born into another: that of a container, or else the sandbox's.
    pub(super) fn foreign_birthplace<'a>(
        &'a self,
        of_container: Option<&'a OwnedFd>,
    ) -> Option<birth::Birthplace<'a>> {
        let place = self.pid_namespaces();
        match (of_container, &self.reaper) {
            (Some(children), _) => Some(birth::Birthplace { children: children.as_fd(), ..place }),
            (None, Some(_)) => Some(place),
            (None, None) => None,
        }
    }

    /// Lets further children be born into the sandbox's PID namespace again.
    pub(super) fn return_to_pid_namespace(&self) -> Result<()> {
        birth::enter_pid_namespace(self.pid_namespace.as_fd())
            .doing(|| "return to the sandbox's PID namespace")
    }

    /// Where a process of the shim's own is born that containers must not see; absent where children
    /// are born into the host's PID namespace anyway.
    pub(super) fn birthplace(&self) -> Result<Option<Birthplace>> {
        if self.reaper.is_none() {
            return Ok(None);
        }
        let operation = || "keep the sandbox's PID namespaces";
        let host = self.host_pid_namespace.try_clone().doing(operation)?;
        let own = self.pid_namespace.try_clone().doing(operation)?;
        Ok(Some(Birthplace { host, own }))
    }

    /// Kills the reaper and unpins the namespaces.
    pub(super) fn release(self) {
        if let Some(reaper) = &self.reaper {
            // It is our child: it exists, or has ended already.
            let _ = sys::signal_process(reaper.as_fd(), libc::SIGKILL);
        }
        // Whoever finds pins left over calls unpin again.
        let _ = unpin(&self.directory);
    }
}

fn open_own(procfs: &OwnedFd, name: &str) -> Result<OwnedFd> {
    open_namespace(procfs.as_fd(), rustix::process::getpid().as_raw_pid(), name)
}

/// Opens a namespace of a process.
pub(super) fn open_namespace(procfs: BorrowedFd<'_>, pid: i32, name: &str) -> Result<OwnedFd> {
    let path = format!("{pid}/ns/{name}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(procfs, path.as_str(), flags, Mode::empty())
        .doing(|| format!("open the {name} namespace"))
}

/// Leaves for new namespaces, configures them, and returns to the host's with their descriptors.
fn make_namespaces(
    procfs: &OwnedFd,
    kinds: &[(&str, i32)],
    config: &ShimConfig,
) -> Result<Vec<OwnedFd>> {
    let open = || kinds.iter().map(|(name, _)| open_own(procfs, name)).collect::<Result<Vec<_>>>();
    let host = open()?;
    let flags = kinds.iter().fold(0, |flags, (_, flag)| flags | flag);
    if flags != 0 {
        sys::unshare(flags).doing(|| "make namespaces")?;
    }
    configure(procfs, config)?;
    let made = open()?;
    for namespace in &host {
        move_into_link_name_space(namespace.as_fd(), None)
            .doing(|| "return to the host's namespaces")?;
    }
    Ok(made)
}

/// Makes the namespaces of a pod whose ids are not the host's.
fn hold_namespaces(
    procfs: &OwnedFd,
    kinds: &[(&'static str, i32)],
    (ids, config): (UserIds, &ShimConfig),
) -> Result<Held> {
    let refuse = |reason: &str| Err(Error::invalid("user_ids", reason));
    if config.pid == PidNamespace::Host {
        return refuse("the host's processes cannot be seen from a user namespace");
    }
    if kinds.len() != KINDS.len() {
        return refuse("a namespace of the host does not go with a user namespace");
    }
    let afterwards = match config.pid {
        PidNamespace::Sandbox => Afterwards::Reaps,
        PidNamespace::Container | PidNamespace::Host => Afterwards::Ends,
    };
    let wanted = Wanted { procfs: procfs.as_fd(), kinds, ids, afterwards };
    holder::hold(&wanted, || configure(procfs, config))
}

/// Configures the namespaces one is in.
fn configure(procfs: &OwnedFd, config: &ShimConfig) -> Result<()> {
    if config.new_network {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            None,
        )
        .doing(|| "open a socket")?;
        sys::loopback_up(socket.as_fd()).doing(|| "set the loopback interface up")?;
    }
    if let Some(name) = &config.hostname {
        rustix::system::sethostname(name.as_bytes()).doing(|| "set the host name")?;
    }
    let own = sysctl::OwnNamespaces {
        network: config.new_network,
        ipc: config.new_ipc,
        uts: config.hostname.is_some(),
    };
    for (name, value) in &config.sysctls {
        let one = sysctl::parse(name, value)?;
        sysctl::require_own(&one, &own)?;
        sysctl::write(procfs.as_fd(), &one)?;
    }
    Ok(())
}

fn pins<'a>(
    kinds: &'a [(&'static str, i32)],
    namespaces: &'a [OwnedFd],
) -> impl Iterator<Item = (&'static str, BorrowedFd<'a>)> {
    kinds.iter().zip(namespaces).map(|((name, _), namespace)| (*name, namespace.as_fd()))
}

fn pin<'a>(
    directory: &Path,
    namespaces: impl Iterator<Item = (&'static str, BorrowedFd<'a>)>,
) -> Result<()> {
    let mut namespaces = namespaces.peekable();
    if namespaces.peek().is_none() {
        return Ok(());
    }
    let ns = directory.join("ns");
    let operation = || format!("pin namespaces at {}", ns.display());
    std::fs::create_dir_all(&ns).doing(operation)?;
    unpin(directory).doing(operation)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, &ns, clone).doing(operation)?;
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    sys::set_mount_attributes(tree.as_fd(), private).doing(operation)?;
    rustix::mount::move_mount(&tree, "", CWD, &ns, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(operation)?;
    for (name, namespace) in namespaces {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let place =
            rustix::fs::openat(&tree, name, flags, Mode::from_raw_mode(0o600)).doing(operation)?;
        let pin = rustix::mount::open_tree(namespace, "", clone | OpenTreeFlags::AT_EMPTY_PATH)
            .doing(operation)?;
        let empty =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&pin, "", &place, "", empty).doing(operation)?;
    }
    Ok(())
}

/// Takes the pins of a sandbox directory away, whoever made them. Idempotent.
///
/// # Errors
/// When the kernel refuses for another reason than that there is nothing to unmount.
pub fn unpin(directory: &Path) -> std::io::Result<()> {
    let ns = directory.join("ns");
    loop {
        match rustix::mount::unmount(&ns, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Starts PID 1 of a shared PID namespace: it reaps orphans and dies with the shim. It has no root
/// file system, no capabilities and no descriptors, as containers of the pod can see it.
fn start_reaper(namespaces: &[OwnedFd]) -> Result<OwnedFd> {
    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    match sys::clone3(&CloneFlags { namespaces: flags, cgroup: None })
        .doing(|| "clone the reaper")?
    {
        Cloned::Parent { pidfd, .. } => Ok(pidfd),
        Cloned::Child => {
            if empty_root::retire(namespaces).is_ok() {
                empty_root::reap_for_ever();
            }
            sys::exit_now(1)
        }
    }
}
