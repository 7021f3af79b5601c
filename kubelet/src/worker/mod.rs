//! The worker: one task a pod, that owns everything about it.
//!
//! ```text
//!        API change ─┐
//!     runtime event ─┤        ┌──────────┐   ┌──────┐   ┌───────┐
//!   operation ended ─┼─ wake ─► observe  ├──►│ plan ├──►│ apply ├──┐
//!      probe result ─┤        └──────────┘   └──────┘   └───────┘  │
//!             timer ─┘             ▲             └► status ► API   │
//!                                  └───────────────────────────────┘
//! ```
//!
//! Nothing polls. Operations run beside the worker, at most one of each; their results wake it. The
//! worker can be dropped at any moment, with the agent: [`recovery`] takes up from what is there.

mod apply;
mod changes;
mod image;
pub mod materials;
pub mod members;
pub mod memory;
pub mod plan;
pub mod provision;
pub mod recovery;
mod resizing;
pub mod roster;
pub mod runs;
mod sight;
pub mod stop_signal;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::{Images, Runtime, SandboxStatus};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::events::{Recorder, Severity};
use crate::eviction::{self, Cause, Eviction};
use crate::image_access::Access;
use crate::meters::{self, Meters, Startup};
use crate::probe;
use crate::shelf::Holds;
use crate::shutdown;
use crate::static_pods::{self, mirror::Mirrors};
use crate::status::writer::{PodKey, Writer};
use crate::status::{self, Stage, dispute};
pub(crate) use apply::chain;
use apply::{Finished, Outcome};
use materials::Materials;
use memory::{Memory, Operation, Pacing, Phase, Verdict};
use plan::Goal;

/// What every worker shares.
pub struct Context {
    /// Runs sandboxes and containers.
    pub runtime: Arc<dyn Runtime>,
    /// Keeps images.
    pub images: Arc<dyn Images>,
    /// Knows who may use them.
    pub access: Arc<Access>,
    /// One permit a pull.
    pub pulls: Semaphore,
    /// Makes what pods are started from.
    pub materials: Arc<dyn Materials>,
    /// Takes events.
    pub events: Recorder,
    /// Takes statuses.
    pub statuses: Writer,
    /// Takes the statuses of static pods.
    pub mirrors: Mirrors,
    /// Where pods and their statuses are kept for a start without an API server.
    pub cache: crate::cache::Cache,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// The node's addresses, primary first.
    pub node_ips: Vec<IpAddr>,
    /// The numbers behind the waits.
    pub pacing: Pacing,
    /// The pods and statuses that the HTTP API serves.
    pub shelf: crate::shelf::Shelf,
    /// Takes the counts of probes.
    pub probes: probe::counts::Counts,
    /// Counts what is done.
    pub meters: Meters,
}

/// What the API server wants of a pod.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Set once the API server has it no more: how long its containers may take to end.
    pub gone: Option<Duration>,
    /// Set once the pod was refused: it must not run.
    pub refused: Option<memory::Failure>,
    /// Set once the pod has to end for the node's sake, for overstepping a limit, or as the node goes down.
    pub evicted: Option<Eviction>,
    /// Set once the pod has ended and the node wants back what its containers have on disk.
    pub is_spent: bool,
    /// Set while there is no room for the resources it is specified with; `pod` has those that it is
    /// allocated.
    pub waiting: Option<Waiting>,
}

impl Wish {
    /// That a pod runs, unless it was refused.
    fn of(pod: Arc<Pod>, refused: Option<memory::Failure>) -> Self {
        Self { pod, gone: None, refused, evicted: None, is_spent: false, waiting: None }
    }

    /// The grace that containers have, where an eviction leaves them so much.
    fn at_most(&self, grace: Duration) -> Duration {
        self.evicted.as_ref().map_or(grace, |eviction| grace.min(eviction.grace))
    }
}

/// A resize that has to wait.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// For what.
    pub pending: crate::resize::Pending,
    /// The pod as it is specified.
    pub pod: Arc<Pod>,
}

/// The permits of that many pulls at a time.
pub fn pull_permits(most: Option<NonZeroUsize>) -> Semaphore {
    Semaphore::new(
        most.map_or(Semaphore::MAX_PERMITS, NonZeroUsize::get).min(Semaphore::MAX_PERMITS),
    )
}

/// The shortest grace period; the kubelet never kills without one.
pub const MIN_GRACE: Duration = Duration::from_secs(1);

