//! Rules, and a small builder for the usual matches and statements.
//!
//! Each match loads its facts into registers from the first one on, and compares; registers are
//! not kept from one match to the next, which is what `nft list` can decode.

use crate::{
    Chain, Cmp, Ct, CtState, Data, DynsetOp, Expr, Family, FibResult, Field, Inverted, Load, Meta,
    Name, Nat, NatFlags, Reg, Reject, Set, Verdict,
};

/// Flag of a route lookup: by destination.
const FIB_DADDR: u32 = 2;
/// Flag of a route lookup: by source.
const FIB_SADDR: u32 = 1;
/// Address type of the host's own addresses (`RTN_LOCAL`).
const RTN_LOCAL: u32 = 2;
/// Conntrack status: destination NAT was done (`IPS_DST_NAT`).
const IPS_DST_NAT: u32 = 1 << 5;
/// Longest rule comment `nft` shows.
const COMMENT_MAX: usize = 127;

/// A rule: where it goes and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub(crate) chain: Name,
    pub(crate) table: crate::Table,
    pub(crate) exprs: Vec<Expr>,
    pub(crate) comment: Option<String>,
}

impl Rule {
    /// An empty rule at the end of `chain`.
    pub fn new(chain: &Chain) -> Self {
        Self {
            chain: chain.name.clone(),
            table: chain.table.clone(),
            exprs: Vec::new(),
            comment: None,
        }
    }

    /// Adds any instruction.
    pub fn expr(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    /// Adds a comment, cut to 127 bytes, with NULs removed.
    pub fn comment(mut self, comment: &str) -> Self {
        let mut text = comment.replace('\0', "");
        while text.len() > COMMENT_MAX {
            text.pop();
        }
        self.comment = Some(text);
        self
    }

    /// The instructions.
    pub fn exprs(&self) -> &[Expr] {
        &self.exprs
    }

    /// Loads facts into registers from the first on, and returns the register after them.
    fn load(self, facts: &[Load]) -> (Self, usize) {
        facts.iter().fold((self, 0), |(rule, word), fact| {
            (rule.expr(fact.into_expr(Reg::word(word))), word + fact.words())
        })
    }

    fn compare(self, fact: Load, op: Cmp, field: Field) -> Self {
        let data = Data::from(field).as_bytes().to_vec();
        self.load(&[fact]).0.expr(Expr::Compare { reg: Reg::word(0), op, data })
    }

    /// Matches when the fact equals the value.
    pub fn is(self, fact: Load, field: Field) -> Self {
        self.compare(fact, Cmp::Equal, field)
    }

    /// Matches when the fact differs from the value.
    pub fn is_not(self, fact: Load, field: Field) -> Self {
        self.compare(fact, Cmp::NotEqual, field)
    }

    /// Matches when the fact is one of the values.
    pub fn is_one_of(self, fact: Load, values: &[Field]) -> Self {
        let (rule, _) = self.load(&[fact]);
        rule.expr(Expr::OneOf { reg: Reg::word(0), values: values.to_vec() })
    }

    /// Matches an address inside `prefix/length`.
    pub fn in_prefix(self, fact: Load, prefix: std::net::IpAddr, length: u8) -> Self {
        self.prefix(fact, Cmp::Equal, (prefix, length))
    }

    /// Matches an address outside `prefix/length`.
    pub fn not_in_prefix(self, fact: Load, prefix: std::net::IpAddr, length: u8) -> Self {
        self.prefix(fact, Cmp::NotEqual, (prefix, length))
    }

    fn prefix(self, fact: Load, op: Cmp, (prefix, length): (std::net::IpAddr, u8)) -> Self {
        let start = crate::Key::prefix(prefix, length).start().as_bytes().to_vec();
        let mask = match prefix {
            std::net::IpAddr::V4(_) => crate::Key::prefix([255u8; 4], length),
            std::net::IpAddr::V6(_) => crate::Key::prefix([255u8; 16], length),
        };
        let mask = mask.start().as_bytes().to_vec();
        self.masked(fact, mask, (op, start))
    }

    /// Matches when `fact & mask` compares to the value as asked. All in the fact's own layout.
    pub fn masked(self, fact: Load, mask: Vec<u8>, (op, value): (Cmp, Vec<u8>)) -> Self {
        let reg = Reg::word(0);
        let xor = vec![0; mask.len()];
        self.load(&[fact])
            .0
            .expr(Expr::Bitwise { from: reg, to: reg, mask, xor })
            .expr(Expr::Compare { reg, op, data: value })
    }

    /// Matches members of a set; several facts form a concatenation.
    pub fn in_set(self, facts: &[Load], set: &Set) -> Self {
        self.lookup(facts, set, (None, Inverted::No))
    }

    /// Matches what is not in a set.
    pub fn not_in_set(self, facts: &[Load], set: &Set) -> Self {
        self.lookup(facts, set, (None, Inverted::Yes))
    }

    /// Looks a verdict up; the rule goes on when there is none.
    pub fn vmap(self, facts: &[Load], set: &Set) -> Self {
        self.lookup(facts, set, (Some(Reg::VERDICT), Inverted::No))
    }

    fn lookup(self, facts: &[Load], set: &Set, (to, inverted): (Option<Reg>, Inverted)) -> Self {
        let (rule, _) = self.load(facts);
        rule.expr(Expr::Lookup { set: set.name.clone(), key: Reg::word(0), to, inverted })
    }

    /// Goes to one of the chains at random, each equally often.
    pub fn goto_one_of<'a>(self, chains: impl IntoIterator<Item = &'a Chain>) -> Self {
        let verdicts = chains.into_iter().map(|chain| Verdict::Goto(chain.name.clone()));
        self.expr(Expr::Choose(verdicts.collect()))
    }

