//! How this process is run: sched_setattr, ioprio_set, set_mempolicy, personality.

use std::io;
use std::mem::size_of;

use super::process::check;

/// What sched_setattr(2) takes: `struct sched_attr` without its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SchedulingAttributes {
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    /// Nanoseconds, as the next two.
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets the scheduling of this process.
pub(crate) fn set_scheduling(attributes: &SchedulingAttributes) -> io::Result<()> {
    let SchedulingAttributes { policy, flags, nice, priority, runtime, deadline, period } =
        *attributes;
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the structure outlives the call and holds its size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(result as i32)
}

/// Sets the priority of this process' input and output, class and level.
pub(crate) fn set_io_priority(priority: u32) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) };
    check(result as i32)
}

/// Sets from which nodes this process takes memory.
pub(crate) fn set_memory_policy(mode: i32, nodes: &[usize]) -> io::Result<()> {
    let bits = u64::BITS as usize;
    let mut mask = vec![0u64; nodes.iter().max().map_or(0, |highest| highest / bits + 1)];
    for node in nodes {
        mask[node / bits] |= 1 << (node % bits);
    }
    // The kernel reads one bit less than it is told of.
    let length = if mask.is_empty() { 0 } else { mask.len() * bits + 1 };
    let pointer = if mask.is_empty() { std::ptr::null() } else { mask.as_ptr() };
    // SAFETY: the mask outlives the call and has the bits given.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, length) };
    check(result as i32)
}

/// Sets the execution domain.
pub(crate) fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::personality(persona) })
}
