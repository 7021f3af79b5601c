//! Counts the requests of the node's API, those that are turned away included, by method and by the
//! first part of the path. What is neither known is `other`: a caller chooses no label.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use crate::meters::{Meters, SERVED, SERVED_TIME, WEB_SOCKETS};

/// Parts of paths that are told by name.
const ROOTS: [&str; 20] = [
    "attach",
    "configz",
    "containerLogs",
    "exec",
    "flagz",
    "healthz",
    "logs",
    "metrics",
    "metrics/cadvisor",
    "metrics/probes",
    "metrics/resource",
    "metrics/slis",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
    "statusz",
    "debug",
    "checkpoint",
];

const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Passes a request on and counts it.
pub(super) async fn count(meters: Meters, request: Request, next: Next) -> Response {
    let method = METHODS.into_iter().find(|known| *known == request.method().as_str());
    let root = root(request.uri().path());
    let long = if matches!(root, "exec" | "attach" | "debug") { "true" } else { "false" };
    let labels = [method.unwrap_or("other"), root, "readwrite", long];
    meters.count(&SERVED, &labels);
    let begun = Instant::now();
    let response = next.run(request).await;
    meters.time(&SERVED_TIME, &labels, begun.elapsed());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && is_web_socket(response.headers()) {
        meters.count(&WEB_SOCKETS, &[&root.to_ascii_lowercase()]);
    }
    response
}

fn is_web_socket(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|protocol| protocol == "websocket")
}

/// The part of a path that is told.
fn root(path: &str) -> &'static str {
    let mut parts = path.trim_start_matches('/').split('/');
    let first = parts.next().unwrap_or_default();
    let known = |name: &str| ROOTS.into_iter().find(|known| *known == name);
    match (first, parts.next()) {
        ("metrics", Some(second)) => known(&format!("metrics/{second}")),
        _ => known(first),
    }
    .unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_by_their_beginning_and_only_known_ones() {
        for (path, told) in [
            ("/metrics", "metrics"),
            ("/metrics/cadvisor", "metrics/cadvisor"),
            ("/metrics/zzz", "other"),
            ("/exec/ns/pod/c", "exec"),
            ("/portForward/ns/pod", "portForward"),
            ("//pods", "pods"),
            ("/", "other"),
            ("/whatever", "other"),
        ] {
            assert_eq!(root(path), told, "{path}");
        }
    }
}
