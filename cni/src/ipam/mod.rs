//! Address leases with `host-local`'s semantics: which pod holds which addresses and host ports.
//!
//! [`Range`] is the arithmetic of one subnet, [`ledger`] decides (pure), [`store`] keeps the
//! decisions on disk. Nothing here knows links or packets.

pub(crate) mod ledger;
mod range;
mod store;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use range::{Range, RangeError};
pub(crate) use store::{Lease, Origin, Store, Unsynced};

use crate::attachment::{AttachmentId, HostPort, Protocol};

/// What one attachment holds. Each of its lease files carries all of it, so that one readable
/// file is enough to know the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) attachment: AttachmentId,
    /// Primary first.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_ports: Vec<HostPort>,
}

/// Why an address was not leased.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All addresses of a range are held.
    #[error("no IP addresses available in range set: {0}")]
    Exhausted(Range),
    /// A host port that another attachment holds.
    #[error("host port {port}/{protocol}{} is already used by {holder}", display_ip(.ip))]
    HostPortTaken {
        /// The port.
        port: u16,
        /// Its transport.
        protocol: Protocol,
        /// The node's address, if one was named.
        ip: Option<IpAddr>,
        /// Who has it.
        holder: AttachmentId,
    },
    /// An attachment came back with other host ports than it has.
    #[error("{0} is already attached with other host ports")]
    OtherHostPorts(AttachmentId),
    /// Another process, or another network of this one, uses the state directory.
    #[error("state directory {} is in use by another pod network", .0.display())]
    Locked(PathBuf),
    /// The disk refused.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn display_ip(ip: &Option<IpAddr>) -> String {
    ip.map(|ip| format!(" on {ip}")).unwrap_or_default()
}
