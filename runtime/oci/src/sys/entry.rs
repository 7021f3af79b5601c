//! Where the C library enters the executable. Rust's own entry looks for the end of the stack in
//! `/proc/self/maps` first, for a message on its overflow: as much work as reading a container's record.

use std::ffi::{c_char, c_int};

/// The arguments are those that the standard library has been given by then.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    // Not returned: what is printed and not yet written would be lost.
    std::process::exit(berth_oci::run(std::env::args_os()).into())
}
