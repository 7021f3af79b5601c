//! Messages about tables, chains, rules, sets and elements.

use std::ffi::CStr;
use std::ptr::NonNull;

use nftnl_sys as ffi;

use super::{Buffer, Header, Padded, allocated, expr, padded_name};
use crate::object::{Chain, Policy, Table};
use crate::set::Carries;
use crate::{Data, DataType, Expr, Rule, Set, Value};

/// An owned libnftnl object with setters by attribute.
macro_rules! object {
    ($name:ident, $raw:ty, $alloc:path, $free:path, $set_u32:path, $set_str:path) => {
        struct $name(NonNull<$raw>);

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the allocator below and was not given away.
                unsafe { $free(self.0.as_ptr()) }
            }
        }

        impl $name {
            fn new() -> Self {
                // SAFETY: takes no arguments.
                Self(allocated(unsafe { $alloc() }))
            }

            fn u32(&self, attribute: u32, value: u32) {
                // SAFETY: the object is live; only attributes of 32 bits are set this way.
                unsafe { $set_u32(self.0.as_ptr(), attribute as u16, value) };
            }

            fn str(&self, attribute: u32, value: &CStr) {
                let padded = padded_name(value);
                let (raw, attribute) = (self.0.as_ptr(), attribute as u16);
                // SAFETY: the copy is NUL-terminated and the library copies it.
                let _ = unsafe { $set_str(raw, attribute, padded.as_ptr().cast()) };
            }
        }
    };
}

object!(
    RawTable,
    ffi::nftnl_table,
    ffi::nftnl_table_alloc,
    ffi::nftnl_table_free,
    ffi::nftnl_table_set_u32,
    ffi::nftnl_table_set_str
);
object!(
    RawChain,
    ffi::nftnl_chain,
    ffi::nftnl_chain_alloc,
    ffi::nftnl_chain_free,
    ffi::nftnl_chain_set_u32,
    ffi::nftnl_chain_set_str
);
object!(
    RawRule,
    ffi::nftnl_rule,
    ffi::nftnl_rule_alloc,
    ffi::nftnl_rule_free,
    ffi::nftnl_rule_set_u32,
    ffi::nftnl_rule_set_str
);
object!(
    RawSet,
    ffi::nftnl_set,
    ffi::nftnl_set_alloc,
    ffi::nftnl_set_free,
    ffi::nftnl_set_set_u32,
    ffi::nftnl_set_set_str
);
object!(
    RawElement,
    ffi::nftnl_set_elem,
    ffi::nftnl_set_elem_alloc,
    ffi::nftnl_set_elem_free,
    ffi::nftnl_set_elem_set_u32,
    ffi::nftnl_set_elem_set_str
);

/// One entry of the user data that `nft` keeps with objects.
fn udata(kind: u8, value: &[u8], out: &mut Vec<u8>) {
    let value = &value[..value.len().min(usize::from(u8::MAX))];
    out.push(kind);
    out.push(value.len() as u8);
    out.extend_from_slice(value);
}

/// A comment as `nft` keeps it, with its terminator.
fn comment_udata(kind: u8, comment: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = &comment.as_bytes()[..comment.len().min(127)];
    udata(kind, &[bytes, &[0]].concat(), &mut out);
    out
}

/// Builds a message about a table.
pub(crate) fn table<'a>(buffer: &'a mut Buffer, header: Header, table: &Table) -> &'a [u8] {
    let raw = RawTable::new();
    raw.u32(ffi::NFTNL_TABLE_FAMILY, u32::from(table.family.number()));
    raw.str(ffi::NFTNL_TABLE_NAME, table.name.as_c_str());
    if let Some(comment) = &table.comment {
        let data = comment_udata(0, comment.as_str());
        // SAFETY: pointer and length are of one live buffer, which the library copies.
        let _ = unsafe {
            ffi::nftnl_table_set_data(
                raw.0.as_ptr(),
                ffi::NFTNL_TABLE_USERDATA as u16,
                data.as_ptr().cast(),
                data.len() as u32,
            )
        };
    }
    let message = buffer.begin(header);
    // SAFETY: the message has room for the largest table.
    unsafe { ffi::nftnl_table_nlmsg_build_payload(message.as_ptr(), raw.0.as_ptr()) };
    buffer.message()
}

