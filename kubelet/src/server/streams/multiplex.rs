//! exec, attach and port-forward over SPDY: which stream is which, by the headers that clients give
//! them.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_runtime::interface::TerminalSize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::query::{Options, Resizing, SpdyProtocol};
use super::remote::{Remote, Sink};
use super::websocket;
use crate::server::spdy::frame;
use crate::server::spdy::session::{Session, Stream};

/// How long a client may take to open all streams that it has asked for.
const CREATION: Duration = Duration::from_secs(30);

/// The streams that a client opens for one session.
#[derive(Default)]
struct Opened {
    streams: BTreeMap<&'static str, Stream>,
}

/// Waits for the streams of an exec or attach. `None` when they do not come.
pub(crate) async fn session(
    spdy: &mut Session,
    protocol: SpdyProtocol,
    options: &Options,
) -> Option<Remote> {
    let resizes = options.tty && protocol.resizing == Resizing::Streamed;
    let wanted: Vec<&'static str> = [
        ("error", true),
        ("stdin", options.streams.stdin),
        ("stdout", options.streams.stdout),
        ("stderr", options.streams.stderr),
        ("resize", resizes),
    ]
    .into_iter()
    .filter_map(|(name, wanted)| wanted.then_some(name))
    .collect();
    let mut opened = Opened::default();
    let collect = async {
        while opened.streams.len() < wanted.len() {
            let stream = spdy.accept().await?;
            let kind = stream.headers.get("streamtype").unwrap_or_default();
            let known = wanted.iter().copied().find(|name| *name == kind);
            match known.filter(|name| !opened.streams.contains_key(name)) {
                Some(name) => {
                    stream.sender.accept().await.ok()?;
                    opened.streams.insert(name, stream);
                }
                None => stream.sender.reset(frame::PROTOCOL_ERROR).await.ok()?,
            }
        }
        Some(())
    };
    tokio::time::timeout(CREATION, collect).await.ok()??;
    opened.remote(protocol)
}

impl Opened {
    fn remote(mut self, protocol: SpdyProtocol) -> Option<Remote> {
        let mut take = |name| self.streams.remove(name);
        let status = take("error")?;
        let (stdin, back) = match take("stdin") {
            Some(stream) => (Some(stream.data), Some(Sink::Spdy(stream.sender))),
            None => (None, None),
        };
        let sizes = take("resize").map(|stream| sizes(stream.data));
        let sink = |stream: Stream| Sink::Spdy(stream.sender);
        Some(Remote {
            stdin,
            stdin_end: back,
            sizes,
            stdout: take("stdout").map(sink),
            stderr: take("stderr").map(sink),
            form: protocol.form,
            gone: status.aborted.clone(),
            status: Sink::Spdy(status.sender),
        })
    }
}

/// The sizes of a stream of JSON objects, one after the other.
fn sizes(mut data: mpsc::Receiver<bytes::Bytes>) -> mpsc::Receiver<TerminalSize> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut line = Vec::new();
        while let Some(bytes) = data.recv().await {
            for byte in bytes {
                line.push(byte);
                if byte == b'}' {
                    if let Some(size) = websocket::size(&line)
                        && sender.send(size).await.is_err()
                    {
                        return;
                    }
                    line.clear();
                } else if line.len() > 1024 {
                    return;
                }
            }
        }
    });
    receiver
}

/// Both streams of one forwarded connection.
pub(crate) struct Pair {
    /// The port in the pod.
    pub(crate) port: u16,
    /// The connection's bytes.
    pub(crate) data: Stream,
    /// Where a failure goes.
    pub(crate) error: Stream,
}

/// Puts the streams of forwarded connections together as they come.
#[derive(Default)]
pub(crate) struct Pairing {
    waiting: BTreeMap<String, (Instant, Stream)>,
}

impl Pairing {
    /// Takes a stream; gives a pair when it was the second of two.
    pub(crate) async fn take(&mut self, stream: Stream) -> Option<Pair> {
        let now = Instant::now();
        self.waiting.retain(|_, (since, _)| now.duration_since(*since) < CREATION);
        let port = stream.headers.get("port").and_then(|port| port.parse::<u16>().ok());
        let kind = stream.headers.get("streamtype").unwrap_or_default();
        let (Some(port @ 1..), "data" | "error") = (port, kind) else {
            let _ = stream.sender.reset(frame::PROTOCOL_ERROR).await;
            return None;
        };
        stream.sender.accept().await.ok()?;
        // Clients before request identifiers open the two one after the other.
        let request = stream.headers.get("requestid").unwrap_or_default();
        let key = format!("{port}/{request}");
        let is_data = kind == "data";
        match self.waiting.remove(&key) {
            None => {
                self.waiting.insert(key, (now, stream));
                None
            }
            Some((_, first)) if (first.headers.get("streamtype") == Some("data")) == is_data => {
                // Two of one kind are no pair.
                let _ = stream.sender.reset(frame::PROTOCOL_ERROR).await;
                self.waiting.insert(key, (now, first));
                None
            }
            Some((_, first)) if is_data => Some(Pair { port, data: stream, error: first }),
            Some((_, first)) => Some(Pair { port, data: first, error: stream }),
        }
    }
}
