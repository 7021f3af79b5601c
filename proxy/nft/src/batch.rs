//! One atomic transaction: messages in the order they were added, applied all or not at all.
//!
//! Owns the layout of a transaction and the names of its objects for error messages. The kernel
//! is asked for one acknowledgement, at the last message: one per message could overflow the
//! receive buffer. Spec: `linux/netfilter/nfnetlink.h`, `nf_tables.h`.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use crate::sys::{self, Header, Piece, RuleContext};
use crate::{
    Chain, Element, Error, Family, Key, Object, ObjectKind, Operation, Rule, Set, Table, Value,
};

/// nf_tables' number among the netfilter subsystems.
pub(crate) const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;

static SEQUENCE: AtomicU32 = AtomicU32::new(1);

/// A sequence number no other message of this process has.
pub(crate) fn next_sequence() -> u32 {
    SEQUENCE.fetch_add(1, Ordering::Relaxed)
}

/// A transaction being built.
///
/// Adding an object that exists with the same attributes is fine; deleting one that does not
/// exist fails the transaction. To delete what may not exist, add it first in the same
/// transaction. To change what an element maps to, delete and add it in the same transaction.
pub struct Batch {
    bytes: Vec<u8>,
    first: u32,
    last: Option<(usize, u32)>,
    objects: Vec<(u32, Object)>,
    sets: u32,
    buffer: sys::Buffer,
    error: Option<Error>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("objects", &self.objects).finish_non_exhaustive()
    }
}

