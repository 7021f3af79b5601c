//! The pods of the node with their newest statuses, for whoever asks: the HTTP API and admission.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;

/// A shared list of pods by UID. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    pods: Arc<RwLock<BTreeMap<String, Shown>>>,
    /// Counts the pods that have ended.
    ended: Arc<watch::Sender<u64>>,
    /// Counts what was put or taken away.
    moves: Arc<watch::Sender<u64>>,
}

/// A pod, which its worker has as well, and the status that is newer than the one in it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The pod; its status is not the newest.
    pub pod: Arc<Pod>,
    /// The newest status.
    pub status: Arc<PodStatus>,
    /// What it holds of the node.
    pub holds: Holds,
}

/// What a pod holds of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// Nothing.
    Nothing,
    /// What its containers have left: records, written files, logs.
    Remains,
    /// Containers, a sandbox, volumes, for all that is known.
    Everything,
}

impl Shown {
    /// Whether the pod holds nothing any more.
    pub fn is_over(&self) -> bool {
        is_over(&self.status)
    }

    /// Whether everything it held is given back: containers, sandbox, volumes.
    pub fn is_cleared(&self) -> bool {
        self.holds < Holds::Everything
    }

    fn whole(&self) -> Pod {
        let Pod { metadata, spec, status: _ } = &*self.pod;
        let status = Some(PodStatus::clone(&self.status));
        Pod { metadata: metadata.clone(), spec: spec.clone(), status }
    }
}

/// Whether a pod of this status holds nothing any more: its phase is a final one.
fn is_over(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

impl Shelf {
    /// Puts a pod with its newest status.
    pub fn put(&self, pod: &Arc<Pod>, status: &PodStatus) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let known = pods.get(&uid);
        let was_over = known.is_some_and(Shown::is_over);
        let status = match known.filter(|known| *known.status == *status) {
            Some(known) if Arc::ptr_eq(&known.pod, pod) => return,
            Some(known) => Arc::clone(&known.status),
            None => Arc::new(status.clone()),
        };
        let is_news = is_over(&status) && !was_over;
        let holds = known.map_or(Holds::Everything, |known| known.holds);
        pods.insert(uid, Shown { pod: Arc::clone(pod), status, holds });
        self.moves.send_modify(|count| *count = count.wrapping_add(1));
        if is_news {
            self.ended.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Notes that a pod has given back what it held but for this.
    pub(crate) fn give_back(&self, uid: &str, holds: Holds) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = pods.get_mut(uid)
            && shown.holds > holds
        {
            shown.holds = holds;
            self.ended.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Changes whenever a pod is put here or taken away.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// Changes whenever a pod has ended, has given something back, or was taken away.
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Whether the pod of this UID is known to have ended.
    pub fn has_ended(&self, uid: &str) -> bool {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(uid).is_some_and(Shown::is_over)
    }

    /// Whether `pod`, of this UID, has ended: by its newest status, or its own where none is known.
    pub(crate) fn is_over(&self, uid: &str, pod: &Pod) -> bool {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let known = pods.get(uid).map(|shown| &*shown.status).or(pod.status.as_ref());
        known.is_some_and(is_over)
    }

    /// Takes a pod away.
    pub fn remove(&self, uid: &str) -> Option<Shown> {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let removed = pods.remove(uid);
        self.moves.send_modify(|count| *count = count.wrapping_add(1));
        self.ended.send_modify(|count| *count = count.wrapping_add(1));
        removed
    }

    /// All pods, each with its newest status in it.
    pub fn list(&self) -> Vec<Pod> {
        self.shown().iter().map(Shown::whole).collect()
    }

    /// All pods, shared.
    pub fn shown(&self) -> Vec<Shown> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// The newest pod of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Pod> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let named = pods.values().filter(|shown| {
            let metadata = &shown.pod.metadata;
            metadata.namespace.as_deref() == Some(namespace)
                && metadata.name.as_deref() == Some(name)
        });
        let age = |shown: &&Shown| shown.pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        named.max_by_key(age).map(Shown::whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(phase: &str) -> PodStatus {
        PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() }
    }

    #[test]
    fn a_pod_is_shared_and_shown_with_its_newest_status() {
        let shelf = Shelf::default();
        let (moves, ends) = (shelf.moves(), shelf.ends());
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}});
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).unwrap());
        shelf.put(&pod, &status("Running"));
        assert!(Arc::ptr_eq(&shelf.shown()[0].pod, &pod));
        assert!(moves.has_changed().unwrap() && !ends.has_changed().unwrap());
        let found = shelf.find("ns", "p").unwrap();
        assert_eq!(found.status, Some(status("Running")));
        assert!(!shelf.is_over("u", &pod));

        let mut moves = shelf.moves();
        shelf.put(&pod, &status("Running"));
        assert!(!moves.has_changed().unwrap(), "nothing is new");
        shelf.put(&pod, &status("Failed"));
        assert!(moves.has_changed().unwrap() && ends.has_changed().unwrap());
        assert!(shelf.has_ended("u") && shelf.is_over("u", &pod));
        moves.mark_unchanged();
        shelf.remove("u");
        assert!(moves.has_changed().unwrap() && shelf.list().is_empty());
        let over = Pod { status: Some(status("Succeeded")), ..Pod::clone(&pod) };
        assert!(shelf.is_over("u", &over) && !shelf.is_over("u", &pod), "its own, then");
    }
}