/// Builds a message about a chain.
pub(crate) fn chain<'a>(buffer: &'a mut Buffer, header: Header, chain: &Chain) -> &'a [u8] {
    let raw = RawChain::new();
    raw.u32(ffi::NFTNL_CHAIN_FAMILY, u32::from(chain.table.family.number()));
    raw.str(ffi::NFTNL_CHAIN_TABLE, chain.table.name.as_c_str());
    raw.str(ffi::NFTNL_CHAIN_NAME, chain.name.as_c_str());
    if let Some(base) = &chain.base {
        raw.str(ffi::NFTNL_CHAIN_TYPE, base.kind.as_c_str());
        raw.u32(ffi::NFTNL_CHAIN_HOOKNUM, base.hook.number());
        // SAFETY: the object is live and the priority is a signed 32-bit attribute.
        unsafe {
            ffi::nftnl_chain_set_s32(raw.0.as_ptr(), ffi::NFTNL_CHAIN_PRIO as u16, base.priority)
        };
        let policy = match base.policy {
            Policy::Drop => 0,
            Policy::Accept => 1,
        };
        raw.u32(ffi::NFTNL_CHAIN_POLICY, policy);
        if let Some(device) = &base.device {
            raw.str(ffi::NFTNL_CHAIN_DEV, device.as_c_str());
        }
    }
    let message = buffer.begin(header);
    // SAFETY: the message has room for the largest chain.
    unsafe { ffi::nftnl_chain_nlmsg_build_payload(message.as_ptr(), raw.0.as_ptr()) };
    buffer.message()
}

/// What a message about a rule needs besides the rule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RuleContext<'a> {
    /// The kernel's handle of an existing rule.
    pub(crate) handle: Option<u64>,
    /// The nameless sets of the rule's instructions, in order.
    pub(crate) nameless: &'a [Set],
}

/// Builds a message about a rule: `rule` itself, or the one with a handle, or every rule of the
/// chain when it has neither instructions nor a handle.
pub(crate) fn rule<'a>(
    buffer: &'a mut Buffer,
    header: Header,
    rule: &Rule,
    context: RuleContext<'_>,
) -> &'a [u8] {
    let raw = RawRule::new();
    raw.u32(ffi::NFTNL_RULE_FAMILY, u32::from(rule.table.family.number()));
    raw.str(ffi::NFTNL_RULE_TABLE, rule.table.name.as_c_str());
    raw.str(ffi::NFTNL_RULE_CHAIN, rule.chain.as_c_str());
    if let Some(handle) = context.handle {
        // SAFETY: the object is live and the handle is a 64-bit attribute.
        unsafe { ffi::nftnl_rule_set_u64(raw.0.as_ptr(), ffi::NFTNL_RULE_HANDLE as u16, handle) };
    }
    let mut nameless = context.nameless.iter();
    for instruction in rule.exprs.iter().take(super::EXPRS_MAX) {
        match instruction {
            Expr::Choose(_) | Expr::OneOf { .. } => {
                if let Some(set) = nameless.next() {
                    expr::build_with_set(instruction, set).into_iter().for_each(|e| raw.push(e));
                }
            }
            other => raw.push(expr::build(other)),
        }
    }
    if let Some(comment) = &rule.comment {
        let data = comment_udata(0, comment);
        // SAFETY: pointer and length are of one live buffer, which the library copies.
        let _ = unsafe {
            ffi::nftnl_rule_set_data(
                raw.0.as_ptr(),
                ffi::NFTNL_RULE_USERDATA as u16,
                data.as_ptr().cast(),
                data.len() as u32,
            )
        };
    }
    let message = buffer.begin(header);
    // SAFETY: the message has room for the largest rule.
    unsafe { ffi::nftnl_rule_nlmsg_build_payload(message.as_ptr(), raw.0.as_ptr()) };
    buffer.message()
}

