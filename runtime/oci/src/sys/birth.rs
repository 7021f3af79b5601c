//! A last clone under a seccomp filter: clone(2) as filters know it, whose child's number is told by
//! memory, as other ways may be closed by then.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

use super::process::check;

/// Which side of the last clone this is.
pub(crate) enum Side {
    Child,
    /// Whose parent is the child's as well.
    Sibling,
}

/// Where a child's number is put: a page that its keeper shares with the process that clones it, and
/// that the child has not.
#[derive(Debug)]
pub(crate) struct Cradle {
    page: NonNull<AtomicI32>,
}

const PAGE: usize = 4096;

/// The flags of the clone: the child's parent is the caller's, and its number is put down.
pub(crate) const BIRTH_FLAGS: u64 = (libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID) as u64;

impl Cradle {
    /// An empty one. To be made before the process that clones is.
    pub(crate) fn new() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel finds room.
        let page =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1 as RawFd, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Not null: the kernel maps nothing there that it is not asked to.
        NonNull::new(page.cast())
            .map(|page| Self { page })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// The child's number, once it is there; it runs only afterwards.
    pub(crate) fn child(&self) -> Option<i32> {
        // SAFETY: the page is mapped as long as this lives, aligned, and changed atomically alone.
        let number = unsafe { self.page.as_ref() }.load(Ordering::Acquire);
        (number > 0).then_some(number)
    }

    /// Keeps the page from children of this process.
    pub(crate) fn withhold(&self) -> io::Result<()> {
        // SAFETY: the whole of a mapping that stays as it is for this process.
        check(unsafe { libc::madvise(self.page.as_ptr().cast(), PAGE, libc::MADV_DONTFORK) })
    }

    /// Clones this process, copying its memory, without this page. In the child there must be no use of
    /// this any more, nor of what borrows it.
    pub(crate) fn clone_child(&self) -> io::Result<Side> {
        let none = 0usize;
        // SAFETY: without a stack and CLONE_VM the child returns here as after fork; the page takes the
        // number and outlives the call.
        let result = unsafe {
            libc::syscall(libc::SYS_clone, BIRTH_FLAGS, none, self.page.as_ptr(), none, none)
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(Side::Child),
            _ => Ok(Side::Sibling),
        }
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody else refers to.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
