//! What the kernel holds: tables, chains, rules, sets and elements, read for adoption and diff.
//!
//! A dump that another change interrupts is repeated, and so is one of a set that the kernel is
//! resizing. Objects with names or values this crate cannot represent are left out of element
//! dumps; nothing of ours is of that kind.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use nix::libc;

use crate::attr::{Attrs, put};
use crate::set::Carries;
use crate::socket::Request;
use crate::{
    Data, Element, Error, Family, Key, Name, ObjectKind, Set, Socket, Table, Value, Verdict,
};

/// A dump of a set that is being resized is repeated after 1 ms, 2 ms and so on until this.
const RESIZE_PAUSE_MAX: Duration = Duration::from_millis(256);

/// A table in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its comment.
    pub comment: Option<String>,
}

/// A chain in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// Hook number and priority of a base chain.
    pub base: Option<(u32, i32)>,
}

/// A rule in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its chain.
    pub chain: String,
    /// What deletes it.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// Its instructions as the kernel encodes them: equal rules have equal bytes, as long as
    /// they hold no counters.
    pub instructions: Vec<u8>,
}

/// A set or map in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetInfo {
    /// Its name.
    pub name: String,
    /// Its flags (`NFT_SET_*`).
    pub flags: u32,
    /// Bytes of a key.
    pub key_len: u32,
}

impl Socket {
    /// The ruleset's generation: changes with every transaction of anybody in the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let mut request = Request::read(libc::NFT_MSG_GETGEN, 0, ObjectKind::Batch, &[]);
        request.flags = 0;
        let found = self.dump(&request, |out, _, attrs| out.extend(attrs.be32(1)))?;
        found.first().copied().ok_or(Error::Malformed { object: request.object })
    }

    /// All tables of a family.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn tables(&mut self, family: Family) -> Result<Vec<TableInfo>, Error> {
        let request =
            Request::read(libc::NFT_MSG_GETTABLE, family.number(), ObjectKind::Table, &[]);
        self.dump(&request, |out, number, attrs| {
            let family = Family::from_number(number);
            if let (Some(family), Some(name)) = (family, attrs.text(1)) {
                let comment = attrs.find(6).and_then(comment);
                out.push(TableInfo { family, name: name.to_owned(), comment });
            }
        })
    }

    /// The chains of a table; none when there is no such table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainInfo>, Error> {
        let request =
            Request::read(libc::NFT_MSG_GETCHAIN, table.family.number(), ObjectKind::Chain, &[]);
        self.dump(&request, |out, _, attrs| {
            if attrs.text(1) != Some(table.name()) {
                return;
            }
            let base =
                attrs.nested(4).and_then(|hook| Some((hook.be32(1)?, hook.be32(2)?.cast_signed())));
            out.extend(attrs.text(3).map(|name| ChainInfo { name: name.to_owned(), base }));
        })
    }

    /// The rules of a table, in order; none when there is no such table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>, Error> {
        let mut attributes = Vec::new();
        put(&mut attributes, 1, table.name.as_c_str().to_bytes_with_nul());
        let request = Request::read(
            libc::NFT_MSG_GETRULE,
            table.family.number(),
            ObjectKind::Rule,
            &attributes,
        );
        let found = self.dump(&request, |out, _, attrs| {
            if attrs.text(1) != Some(table.name()) {
                return;
            }
            if let (Some(chain), Some(handle)) = (attrs.text(2), attrs.be64(3)) {
                out.push(RuleInfo {
                    chain: chain.to_owned(),
                    handle,
                    comment: attrs.find(7).and_then(comment),
                    instructions: attrs.find(4).unwrap_or_default().to_vec(),
                });
            }
        });
        or_nothing(found)
    }

    /// The sets and maps of a table; none when there is no such table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>, Error> {
        let mut attributes = Vec::new();
        put(&mut attributes, 1, table.name.as_c_str().to_bytes_with_nul());
        let request = Request::read(
            libc::NFT_MSG_GETSET,
            table.family.number(),
            ObjectKind::Set,
            &attributes,
        );
        let found = self.dump(&request, |out, _, attrs| {
            if let (Some(name), Some(key_len)) = (attrs.text(2), attrs.be32(5)) {
                let flags = attrs.be32(3).unwrap_or(0);
                out.push(SetInfo { name: name.to_owned(), flags, key_len });
            }
        });
        or_nothing(found)
    }

    /// The elements of a set, each once, in no order. Intervals come back as ranges; timeouts are
    /// left out, and one that expires meanwhile may take another with it. Blocks for half a second at
    /// most while the kernel resizes the set.
    ///
    /// # Errors
    /// [`Error::Rejected`] when there is no such set, [`Error::Interrupted`] when it does not come
    /// to rest.
    pub fn elements(&mut self, set: &Set) -> Result<Vec<Element>, Error> {
        let mut attributes = Vec::new();
        put(&mut attributes, 1, set.table.name.as_c_str().to_bytes_with_nul());
        put(&mut attributes, 2, set.name.as_c_str().to_bytes_with_nul());
        let mut request = Request::read(
            libc::NFT_MSG_GETSETELEM,
            set.table.family.number(),
            ObjectKind::Elements,
            &attributes,
        );
        request.object.path = format!("{} {}", set.table.name(), set.name());
        let pieces = self.pieces(set, &request)?;
        if set.interval && set.key.len() == 1 {
            return Ok(joined(pieces));
        }
        Ok(pieces.into_iter().map(|(_, element)| element).collect())
    }

    /// What a set holds, as the kernel tells it.
    fn pieces(&mut self, set: &Set, request: &Request<'_>) -> Result<Vec<(Edge, Element)>, Error> {
        let mut pause = Duration::from_millis(1);
        while pause <= RESIZE_PAUSE_MAX {
            let found = self.dump(request, |out, _, attrs| {
                if let Some(list) = attrs.nested(3) {
                    out.extend(list.filter_map(|(_, element)| piece(set, Attrs(element))));
                }
            })?;
            if !has_repeats(&found) {
                return Ok(found);
            }
            thread::sleep(pause);
            pause *= 2;
        }
        Err(Error::Interrupted { object: request.object.clone() })
    }
}

