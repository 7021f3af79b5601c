//! A small encoder for nf_tables transactions over netlink.
//!
//! Owns: plain values for tables, chains, sets, maps and rules; their encoding (through
//! libnftnl); one atomic transaction on a socket that stays open; dumps for adoption and diff;
//! deletion of single conntrack entries. Not owned: any policy. Whoever uses this crate decides
//! which rules exist.
//!
//! The encoder is confined to [`Batch`] and the `sys` module, so that another encoder can
//! replace libnftnl without a change for users. libnftnl is GPL-2.0-or-later: a program that
//! links it is distributed under those terms.
//!
//! # Shapes that `nft list` can print and reload
//! The kernel accepts more than the `nft` program can decode. Keep to these:
//! - no integer-typed field in a concatenation: use [`DataType::Mark`] (the type list leaves out
//!   the plain integer for that reason);
//! - never feed the result of one map lookup into another lookup through registers;
//! - no port of conntrack's original tuple in a concatenation: carry a packet mark instead;
//! - a number generator is the whole key of a lookup, never a part of a concatenation.
//!
//! # Example
//! ```no_run
//! use berth_nft::*;
//! # fn main() -> Result<(), Error> {
//! let table = Table::new(Family::Ip, "example")?;
//! let ports = Set::map(&table, "ports", &[DataType::Service], &[DataType::Ipv4, DataType::Service])?;
//! let chain = Chain::base(&table, "pre", Base::nat(Hook::Prerouting, -100))?;
//! let mut batch = Batch::new();
//! batch.add_table(&table);
//! batch.add_set(&ports);
//! batch.add_chain(&chain);
//! batch.add_rule(
//!     &Rule::new(&chain)
//!         .is(Load::L4Proto, Field::Proto(6))
//!         .daddr_is_local()
//!         .dnat_map(&[Load::Dport], &ports),
//! );
//! batch.add_elements(
//!     &ports,
//!     [Element::data(
//!         Field::Port(80),
//!         [Field::Ipv4([10, 0, 0, 2].into()), Field::Port(8080)],
//!     )],
//! );
//! let mut socket = Socket::open()?;
//! socket.commit(batch)?;
//! # Ok(())
//! # }
//! ```

mod attr;
mod batch;
pub mod conntrack;
mod data;
mod dump;
mod error;
mod expr;
mod object;
mod rule;
mod set;
mod socket;
#[allow(unsafe_code)]
mod sys;

pub use batch::Batch;
pub use data::{Data, DataType, Field};
pub use dump::{ChainInfo, RuleInfo, SetInfo, TableInfo};
pub use error::{Error, Object, ObjectKind, Operation};
pub use expr::{
    BaseHeader, Cmp, Ct, CtState, DynsetOp, Expr, FibResult, Inverted, Load, Meta, Nat, NatFlags,
    NumgenKind, Reg, Reject, Verdict,
};
pub use object::{Base, Chain, ChainKind, Family, Hook, Name, Policy, Table};
pub use rule::Rule;
pub use set::{Element, Key, Set, Value};
pub use socket::Socket;
