//! Objects by key, with one revision counter and a bounded history for watches.
//!
//! One thread writes. It takes all the transactions that wait, runs them one after the other on
//! top of what is committed, makes them durable with one commit, and only then shows them to
//! readers and answers. So transactions are serial (allocations need no locks of their own), a
//! reader never sees what a crash could take back, and fsync is paid once a group.
//!
//! Deliberately not here: what an object means. Values are JSON with a
//! `metadata.resourceVersion` that this module sets.

mod disk;
mod kept;
mod state;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

pub use disk::Recovery;
pub(crate) use kept::parse;
pub(crate) use state::{Act, Change};
pub(crate) use writer::Tx;

use crate::failure::Failure;
use state::State;

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be made.
    #[error("make {path}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a database, or damaged.
    #[error(
        "the object database {path} is damaged ({why}); move it away to start empty, or start \
         with quarantine, which does that"
    )]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Another process has it open.
    #[error("the object database {path} is in use by another process")]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("access the object database {path}: {why}")]
    Access {
        /// The database file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The writer thread cannot be started.
    #[error("start the writer thread")]
    Thread(#[source] std::io::Error),
}

/// Where the store is and how it behaves.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The database file.
    pub path: PathBuf,
    /// What to do with a damaged file.
    pub recovery: Recovery,
    /// How far watches may go back.
    pub history: History,
    /// Objects whose keys start so are kept as text alone, being hardly ever read.
    pub packed: &'static str,
}

/// What is kept of changes, whichever is less.
#[derive(Debug, Clone, Copy)]
pub(crate) struct History {
    /// So many changes.
    pub changes: usize,
    /// Changes that take so many bytes.
    pub bytes: usize,
}

/// A handle on the store; clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    state: Arc<RwLock<State>>,
    queue: mpsc::Sender<writer::Job>,
    revisions: watch::Receiver<u64>,
}

/// Objects of a prefix at one revision.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// Key and object, in key order.
    pub items: Vec<(String, Arc<Value>)>,
    /// The revision this is the truth of.
    pub revision: u64,
}

/// The history does not go back that far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Compacted {
    /// The oldest revision a watch may start after.
    pub oldest: u64,
}

impl Store {
    /// Opens or makes the database and starts the writer. Blocking.
    ///
    /// # Errors
    /// When the file is damaged (and not to be quarantined), in use, or not accessible.
    pub(crate) fn open(config: &Config) -> Result<(Self, std::thread::JoinHandle<()>), Error> {
        let (disk, objects, revision) = disk::Disk::open(&config.path, config.recovery)?;
        let state = State::new(objects, revision, (config.history, config.packed));
        let state = Arc::new(RwLock::new(state));
        let (queue, jobs) = mpsc::channel(1024);
        let (published, revisions) = watch::channel(revision);
        let writer = writer::Writer { disk, state: Arc::clone(&state), jobs, published };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(Error::Thread)?;
        Ok((Self { state, queue, revisions }, thread))
    }

