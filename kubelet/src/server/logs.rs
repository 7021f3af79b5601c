//! `/containerLogs/{namespace}/{pod}/{container}`: what a container wrote, from its newest run or the
//! one before, across rotated files, followed until it ends.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_runtime::interface::{ContainerId, ContainerState, Runtime, RuntimeEvent};
use berth_runtime::logs::{self, LogOptions, LogStream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus as ApiStatus, Pod};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::State;
use super::budget::Use;
use crate::worker::{members, runs};

/// The query of the log API.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Options {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<i64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    limit_bytes: Option<i64>,
    stream: Option<String>,
}

/// A refusal with its status.
type Refusal = (StatusCode, String);

pub(super) async fn serve(
    Shared(state): Shared<State>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let found = find(&state, &namespace, &pod, (&container, &options)).await;
    let found = found.and_then(|found| Ok((found, state.streaming.budget.take(Use::Log)?)));
    match found {
        Ok(((path, options, guard), held)) => {
            let stream = logs::read(path, options);
            // The guard ends the watch for the container's end together with the response.
            let stream = futures::StreamExt::map(stream, move |item| {
                let _ = (&guard, &held);
                item
            });
            let plain = [(header::CONTENT_TYPE, "text/plain")];
            (plain, Body::from_stream(stream)).into_response()
        }
        Err((status, message)) => (status, message).into_response(),
    }
}

