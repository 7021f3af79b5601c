//! A container's life over the shim's socket: create, start, signal, exec, exit, delete, shutdown.

mod fixture;

use berth_oci::protocol::*;
use fixture::{Shim, sandbox};

#[test]
fn a_container_runs_and_its_output_and_exit_code_are_kept() {
    let mut shim = Shim::start(&sandbox());
    let (exit, text) = shim.run("one", "echo hello; hostname; echo $HOME $A; exit 7");
    assert_eq!((exit.exit_code, text.as_str()), (7, "hello\npod-one\n/root b\n"));
    shim.shut_down();
}
