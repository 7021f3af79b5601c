//! What is asked of the network: who is attached, where, and which ports the host forwards.
//!
//! Plain values only. The attachment id is the caller's (a sandbox id, or a container id once CNI
//! executables use this crate); this crate never interprets it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Longest attachment id. It must fit, with two addresses, into an interface alias (255 bytes).
const ID_MAX: usize = 128;

/// Names one attachment on this node: 1 to 128 letters, digits, `.`, `_` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttachmentId(String);

impl AttachmentId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AttachmentId {
    type Error = Error;

    fn try_from(value: String) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=ID_MAX).contains(&value.len()) && value.bytes().all(allowed) {
            Ok(Self(value))
        } else {
            Err(Error::Request(format!(
                "attachment id {value:?} is not 1 to {ID_MAX} letters, digits, dots, underscores \
                 or dashes"
            )))
        }
    }
}

impl TryFrom<&str> for AttachmentId {
    type Error = Error;

    fn try_from(value: &str) -> Result<Self, Error> {
        Self::try_from(value.to_owned())
    }
}

impl From<AttachmentId> for String {
    fn from(id: AttachmentId) -> Self {
        id.0
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A transport protocol of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the node that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// The node's address it listens on. Absent: every address of every family the pod has.
    /// `0.0.0.0` and `::` mean every address of that family.
    pub host_ip: Option<IpAddr>,
    /// The node's port, not 0.
    pub host_port: u16,
    /// The pod's port, not 0.
    pub pod_port: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// A wish for an interface.
#[derive(Debug, Clone)]
pub struct Attach {
    /// Who.
    pub id: AttachmentId,
    /// The pod's network namespace: a bind mount of it, or `/proc/<pid>/ns/net`.
    pub netns: PathBuf,
    /// The ports that the node forwards.
    pub host_ports: Vec<HostPort>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_leave_a_directory_or_a_line_is_refused() {
        for bad in ["", "a/b", "a\nb", "a b", "\u{e9}", &"a".repeat(ID_MAX + 1)] {
            assert!(AttachmentId::try_from(bad).is_err(), "{bad:?}");
        }
        assert!(AttachmentId::try_from("0f.A_-9").is_ok());
    }
}
