//! Mounts of a container: made detached, then moved onto a descriptor inside the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::mount_options::Source;
use super::plan::Mount;
use super::rootfd::{RootFd, file_type};
use super::{Doing, Error, Result};
use crate::sys::{self, MountAttributes};

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

/// Opens the sources of all bind mounts, in the host's tree; others have none yet.
pub(super) fn open_sources(mounts: &[Mount]) -> Result<Vec<Option<OwnedFd>>> {
    mounts.iter().map(open_source).collect()
}

fn open_source(mount: &Mount) -> Result<Option<OwnedFd>> {
    let recursive = match mount.options.source {
        Source::New => return Ok(None),
        Source::Bind => OpenTreeFlags::empty(),
        Source::BindTree => OpenTreeFlags::AT_RECURSIVE,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
    rustix::mount::open_tree(CWD, mount.source.as_path(), flags).map(Some).doing(|| {
        format!("open {} to mount it at /{}", mount.source.display(), mount.destination.display())
    })
}

/// Attaches a mount at its destination.
pub(super) fn attach(root: &RootFd, mount: &Mount, source: Option<OwnedFd>) -> Result<()> {
    let operation = |what: &str| format!("{what} mount /{}", mount.destination.display());
    let place = place(root, mount, source.as_ref())?;
    let tree = match source {
        Some(tree) => {
            set(tree.as_fd(), mount.options.attributes)
                .doing(|| operation("set the options of"))?;
            tree
        }
        None => make(mount).doing(|| operation(&format!("make {}", mount.kind)))?,
    };
    set(tree.as_fd(), mount.options.tree_attributes).doing(|| operation("set the options of"))?;
    for propagation in &mount.options.propagation {
        set(tree.as_fd(), *propagation).doing(|| operation("set the propagation of"))?;
    }
    move_onto(tree.as_fd(), place.as_fd()).doing(|| operation("attach"))
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

fn make(mount: &Mount) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(mount.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    let source = match mount.source.as_os_str().is_empty() {
        true => Path::new(&mount.kind),
        false => &mount.source,
    };
    rustix::mount::fsconfig_set_string(&context, "source", source)?;
    for (key, value) in &mount.options.data {
        match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(&context, key.as_str(), value.as_str())?
            }
            None => rustix::mount::fsconfig_set_flag(&context, key.as_str())?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(mount.options.attributes.set as u32);
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