/// Whether something was told twice, in which case something else may not have been told.
///
/// The kernel resizes a set's hash table some time after the transaction that made it grow or
/// shrink. It goes on with a dump at the number of elements it has told of, and in the new table
/// other elements have that number; no flag says so. Every number is told once, so that an element
/// which had none when its turn came has left it to one that had two.
fn has_repeats(pieces: &[(Edge, Element)]) -> bool {
    let mut seen = HashSet::with_capacity(pieces.len());
    !pieces.iter().all(|(edge, element)| seen.insert((edge, &element.key)))
}

/// A table that is not there holds nothing.
fn or_nothing<T>(found: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match found {
        Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Ok(Vec::new()),
        other => other,
    }
}

/// Reads the comment out of the user data `nft` keeps with objects.
fn comment(udata: &[u8]) -> Option<String> {
    let mut rest = udata;
    while let [kind, length, tail @ ..] = rest {
        let (value, next) = tail.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            return std::str::from_utf8(value.get(..end)?).ok().map(str::to_owned);
        }
        rest = next;
    }
    None
}

/// Whether a piece is where an interval starts or just after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Edge {
    Start,
    End,
}

fn piece(set: &Set, attrs: Attrs<'_>) -> Option<(Edge, Element)> {
    const INTERVAL_END: u32 = 1;
    let data = |kind| Some(Data::from_bytes(attrs.nested(kind)?.find(1)?));
    let key = data(1)?;
    let key = match data(10) {
        Some(end) if set.concat_intervals() && end != key => Key::Range(key, end),
        _ => Key::One(key),
    };
    let edge = if attrs.be32(3).unwrap_or(0) & INTERVAL_END != 0 { Edge::End } else { Edge::Start };
    let value = match (&set.carries, edge) {
        (Carries::Nothing, _) | (_, Edge::End) => Value::None,
        (Carries::Data(_), Edge::Start) => Value::Data(data(2)?),
        (Carries::Verdict, Edge::Start) => {
            let verdict = attrs.nested(2)?.nested(2)?;
            let chain = verdict.text(2).map(Name::new).transpose().ok()?;
            Value::Verdict(Verdict::from_code(verdict.be32(1)?.cast_signed(), chain)?)
        }
    };
    Some((edge, Element { key, value, timeout: None }))
}

/// Puts the ends of intervals together. A start without an end reaches to the last key.
fn joined(mut pieces: Vec<(Edge, Element)>) -> Vec<Element> {
    // An end comes before a start of the same key: intervals may touch.
    pieces.sort_by(|(left_edge, left), (right_edge, right)| {
        let order = |edge: &Edge| u8::from(*edge == Edge::Start);
        left.key.start().cmp(right.key.start()).then(order(left_edge).cmp(&order(right_edge)))
    });
    let mut out: Vec<Element> = Vec::new();
    let mut open = false;
    for (edge, element) in pieces {
        match edge {
            Edge::Start => {
                out.push(element);
                open = true;
            }
            Edge::End if open => {
                open = false;
                if let (Some(last), Some(end)) = (out.last_mut(), element.key.start().predecessor())
                {
                    let start = last.key.start().clone();
                    last.key = if start == end { Key::One(start) } else { Key::Range(start, end) };
                }
            }
            Edge::End => {}
        }
    }
    if let (true, Some(last)) = (open, out.last_mut()) {
        let start = last.key.start().clone();
        let end = Data::from_bytes(&vec![0xff; start.as_bytes().len()]);
        last.key = if start == end { Key::One(start) } else { Key::Range(start, end) };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Field;

    fn edge(edge: Edge, addr: [u8; 4]) -> (Edge, Element) {
        (edge, Element::key(Field::Ipv4(addr.into())))
    }

    #[test]
    fn the_ends_of_touching_intervals_join_into_two_ranges() {
        let joined = joined(vec![
            edge(Edge::Start, [10, 0, 1, 0]),
            edge(Edge::End, [10, 0, 2, 0]),
            edge(Edge::End, [10, 0, 1, 0]),
            edge(Edge::Start, [10, 0, 0, 0]),
            edge(Edge::Start, [255, 255, 255, 0]),
        ]);
        let keys: Vec<_> = joined.into_iter().map(|element| element.key).collect();
        assert_eq!(
            keys,
            [
                Key::prefix([10, 0, 0, 0], 24),
                Key::prefix([10, 0, 1, 0], 24),
                Key::prefix([255, 255, 255, 0], 24)
            ]
        );
    }

    #[test]
    fn a_comment_is_found_behind_other_user_data() {
        assert_eq!(comment(b"\x01\x02xy\x00\x03hi\0"), Some("hi".into()));
        assert_eq!(comment(b"\x00\xffhi"), None);
        assert_eq!(comment(b""), None);
    }
}
