//! Keeps `cpu.weight` of the QoS classes' cgroups at what their pods request together, so that under
//! load a class gets no more than its pods asked for.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::Runtime;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Class, PodDemand, class_weights};
use crate::shelf::Shelf;

/// How long a class may be weighed for pods that have come or gone.
const INTERVAL: Duration = Duration::from_secs(10);

/// Weighs the classes by the pods on `shelf` until `shutdown`.
pub(crate) async fn keep(shelf: Shelf, runtime: Arc<dyn Runtime>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let (burstable, best_effort) = weights(&shelf.list());
        for (class, weight) in [(Class::Burstable, burstable), (Class::BestEffort, best_effort)] {
            if let Err(error) = runtime.weigh_class(&class.cgroup_path(), weight).await {
                warn!(class = class.as_str(), error = &error as &dyn std::error::Error, "weighing");
            }
        }
    }
}

/// The weights of both classes for the pods that are not over.
fn weights(pods: &[Pod]) -> (u64, u64) {
    let is_over = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let demands: Vec<_> =
        pods.iter().filter(|pod| !is_over(pod)).flat_map(PodDemand::parse).collect();
    class_weights(&demands)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {},
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] },
            "status": { "phase": phase }
        }))
        .unwrap()
    }

    #[test]
    fn pods_that_are_over_weigh_nothing() {
        assert_eq!(weights(&[pod("Running"), pod("Succeeded"), pod("Failed")]), (39, 1));
        assert_eq!(weights(&[pod("Failed")]), (1, 1));
    }
}
