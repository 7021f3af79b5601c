//! Mounts of a container: made detached, then moved onto a descriptor inside the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
};

use super::birth::{self, Late};
use super::channel::{self, Message};
use super::mount_options::Source as Origin;
use super::mount_plan::{IdSource, MappedIds, Mount};
use super::namespaces::User;
use super::plan::Plan;
use super::rootfd::{RootFd, file_type};
use super::{Doing, Error, Result, copy_up, idmap};
use crate::sys::{self, MountAttributes};

const CGROUP2_MAGIC: u64 = 0x6367_7270;
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Moves a mount onto a place.
pub(super) fn move_onto(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

/// A detached copy of the mount at a descriptor.
pub(super) fn copy(place: BorrowedFd<'_>, recursive: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | recursive;
    rustix::mount::open_tree(place, "", flags)
}

/// What a mount takes from the host.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// A bind's tree, attached nowhere.
    tree: Option<OwnedFd>,
    /// Whose ids those of a new file system are mapped by.
    user_namespace: Option<OwnedFd>,
    /// Whose processes a new procfs shows, where they are not those that the mounting process is among.
    pid_namespace: Option<OwnedFd>,
}

/// Opens the sources of all mounts, in the host's tree.
pub(super) fn open_sources(
    plan: &Plan,
    procfs: BorrowedFd<'_>,
    late: Option<&Late>,
) -> Result<Vec<Source>> {
    // In a user namespace a hierarchy can be mounted only with a cgroup namespace of its own.
    let foreign = plan.namespaces.user != User::Shared
        && !plan.namespaces.own_cgroup
        && !plan.namespaces.joins(LinuxNamespaceType::Cgroup);
    let open = |mount: &Mount| match foreign && mount.kind == "cgroup2" {
        true => Ok(Source { tree: Some(own_cgroup(procfs)?), ..Source::default() }),
        false => open_source(mount, procfs, late),
    };
    plan.mounts.iter().map(open).collect()
}

/// The user namespace that a mount's ids are mapped by.
fn user_namespace(mount: &Mount, procfs: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    Ok(match &mount.ids {
        None => None,
        Some(MappedIds { by: IdSource::Mappings(mappings), .. }) => {
            Some(idmap::namespace(procfs, mappings)?)
        }
        Some(MappedIds { by: IdSource::Namespace(path), .. }) => {
            Some(super::child::open_namespace(path)?)
        }
    })
}

fn open_source(mount: &Mount, procfs: BorrowedFd<'_>, late: Option<&Late>) -> Result<Source> {
    let user_namespace = user_namespace(mount, procfs)?;
    let recursive = match mount.options.source {
        Origin::New | Origin::Present => {
            let late = late.filter(|_| mount.kind == "proc");
            let pid_namespace = late.map(|late| late.namespace.try_clone()).transpose();
            let pid_namespace = pid_namespace.doing(|| "keep a PID namespace")?;
            return Ok(Source { user_namespace, pid_namespace, ..Source::default() });
        }
        // Opened when its turn comes.
        _ if mount.source_inside.is_some() => {
            return Ok(Source { user_namespace, ..Source::default() });
        }
        Origin::Bind | Origin::BindTree => recursion(mount),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
    let tree = rustix::mount::open_tree(CWD, mount.source.as_path(), flags).doing(|| {
        let (field, source) = (mount.destination.display(), mount.source.display());
        format!("mounts[/{field}].source: open {source}")
    })?;
    // Done here, where the privilege over the host's file system is.
    map_ids(mount, tree.as_fd(), user_namespace.as_ref())?;
    Ok(Source { tree: Some(tree), ..Source::default() })
}

fn recursion(mount: &Mount) -> OpenTreeFlags {
    match mount.options.source {
        Origin::BindTree => OpenTreeFlags::AT_RECURSIVE,
        Origin::Bind | Origin::New | Origin::Present => OpenTreeFlags::empty(),
    }
}

/// Who maps the ids of what is taken from the container's own tree.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mapper<'a> {
    /// This process, which has the power over the file systems.
    Own,
    /// The keeper at the other end, where this process has not the power: it is the root of a user
    /// namespace alone.
    Keeper { channel: BorrowedFd<'a>, mount: usize },
}

impl Mapper<'_> {
    fn map(self, mount: &Mount, tree: BorrowedFd<'_>, namespace: Option<&OwnedFd>) -> Result<()> {
        match (self, map_ids(mount, tree, namespace)) {
            (Self::Keeper { channel, mount }, Err(Error::System { source: Errno::PERM, .. })) => {
                channel::send(channel, &Message::Ids { mount }, Some(tree))?;
                channel::await_release(channel)
            }
            (Self::Own | Self::Keeper { .. }, result) => result,
        }
    }
}

