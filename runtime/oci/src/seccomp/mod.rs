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

use oci_spec::runtime::LinuxSeccompAction;

pub use compile::{Instruction, Listener, Moment, Program, compile};
pub use profile::default_seccomp;
pub use table::Abi;

/// Why a profile cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A rule notifies, and nobody listens.
    #[error("linux.seccomp.listenerPath: is no absolute path, which SCMP_ACT_NOTIFY needs")]
    ListenerPath,
    /// A rule notifies, and the listener could not be told where.
    #[error("linux.seccomp: SCMP_ACT_NOTIFY needs sendmsg to be allowed, to reach the listener")]
    HandOver,
    /// A foreign architecture is all the profile names.
    #[error("linux.seccomp.architectures: none of them is x86_64, x86 or x32")]
    Architectures,
    /// An argument index beyond the sixth.
    #[error("linux.seccomp.syscalls: argument index {0} is out of range 0-5")]
    ArgumentIndex(usize),
    /// An error number beside an action that returns none.
    #[error("linux.seccomp: errnoRet is given for {0:?}, which returns no error number")]
    ErrnoOf(LinuxSeccompAction),
    /// An error number that none of the kernel's is as large as.
    #[error("linux.seccomp: errnoRet {1} of {0:?} is larger than {2}")]
    Errno(LinuxSeccompAction, u32, u32),
    /// More instructions than the kernel accepts.
    #[error("linux.seccomp: the filter needs {0} instructions, the kernel accepts 4096")]
    TooLong(usize),
}
