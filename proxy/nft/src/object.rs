//! Tables and chains as plain values. They hold names and attributes, never kernel state.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use crate::Error;

/// Longest name the kernel takes, without its terminator.
const NAME_MAX: usize = 255;

/// A checked object name: not empty, no NUL, at most 255 bytes. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<CStr>);

impl Name {
    /// Checks and stores a name.
    ///
    /// # Errors
    /// [`Error::Name`] when it is empty, too long or holds a NUL.
    pub fn new(name: &str) -> Result<Self, Error> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::Name(name.chars().take(NAME_MAX).collect()));
        }
        let owned = CString::new(name).map_err(|_| Error::Name(name.to_owned()))?;
        Ok(Self(owned.into()))
    }

    /// The name as text. Names are built from text, so nothing is lost.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The packet family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// ARP.
    Arp,
    /// One device's ingress or egress.
    Netdev,
    /// Bridged frames.
    Bridge,
}

impl Family {
    /// The kernel's number (`NFPROTO_*`).
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip, Self::Arp, Self::Netdev, Self::Bridge, Self::Ip6]
            .into_iter()
            .find(|family| family.number() == number)
    }

    /// The word `nft` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
        }
    }
}

/// A table: the scope of every other object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    pub(crate) family: Family,
    pub(crate) name: Name,
    pub(crate) comment: Option<Name>,
}

impl Table {
    /// Names a table. Nothing is sent.
    ///
    /// # Errors
    /// [`Error::Name`] for a name the kernel would not take.
    pub fn new(family: Family, name: &str) -> Result<Self, Error> {
        Ok(Self { family, name: Name::new(name)?, comment: None })
    }

    /// Adds a comment, shown by `nft list` and returned by [`crate::Socket::tables`]. It is only
    /// stored when the table is created.
    ///
    /// # Errors
    /// [`Error::Name`] when the comment is empty, holds a NUL or is longer than 127 bytes.
    pub fn comment(mut self, comment: &str) -> Result<Self, Error> {
        if comment.len() > 127 {
            return Err(Error::Name(comment.to_owned()));
        }
        self.comment = Some(Name::new(comment)?);
        Ok(self)
    }

    /// The table's family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// Where a base chain is attached. The numbers are those of the ip, ip6, inet, bridge families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// Ingress of one device (family netdev).
    Ingress,
    /// Egress of one device (family netdev).
    Egress,
}

impl Hook {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting | Self::Ingress => 0,
            Self::Input | Self::Egress => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection.
    Nat,
    /// Like filter on output, and re-routes after a change.
    Route,
}

impl ChainKind {
    pub(crate) fn as_c_str(self) -> &'static CStr {
        match self {
            Self::Filter => c"filter",
            Self::Nat => c"nat",
            Self::Route => c"route",
        }
    }
}

/// What happens to a packet that reaches the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
}

/// How a base chain is attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Base {
    /// Chain type.
    pub kind: ChainKind,
    /// Hook.
    pub hook: Hook,
    /// Priority: lower runs first.
    pub priority: i32,
    /// Verdict at the end of the chain.
    pub policy: Policy,
    /// The device, for the netdev family.
    pub device: Option<Name>,
}

impl Base {
    /// A filter chain with policy accept.
    pub fn filter(hook: Hook, priority: i32) -> Self {
        Self { kind: ChainKind::Filter, hook, priority, policy: Policy::Accept, device: None }
    }

    /// A nat chain with policy accept. Usual priorities: -100 before, 100 after routing.
    pub fn nat(hook: Hook, priority: i32) -> Self {
        Self { kind: ChainKind::Nat, hook, priority, policy: Policy::Accept, device: None }
    }

    /// Changes the policy.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Binds a netdev chain to one device.
    ///
    /// # Errors
    /// [`Error::Name`] for a name the kernel would not take.
    pub fn device(mut self, device: &str) -> Result<Self, Error> {
        self.device = Some(Name::new(device)?);
        Ok(self)
    }
}

/// A chain, base or regular.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    pub(crate) table: Table,
    pub(crate) name: Name,
    pub(crate) base: Option<Base>,
}

impl Chain {
    /// A regular chain, reached by jump, goto or verdict map.
    ///
    /// # Errors
    /// [`Error::Name`] for a name the kernel would not take.
    pub fn regular(table: &Table, name: &str) -> Result<Self, Error> {
        Ok(Self { table: table.clone(), name: Name::new(name)?, base: None })
    }

    /// A base chain, attached to a hook.
    ///
    /// # Errors
    /// [`Error::Name`] for a name the kernel would not take.
    pub fn base(table: &Table, name: &str, base: Base) -> Result<Self, Error> {
        Ok(Self { table: table.clone(), name: Name::new(name)?, base: Some(base) })
    }

    /// The chain's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The chain's table.
    pub fn table(&self) -> &Table {
        &self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_nul_or_no_bytes_is_refused() {
        assert!(Name::new("").is_err());
        assert!(Name::new("a\0b").is_err());
        assert!(Name::new(&"x".repeat(256)).is_err());
        assert_eq!(Name::new("berth").unwrap().as_str(), "berth");
    }
}
