//! exec, attach and port-forward over real connections in memory: the HTTP server in front, a fake
//! runtime behind.

use axum::http::StatusCode;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::server::spdy::frame::{self, Control, FIN, Head};
use crate::server::spdy::headers::{Headers, Reader, Writer};
use crate::server::{State, routes};

/// The server with a pod `ns/p` whose container `c` runs.
async fn server() -> (State, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let state = crate::server::tests::running_state(root.path()).await;
    (state, root)
}

/// One HTTP/1.1 connection to the server.
fn wire(state: &State) -> DuplexStream {
    let (near, far) = duplex(64 << 10);
    let service = hyper_util::service::TowerToHyperService::new(routes(state.clone()));
    tokio::spawn(async move {
        let builder = hyper::server::conn::http1::Builder::new();
        let _ = builder.serve_connection(TokioIo::new(far), service).with_upgrades().await;
    });
    near
}

/// Sends a request's head and reads the answer's.
async fn talk(wire: &mut DuplexStream, head: &str) -> (StatusCode, String) {
    wire.write_all(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(wire.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (StatusCode::from_u16(status).unwrap(), answer.to_lowercase())
}

fn websocket_head(path: &str, protocol: &str) -> String {
    let protocol = match protocol {
        "" => String::new(),
        name => format!("Sec-WebSocket-Protocol: {name}\n"),
    };
    format!(
        "GET {path} HTTP/1.1\nHost: node\nConnection: Upgrade\nUpgrade: websocket\n\
         Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n{protocol}\n"
    )
}

async fn websocket(state: &State, path: &str, protocol: &str) -> WebSocketStream<DuplexStream> {
    let mut wire = wire(state);
    let (status, answer) = talk(&mut wire, &websocket_head(path, protocol)).await;
    assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS, "{answer}");
    assert!(answer.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    WebSocketStream::from_raw_socket(wire, Role::Client, None).await
}

/// Everything that comes on a channel until the socket closes.
async fn collect(socket: &mut WebSocketStream<DuplexStream>, channel: u8) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message
            && bytes.first() == Some(&channel)
        {
            all.extend_from_slice(&bytes[1..]);
        }
    }
    all
}

fn binary(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[channel], bytes].concat().into())
}

#[tokio::test]
async fn a_websocket_exec_tells_the_exit_code_in_json_or_in_words() {
    let (state, _root) = server().await;
    for (protocol, expected) in [
        ("v5.channel.k8s.io", r#""reason":"ExitCode""#),
        ("v4.channel.k8s.io", r#""message":"3""#),
        ("channel.k8s.io", "exit status 3"),
        ("", "exit status 3"),
    ] {
        let path = "/exec/ns/p/c?command=exit&command=3&output=1&error=1";
        let mut socket = websocket(&state, path, protocol).await;
        let status = String::from_utf8(collect(&mut socket, 3).await).unwrap();
        assert!(status.contains(expected), "{protocol}: {status}");
    }
}

#[tokio::test]
async fn input_ends_by_a_signal_of_v5_and_more_than_the_queues_hold_passes() {
    let (state, _root) = server().await;
    let path = "/exec/ns/p/u1/c?command=cat&input=1&output=1";
    let socket = websocket(&state, path, "v5.channel.k8s.io").await;
    let (mut writer, mut reader) = socket.split();
    let piece = vec![b'x'; 32 << 10];
    let send = async {
        for _ in 0..128 {
            writer.send(binary(0, &piece)).await.unwrap();
        }
        writer.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
    };
    let receive = async {
        let (mut count, mut status) = (0, String::new());
        while let Some(Ok(message)) = reader.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 1 => count += bytes.len() - 1,
                Message::Binary(bytes) if bytes[0] == 3 => {
                    status = String::from_utf8_lossy(&bytes[1..]).into_owned();
                }
                _ => {}
            }
        }
        (count, status)
    };
    let ((), (count, status)) = tokio::join!(send, receive);
    assert_eq!((count, status.contains("Success")), (128 * (32 << 10), true), "{status}");
}