/// What a container has left after its hook, or its wait for its turn, used its time up.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// How long a status that was written may take to come back on the watch.
const ECHO: Duration = Duration::from_secs(1);

/// How often a status is written again that the server does not show.
const INSISTENCE: Duration = Duration::from_secs(10);

/// A worker and what it knows.
pub(crate) struct Worker {
    context: Arc<Context>,
    key: PodKey,
    wishes: watch::Receiver<Wish>,
    wake: Arc<Notify>,
    shutdown: CancellationToken,
    memory: Memory,
    published: PodStatus,
    startup: Startup,
    /// When the status is written again, since the server shows another.
    disputed: Option<Instant>,
    operations: JoinSet<(Operation, Outcome)>,
    tasks: HashMap<tokio::task::Id, (Operation, tokio::task::AbortHandle)>,
    announced: BTreeSet<String>,
    saved: Option<Arc<Pod>>,
    probes: probe::Probers,
    /// Counts changes of what the volumes are filled from.
    sources: watch::Receiver<u64>,
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing of the pod is left.
    Removed,
    /// The agent ends; the pod stays.
    Shutdown,
}

impl Worker {
    /// A worker for the pod that `wishes` speak of; `wake` makes it look again.
    pub(crate) fn new(
        context: Arc<Context>,
        wishes: watch::Receiver<Wish>,
        wake: Arc<Notify>,
        shutdown: CancellationToken,
    ) -> Self {
        let pod = Arc::clone(&wishes.borrow().pod);
        let status = pod.status.clone().unwrap_or_default();
        let key = PodKey::of(&pod);
        let counts = context.probes.of_pod((&key.namespace, &key.name, &key.uid));
        Self {
            key,
            memory: Memory::new(context.pacing, std::iter::empty()),
            startup: Startup::new(&status, Instant::now()),
            published: status,
            disputed: None,
            wishes,
            wake,
            shutdown,
            operations: JoinSet::new(),
            tasks: HashMap::new(),
            announced: BTreeSet::new(),
            saved: None,
            probes: probe::Probers::new(Arc::clone(&context.runtime), counts),
            sources: context.materials.changes(&pod),
            context,
        }
    }

    /// Runs until the pod is gone or the agent ends.
    pub(crate) async fn run(mut self) -> End {
        let Some(sandboxes) = self.observe().await else {
            return End::Shutdown;
        };
        self.remember(&sandboxes);
        self.context.meters.time(&meters::WORKER_START, &[], self.startup.seen.elapsed());
        loop {
            let begun = Instant::now();
            let Some(sandboxes) = self.observe().await else {
                return End::Shutdown;
            };
            let cause = self.cause();
            let wish = self.wishes.borrow_and_update().clone();
            self.save(&wish).await;
            self.digest(&wish.pod, &sandboxes).await;
            let now = Instant::now();
            let deadline = self.judge(&wish, &sandboxes, now);
            let goal = self.goal(&wish);
            if goal == Goal::Run {
                self.note_resize(&wish, &sandboxes);
            }
            if goal != Goal::Run {
                self.probes.calm_down();
            }
            let plan = plan::plan(&plan::Input {
                pod: &wish.pod,
                goal,
                sandboxes: &sandboxes,
                memory: &self.memory,
                now,
            });
            self.publish(&wish, goal, &sandboxes, now).await;
            self.announce(&wish.pod, now);
            if plan.reached && matches!(goal, Goal::Remove { .. }) {
                if wish.gone.is_none() {
                    self.context.statuses.delete(&self.key);
                }
                return End::Removed;
            }
            match goal {
                Goal::Finish { .. } if plan.reached => {
                    self.context.shelf.give_back(&self.key.uid, Holds::Remains);
                }
                Goal::Clear { .. } if plan.reached => {
                    self.context.shelf.give_back(&self.key.uid, Holds::Nothing);
                }
                _ => {}
            }
            for action in plan.actions {
                self.begin(&wish.pod, &sandboxes, action);
            }
            let wake = [plan.wake, deadline, self.disputed].into_iter().flatten().min();
            // A pod at rest holds nothing that the next look reads anew.
            drop((wish, sandboxes));
            self.context.meters.time(&meters::WORKER_TIME, &[cause], begun.elapsed());
            if self.wait(wake).await == Waited::Shutdown {
                return End::Shutdown;
            }
        }
    }