/// What is sent, and how to read the answer.
pub(crate) struct Finished {
    pub(crate) bytes: Vec<u8>,
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) objects: Vec<(u32, Object)>,
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Self {
        let first = next_sequence();
        let mut batch = Self {
            bytes: Vec::with_capacity(4096),
            first,
            last: None,
            objects: Vec::new(),
            sets: 0,
            buffer: sys::Buffer::new(),
            error: None,
        };
        batch.bracket(BATCH_BEGIN, first);
        batch
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.last.is_none() && self.error.is_none()
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Adds a table, or leaves an existing one.
    pub fn add_table(&mut self, table: &Table) {
        self.table(table, (libc::NFT_MSG_NEWTABLE, Operation::Add, CREATE));
    }

    /// Adds a table; fails when there is one.
    pub fn create_table(&mut self, table: &Table) {
        self.table(table, (libc::NFT_MSG_NEWTABLE, Operation::Create, CREATE | EXCLUSIVE));
    }

    /// Deletes a table and everything in it.
    pub fn delete_table(&mut self, table: &Table) {
        self.table(table, (libc::NFT_MSG_DELTABLE, Operation::Delete, 0));
    }

    fn table(&mut self, table: &Table, (message, operation, flags): (i32, Operation, u16)) {
        let object =
            Object::new(operation, ObjectKind::Table, table.family, table.name().to_owned());
        let header = self.header(message, table.family, flags, object);
        let bytes = sys::table(&mut self.buffer, header, table);
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds a chain, or leaves an existing one with the same attributes.
    pub fn add_chain(&mut self, chain: &Chain) {
        self.chain(chain, (libc::NFT_MSG_NEWCHAIN, Operation::Add, CREATE));
    }

    /// Deletes an empty chain that nothing leads to.
    pub fn delete_chain(&mut self, chain: &Chain) {
        self.chain(chain, (libc::NFT_MSG_DELCHAIN, Operation::Delete, 0));
    }

    fn chain(&mut self, chain: &Chain, (message, operation, flags): (i32, Operation, u16)) {
        let path = format!("{} {}", chain.table.name(), chain.name());
        let object = Object::new(operation, ObjectKind::Chain, chain.table.family, path);
        let header = self.header(message, chain.table.family, flags, object);
        let bytes = sys::chain(&mut self.buffer, header, chain);
        self.bytes.extend_from_slice(bytes);
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, chain: &Chain) {
        let rule = Rule::new(chain);
        self.rule(&rule, None, (libc::NFT_MSG_DELRULE, Operation::Delete, 0));
    }

    /// Appends a rule to its chain.
    pub fn add_rule(&mut self, rule: &Rule) {
        let what = (libc::NFT_MSG_NEWRULE, Operation::Add, CREATE | APPEND);
        self.rule(rule, None, what);
    }

    /// Deletes the rule with a handle, as a dump returned it.
    pub fn delete_rule(&mut self, chain: &Chain, handle: u64) {
        let rule = Rule::new(chain);
        self.rule(&rule, Some(handle), (libc::NFT_MSG_DELRULE, Operation::Delete, 0));
    }

    fn rule(&mut self, rule: &Rule, handle: Option<u64>, what: (i32, Operation, u16)) {
        let (message, operation, flags) = what;
        let path = format!("{} {}", rule.table.name(), rule.chain);
        let mut object = Object::new(operation, ObjectKind::Rule, rule.table.family, path);
        object.detail.clone_from(&rule.comment);
        if rule.exprs.len() > sys::EXPRS_MAX {
            self.error.get_or_insert(Error::Malformed { object });
            return;
        }
        let nameless = match self.nameless_sets(rule) {
            Ok(sets) => sets,
            Err(error) => {
                self.error.get_or_insert(error);
                return;
            }
        };
        let header = self.header(message, rule.table.family, flags, object);
        let context = RuleContext { handle, nameless: &nameless };
        let bytes = sys::rule(&mut self.buffer, header, rule, context);
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds the nameless sets that a rule's instructions look up.
    fn nameless_sets(&mut self, rule: &Rule) -> Result<Vec<Set>, Error> {
        let mut sets = Vec::new();
        for instruction in &rule.exprs {
            let id = self.sets + 1;
            if let Some((set, elements)) = Set::of_instruction(&rule.table, instruction, id)? {
                self.add_set(&set);
                self.add_elements(&set, elements);
                sets.push(set);
            }
        }
        Ok(sets)
    }

    /// Adds a set or map, or leaves an existing one with the same attributes.
    pub fn add_set(&mut self, set: &Set) {
        self.set(set, (libc::NFT_MSG_NEWSET, Operation::Add, CREATE));
    }

    /// Deletes a set or map that no rule uses.
    pub fn delete_set(&mut self, set: &Set) {
        self.set(set, (libc::NFT_MSG_DELSET, Operation::Delete, 0));
    }

    fn set(&mut self, set: &Set, (message, operation, flags): (i32, Operation, u16)) {
        let object = Object::of_set(operation, ObjectKind::Set, set);
        let header = self.header(message, set.table.family, flags, object);
        self.sets += 1;
        let bytes = sys::set(&mut self.buffer, header, set, self.sets);
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds elements. An element that exists with another value fails the transaction.
    pub fn add_elements<'e>(
        &mut self,
        set: &Set,
        elements: impl IntoIterator<Item = impl std::borrow::Borrow<Element> + 'e>,
    ) {
        self.elements(set, elements, (libc::NFT_MSG_NEWSETELEM, Operation::Add, CREATE));
    }

    /// Deletes elements by their keys. One that does not exist fails the transaction.
    pub fn delete_elements<'e>(
        &mut self,
        set: &Set,
        elements: impl IntoIterator<Item = impl std::borrow::Borrow<Element> + 'e>,
    ) {
        self.elements(set, elements, (libc::NFT_MSG_DELSETELEM, Operation::Delete, 0));
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, set: &Set) {
        self.element_message(set, &[], (libc::NFT_MSG_DELSETELEM, Operation::Delete, 0));
    }

    fn elements<'e>(
        &mut self,
        set: &Set,
        elements: impl IntoIterator<Item = impl std::borrow::Borrow<Element> + 'e>,
        what: (i32, Operation, u16),
    ) {
        let mut group: Vec<(Element, Option<crate::Data>)> = Vec::new();
        let mut cost = 0;
        for element in elements {
            let element = element.borrow();
            if !set.fits(element) {
                let set = format!("{} {}", set.table.name(), set.name());
                self.error.get_or_insert(Error::Element { set });
                return;
            }
            let half = interval_end(set, element);
            let more: usize =
                pieces(set, element, half.as_ref()).iter().flatten().map(Piece::cost).sum();
            if cost + more > sys::ELEMENTS_MAX {
                self.element_group(set, &group, what);
                group.clear();
                cost = 0;
            }
            cost += more;
            group.push((element.clone(), half));
        }
        if !group.is_empty() {
            self.element_group(set, &group, what);
        }
    }

    fn element_group(
        &mut self,
        set: &Set,
        group: &[(Element, Option<crate::Data>)],
        what: (i32, Operation, u16),
    ) {
        let pieces: Vec<_> = group
            .iter()
            .flat_map(|(element, half)| pieces(set, element, half.as_ref()))
            .flatten()
            .collect();
        self.element_message(set, &pieces, what);
    }

    fn element_message(&mut self, set: &Set, pieces: &[Piece<'_>], what: (i32, Operation, u16)) {
        let (message, operation, flags) = what;
        let object = Object::of_set(operation, ObjectKind::Elements, set);
        let header = self.header(message, set.table.family, flags, object);
        let bytes = sys::elements(&mut self.buffer, header, set, pieces);
        self.bytes.extend_from_slice(bytes);
    }

    fn header(&mut self, message: i32, family: Family, flags: u16, object: Object) -> Header {
        let seq = next_sequence();
        self.last = Some((self.bytes.len(), seq));
        self.objects.push((seq, object));
        Header {
            message: (SUBSYSTEM << 8) | message as u16,
            family: family.number(),
            flags: flags | REQUEST,
            seq,
        }
    }

    fn bracket(&mut self, message: u16, seq: u32) {
        self.bytes.extend_from_slice(&20u32.to_ne_bytes());
        self.bytes.extend_from_slice(&message.to_ne_bytes());
        self.bytes.extend_from_slice(&REQUEST.to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&SUBSYSTEM.to_be_bytes());
    }

    /// Closes the transaction. `None` when there is nothing to send.
    pub(crate) fn finish(mut self) -> Result<Option<Finished>, Error> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let Some((offset, last)) = self.last else {
            return Ok(None);
        };
        let flags = offset + 6..offset + 8;
        if let Some(Ok(bytes)) = self.bytes.get(flags.clone()).map(<[u8; 2]>::try_from) {
            let with_ack = u16::from_ne_bytes(bytes) | ACK;
            self.bytes[flags].copy_from_slice(&with_ack.to_ne_bytes());
        }
        self.bracket(BATCH_END, next_sequence());
        Ok(Some(Finished { bytes: self.bytes, first: self.first, last, objects: self.objects }))
    }
}

