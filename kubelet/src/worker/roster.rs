//! Which pods have a worker: the one place that starts workers, tells them of changes, and keeps a
//! new pod waiting while an old one of its name is still there.
//!
//! ```text
//!  API: added ──► waiting (same name, other UID still here) ──► admitted ─┬─► worker
//!                        ▲                                     refused ───┘   │ gone
//!                        └───────────────── next of that name ◄───────────────┘
//! ```
//!
//! A critical pod for which others have to end first waits in [`room`] until they have.
//!
//! Pods known from the disk get their workers before the API server answers; sandboxes that belong
//! to no pod are removed only once it has.

mod allocation;
mod ending;
mod returned;
mod room;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::{RuntimeEvent, SandboxStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::memory::Failure;
use super::{Context, End, MIN_GRACE, Wish, Worker, termination_grace};
use crate::admission::REJECTED;
use crate::events::Severity;
use crate::eviction::Order;
use crate::shutdown::Standing;
use crate::source::Event;
use crate::static_pods::{self, mirror};
use crate::status::writer::PodKey;
pub use allocation::Allocation;
use allocation::RETRY;
use room::Room;

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It runs.
    Admit,
    /// It never does.
    Refuse(Failure),
    /// It runs once the others of these UIDs have ended.
    Preempt(Vec<String>),
}

/// Decides whether a pod may run here.
pub trait Gatekeeper: Send + Sync + 'static {
    /// Judges `pod` beside `others`.
    fn admit(&self, pod: &Pod, others: &[Arc<Pod>]) -> Judgement;

    /// Judges whether `pod`, which runs, may have the resources it is specified with now.
    fn resize(&self, pod: &Pod, others: &[Arc<Pod>]) -> Allocation;
}

struct Entry {
    /// The pod with the resources it is allocated.
    pod: Arc<Pod>,
    /// The pod as it is specified.
    wanted: Arc<Pod>,
    wish: watch::Sender<Wish>,
    wake: Arc<Notify>,
    refused: bool,
}

/// How long a worker that failed stays away, so that one that always fails does not spin.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Who speaks of a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ToldBy {
    /// The API server, which knows who owns a name.
    Server,
    /// The disk, which may remember more than one owner.
    Disk,
}

/// All workers of the node.
pub struct Roster {
    context: Arc<Context>,
    gatekeeper: Arc<dyn Gatekeeper>,
    shutdown: CancellationToken,
    entries: HashMap<String, Entry>,
    /// Pods that wait for another of their name to be gone, by UID.
    waiting: BTreeMap<String, Arc<Pod>>,
    /// Pods that wait for others to leave them room.
    room: Room,
    /// Pods that are gone here but that the API server may still show.
    done: HashSet<String>,
    workers: JoinSet<(String, End)>,
    /// Where static pods come from, if the node has any.
    files: Option<mpsc::Receiver<Event<Pod>>>,
    /// The static pods that there should be, by UID.
    statics: HashMap<String, Arc<Pod>>,
    synced: Synced,
    /// Pods that are to end for the node's sake.
    evictions: mpsc::Receiver<Order>,
    /// Whether the node is about to go down.
    standing: Standing,
}

/// Which sources have told what they have; then what none of them knows is removed.
#[derive(Default)]
struct Synced {
    server: bool,
    files: bool,
    swept: bool,
}

