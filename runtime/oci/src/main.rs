//! The `berth-oci` executable; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_oci::run(std::env::args_os())
}
