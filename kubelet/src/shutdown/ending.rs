//! The end of a node's pods: bucket after bucket, the least priority first, and what the API server has
//! to know before the host is let go.
//!
//! ```text
//!  NotReady ─► bucket: its pods told, waited for ─► … ─► last statuses written ─► done
//!                          └ at most the bucket's grace
//! ```
//!
//! The workers end the pods, in at most the bucket's grace and their own; nothing is stopped from here.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::record::Record;
use super::{MESSAGE, Parts};
use crate::eviction::{Cause, Eviction, Order};

/// How long the last words may take, of pods killed at the end of their grace, and of the node: so long
/// also beyond what was asked of logind, which goes on without us where it does not want to wait.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long they may where pods left so much of it: as one request to the API server. It may be one of
/// those that have ended.
const LONGEST_LAST_WORDS: Duration = Duration::from_secs(15);

pub(super) struct Ending {
    parts: Parts,
    /// The UIDs of the pods that were told to end.
    told: BTreeSet<String>,
}

impl Ending {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts, told: BTreeSet::new() }
    }

    /// Ends all pods, and returns when they have ended, or time is up.
    pub(super) async fn run(mut self) {
        let mut record = Record { start_time: Some(self.parts.clock.now()), ..Record::default() };
        record.keep(&self.parts.root, &self.parts.meters).await;
        let begun = Instant::now();
        let buckets = self.parts.config.buckets().to_vec();
        for (place, bucket) in buckets.iter().enumerate() {
            let pods = self.left(place);
            if pods.is_empty() {
                continue;
            }
            tracing::info!(
                priority = bucket.priority,
                pods = pods.len(),
                grace = ?bucket.grace,
                "ending pods as the node goes down"
            );
            let uids = self.end(&pods, bucket.grace).await;
            let all = self.cleared(&uids);
            if tokio::time::timeout(bucket.grace, all).await.is_err() {
                tracing::warn!(priority = bucket.priority, "pods have not ended in time");
            }
        }
        let last_words = async {
            self.cleared(&self.told).await;
            self.parts.statuses.written().await;
            self.parts.standing.told().await;
        };
        let left = self.parts.config.total().saturating_sub(begun.elapsed());
        let patience = left.clamp(LAST_WORDS, LONGEST_LAST_WORDS);
        if tokio::time::timeout(patience, last_words).await.is_err() {
            tracing::warn!("the node goes down before the API server knows how its pods ended");
        }
        record.end_time = Some(self.parts.clock.now());
        record.keep(&self.parts.root, &self.parts.meters).await;
        tracing::info!("pods have ended, the node may go down");
    }

    /// The pods of this bucket, and those that came late to one before.
    fn left(&self, place: usize) -> Vec<Arc<Pod>> {
        let shown = self.parts.shelf.shown().into_iter();
        let live = shown.filter(|shown| !shown.is_over()).map(|shown| shown.pod);
        live.filter(|pod| self.parts.config.place(pod) <= place && !self.told.contains(uid_of(pod)))
            .collect()
    }

    /// Hands pods to their workers. Returns their UIDs.
    async fn end(&mut self, pods: &[Arc<Pod>], grace: Duration) -> BTreeSet<String> {
        let uids: BTreeSet<_> = pods.iter().map(|pod| uid_of(pod).to_owned()).collect();
        for uid in uids.iter().cloned() {
            let message = MESSAGE.to_owned();
            let eviction = Eviction { message, grace, cause: Cause::Shutdown };
            // Only an agent that ends takes none.
            let _ = self.parts.orders.send(Order::End { uid, eviction }).await;
        }
        self.told.extend(uids.iter().cloned());
        uids
    }

    /// Waits until these have ended and given back what they held.
    fn cleared(&self, uids: &BTreeSet<String>) -> impl Future<Output = ()> {
        let mut ends = self.parts.shelf.ends();
        async move {
            let is_held = || {
                let pods = self.parts.shelf.shown();
                pods.iter().any(|shown| !shown.is_cleared() && uids.contains(uid_of(&shown.pod)))
            };
            while is_held() && ends.changed().await.is_ok() {}
        }
    }
}

fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}
