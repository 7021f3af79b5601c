//! What readers see: the committed objects and the recent changes. Pure; no disk, no locks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use super::{Compacted, Listing};

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
    /// The object after the change; for a removal its last form, at this revision.
    pub object: Arc<Value>,
    /// The object before the change.
    pub previous: Option<Arc<Value>>,
}

/// Committed objects and recent changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Arc<Value>>,
    pub(super) revision: u64,
    history: VecDeque<Arc<Change>>,
    capacity: usize,
    /// Changes up to and including this revision are forgotten.
    forgotten: u64,
}

impl State {
    pub(super) fn new(
        objects: BTreeMap<String, Arc<Value>>,
        revision: u64,
        capacity: usize,
    ) -> Self {
        Self { objects, revision, history: VecDeque::new(), capacity, forgotten: revision }
    }

    pub(super) fn range(&self, prefix: &str) -> Vec<(String, Arc<Value>)> {
        self.objects
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
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
                Some(previous) => items.insert(change.key.clone(), Arc::clone(previous)),
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

    pub(super) fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.revision = change.revision;
            match change.act {
                Act::Removed => self.objects.remove(&change.key),
                Act::Created | Act::Updated => {
                    self.objects.insert(change.key.clone(), Arc::clone(&change.object))
                }
            };
            self.history.push_back(Arc::new(change));
        }
        while self.history.len() > self.capacity {
            if let Some(old) = self.history.pop_front() {
                self.forgotten = old.revision;
            }
        }
    }
}
