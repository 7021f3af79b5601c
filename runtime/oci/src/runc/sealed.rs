//! The executable out of the container's reach.
//!
//! A container can make its command, or one that joins it, execute `/proc/self/exe` (`#!/proc/self/exe`
//! does), keep that file open, and write to it once nobody executes it: the host's runtime would be its
//! own (CVE-2019-5736). So what is cloned into a container executes a copy in memory that is sealed
//! against writing. The shim is executed from such a copy by the agent; the command line makes it here.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{MemfdFlags, SealFlags};

use super::error::During;
use super::{Error, Result};
use crate::sys;

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);
/// More than any executable of ours.
const MAX_BYTES: usize = 1 << 30;

/// Goes on from a sealed copy; returns where this is one already.
pub(super) fn ensure() -> Result<()> {
    let operation = || "open this executable";
    let own = File::open("/proc/self/exe").during(operation)?;
    if rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)) {
        return Ok(());
    }
    let operation = || "copy this executable into sealed memory";
    let copy =
        rustix::fs::memfd_create("berth-oci", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .during(operation)?;
    while rustix::fs::sendfile(copy.as_fd(), &own, None, MAX_BYTES).during(operation)? > 0 {}
    rustix::fs::fcntl_add_seals(&copy, SEALS).during(operation)?;
    // Neither arguments nor variables that the system handed over hold NUL bytes.
    let strings = |list: Vec<Vec<u8>>| -> Vec<CString> {
        list.into_iter().filter_map(|text| CString::new(text).ok()).collect()
    };
    let arguments = strings(std::env::args_os().map(OsStringExt::into_vec).collect());
    let environment = std::env::vars_os()
        .map(|(name, value)| [name.into_vec(), vec![b'='], value.into_vec()].concat());
    let environment = strings(environment.collect());
    let path = CString::new(format!("/proc/self/fd/{}", copy.as_raw_fd())).unwrap_or_default();
    let source = sys::execute(&path, &arguments, &environment);
    Err(Error::Host { operation: "execute the sealed copy of this executable".to_owned(), source })
}
