//! Clients whose requests cost them little and would cost the node much: floods of streams, of resets
//! (CVE-2023-44487) and of heads (CVE-2024-27316). The requests that run meanwhile are bounded, others
//! are served, and what serves no purpose ends the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tests::{Authority, ask, config, connector, place};
use super::{connection, tls};

/// As many as one connection may have at once, and those that are just being reset.
const MOST: usize = 100 + 20;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// What a flood may make of the process that it comes to.
const MOST_KIB: u64 = 20 << 10;

fn memory_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Begins to measure the most memory that the process has at once; returns what it has now. Nothing
/// where other tests run in the same process.
fn reset_peak() -> Option<u64> {
    std::env::var_os("NEXTEST")?;
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    Some(memory_kib("VmRSS:"))
}

/// A frame of HTTP/2.
fn frame((kind, flags): (u8, u8), stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /` of `https://node`, compressed by the static table alone.
const HEAD: &[u8] = b"\x82\x87\x84\x41\x04node";

/// A client's first bytes, then these frames.
fn session(frames: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let start = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame((4, 0), 0, b"")].concat();
    std::iter::once(start).chain(frames).flatten().collect()
}

/// Requests that never end, and how many there are.
#[derive(Default)]
struct Busy {
    now: AtomicUsize,
    most: AtomicUsize,
}

struct One(Arc<Busy>);

impl One {
    fn begin(busy: &Arc<Busy>) -> Self {
        let now = busy.now.fetch_add(1, Ordering::Relaxed) + 1;
        busy.most.fetch_max(now, Ordering::Relaxed);
        Self(Arc::clone(busy))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends all of it at once, and returns what was said before the connection ended, and how many
/// requests ran at once. Another client is served meanwhile.
async fn flood(bytes: Vec<u8>) -> (Vec<u8>, usize) {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let acceptor = tls::acceptor(&config(root.path(), &authority)).unwrap();
    let admin = connector(root.path(), Some(&authority.issue("admin", "system:masters")));
    let busy = Arc::new(Busy::default());
    let running = Arc::clone(&busy);
    let router = Router::new().route("/healthz", get(|| async { "ok" })).fallback(move || {
        let one = One::begin(&running);
        async move {
            std::future::pending::<()>().await;
            drop(one);
        }
    });
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(connection(far, acceptor.clone(), router.clone(), place().await));
    let stream = admin.connect(ServerName::try_from("node").unwrap(), near).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut said = Vec::new();
    let before = reset_peak();
    let flooding = async {
        // Whoever is cut off is so while it still sends.
        let _ = writer.write_all(&bytes).await;
        let _ = writer.shutdown().await;
    };
    let reading = async {
        let _ = reader.read_to_end(&mut said).await;
    };
    let others = async {
        let answer = ask((&admin, &acceptor), &router, ("GET", "/healthz")).await;
        assert_eq!(answer, Some((StatusCode::OK, "ok".to_owned())));
    };
    let work = async { tokio::join!(flooding, reading, others) };
    tokio::time::timeout(Duration::from_secs(120), work).await.expect("the flood is not cut off");
    if let Some(before) = before {
        let grown = memory_kib("VmHWM:").saturating_sub(before);
        assert!(grown < MOST_KIB, "the flood made the process larger by {grown} KiB");
    }
    (said, busy.most.load(Ordering::Relaxed))
}

/// Whether the server ended the connection by saying that it is too much.
fn is_told_to_calm_down(said: &[u8]) -> bool {
    let mut rest = said;
    while let [a, b, c, kind, _, _, _, _, _, payload @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, after)) = payload.split_at_checked(length) else { return false };
        if *kind == GO_AWAY {
            return payload.get(4..8) == Some(&11_u32.to_be_bytes());
        }
        rest = after;
    }
    false
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let pairs = (0..20_000_u32).map(|n| {
        let stream = 2 * n + 1;
        [frame((HEADERS, 5), stream, HEAD), frame((RESET, 0), stream, &[0, 0, 0, 8])].concat()
    });
    let (said, most) = flood(session(pairs)).await;
    assert!(is_told_to_calm_down(&said), "{said:?}");
    assert!(most <= MOST, "{most} requests ran at once");
}

#[tokio::test]
async fn no_more_requests_of_a_connection_run_at_once_than_it_may_have() {
    let streams = (0..20_000_u32).map(|n| frame((HEADERS, 5), 2 * n + 1, HEAD));
    let (_, most) = flood(session(streams)).await;
    assert!(most <= MOST, "{most} requests ran at once");
}

#[tokio::test]
async fn a_head_that_does_not_end_ends_the_connection() {
    let first = std::iter::once(frame((HEADERS, 1), 1, HEAD));
    // A literal header that is not to be kept: `x: yyyy…`.
    let more = [&b"\x00\x01x\x7f\x81\x7e"[..], &[b'y'; 16_384]].concat();
    let more = (0..2_000).map(|_| frame((CONTINUATION, 0), 1, &more[..16_384]));
    let (_, most) = flood(session(first.chain(more))).await;
    assert_eq!(most, 0);

    let lines = (0..20_000).map(|n| format!("x-{n}: {}\r\n", "y".repeat(64)));
    let head: String =
        std::iter::once("GET / HTTP/1.1\r\nhost: node\r\n".to_owned()).chain(lines).collect();
    let (said, most) = flood(head.into_bytes()).await;
    assert!(said.starts_with(b"HTTP/1.1 431 "), "{}", said.escape_ascii());
    assert_eq!(most, 0);
}