    /// Adds the facts to a dynamic set, or refreshes their timeout. Goes on in any case but a
    /// full set.
    pub fn remember(self, facts: &[Load], set: &Set) -> Self {
        let (rule, _) = self.load(facts);
        rule.expr(Expr::Dynset {
            op: DynsetOp::Update,
            set: set.name.clone(),
            key: Reg::word(0),
            data: None,
            timeout: None,
        })
    }

    /// Matches connections in one of the given states.
    pub fn ct_state(self, states: CtState) -> Self {
        self.any_bit(Expr::Ct { key: Ct::State, to: Reg::word(0) }, states.0)
    }

    /// Matches connections whose destination was translated.
    pub fn ct_status_dnat(self) -> Self {
        self.any_bit(Expr::Ct { key: Ct::Status, to: Reg::word(0) }, IPS_DST_NAT)
    }

    /// Matches packets whose mark has one of the bits.
    pub fn mark_has(self, bits: u32) -> Self {
        self.any_bit(Expr::Meta { key: Meta::Mark, to: Reg::word(0) }, bits)
    }

    fn any_bit(self, load: Expr, bits: u32) -> Self {
        let reg = Reg::word(0);
        self.expr(load)
            .expr(Expr::Bitwise {
                from: reg,
                to: reg,
                mask: bits.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .expr(Expr::Compare { reg, op: Cmp::NotEqual, data: vec![0; 4] })
    }

    /// Matches packets to one of the host's own addresses.
    pub fn daddr_is_local(self) -> Self {
        self.fib_local(FIB_DADDR, Cmp::Equal)
    }

    /// Matches packets to other hosts.
    pub fn daddr_is_not_local(self) -> Self {
        self.fib_local(FIB_DADDR, Cmp::NotEqual)
    }

    /// Matches packets from one of the host's own addresses.
    pub fn saddr_is_local(self) -> Self {
        self.fib_local(FIB_SADDR, Cmp::Equal)
    }

    /// Matches packets from other hosts.
    pub fn saddr_is_not_local(self) -> Self {
        self.fib_local(FIB_SADDR, Cmp::NotEqual)
    }

    fn fib_local(self, flags: u32, op: Cmp) -> Self {
        let to = Reg::word(0);
        self.expr(Expr::Fib { result: FibResult::AddressType, flags, to }).expr(Expr::Compare {
            reg: to,
            op,
            data: RTN_LOCAL.to_ne_bytes().to_vec(),
        })
    }

    /// Sets mark bits, keeping the others.
    pub fn set_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, bits)
    }

