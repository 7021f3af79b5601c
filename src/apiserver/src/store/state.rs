//! What readers see: the committed objects and the recent changes. Pure; no disk, no locks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use super::kept::{Kept, parse};
use super::{Compacted, History, Listing};

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// It was not there before.
    Created,
    /// It was there before and is still.
    Updated,
    /// It is gone; the change holds its last form.
    Removed,
}

/// One change of one object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// The revision it made.
    pub revision: u64,
    /// Which object.
    pub key: String,
    /// What happened.
    pub act: Act,
    /// The text of the object after the change; for a removal its last form, at this revision.
    pub object: Arc<str>,
    /// That of the object before the change, which the change that made it shares.
    pub previous: Option<Arc<str>>,
}

/// Committed objects and recent changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Kept>,
    pub(super) revision: u64,
    history: VecDeque<Arc<Change>>,
    /// What the texts of the history take.
    history_bytes: usize,
    limits: History,
    /// Objects whose keys start so are kept as text alone.
    packed: &'static str,
    /// Changes up to and including this revision are forgotten.
    forgotten: u64,
}

impl State {
    pub(super) fn new(
        objects: BTreeMap<String, Arc<Value>>,
        revision: u64,
        (limits, packed): (History, &'static str),
    ) -> Self {
        let mut state = Self {
            objects: BTreeMap::new(),
            revision,
            history: VecDeque::new(),
            history_bytes: 0,
            limits,
            packed,
            forgotten: revision,
        };
        for (key, object) in objects {
            state.keep(key, Kept::new(object));
        }
        state
    }

    fn keep(&mut self, key: String, object: Kept) {
        let object = if key.starts_with(self.packed) { object.packed() } else { object };
        self.objects.insert(key, object);
    }

    pub(super) fn range(&self, prefix: &str) -> Vec<(String, Arc<Value>)> {
        self.objects
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| (key.clone(), object.value()))
            .collect()
    }

    pub(super) fn range_at(&self, prefix: &str, revision: u64) -> Result<Listing, Compacted> {
        if revision < self.forgotten {
            return Err(Compacted { oldest: self.forgotten });
        }
        let mut items: BTreeMap<String, Arc<Value>> = self.range(prefix).into_iter().collect();
        let later = self.history.iter().rev().take_while(|change| change.revision > revision);
        for change in later.filter(|change| change.key.starts_with(prefix)) {
            match &change.previous {
                Some(previous) => items.insert(change.key.clone(), Arc::new(parse(previous))),
                None => items.remove(&change.key),
            };
        }
        Ok(Listing { items: items.into_iter().collect(), revision })
    }

    pub(super) fn changes(
        &self,
        prefix: &str,
        revision: u64,
    ) -> Result<(Vec<Arc<Change>>, u64), Compacted> {
        if revision < self.forgotten {
            return Err(Compacted { oldest: self.forgotten });
        }
        let start = self.history.partition_point(|change| change.revision <= revision);
        let found = self
            .history
            .range(start..)
            .filter(|change| change.key.starts_with(prefix))
            .cloned()
            .collect();
        Ok((found, self.revision))
    }

    /// Takes in what is durable; `objects` are those that have another form by it, or none.
    pub(super) fn apply(&mut self, changes: Vec<Change>, objects: BTreeMap<String, Option<Kept>>) {
        for (key, object) in objects {
            match object {
                Some(object) => self.keep(key, object),
                None => drop(self.objects.remove(&key)),
            }
        }
        for change in changes {
            self.revision = change.revision;
            self.history_bytes += change.object.len();
            self.history.push_back(Arc::new(change));
        }
        let (most, most_bytes) = (self.limits.changes, self.limits.bytes);
        while self.history.len() > most || self.history_bytes > most_bytes {
            let Some(old) = self.history.pop_front() else { break };
            self.history_bytes -= old.object.len();
            self.forgotten = old.revision;
        }
    }
}
