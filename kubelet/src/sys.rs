//! The crate's unsafe code: nothing but what has no safe form elsewhere.

pub(crate) mod sampler;

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for a descriptor to be readable under the current runtime.
///
/// # Errors
/// When epoll cannot watch the descriptor.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, so it stays open and the same while registered.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

/// Addresses of this process at which a file is mapped, private and not to be written, and at which
/// there is nothing but what is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileRange {
    /// The first.
    pub(crate) start: usize,
    /// That after the last.
    pub(crate) end: usize,
}

/// Gives up the pages of a mapping; each is mapped again when it is used. A failure changes nothing.
pub(crate) fn unmap_pages(range: FileRange) {
    let length = range.end.saturating_sub(range.start);
    let start = std::ptr::with_exposed_provenance_mut::<c_void>(range.start);
    // SAFETY: the bytes of a mapping that is as in its file are the same when they are read again.
    let _ = unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
}

/// Gives free memory of the C library's heaps back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: it takes no pointers, and locks the heaps itself.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}