impl RawRule {
    fn push(&self, expr: expr::Raw) {
        let expr = expr.into_raw();
        // SAFETY: both are live, and the rule owns the expression from here on.
        unsafe { ffi::nftnl_rule_add_expr(self.0.as_ptr(), expr) };
    }
}

impl RawSet {
    fn named(set: &Set) -> Self {
        let raw = Self::new();
        raw.u32(ffi::NFTNL_SET_FAMILY, u32::from(set.table.family.number()));
        raw.str(ffi::NFTNL_SET_TABLE, set.table.name.as_c_str());
        raw.str(ffi::NFTNL_SET_NAME, set.name.as_c_str());
        if let Some(id) = set.anonymous {
            raw.u32(ffi::NFTNL_SET_ID, id);
        }
        raw
    }

    fn data(&self, attribute: u32, bytes: &[u8]) {
        // SAFETY: pointer and length are of one live buffer; only the two attributes that copy
        // as many bytes as given are set this way.
        let _ = unsafe {
            ffi::nftnl_set_set_data(
                self.0.as_ptr(),
                attribute as u16,
                bytes.as_ptr().cast(),
                bytes.len() as u32,
            )
        };
    }

    fn push(&self, element: RawElement) {
        let raw = element.0.as_ptr();
        std::mem::forget(element);
        // SAFETY: both are live, and the set owns the element from here on.
        unsafe { ffi::nftnl_set_elem_add(self.0.as_ptr(), raw) };
    }
}

impl RawElement {
    fn value(&self, attribute: u32, data: &Data) {
        let padded = Padded::new(data.as_bytes());
        // SAFETY: the padded copy is as large as the library's largest field, which bounds what
        // it reads and writes.
        let _ = unsafe {
            ffi::nftnl_set_elem_set(self.0.as_ptr(), attribute as u16, padded.as_ptr(), padded.len)
        };
    }
}

fn set_flags(set: &Set) -> u32 {
    const ANONYMOUS_CONSTANT: u32 = 1 | 2;
    const INTERVAL: u32 = 4;
    const MAP: u32 = 8;
    const TIMEOUT: u32 = 16;
    const EVAL: u32 = 32;
    const CONCAT: u32 = 128;
    let mut flags = 0;
    if set.anonymous.is_some() {
        flags |= ANONYMOUS_CONSTANT;
    }
    if set.interval {
        flags |= INTERVAL;
    }
    if set.concat_intervals() {
        flags |= CONCAT;
    }
    if set.carries != Carries::Nothing {
        flags |= MAP;
    }
    if set.timeout.is_some() {
        flags |= TIMEOUT;
    }
    if set.dynamic {
        flags |= EVAL;
    }
    flags
}

/// Builds a message about a set itself. `id` must differ from other sets' in the transaction.
pub(crate) fn set<'a>(buffer: &'a mut Buffer, header: Header, set: &Set, id: u32) -> &'a [u8] {
    const VERDICT_TYPE: u32 = 0xffff_ff00;
    const INTEGER_TYPE: u32 = 4;
    let raw = RawSet::named(set);
    raw.u32(ffi::NFTNL_SET_ID, id);
    raw.u32(ffi::NFTNL_SET_FLAGS, set_flags(set));
    let key_type =
        if set.anonymous.is_some() { INTEGER_TYPE } else { DataType::concat_id(&set.key) };
    raw.u32(ffi::NFTNL_SET_KEY_TYPE, key_type);
    raw.u32(ffi::NFTNL_SET_KEY_LEN, DataType::concat_len(&set.key) as u32);
    let mut notes = Vec::new();
    udata(0, &DataType::byte_order(&set.key).to_ne_bytes(), &mut notes);
    match &set.carries {
        Carries::Nothing => {}
        Carries::Verdict => raw.u32(ffi::NFTNL_SET_DATA_TYPE, VERDICT_TYPE),
        Carries::Data(types) => {
            raw.u32(ffi::NFTNL_SET_DATA_TYPE, DataType::concat_id(types));
            raw.u32(ffi::NFTNL_SET_DATA_LEN, DataType::concat_len(types) as u32);
            udata(1, &DataType::byte_order(types).to_ne_bytes(), &mut notes);
        }
    }
    if let Some(size) = set.size {
        raw.u32(ffi::NFTNL_SET_DESC_SIZE, size);
    }
    if set.concat_intervals() {
        let lengths: Vec<u8> = set.key.iter().map(|field| field.size() as u8).take(16).collect();
        raw.data(ffi::NFTNL_SET_DESC_CONCAT, &lengths);
    }
    if let Some(timeout) = set.timeout {
        // SAFETY: the object is live and the timeout is a 64-bit attribute.
        unsafe {
            ffi::nftnl_set_set_u64(
                raw.0.as_ptr(),
                ffi::NFTNL_SET_TIMEOUT as u16,
                timeout.as_millis() as u64,
            )
        };
    }
    raw.data(ffi::NFTNL_SET_USERDATA, &notes);
    let message = buffer.begin(header);
    // SAFETY: the message has room for the largest set.
    unsafe { ffi::nftnl_set_nlmsg_build_payload(message.as_ptr(), raw.0.as_ptr()) };
    buffer.message()
}

