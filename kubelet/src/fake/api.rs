//! An API server that agrees to everything and remembers it.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::lock;

/// What an API server was asked, and how it answers.
#[derive(Default)]
pub(crate) struct ApiState {
    /// Every request: method, path, body.
    pub(crate) requests: Vec<(String, String, Value)>,
    /// Answer so many requests with this status instead.
    pub(crate) failing: Option<(u32, u16)>,
}

/// An API server that agrees to everything and remembers it.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    pub(crate) state: Arc<Mutex<ApiState>>,
}

impl FakeApi {
    pub(crate) fn client(&self) -> kube::Client {
        let state = Arc::clone(&self.state);
        let router = axum::Router::new().fallback(move |request: Request| {
            let state = Arc::clone(&state);
            async move { answer(&state, request).await }
        });
        kube::Client::new(router, "default")
    }

    /// The statuses written for a pod, in order.
    pub(crate) fn statuses(&self, name: &str) -> Vec<Value> {
        let suffix = format!("/pods/{name}/status");
        let state = lock(&self.state);
        let written = state.requests.iter().filter(|(_, p, _)| p.ends_with(&suffix));
        written.map(|(_, _, body)| body["status"].clone()).collect()
    }

    /// How often the pod was deleted for good.
    pub(crate) fn deletions(&self, name: &str) -> usize {
        let suffix = format!("/pods/{name}");
        let state = lock(&self.state);
        let all = state.requests.iter();
        all.filter(|(method, path, _)| method == "DELETE" && path.ends_with(&suffix)).count()
    }
}

async fn answer(state: &Mutex<ApiState>, request: Request<Body>) -> Response {
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await;
    let body: Value = serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or(Value::Null);
    let mut state = lock(state);
    state.requests.push((method.clone(), path.clone(), body.clone()));
    if let Some((left, status)) = &mut state.failing
        && *left > 0
    {
        *left -= 1;
        let status = *status;
        let refusal = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": "made to fail", "reason": "Test", "code": status,
        });
        let code = axum::http::StatusCode::from_u16(status).unwrap();
        return (code, axum::Json(refusal)).into_response();
    }
    let made =
        state.requests.iter().filter(|(m, p, _)| m == "POST" && p.ends_with("/pods")).count();
    let reply = match (method.as_str(), path.contains("/events")) {
        ("POST", _) if path.ends_with("/pods") => {
            let mut made_pod = body;
            made_pod["metadata"]["uid"] = json!(format!("mirror-{made}"));
            made_pod
        }
        ("DELETE", _) => json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
        (_, true) => body,
        _ => json!({"metadata": {"name": "x"}, "spec": {"containers": []}}),
    };
    axum::Json(reply).into_response()
}