/// The keeper's part of that: maps the ids of a tree as a mount of the plan says.
pub(crate) fn map_for_child(
    plan: &Plan,
    index: usize,
    tree: BorrowedFd<'_>,
    procfs: BorrowedFd<'_>,
) -> Result<()> {
    let mount = plan.mounts.get(index).ok_or(Errno::BADMSG).doing(|| "map the ids of a mount")?;
    let namespace = user_namespace(mount, procfs)?;
    map_ids(mount, tree, namespace.as_ref())
}

/// Opens a source that is below the container's root, with what has been mounted there so far.
fn open_inside(root: &RootFd, mount: &Mount, source: Source, mapper: Mapper<'_>) -> Result<Source> {
    let Some(path) = &mount.source_inside else { return Ok(source) };
    let operation = || {
        let field = mount.destination.display();
        format!("mounts[/{field}].source: open /{} of the container", path.display())
    };
    let place = root.find(path).doing(operation)?;
    let tree = copy(place.as_fd(), recursion(mount)).doing(operation)?;
    mapper.map(mount, tree.as_fd(), source.user_namespace.as_ref())?;
    Ok(Source { tree: Some(tree), ..Source::default() })
}

/// The container's own cgroup in the host's hierarchy, to be bound.
fn own_cgroup(procfs: BorrowedFd<'_>) -> Result<OwnedFd> {
    let operation = || "find the container's cgroup in the host's hierarchy";
    let is_v2 =
        |root: &&&str| rustix::fs::statfs(**root).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC);
    let root = CGROUP_ROOTS.iter().find(is_v2).ok_or(Errno::NODEV).doing(operation)?;
    let file = format!("{}/cgroup", idmap::own_pid(procfs)?);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(procfs, file, flags, Mode::empty()).doing(operation)?;
    let mut text = vec![0; 16 << 10];
    let count = rustix::io::read(&file, &mut text).doing(operation)?;
    let text = String::from_utf8_lossy(&text[..count]).into_owned();
    let below = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = Path::new(root).join(below.ok_or(Errno::NOENT).doing(operation)?);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).doing(operation)
}

fn map_ids(mount: &Mount, tree: BorrowedFd<'_>, namespace: Option<&OwnedFd>) -> Result<()> {
    let (Some(ids), Some(namespace)) = (&mount.ids, namespace) else { return Ok(()) };
    sys::map_mount_ids(tree, namespace.as_fd(), ids.recursive).doing(|| {
        let field = format!("mounts[/{}].uidMappings", mount.destination.display());
        format!("{field}: map the ids, which not every file system can")
    })
}

/// Attaches a mount at its destination. Returns it where it is to be made read-only at last, once all
/// is in it that belongs there.
pub(super) fn attach(
    root: &RootFd,
    mount: &Mount,
    source: Source,
    mapper: Mapper<'_>,
) -> Result<Option<OwnedFd>> {
    let operation = |what: &str| format!("{what} mount /{}", mount.destination.display());
    if mount.options.source == Origin::Present {
        return change(root, mount).map(|()| None).doing(|| operation("remount"));
    }
    let source = open_inside(root, mount, source, mapper)?;
    let mode = present_mode(root, mount);
    let place = place(root, mount, source.tree.as_ref())?;
    let tree = match source.tree {
        Some(tree) => {
            set(tree.as_fd(), mount.options.attributes)
                .doing(|| operation("set the options of"))?;
            tree
        }
        None => {
            let made = make(mount, mode, source.pid_namespace.as_ref())
                .doing(|| operation(&format!("make {}", mount.kind)))?;
            map_ids(mount, made.as_fd(), source.user_namespace.as_ref())?;
            made
        }
    };
    require_procfs(root, mount, &place, &tree)?;
    if mount.options.copies_up {
        copy_up::copy(place.as_fd(), tree.as_fd()).doing(|| operation("copy up into"))?;
    }
    set(tree.as_fd(), mount.options.tree_attributes).doing(|| operation("set the options of"))?;
    for propagation in &mount.options.propagation {
        set(tree.as_fd(), *propagation).doing(|| operation("set the propagation of"))?;
    }
    move_onto(tree.as_fd(), place.as_fd()).doing(|| operation("attach"))?;
    Ok(is_filled_later(mount).then_some(tree))
}

/// Refuses what is no procfs where programs look for one, by whatever path it is named.
fn require_procfs(root: &RootFd, mount: &Mount, place: &OwnedFd, tree: &OwnedFd) -> Result<()> {
    let path = Path::new("proc");
    let operation = || format!("look at mount /{}", mount.destination.display());
    let identity = |fd: &OwnedFd| {
        let stat = rustix::fs::fstat(fd).doing(operation)?;
        Ok::<_, Error>((stat.st_dev, stat.st_ino))
    };
    let is_its_place = mount.destination == path
        || match root.find(path) {
            Ok(present) => identity(&present)? == identity(place)?,
            Err(_) => false,
        };
    let kind = rustix::fs::fstatfs(tree).doing(operation)?.f_type;
    match is_its_place && kind != rustix::fs::PROC_SUPER_MAGIC {
        true => Err(Error::invalid(
            format!("mounts[/{}]", mount.destination.display()),
            "is no procfs, and would stand where programs look for one",
        )),
        false => Ok(()),
    }
}

