//! Expressions: the instructions a rule is made of, as plain values.
//!
//! [`crate::Rule`] has methods for the usual matches; this is what they are made of, for whoever
//! needs something else. Spec: `linux/netfilter/nf_tables.h`.

use std::time::Duration;

use crate::{Family, Field, Name, Set};

/// A register. 16 registers of 4 bytes; a longer value takes several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(pub(crate) u32);

impl Reg {
    /// The verdict register: the target of a verdict map lookup.
    pub const VERDICT: Self = Self(0);

    /// The `index`-th 4-byte register, counted from 0. Taken modulo 16.
    pub const fn word(index: usize) -> Self {
        Self(8 + (index % 16) as u32)
    }
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Accept the packet in this base chain.
    Accept,
    /// Drop the packet.
    Drop,
    /// Go on with the next rule.
    Continue,
    /// Call a chain.
    Jump(Name),
    /// Continue in a chain, without coming back.
    Goto(Name),
    /// Back to the calling chain.
    Return,
}

impl Verdict {
    /// The kernel's code.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// The chain it leads to.
    pub fn chain(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    pub(crate) fn from_code(code: i32, chain: Option<Name>) -> Option<Self> {
        Some(match (code, chain) {
            (0, None) => Self::Drop,
            (1, None) => Self::Accept,
            (-1, None) => Self::Continue,
            (-3, Some(chain)) => Self::Jump(chain),
            (-4, Some(chain)) => Self::Goto(chain),
            (-5, None) => Self::Return,
            _ => return None,
        })
    }
}

/// Packet metadata (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Meta {
    Protocol = 1,
    Mark = 3,
    Iif = 4,
    Oif = 5,
    Iifname = 6,
    Oifname = 7,
    Nfproto = 15,
    L4proto = 16,
    PacketType = 19,
}

/// Conntrack facts (`NFT_CT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Ct {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
}

/// Bits of a connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtState(pub u32);

impl CtState {
    /// Not classifiable.
    pub const INVALID: Self = Self(1);
    /// Seen in both directions.
    pub const ESTABLISHED: Self = Self(2);
    /// Belongs to another connection.
    pub const RELATED: Self = Self(4);
    /// First packet.
    pub const NEW: Self = Self(8);
    /// Exempt from tracking.
    pub const UNTRACKED: Self = Self(64);
}

impl std::ops::BitOr for CtState {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a payload offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BaseHeader {
    /// Link layer.
    Link = 0,
    /// IPv4, IPv6 or ARP header.
    Network = 1,
    /// TCP, UDP, SCTP, ICMP header.
    Transport = 2,
}

/// Comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Cmp {
    Equal = 0,
    NotEqual = 1,
    Less = 2,
    LessOrEqual = 3,
    Greater = 4,
    GreaterOrEqual = 5,
}

/// What a route lookup returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FibResult {
    /// Output interface index.
    Oif = 1,
    /// Output interface name.
    Oifname = 2,
    /// Address type (`RTN_*`).
    AddressType = 3,
}

/// How a number generator counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NumgenKind {
    /// Round robin.
    Incremental = 0,
    /// Uniformly random.
    Random = 1,
}

/// Whether a set lookup matches members or non-members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inverted {
    /// Matches members.
    No,
    /// Matches non-members.
    Yes,
}

/// Address translation direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nat {
    /// Change the source.
    Source = 0,
    /// Change the destination.
    Destination = 1,
}

/// Flags of a translation (`NF_NAT_RANGE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NatFlags(pub u32);

impl NatFlags {
    /// Pick source ports fully at random: fewer clashes under load.
    pub const FULLY_RANDOM: Self = Self(16);
}

/// How to refuse a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// TCP reset; the rule must match TCP first.
    TcpReset,
    /// ICMP port unreachable (ip tables).
    PortUnreachable,
    /// ICMPv6 port unreachable (ip6 tables).
    Port6Unreachable,
    /// The same for inet and bridge tables.
    AnyPortUnreachable,
}

