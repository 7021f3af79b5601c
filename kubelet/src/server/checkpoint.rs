//! `POST /checkpoint/{namespace}/{pod}/{container}`: a running container as an archive below the state
//! directory (KEP-2008), which a debugger of another machine can look into.
//!
//! Paths, texts and the names of archives are upstream's; the time in a name is in UTC.
//! Differs: an archive that is there already is not replaced, and one container has one checkpoint at a
//! time.

use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use berth_runtime::interface::Checkpoint;
use jiff::Timestamp;
use serde_json::json;

use super::State;
use super::streams::pairs;
use crate::worker::{chain, members, runs};

/// What a checkpoint may take unless more is asked for: upstream's `runtimeRequestTimeout`.
const PATIENCE: Duration = Duration::from_secs(120);

/// The route, which is not there where checkpoints are switched off.
pub(super) fn routes(directory: Option<&PathBuf>) -> Router<State> {
    match directory {
        Some(_) => Router::new().route("/checkpoint/{namespace}/{pod}/{container}", post(serve)),
        None => Router::new(),
    }
}

type Refusal = (StatusCode, String);

async fn serve(
    Shared(state): Shared<State>,
    Path(names): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    match make(&state, &names, query.as_deref().unwrap_or_default()).await {
        Ok(archive) => Json(json!({"items": [archive]})).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn make(
    state: &State,
    (namespace, name, container): &(String, String, String),
    query: &str,
) -> Result<PathBuf, Refusal> {
    let missing = |what: &str| (StatusCode::NOT_FOUND, format!("{what} does not exist"));
    let pod = state.shelf.find(namespace, name).ok_or_else(|| missing("pod"))?;
    if members::find(&pod, container).is_none() {
        return Err(missing(&format!("container {container}")));
    }
    let failed = |why: String| {
        let text = format!("checkpointing of {namespace}/{name}/{container} failed ({why})");
        (StatusCode::INTERNAL_SERVER_ERROR, text)
    };
    let directory = state.checkpoints.as_deref().ok_or_else(|| missing("path"))?;
    let timeout = timeout(query)?.map_err(|why| failed(why.to_owned()))?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let sandboxes = state.runtime.pod(&uid).await.map_err(|error| failed(chain(&error)))?;
    let records = runs::records(&sandboxes, container);
    let newest = records.last().map(|(_, record)| record.id.clone());
    let id = newest.ok_or_else(|| failed(format!("container {container} not found")))?;
    let location = place(directory, (namespace, name, container), state.clock.now());
    let checkpoint = Checkpoint { location: location.clone(), timeout };
    let made = state.runtime.checkpoint(&id, checkpoint).await;
    made.map_err(|error| failed(chain(&error)))?;
    tracing::info!(pod = %name, %namespace, %container, archive = %location.display(), "checkpointed");
    Ok(location)
}

/// How long it may take: the last value is meant, and a short one does not shorten it, as upstream.
fn timeout(query: &str) -> Result<Result<Duration, &'static str>, Refusal> {
    let values = pairs(query).filter(|(name, _)| name == "timeout").map(|(_, value)| value);
    let Some(value) = values.last() else { return Ok(Ok(PATIENCE)) };
    let seconds: i64 = value.parse().map_err(|_| {
        (StatusCode::NOT_FOUND, "cannot parse value of timeout parameter".to_owned())
    })?;
    let seconds = u64::try_from(seconds);
    Ok(seconds
        .map(|seconds| Duration::from_secs(seconds).max(PATIENCE))
        .map_err(|_| "CheckpointContainer requires the timeout value to be > 0"))
}

/// The archive of a container at a time. None of the names can hold a slash.
fn place(directory: &FilePath, names: (&str, &str, &str), now: Timestamp) -> PathBuf {
    let (namespace, pod, container) = names;
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ");
    directory.join(format!("checkpoint-{pod}_{namespace}-{container}-{time}.tar"))
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::{Method, Request};
    use tower_service::Service as _;

    use super::*;
    use crate::server::{routes as all, tests};

    async fn asked(state: State, method: Method, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let reply = all(state).call(request).await.unwrap();
        let status = reply.status().as_u16();
        let body = to_bytes(reply.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_archive_is_told_by_its_path() {
        let root = tempfile::tempdir().unwrap();
        let state = tests::running_state(root.path()).await;
        let (status, body) = asked(state, Method::POST, "/checkpoint/ns/p/c?timeout=5").await;
        assert_eq!(status, 200, "{body}");
        let told: serde_json::Value = serde_json::from_str(&body).unwrap();
        let path = told["items"][0].as_str().unwrap();
        let name = path.strip_prefix(&format!("{}/", root.path().display())).unwrap();
        let time = name.strip_prefix("checkpoint-p_ns-c-").unwrap().strip_suffix(".tar").unwrap();
        assert_eq!(time.len(), "2026-01-01T00:00:00Z".len());
        assert!(time.parse::<Timestamp>().is_ok(), "{time}");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_upstreams() {
        let root = tempfile::tempdir().unwrap();
        let running = tests::running_state(root.path()).await;
        let unmade = tests::state(root.path());
        let off = State { checkpoints: None, ..running.clone() };
        let negative = "checkpointing of ns/p/c failed (CheckpointContainer requires the timeout \
                        value to be > 0)";
        for (state, method, path, status, text) in [
            (&running, Method::POST, "/checkpoint/ns/q/c", 404, "pod does not exist"),
            (&running, Method::POST, "/checkpoint/ns/p/x", 404, "container x does not exist"),
            (
                &running,
                Method::POST,
                "/checkpoint/ns/p/c?timeout=1&timeout=x",
                404,
                "cannot parse value of timeout parameter",
            ),
            (&running, Method::POST, "/checkpoint/ns/p/c?timeout=-1", 500, negative),
            (
                &unmade,
                Method::POST,
                "/checkpoint/ns/p/c",
                500,
                "checkpointing of ns/p/c failed (container c not found)",
            ),
            (&running, Method::GET, "/checkpoint/ns/p/c", 405, ""),
            (&off, Method::POST, "/checkpoint/ns/p/c", 404, "404 page not found\n"),
        ] {
            let reply = asked(state.clone(), method, path).await;
            assert_eq!(reply, (status, text.to_owned()), "{path}");
        }
    }

    #[test]
    fn a_short_time_is_not_taken_and_a_long_one_is() {
        let seconds = |query| timeout(query).unwrap().map(|time| time.as_secs());
        assert_eq!(seconds(""), Ok(120));
        assert_eq!(seconds("timeout=1"), Ok(120));
        assert_eq!(seconds("timeout=1&timeout=600&other=3"), Ok(600));
        assert!(seconds("timeout=-1").is_err());
        assert!(timeout("timeout=").is_err());
    }
}
