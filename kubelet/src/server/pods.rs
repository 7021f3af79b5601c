//! `/pods` and `/runningpods`.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_runtime::interface::{ContainerState, SandboxStatus};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::State;

/// The pods that the node was given, with their newest statuses.
pub(super) async fn all(Shared(state): Shared<State>) -> Response {
    Json(list(state.shelf.list())).into_response()
}

/// The pods that run, as the runtime has them.
pub(super) async fn running(Shared(state): Shared<State>) -> Response {
    match state.runtime.list().await {
        Ok(sandboxes) => {
            let pods = sandboxes.iter().filter_map(running_pod).collect();
            Json(list(pods)).into_response()
        }
        Err(error) => {
            tracing::warn!(%error, "runtime does not list its sandboxes");
            (StatusCode::INTERNAL_SERVER_ERROR, "the runtime does not answer\n").into_response()
        }
    }
}

fn list(items: Vec<Pod>) -> List<Pod> {
    List { items, ..List::default() }
}

fn running_pod(sandbox: &SandboxStatus) -> Option<Pod> {
    let containers: Vec<Container> = sandbox
        .containers
        .iter()
        .filter(|c| matches!(c.state, ContainerState::Running { .. }))
        .map(|c| Container {
            name: c.config.name.clone(),
            image: Some(c.config.image_reference.clone()),
            ..Container::default()
        })
        .collect();
    if containers.is_empty() {
        return None;
    }
    let identity = &sandbox.config.pod;
    Some(Pod {
        metadata: ObjectMeta {
            name: Some(identity.name.clone()),
            namespace: Some(identity.namespace.clone()),
            uid: Some(identity.uid.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { containers, ..PodSpec::default() }),
        status: None,
    })
}
