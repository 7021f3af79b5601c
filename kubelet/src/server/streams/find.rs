//! Finds what a streaming path names among the pods of the node.

use std::sync::Arc;

use axum::http::StatusCode;
use berth_runtime::interface::{ContainerId, ContainerState, Runtime, SandboxState, SandboxStatus};

use super::Names;
use super::forward::Destination;
use super::query::Refusal;
use crate::server::State;
use crate::worker::runs;

/// A running container.
pub(super) struct Container {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) id: ContainerId,
}

fn name<'a>(names: &'a Names, key: &str) -> Option<&'a str> {
    names.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// The sandboxes of the pod that a path names, and the pod's name for messages.
async fn sandboxes(state: &State, names: &Names) -> Result<(Vec<SandboxStatus>, String), Refusal> {
    let namespace = name(names, "namespace").unwrap_or_default();
    let pod = name(names, "pod").unwrap_or_default();
    let missing =
        || (StatusCode::NOT_FOUND, format!("pod {pod:?} not found in namespace {namespace:?}\n"));
    let found = state.shelf.find(namespace, pod).ok_or_else(missing)?;
    let uid = found.metadata.uid.clone().unwrap_or_default();
    if name(names, "uid").is_some_and(|wanted| wanted != uid) {
        return Err(missing());
    }
    let sandboxes = state.runtime.pod(&uid).await.map_err(|error| {
        let message = format!("the runtime does not answer: {error}\n");
        (StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    Ok((sandboxes, format!("{namespace}/{pod}")))
}

/// The running container that a path names.
pub(super) async fn container(state: &State, names: &Names) -> Result<Container, Refusal> {
    let container = name(names, "container").unwrap_or_default();
    let (sandboxes, _) = sandboxes(state, names).await?;
    let records = runs::records(&sandboxes, container);
    let running = records
        .iter()
        .rev()
        .find(|(_, record)| matches!(record.state, ContainerState::Running { .. }));
    match running {
        Some((_, record)) => {
            Ok(Container { runtime: Arc::clone(&state.runtime), id: record.id.clone() })
        }
        None => Err((StatusCode::NOT_FOUND, format!("container not found ({container:?})\n"))),
    }
}

/// The pod that a path names, as something that can be dialled.
pub(super) async fn destination(state: &State, names: &Names) -> Result<Destination, Refusal> {
    let (sandboxes, pod) = sandboxes(state, names).await?;
    let ready = sandboxes.iter().rev().find(|sandbox| sandbox.state == SandboxState::Ready);
    match ready {
        Some(sandbox) => Ok(Destination {
            runtime: Arc::clone(&state.runtime),
            sandbox: sandbox.id.clone(),
            budget: state.streaming.budget.clone(),
            pod,
        }),
        None => Err((StatusCode::NOT_FOUND, format!("pod {pod} is not running\n"))),
    }
}
