//! The `berth-oci` executable; see the library. A test harness has an entry of its own.

#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
#[allow(unsafe_code)]
#[path = "sys/entry.rs"]
mod sys;

// It has the symbol that `build.rs` names as the entry.
#[cfg(test)]
use berth_oci as _;