    /// Clears mark bits, keeping the others.
    pub fn clear_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, 0)
    }

    fn change_mark(self, mask: u32, xor: u32) -> Self {
        let reg = Reg::word(0);
        self.expr(Expr::Meta { key: Meta::Mark, to: reg })
            .expr(Expr::Bitwise {
                from: reg,
                to: reg,
                mask: mask.to_ne_bytes().to_vec(),
                xor: xor.to_ne_bytes().to_vec(),
            })
            .expr(Expr::SetMeta { key: Meta::Mark, from: reg })
    }

    /// Destination NAT to what a map holds for the key: an address, or an address and a port.
    /// The rule goes on when the map has no entry.
    pub fn dnat_map(self, facts: &[Load], map: &Set) -> Self {
        let reg = Reg::word(0);
        let family = data_family(map);
        let words = if family == Family::Ip6 { 4 } else { 1 };
        let port = (map.data_types().len() > 1).then_some(Reg::word(words));
        let (rule, _) = self.load(facts);
        rule.expr(Expr::lookup(map, reg, Some(reg))).expr(Expr::Nat {
            kind: Nat::Destination,
            family,
            address: Some(reg),
            port,
            flags: NatFlags::default(),
        })
    }

    /// Destination NAT to a constant.
    pub fn dnat(self, address: std::net::IpAddr, port: Option<u16>) -> Self {
        self.nat(Nat::Destination, address, port)
    }

    /// Source NAT to a constant.
    pub fn snat(self, address: std::net::IpAddr) -> Self {
        self.nat(Nat::Source, address, None)
    }

    fn nat(mut self, kind: Nat, address: std::net::IpAddr, port: Option<u16>) -> Self {
        let (family, words) = if address.is_ipv6() { (Family::Ip6, 4) } else { (Family::Ip, 1) };
        let data = Data::from(Field::from(address)).as_bytes().to_vec();
        self = self.expr(Expr::Immediate { to: Reg::word(0), data });
        if let Some(port) = port {
            let data = port.to_be_bytes().to_vec();
            self = self.expr(Expr::Immediate { to: Reg::word(words), data });
        }
        self.expr(Expr::Nat {
            kind,
            family,
            address: Some(Reg::word(0)),
            port: port.map(|_| Reg::word(words)),
            flags: NatFlags::default(),
        })
    }

    /// Source NAT to the outgoing interface's address, with fully random ports.
    pub fn masquerade(self) -> Self {
        self.expr(Expr::Masquerade { flags: NatFlags::FULLY_RANDOM })
    }

    /// Destination NAT to this host's own port.
    pub fn redirect(self, port: u16) -> Self {
        let to = Reg::word(0);
        self.expr(Expr::Immediate { to, data: port.to_be_bytes().to_vec() })
            .expr(Expr::Redirect { port: Some(to) })
    }

    /// Refuses a TCP packet with a reset. Adds the match for TCP, without which the kernel
    /// refuses the rule.
    pub fn reject_with_tcp_reset(self) -> Self {
        self.is(Load::L4Proto, Field::Proto(6)).expr(Expr::Reject(Reject::TcpReset))
    }

    /// Refuses with ICMP port unreachable of the table's family.
    pub fn reject_with_port_unreachable(self) -> Self {
        let reject = match self.table.family() {
            Family::Inet | Family::Bridge | Family::Netdev => Reject::AnyPortUnreachable,
            Family::Ip6 => Reject::Port6Unreachable,
            Family::Ip | Family::Arp => Reject::PortUnreachable,
        };
        self.expr(Expr::Reject(reject))
    }

    /// Decides.
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.expr(Expr::Verdict(verdict))
    }

    /// Accepts.
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// Drops.
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// Calls a chain.
    pub fn jump(self, chain: &Chain) -> Self {
        self.verdict(Verdict::Jump(chain.name.clone()))
    }

    /// Continues in a chain without coming back.
    pub fn goto(self, chain: &Chain) -> Self {
        self.verdict(Verdict::Goto(chain.name.clone()))
    }

    /// Counts.
    pub fn counter(self) -> Self {
        self.expr(Expr::Counter)
    }
}

/// The family of the addresses a map holds.
fn data_family(map: &Set) -> Family {
    if map.data_types().contains(&crate::DataType::Ipv6) { Family::Ip6 } else { Family::Ip }
}