    /// Why the worker looks, in upstream's words.
    fn cause(&self) -> &'static str {
        match (&self.saved, self.wishes.has_changed()) {
            (None, _) => "create",
            (Some(_), Ok(true)) => "update",
            (Some(_), _) => "sync",
        }
    }

    /// Keeps the pod on disk before anything is done for it.
    async fn save(&mut self, wish: &Wish) {
        let is_saved = self.saved.as_ref().is_some_and(|saved| wants_the_same(saved, &wish.pod));
        if is_saved {
            // What is on disk says the same; the older form need not be held for it.
            self.saved = Some(Arc::clone(&wish.pod));
            return;
        }
        if wish.gone.is_some() {
            return;
        }
        if let Some(saved) = self.saved.take() {
            self.note_changes(&saved, &wish.pod);
        }
        self.context.cache.save_pod(&wish.pod).await;
        self.saved = Some(Arc::clone(&wish.pod));
    }

    /// The runtime's records of the pod; asks again until it answers. `None` at shutdown.
    async fn observe(&self) -> Option<Vec<SandboxStatus>> {
        loop {
            match self.context.runtime.pod(&self.key.uid).await {
                Ok(sandboxes) => return Some(sandboxes),
                Err(error) => {
                    tracing::warn!(pod = %self.key.name, uid = %self.key.uid, %error, "runtime does not answer");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = self.shutdown.cancelled() => return None,
            }
        }
    }

    fn remember(&mut self, sandboxes: &[SandboxStatus]) {
        let pod = Arc::clone(&self.wishes.borrow().pod);
        let moment = self.moment();
        let pacing = self.context.pacing;
        self.memory = recovery::recover(&pod, &self.published, sandboxes, pacing, moment);
    }

    fn goal(&self, wish: &Wish) -> Goal {
        if let Some(grace) = wish.gone {
            return Goal::Remove { grace: grace.max(MIN_GRACE) };
        }
        let metadata = &wish.pod.metadata;
        if metadata.deletion_timestamp.is_some() {
            let grace = seconds(metadata.deletion_grace_period_seconds.unwrap_or(0));
            return Goal::Remove { grace: wish.at_most(grace).max(MIN_GRACE) };
        }
        match self.memory.verdict {
            Some(_) => {
                let grace = wish.at_most(termination_grace(&wish.pod));
                let grace = grace.max(MIN_GRACE);
                match wish.is_spent {
                    true => Goal::Clear { grace },
                    false => Goal::Finish { grace },
                }
            }
            None => Goal::Run,
        }
    }

    /// Passes the final judgement once there is cause for one. Returns when the pod's deadline is.
    fn judge(&mut self, wish: &Wish, sandboxes: &[SandboxStatus], now: Instant) -> Option<Instant> {
        if self.memory.verdict.is_some() {
            return None;
        }
        if let Some(refusal) = &wish.refused {
            self.memory.verdict = Some(failed(&refusal.reason, &refusal.message));
            return None;
        }
        if let Some(eviction) = &wish.evicted {
            self.memory.verdict = Some(evicted(eviction));
            return None;
        }
        let input =
            plan::Input { pod: &wish.pod, goal: Goal::Run, sandboxes, memory: &self.memory, now };
        if let Some(verdict) = plan::verdict(&input) {
            self.memory.verdict = Some(verdict);
            return None;
        }
        let left = self.time_left(&wish.pod)?;
        if left.is_zero() {
            let message = "Pod was active on the node longer than the specified deadline";
            let events = &self.context.events;
            events.pod(&wish.pod, Severity::Normal, "DeadlineExceeded", message);
            self.memory.verdict = Some(failed("DeadlineExceeded", message));
            return None;
        }
        Some(now + left)
    }

    /// What is left of the pod's `activeDeadlineSeconds`.
    fn time_left(&self, pod: &Pod) -> Option<Duration> {
        let allowed = seconds(pod.spec.as_ref()?.active_deadline_seconds?);
        let started = self.published.start_time.as_ref()?.0;
        let age = self.context.clock.now().duration_since(started);
        let age = Duration::try_from(age).unwrap_or_default();
        Some(allowed.saturating_sub(age))
    }

    /// Makes the status and hands it on where it changed.
    async fn publish(
        &mut self,
        wish: &Wish,
        goal: Goal,
        sandboxes: &[SandboxStatus],
        now: Instant,
    ) {
        let is_final = self
            .published
            .phase
            .as_deref()
            .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
        if wish.gone.is_some() {
            // Nobody is left to tell: a moment that is past would wake the worker without end.
            self.disputed = None;
            return;
        }
        let input = status::Input {
            pod: &wish.pod,
            previous: &self.published,
            sandboxes,
            memory: &self.memory,
            stage: match goal {
                Goal::Run => Stage::Running,
                Goal::Finish { .. } | Goal::Clear { .. } | Goal::Remove { .. } => Stage::Ending,
            },
            host_ips: &self.context.node_ips,
            now,
            wall: self.context.clock.now(),
        };
        let never_ran = sandboxes.is_empty() && self.published.container_statuses.is_none();
        let status = match (&wish.refused, never_ran) {
            (Some(refusal), true) => status::refused(&input, &refusal.reason, &refusal.message),
            // A pod has ended once; what is taken away under it afterwards is no news about it.
            _ if is_final => self.published.clone(),
            _ => status::compute(&input),
        };
        self.context.shelf.put(&wish.pod, &status);
        let (old, wall) = (&self.published, self.context.clock.now());
        let change = meters::Change { pod: &wish.pod, old, new: &status, now, wall };
        meters::note_status(&self.context.meters, &mut self.startup, &change);
        if status == self.published {
            self.insist(&wish.pod, now);
            return;
        }
        self.disputed = None;
        match static_pods::is_static(&wish.pod) {
            true => self.context.mirrors.publish(&wish.pod, status.clone()),
            false => self.context.statuses.update(&self.key, status.clone(), &self.published),
        }
        self.context.cache.save_status(&self.key.uid, &status).await;
        self.published = status;
    }

    /// Writes the status again where the server goes on to show another: what it was told is not what
    /// it has, or somebody else has changed it since.
    fn insist(&mut self, pod: &Pod, now: Instant) {
        let shown = pod.status.as_ref().filter(|_| !static_pods::is_static(pod));
        if !shown.is_some_and(|shown| dispute::disagree(shown, &self.published)) {
            self.disputed = None;
            return;
        }
        match self.disputed {
            None => self.disputed = Some(now + ECHO),
            Some(at) if at > now => {}
            Some(_) => {
                self.context.statuses.update(&self.key, self.published.clone(), &self.published);
                self.disputed = Some(now + INSISTENCE);
            }
        }
    }

    async fn wait(&mut self, wake: Option<Instant>) -> Waited {
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Waited::Shutdown,
            Some(finished) = self.operations.join_next_with_id(), if !self.operations.is_empty() => {
                self.finish(Finished::of(finished));
            }
            changed = self.wishes.changed() => {
                // The roster dropped this pod without a word: the agent ends.
                if changed.is_err() {
                    return Waited::Shutdown;
                }
            }
            result = self.probes.next() => self.note_probe(result),
            Ok(()) = self.sources.changed() => self.note_sources(),
            () = self.wake.notified() => {}
            () = sleep => {}
        }
        Waited::Woken
    }
}

