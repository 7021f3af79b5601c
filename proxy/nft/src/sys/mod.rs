//! Calls into libnftnl, and one socket option. Nothing unsafe leaves this module.
//!
//! Owns the memory of libnftnl's objects: each wrapper frees its object, or hands it to the
//! object that then owns it. libnftnl does not check lengths, so every setter here copies its
//! argument into a zero-padded buffer as large as anything the library may read, and cuts what
//! is larger than the library's own fields; every message is built in a buffer larger than the
//! largest message callers may ask for.

mod expr;
mod object;

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nftnl_sys as ffi;
use nix::errno::Errno;
use nix::libc;

pub(crate) use object::{Piece, RuleContext, chain, elements, rule, set, table};

/// Size of libnftnl's value fields (`NFT_DATA_VALUE_MAXLEN`).
const VALUE_MAX: usize = 64;
/// Bytes of element payload a caller may put into one message.
pub(crate) const ELEMENTS_MAX: usize = 60_000;
/// Instructions a rule may have; 64 of the largest fit a message many times over.
pub(crate) const EXPRS_MAX: usize = 64;
/// Bytes of the buffer messages are built in: an attribute holds at most 64 KiB, and nothing
/// here builds more than one full attribute.
const BUFFER: usize = 160 * 1024;

/// A netlink message header, without its length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) message: u16,
    pub(crate) family: u8,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
}

/// Where messages are built, one at a time.
pub(crate) struct Buffer(Vec<u64>);

impl Buffer {
    pub(crate) fn new() -> Self {
        Self(vec![0; BUFFER / 8])
    }

    /// Starts a message and returns its header for libnftnl to append to.
    fn begin(&mut self, header: Header) -> NonNull<ffi::libc::nlmsghdr> {
        // SAFETY: the buffer is 8-byte aligned and far larger than the two headers written.
        let raw = unsafe {
            ffi::nftnl_nlmsg_build_hdr(
                self.0.as_mut_ptr().cast(),
                header.message,
                u16::from(header.family),
                header.flags,
                header.seq,
            )
        };
        allocated(raw)
    }

    /// The message begun last, as far as it was built.
    fn message(&self) -> &[u8] {
        let length = self.0.first().map_or(0, |word| *word as u32) as usize;
        let start = self.0.as_ptr().cast::<u8>();
        // SAFETY: `start` points to `BUFFER` initialised bytes, and the length is cut to that.
        unsafe { std::slice::from_raw_parts(start, length.min(BUFFER)) }
    }
}

/// libnftnl only returns null when it has no memory for a few bytes; nothing sensible can be
/// done then.
fn allocated<T>(raw: *mut T) -> NonNull<T> {
    NonNull::new(raw)
        .unwrap_or_else(|| std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u64; 64]>()))
}

/// A copy of a value that libnftnl may read past the end of.
struct Padded {
    bytes: [u8; VALUE_MAX * 2],
    len: u32,
}

impl Padded {
    fn new(value: &[u8]) -> Self {
        let value = &value[..value.len().min(VALUE_MAX)];
        let mut bytes = [0; VALUE_MAX * 2];
        bytes[..value.len()].copy_from_slice(value);
        Self { bytes, len: value.len() as u32 }
    }

    fn as_ptr(&self) -> *const std::ffi::c_void {
        self.bytes.as_ptr().cast()
    }
}

/// A copy of a name, padded like [`Padded`].
fn padded_name(name: &CStr) -> [u8; 320] {
    let bytes = name.to_bytes();
    let mut out = [0; 320];
    let len = bytes.len().min(255);
    out[..len].copy_from_slice(&bytes[..len]);
    out
}

/// Switches a boolean option of a netlink socket on.
pub(crate) fn enable_netlink_option(fd: BorrowedFd<'_>, option: libc::c_int) -> Result<(), Errno> {
    let one: libc::c_int = 1;
    // SAFETY: the option value is a live int of the length given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}