async fn find(
    state: &State,
    namespace: &str,
    name: &str,
    (container, query): (&str, &Options),
) -> Result<(PathBuf, LogOptions, Option<tokio_util::sync::DropGuard>), Refusal> {
    let mut options = options(query, state.clock.now())?;
    let missing = || {
        let message = format!("pod {name:?} does not exist in namespace {namespace:?}\n");
        (StatusCode::NOT_FOUND, message)
    };
    let pod = state.shelf.find(namespace, name).ok_or_else(missing)?;
    if members::find(&pod, container).is_none() {
        let message = format!("container {container:?} not found in pod {name:?}\n");
        return Err((StatusCode::NOT_FOUND, message));
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    // Subscribed before looking, so that an end in between is not missed.
    let events = state.runtime.events();
    let sandboxes = state.runtime.pod(&uid).await.map_err(|error| {
        let message = format!("the runtime does not answer: {error}\n");
        (StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    let records = runs::records(&sandboxes, container);
    let Some((sandbox, newest)) = records.last() else {
        return Err(without_log(&pod, container));
    };
    let directory = sandbox.config.log_directory.join(container);
    let of_run = |attempt: Option<u32>| {
        let path = directory.join(format!("{}.log", attempt?));
        path.exists().then_some(path)
    };
    let attempt = newest.config.attempt;
    if is_set(query.previous.as_deref()) {
        // Between two runs the API tells of the newest as the last.
        let is_last = matches!(newest.state, ContainerState::Exited { .. })
            && status(&pod, container).is_some_and(waits);
        let path = of_run(if is_last { Some(attempt) } else { attempt.checked_sub(1) });
        let message =
            format!("previous terminated container {container:?} in pod {name:?} not found\n");
        return Ok((path.ok_or((StatusCode::BAD_REQUEST, message))?, options, None));
    }
    if newest.state == ContainerState::Created {
        let path = of_run(attempt.checked_sub(1));
        return Ok((path.ok_or_else(|| without_log(&pod, container))?, options, None));
    }
    let mut guard = None;
    if is_set(query.follow.as_deref()) {
        let ended = CancellationToken::new();
        let runs = matches!(newest.state, ContainerState::Running { .. });
        match runs {
            true => {
                let watched = CancellationToken::new();
                guard = Some(watched.clone().drop_guard());
                let watch = watch_end(
                    Arc::clone(&state.runtime),
                    (uid, newest.id.clone()),
                    events,
                    ended.clone(),
                );
                tokio::spawn(watched.run_until_cancelled_owned(watch));
            }
            false => ended.cancel(),
        }
        options.follow = Some(ended);
    }
    Ok((sandbox.config.log_directory.join(&newest.config.log_path), options, guard))
}

/// What the API shows of a container of any kind.
fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ApiStatus> {
    let status = pod.status.as_ref()?;
    let all = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    all.into_iter().flatten().flatten().find(|status| status.name == container)
}

fn waits(status: &ApiStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.waiting.is_some())
}

/// Cancels `ended` when the container does not run any more.
async fn watch_end(
    runtime: Arc<dyn Runtime>,
    (uid, id): (String, ContainerId),
    mut events: tokio::sync::broadcast::Receiver<RuntimeEvent>,
    ended: CancellationToken,
) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        let concerns_us = match events.recv().await {
            Ok(RuntimeEvent::Exited { container, .. }) => container == id,
            Ok(RuntimeEvent::SandboxLost { pod, .. }) => pod.uid == uid,
            Err(RecvError::Lagged(_)) => true,
            Err(RecvError::Closed) => break,
        };
        if !concerns_us {
            continue;
        }
        let sandboxes = runtime.pod(&uid).await.unwrap_or_default();
        let mut records = sandboxes.iter().flat_map(|s| &s.containers);
        let runs = records.any(|c| c.id == id && matches!(c.state, ContainerState::Running { .. }));
        if !runs {
            break;
        }
    }
    ended.cancel();
}

/// Why there is no log: nothing has run yet, or it was removed for want of disk.
fn without_log(pod: &Pod, container: &str) -> Refusal {
    let known = status(pod, container);
    let state = known.and_then(|c| c.state.as_ref());
    let has_ended = state.is_some_and(|state| state.terminated.is_some());
    if let Some(id) = known.and_then(|c| c.container_id.as_ref()).filter(|_| has_ended) {
        let message = format!("unable to retrieve container logs for {id}\n");
        return (StatusCode::BAD_REQUEST, message);
    }
    let reason = state.and_then(|s| s.waiting.as_ref()?.reason.as_deref());
    let reason = match reason {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None => "ContainerCreating",
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let message =
        format!("container {container:?} in pod {name:?} is waiting to start: {reason}\n");
    (StatusCode::BAD_REQUEST, message)
}

fn is_set(value: Option<&str>) -> bool {
    matches!(value, Some("true" | "1" | "True" | "TRUE" | "t"))
}

fn options(query: &Options, now: Timestamp) -> Result<LogOptions, Refusal> {
    let invalid =
        |what: &str| (StatusCode::UNPROCESSABLE_ENTITY, format!("Invalid request: {what}\n"));
    let at_least = |value: Option<i64>, least: i64, what: &str| match value {
        Some(value) if value < least => Err(invalid(what)),
        Some(value) => Ok(u64::try_from(value).ok()),
        None => Ok(None),
    };
    let seconds = at_least(query.since_seconds, 1, "sinceSeconds must be greater than 0")?;
    let since = match (seconds, query.since_time.as_deref()) {
        (Some(_), Some(_)) => {
            return Err(invalid("at most one of sinceTime and sinceSeconds may be given"));
        }
        (Some(seconds), None) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            let since = now.checked_sub(SignedDuration::from_secs(seconds));
            Some(since.unwrap_or(Timestamp::MIN))
        }
        (None, Some(time)) => {
            let time: Timestamp = time.parse().map_err(|_| invalid("sinceTime is no time"))?;
            Some(time)
        }
        (None, None) => None,
    };
    Ok(LogOptions {
        tail_lines: at_least(query.tail_lines, 0, "tailLines must not be negative")?,
        since,
        limit_bytes: at_least(query.limit_bytes, 1, "limitBytes must be greater than 0")?,
        timestamps: is_set(query.timestamps.as_deref()),
        stream: match query.stream.as_deref() {
            None | Some("" | "All") => None,
            Some("Stdout") => Some(LogStream::Stdout),
            Some("Stderr") => Some(LogStream::Stderr),
            Some(_) => return Err(invalid("stream must be All, Stdout or Stderr")),
        },
        follow: None,
    })
}
