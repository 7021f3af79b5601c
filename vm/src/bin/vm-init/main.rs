//! The guest's side: PID 1 of the initramfs, then either PID 1 of the guest or a systemd unit.
//!
//! Owns bringing the guest up (`boot`) and running jobs for the host (`agent`). It sees foreign
//! input only from the host that booted it.

mod agent;
mod boot;
mod job;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = if std::process::id() == 1 { boot::boot() } else { agent::serve() };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The console: the host prints its end when the guest does not become ready.
            eprintln!("vm-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}
