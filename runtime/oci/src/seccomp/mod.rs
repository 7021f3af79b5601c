//! Seccomp filters: the OCI profile compiled into a classic BPF program, and the default profile.
//!
//! [`rules`] turns a profile into numbered rules per ABI, [`compile`] turns those into instructions,
//! [`table`] knows the system call numbers, [`profile`] holds the default. Loading the program is the
//! container child's last act and lives with it. OCI runtime spec, `config-linux.md`, Seccomp;
//! seccomp(2).

mod assembler;
mod compile;
mod profile;
mod rules;
mod table;

pub use compile::{Instruction, Program, compile};
pub use profile::default_seccomp;
pub use table::Abi;

/// Why a profile cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An action berth does not offer.
    #[error("linux.seccomp: action {0} is not supported")]
    Action(String),
    /// A filter flag berth does not offer.
    #[error("linux.seccomp.flags: {0} is not supported")]
    Flag(String),
    /// A foreign architecture is all the profile names.
    #[error("linux.seccomp.architectures: none of them is x86_64, x86 or x32")]
    Architectures,
    /// An argument index beyond the sixth.
    #[error("linux.seccomp.syscalls: argument index {0} is out of range 0-5")]
    ArgumentIndex(usize),
    /// More instructions than the kernel accepts.
    #[error("linux.seccomp: the filter needs {0} instructions, the kernel accepts 4096")]
    TooLong(usize),
}
