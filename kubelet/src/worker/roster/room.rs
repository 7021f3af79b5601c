//! Pods that wait until others have ended and left them room.
//!
//! ```text
//!   does not fit ─► victims told to end ─► waits ─ all have ended ─► judged again ─► runs
//! ```
//!
//! Only a list: whom to end and whom to let in is decided by the gatekeeper. It is lost with the agent
//! without harm, since the API server or the file still tells of the pod, and it is judged anew.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

/// The pods that wait, in the order in which they came.
#[derive(Default)]
pub(super) struct Room {
    waiting: Vec<Waiting>,
}

struct Waiting {
    pod: Arc<Pod>,
    /// The UIDs of those that have to end first.
    victims: BTreeSet<String>,
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

impl Room {
    /// `pod` waits for `victims`.
    pub(super) fn wait(&mut self, pod: Arc<Pod>, victims: BTreeSet<String>) {
        self.waiting.push(Waiting { pod, victims });
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Everybody who has to end.
    pub(super) fn victims(&self) -> BTreeSet<String> {
        self.waiting.iter().flat_map(|waiting| waiting.victims.iter().cloned()).collect()
    }

    /// Those who wait.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.waiting.iter().map(|waiting| &waiting.pod)
    }

    /// Keeps those that `stays` says of.
    pub(super) fn retain(&mut self, stays: impl Fn(&Pod) -> bool) {
        self.waiting.retain(|waiting| stays(&waiting.pod));
    }

    /// Takes out the pod of this UID.
    pub(super) fn remove(&mut self, of: &str) -> Option<Arc<Pod>> {
        let place = self.waiting.iter().position(|waiting| uid(&waiting.pod) == of)?;
        Some(self.waiting.remove(place).pod)
    }

    /// Takes out those that wait for nobody any more: `is_over` says who has ended.
    pub(super) fn take_ready(&mut self, is_over: impl Fn(&str) -> bool) -> Vec<Arc<Pod>> {
        for waiting in &mut self.waiting {
            waiting.victims.retain(|victim| !is_over(victim));
        }
        let is_ready = |waiting: &mut Waiting| waiting.victims.is_empty();
        self.waiting.extract_if(.., is_ready).map(|waiting| waiting.pod).collect()
    }
}