    /// Runs a transaction. All of its changes are durable when this returns `Ok`, none of them
    /// happened when it returns `Err`.
    ///
    /// # Errors
    /// Those of `work`, and 500 or 503 when the disk or the store is gone.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job = writer::job(work, answer);
        let gone = || Failure::unavailable("the object store is shut down");
        self.queue.send(job).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// One object.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Value>> {
        self.read(|state| state.objects.get(key).map(kept::Kept::value))
    }

    /// All objects whose key starts with `prefix`, now.
    pub(crate) fn list(&self, prefix: &str) -> Listing {
        self.read(|state| Listing { items: state.range(prefix), revision: state.revision })
    }

    /// All objects whose key starts with `prefix`, as they were at `revision`.
    ///
    /// # Errors
    /// When the history does not reach back to it.
    pub(crate) fn list_at(&self, prefix: &str, revision: u64) -> Result<Listing, Compacted> {
        self.read(|state| state.range_at(prefix, revision))
    }

    /// The changes after `revision` to keys that start with `prefix`, and the revision up to
    /// which these are all.
    ///
    /// # Errors
    /// When the history does not reach back to it.
    pub(crate) fn changes(
        &self,
        prefix: &str,
        revision: u64,
    ) -> Result<(Vec<Arc<Change>>, u64), Compacted> {
        self.read(|state| state.changes(prefix, revision))
    }

    /// The revision of the last change.
    pub(crate) fn revision(&self) -> u64 {
        self.read(|state| state.revision)
    }

    /// Told of every new revision.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revisions.clone()
    }

    fn read<T>(&self, with: impl FnOnce(&State) -> T) -> T {
        with(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectExt;
    use serde_json::json;

    fn open(dir: &std::path::Path, history: usize) -> (Store, std::thread::JoinHandle<()>) {
        let path = dir.join("objects.redb");
        let history = History { changes: history, bytes: 4096 };
        Store::open(&Config { path, recovery: Recovery::Refuse, history, packed: "a/p" }).unwrap()
    }

    async fn put(store: &Store, key: &str, value: i64) -> u64 {
        let key = key.to_owned();
        store
            .write(move |tx| {
                Ok(tx
                    .put(&key, json!({"v": value}))
                    .text("/metadata/resourceVersion")
                    .parse()
                    .unwrap())
            })
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn objects_and_the_revision_survive_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (store, thread) = open(dir.path(), 10);
        put(&store, "a/x/1", 1).await;
        let last = put(&store, "a/x/2", 2).await;
        drop(store);
        thread.join().unwrap();
        let (store, _thread) = open(dir.path(), 10);
        assert_eq!(store.revision(), last);
        assert_eq!(store.get("a/x/2").unwrap()["v"], 2);
        assert!(put(&store, "a/x/3", 3).await > last);
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _thread) = open(dir.path(), 10);
        for number in 0..20 {
            let revision = put(&store, &format!("a/x/{number}"), number).await;
            // The file as it is now, as if the process had ended here without closing it.
            let after = tempfile::tempdir().unwrap();
            let copy = after.path().join("objects.redb");
            std::fs::copy(dir.path().join("objects.redb"), &copy).unwrap();
            let (found, _thread) = open(after.path(), 10);
            assert_eq!(found.revision(), revision);
            assert_eq!(found.list("a/").items.len() as i64, number + 1);
        }
    }

    #[tokio::test]
    async fn a_failed_transaction_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _thread) = open(dir.path(), 10);
        let result: Result<(), _> = store
            .write(|tx| {
                tx.put("a/x/1", json!({}));
                Err(Failure::bad_request("no"))
            })
            .await;
        assert!(result.is_err());
        assert!(store.get("a/x/1").is_none());
        let panicked: Result<(), _> = store.write(|_| panic!("on purpose")).await;
        assert_eq!(panicked.unwrap_err().code(), 500);
        assert!(put(&store, "a/x/1", 1).await > 0, "the writer lives on");
    }

    #[tokio::test]
    async fn an_old_listing_is_rebuilt_from_history() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _thread) = open(dir.path(), 3);
        put(&store, "a/x/1", 1).await;
        let then = put(&store, "a/x/2", 1).await;
        put(&store, "a/x/1", 2).await;
        store.write(|tx| Ok(tx.remove("a/x/2"))).await.unwrap();
        put(&store, "a/x/3", 1).await;
        let old = store.list_at("a/", then).unwrap();
        let shown: Vec<_> = old.items.iter().map(|(k, v)| (k.as_str(), v.int("/v"))).collect();
        assert_eq!(shown, [("a/x/1", Some(1)), ("a/x/2", Some(1))]);
        put(&store, "a/x/4", 1).await;
        assert!(store.list_at("a/", then).is_err(), "beyond the history");
        assert!(store.changes("a/", then).is_err());
    }

    #[tokio::test]
    async fn the_history_is_text_that_changes_share_and_is_bounded_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _thread) = open(dir.path(), 100);
        let start = put(&store, "a/x/1", 1).await;
        put(&store, "a/x/1", 2).await;
        put(&store, "a/x/1", 3).await;
        let (changes, _) = store.changes("a/", start).unwrap();
        assert!(Arc::ptr_eq(&changes[0].object, changes[1].previous.as_ref().unwrap()));
        // One parsed form of an object, none of one that is kept as text; none in the history.
        let (live, again) = (store.get("a/x/1").unwrap(), store.get("a/x/1").unwrap());
        assert!(Arc::ptr_eq(&live, &again));
        put(&store, "a/p/1", 1).await;
        assert!(!Arc::ptr_eq(&store.get("a/p/1").unwrap(), &store.get("a/p/1").unwrap()));
        let large = "x".repeat(1500);
        for _ in 0..3 {
            let large = large.clone();
            store.write(move |tx| Ok(tx.put("a/x/2", json!({"v": large})))).await.unwrap();
        }
        assert!(store.changes("a/", start).is_err(), "the bytes are more than may be kept");
        let (changes, _) = store.changes("a/", store.revision() - 2).unwrap();
        assert_eq!(changes.len(), 2);
    }

    #[tokio::test]
    async fn concurrent_increments_lose_no_update() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _thread) = open(dir.path(), 100);
        put(&store, "a/x/n", 0).await;
        let writers = (0..50).map(|_| {
            let store = store.clone();
            async move {
                store
                    .write(|tx| {
                        let now = tx.get("a/x/n").and_then(|o| o.int("/v")).unwrap_or(0);
                        tx.put("a/x/n", json!({"v": now + 1}));
                        Ok(())
                    })
                    .await
            }
        });
        for result in futures::future::join_all(writers).await {
            result.unwrap();
        }
        assert_eq!(store.get("a/x/n").unwrap()["v"], 50);
    }

    #[test]
    fn a_damaged_file_is_named_and_can_be_quarantined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("objects.redb");
        std::fs::write(&path, vec![0x5a; 8192]).unwrap();
        let history = History { changes: 10, bytes: 4096 };
        let config = |recovery| Config { path: path.clone(), recovery, history, packed: "a/p" };
        let error = Store::open(&config(Recovery::Refuse)).unwrap_err();
        assert!(error.to_string().contains("objects.redb"), "{error}");
        let (store, _thread) = Store::open(&config(Recovery::Quarantine)).unwrap();
        assert_eq!(store.list("").items.len(), 0);
        let kept = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("damaged"))
            .count();
        assert_eq!(kept, 1);
    }
}