/// What a rule does to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DynsetOp {
    /// Add when absent.
    Add = 0,
    /// Add, or refresh the timeout.
    Update = 1,
    /// Delete.
    Delete = 2,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Expr {
    /// Load packet metadata.
    Meta { key: Meta, to: Reg },
    /// Set packet metadata (the mark).
    SetMeta { key: Meta, from: Reg },
    /// Load packet bytes.
    Payload { base: BaseHeader, offset: u32, len: u32, to: Reg },
    /// Load conntrack facts.
    Ct { key: Ct, to: Reg },
    /// Set conntrack facts (the mark).
    SetCt { key: Ct, from: Reg },
    /// Look up the route of an address. Flags: 1 saddr, 2 daddr, 4 mark, 8 iif, 16 oif.
    Fib { result: FibResult, flags: u32, to: Reg },
    /// Compare; stop the rule unless true.
    Compare { reg: Reg, op: Cmp, data: Vec<u8> },
    /// `to = (from & mask) ^ xor`.
    Bitwise { from: Reg, to: Reg, mask: Vec<u8>, xor: Vec<u8> },
    /// Load a constant.
    Immediate { to: Reg, data: Vec<u8> },
    /// Look a key up in a set (no target), map (data register) or verdict map
    /// ([`Reg::VERDICT`]).
    Lookup { set: Name, key: Reg, to: Option<Reg>, inverted: Inverted },
    /// Load a number below `modulus`, plus `offset`.
    Numgen { kind: NumgenKind, modulus: u32, offset: u32, to: Reg },
    /// Go on when the register holds one of the values, all of one type.
    OneOf { reg: Reg, values: Vec<Field> },
    /// Take one of the verdicts at random, each equally often. An empty list does nothing.
    Choose(Vec<Verdict>),
    /// Load a hash of registers below `modulus`, plus `offset`.
    Jhash { from: Reg, len: u32, modulus: u32, seed: u32, offset: u32, to: Reg },
    /// Translate addresses.
    Nat { kind: Nat, family: Family, address: Option<Reg>, port: Option<Reg>, flags: NatFlags },
    /// Source NAT to the address of the outgoing interface.
    Masquerade { flags: NatFlags },
    /// Destination NAT to this host.
    Redirect { port: Option<Reg> },
    /// Refuse.
    Reject(Reject),
    /// Decide.
    Verdict(Verdict),
    /// Count packets and bytes.
    Counter,
    /// Add to, refresh in or delete from a set.
    Dynset { op: DynsetOp, set: Name, key: Reg, data: Option<Reg>, timeout: Option<Duration> },
    /// Leave the packet untracked.
    Notrack,
}

/// A fact a match loads into registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Load {
    /// IPv4 source.
    Ip4Saddr,
    /// IPv4 destination.
    Ip4Daddr,
    /// IPv6 source.
    Ip6Saddr,
    /// IPv6 destination.
    Ip6Daddr,
    /// Transport protocol.
    L4Proto,
    /// Transport source port.
    Sport,
    /// Transport destination port.
    Dport,
    /// Incoming interface name.
    Iifname,
    /// Outgoing interface name.
    Oifname,
    /// Network family (`NFPROTO_*`, a lone byte).
    Nfproto,
    /// Packet mark.
    Mark,
    /// Conntrack mark.
    CtMark,
    /// Ethernet source.
    EtherSaddr,
    /// Ethernet destination.
    EtherDaddr,
}

impl Load {
    /// Source address of the family's packets; IPv4 unless the family is [`Family::Ip6`].
    pub fn saddr(family: Family) -> Self {
        if family == Family::Ip6 { Self::Ip6Saddr } else { Self::Ip4Saddr }
    }

    /// Destination address of the family's packets; IPv4 unless the family is [`Family::Ip6`].
    pub fn daddr(family: Family) -> Self {
        if family == Family::Ip6 { Self::Ip6Daddr } else { Self::Ip4Daddr }
    }

    /// Registers it fills.
    pub(crate) fn words(self) -> usize {
        match self {
            Self::Ip6Saddr | Self::Ip6Daddr | Self::Iifname | Self::Oifname => 4,
            Self::EtherSaddr | Self::EtherDaddr => 2,
            _ => 1,
        }
    }

    /// The instruction that loads the fact.
    pub fn into_expr(self, to: Reg) -> Expr {
        use BaseHeader::{Link, Network, Transport};
        let payload = |base, offset, len| Expr::Payload { base, offset, len, to };
        match self {
            Self::Ip4Saddr => payload(Network, 12, 4),
            Self::Ip4Daddr => payload(Network, 16, 4),
            Self::Ip6Saddr => payload(Network, 8, 16),
            Self::Ip6Daddr => payload(Network, 24, 16),
            Self::Sport => payload(Transport, 0, 2),
            Self::Dport => payload(Transport, 2, 2),
            Self::EtherDaddr => payload(Link, 0, 6),
            Self::EtherSaddr => payload(Link, 6, 6),
            Self::L4Proto => Expr::Meta { key: Meta::L4proto, to },
            Self::Iifname => Expr::Meta { key: Meta::Iifname, to },
            Self::Oifname => Expr::Meta { key: Meta::Oifname, to },
            Self::Nfproto => Expr::Meta { key: Meta::Nfproto, to },
            Self::Mark => Expr::Meta { key: Meta::Mark, to },
            Self::CtMark => Expr::Ct { key: Ct::Mark, to },
        }
    }
}

impl Expr {
    /// A lookup of `key` in a set, map or verdict map.
    pub fn lookup(set: &Set, key: Reg, to: Option<Reg>) -> Self {
        Self::Lookup { set: set.name.clone(), key, to, inverted: Inverted::No }
    }
}
