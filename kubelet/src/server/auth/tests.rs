//! The guard: every path, method and identity against what is expected, and what is remembered.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use axum::body::Body;
use axum::http::Method;
use axum::routing::any;
use axum::{Extension, Router, middleware};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::*;

/// Knows tokens `token-<user>`, and gives each user the rights that its name lists.
#[derive(Default)]
struct Rights {
    tokens: AtomicUsize,
    accesses: AtomicUsize,
    silent: bool,
}

#[async_trait]
impl Reviewer for Rights {
    async fn token(&self, token: &str) -> Result<Option<Identity>, Unanswered> {
        self.tokens.fetch_add(1, Ordering::Relaxed);
        let user = token.strip_prefix("token-").map(str::to_owned);
        Ok(user.map(|user| Identity { user, ..Identity::default() }))
    }

    async fn access(
        &self,
        node: &str,
        identity: &Identity,
        wanted: &Attributes,
    ) -> Result<bool, Unanswered> {
        assert_eq!(node, "node-1");
        self.accesses.fetch_add(1, Ordering::Relaxed);
        if self.silent {
            return Err(Unanswered::Late);
        }
        let right = format!("{}:{}", wanted.verb, wanted.subresource);
        Ok(identity.user.split(',').any(|one| one == right))
    }
}

fn service(reviewer: &Arc<Rights>) -> Router {
    let guard = Guard::new("node-1".to_owned(), Arc::clone(reviewer) as Arc<dyn Reviewer>);
    let pass = move |request: Request, next: Next| guard.clone().pass(request, next);
    Router::new()
        .fallback(any(|headers: axum::http::HeaderMap| async move {
            assert!(!headers.contains_key(header::AUTHORIZATION), "the token was passed on");
            "in"
        }))
        .layer(middleware::from_fn(pass))
}

async fn ask(service: &Router, method: &Method, path: &str, token: &str) -> u16 {
    let mut request = Request::builder().method(method).uri(path);
    if !token.is_empty() {
        request = request.header(header::AUTHORIZATION, token);
    }
    let request = request.body(Body::empty()).unwrap();
    TowerToHyperService::new(service.clone()).call(request).await.unwrap().status().as_u16()
}

const PATHS: [&str; 23] = [
    "/healthz",
    "/healthz/ping",
    "/pods",
    "/runningpods/",
    "/configz",
    "/metrics",
    "/metrics/cadvisor",
    "/metrics/resource",
    "/metrics/probes",
    "/metrics/slis",
    "/stats/summary",
    "/statusz",
    "/flagz",
    "/checkpoint/a/b/c",
    "/logs/",
    "/logs/pods/x",
    "/containerLogs/a/b/c",
    "/exec/a/b/c",
    "/attach/a/b/c",
    "/portForward/a/b",
    "/run/a/b/c",
    "/debug/pprof/",
    "/nothing",
];

/// The paths that an identity gets with GET.
async fn reach(rights: &str) -> Vec<&'static str> {
    let service = service(&Arc::default());
    let mut reached = Vec::new();
    for path in PATHS {
        match ask(&service, &Method::GET, path, &format!("Bearer token-{rights}")).await {
            200 => reached.push(path),
            403 => {}
            other => panic!("{path}: {other}"),
        }
    }
    reached
}

#[tokio::test]
async fn each_right_opens_its_paths_and_no_other() {
    let streams = ["/exec/a/b/c", "/attach/a/b/c", "/portForward/a/b", "/run/a/b/c"];
    for (rights, expected) in [
        ("get:healthz", &["/healthz", "/healthz/ping"][..]),
        ("get:pods", &["/pods", "/runningpods/"]),
        ("get:configz", &["/configz", "/flagz"]),
        ("get:statusz", &["/statusz"]),
        ("get:checkpoint", &["/checkpoint/a/b/c"]),
        (
            "get:metrics",
            &[
                "/metrics",
                "/metrics/cadvisor",
                "/metrics/resource",
                "/metrics/probes",
                "/metrics/slis",
            ],
        ),
        ("get:stats", &["/stats/summary"]),
        ("get:log", &["/logs/", "/logs/pods/x"]),
        ("create:proxy", &streams),
        (
            "get:proxy",
            &[
                "/healthz",
                "/healthz/ping",
                "/pods",
                "/runningpods/",
                "/configz",
                "/containerLogs/a/b/c",
                "/debug/pprof/",
                "/nothing",
            ],
        ),
        ("update:proxy", &[]),
        ("nothing", &[]),
    ] {
        assert_eq!(reach(rights).await, expected, "{rights}");
    }
}

