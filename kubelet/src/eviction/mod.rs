//! Eviction: pods are ended so that the node does not run out of memory, disk or process ids, and where a
//! pod has more on disk than it may (KubeletConfiguration `eviction*`, upstream's eviction manager).
//!
//! ```text
//!   every 10 s: observe ─► [`plan`] ─► conditions ─► node status, admission
//!                                  └─► starved ─► containers of pods that have ended ─► images ─► observe ─┐
//!                                                  one pod's worker ◄─ [`rank`] ◄─────────────────────────┘
//!                 pods over a limit ([`limit`]) ────────────────────────────────► those pods
//! ```
//!
//! The worker ends the pod and writes its status; nothing is stopped from here. Memory is looked at every
//! 10 seconds, as upstream does on cgroup v2, whose kernel has no notification for it either.

pub mod limit;
mod observe;
pub(crate) mod overdue;
pub mod plan;
pub mod rank;
pub mod threshold;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_runtime::interface::Runtime;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::events::{Recorder, Severity};
use crate::image_gc;
use crate::meters::{self, Meters};
use crate::qos;
use crate::shelf::{Holds, Shelf, Shown};
use limit::Excess;
pub use observe::{Layout, Places};
pub use plan::Conditions;
use plan::{Observations, State};
use rank::{Told, Usage, Usages};
use threshold::Condition;
pub use threshold::{Config, Resource, Signal, Threshold};

/// The reason of pods that are ended here, or refused under pressure.
pub const REASON: &str = "Evicted";

/// How often is looked.
const INTERVAL: Duration = Duration::from_secs(10);

/// The grace of a pod that is ended at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How long an evicted pod is waited for beyond its grace before the node is looked at again.
const PATIENCE: Duration = Duration::from_secs(30);

/// The end of a pod, for its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// The message of its status.
    pub message: String,
    /// How long its containers may take at the most.
    pub grace: Duration,
    /// What the end is for.
    pub cause: Cause,
}

/// What a pod is evicted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The node's sake: the pod is told to be the target of a disruption.
    Pressure,
    /// It has overstepped a limit.
    Limit,
    /// The node goes down ([`crate::shutdown`]).
    Shutdown,
}

/// What is to become of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// It ends.
    End {
        /// Its UID.
        uid: String,
        /// How.
        eviction: Eviction,
    },
    /// It has ended, and what its containers have left on disk goes.
    Clear {
        /// Its UID.
        uid: String,
    },
}

/// Gives back what takes space on the disks and is no pod's.
#[async_trait]
pub trait Reclaim: Send + Sync {
    /// Removes all that nothing uses. How many bytes were freed.
    ///
    /// # Errors
    /// What failed; the rest has been done.
    async fn free_unused(&self) -> Result<u64, image_gc::Error>;
}

/// What the loop works with.
pub struct Parts {
    /// The thresholds.
    pub config: Config,
    /// The node's name.
    pub node: String,
    /// Where the node's resources are seen.
    pub places: Places,
    /// The pods.
    pub shelf: Shelf,
    /// Tells what they use.
    pub runtime: Arc<dyn Runtime>,
    /// What pods have on disk, as it was last measured.
    pub disk: Disk,
    /// Removes images.
    pub images: Arc<dyn Reclaim>,
    /// Takes events.
    pub events: Recorder,
    /// Takes the pods that are to end.
    pub orders: mpsc::Sender<Order>,
    /// Is told the conditions that hold.
    pub conditions: watch::Sender<Conditions>,
    /// Counts evictions.
    pub meters: Meters,
}

