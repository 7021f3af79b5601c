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
//! The shim is executed from such a copy by the agent. The command line goes on from the overlay before
//! anything else of it runs (`sys::start`), and from a copy here.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{MemfdFlags, SealFlags, StatVfsMountFlags};

use super::error::During;
use super::{Error, Result};
use crate::sys;

const SEALS: SealFlags = SealFlags::from_bits_retain(sys::SEALS as u32);
/// More than any executable of ours.
const MAX_BYTES: usize = 1 << 30;

const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
const OVERLAY: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(sys::OVERLAY_FLAGS);

/// Goes on from what cannot be written to; returns where this is it already.
pub(super) fn ensure() -> Result<()> {
    let own = File::open("/proc/self/exe").during(|| "open this executable")?;
    if is_sealed(&own) || is_below_overlay(&own) {
        return Ok(());
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
        && rustix::fs::fstatvfs(own).is_ok_and(|fs| fs.f_flag.contains(OVERLAY))
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
