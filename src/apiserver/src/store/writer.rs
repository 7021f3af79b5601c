//! The one thread that writes: takes waiting transactions in groups, runs them in order, commits
//! the group, publishes it, answers.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::disk::Disk;
use super::kept::Kept;
use super::state::{Act, Change, State};
use crate::failure::Failure;
use crate::object::ObjectExt;

/// How many transactions share a commit at most.
const GROUP: usize = 128;

type Overlay = BTreeMap<String, Option<Kept>>;
type Answer = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// A transaction that waits for its turn.
pub(super) type Job = Box<dyn FnOnce(&mut Tx<'_>) -> (Verdict, Answer) + Send>;

/// Whether the changes of a transaction are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    Discard,
}

/// Wraps a typed transaction.
pub(super) fn job<T, F>(work: F, answer: oneshot::Sender<Result<T, Failure>>) -> Job
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send + 'static,
{
    Box::new(move |tx| {
        let result = catch_unwind(AssertUnwindSafe(|| work(tx)))
            .unwrap_or_else(|_| Err(Failure::internal("the transaction panicked")));
        let verdict = if result.is_ok() { Verdict::Keep } else { Verdict::Discard };
        let finish: Answer = Box::new(move |committed| {
            // A client that went away does not care.
            let _ = answer.send(committed.and(result));
        });
        (verdict, finish)
    })
}

/// A view of the store with the changes of this transaction on top.
pub(crate) struct Tx<'a> {
    state: &'a State,
    group: &'a Overlay,
    own: Overlay,
    revision: u64,
    changes: Vec<Change>,
}

impl Tx<'_> {
    /// One object.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Value>> {
        self.kept(key).map(Kept::value)
    }

    fn kept(&self, key: &str) -> Option<&Kept> {
        match self.own.get(key).or_else(|| self.group.get(key)) {
            Some(found) => found.as_ref(),
            None => self.state.objects.get(key),
        }
    }

    /// All objects whose key starts with `prefix`, in key order.
    pub(crate) fn list(&self, prefix: &str) -> Vec<(String, Arc<Value>)> {
        let mut all: BTreeMap<String, Arc<Value>> = self.state.range(prefix).into_iter().collect();
        for overlay in [self.group, &self.own] {
            let later = overlay.range(prefix.to_owned()..);
            for (key, object) in later.take_while(|(key, _)| key.starts_with(prefix)) {
                match object {
                    Some(object) => all.insert(key.clone(), object.value()),
                    None => all.remove(key),
                };
            }
        }
        all.into_iter().collect()
    }

    /// The revision of the last change before this transaction's next one.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Stores an object at the next revision, which it stamps, and returns it as stored.
    pub(crate) fn put(&mut self, key: &str, object: Value) -> Arc<Value> {
        let act = if self.kept(key).is_some() { Act::Updated } else { Act::Created };
        let object = self.record(key, object, act);
        self.own.insert(key.to_owned(), Some(object.clone()));
        object.value()
    }

    /// Removes an object and returns its last form, at the revision of the removal.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Arc<Value>> {
        let last = Arc::unwrap_or_clone(self.get(key)?);
        let object = self.record(key, last, Act::Removed);
        self.own.insert(key.to_owned(), None);
        Some(object.value())
    }

    fn record(&mut self, key: &str, mut object: Value, act: Act) -> Kept {
        self.revision += 1;
        object.put("/metadata/resourceVersion", self.revision.to_string());
        let object = Kept::new(Arc::new(object));
        self.changes.push(Change {
            revision: self.revision,
            key: key.to_owned(),
            act,
            object: Arc::clone(object.text()),
            previous: self.kept(key).map(|previous| Arc::clone(previous.text())),
        });
        object
    }
}

pub(super) struct Writer {
    pub(super) disk: Disk,
    pub(super) state: Arc<RwLock<State>>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) published: watch::Sender<u64>,
}

impl Writer {
    /// Runs until every handle on the store is gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.jobs.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP {
                match self.jobs.try_recv() {
                    Ok(next) => group.push(next),
                    Err(_) => break,
                }
            }
            self.run_group(group);
        }
    }

    fn run_group(&self, group: Vec<Job>) {
        let (changes, objects, answers) = self.evaluate(group);
        let committed = match changes.is_empty() {
            true => Ok(()),
            false => self.disk.commit(&changes).map_err(|error| {
                tracing::error!(error, "the object database refuses writes");
                Failure::internal(error)
            }),
        };
        if committed.is_ok() && !changes.is_empty() {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.apply(changes, objects);
            let revision = state.revision;
            drop(state);
            self.published.send_replace(revision);
        }
        for (verdict, answer) in answers {
            // A discarded transaction has its own error to report.
            answer(if verdict == Verdict::Keep { committed.clone() } else { Ok(()) });
        }
    }

    fn evaluate(&self, group: Vec<Job>) -> (Vec<Change>, Overlay, Vec<(Verdict, Answer)>) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut overlay = Overlay::new();
        let mut revision = state.revision;
        let mut changes = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        for job in group {
            let mut tx = Tx {
                state: &state,
                group: &overlay,
                own: Overlay::new(),
                revision,
                changes: Vec::new(),
            };
            let (verdict, answer) = job(&mut tx);
            if verdict == Verdict::Keep {
                let Tx { own, revision: reached, changes: made, .. } = tx;
                revision = reached;
                changes.extend(made);
                overlay.extend(own);
            }
            answers.push((verdict, answer));
        }
        (changes, overlay, answers)
    }
}
