//! The process side of containers: container init, pod shim, layer unpacker.
//!
//! The library holds what the agent shares with the executable: the [`protocol`] of the shim, its
//! [`frame`]s, and the default [`seccomp`] profile. [`run`] is the executable itself.

mod cgroup;
mod clock;
mod container;
pub mod frame;
mod log;
pub mod protocol;
pub mod seccomp;
#[allow(unsafe_code)]
mod sys;

pub use frame::{read_frame, write_frame};
pub use seccomp::default_seccomp;
