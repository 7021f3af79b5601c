//! System calls that no safe crate offers, as typed functions. All `unsafe` of this crate is here.
//!
//! Owns clone3(2), mount_setattr(2), seccomp(2), bpf(2), close_range(2), execve(2), signal masks and
//! a few ioctls. Everything else goes through `rustix`.

mod birth;
mod placement;
mod process;
mod restrict;
mod start;

pub(crate) use birth::{BIRTH_FLAGS, Cradle, Side};
pub(crate) use placement::{
    SchedulingAttributes, set_io_priority, set_memory_policy, set_personality, set_scheduling,
};
pub(crate) use process::{
    CloneFlags, Cloned, adopt_descriptor, block_signals, clone_sibling, clone3, close_range_from,
    execute, exit_now, forget_environment, ignore_broken_pipes, is_inherited, loopback_up,
    network_namespace, new_session_keyring, release_signals, reset_signals, signal_descriptor,
    signal_process, unshare, wait_signal,
};
pub use restrict::map_mount_ids;
pub(crate) use restrict::{
    DeviceInstruction, DeviceProgram, MountAttributes, attach_device_program,
    attached_device_programs, close_all_from, detach_device_program, load_device_program,
    load_filter, set_mount_attributes,
};
pub(crate) use start::{OVERLAY_FLAGS, SEALS};
