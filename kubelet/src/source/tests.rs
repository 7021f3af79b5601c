//! The source against a scripted API server, on a paused clock.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;

/// One answer of the server.
enum Answer {
    List(&'static [&'static str], &'static str),
    /// Lines of a watch, which then ends.
    Watch(Vec<Value>),
    /// Lines of a watch that stays open.
    Open(Vec<Value>),
    Refuse(u16, u32),
}

#[derive(Clone, Default)]
struct Server {
    script: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<(tokio::time::Instant, String)>>>,
}

fn object(name: &str, version: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": {"name": name, "resourceVersion": version}})
}

fn status(code: u16, seconds: u32) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "m",
           "reason": "r", "code": code, "details": {"retryAfterSeconds": seconds}})
}

impl Server {
    fn new(script: Vec<Answer>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into())), ..Self::default() }
    }

    fn start(&self) -> mpsc::Receiver<Event<ConfigMap>> {
        let server = self.clone();
        let router = axum::Router::new().fallback(move |request: Request| {
            let server = server.clone();
            async move { server.answer(request) }
        });
        let client = kube::Client::new(router, "default");
        let (sender, receiver) = mpsc::channel(16);
        let api: Api<ConfigMap> = Api::all(client);
        tokio::spawn(follow(api, Selection::default(), sender, CancellationToken::new()));
        receiver
    }

    fn answer(&self, request: Request) -> Response {
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.asked.lock().unwrap().push((tokio::time::Instant::now(), query));
        let lines =
            |lines: Vec<Value>| lines.into_iter().map(|l| format!("{l}\n")).collect::<String>();
        match self.script.lock().unwrap().pop_front() {
            Some(Answer::List(names, version)) => {
                let items: Vec<_> = names.iter().map(|n| object(n, "1")).collect();
                axum::Json(json!({"kind": "ConfigMapList", "apiVersion": "v1",
                                  "metadata": {"resourceVersion": version}, "items": items}))
                .into_response()
            }
            Some(Answer::Watch(events)) => lines(events).into_response(),
            Some(Answer::Open(events)) => {
                let first = futures::stream::iter([Ok::<_, std::io::Error>(lines(events))]);
                Body::from_stream(first.chain(futures::stream::pending())).into_response()
            }
            Some(Answer::Refuse(code, seconds)) => {
                let code = StatusCode::from_u16(code).unwrap();
                (code, axum::Json(status(code.as_u16(), seconds))).into_response()
            }
            None => {
                Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>())
                    .into_response()
            }
        }
    }

    /// The queries so far: `list`, or the resource version that was watched from.
    fn kinds(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let kind = |query: &str| {
            let mut pairs = query.split('&');
            match query.contains("watch=true") {
                true => pairs
                    .find_map(|p| p.strip_prefix("resourceVersion="))
                    .unwrap_or_default()
                    .to_owned(),
                false => "list".to_owned(),
            }
        };
        asked.iter().map(|(_, q)| kind(q)).collect()
    }
}

fn name(event: &Event<ConfigMap>) -> String {
    let name = |c: &ConfigMap| c.metadata.name.clone().unwrap();
    match event {
        Event::Synced(all) => format!("synced {}", all.iter().map(name).collect::<String>()),
        Event::Applied(one) => format!("applied {}", name(one)),
        Event::Deleted(one) => format!("deleted {}", name(one)),
    }
}

