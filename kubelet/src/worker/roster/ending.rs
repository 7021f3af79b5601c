//! Pods that end though nobody deleted them: for a critical one, or for the node's sake.

use super::Roster;
use crate::events::Severity;
use crate::eviction::Order;
use crate::status::conditions::PREEMPTING;
use crate::worker::memory::Failure;

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
            }
        }
    }

    /// Ends a pod for the node's sake; it was told of already. One that is gone meanwhile is left.
    pub(super) fn evict(&mut self, order: Order) {
        if let Some(entry) = self.entries.get(&order.uid) {
            entry.wish.send_modify(|wish| wish.evicted = Some(order.eviction));
        }
    }
}
