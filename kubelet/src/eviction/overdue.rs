//! Pods that end for the node's sake, or a critical pod's, and take longer than they may.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use super::uid_of;
use crate::events::{Recorder, Severity};
use crate::shelf::Shelf;

/// The event's reason.
pub(crate) const REASON: &str = "ExceededGracePeriod";
const MESSAGE: &str = "Container runtime did not kill the pod within specified grace period.";
/// So long a pod may take at least before it is told of, whatever its grace; upstream's.
const LEAST: Duration = Duration::from_secs(10);

/// Tells of a pod that was told to end just now, with so much grace, if half as much again is not enough.
/// Returns at once.
pub(crate) fn watch(
    pod: &Arc<Pod>,
    grace: Duration,
    (shelf, events): (Shelf, Recorder),
    shutdown: CancellationToken,
) {
    let pod = Arc::clone(pod);
    let time = grace.saturating_add(grace / 2).max(LEAST);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        tokio::time::sleep(time).await;
        if shelf.shown().iter().any(|shown| uid_of(&shown.pod) == uid_of(&pod) && !shown.is_over())
        {
            events.pod(&pod, Severity::Warning, REASON, MESSAGE);
        }
    }));
}