#[tokio::test(start_paused = true)]
async fn changes_follow_the_list_and_a_watch_that_ends_goes_on_where_it_was() {
    let server = Server::new(vec![
        Answer::List(&["a"], "5"),
        Answer::Watch(vec![
            json!({"type": "ADDED", "object": object("b", "6")}),
            json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "ConfigMap",
                   "metadata": {"resourceVersion": "9"}}}),
        ]),
        Answer::Open(vec![json!({"type": "DELETED", "object": object("a", "10")})]),
    ]);
    let mut events = server.start();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(name(&events.recv().await.unwrap()));
    }
    assert_eq!(seen, ["synced a", "applied b", "deleted a"]);
    assert_eq!(server.kinds(), ["list", "5", "9"]);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_old_is_listed_anew_once() {
    let server = Server::new(vec![
        Answer::List(&["a"], "5"),
        Answer::Watch(vec![
            json!({"type": "ADDED", "object": object("b", "6")}),
            json!({"type": "ERROR", "object": status(410, 0)}),
        ]),
        Answer::List(&["b"], "20"),
    ]);
    let mut events = server.start();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(name(&events.recv().await.unwrap()));
    }
    assert_eq!(seen, ["synced a", "applied b", "synced b"]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.kinds(), ["list", "5", "list", "20"]);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_does_not_keep_the_later_ones_away() {
    let unreadable = json!({"type": "ADDED", "object": {
        "metadata": {"name": "b", "resourceVersion": "6"}, "data": 7,
    }});
    let server = Server::new(vec![
        Answer::List(&["a"], "5"),
        Answer::Watch(vec![unreadable]),
        Answer::List(&["a", "c"], "8"),
        Answer::Open(vec![json!({"type": "ADDED", "object": object("d", "9")})]),
    ]);
    let mut events = server.start();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(name(&events.recv().await.unwrap()));
    }
    assert_eq!(seen, ["synced a", "synced ac", "applied d"]);
    assert_eq!(server.kinds(), ["list", "5", "list", "8"]);
}

#[tokio::test(start_paused = true)]
async fn versions_that_are_always_too_old_do_not_make_it_spin() {
    let mut script = Vec::new();
    for _ in 0..200 {
        script.push(Answer::List(&[], "5"));
        script.push(Answer::Watch(vec![json!({"type": "ERROR", "object": status(410, 0)})]));
    }
    let server = Server::new(script);
    let mut events = server.start();
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = server.kinds().len();
    assert!(asked < 30, "{asked} requests in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_waited_out_at_least_as_long_as_it_asks_for() {
    let server = Server::new(vec![
        Answer::Refuse(429, 7),
        Answer::Refuse(503, 0),
        Answer::List(&["a"], "5"),
    ]);
    let mut events = server.start();
    assert_eq!(name(&events.recv().await.unwrap()), "synced a");
    let asked = server.asked.lock().unwrap();
    assert!(asked[1].0 - asked[0].0 >= Duration::from_secs(7));
    assert!(asked[2].0 - asked[1].0 >= Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_at_once_is_not_opened_without_a_pause() {
    let mut script = vec![Answer::List(&[], "5")];
    script.extend((0..500).map(|_| Answer::Watch(Vec::new())));
    let server = Server::new(script);
    let mut events = server.start();
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = server.kinds().len();
    assert!(asked < 20, "{asked} requests in a minute");
}

#[tokio::test(start_paused = true)]
async fn after_six_hours_without_a_server_one_list_tells_what_has_become_of_all() {
    let hours = Duration::from_secs(6 * 3600);
    let mut script = vec![Answer::List(&["a"], "5"), Answer::Watch(Vec::new())];
    script.extend((0..5000).map(|_| Answer::Refuse(503, 0)));
    let server = Server::new(script);
    let mut events = server.start();
    assert_eq!(name(&events.recv().await.unwrap()), "synced a");
    tokio::time::sleep(hours).await;
    let asked = server.kinds().len();
    assert!((400..1500).contains(&asked), "{asked} requests in six hours");
    *server.script.lock().unwrap() = [
        Answer::Watch(vec![json!({"type": "ERROR", "object": status(410, 0)})]),
        Answer::List(&["b"], "9000"),
    ]
    .into();
    let back = tokio::time::Instant::now();
    assert_eq!(name(&events.recv().await.unwrap()), "synced b");
    assert!(back.elapsed() < Duration::from_secs(80), "{:?}", back.elapsed());
    assert_eq!(server.kinds()[asked..asked + 2], ["5", "list"]);
}