/// An element as the kernel sees it: half an interval is an element too.
pub(crate) struct Piece<'a> {
    pub(crate) key: &'a Data,
    pub(crate) key_end: Option<&'a Data>,
    pub(crate) value: &'a Value,
    pub(crate) interval_end: bool,
    pub(crate) timeout: Option<std::time::Duration>,
}

impl Piece<'_> {
    /// An upper bound of its encoded size.
    pub(crate) fn cost(&self) -> usize {
        let value = match self.value {
            Value::None => 0,
            Value::Data(data) => 16 + data.as_bytes().len(),
            Value::Verdict(verdict) => 32 + verdict.chain().map_or(0, |chain| chain.as_str().len()),
        };
        let end = self.key_end.map_or(0, |end| 16 + end.as_bytes().len());
        48 + self.key.as_bytes().len() + end + value
    }

    fn build(&self) -> RawElement {
        const INTERVAL_END: u32 = 1;
        let raw = RawElement::new();
        raw.value(ffi::NFTNL_SET_ELEM_KEY, self.key);
        if let Some(end) = self.key_end {
            raw.value(ffi::NFTNL_SET_ELEM_KEY_END, end);
        }
        if self.interval_end {
            raw.u32(ffi::NFTNL_SET_ELEM_FLAGS, INTERVAL_END);
        }
        match self.value {
            Value::None => {}
            Value::Data(data) => raw.value(ffi::NFTNL_SET_ELEM_DATA, data),
            Value::Verdict(verdict) => {
                raw.u32(ffi::NFTNL_SET_ELEM_VERDICT, verdict.code() as u32);
                if let Some(chain) = verdict.chain() {
                    raw.str(ffi::NFTNL_SET_ELEM_CHAIN, chain.as_c_str());
                }
            }
        }
        if let Some(timeout) = self.timeout {
            // SAFETY: the object is live and the timeout is a 64-bit attribute.
            unsafe {
                ffi::nftnl_set_elem_set_u64(
                    raw.0.as_ptr(),
                    ffi::NFTNL_SET_ELEM_TIMEOUT as u16,
                    timeout.as_millis() as u64,
                )
            };
        }
        raw
    }
}

/// Builds a message about elements of a set. The pieces' costs must add up to no more than
/// [`super::ELEMENTS_MAX`]; what is beyond is left out.
pub(crate) fn elements<'a>(
    buffer: &'a mut Buffer,
    header: Header,
    set: &Set,
    pieces: &[Piece<'_>],
) -> &'a [u8] {
    let raw = RawSet::named(set);
    let mut cost = 0;
    for piece in pieces {
        cost += piece.cost();
        if cost > super::ELEMENTS_MAX {
            break;
        }
        raw.push(piece.build());
    }
    let message = buffer.begin(header);
    // SAFETY: the message has room for the elements, whose size was bounded above.
    unsafe { ffi::nftnl_set_elems_nlmsg_build_payload(message.as_ptr(), raw.0.as_ptr()) };
    buffer.message()
}
