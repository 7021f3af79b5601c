//! A container: its specification, the plan made of it, and the child that carries the plan out.
//!
//! [`plan`] is pure and says no to what berth does not offer, naming the field. [`launch`] clones the
//! child; [`child`] is what it does until it executes the command; [`join`] is the same for a further
//! process. Before `pivot_root` no path of the container reaches a system call but through
//! [`rootfd::RootFd`]. OCI runtime spec, `config.md`, `config-linux.md`, `runtime.md`.

pub(crate) mod birth;
pub(crate) mod channel;
mod child;
mod command;
mod console;
mod copy_up;
mod credentials;
mod devices;
pub(crate) mod empty_root;
pub(crate) mod holder;
pub(crate) mod hooks;
mod host;
pub(crate) mod identity;
mod idmap;
pub(crate) mod interfaces;
pub(crate) mod join;
pub(crate) mod labels;
pub(crate) mod launch;
mod masks;
pub(crate) mod mount_options;
mod mount_plan;
pub(crate) mod mounts;
pub(crate) mod namespaces;
mod notify;
mod overlay;
mod placement;
pub(crate) mod plan;
pub(crate) mod probe;
mod process;
pub(crate) mod rootfd;
mod rootfs;
mod stage;
mod stdio;
pub(crate) mod sysctl;

use rustix::io::Errno;

use crate::protocol::{Failure, FailureKind};

/// Why a container could not be made or started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel refused an operation.
    #[error("{operation}: {source}")]
    System { operation: String, source: Errno },
    /// The specification asks for what cannot be had.
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
    /// The command could not be executed.
    #[error("{message}")]
    Command { exit_code: i32, message: String },
    /// systemd refused an operation, or did not answer.
    #[error("{operation}: {source}")]
    Bus { operation: String, source: crate::dbus::Error },
    /// A child said why.
    #[error("{0}")]
    Told(Failure),
    /// The seccomp profile cannot be honoured.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::Error),
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// The failure as the agent is told it; `otherwise` classes what the kernel refused.
    pub(crate) fn into_failure(self, otherwise: FailureKind) -> Failure {
        let (kind, exit_code) = match &self {
            Self::Told(failure) => return failure.clone(),
            Self::System { .. } | Self::Bus { .. } => (otherwise, None),
            Self::Invalid { .. } | Self::Seccomp(_) => (FailureKind::Invalid, None),
            Self::Command { exit_code, .. } => (FailureKind::Start, Some(*exit_code)),
        };
        Failure { kind, message: self.to_string(), exit_code }
    }
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the operation an error number belongs to.
pub(crate) trait Doing<T> {
    /// `operation` is made only on failure.
    fn doing<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, Errno> {
    fn doing<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::System { operation: operation().into(), source })
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::System {
            operation: operation().into(),
            source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })
    }
}
