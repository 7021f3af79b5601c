//! `/statusz` and `/flagz`: since when the agent runs, and with which flags (KEP-4827, KEP-4828). As
//! text for people, as JSON for whoever asks for the object by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::State;
use crate::config::KUBELET_VERSION;

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no \
    formatting compatibility guarantees and is for debugging purposes only.\n";

/// Where else to look.
const PATHS: [&str; 11] = [
    "/configz",
    "/debug/flags/v",
    "/flagz",
    "/healthz",
    "/logs/",
    "/metrics",
    "/metrics/cadvisor",
    "/metrics/probes",
    "/metrics/resource",
    "/pods",
    "/stats/summary",
];

/// What the agent says of itself.
#[derive(Debug, Clone)]
pub struct Process {
    /// When it started.
    pub started: Timestamp,
    /// The flags that it was given.
    pub flags: Arc<BTreeMap<String, String>>,
}

/// The routes.
pub(super) fn routes() -> Router<State> {
    Router::new().route("/statusz", get(status)).route("/flagz", get(flags))
}

async fn status(Shared(state): Shared<State>, headers: HeaderMap) -> Response {
    let started = state.process.started;
    let seconds = state.clock.now().duration_since(started).as_secs().max(0);
    let version = KUBELET_VERSION.trim_start_matches('v');
    match Form::of(&headers, "Statusz") {
        Form::Text => text(format!(
            "\nkubelet statusz\n{WARNING}\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary \
             version: {version}\n\nPaths: {}\n",
            started.strftime("%a %b %e %H:%M:%S UTC %Y"),
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            PATHS.join(" ")
        )),
        Form::Object(version_of_api) => object(
            ("Statusz", version_of_api),
            json!({
                "startTime": started.strftime("%FT%TZ").to_string(),
                "uptimeSeconds": seconds,
                "goVersion": "",
                "binaryVersion": version,
                "paths": PATHS,
            }),
        ),
        Form::Unknown => unacceptable("Statusz"),
    }
}

async fn flags(Shared(state): Shared<State>, headers: HeaderMap) -> Response {
    let flags = &state.process.flags;
    match Form::of(&headers, "Flagz") {
        Form::Text => {
            let lines: String =
                flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            text(format!("\nkubelet flagz\n{WARNING}{lines}"))
        }
        Form::Object(version) => object(("Flagz", version), json!({"flags": **flags})),
        Form::Unknown => unacceptable("Flagz"),
    }
}

/// What form of the answer is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// The object, in this version of its API.
    Object(&'static str),
    Unknown,
}

impl Form {
    /// The first form of the `Accept` header that there is.
    fn of(headers: &HeaderMap, kind: &str) -> Self {
        let accepted = headers.get(header::ACCEPT).map(|value| value.to_str().unwrap_or("?"));
        let accepted = accepted.filter(|text| !text.trim().is_empty()).unwrap_or("text/plain");
        let forms = accepted.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            match parts.next()? {
                "text/plain" | "text/*" | "*/*" => Some(Self::Text),
                "application/json" => {
                    let mut said: BTreeMap<_, _> =
                        parts.filter_map(|part| part.split_once('=')).collect();
                    let ours = said.remove("g") == Some("config.k8s.io")
                        && said.remove("as") == Some(kind);
                    let version = match said.remove("v") {
                        Some("v1beta1") => "v1beta1",
                        Some("v1alpha1") => "v1alpha1",
                        _ => return None,
                    };
                    ours.then_some(Self::Object(version))
                }
                _ => None,
            }
        });
        { forms }.next().unwrap_or(Self::Unknown)
    }
}

fn text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

fn object((kind, version): (&str, &str), fields: Value) -> Response {
    let mut object = json!({
        "kind": kind,
        "apiVersion": format!("config.k8s.io/{version}"),
        "metadata": {"name": "kubelet"},
    });
    if let (Some(all), Value::Object(fields)) = (object.as_object_mut(), fields) {
        all.extend(fields);
    }
    let mut response = axum::Json(object).into_response();
    if version == "v1alpha1" {
        let old =
            HeaderValue::from_static("299 - \"v1alpha1 of this is deprecated: ask for v1beta1\"");
        response.headers_mut().insert(header::WARNING, old);
    }
    response
}

fn unacceptable(kind: &str) -> Response {
    let text = format!(
        "only text/plain and application/json;v=v1beta1;g=config.k8s.io;as={kind} are served\n"
    );
    (StatusCode::NOT_ACCEPTABLE, text).into_response()
}