/// The subresources that each path asks for, any of which is enough.
const SUBRESOURCES: [(&str, &[&str]); 23] = [
    ("/healthz", &["healthz", "proxy"]),
    ("/healthz/ping", &["healthz", "proxy"]),
    ("/pods", &["pods", "proxy"]),
    ("/runningpods/", &["pods", "proxy"]),
    ("/configz", &["configz", "proxy"]),
    ("/metrics", &["metrics"]),
    ("/metrics/cadvisor", &["metrics"]),
    ("/metrics/resource", &["metrics"]),
    ("/metrics/probes", &["metrics"]),
    ("/metrics/slis", &["metrics"]),
    ("/stats/summary", &["stats"]),
    ("/statusz", &["statusz"]),
    ("/flagz", &["configz"]),
    ("/checkpoint/a/b/c", &["checkpoint"]),
    ("/logs/", &["log"]),
    ("/logs/pods/x", &["log"]),
    ("/containerLogs/a/b/c", &["proxy"]),
    ("/exec/a/b/c", &["proxy"]),
    ("/attach/a/b/c", &["proxy"]),
    ("/portForward/a/b", &["proxy"]),
    ("/run/a/b/c", &["proxy"]),
    ("/debug/pprof/", &["proxy"]),
    ("/nothing", &["proxy"]),
];

/// Every path by every method as everybody who has one right.
#[tokio::test]
async fn one_right_opens_what_it_is_for_by_its_method_and_nothing_else() {
    let service = service(&Arc::default());
    let methods = [
        (Method::GET, "get"),
        (Method::HEAD, "get"),
        (Method::OPTIONS, "get"),
        (Method::POST, "create"),
        (Method::PUT, "update"),
        (Method::PATCH, "patch"),
        (Method::DELETE, "delete"),
    ];
    let verbs = ["get", "create", "update", "patch", "delete"];
    let subresources: std::collections::BTreeSet<_> =
        SUBRESOURCES.iter().flat_map(|(_, all)| all.iter().copied()).collect();
    assert_eq!(SUBRESOURCES.map(|(path, _)| path), PATHS);
    for (path, needed) in SUBRESOURCES {
        let streams = ["/exec/", "/attach/", "/portForward/", "/run/"];
        let streams = streams.iter().any(|start| path.starts_with(start));
        for (method, verb) in &methods {
            let needed_verb = if streams { "create" } else { verb };
            for has_verb in verbs {
                for has in &subresources {
                    let status =
                        ask(&service, method, path, &format!("Bearer token-{has_verb}:{has}"))
                            .await;
                    let opens = has_verb == needed_verb && needed.contains(has);
                    let expected = if opens { 200 } else { 403 };
                    assert_eq!(status, expected, "{method} {path} as {has_verb} {has}");
                }
            }
        }
    }
}

#[tokio::test]
async fn who_may_only_read_runs_nothing_by_any_method() {
    let service = service(&Arc::default());
    let reader = "Bearer token-get:proxy,get:metrics,get:stats,get:log,update:proxy,patch:proxy";
    for path in ["/exec/a/b/c", "/attach/a/b/c", "/portForward/a/b", "/run/a/b/c"] {
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::HEAD] {
            assert_eq!(ask(&service, &method, path, reader).await, 403, "{method} {path}");
        }
        assert_eq!(ask(&service, &Method::GET, path, "Bearer token-create:proxy").await, 200);
    }
    assert_eq!(ask(&service, &Method::GET, "/metrics", reader).await, 200);
}

#[tokio::test]
async fn whoever_is_nobody_is_turned_away_from_every_path() {
    let reviewer = Arc::default();
    let service = service(&reviewer);
    for path in PATHS {
        for token in ["", "Bearer", "Bearer ", "Bearer unknown", "Basic dXNlcjpwYXNz", "token-x"] {
            for method in [Method::GET, Method::POST, Method::OPTIONS, Method::DELETE] {
                assert_eq!(
                    ask(&service, &method, path, token).await,
                    401,
                    "{method} {path} {token}"
                );
            }
        }
    }
    let long = format!("Bearer token-{}", "x".repeat(MAX_TOKEN_BYTES));
    assert_eq!(ask(&service, &Method::GET, "/pods", &long).await, 401);
    assert_eq!(reviewer.accesses.load(Ordering::Relaxed), 0);
    assert_eq!(
        reviewer.tokens.load(Ordering::Relaxed),
        1,
        "an unknown token is remembered as such"
    );
}

#[tokio::test]
async fn administrators_are_let_in_while_the_api_server_is_silent_and_others_are_not() {
    let reviewer = Arc::new(Rights { silent: true, ..Rights::default() });
    let service = service(&reviewer);
    for (group, expected) in [("system:masters", 200), ("system:nodes", 500)] {
        let identity =
            Identity { user: "u".into(), groups: vec![group.into()], ..Identity::default() };
        let service = service.clone().layer(Extension(identity));
        assert_eq!(ask(&service, &Method::GET, "/pods", "").await, expected, "{group}");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_hold_for_their_time() {
    let reviewer = Arc::default();
    let service = service(&reviewer);
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let mut seen = Vec::new();
    for seconds in [0, 29, 2, 90, 200] {
        tokio::time::advance(std::time::Duration::from_secs(seconds)).await;
        assert_eq!(
            ask(&service, &Method::GET, "/stats/summary", "Bearer token-get:stats").await,
            200
        );
        assert_eq!(ask(&service, &Method::GET, "/metrics", "Bearer token-get:stats").await, 403);
        seen.push((count(&reviewer.tokens), count(&reviewer.accesses)));
    }
    // At 0 s both are asked for, at 31 s the refusal again, at 121 s the token and the refusal, at
    // 321 s everything.
    assert_eq!(seen, [(1, 2), (1, 2), (1, 3), (2, 4), (3, 6)]);
}
