//! A static pod whose file came back while it was ending: it is the same pod, started anew, so the
//! restarts of its containers are counted on.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

/// The pod of the file, with as much of the status that it ended with as counts restarts.
pub(super) fn pod(file: &Pod, last: Option<Arc<PodStatus>>) -> Pod {
    let mut pod = file.clone();
    if let (Some(status), Some(last)) = (&mut pod.status, last) {
        status.init_container_statuses = counted(last.init_container_statuses.as_deref());
        status.container_statuses = counted(last.container_statuses.as_deref());
    }
    pod
}

fn counted(statuses: Option<&[ContainerStatus]>) -> Option<Vec<ContainerStatus>> {
    let one = |status: &ContainerStatus| {
        // What never ran is not restarted.
        let restarts = i32::from(status.container_id.is_some());
        ContainerStatus {
            name: status.name.clone(),
            restart_count: status.restart_count.saturating_add(restarts),
            ..ContainerStatus::default()
        }
    };
    statuses.map(|statuses| statuses.iter().map(one).collect())
}
