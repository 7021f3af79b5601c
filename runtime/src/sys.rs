//! The crate's unsafe code: nothing but what has no safe form elsewhere.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor under the current runtime.
///
/// # Errors
/// When epoll cannot watch the descriptor.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, so it stays open and the same while registered.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    Ok(watched?)
}
