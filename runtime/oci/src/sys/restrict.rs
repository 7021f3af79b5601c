//! Restrictions: mount attributes, seccomp filters, cgroup device programs, descriptor ranges.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::process::check;
use crate::seccomp::Program;

/// What mount_setattr(2) changes: `MOUNT_ATTR_*` and `MS_SHARED` and its like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    /// Attributes to set.
    pub(crate) set: u64,
    /// Attributes to clear.
    pub(crate) clear: u64,
    /// Propagation type, or 0.
    pub(crate) propagation: u64,
    /// Submounts too.
    pub(crate) recursive: bool,
}

/// Changes a mount's attributes. Linux 5.12.
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    change_mount(mount, &attr, if attributes.recursive { libc::AT_RECURSIVE } else { 0 })
}

/// Maps the ids of a detached mount by those of a user namespace. Linux 5.12; 5.19 for a layer of an
/// overlay.
///
/// # Errors
/// mount_setattr(2).
pub fn map_mount_ids(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    change_mount(mount, &attr, if recursive { libc::AT_RECURSIVE } else { 0 })
}

fn change_mount(mount: BorrowedFd<'_>, attr: &libc::mount_attr, recursive: i32) -> io::Result<()> {
    // SAFETY: the path is an empty C string, attr outlives the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    check(result as i32)
}

const FLAG_NEW_LISTENER: u32 = 1 << 3;

/// Puts this process under a seccomp filter, for good. Returns the descriptor of its notifications,
/// where it has them. Linux 5.0.
pub(crate) fn load_filter(program: &Program) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.instructions.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter =
        libc::sock_fprog { len: length, filter: program.instructions.as_ptr().cast_mut().cast() };
    // SAFETY: Instruction has sock_filter's layout; the kernel only reads, within the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            program.flags,
            &raw const filter,
        )
    };
    check(result as i32)?;
    if program.flags & FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the result is a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as i32) }))
}

/// Closes all descriptors between two numbers, both included. Linux 5.9.
pub(super) fn close_range(first: RawFd, last: RawFd, flags: u32) -> io::Result<()> {
    // SAFETY: takes no pointers; callers own what is closed or leave it to the exiting process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(result as i32)
}

/// Closes all descriptors from `first` on except `kept`.
pub(crate) fn close_all_from(mut first: RawFd, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.sort_unstable();
    for number in numbers {
        if number > first {
            close_range(first, number - 1, 0)?;
        }
        first = first.max(number + 1);
    }
    close_range(first, RawFd::MAX, 0)
}

/// One eBPF instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct DeviceInstruction {
    pub(crate) code: u8,
    /// Destination in the lower four bits, source in the upper.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// A `BPF_PROG_TYPE_CGROUP_DEVICE` program.
pub(crate) type DeviceProgram = Vec<DeviceInstruction>;

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_PROG_QUERY: i32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    attach_flags: u32,
    replaced: u32,
}

#[repr(C)]
struct QueryAttributes {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// Loads a device program.
pub(crate) fn load_device_program(program: &DeviceProgram) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    let mut tries = 0;
    let fd = loop {
        match bpf(BPF_PROG_LOAD, &attributes) {
            // The verifier gives way to signals.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < 30 => tries += 1,
            result => break result?,
        }
    };
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup, `replaced` leaving it in the same step. Linux 5.6.
pub(crate) fn attach_device_program(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replaced.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

/// Takes a device program from a cgroup.
pub(crate) fn detach_device_program(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
        replaced: 0,
    };
    bpf(BPF_PROG_DETACH, &attributes).map(drop)
}

/// The device programs attached to a cgroup itself.
pub(crate) fn attached_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; 64];
    let mut attributes = QueryAttributes {
        target: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
    };
    // The kernel writes the ids, as many as there is room for, and their count.
    bpf_mut(BPF_PROG_QUERY, &mut attributes)?;
    let known = ids.iter().take(attributes.count as usize);
    known
        .map(|id| {
            let fd = bpf(BPF_PROG_GET_FD_BY_ID, &[*id, 0, 0])?;
            // SAFETY: a new descriptor that nobody else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })
        .collect()
}

fn bpf<T>(command: i32, attributes: &T) -> io::Result<i32> {
    // SAFETY: the structure outlives the call and its size is given; these commands only read it, and
    // pointers inside are valid for the lengths given beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    check(result as i32)?;
    Ok(result as i32)
}

fn bpf_mut<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: as above, and the kernel may write to it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    check(result as i32)?;
    Ok(result as i32)
}
