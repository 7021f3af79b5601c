//! Masked and read-only paths.
//!
//! Files are masked by the host's null device through a descriptor that is verified, never by a path
//! of the container (CVE-2025-31133); directories by one shared, empty, read-only tmpfs.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use super::mounts::{copy, move_onto};
use super::rootfd::{RootFd, file_type};
use super::{Doing, Result};
use crate::sys::{self, MountAttributes};

/// The host's null device as a mount that is attached nowhere yet, verified.
pub(super) fn open_null() -> Result<OwnedFd> {
    let operation = || "open the null device";
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).doing(operation)?;
    let stat = rustix::fs::fstat(&null).doing(operation)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    match is_null {
        true => copy(null.as_fd(), OpenTreeFlags::empty()).doing(operation),
        false => Err(Errno::NODEV).doing(operation),
    }
}

/// Makes paths read-only.
pub(super) fn protect(root: &RootFd, paths: &[PathBuf]) -> Result<()> {
    let read_only = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    for path in paths {
        let operation = || format!("make {} read-only", path.display());
        let Some(place) = existing(root, path).doing(operation)? else {
            continue;
        };
        let tree = copy(place.as_fd(), OpenTreeFlags::AT_RECURSIVE).doing(operation)?;
        sys::set_mount_attributes(tree.as_fd(), read_only).doing(operation)?;
        move_onto(tree.as_fd(), place.as_fd()).doing(operation)?;
    }
    Ok(())
}

/// Hides paths. A cover is moved onto the first of them; the others get copies of it there.
pub(super) fn mask(root: &RootFd, paths: &[PathBuf], null: &OwnedFd) -> Result<()> {
    let mut empty: Option<OwnedFd> = None;
    let mut null_is_attached = false;
    for path in paths {
        let operation = || format!("mask {}", path.display());
        let Some(place) = existing(root, path).doing(operation)? else {
            continue;
        };
        let is_directory = file_type(place.as_fd()).doing(operation)? == FileType::Directory;
        let attached = match (is_directory, &empty) {
            (false, _) => null_is_attached.then_some(null),
            (true, first) => first.as_ref(),
        };
        if let Some(first) = attached {
            let cover = copy(first.as_fd(), OpenTreeFlags::empty()).doing(operation)?;
            move_onto(cover.as_fd(), place.as_fd()).doing(operation)?;
        } else if is_directory {
            let made = empty_directory().doing(operation)?;
            move_onto(made.as_fd(), place.as_fd()).doing(operation)?;
            empty = Some(made);
        } else {
            move_onto(null.as_fd(), place.as_fd()).doing(operation)?;
            null_is_attached = true;
        }
    }
    Ok(())
}

fn existing(root: &RootFd, path: &std::path::Path) -> Result<Option<OwnedFd>, Errno> {
    match root.find(path) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An empty read-only directory, attached nowhere.
pub(super) fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", "0")?;
    rustix::mount::fsconfig_set_string(&context, "nr_blocks", "1")?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