/// Looks after the node's resources until `shutdown`.
pub async fn run(parts: Parts, shutdown: CancellationToken) {
    let work = async {
        let (state, told) = (State::default(), BTreeSet::new());
        let mut evictor = Evictor { parts, state, told, shutdown: shutdown.clone() };
        loop {
            match evictor.round().await {
                Some(longest) => evictor.await_ends(longest).await,
                None => tokio::time::sleep(INTERVAL).await,
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

struct Evictor {
    parts: Parts,
    state: State,
    /// Pods that were told to end and have not. `Differs:` upstream tells them again and again, and
    /// goes to no other as long as they rank first.
    told: BTreeSet<String>,
    shutdown: CancellationToken,
}

impl Evictor {
    /// Looks once. Returns the longest grace of the pods that were told to end, if any was.
    async fn round(&mut self) -> Option<Duration> {
        let seen_at = Instant::now();
        let (observations, layout) = self.observe().await?;
        let round = plan::step(&self.parts.config, &mut self.state, &observations, seen_at);
        self.parts.conditions.send_if_modified(|known| {
            let is_new = *known != round.conditions;
            known.clone_from(&round.conditions);
            is_new
        });
        let pods = self.parts.shelf.shown();
        self.told.retain(|uid| pods.iter().any(|p| uid_of(&p.pod) == uid && !p.is_over()));
        let is_candidate = |shown: &Shown| {
            !shown.is_over()
                && !qos::is_critical(&shown.pod)
                && !self.told.contains(uid_of(&shown.pod))
        };
        let pods: Vec<Arc<Pod>> =
            pods.into_iter().filter(is_candidate).map(|shown| shown.pod).collect();
        if self.enforce_limits(&pods).await {
            return Some(AT_ONCE);
        }
        let starved = *round.starved.first()?;
        let resource = starved.signal.resource().name();
        let message = format!("Attempting to reclaim {resource}");
        tracing::warn!(resource, "node is short of a resource");
        let (events, node) = (&self.parts.events, &self.parts.node);
        events.node(node, Severity::Warning, "EvictionThresholdMet", message);
        for Threshold { signal, .. } in &round.starved {
            let age = seen_at.elapsed();
            self.parts.meters.time(&meters::EVICTION_AGE, &[signal.name()], age);
        }
        if self.reclaim(starved.signal, layout).await {
            return None;
        }
        self.end_one(&pods, &starved, (&observations, layout)).await
    }

    /// Where a disk is short, removes what pods that have ended left, and then images that nothing uses, if
    /// they are on it. Whether that was enough.
    async fn reclaim(&self, short: Signal, layout: Layout) -> bool {
        if short.condition() != Condition::Disk {
            return false;
        }
        self.clear_ended().await;
        if layout.has_images(short) {
            match self.parts.images.free_unused().await {
                Ok(bytes) => tracing::info!(bytes, "images removed for want of disk"),
                Err(error) => tracing::warn!(%error, "images not removed for want of disk"),
            }
        }
        let observed = self.observe().await;
        observed.is_some_and(|(seen, _)| plan::is_settled(&self.parts.config, &seen))
    }

    /// Has the workers of pods that have ended remove containers and logs, and waits for them.
    async fn clear_ended(&self) {
        let of_ended = |shown: &Shown| shown.is_over() && shown.holds == Holds::Remains;
        let ended = self.parts.shelf.shown().into_iter().filter(of_ended);
        let ended: BTreeSet<String> = ended.map(|shown| uid_of(&shown.pod).to_owned()).collect();
        if ended.is_empty() {
            return;
        }
        tracing::info!(
            pods = ended.len(),
            "removing containers of pods that have ended, for want of disk"
        );
        for uid in ended.iter().cloned() {
            // Only an agent that ends takes none.
            let _ = self.parts.orders.send(Order::Clear { uid }).await;
        }
        self.await_pods(&ended, PATIENCE, |shown| shown.holds == Holds::Nothing).await;
    }

    async fn observe(&self) -> Option<(Observations, Layout)> {
        let places = self.parts.places.clone();
        let read = move || (observe::read(&places), observe::layout(&places.disk));
        tokio::task::spawn_blocking(read).await.ok()
    }

    /// Ends the pods that have more on disk than they may.
    async fn enforce_limits(&mut self, pods: &[Arc<Pod>]) -> bool {
        let limited: Vec<_> = pods.iter().filter(|pod| limit::is_limited(pod)).cloned().collect();
        if limited.is_empty() {
            return false;
        }
        let mut any = false;
        for pod in limited {
            let used = self.parts.disk.pod(uid_of(&pod));
            let excess = used.and_then(|used| limit::excess(&pod, &used));
            if let Some(Excess { limit, message }) = excess {
                let told = Told { message, annotations: BTreeMap::new() };
                any |= self.end(&pod, (told, AT_ONCE, Cause::Limit), limit).await;
            }
        }
        any
    }

    /// Ends the pod that ranks first.
    async fn end_one(
        &mut self,
        pods: &[Arc<Pod>],
        starved: &Threshold,
        (observations, layout): (&Observations, Layout),
    ) -> Option<Duration> {
        let usages = self.usages().await;
        let candidates: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
        let Some(place) = rank::victim(starved.signal, &candidates, &usages, layout) else {
            tracing::warn!("no pod can be evicted");
            return None;
        };
        let pod = Arc::clone(pods.get(place)?);
        let told = rank::told(&pod, starved, observations, &usages);
        let grace = match starved.is_hard() {
            true => AT_ONCE,
            false => self.parts.config.max_pod_grace,
        };
        let how = (told, grace, Cause::Pressure);
        self.end(&pod, how, starved.signal.name()).await.then_some(grace)
    }

    async fn usages(&self) -> Usages {
        let running = self.parts.runtime.usage().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what pods use is not known");
            Vec::new()
        });
        let working_set = |usage: &berth_runtime::interface::Usage| {
            usage.memory.as_ref().map_or(0, |memory| memory.working_set_bytes)
        };
        let of_pod = |pod: berth_runtime::interface::PodUsage| {
            let containers = pod.containers.iter();
            let usage = Usage {
                memory_bytes: working_set(&pod.total),
                processes: pod.total.processes.unwrap_or(0),
                containers: containers.map(|c| (c.name.clone(), working_set(&c.usage))).collect(),
                disk: self.parts.disk.pod(&pod.pod.uid),
            };
            (pod.pod.uid, usage)
        };
        running.into_iter().map(of_pod).collect()
    }

    /// Hands a pod to its worker. Whether it was taken.
    async fn end(
        &mut self,
        pod: &Arc<Pod>,
        (told, grace, cause): (Told, Duration, Cause),
        signal: &'static str,
    ) -> bool {
        let Told { message, annotations } = told;
        tracing::warn!(
            pod = pod.metadata.name,
            uid = uid_of(pod),
            signal,
            "evicting pod: {message}"
        );
        self.parts.events.annotated(pod, REASON, message.clone(), annotations);
        let uid = uid_of(pod).to_owned();
        let eviction = Eviction { message, grace, cause };
        let order = Order::End { uid: uid.clone(), eviction };
        let is_taken = self.parts.orders.send(order).await.is_ok();
        if is_taken {
            self.parts.meters.count(&meters::EVICTIONS, &[signal]);
            let tells = (self.parts.shelf.clone(), self.parts.events.clone());
            overdue::watch(pod, grace, tells, self.shutdown.clone());
            self.told.insert(uid);
        }
        is_taken
    }

    /// Waits until the pods that were told to end have, and have given back what they held: else the next
    /// would end for what is about to be free.
    async fn await_ends(&self, longest: Duration) {
        self.await_pods(&self.told, longest + PATIENCE, Shown::is_cleared).await;
    }

    /// Waits until `is_so` holds of all these pods that are still there.
    async fn await_pods(
        &self,
        uids: &BTreeSet<String>,
        patience: Duration,
        is_so: impl Fn(&Shown) -> bool,
    ) {
        let mut ends = self.parts.shelf.ends();
        let all_are = async {
            let is_waited_for = |shown: &Shown| uids.contains(uid_of(&shown.pod)) && !is_so(shown);
            while self.parts.shelf.shown().iter().any(is_waited_for) && ends.changed().await.is_ok()
            {
            }
        };
        let _ = tokio::time::timeout(patience, all_are).await;
    }
}

fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
