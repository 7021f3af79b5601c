//! Why an operation of the pod network failed.

use std::io;
use std::path::PathBuf;

use crate::{config, ipam};

/// A failed operation of the pod network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("pod network configuration: {0}")]
    Config(#[from] config::Error),
    /// A request that could never be met.
    #[error("{0}")]
    Request(String),
    /// No address could be leased, or the leases cannot be stored.
    #[error(transparent)]
    Lease(#[from] ipam::Error),
    /// A network namespace could not be entered.
    #[error("cannot enter network namespace {}", path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kernel setting could not be written.
    #[error("cannot set {name} to {value}")]
    Sysctl {
        /// Its name below `/proc/sys/net`.
        name: String,
        /// The value it should have.
        value: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a change to links, addresses, neighbours or routes.
    #[error("cannot {action}")]
    Netlink {
        /// What was tried.
        action: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a change to nftables.
    #[error("cannot {action}")]
    Firewall {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<berth_nft::Error>,
    },
    /// Something of the network is missing or changed.
    #[error("pod network is not ready: {0}")]
    NotReady(String),
    /// Several steps failed; all were tried.
    #[error("{}", display_all(.0))]
    Several(Vec<Error>),
    /// A worker thread of the network has ended.
    #[error("the pod network has stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn netlink(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Netlink { action, source }
    }

    /// One error of many: none, the only one, or all of them.
    pub(crate) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

fn display_all(errors: &[Error]) -> String {
    let chain = |error: &Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}