#[tokio::test]
async fn base64_channels_carry_text() {
    let (state, _root) = server().await;
    let path = "/exec/ns/p/c?command=echo&command=hello&output=1";
    let mut socket = websocket(&state, path, "v4.base64.channel.k8s.io").await;
    let mut texts = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message {
            texts.push(text.to_string());
        }
    }
    assert_eq!(texts[0], "1", "an empty message says that the session is open");
    assert!(texts[1].starts_with("1aGVsbG8"), "{texts:?}");
}

#[tokio::test]
async fn a_terminal_takes_sizes() {
    let (state, _root) = server().await;
    let path = "/exec/ns/p/c?command=size&input=1&output=1&tty=1";
    let mut socket = websocket(&state, path, "v5.channel.k8s.io").await;
    socket.send(binary(4, br#"{"Width":100,"Height":30}"#)).await.unwrap();
    loop {
        let message = socket.next().await.unwrap().unwrap();
        if message == binary(1, b"100x30\n") {
            break;
        }
    }
    socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
    assert!(String::from_utf8_lossy(&collect(&mut socket, 3).await).contains("Success"));
}

#[tokio::test]
async fn a_command_that_is_not_there_is_told_in_the_status() {
    let (state, _root) = server().await;
    let path = "/exec/ns/p/c?command=missing&output=1";
    let mut socket = websocket(&state, path, "v5.channel.k8s.io").await;
    let status = String::from_utf8(collect(&mut socket, 3).await).unwrap();
    assert!(status.contains("executable file not found"), "{status}");
}

#[tokio::test]
async fn a_refused_upgrade_closes_the_connection_and_serves_nothing_after_it() {
    let (state, _root) = server().await;
    let upgrade = "Connection: Upgrade\nUpgrade: SPDY/3.1\n";
    let exec = "/exec/ns/p/c?command=cat&output=1";
    for (request, expected) in [
        (format!("POST {exec} HTTP/1.1\nHost: n\n"), 400),
        (format!("POST {exec} HTTP/1.1\nHost: n\nConnection: Upgrade\nUpgrade: h2c\n"), 400),
        (format!("POST /exec/ns/p/x?command=cat&output=1 HTTP/1.1\nHost: n\n{upgrade}"), 404),
        (format!("POST /exec/ns/p/u9/c?command=cat&output=1 HTTP/1.1\nHost: n\n{upgrade}"), 404),
        (format!("POST /exec/ns/p/c?output=1 HTTP/1.1\nHost: n\n{upgrade}"), 400),
        (format!("POST /exec/ns/p/c?command=cat HTTP/1.1\nHost: n\n{upgrade}"), 400),
        (format!("POST {exec} HTTP/1.1\nHost: n\n{upgrade}X-Stream-Protocol-Version: v9\n"), 403),
        (websocket_head(exec, "mqtt").trim_end().to_owned() + "\n", 400),
        (
            websocket_head(exec, "").replace("Version: 13", "Version: 8").trim_end().to_owned()
                + "\n",
            400,
        ),
    ] {
        let mut wire = wire(&state);
        let pipelined = format!("{request}\nGET /healthz HTTP/1.1\nHost: n\n\n");
        let (status, answer) = talk(&mut wire, &pipelined).await;
        assert_eq!(status.as_u16(), expected, "{request}: {answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        let mut rest = String::new();
        let _ = wire.read_to_string(&mut rest).await;
        assert!(!rest.contains("200 OK"), "served after a refused upgrade: {rest}");
    }
}

/// A SPDY client on an upgraded connection.
struct Spdy {
    wire: DuplexStream,
    deflate: Writer,
    inflate: Reader,
}

impl Spdy {
    async fn connect(state: &State, path: &str, protocol: &str) -> Self {
        let mut wire = wire(state);
        let head = format!(
            "POST {path} HTTP/1.1\nHost: node\nConnection: Upgrade\nUpgrade: SPDY/3.1\n\
             X-Stream-Protocol-Version: {protocol}\n\n"
        );
        let (status, answer) = talk(&mut wire, &head).await;
        assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS, "{answer}");
        assert!(answer.contains(&format!("x-stream-protocol-version: {protocol}")), "{answer}");
        Self { wire, deflate: Writer::new(), inflate: Reader::new() }
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let pairs = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let block = self.deflate.write(&Headers(pairs.collect())).unwrap();
        self.wire.write_all(&frame::open(id, 0, &block)).await.unwrap();
    }

    async fn send(&mut self, id: u32, bytes: &[u8], flags: u8) {
        self.wire.write_all(&frame::data_head(id, bytes.len(), flags)).await.unwrap();
        self.wire.write_all(bytes).await.unwrap();
    }

    /// What comes on each stream until the streams named have ended.
    async fn collect(&mut self, until: &[u32]) -> Vec<(u32, String)> {
        let mut texts: std::collections::BTreeMap<u32, String> = Default::default();
        let mut open: Vec<u32> = until.to_vec();
        while !open.is_empty() {
            let mut head = [0; 8];
            self.wire.read_exact(&mut head).await.unwrap();
            let head = Head::parse(head).unwrap();
            let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
            let mut payload = vec![0; length as usize];
            self.wire.read_exact(&mut payload).await.unwrap();
            match head {
                Head::Data { stream, flags, .. } => {
                    let text = String::from_utf8_lossy(&payload);
                    texts.entry(stream).or_default().push_str(&text);
                    if flags & FIN != 0 {
                        open.retain(|id| *id != stream);
                    }
                }
                Head::Control { kind: 2, .. } => drop(self.inflate.read(&payload[4..]).unwrap()),
                Head::Control { kind, flags, .. } => {
                    let control = Control::parse(kind, flags, &payload).unwrap();
                    panic!("{control:?}");
                }
            }
        }
        texts.into_iter().filter(|(_, text)| !text.is_empty()).collect()
    }
}

#[tokio::test]
async fn a_spdy_exec_carries_input_output_and_status_on_streams_of_their_own() {
    let (state, _root) = server().await;
    let path = "/exec/ns/p/c?command=cat&input=1&output=1&error=1";
    let mut spdy = Spdy::connect(&state, path, "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        spdy.open(id, &[("streamtype", kind)]).await;
    }
    spdy.send(3, b"hello", 0).await;
    spdy.send(3, b"", FIN).await;
    let heard = spdy.collect(&[1, 5, 7]).await;
    assert_eq!(heard[1], (5, "hello".to_owned()));
    assert!(heard[0].1.contains("Success"), "{heard:?}");
}

#[tokio::test]
async fn a_port_that_cannot_be_reached_is_told_on_the_error_stream() {
    let (state, _root) = server().await;
    let mut spdy = Spdy::connect(&state, "/portForward/ns/p", "portforward.k8s.io").await;
    spdy.open(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "0")]).await;
    spdy.open(3, &[("streamtype", "data"), ("port", "80"), ("requestid", "0")]).await;
    let heard = spdy.collect(&[1, 3]).await;
    assert!(heard[0].1.starts_with("error forwarding port 80 to pod ns/p"), "{heard:?}");
}

