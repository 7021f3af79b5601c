//! What can fail when talking to nf_tables, and which object it was about.

use nix::errno::Errno;

use crate::Family;

/// What a message asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Create or update.
    Add,
    /// Create, failing when present.
    Create,
    /// Remove.
    Delete,
    /// Read.
    Dump,
}

/// The kind of object a message was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A table.
    Table,
    /// A chain.
    Chain,
    /// A rule.
    Rule,
    /// A set or map.
    Set,
    /// Elements of a set or map.
    Elements,
    /// The transaction itself.
    Batch,
    /// A conntrack entry.
    Flow,
}

/// Names what an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What was asked.
    pub operation: Operation,
    /// Kind of object.
    pub kind: ObjectKind,
    /// Family of its table.
    pub family: Option<Family>,
    /// `table name` or `table`, as `nft` would write it.
    pub path: String,
    /// The element (counted from 0) or expression the kernel pointed at, where known.
    pub detail: Option<String>,
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operation = match self.operation {
            Operation::Add => "add",
            Operation::Create => "create",
            Operation::Delete => "delete",
            Operation::Dump => "dump",
        };
        let kind = match self.kind {
            ObjectKind::Table => "table",
            ObjectKind::Chain => "chain",
            ObjectKind::Rule => "rule",
            ObjectKind::Set => "set",
            ObjectKind::Elements => "elements",
            ObjectKind::Batch => "transaction",
            ObjectKind::Flow => "conntrack entry",
        };
        write!(f, "{operation} {kind}")?;
        if let Some(family) = self.family {
            write!(f, " {}", family.as_str())?;
        }
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

/// A failed operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name is empty, too long or holds a NUL.
    #[error("invalid nftables name {0:?}")]
    Name(String),
    /// The netlink socket could not be opened or set up.
    #[error("cannot open a netlink socket")]
    Open(#[source] Errno),
    /// The message could not be sent; nothing was changed.
    #[error("cannot send {object}")]
    Send {
        /// What was being sent.
        object: Object,
        /// Kernel's answer.
        source: Errno,
    },
    /// The answer could not be read. Whether the transaction was applied is unknown: dump and
    /// compare.
    #[error("cannot read the answer to {object}")]
    Receive {
        /// What was sent.
        object: Object,
        /// Kernel's answer.
        source: Errno,
    },
    /// The kernel refused one object; nothing of the transaction was applied.
    #[error("kernel refused to {object}")]
    Rejected {
        /// The refused object.
        object: Object,
        /// Kernel's answer.
        source: Errno,
    },
    /// The kernel's answer is not well-formed.
    #[error("malformed answer to {object}")]
    Malformed {
        /// What was asked.
        object: Object,
    },
    /// The objects changed while they were dumped; try again.
    #[error("{object} was interrupted by a concurrent change")]
    Interrupted {
        /// What was asked.
        object: Object,
    },
    /// A value does not fit its set (length, or data for a set without data).
    #[error("element does not fit set {set}")]
    Element {
        /// The set.
        set: String,
    },
}

impl Error {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open(source)
            | Self::Send { source, .. }
            | Self::Receive { source, .. }
            | Self::Rejected { source, .. } => Some(*source),
            _ => None,
        }
    }
}
