//! The process side of containers: the commands of runc, container init, pod shim, layer unpacker.
//!
//! The library holds what the agent shares with the executable: the [`protocol`] of the shim, its
//! [`frame`]s, the default [`seccomp`] profile, systemd's [`units`], and how a [`terminal`] is read. [`run`] is
//! the executable itself.

mod cgroup;
mod clock;
mod container;
mod dbus;
pub mod frame;
#[cfg(test)]
mod fuzz;
mod log;
mod netlink;
pub mod protocol;
mod runc;
pub mod seccomp;
mod shim;
mod spec;
#[allow(unsafe_code)]
mod sys;
pub mod terminal;
pub mod units;
mod unpack;

pub use cgroup::kill as kill_cgroup;
pub use container::labels::apparmor_is_enabled;
pub use frame::{read_frame, write_frame};
pub use seccomp::default_seccomp;
pub use shim::sandbox::unpin;
pub use sys::map_mount_ids;

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};

/// Runs the executable with its arguments, the program's name first. Returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    prepare();
    let arguments: Vec<OsString> = arguments.into_iter().skip(1).collect();
    let texts: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    match texts.as_slice() {
        ["shim", "--dir", directory] => report(shim::run(&PathBuf::from(directory))),
        ["can-map-ids", ..] => report(container::probe::user_namespaces(&arguments[1..])),
        ["unpack", ..] => report(unpack::run(&arguments[1..])),
        _ => runc::run(arguments),
    }
}

/// What Rust's own entry does for a program.
fn prepare() {
    // Executed from a memfd it would be shown as a number. Only a name: failing does no harm.
    let _ = rustix::thread::set_name(c"berth-oci");
    if open_streams().is_err() {
        sys::exit_now(FAILURE.into());
    }
    // A reader that has gone is an error of a write, and not the end.
    sys::ignore_broken_pipes();
}

/// Opens what is closed of the standard streams: anything opened later would be taken for one.
fn open_streams() -> Result<(), Errno> {
    let streams = [stdin(), stdout(), stderr()];
    let mut looked_at = streams.map(|one| PollFd::from_borrowed_fd(one, PollFlags::empty()));
    poll(&mut looked_at, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    for one in looked_at.iter().filter(|one| one.revents().contains(PollFlags::NVAL)) {
        // The lowest number that is free.
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        debug_assert_eq!(null.as_raw_fd(), one.as_fd().as_raw_fd());
        std::mem::forget(null);
    }
    Ok(())
}

const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;

fn report<E: std::error::Error>(result: Result<(), E>) -> u8 {
    let Err(error) = result else { return SUCCESS };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let why = source.to_string();
        // Some tell their cause themselves.
        if !message.ends_with(&why) {
            message = format!("{message}: {why}");
        }
        cause = source.source();
    }
    eprintln!("berth-oci: {message}");
    FAILURE
}
