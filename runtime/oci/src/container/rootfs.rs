//! The root file system: made detached, attached over the child's own `/`, pivoted to.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::overlay::{self, Layers};
use super::plan::Plan;
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

/// Makes the root file system, attached nowhere. `procfs` is one of the child's own; `ids` is the user
/// namespace that an overlay's owners are mapped by.
pub(super) fn make(
    plan: &Plan,
    ids: Option<BorrowedFd<'_>>,
    procfs: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    match &plan.rootfs {
        Rootfs::Overlay { lower, upper, work } => {
            let label = plan.mount_label.as_deref();
            overlay::make(&Layers { lower, upper, work, label }, ids, procfs)
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

/// Makes the root file system the child's `/`, below which the host's stays, but for its views of the
/// kernel: by them a user namespace in the container could mount others without what is masked.
pub(super) fn chroot(root: &RootFd, procfs: BorrowedFd<'_>) -> Result<()> {
    let operation = || "take away what the host shows of the kernel";
    let path = format!("{}/mountinfo", super::idmap::own_pid(procfs)?);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(procfs, path, flags, Mode::empty()).doing(operation)?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text).doing(operation)?;
    let mask = StatxFlags::from_bits_retain(STATX_MNT_ID);
    let stat = rustix::fs::statx(root, "", AtFlags::EMPTY_PATH, mask).doing(operation)?;
    for place in views_of_kernel(&text, stat.stx_mnt_id) {
        take_away(&place).doing(operation)?;
    }
    rustix::process::fchdir(root.as_fd()).doing(|| "enter the root file system")?;
    rustix::process::chroot(".").doing(|| "change the root")?;
    rustix::process::chdir("/").doing(|| "enter the new root")
}

/// `stx_mnt_id` is asked for: statx(2), Linux 5.8.
const STATX_MNT_ID: u32 = 0x1000;

/// Where procfs and sysfs are mounted but below the mount `root`, the topmost first. `mountinfo` as in
/// proc_pid_mountinfo(5).
fn views_of_kernel(mountinfo: &str, root: u64) -> Vec<PathBuf> {
    let mounts: Vec<(u64, u64, &str, &str)> = mountinfo.lines().filter_map(parse_mount).collect();
    let parents: HashMap<u64, u64> = mounts.iter().map(|(id, parent, ..)| (*id, *parent)).collect();
    let is_inside = |mut id: u64| {
        // No mount is deeper than there are mounts.
        for _ in 0..=mounts.len() {
            match parents.get(&id) {
                _ if id == root => return true,
                Some(parent) if *parent != id => id = *parent,
                _ => return false,
            }
        }
        false
    };
    let views = mounts
        .iter()
        .rev()
        .filter(|(id, _, _, kind)| matches!(*kind, "proc" | "sysfs") && !is_inside(*id));
    views.map(|(_, _, place, _)| unescape(place)).collect()
}

/// Id, parent, mount point and type of a line.
fn parse_mount(line: &str) -> Option<(u64, u64, &str, &str)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((id, parent, fields.nth(2)?, file_system.split(' ').next()?))
}

/// A path whose blanks and backslashes are written as octal numbers.
fn unescape(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let number = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(number.unwrap_or(b'\\'));
        bytes.extend_from_slice(&part.as_bytes()[if number.is_some() { 3 } else { 0 }..]);
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Unmounts, or covers what a user namespace keeps locked.
fn take_away(place: &Path) -> Result<(), Errno> {
    match rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(Errno::INVAL | Errno::PERM) => {}
        // Below something else, where nobody finds it by its path, or gone with another.
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    }
    let place = rustix::fs::open(place, PATH_DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let cover = super::masks::empty_directory()?;
    super::mounts::move_onto(cover.as_fd(), place.as_fd())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_s_views_of_the_kernel_are_told_from_the_container_s() {
        let mountinfo = "\
            20 1 8:1 / / rw - ext4 /dev/sda rw\n\
            21 20 0:5 / /proc rw,relatime shared:3 - proc proc rw\n\
            22 20 0:6 / /sys rw - sysfs sysfs rw\n\
            23 22 0:7 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
            24 20 0:5 / /a\\040b\\134c rw - proc proc rw\n\
            40 20 0:30 / / rw - overlay overlay rw\n\
            41 40 0:31 / /proc rw - proc proc rw\n\
            42 41 0:31 /sys /proc/sys ro - proc proc rw\n\
            broken line\n";
        let places = views_of_kernel(mountinfo, 40);
        assert_eq!(places, ["/a b\\c", "/sys", "/proc"].map(PathBuf::from));
        assert_eq!(views_of_kernel("1 1 0:1 / / rw - proc p rw\n", 9), [PathBuf::from("/")]);
        assert!(views_of_kernel(mountinfo, 20).is_empty());
    }

    #[test]
    fn what_is_no_octal_number_stays() {
        for (text, path) in [("/a", "/a"), ("/\\011", "/\t"), ("/\\9x", "/\\9x"), ("\\", "\\")] {
            assert_eq!(unescape(text), Path::new(path), "{text}");
        }
    }
}
