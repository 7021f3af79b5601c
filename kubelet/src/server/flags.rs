//! `PUT /debug/flags/v`: another level of the log while the agent runs, as klog's setter takes it.

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;

use super::State;

/// Sets a level of the log; fails with what stands in the way.
pub type SetVerbosity = fn(u32) -> Result<(), String>;

/// The route.
pub(super) fn routes() -> Router<State> {
    Router::new().route("/debug/flags/v", any(verbosity))
}

async fn verbosity(Shared(state): Shared<State>, method: Method, body: String) -> Response {
    let Some(set) = state.set_verbosity else {
        let text = "flags endpoint is disabled.\n";
        return (StatusCode::METHOD_NOT_ALLOWED, text).into_response();
    };
    if method != Method::PUT {
        return (StatusCode::NOT_ACCEPTABLE, "unrecognized http method").into_response();
    }
    let level = body.parse::<u32>().map_err(|error| error.to_string());
    match level.and_then(set) {
        Ok(()) => {
            tracing::info!(level = %body, "level of the log set");
            format!("successfully set klog.logging.verbosity to {body}").into_response()
        }
        Err(error) => {
            let text = format!("failed set klog.logging.verbosity {body}: {error}\n");
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower_service::Service as _;

    use super::*;
    use crate::server::{routes, tests};

    async fn asked(state: State, method: Method, body: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri("/debug/flags/v");
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let reply = routes(state).call(request).await.unwrap();
        let status = reply.status().as_u16();
        let body = to_bytes(reply.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_level_is_set_by_its_number_alone() {
        let root = tempfile::tempdir().unwrap();
        let state = tests::state(root.path());
        for (method, body, status, text) in [
            (Method::PUT, "5", 200, "successfully set klog.logging.verbosity to 5"),
            (Method::PUT, "50", 400, "failed set klog.logging.verbosity 50: too much\n"),
            (Method::PUT, "-1", 400, "failed set klog.logging.verbosity -1: "),
            (Method::PUT, "", 400, "failed set klog.logging.verbosity : "),
            (Method::GET, "", 406, "unrecognized http method"),
        ] {
            let (found, said) = asked(state.clone(), method, body).await;
            assert!(found == status && said.starts_with(text), "{body:?}: {found} {said}");
        }
        let off = State { set_verbosity: None, ..state };
        let refused = asked(off, Method::PUT, "5").await;
        assert_eq!(refused, (405, "flags endpoint is disabled.\n".to_owned()));
    }
}
