//! Processes: clone3, execve, signals, descriptors by number.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Namespaces and placement of a new process.
pub(crate) struct CloneFlags<'fd> {
    /// `CLONE_NEW*`.
    pub(crate) namespaces: u64,
    /// The cgroup it is born into; the parent's when absent.
    pub(crate) cgroup: Option<BorrowedFd<'fd>>,
}

/// `libc`'s constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone this is.
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The old one, with the child's process id in its own PID namespace.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Clones this process, copying its memory. Linux 5.7.
///
/// The caller must be single-threaded, as the whole of `berth-oci` is: a lock held by another thread
/// would stay locked in the child.
pub(crate) fn clone3(flags: &CloneFlags<'_>) -> io::Result<Cloned> {
    // SAFETY: an all-zero clone_args is valid: plain integers.
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.flags = flags.namespaces;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = flags.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    clone_by(args)
}

/// The same with the caller's parent as the parent of the new process.
pub(crate) fn clone_sibling(namespaces: u64) -> io::Result<Cloned> {
    // SAFETY: an all-zero clone_args is valid: plain integers.
    let mut args: libc::clone_args = unsafe { zeroed() };
    // It ends with the caller's own exit signal.
    args.flags = namespaces | libc::CLONE_PARENT as u64;
    clone_by(args)
}

fn clone_by(mut args: libc::clone_args) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    args.flags |= libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    // SAFETY: args outlives the call and holds valid pointers; without CLONE_VM the child gets a copy
    // of the stack and returns here as after fork.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<libc::clone_args>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just stored a new descriptor there that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Leaves namespaces (`CLONE_NEW*`) for new ones.
pub(crate) fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: takes no pointers; the flags passed never unshare file descriptors.
    check(unsafe { libc::unshare(namespaces) })
}

/// Ends this process at once, running no destructors.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// Replaces this process; returns only the error.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let mut list: Vec<*const libc::c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        list.push(std::ptr::null());
        list
    };
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: both arrays are null-terminated and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Overwrites the environment that this process began with.
pub(crate) fn forget_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: nobody else in this single-threaded process uses it meanwhile.
    let mut entry = unsafe { environ };
    // SAFETY: null, or a list that ends in null, not yet reached.
    while let Some(text) = unsafe { entry.as_ref() }.filter(|text| !text.is_null()) {
        // SAFETY: a string that ends in NUL.
        let length = unsafe { libc::strlen(*text) };
        // SAFETY: within the string, which belongs to this process and is writable.
        unsafe { std::ptr::write_bytes(*text, 0, length) };
        entry = entry.wrapping_add(1);
    }
}

/// Takes ownership of an inherited descriptor, if it is open.
pub(crate) fn adopt_descriptor(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return None;
    }
    // SAFETY: it is open and inherited: nothing else in this process owns it, being called once at start.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Leaves the session keyring for a new, empty one.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: without a name no pointer is read.
    let key =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    check(key as i32)
}

/// Whether a descriptor came from whoever executed this program: it is open, and would stay open for
/// the next one, which none of our own would.
pub(crate) fn is_inherited(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

/// Closes all descriptors from `first` on. Owners of such descriptors must not be dropped afterwards.
pub(crate) fn close_range_from(first: RawFd) -> io::Result<()> {
    super::restrict::close_range(first, RawFd::MAX, 0)
}

fn all_signals() -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid empty set.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: set is a valid sigset_t.
    unsafe { libc::sigfillset(&mut set) };
    set
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_signals() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Unblocks every signal.
pub(crate) fn release_signals() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK)
}

fn mask(how: i32) -> io::Result<()> {
    // SAFETY: the set is valid and no old mask is asked for.
    check(unsafe { libc::sigprocmask(how, &all_signals(), std::ptr::null_mut()) })
}

/// Gives every signal its default disposition; ignored ones would stay so across execve.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid disposition; invalid signal numbers are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Has writes to pipes that nobody reads fail; they would end this process otherwise.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is a valid disposition, and SIGPIPE a valid signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// A non-blocking descriptor that becomes readable when one of `signals` arrives.
pub(crate) fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid empty set.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    for signal in signals {
        // SAFETY: set is a valid sigset_t.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    // SAFETY: set is valid.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits for any blocked signal and takes it.
pub(crate) fn wait_signal() {
    // SAFETY: the set is valid and no information is asked for.
    unsafe { libc::sigwaitinfo(&all_signals(), std::ptr::null_mut()) };
}

/// Sets the loopback interface of the present network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid: integers and a union of plain data.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
}

/// The network namespace that a socket was made in. Linux 4.9.
pub(crate) fn network_namespace(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: SIOCGSKNS takes no pointer.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGSKNS) };
    check(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal, by number, to the process of a pidfd. Linux 5.1.
pub(crate) fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result as i32)
}
