//! The pods of the node with their newest statuses, for whoever asks: the HTTP API and admission.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;

/// A shared list of pods by UID. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    pods: Arc<RwLock<BTreeMap<String, Pod>>>,
    /// Counts the pods that have ended.
    ended: Arc<watch::Sender<u64>>,
}

/// Whether a pod holds nothing any more: its phase is a final one.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

impl Shelf {
    /// Puts a pod with its newest status.
    pub fn put(&self, pod: &Pod, status: &PodStatus) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let same = pods.get(&uid).is_some_and(|known| {
            known.status.as_ref() == Some(status)
                && known.metadata == pod.metadata
                && known.spec == pod.spec
        });
        if !same {
            let mut pod = pod.clone();
            pod.status = Some(status.clone());
            let is_news = is_over(&pod) && !pods.get(&uid).is_some_and(is_over);
            pods.insert(uid, pod);
            if is_news {
                self.ended.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }

    /// Changes whenever a pod has ended, or was taken away.
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Whether the pod of this UID is known to have ended.
    pub fn has_ended(&self, uid: &str) -> bool {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(uid).is_some_and(is_over)
    }

    /// Takes a pod away.
    pub fn remove(&self, uid: &str) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.remove(uid);
        self.ended.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// All pods.
    pub fn list(&self) -> Vec<Pod> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// The newest pod of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Pod> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let named = pods.values().filter(|p| {
            p.metadata.namespace.as_deref() == Some(namespace)
                && p.metadata.name.as_deref() == Some(name)
        });
        let newest = named.max_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
        newest.cloned()
    }
}
