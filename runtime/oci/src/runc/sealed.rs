//! The executable out of the container's reach.
//!
//! A container can make its command, or one that joins it, execute `/proc/self/exe` (`#!/proc/self/exe`
//! does), keep that file open, and write to it once nobody executes it: the host's runtime would be its
//! own (CVE-2019-5736). So what is cloned into a container executes a file that nothing can write to:
//!
//! - the same file through an overlay of read-only layers, attached nowhere. Without an upper layer it
//!   cannot be made writable, whatever privileges one has; it costs no copy. Linux 5.15;
//! - where that cannot be had, a copy in memory that is sealed against writing.
//!
//! The shim is executed from such a copy by the agent; the command line goes on from either here.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::error::During;
use super::{Error, Result};
use crate::sys;

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);
/// More than any executable of ours.
const MAX_BYTES: usize = 1 << 30;

const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
/// Has nothing to do with any directory of executables: without an upper layer an overlay wants two
/// lower ones.
const OTHER_LAYER: &str = "/sys";
/// Nobody mounts executables so; it tells our overlay from others.
const ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW);
/// The same as statfs(2) tells it: ST_RDONLY, ST_NOSUID, ST_NODEV, ST_NOSYMFOLLOW.
const FLAGS: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(1 | 2 | 4 | 0x2000);

/// Goes on from what cannot be written to; returns where this is it already.
pub(super) fn ensure() -> Result<()> {
    let own = File::open("/proc/self/exe").during(|| "open this executable")?;
    if is_sealed(&own) || is_below_overlay(&own) {
        return Ok(());
    }
    if let Ok(file) = below_overlay(&own) {
        // Refused to us by a security module, say, it may yet be executed from memory.
        execute(&file);
    }
    let source = execute(&copy(&own)?);
    Err(Error::Host { operation: "execute the sealed copy of this executable".to_owned(), source })
}

fn is_sealed(own: &File) -> bool {
    rustix::fs::fcntl_get_seals(own).is_ok_and(|seals| seals.contains(SEALS))
}

fn is_below_overlay(own: &File) -> bool {
    let is_overlay = |fs: rustix::fs::StatFs| fs.f_type as u64 == OVERLAYFS_MAGIC;
    rustix::fs::fstatfs(own).is_ok_and(is_overlay)
        && rustix::fs::fstatvfs(own).is_ok_and(|fs| fs.f_flag.contains(FLAGS))
}

/// This executable's file as an overlay without an upper layer shows it.
fn below_overlay(own: &File) -> Result<OwnedFd, Errno> {
    let path = rustix::fs::readlink("/proc/self/exe", Vec::new())?.into_string();
    let path = path.map_err(|_| Errno::INVAL)?;
    let (directory, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    let directory = if directory.is_empty() { "/" } else { directory };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // By its descriptor: no character of its path needs escaping, and it may be long.
    let layers = format!("/proc/self/fd/{}:{OTHER_LAYER}", directory.as_raw_fd());
    rustix::mount::fsconfig_set_string(&context, "lowerdir", layers.as_str())?;
    // On by default it is said in the kernel's log that it cannot be had.
    rustix::mount::fsconfig_set_string(&context, "xino", "off")?;
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, ATTRIBUTES)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&mount, name, flags, Mode::empty())?;
    // Replaced meanwhile, or found by its path only where it was executed, it is another one.
    let (shown, own) = (rustix::fs::fstat(&file)?, rustix::fs::fstat(own)?);
    let alike = |one: &rustix::fs::Stat| (one.st_ino, one.st_size, one.st_mtime, one.st_mtime_nsec);
    if alike(&shown) == alike(&own) { Ok(file) } else { Err(Errno::STALE) }
}

fn copy(own: &File) -> Result<OwnedFd> {
    let operation = || "copy this executable into sealed memory";
    let copy =
        rustix::fs::memfd_create("berth-oci", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .during(operation)?;
    while rustix::fs::sendfile(copy.as_fd(), own, None, MAX_BYTES).during(operation)? > 0 {}
    rustix::fs::fcntl_add_seals(&copy, SEALS).during(operation)?;
    Ok(copy)
}

/// Goes on from a file; returns only the error.
fn execute(file: &OwnedFd) -> std::io::Error {
    // Neither arguments nor variables that the system handed over hold NUL bytes.
    let strings = |list: Vec<Vec<u8>>| -> Vec<CString> {
        list.into_iter().filter_map(|text| CString::new(text).ok()).collect()
    };
    let arguments = strings(std::env::args_os().map(OsStringExt::into_vec).collect());
    let environment = std::env::vars_os()
        .map(|(name, value)| [name.into_vec(), vec![b'='], value.into_vec()].concat());
    let environment = strings(environment.collect());
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    sys::execute(&path, &arguments, &environment)
}
