//! `/debug/pprof/`: what Go's tools ask a kubelet for, as far as there is such a thing outside of Go.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, RawQuery, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::State;
use crate::profile;

/// How long is looked where the caller does not say.
const USUALLY: Duration = Duration::from_secs(30);

const INDEX: &str = "/debug/pprof/

cmdline: the command line of the agent
profile: where the agent spends its processor time; seconds= says for how long, 30 without
symbol: the functions at addresses, 0x1+0x2
";

/// The routes.
pub(super) fn routes() -> Router<State> {
    Router::new()
        .route("/debug/pprof", get(index))
        .route("/debug/pprof/", get(index))
        .route("/debug/pprof/{name}", get(one))
}

#[derive(Deserialize)]
struct Asked {
    seconds: Option<String>,
}

async fn index(Shared(state): Shared<State>) -> Response {
    match state.is_profiled {
        true => INDEX.into_response(),
        false => disabled(),
    }
}

async fn one(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    RawQuery(query): RawQuery,
) -> Response {
    if !state.is_profiled {
        return disabled();
    }
    match name.as_str() {
        "profile" => taken(&state, asked.duration()).await,
        "cmdline" => command_line(),
        "symbol" => symbols(query.unwrap_or_default()).await,
        _ => (StatusCode::NOT_FOUND, "Unknown profile\n").into_response(),
    }
}

fn disabled() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, "profiling endpoint is disabled.\n").into_response()
}

impl Asked {
    /// What is no number of seconds says nothing.
    fn duration(&self) -> Duration {
        let seconds = self.seconds.as_deref().and_then(|text| text.parse::<u32>().ok());
        let seconds = seconds.filter(|seconds| *seconds > 0);
        seconds.map_or(USUALLY, |seconds| Duration::from_secs(seconds.into()))
    }
}

async fn taken(state: &State, duration: Duration) -> Response {
    let kind = (header::CONTENT_TYPE, "application/octet-stream");
    let file = (header::CONTENT_DISPOSITION, "attachment; filename=\"profile\"");
    match profile::take(state.clock.now(), duration).await {
        Ok(profile) => ([kind, file], profile).into_response(),
        Err(error) => failed(&format!("Could not enable CPU profiling: {error}\n")),
    }
}

fn command_line() -> Response {
    match fs::read("/proc/self/cmdline") {
        Ok(line) => line.strip_suffix(b"\0").unwrap_or(&line).to_vec().into_response(),
        Err(error) => failed(&format!("/proc/self/cmdline: {error}\n")),
    }
}

async fn symbols(query: String) -> Response {
    let named = tokio::task::spawn_blocking(move || profile::names(&addresses(&query))).await;
    let names = match named.map_err(std::io::Error::other).flatten() {
        Ok(names) => names,
        Err(error) => return failed(&format!("/proc/self/maps: {error}\n")),
    };
    // Any number but nought: there are symbols.
    let mut text = "num_symbols: 1\n".to_owned();
    for (address, name) in names {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{address:#x} {name}");
    }
    text.into_response()
}

/// The addresses that are asked for, each `0x` and hexadecimal digits; anything else is passed over.
fn addresses(query: &str) -> BTreeSet<u64> {
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    query.split('+').filter_map(number).collect()
}

fn failed(text: &str) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, text.to_owned()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower_service::Service as _;

    use super::*;
    use crate::server::{routes, tests};

    async fn asked(state: &State, method: &str, path: &str) -> (u16, Vec<u8>) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let reply = routes(state.clone()).call(request).await.unwrap();
        let status = reply.status().as_u16();
        (status, to_bytes(reply.into_body(), 1 << 20).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn what_there_is_answers_and_what_is_gos_own_is_not_known() {
        let root = tempfile::tempdir().unwrap();
        let state = tests::state(root.path());
        for path in ["/debug/pprof", "/debug/pprof/"] {
            assert_eq!(asked(&state, "GET", path).await, (200, INDEX.into()));
        }
        for name in ["heap", "goroutine", "allocs", "trace", "x"] {
            let (status, text) = asked(&state, "GET", &format!("/debug/pprof/{name}")).await;
            assert_eq!((status, &*text), (404, &b"Unknown profile\n"[..]), "{name}");
        }
        assert_eq!(asked(&state, "POST", "/debug/pprof/profile").await.0, 405);
        let (status, line) = asked(&state, "GET", "/debug/pprof/cmdline").await;
        let own: Vec<_> = std::env::args().collect();
        assert_eq!((status, String::from_utf8(line).unwrap()), (200, own.join("\0")));
        let here = addresses as fn(&str) -> BTreeSet<u64> as usize;
        let path = format!("/debug/pprof/symbol?{here:#x}+0x1+zz+");
        let own = concat!(module_path!(), "::addresses").replace("::tests", "");
        let expected = format!("num_symbols: 1\n{here:#x} {own}\n");
        assert_eq!(asked(&state, "GET", &path).await, (200, expected.into_bytes()));
        let (status, profile) = asked(&state, "GET", "/debug/pprof/profile?seconds=1").await;
        assert_eq!((status, &profile[..2]), (200, &b"\x1f\x8b"[..]));

        let off = State { is_profiled: false, ..state };
        for path in ["/debug/pprof/", "/debug/pprof/profile", "/debug/pprof/x"] {
            let refused = b"profiling endpoint is disabled.\n".to_vec();
            assert_eq!(asked(&off, "GET", path).await, (405, refused), "{path}");
        }
    }

    #[test]
    fn seconds_that_are_none_are_thirty() {
        for (text, seconds) in
            [(None, 30), (Some("5"), 5), (Some("0"), 30), (Some("-1"), 30), (Some("x"), 30)]
        {
            let asked = Asked { seconds: text.map(str::to_owned) };
            assert_eq!(asked.duration(), Duration::from_secs(seconds), "{text:?}");
        }
    }
}