/// The key just after a range of a single field, where the kernel wants its end. `None` for
/// other elements and for ranges up to the last key.
fn interval_end(set: &Set, element: &Element) -> Option<crate::Data> {
    (set.interval && set.key.len() == 1).then(|| element.key.end().successor()).flatten()
}

/// What an element is to the kernel: one piece, or the two ends of an interval.
fn pieces<'a>(
    set: &Set,
    element: &'a Element,
    half: Option<&'a crate::Data>,
) -> [Option<Piece<'a>>; 2] {
    let first = Piece {
        key: element.key.start(),
        key_end: set.concat_intervals().then(|| element.key.end()),
        value: &element.value,
        interval_end: false,
        timeout: element.timeout,
    };
    let second = half.map(|key| Piece {
        key,
        key_end: None,
        value: &Value::None,
        interval_end: true,
        timeout: None,
    });
    debug_assert!(set.interval || matches!(element.key, Key::One(_)));
    [Some(first), second]
}

impl Object {
    pub(crate) fn new(
        operation: Operation,
        kind: ObjectKind,
        family: Family,
        path: String,
    ) -> Self {
        Self { operation, kind, family: Some(family), path, detail: None }
    }

    pub(crate) fn of_set(operation: Operation, kind: ObjectKind, set: &Set) -> Self {
        let path = format!("{} {}", set.table.name(), set.name());
        Self::new(operation, kind, set.table.family, path)
    }

    pub(crate) fn batch() -> Self {
        Self {
            operation: Operation::Add,
            kind: ObjectKind::Batch,
            family: None,
            path: String::new(),
            detail: None,
        }
    }
}
