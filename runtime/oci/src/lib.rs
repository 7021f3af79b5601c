//! The process side of containers: the commands of runc, container init, pod shim, layer unpacker.
//!
//! The library holds what the agent shares with the executable: the [`protocol`] of the shim, its
//! [`frame`]s, and the default [`seccomp`] profile. [`run`] is the executable itself.

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
mod unpack;

pub use container::labels::apparmor_is_enabled;
pub use frame::{read_frame, write_frame};
pub use seccomp::default_seccomp;
pub use shim::sandbox::unpin;
pub use sys::map_mount_ids;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the executable with its arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Executed from a memfd it would be shown as a number. Only a name: failing does no harm.
    let _ = rustix::thread::set_name(c"berth-oci");
    let arguments: Vec<OsString> = arguments.into_iter().skip(1).collect();
    let texts: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    match texts.as_slice() {
        ["shim", "--dir", directory] => report(shim::run(&PathBuf::from(directory))),
        ["can-map-ids", ..] => report(container::probe::user_namespaces(&arguments[1..])),
        ["unpack", ..] => report(unpack::run(&arguments[1..])),
        _ => runc::run(arguments),
    }
}

fn report<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    eprintln!("berth-oci: {message}");
    ExitCode::FAILURE
}