#[tokio::test]
async fn channels_of_a_port_forward_begin_with_the_port() {
    let (state, _root) = server().await;
    let path = "/portForward/ns/p?ports=8080";
    let mut socket = websocket(&state, path, "v4.channel.k8s.io").await;
    let data = socket.next().await.unwrap().unwrap();
    assert_eq!(data, binary(0, &8080_u16.to_le_bytes()));
    let error = collect(&mut socket, 1).await;
    assert_eq!(error[..2], 8080_u16.to_le_bytes());
    assert!(String::from_utf8_lossy(&error[2..]).contains("error forwarding port 8080"));
}

#[tokio::test]
async fn attach_joins_the_first_process_and_run_answers_with_all_output() {
    let (state, _root) = server().await;
    let mut socket =
        websocket(&state, "/attach/ns/p/c?input=1&output=1", "v5.channel.k8s.io").await;
    socket.send(binary(0, b"ping")).await.unwrap();
    loop {
        if socket.next().await.unwrap().unwrap() == binary(1, b"ping") {
            break;
        }
    }
    let mut wire = wire(&state);
    let head = "POST /run/ns/p/c HTTP/1.1\nHost: n\n\n";
    assert_eq!(talk(&mut wire, head).await.0, StatusCode::BAD_REQUEST);
}