impl Roster {
    /// An empty roster.
    pub fn new(
        context: Arc<Context>,
        gatekeeper: Arc<dyn Gatekeeper>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            context,
            gatekeeper,
            shutdown,
            entries: HashMap::new(),
            waiting: BTreeMap::new(),
            room: Room::default(),
            done: HashSet::new(),
            workers: JoinSet::new(),
            files: None,
            statics: HashMap::new(),
            synced: Synced { files: true, ..Synced::default() },
            evictions: mpsc::channel(1).1,
            standing: Standing::default(),
        }
    }

    /// Which ends the pods that `evictions` name, as for a node that goes down.
    pub fn with_evictions(self, evictions: mpsc::Receiver<Order>, standing: Standing) -> Self {
        Self { evictions, standing, ..self }
    }

    /// With static pods, told of by `files`.
    pub fn with_files(mut self, files: mpsc::Receiver<Event<Pod>>) -> Self {
        self.files = Some(files);
        self.synced.files = false;
        self
    }

    /// Serves until shutdown: `changes` come from the API server.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Event<Pod>>) {
        let mut happenings = self.context.runtime.events();
        self.start_cached().await;
        let mut files = self.files.take();
        let has_files = files.is_some();
        let mut ends = self.context.shelf.ends();
        let mut retry_at = Instant::now() + RETRY;
        let mut standing = self.standing.changes();
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                happening = happenings.recv() => {
                    if !self.route(happening) {
                        happenings = self.context.runtime.events();
                        // Do not spin on a runtime that has gone away.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                Some(ended) = self.workers.join_next(), if !self.workers.is_empty() => {
                    self.note_end(ended).await;
                }
                Ok(()) = ends.changed(), if !self.room.is_empty() || self.anyone_waits() => {
                    self.fill_room().await;
                    self.allocate_waiting();
                }
                Some(order) = self.evictions.recv() => self.obey(order),
                Ok(()) = standing.changed() => self.bring_back(),
                () = tokio::time::sleep_until(retry_at), if self.anyone_waits() => {
                    retry_at = Instant::now() + RETRY;
                    self.allocate_waiting();
                }
                Some(Event::Synced(pods)) = next_file(&mut files), if has_files => {
                    self.take_files(pods).await;
                }
                change = changes.recv() => match change {
                    Some(change) => self.take(change).await,
                    None => break,
                },
            }
        }
        self.shutdown.cancel();
        while self.workers.join_next().await.is_some() {}
    }

    /// Takes up the pods that the disk remembers.
    async fn start_cached(&mut self) {
        let sandboxes = self.context.runtime.list().await.unwrap_or_default();
        let has_run = |uid: &str| sandboxes.iter().any(|s| s.config.pod.uid == uid);
        let mut pods = self.context.cache.load().await;
        pods.sort_by_key(|p| Reverse(p.metadata.creation_timestamp.as_ref().map(|t| t.0)));
        // Those with a sandbox first, then the newest: a leftover of the same name must not take
        // their place.
        pods.sort_by_key(|p| !has_run(p.metadata.uid.as_deref().unwrap_or_default()));
        for pod in pods {
            if !self.begins_anew(&pod).await {
                self.apply(pod, ToldBy::Disk).await;
            }
        }
    }

    /// Wakes the worker that an event concerns. `false` when there will be no more events.
    fn route(&self, happening: Result<RuntimeEvent, RecvError>) -> bool {
        match happening {
            Ok(RuntimeEvent::Exited { pod, .. } | RuntimeEvent::SandboxLost { pod, .. }) => {
                if let Some(entry) = self.entries.get(&pod.uid) {
                    entry.wake.notify_one();
                }
                true
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {
                for entry in self.entries.values() {
                    entry.wake.notify_one();
                }
                true
            }
            Err(broadcast::error::RecvError::Closed) => false,
        }
    }

    async fn take(&mut self, change: Event<Pod>) {
        match change {
            Event::Synced(pods) => {
                let (mirrors, pods) = pods.into_iter().partition(mirror::is_mirror);
                self.context.mirrors.set_mirrors(mirrors);
                self.synced(pods).await;
            }
            Event::Applied(pod) if mirror::is_mirror(&pod) => self.context.mirrors.see(pod),
            Event::Deleted(pod) if mirror::is_mirror(&pod) => self.context.mirrors.lose(&pod),
            // Who writes such an annotation does not make a file of it.
            Event::Applied(pod) => self.apply(from_server(pod), ToldBy::Server).await,
            Event::Deleted(pod) => self.delete(&pod),
        }
    }

    async fn synced(&mut self, pods: Vec<Pod>) {
        let listed: HashSet<String> = pods.iter().filter_map(|p| p.metadata.uid.clone()).collect();
        self.done.retain(|uid| listed.contains(uid));
        self.forget_unlisted(&listed, Origin::Server);
        for pod in pods {
            self.apply(from_server(pod), ToldBy::Server).await;
        }
        self.synced.server = true;
        self.sweep().await;
    }

    /// Takes in the whole set of static pods.
    async fn take_files(&mut self, pods: Vec<Pod>) {
        let by_uid = pods.into_iter().map(|pod| {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            (uid, Arc::new(pod))
        });
        self.statics = by_uid.collect();
        self.context.mirrors.set_statics(self.statics.values().cloned());
        let listed = self.statics.keys().cloned().collect();
        self.forget_unlisted(&listed, Origin::File);
        let pods: Vec<Pod> = self.statics.values().map(|pod| Pod::clone(pod)).collect();
        for pod in pods {
            self.apply(pod, ToldBy::Server).await;
        }
        self.synced.files = true;
        self.sweep().await;
    }

    /// What a source does not list any more is gone; other sources' pods are not its business.
    fn forget_unlisted(&mut self, listed: &HashSet<String>, origin: Origin) {
        let is_its = |pod: &Pod| origin == Origin::of(pod);
        self.waiting.retain(|uid, pod| !is_its(pod) || listed.contains(uid));
        let is_listed = |pod: &Pod| pod.metadata.uid.as_ref().is_some_and(|u| listed.contains(u));
        self.room.retain(|pod| !is_its(pod) || is_listed(pod));
        let entries = self.entries.iter();
        let missing = entries.filter(|(uid, e)| is_its(&e.pod) && !listed.contains(*uid));
        let missing: Vec<String> = missing.map(|(uid, _)| uid.clone()).collect();
        for uid in missing {
            self.mark_gone(&uid, None);
        }
    }

    /// Removes what nobody knows, once, when everybody has been heard.
    async fn sweep(&mut self) {
        if self.synced.swept || !(self.synced.server && self.synced.files) {
            return;
        }
        self.synced.swept = true;
        self.remove_orphans().await;
        let mut known: BTreeSet<_> =
            self.entries.keys().chain(self.waiting.keys()).cloned().collect();
        known.extend(self.room.pods().filter_map(|pod| pod.metadata.uid.clone()));
        self.context.materials.sweep(&known).await;
    }

    /// Sandboxes whose pod nobody knows are removed.
    async fn remove_orphans(&mut self) {
        let sandboxes = match self.context.runtime.list().await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::warn!(%error, "orphaned sandboxes not looked for");
                return;
            }
        };
        for sandbox in sandboxes {
            let pod = skeleton(&sandbox);
            let uid = sandbox.config.pod.uid.clone();
            if !self.entries.contains_key(&uid) {
                tracing::info!(pod = %sandbox.config.pod.name, uid, "pod is known to nobody, removing it");
                self.start(Arc::new(pod), None);
                self.mark_gone(&uid, Some(MIN_GRACE));
            }
        }
    }

    async fn apply(&mut self, pod: Pod, told_by: ToldBy) {
        let key = PodKey::of(&pod);
        if key.uid.is_empty() || self.done.contains(&key.uid) {
            return;
        }
        // What was read has room to grow; a clone has none.
        let pod = Arc::new(Pod::clone(&pod));
        if self.entries.contains_key(&key.uid) {
            self.update(&key.uid, pod);
            return;
        }
        // Whatever it waited for, it is judged as it is now; a namesake of it is deleted.
        self.room.retain(|other| {
            let other = PodKey::of(other);
            (&other.namespace, &other.name) != (&key.namespace, &key.name)
        });
        let predecessors: Vec<String> = self.of_the_same_name(&key);
        if predecessors.is_empty() {
            self.waiting.remove(&key.uid);
            self.admit(pod).await;
            return;
        }
        if told_by == ToldBy::Server {
            // The name has a new owner, so the old one is deleted even if nobody told us yet.
            for old in predecessors {
                self.mark_gone(&old, None);
            }
        }
        self.waiting.insert(key.uid, pod);
    }

    fn of_the_same_name(&self, key: &PodKey) -> Vec<String> {
        let same = |pod: &Pod| {
            let other = PodKey::of(pod);
            other.namespace == key.namespace && other.name == key.name && other.uid != key.uid
        };
        let entries = self.entries.iter();
        entries.filter(|(_, e)| same(&e.pod)).map(|(uid, _)| uid.clone()).collect()
    }

    async fn admit(&mut self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        // What has been let in once stays in, whatever the node looks like now.
        let known = pod.status.as_ref().is_some_and(|s| s.start_time.is_some())
            || !self.context.runtime.pod(&uid).await.unwrap_or_default().is_empty();
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let judgement = match known || leaving {
            true => Judgement::Admit,
            false => self.judge(&pod),
        };
        match judgement {
            Judgement::Admit => self.start(pod, None),
            Judgement::Refuse(refusal) => {
                // What the status says in front is not the event's.
                let message = &refusal.message;
                let message = message.strip_prefix(REJECTED).unwrap_or(message);
                self.context.events.pod(&pod, Severity::Warning, &refusal.reason, message);
                self.start(pod, Some(refusal));
            }
            Judgement::Preempt(victims) => {
                let victims: BTreeSet<String> = victims.into_iter().collect();
                for victim in &victims {
                    self.preempt(victim);
                }
                self.room.wait(pod, victims);
                // One that had no worker yet has ended already.
                Box::pin(self.fill_room()).await;
            }
        }
    }

    /// Judges a pod beside all others; where it is refused only because of those that are ending, it
    /// waits for them.
    fn judge(&self, pod: &Arc<Pod>) -> Judgement {
        let mut others = self.holders();
        others.extend(self.room.pods().cloned());
        let judgement = self.gatekeeper.admit(pod, &others);
        if self.room.is_empty() || judgement == Judgement::Admit {
            return judgement;
        }
        let leaving = self.room.victims();
        let stays =
            |other: &Arc<Pod>| other.metadata.uid.as_ref().is_none_or(|uid| !leaving.contains(uid));
        others.retain(stays);
        match self.gatekeeper.admit(pod, &others) {
            Judgement::Admit => Judgement::Preempt(leaving.into_iter().collect()),
            Judgement::Preempt(victims) => {
                Judgement::Preempt(victims.into_iter().chain(leaving).collect())
            }
            refused @ Judgement::Refuse(_) => refused,
        }
    }

    /// Lets those in whose room is free now.
    async fn fill_room(&mut self) {
        let (entries, shelf) = (&self.entries, &self.context.shelf);
        let is_over = |uid: &str| !entries.contains_key(uid) || shelf.has_ended(uid);
        for pod in self.room.take_ready(is_over) {
            self.admit(pod).await;
        }
    }

    /// The pods that hold resources: admitted and not terminal.
    fn holders(&self) -> Vec<Arc<Pod>> {
        let shelf = &self.context.shelf;
        let held = self.entries.iter().filter(|(uid, e)| !e.refused && !shelf.is_over(uid, &e.pod));
        held.map(|(_, e)| Arc::clone(&e.pod)).collect()
    }

    fn start(&mut self, pod: Arc<Pod>, refused: Option<Failure>) {
        self.start_after(Duration::ZERO, pod, refused);
    }

    fn start_after(&mut self, pause: Duration, pod: Arc<Pod>, refused: Option<Failure>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let wake = Arc::new(Notify::new());
        let entry_refused = refused.is_some();
        let (wish, wishes) = watch::channel(Wish::of(Arc::clone(&pod), refused));
        let worker = Worker::new(
            Arc::clone(&self.context),
            wishes,
            Arc::clone(&wake),
            self.shutdown.clone(),
        );
        let owner = uid.clone();
        self.workers.spawn(async move {
            tokio::time::sleep(pause).await;
            (owner, worker.run().await)
        });
        self.context.mirrors.begin(&pod);
        let wanted = Arc::clone(&pod);
        let entry = Entry { pod, wanted, wish, wake, refused: entry_refused };
        self.entries.insert(uid, entry);
    }

    fn delete(&mut self, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.waiting.remove(&uid);
        self.room.remove(&uid);
        self.done.remove(&uid);
        let grace = pod.metadata.deletion_grace_period_seconds;
        let grace = grace.map(|g| Duration::from_secs(u64::try_from(g).unwrap_or(0)));
        self.mark_gone(&uid, grace);
    }

    fn mark_gone(&mut self, uid: &str, grace: Option<Duration>) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let grace = grace.unwrap_or_else(|| termination_grace(&entry.pod));
        entry.wish.send_modify(|wish| {
            wish.gone = Some(wish.gone.map_or(grace, |g| g.min(grace)));
        });
    }

    async fn note_end(&mut self, ended: Result<(String, End), tokio::task::JoinError>) {
        let (uid, end) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // Which worker it was is told by its closed channel.
                tracing::error!(%error, "pod worker failed");
                self.restart_failed();
                return;
            }
        };
        if end == End::Shutdown {
            return;
        }
        let Some(entry) = self.entries.remove(&uid) else {
            return;
        };
        let last = self.context.shelf.remove(&uid);
        self.context.mirrors.end(&entry.pod);
        self.allocate_waiting();
        if entry.wish.borrow().gone.is_none() {
            self.done.insert(uid.clone());
        }
        let name = PodKey::of(&entry.pod);
        let next: Vec<Arc<Pod>> = self
            .waiting
            .values()
            .filter(|p| {
                let key = PodKey::of(p);
                key.namespace == name.namespace && key.name == name.name
            })
            .cloned()
            .collect();
        // A file that came back while its pod was ending.
        let back = self.statics.get(&uid);
        let back = back.map(|pod| Arc::new(returned::pod(pod, last.map(|shown| shown.status))));
        for pod in next.into_iter().chain(back) {
            let pod = Arc::unwrap_or_clone(pod);
            self.apply(pod, ToldBy::Server).await;
        }
    }

    /// A worker that panicked is started again from what is there; one pod harms no other.
    fn restart_failed(&mut self) {
        let failed: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, e)| e.wish.is_closed())
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in failed {
            if let Some(entry) = self.entries.remove(&uid) {
                let wish = entry.wish.borrow().clone();
                self.start_after(AFTER_FAILURE, wish.pod, wish.refused);
                self.update(&uid, entry.wanted);
                if let Some(grace) = wish.gone {
                    self.mark_gone(&uid, Some(grace));
                }
                if let Some(eviction) = wish.evicted {
                    self.evict(&uid, eviction);
                }
            }
        }
    }
}

/// Who wants a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Server,
    File,
}

impl Origin {
    fn of(pod: &Pod) -> Self {
        match static_pods::is_static(pod) {
            true => Self::File,
            false => Self::Server,
        }
    }
}

/// The next set of static pods; waits for ever when there are no more.
async fn next_file(files: &mut Option<mpsc::Receiver<Event<Pod>>>) -> Option<Event<Pod>> {
    match files {
        Some(files) => match files.recv().await {
            Some(event) => Some(event),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// A pod of the API server cannot claim to be a file.
fn from_server(mut pod: Pod) -> Pod {
    if static_pods::is_static(&pod)
        && let Some(annotations) = &mut pod.metadata.annotations
    {
        annotations.remove(static_pods::manifest::SOURCE);
    }
    pod
}

/// As much of a pod as a sandbox tells.
fn skeleton(sandbox: &SandboxStatus) -> Pod {
    let identity = &sandbox.config.pod;
    Pod {
        metadata: ObjectMeta {
            name: Some(identity.name.clone()),
            namespace: Some(identity.namespace.clone()),
            uid: Some(identity.uid.clone()),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    }
}
