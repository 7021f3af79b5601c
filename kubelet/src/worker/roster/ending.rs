//! Pods that end though nobody deleted them: for a critical one, for the node's sake, or as the node goes
//! down; and those that come back then.

use k8s_openapi::api::core::v1::Pod;

use super::Roster;
use crate::events::Severity;
use crate::eviction::{Cause, Eviction, Order, overdue};
use crate::shutdown;
use crate::static_pods;
use crate::status::conditions::PREEMPTING;
use crate::worker::memory::Failure;
use crate::worker::{Wish, termination_grace};

impl Roster {
    /// Ends a pod in favour of a critical one.
    pub(super) fn preempt(&mut self, uid: &str) {
        const MESSAGE: &str = "Preempted in order to admit critical pod";
        let failure = Failure::new(PREEMPTING, MESSAGE);
        let events = &self.context.events;
        if let Some(waiting) = self.room.remove(uid) {
            events.pod(&waiting, Severity::Warning, PREEMPTING, MESSAGE);
            self.start(waiting, Some(failure));
        } else if let Some(entry) = self.entries.get(uid) {
            let is_new = entry.wish.send_if_modified(|wish| {
                let is_new = wish.refused.is_none();
                wish.refused.get_or_insert(failure);
                is_new
            });
            if is_new {
                events.pod(&entry.pod, Severity::Warning, PREEMPTING, MESSAGE);
                let tells = (self.context.shelf.clone(), events.clone());
                let grace = termination_grace(&entry.pod);
                overdue::watch(&entry.pod, grace, tells, self.shutdown.clone());
            }
        }
    }

    /// Passes an order on to its pod. One that is gone meanwhile is left.
    pub(super) fn obey(&mut self, order: Order) {
        match order {
            Order::End { uid, eviction } => self.evict(&uid, eviction),
            Order::Clear { uid } => {
                if let Some(entry) = self.entries.get(&uid) {
                    entry.wish.send_modify(|wish| wish.is_spent = true);
                }
            }
        }
    }

    /// Ends a pod for the node's sake; it was told of already. One that ends already has no more time for it.
    pub(super) fn evict(&mut self, uid: &str, eviction: Eviction) {
        let Some(entry) = self.entries.get(uid) else { return };
        entry.wish.send_modify(|wish| match &mut wish.evicted {
            Some(known) => known.grace = known.grace.min(eviction.grace),
            None => wish.evicted = Some(eviction),
        });
    }

    /// Has static pods begin anew that ended, or were refused, as the node was going down, once it stays.
    pub(super) fn bring_back(&mut self) {
        if self.standing.is_ending() {
            return;
        }
        let is_of_shutdown = |wish: &Wish| {
            wish.evicted.as_ref().is_some_and(|eviction| eviction.cause == Cause::Shutdown)
                || wish.refused.as_ref().is_some_and(|refusal| refusal.reason == shutdown::REFUSED)
        };
        let statics = self.entries.iter().filter(|(uid, _)| self.statics.contains_key(*uid));
        let ended = statics.filter(|(_, entry)| is_of_shutdown(&entry.wish.borrow()));
        let ended: Vec<String> = ended.map(|(uid, _)| uid.clone()).collect();
        for uid in ended {
            self.mark_gone(&uid, None);
        }
    }

    /// Whether a pod that the disk remembers begins anew, and is forgotten: a static one that went down
    /// with the node. Its file tells of it again; nobody else would replace it.
    pub(super) async fn begins_anew(&self, pod: &Pod) -> bool {
        let is_over = pod.status.as_ref().is_some_and(shutdown::is_of_shutdown);
        if !is_over || !static_pods::is_static(pod) {
            return false;
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Err(error) = self.context.cache.remove(uid).await {
            tracing::warn!(pod = pod.metadata.name, uid, %error, "record of a pod not removed");
        }
        true
    }
}