/// Makes read-only what waited for it.
pub(super) fn finish(mounts: &[OwnedFd]) -> Result<()> {
    let read_only = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    mounts.iter().try_for_each(|mount| {
        sys::set_mount_attributes(mount.as_fd(), read_only).doing(|| "make a mount read-only")
    })
}

/// Whether a mount is read-only only after other mounts and devices have found their places in it.
fn is_filled_later(mount: &Mount) -> bool {
    let is_read_only = mount.options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
    mount.options.source == Origin::New && mount.kind == "tmpfs" && is_read_only
}

/// The mode that a new tmpfs takes over from the directory that it is mounted on.
fn present_mode(root: &RootFd, mount: &Mount) -> Option<String> {
    let names_mode = || mount.options.data.iter().any(|(key, _)| key == "mode");
    if mount.options.source != Origin::New || mount.kind != "tmpfs" || names_mode() {
        return None;
    }
    let stat = rustix::fs::fstat(root.find(&mount.destination).ok()?).ok()?;
    Some(format!("{:o}", stat.st_mode & 0o7777))
}

/// Changes what is mounted at the destination: the mount, and with a type its file system too.
fn change(root: &RootFd, mount: &Mount) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let place = root.find(&mount.destination)?;
    if !matches!(mount.kind.as_str(), "" | "none" | "bind") {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let context = rustix::mount::fspick(&place, "", flags)?;
        configure(context.as_fd(), mount)?;
        rustix::mount::fsconfig_reconfigure(&context)?;
    }
    set(place.as_fd(), mount.options.attributes).map_err(errno)?;
    set(place.as_fd(), mount.options.tree_attributes).map_err(errno)?;
    let mut propagation = mount.options.propagation.iter();
    propagation.try_for_each(|change| set(place.as_fd(), *change).map_err(errno))
}

fn set(mount: BorrowedFd<'_>, attributes: MountAttributes) -> std::io::Result<()> {
    if attributes.set | attributes.clear | attributes.propagation == 0 {
        return Ok(());
    }
    sys::set_mount_attributes(mount, attributes)
}

fn place(root: &RootFd, mount: &Mount, source: Option<&OwnedFd>) -> Result<OwnedFd> {
    let path = &mount.destination;
    let operation = || format!("find the mount point /{}", path.display());
    match source {
        Some(source) if file_type(source.as_fd()).doing(operation)? != FileType::Directory => {
            root.ensure_file(path).doing(operation)
        }
        // A link here would let writes meant for the kernel land in a file (CVE-2019-16884).
        None if matches!(mount.kind.as_str(), "proc" | "sysfs" | "cgroup2") => {
            match root.ensure_ordinary_directory(path) {
                Err(Errno::LOOP | Errno::NOTDIR) => Err(Error::invalid(
                    format!("mounts[/{}]", path.display()),
                    format!("filesystem {:?} must be mounted on ordinary directory", mount.kind),
                )),
                place => place.doing(operation),
            }
        }
        _ => root.ensure_directory(path).doing(operation),
    }
}

fn make(
    mount: &Mount,
    mode: Option<String>,
    pid_namespace: Option<&OwnedFd>,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(mount.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    let source = match mount.source.as_os_str().is_empty() {
        true => Path::new(&mount.kind),
        false => &mount.source,
    };
    rustix::mount::fsconfig_set_string(&context, "source", source)?;
    configure(context.as_fd(), mount)?;
    if let Some(namespace) = pid_namespace {
        rustix::mount::fsconfig_set_fd(&context, birth::PROCFS_OPTION, namespace)?;
    }
    if let Some(mode) = mode {
        rustix::mount::fsconfig_set_string(&context, "mode", mode)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::from_bits_retain(mount.options.attributes.set as u32);
    if is_filled_later(mount) {
        attributes.remove(MountAttrFlags::MOUNT_ATTR_RDONLY);
    }
    let made = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let mut labels = mount.options.data.iter().filter(|(key, _)| is_labelled_later(mount, key));
    if let Some((_, Some(label))) = labels.next() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&made, ".", flags, Mode::empty())?;
        let label = label.as_bytes();
        rustix::fs::fsetxattr(&root, "security.selinux", label, rustix::fs::XattrFlags::empty())?;
    }
    Ok(made)
}

/// Queues are those of the IPC namespace, whose file system is there already and takes no context.
fn is_labelled_later(mount: &Mount, key: &str) -> bool {
    mount.kind == "mqueue" && key == "context"
}

fn configure(context: BorrowedFd<'_>, mount: &Mount) -> Result<(), Errno> {
    for (key, value) in &mount.options.data {
        if is_labelled_later(mount, key) {
            continue;
        }
        match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(context, key.as_str(), value.as_str())?
            }
            None => rustix::mount::fsconfig_set_flag(context, key.as_str())?,
        }
    }
    Ok(())
}
