//! Keeps `cpu.weight` of the QoS classes' cgroups at what their pods request together, so that under
//! load a class gets no more than its pods asked for.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Class, Driver, PodDemand, class_weights};
use crate::shelf::{Shelf, Shown};

/// How long a class may be weighed for pods that have come or gone.
const INTERVAL: Duration = Duration::from_secs(10);

/// Weighs the classes by the pods on `shelf` until `shutdown`.
pub(crate) async fn keep(
    (shelf, driver): (Shelf, Driver),
    runtime: Arc<dyn Runtime>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let (burstable, best_effort) = weights(&shelf.shown());
        for (class, weight) in [(Class::Burstable, burstable), (Class::BestEffort, best_effort)] {
            if let Err(error) = runtime.weigh_class(&driver.class_path(class), weight).await {
                warn!(class = class.as_str(), error = &error as &dyn std::error::Error, "weighing");
            }
        }
    }
}

/// The weights of both classes for the pods that are not over.
fn weights(pods: &[Shown]) -> (u64, u64) {
    let last = pods.iter().filter(|shown| !shown.is_over());
    let demands: Vec<_> = last.flat_map(|shown| PodDemand::parse(&shown.pod)).collect();
    class_weights(&demands)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::shelf::Holds;

    fn pod(phase: &str) -> Shown {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {},
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] },
            "status": { "phase": phase }
        }))
        .unwrap();
        let status = Arc::new(pod.status.clone().unwrap());
        Shown { pod: Arc::new(pod), status, holds: Holds::Everything }
    }

    #[test]
    fn pods_that_are_over_weigh_nothing() {
        assert_eq!(weights(&[pod("Running"), pod("Succeeded"), pod("Failed")]), (39, 1));
        assert_eq!(weights(&[pod("Failed")]), (1, 1));
    }
}
