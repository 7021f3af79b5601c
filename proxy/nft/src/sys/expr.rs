//! One libnftnl expression from one [`Expr`].

use std::ffi::CStr;
use std::ptr::NonNull;

use nftnl_sys as ffi;

use super::{Padded, allocated, padded_name};
use crate::{Expr, Inverted, Name, NumgenKind, Reg, Reject, Set, Verdict};

/// An expression not yet owned by a rule.
pub(super) struct Raw(NonNull<ffi::nftnl_expr>);

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `nftnl_expr_alloc` and was not given away.
        unsafe { ffi::nftnl_expr_free(self.0.as_ptr()) }
    }
}

impl Raw {
    fn new(name: &CStr) -> Self {
        // SAFETY: the name is NUL-terminated; unknown names return null.
        let raw = unsafe { ffi::nftnl_expr_alloc(name.as_ptr()) };
        Self(allocated(raw))
    }

    /// Gives the expression away; the new owner frees it.
    pub(super) fn into_raw(self) -> *mut ffi::nftnl_expr {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    fn value(self, attribute: u32, value: &[u8]) -> Self {
        let padded = Padded::new(value);
        // SAFETY: the library reads at most `VALUE_MAX` bytes or up to a NUL; both lie inside
        // the padded copy, and it copies what it reads.
        let _ = unsafe {
            ffi::nftnl_expr_set(self.0.as_ptr(), attribute as u16, padded.as_ptr(), padded.len)
        };
        self
    }

    fn u8(self, attribute: u32, value: u8) -> Self {
        self.value(attribute, &[value])
    }

    fn u32(self, attribute: u32, value: u32) -> Self {
        self.value(attribute, &value.to_ne_bytes())
    }

    fn u64(self, attribute: u32, value: u64) -> Self {
        self.value(attribute, &value.to_ne_bytes())
    }

    fn reg(self, attribute: u32, reg: Reg) -> Self {
        self.u32(attribute, reg.0)
    }

    fn maybe_reg(self, attribute: u32, reg: Option<Reg>) -> Self {
        match reg {
            Some(reg) => self.reg(attribute, reg),
            None => self,
        }
    }

    fn name(self, attribute: u32, name: &Name) -> Self {
        let padded = padded_name(name.as_c_str());
        // SAFETY: the copy is NUL-terminated; only string attributes are set this way, and the
        // library copies the string.
        let _ = unsafe {
            ffi::nftnl_expr_set_str(self.0.as_ptr(), attribute as u16, padded.as_ptr().cast())
        };
        self
    }
}

/// Builds the library's expression.
pub(super) fn build(expr: &Expr) -> Raw {
    match expr {
        Expr::Meta { key, to } => Raw::new(c"meta")
            .u32(ffi::NFTNL_EXPR_META_KEY, *key as u32)
            .reg(ffi::NFTNL_EXPR_META_DREG, *to),
        Expr::SetMeta { key, from } => Raw::new(c"meta")
            .u32(ffi::NFTNL_EXPR_META_KEY, *key as u32)
            .reg(ffi::NFTNL_EXPR_META_SREG, *from),
        Expr::Payload { base, offset, len, to } => Raw::new(c"payload")
            .u32(ffi::NFTNL_EXPR_PAYLOAD_BASE, *base as u32)
            .u32(ffi::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)
            .u32(ffi::NFTNL_EXPR_PAYLOAD_LEN, *len)
            .reg(ffi::NFTNL_EXPR_PAYLOAD_DREG, *to),
        Expr::Ct { key, to } => Raw::new(c"ct")
            .u32(ffi::NFTNL_EXPR_CT_KEY, *key as u32)
            .reg(ffi::NFTNL_EXPR_CT_DREG, *to),
        Expr::SetCt { key, from } => Raw::new(c"ct")
            .u32(ffi::NFTNL_EXPR_CT_KEY, *key as u32)
            .reg(ffi::NFTNL_EXPR_CT_SREG, *from),
        Expr::Fib { result, flags, to } => Raw::new(c"fib")
            .u32(ffi::NFTNL_EXPR_FIB_RESULT, *result as u32)
            .u32(ffi::NFTNL_EXPR_FIB_FLAGS, *flags)
            .reg(ffi::NFTNL_EXPR_FIB_DREG, *to),
        Expr::Compare { reg, op, data } => Raw::new(c"cmp")
            .reg(ffi::NFTNL_EXPR_CMP_SREG, *reg)
            .u32(ffi::NFTNL_EXPR_CMP_OP, *op as u32)
            .value(ffi::NFTNL_EXPR_CMP_DATA, data),
        Expr::Bitwise { from, to, mask, xor } => Raw::new(c"bitwise")
            .reg(ffi::NFTNL_EXPR_BITWISE_SREG, *from)
            .reg(ffi::NFTNL_EXPR_BITWISE_DREG, *to)
            .u32(ffi::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
            .value(ffi::NFTNL_EXPR_BITWISE_MASK, mask)
            .value(ffi::NFTNL_EXPR_BITWISE_XOR, xor),
        Expr::Immediate { to, data } => Raw::new(c"immediate")
            .reg(ffi::NFTNL_EXPR_IMM_DREG, *to)
            .value(ffi::NFTNL_EXPR_IMM_DATA, data),
        Expr::Verdict(verdict) => build_verdict(verdict),
        Expr::Counter => Raw::new(c"counter")
            .u64(ffi::NFTNL_EXPR_CTR_PACKETS, 0)
            .u64(ffi::NFTNL_EXPR_CTR_BYTES, 0),
        Expr::Notrack => Raw::new(c"notrack"),
        Expr::Lookup { .. } | Expr::Dynset { .. } => build_set_use(expr),
        Expr::Numgen { .. } | Expr::Jhash { .. } => build_number(expr),
        Expr::Nat { .. } | Expr::Masquerade { .. } | Expr::Redirect { .. } => build_nat(expr),
        Expr::Reject(reject) => build_reject(*reject),
        Expr::Choose(_) | Expr::OneOf { .. } => unreachable!("built with its set"),
    }
}

/// Builds an instruction that looks a nameless set up.
pub(super) fn build_with_set(expr: &Expr, set: &Set) -> Vec<Raw> {
    let lookup = |key, to| {
        build(&Expr::lookup(set, key, to))
            .u32(ffi::NFTNL_EXPR_LOOKUP_SET_ID, set.anonymous.unwrap_or(0))
    };
    match expr {
        Expr::OneOf { reg, .. } => vec![lookup(*reg, None)],
        Expr::Choose(verdicts) => {
            let to = Reg::word(0);
            let modulus = u32::try_from(verdicts.len()).unwrap_or(u32::MAX);
            let number = Expr::Numgen { kind: NumgenKind::Random, modulus, offset: 0, to };
            vec![build(&number), lookup(to, Some(Reg::VERDICT))]
        }
        _ => Vec::new(),
    }
}

fn build_verdict(verdict: &Verdict) -> Raw {
    let raw = Raw::new(c"immediate")
        .reg(ffi::NFTNL_EXPR_IMM_DREG, Reg::VERDICT)
        .value(ffi::NFTNL_EXPR_IMM_VERDICT, &verdict.code().to_ne_bytes());
    match verdict.chain() {
        Some(chain) => raw.name(ffi::NFTNL_EXPR_IMM_CHAIN, chain),
        None => raw,
    }
}

fn build_set_use(expr: &Expr) -> Raw {
    match expr {
        Expr::Lookup { set, key, to, inverted } => Raw::new(c"lookup")
            .name(ffi::NFTNL_EXPR_LOOKUP_SET, set)
            .reg(ffi::NFTNL_EXPR_LOOKUP_SREG, *key)
            .maybe_reg(ffi::NFTNL_EXPR_LOOKUP_DREG, *to)
            .u32(ffi::NFTNL_EXPR_LOOKUP_FLAGS, u32::from(*inverted == Inverted::Yes)),
        Expr::Dynset { op, set, key, data, timeout } => {
            let raw = Raw::new(c"dynset")
                .name(ffi::NFTNL_EXPR_DYNSET_SET_NAME, set)
                .u32(ffi::NFTNL_EXPR_DYNSET_OP, *op as u32)
                .reg(ffi::NFTNL_EXPR_DYNSET_SREG_KEY, *key)
                .maybe_reg(ffi::NFTNL_EXPR_DYNSET_SREG_DATA, *data);
            match timeout {
                Some(timeout) => {
                    raw.u64(ffi::NFTNL_EXPR_DYNSET_TIMEOUT, timeout.as_millis() as u64)
                }
                None => raw,
            }
        }
        _ => unreachable!("only called for set expressions"),
    }
}

fn build_number(expr: &Expr) -> Raw {
    match expr {
        Expr::Numgen { kind, modulus, offset, to } => Raw::new(c"numgen")
            .u32(ffi::NFTNL_EXPR_NG_TYPE, *kind as u32)
            .u32(ffi::NFTNL_EXPR_NG_MODULUS, *modulus)
            .u32(ffi::NFTNL_EXPR_NG_OFFSET, *offset)
            .reg(ffi::NFTNL_EXPR_NG_DREG, *to),
        Expr::Jhash { from, len, modulus, seed, offset, to } => Raw::new(c"hash")
            .u32(ffi::NFTNL_EXPR_HASH_TYPE, 0)
            .reg(ffi::NFTNL_EXPR_HASH_SREG, *from)
            .reg(ffi::NFTNL_EXPR_HASH_DREG, *to)
            .u32(ffi::NFTNL_EXPR_HASH_LEN, *len)
            .u32(ffi::NFTNL_EXPR_HASH_MODULUS, *modulus)
            .u32(ffi::NFTNL_EXPR_HASH_SEED, *seed)
            .u32(ffi::NFTNL_EXPR_HASH_OFFSET, *offset),
        _ => unreachable!("only called for number expressions"),
    }
}

fn build_nat(expr: &Expr) -> Raw {
    match expr {
        Expr::Nat { kind, family, address, port, flags } => {
            let raw = Raw::new(c"nat")
                .u32(ffi::NFTNL_EXPR_NAT_TYPE, *kind as u32)
                .u32(ffi::NFTNL_EXPR_NAT_FAMILY, u32::from(family.number()))
                .maybe_reg(ffi::NFTNL_EXPR_NAT_REG_ADDR_MIN, *address)
                .maybe_reg(ffi::NFTNL_EXPR_NAT_REG_PROTO_MIN, *port);
            flagged(raw, ffi::NFTNL_EXPR_NAT_FLAGS, flags.0)
        }
        Expr::Masquerade { flags } => {
            flagged(Raw::new(c"masq"), ffi::NFTNL_EXPR_MASQ_FLAGS, flags.0)
        }
        Expr::Redirect { port } => {
            Raw::new(c"redir").maybe_reg(ffi::NFTNL_EXPR_REDIR_REG_PROTO_MIN, *port)
        }
        _ => unreachable!("only called for address translations"),
    }
}

fn flagged(raw: Raw, attribute: u32, flags: u32) -> Raw {
    if flags == 0 { raw } else { raw.u32(attribute, flags) }
}

fn build_reject(reject: Reject) -> Raw {
    const ICMP_UNREACH: u32 = 0;
    const TCP_RST: u32 = 1;
    const ICMPX_UNREACH: u32 = 2;
    let (kind, code) = match reject {
        Reject::TcpReset => (TCP_RST, 0),
        Reject::PortUnreachable => (ICMP_UNREACH, 3),
        Reject::Port6Unreachable => (ICMP_UNREACH, 4),
        Reject::AnyPortUnreachable => (ICMPX_UNREACH, 1),
    };
    Raw::new(c"reject").u32(ffi::NFTNL_EXPR_REJECT_TYPE, kind).u8(ffi::NFTNL_EXPR_REJECT_CODE, code)
}
