//! What a worker does when the pod, or what its volumes are filled from, is another.

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::Worker;
use super::members;
use super::memory::{ImageState, Operation};
use crate::backoff::with_jitter;

impl Worker {
    /// When the volumes are looked at again; never where none of them can change.
    pub(super) fn next_refresh(&self) -> Option<Instant> {
        let pod = &self.wishes.borrow().pod;
        let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
        let changes = volumes.into_iter().flatten().any(|v| {
            v.config_map.is_some()
                || v.secret.is_some()
                || v.projected.is_some()
                || v.downward_api.is_some()
        });
        changes.then(|| Instant::now() + with_jitter(self.memory.pacing.refresh))
    }

    /// What of a changed pod its volumes may show is shown at once.
    pub(super) fn note_changes(&mut self, before: &Pod, after: &Pod) {
        let (x, y) = (&before.metadata, &after.metadata);
        let same = x.labels == y.labels && x.annotations == y.annotations;
        if !same || before.spec != after.spec {
            self.refresh_volumes();
        }
        self.note_allocation(before, after);
        for (_, container) in members::lasting(after) {
            let known = members::find(before, &container.name);
            if known.is_some_and(|(_, known)| known.image != container.image) {
                self.forget_image(&container.name);
            }
        }
    }

    /// What the volumes are filled from has changed: nothing waits that failed for want of it.
    pub(super) fn note_sources(&mut self) {
        self.refresh_volumes();
        self.memory.retries.remove(&Operation::Volumes);
        let now = Instant::now();
        for container in self.memory.containers.values_mut() {
            if let Some(failed) = &mut container.start_failure
                && failed.failure.reason == "CreateContainerConfigError"
            {
                failed.retry_at = now;
            }
        }
    }

    /// Has the volumes filled anew now, or right after the run that is under way.
    fn refresh_volumes(&mut self) {
        if self.next_refresh().is_some() {
            self.memory.refresh_at = Some(Instant::now());
        }
    }

    /// What was learnt of a container's image says nothing of another one.
    fn forget_image(&mut self, name: &str) {
        self.abandon(|o| matches!(o, Operation::Image(other) if other == name));
        let memory = self.memory.container(name);
        memory.image = ImageState::Unknown;
        memory.pull_backoff.reset();
        memory.start_failure = None;
        memory.start_backoff.reset();
    }
}
