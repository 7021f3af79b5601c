//! Seccomp filters: the OCI profile compiled into a classic BPF program, and the default profile.
//!
//! [`rules`] turns a profile into numbered rules per ABI, [`compile`] turns those into instructions,
//! [`platform`] knows kernels, [`table`] their system call numbers, [`profile`] holds the default, [`verdict`]
//! asks a program. Loading the program is the container child's last act and lives with it. OCI runtime
//! spec, `config-linux.md`, Seccomp; seccomp(2).

mod assembler;
mod compile;
mod platform;
mod profile;
mod rules;
mod table;
mod verdict;

use oci_spec::runtime::{Arch, LinuxSeccompAction};

pub use compile::{Instruction, Listener, Moment, Program, compile, compile_for};
pub use platform::{ALL as PLATFORMS, Abi, Platform};
pub use profile::default_seccomp;
pub(crate) use verdict::Call;

/// Why a profile cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A rule notifies, and nobody listens.
    #[error("linux.seccomp.listenerPath: is no absolute path, which SCMP_ACT_NOTIFY needs")]
    ListenerPath,
    /// A rule notifies, and the listener could not be told where.
    #[error("linux.seccomp: SCMP_ACT_NOTIFY needs sendmsg to be allowed, to reach the listener")]
    HandOver,
    /// Foreign architectures are all the profile names.
    #[error("linux.seccomp.architectures: {} are of other kernels than this one", list(.0))]
    Architectures(Vec<Arch>),
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

fn list(architectures: &[Arch]) -> String {
    let names: Vec<String> = architectures.iter().map(Arch::to_string).collect();
    names.join(", ")
}
