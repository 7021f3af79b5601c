//! `/healthz` and its checks, and how they came out: `/metrics/slis`.
//!
//! `ping`: the server answers. `log`: the log is written as it is said, so it always is. `syncloop`: what
//! takes the changes of pods is there, and takes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::State;
use super::numbers::exposition::{Exposition, Kind, number};

/// The checks, in the order in which they are told.
const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];

/// How a check came out last: not yet, well, ill.
const NOT_YET: u8 = 0;
const WELL: u8 = 1;
const ILL: u8 = 2;

/// What is checked. Cloning shares what was counted.
#[derive(Clone)]
pub struct Health {
    syncs: Arc<dyn Fn() -> bool + Send + Sync>,
    counted: Arc<[Counted; CHECKS.len()]>,
}

#[derive(Default)]
struct Counted {
    last: AtomicU8,
    successes: AtomicU64,
    errors: AtomicU64,
}

impl Health {
    /// A node whose pods are looked after as long as `syncs` says so.
    pub fn new(syncs: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { syncs: Arc::new(syncs), counted: Arc::default() }
    }

    /// Whether the check at this place is well.
    fn check(&self, at: usize) -> bool {
        let well = CHECKS[at] != "syncloop" || (self.syncs)();
        let counted = &self.counted[at];
        counted.last.store(if well { WELL } else { ILL }, Ordering::Relaxed);
        let counter = if well { &counted.successes } else { &counted.errors };
        counter.fetch_add(1, Ordering::Relaxed);
        well
    }

    /// `/metrics/slis`.
    pub(super) fn render(&self, started_at: f64) -> String {
        let mut text = Exposition::default();
        let mut family = text.family(
            "kubernetes_healthcheck",
            Kind::Gauge,
            "This metric records the result of a single healthcheck.",
        );
        for (name, counted) in CHECKS.iter().zip(self.counted.iter()) {
            let last = counted.last.load(Ordering::Relaxed);
            if last != NOT_YET {
                let value = if last == WELL { 1.0 } else { 0.0 };
                family.sample(&[("name", name), ("type", "healthz")], value);
            }
        }
        let mut family = text.family(
            "kubernetes_healthchecks_total",
            Kind::Counter,
            "This metric records the results of all healthcheck.",
        );
        for (name, counted) in CHECKS.iter().zip(self.counted.iter()) {
            for (status, counter) in [("error", &counted.errors), ("success", &counted.successes)] {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    let labels = [("name", *name), ("status", status), ("type", "healthz")];
                    family.sample(&labels, number(count));
                }
            }
        }
        text.started(started_at);
        text.finish()
    }
}

/// The routes.
pub(super) fn routes() -> Router<State> {
    Router::new().route("/healthz", get(all)).route("/healthz/{check}", get(one))
}

async fn all(Shared(state): Shared<State>, RawQuery(query): RawQuery) -> Response {
    let results = [0, 1, 2].map(|at| (CHECKS[at], state.health.check(at)));
    let ill: Vec<_> = results.iter().filter(|(_, well)| !well).map(|(name, _)| *name).collect();
    let lines = results.iter().map(|(name, well)| match well {
        true => format!("[+]{name} ok\n"),
        false => format!("[-]{name} failed: reason withheld\n"),
    });
    if !ill.is_empty() {
        tracing::warn!(failed = ill.join(","), "health check failed");
        let text = format!("{}healthz check failed\n", lines.collect::<String>());
        return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    }
    let asks = |part: &str| part == "verbose" || part.starts_with("verbose=");
    match query.is_some_and(|query| query.split('&').any(asks)) {
        true => format!("{}healthz check passed\n", lines.collect::<String>()).into_response(),
        false => "ok".into_response(),
    }
}

async fn one(Shared(state): Shared<State>, Path(check): Path<String>) -> Response {
    match CHECKS.iter().position(|name| *name == check) {
        None => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
        Some(at) if state.health.check(at) => "ok".into_response(),
        Some(_) => {
            let text = format!("internal server error: {check} is not well\n");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}
