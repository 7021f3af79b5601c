//! What a client may send, changed at random: frames of both protocols, paths and queries. Each input is
//! served or refused; nothing panics, hangs or opens what the caller has no right to.
//!
//! Short by default; `PROPTEST_CASES=1000000` looks longer.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Uri};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tower_service::Service as _;

use super::activity::Activity;
use super::auth::attributes;
use super::spdy;
use super::spdy::headers::{Headers, Writer};
use super::streams::{query, websocket};
use crate::fuzz::mutated;

/// Runs on a clock of its own, so that what waits for minutes has waited.
fn on_a_paused_clock<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let patience = tokio::time::timeout(Duration::from_secs(24 * 3600), work);
        patience.await.expect("it hangs")
    })
}

/// Sends bytes, then nothing more, and reads whatever comes until the end.
async fn converse(near: DuplexStream, bytes: &[u8]) {
    let (mut reader, mut writer) = tokio::io::split(near);
    let send = async {
        // Whoever is refused has nobody to send to.
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let mut sink = Vec::new();
    let (_, _) = tokio::join!(reader.read_to_end(&mut sink), send);
}

fn spdy_clients() -> Vec<Vec<u8>> {
    let mut deflate = Writer::new();
    let headers = Headers(vec![
        ("streamtype".to_owned(), "data".to_owned()),
        ("port".to_owned(), "80".to_owned()),
        ("requestid".to_owned(), "0".to_owned()),
    ]);
    let block = deflate.write(&headers).unwrap();
    let again = deflate.write(&headers).unwrap();
    let open = spdy::frame::open(1, 0, &block);
    let data = [spdy::frame::data_head(1, 3, 0).to_vec(), b"abc".to_vec()].concat();
    let end = spdy::frame::data_head(1, 0, spdy::frame::FIN).to_vec();
    vec![
        [open.clone(), data.clone(), end].concat(),
        [open.clone(), spdy::frame::open(3, spdy::frame::FIN, &again), data].concat(),
        [open, spdy::frame::reset(1, spdy::frame::CANCEL).to_vec()].concat(),
        spdy::frame::ping(7).to_vec(),
    ]
}

/// Frames of a client, whose mask is zero.
fn websocket_clients() -> Vec<Vec<u8>> {
    let frame = |kind: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0x80 | kind, 0x80 | length, 0, 0, 0, 0], payload].concat()
    };
    vec![
        [frame(2, b"\0input"), frame(2, b"\xff\0")].concat(),
        frame(2, b"\x04{\"Width\":80,\"Height\":24}"),
        [frame(9, b"ping"), frame(1, b"0aW5wdXQ="), frame(8, &[3, 232])].concat(),
    ]
}

fn paths() -> Vec<Vec<u8>> {
    let all: [&[u8]; 12] = [
        b"/exec/ns/p/c?command=id&input=1&output=1&tty=1",
        b"/attach/ns/p/c?output=1",
        b"/portForward/ns/p?port=80",
        b"/run/ns/p/c?cmd=id",
        b"/containerLogs/ns/p/c?tailLines=3&sinceSeconds=9",
        b"/logs/pods/a/0.log?query=web&tailLines=5",
        b"/logs/?query=/syslog",
        b"/logs/?query=web&sinceTime=2024-01-02T03:04:05Z&boot=-1&pattern=x",
        b"/stats/summary?only_cpu_and_memory=true",
        b"/healthz/ping?verbose",
        b"/pods/",
        b"/metrics/probes",
    ];
    all.map(<[u8]>::to_vec).into()
}

/// Whether whoever asks so has to be allowed to create.
fn creates(method: &Method, path: &str) -> bool {
    attributes::of(method, path).iter().all(|right| right.verb == "create")
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases * 4,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_a_spdy_client_sends_is_served_or_ends_the_connection(
        bytes in mutated(spdy_clients())
    ) {
        on_a_paused_clock(async {
            let (near, far) = duplex(4 << 10);
            let (mut session, carry) = spdy::session::serve(far, Activity::new());
            let serve = async move {
                while let Some(mut stream) = session.accept().await {
                    tokio::spawn(async move { while stream.data.recv().await.is_some() {} });
                }
            };
            let _ = tokio::join!(carry, serve, converse(near, &bytes));
        });
    }

    #[test]
    fn whatever_a_websocket_client_sends_is_served_or_ends_the_connection(
        bytes in mutated(websocket_clients()),
        protocol in prop::sample::select(vec![
            "v5.channel.k8s.io", "v4.channel.k8s.io", "base64.channel.k8s.io", "channel.k8s.io",
        ]),
    ) {
        on_a_paused_clock(async {
            let (near, far) = duplex(4 << 10);
            let mut headers = HeaderMap::new();
            headers.insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
            let protocol = query::session_protocol(&headers).unwrap();
            let options = query::Options::parse("input=1&output=1&tty=1&command=x").unwrap();
            let socket = websocket::accept(far).await;
            let (mut remote, carry) =
                websocket::session(socket, protocol, &options, Activity::new());
            let serve = async move {
                let (mut stdin, mut sizes) = (remote.stdin.take().unwrap(), remote.sizes.take().unwrap());
                let sizes = async { while sizes.recv().await.is_some() {} };
                let stdin = async { while stdin.recv().await.is_some() {} };
                tokio::join!(sizes, stdin);
                drop(remote);
            };
            let _ = tokio::join!(carry, serve, converse(near, &bytes));
        });
    }

    #[test]
    fn whatever_is_asked_for_is_answered_and_streams_always_need_create(
        bytes in mutated(paths()),
        method in prop::sample::select(vec![Method::GET, Method::POST, Method::HEAD, Method::PUT]),
    ) {
        let Ok(uri) = Uri::try_from(bytes) else { return Ok(()) };
        let path = uri.path().to_owned();
        if let Some(text) = uri.query() {
            let _ = query::Options::parse(text);
            let _ = query::ports(text);
            let _ = query::run_command(text);
        }
        let root = tempfile::tempdir().unwrap();
        let mut state = super::tests::state(root.path());
        state.system_logs = super::SystemLogs::in_directory(root.path().to_owned());
        let request = Request::builder().method(&method).uri(uri);
        // As a stream's client would ask.
        let request = request.header("connection", "Upgrade").header("upgrade", "SPDY/3.1");
        let request = request.body(Body::empty()).unwrap();
        let text = on_a_paused_clock(async {
            let response = super::routes(state).call(request).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            String::from_utf8_lossy(&body).into_owned()
        });
        // What a stream's handler says, whatever else a path may look like.
        let streams = ["unable to upgrade", "at least 1 of stdin", "\"cmd\" is required", "\"ports\" is"];
        if streams.iter().any(|words| text.contains(words)) {
            prop_assert!(creates(&method, &path), "{method} {path}: {text}");
        }
    }
}

#[test]
fn the_inputs_that_are_changed_are_right_as_they_are() {
    for bytes in spdy_clients() {
        on_a_paused_clock(async {
            let (near, far) = duplex(4 << 10);
            let (session, carry) = spdy::session::serve(far, Activity::new());
            let keep = async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                drop(session);
            };
            let (carried, (), ()) = tokio::join!(carry, keep, converse(near, &bytes));
            assert!(carried.is_ok(), "{carried:?}");
        });
    }
    for path in paths() {
        assert!(Uri::try_from(path).is_ok());
    }
}