#[derive(PartialEq, Eq)]
enum Waited {
    Woken,
    Shutdown,
}

fn failed(reason: &str, message: &str) -> Verdict {
    Verdict {
        phase: Phase::Failed,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        disruption: None,
    }
}

/// The verdict on a pod that is evicted.
fn evicted(eviction: &Eviction) -> Verdict {
    let disruption = (eviction.cause != Cause::Limit).then(|| eviction.message.clone());
    let reason = match eviction.cause {
        Cause::Pressure | Cause::Limit => eviction::REASON,
        Cause::Shutdown => shutdown::REASON,
    };
    Verdict { disruption, ..failed(reason, &eviction.message) }
}

/// Whether two states of a pod ask the same of the node; the echo of our own status does not count.
fn wants_the_same(a: &Pod, b: &Pod) -> bool {
    let (x, y) = (&a.metadata, &b.metadata);
    x.deletion_timestamp == y.deletion_timestamp
        && x.deletion_grace_period_seconds == y.deletion_grace_period_seconds
        && x.labels == y.labels
        && x.annotations == y.annotations
        && x.finalizers == y.finalizers
        && a.spec == b.spec
}

/// `terminationGracePeriodSeconds`, 30 s where absent.
pub fn termination_grace(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref();
    let grace = spec.and_then(|s| s.termination_grace_period_seconds);
    seconds(grace.unwrap_or(30)).max(MIN_GRACE)
}

fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}
