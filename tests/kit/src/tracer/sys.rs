//! ptrace(2) and waitpid(2) as typed functions. All `unsafe` of this crate is here.

use std::io;

use libc::{c_int, c_long, c_uint, pid_t};

/// What a thread has stopped for.
pub(super) enum Stop {
    /// It ended.
    End,
    /// A system call begins or has ended.
    Call,
    /// It is to get this signal.
    Signal(c_int),
    /// Something else, which it may pass.
    Other,
}

/// One side of a system call.
pub(super) enum Side {
    /// It begins: its number and arguments.
    Entry(c_long, [u64; 6]),
    /// It has ended, well or not.
    Exit { well: bool },
    /// Neither.
    None,
}

fn done(result: c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn request(request: c_uint, thread: pid_t, data: c_int) -> io::Result<()> {
    // SAFETY: none of the requests made with this function reads or writes memory of this process.
    done(unsafe { libc::ptrace(request, thread, 0 as c_long, c_long::from(data)) })
}

/// Becomes the tracer of a thread and of the threads that it will make, and stops it soon. Processes
/// that it makes are left alone.
pub(super) fn seize(thread: pid_t) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
    request(libc::PTRACE_SEIZE, thread, options)?;
    request(libc::PTRACE_INTERRUPT, thread, 0)
}

/// Lets a thread that has stopped run until a system call begins or ends.
pub(super) fn resume(thread: pid_t, signal: c_int) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, thread, signal)
}

/// Gives up a thread that has stopped.
pub(super) fn detach(thread: pid_t) -> io::Result<()> {
    request(libc::PTRACE_DETACH, thread, 0)
}

/// Waits for what the calling thread traces. Children of other threads are not waited for.
pub(super) fn wait() -> io::Result<(pid_t, Stop)> {
    let mut status = 0;
    // SAFETY: the status is written to an integer that lives as long as the call.
    let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    done(c_long::from(thread))?;
    let stop = match libc::WSTOPSIG(status) {
        _ if !libc::WIFSTOPPED(status) => Stop::End,
        _ if status >> 16 != 0 => Stop::Other,
        signal if signal == libc::SIGTRAP | 0x80 => Stop::Call,
        signal => Stop::Signal(signal),
    };
    Ok((thread, stop))
}

/// What the system call is that a thread has stopped at.
pub(super) fn call(thread: pid_t) -> io::Result<Side> {
    // SAFETY: all of it are integers, for which zero is a value.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes to `info`, which lives as long as the call.
    done(unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, &raw mut info) })?;
    Ok(match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: by `op` it is this member that was written.
            let entry = unsafe { info.u.entry };
            Side::Entry(entry.nr.cast_signed(), entry.args)
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: by `op` it is this member that was written.
            let exit = unsafe { info.u.exit };
            Side::Exit { well: exit.is_error == 0 }
        }
        _ => Side::None,
    })
}
