//! The root file system: made detached, attached over the child's own `/`, pivoted to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::rootfd::RootFd;
use super::{Doing, Error, Result};
use crate::protocol::Rootfs;
use crate::sys::{self, MountAttributes};

const PATH_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_root() -> Result<OwnedFd> {
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

/// Makes the root file system, attached nowhere.
pub(super) fn make(rootfs: &Rootfs) -> Result<OwnedFd> {
    match rootfs {
        Rootfs::Overlay { lower, upper, work } => {
            let options =
                |name: &str, path: &Path| format!("set overlay {name} {}", path.display());
            let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
                .doing(|| "open an overlay")?;
            set_lower(context.as_fd(), lower)?;
            for (name, path) in [("upperdir", upper), ("workdir", work)] {
                rustix::mount::fsconfig_set_string(&context, name, path.as_path())
                    .doing(|| options(name, path))?;
            }
            rustix::mount::fsconfig_set_string(&context, "source", "overlay")
                .doing(|| "name an overlay")?;
            rustix::mount::fsconfig_create(&context).doing(|| {
                format!("make an overlay of {} layers below {}", lower.len(), upper.display())
            })?;
            rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
                .doing(|| "mount the overlay")
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

fn set_lower(context: std::os::fd::BorrowedFd<'_>, lower: &[std::path::PathBuf]) -> Result<()> {
    for (index, path) in lower.iter().enumerate() {
        match rustix::mount::fsconfig_set_string(context, "lowerdir+", path.as_path()) {
            // Linux before 6.8 takes them as one string of at most 255 bytes.
            Err(Errno::INVAL) if index == 0 => return set_joined_lower(context, lower),
            result => result.doing(|| format!("add overlay layer {}", path.display()))?,
        }
    }
    Ok(())
}

fn set_joined_lower(
    context: std::os::fd::BorrowedFd<'_>,
    lower: &[std::path::PathBuf],
) -> Result<()> {
    let escaped: Vec<String> = lower
        .iter()
        .map(|path| path.display().to_string().replace('\\', "\\\\").replace(':', "\\:"))
        .collect();
    let joined = escaped.join(":");
    if joined.len() > 255 {
        let reason = "this kernel takes lower directories of at most 255 bytes together";
        return Err(Error::invalid("rootfs.overlay.lower", reason));
    }
    rustix::mount::fsconfig_set_string(context, "lowerdir", joined.as_str())
        .doing(|| format!("set overlay layers {joined}"))
}

/// Attaches the root file system over the child's `/`, where lookups of the host's paths pass below
/// it. Sources of binds must have been opened: the host's root mount stops being shared here.
pub(super) fn attach(rootfs: OwnedFd) -> Result<RootFd> {
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    let host = open_root()?;
    sys::set_mount_attributes(host.as_fd(), private).doing(|| "make the root mount private")?;
    let tree = MountAttributes { recursive: true, ..private };
    sys::set_mount_attributes(rootfs.as_fd(), tree)
        .doing(|| "make the root file system private")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&rootfs, "", &host, "", flags)
        .doing(|| "attach the root file system")?;
    Ok(RootFd::from(rootfs))
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
