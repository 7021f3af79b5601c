//! What pods that run are allocated when their specification asks for other resources.
//!
//! ```text
//!   specified anew ─► fits ─► allocated: the worker is given it
//!                  └─ not ──► waits; judged again when a pod has ended, shrunk or gone, or after a while
//! ```
//!
//! Those that wait are judged in upstream's order: who does not grow, then by priority, then class, then
//! who waits longest.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::Roster;
use crate::qos::{Class, PodDemand};
use crate::resize::{self, Pending, Why};
use crate::worker::Waiting;

/// How long a resize that waits is left alone when nothing happens.
pub(super) const RETRY: Duration = Duration::from_secs(180);

/// What becomes of a pod's wish for other resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allocation {
    /// It has them.
    Granted,
    /// There is no room, for this reason.
    Waits(Why, String),
    /// There is room once the others of these UIDs have ended.
    Preempt(Vec<String>, String),
}

impl Roster {
    /// Takes in the newest state of a pod that has a worker.
    pub(super) fn update(&mut self, uid: &str, pod: Arc<Pod>) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        entry.wanted = pod;
        let before = Arc::clone(&entry.pod);
        self.allocate(uid);
        let after = self.entries.get(uid).map(|entry| Arc::clone(&entry.pod));
        if after.is_some_and(|after| grows(&after, &before)) {
            self.allocate_waiting();
        }
    }

    /// Whether a pod waits for room to grow.
    pub(super) fn anyone_waits(&self) -> bool {
        self.entries.values().any(|entry| entry.wish.borrow().waiting.is_some())
    }

    /// Judges those anew that wait for room.
    pub(super) fn allocate_waiting(&mut self) {
        let waits = self.entries.iter().filter(|(_, entry)| entry.wish.borrow().waiting.is_some());
        let mut waiting: Vec<_> =
            waits.map(|(uid, entry)| (rank(&entry.wanted, &entry.pod), uid.clone())).collect();
        waiting.sort();
        for (_, uid) in waiting {
            self.allocate(&uid);
        }
    }

    /// Gives a worker its pod, with what it is specified with where there is room for it.
    fn allocate(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let wanted = Arc::clone(&entry.wanted);
        let allocation = match resize::with_allocation(&wanted, &entry.pod) {
            None => Allocation::Granted,
            // Who is leaving gets nothing any more, and loses nothing.
            Some(held) if entry.refused || is_leaving(&wanted) => {
                self.give(uid, Arc::new(held), None);
                return;
            }
            Some(_) => {
                let others = self.holders().into_iter().chain(self.room.pods().cloned());
                let others = others.filter(|other| other.metadata.uid.as_deref() != Some(uid));
                self.gatekeeper.resize(&wanted, &others.collect::<Vec<_>>())
            }
        };
        let (why, message, victims) = match allocation {
            Allocation::Granted => {
                self.give(uid, wanted, None);
                return;
            }
            Allocation::Waits(why, message) => (why, message, Vec::new()),
            Allocation::Preempt(victims, message) => (Why::Deferred, message, victims),
        };
        let held = self.entries.get(uid).and_then(|e| resize::with_allocation(&wanted, &e.pod));
        let pending = Pending { why, message, generation: wanted.metadata.generation };
        let held = held.map_or_else(|| Arc::clone(&wanted), Arc::new);
        self.give(uid, held, Some(Waiting { pending, pod: wanted }));
        for victim in victims {
            self.preempt(&victim);
        }
    }

    fn give(&mut self, uid: &str, pod: Arc<Pod>, waiting: Option<Waiting>) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.pod = Arc::clone(&pod);
            entry.wish.send_modify(|wish| {
                wish.pod = pod;
                wish.waiting = waiting;
            });
        }
    }
}

fn is_leaving(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether `pod` asks for more processor time or memory than `held`.
fn grows(held: &Pod, pod: &Pod) -> bool {
    let (Ok(held), Ok(pod)) = (PodDemand::parse(held), PodDemand::parse(pod)) else {
        return true;
    };
    let (held, pod) = (held.requests(), pod.requests());
    ["cpu", "memory"].iter().any(|resource| {
        let amount = |requests: &crate::qos::ResourceAmounts| requests.get(*resource).copied();
        amount(&pod).unwrap_or_default() > amount(&held).unwrap_or_default()
    })
}

/// Who is judged first.
fn rank(wanted: &Pod, held: &Pod) -> (bool, Reverse<i32>, Class, Option<i64>) {
    let priority = wanted.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    let class = PodDemand::parse(wanted).map_or(Class::BestEffort, |demand| demand.class());
    let conditions = held.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut pending = conditions.filter(|condition| condition.type_ == resize::PENDING);
    let since = pending.next().and_then(|condition| condition.last_transition_time.as_ref());
    // Whose status does not say so yet has only begun to wait.
    let since = since.map_or(i64::MAX, |time| time.0.as_second());
    (grows(held, wanted), Reverse(priority), class, Some(since))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, since: Option<&str>) -> Pod {
        let conditions = since.map(|time| {
            json!([{"type": "PodResizePending", "status": "True", "lastTransitionTime": time}])
        });
        let status = json!({"conditions": conditions});
        serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
    }

    fn asking(cpu: &str, more: Value) -> Value {
        let mut spec =
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        spec
    }

    #[test]
    fn those_that_wait_are_judged_in_upstreams_order() {
        let held = |since| pod(asking("1", json!({})), since);
        let shrinking = rank(&pod(asking("500m", json!({})), None), &held(None));
        let urgent = rank(&pod(asking("2", json!({"priority": 9})), None), &held(None));
        let guaranteed = json!({"containers": [{"name": "c", "resources": {
            "limits": {"cpu": "2", "memory": "1Gi"}}}]});
        let guaranteed = rank(&pod(guaranteed, None), &held(None));
        let long = rank(&pod(asking("2", json!({})), None), &held(Some("2026-01-01T00:00:00Z")));
        let short = rank(&pod(asking("2", json!({})), None), &held(Some("2026-01-02T00:00:00Z")));
        let new = rank(&pod(asking("2", json!({})), None), &held(None));
        let ordered = [shrinking, urgent, guaranteed, long, short, new];
        assert!(ordered.is_sorted(), "{ordered:?}");
    }
}
