//! Why a command failed, in the words that runc's callers look for.

use std::io;
use std::path::PathBuf;

use crate::container;
use crate::protocol::Failure;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Help was asked for, which is no failure.
    #[error("help")]
    Help,
    /// The arguments are wrong.
    #[error("{0}")]
    Usage(String),
    /// An id that could be a path or nothing at all.
    #[error("invalid container ID format: {0:?}")]
    InvalidId(String),
    /// There is no such container.
    #[error("container does not exist")]
    NotFound,
    /// There is one already.
    #[error("container with given ID already exists")]
    Exists,
    /// The container is not in a state for this.
    #[error("{0}")]
    State(String),
    /// `config.json` or another file of the caller is wrong.
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// The host refused an operation.
    #[error("{operation}")]
    Host { operation: String, source: io::Error },
    /// The container cannot be made.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The container's process could not be made or executed.
    #[error("unable to start container process: {0}")]
    Process(#[source] Failure),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The message with those of its causes.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        if let Self::Host { source, .. } = self {
            text = format!("{text}: {source}");
        }
        text
    }
}

impl From<lexopt::Error> for Error {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Names the operation that an error belongs to.
pub(super) trait During<T> {
    /// `operation` is made only on failure.
    fn during<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Host { operation: operation().into(), source: source.into() })
    }
}
