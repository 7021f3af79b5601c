//! The root file system: made detached, attached over the child's own `/`, pivoted to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::overlay::{self, Layers};
use super::rootfd::RootFd;
use super::{Doing, Result};
use crate::protocol::Rootfs;
use crate::sys::{self, MountAttributes};

const PATH_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(super) fn open_root() -> Result<OwnedFd> {
    rustix::fs::open("/", PATH_DIRECTORY, Mode::empty()).doing(|| "open the root directory")
}

/// Cuts the child's mounts off from the host's: nothing it mounts is seen outside, unless the
/// container's root is to be shared.
pub(super) fn cut_off(wanted: Option<MountAttributes>) -> Result<()> {
    let root = open_root()?;
    let default =
        MountAttributes { propagation: libc::MS_SLAVE, recursive: true, ..Default::default() };
    let shared = |wanted: &MountAttributes| wanted.propagation == libc::MS_SHARED;
    let attributes = match wanted.filter(shared) {
        Some(shared) => MountAttributes { recursive: true, ..shared },
        None => default,
    };
    sys::set_mount_attributes(root.as_fd(), attributes).doing(|| "detach mounts from the host's")
}

/// Makes the root file system, attached nowhere. `procfs` is one of the child's own.
pub(super) fn make(rootfs: &Rootfs, procfs: BorrowedFd<'_>) -> Result<OwnedFd> {
    match rootfs {
        Rootfs::Overlay { lower, upper, work } => {
            overlay::make(&Layers { lower, upper, work }, procfs)
        }
        Rootfs::Directory(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            rustix::mount::open_tree(rustix::fs::CWD, path.as_path(), flags)
                .doing(|| format!("bind the root file system {}", path.display()))
        }
    }
}

/// Makes the host's root mount private, so that what is attached over it stays with the child.
pub(super) fn hide_root() -> Result<OwnedFd> {
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    let host = open_root()?;
    sys::set_mount_attributes(host.as_fd(), private).doing(|| "make the root mount private")?;
    Ok(host)
}

/// Attaches the root file system over a directory of the host, in the child's own mount namespace:
/// over `/` lookups of the host's paths pass below it. Sources of binds must have been opened: the
/// host's root mount stops being shared here. A directory that is out of the child's reach, or that
/// may not be shared as it is, is left for `/`.
pub(super) fn attach(rootfs: OwnedFd, place: &Path) -> Result<RootFd> {
    let host = hide_root()?;
    let place = match place == Path::new("/") {
        true => None,
        false => rustix::fs::open(place, PATH_DIRECTORY, Mode::empty()).ok(),
    };
    let tree = MountAttributes {
        propagation: libc::MS_PRIVATE,
        recursive: true,
        ..MountAttributes::default()
    };
    sys::set_mount_attributes(rootfs.as_fd(), tree)
        .doing(|| "make the root file system private")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let attached = match place {
        Some(place) => rustix::mount::move_mount(&rootfs, "", &place, "", flags),
        None => Err(Errno::NOENT),
    };
    if attached.is_err() {
        rustix::mount::move_mount(&rootfs, "", &host, "", flags)
            .doing(|| "attach the root file system")?;
    }
    Ok(RootFd::from(rootfs))
}

/// Makes the root file system the child's `/`, below which the host's stays.
pub(super) fn chroot(root: &RootFd) -> Result<()> {
    rustix::process::fchdir(root.as_fd()).doing(|| "enter the root file system")?;
    rustix::process::chroot(".").doing(|| "change the root")?;
    rustix::process::chdir("/").doing(|| "enter the new root")
}

/// Makes the root file system the child's `/` and lets go of the host's.
pub(super) fn pivot(root: &RootFd) -> Result<()> {
    let old = open_root()?;
    rustix::process::fchdir(root.as_fd()).doing(|| "enter the root file system")?;
    rustix::process::pivot_root(".", ".").doing(|| "pivot to the root file system")?;
    rustix::process::fchdir(&old).doing(|| "enter the old root")?;
    // Unmounting must not reach the host through what is still shared.
    let slave =
        MountAttributes { propagation: libc::MS_SLAVE, recursive: true, ..Default::default() };
    sys::set_mount_attributes(old.as_fd(), slave)
        .doing(|| "detach the old root from the host's")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "let go of the old root")?;
    rustix::process::chdir("/").doing(|| "enter the new root")
}
