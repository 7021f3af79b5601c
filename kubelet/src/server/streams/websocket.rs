//! WebSocket (RFC 6455) with Kubernetes' channels: one message carries one channel's bytes, and the
//! channel's number leads. Also the tunnel: SPDY frames in binary messages.

use std::time::Duration;

use berth_runtime::interface::TerminalSize;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::query::{Channels, HalfClose, Options};
use super::remote::{Remote, Sink};
use crate::server::activity::Activity;

/// The longest message that is taken. Clients of Kubernetes send 32 KiB at most.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// How many messages may wait for the client.
const MESSAGES: usize = 4;
/// How many messages may wait for the process.
const PIECES: usize = 4;
/// How often the client hears that we are there. Its own pings wait behind bytes that the process does
/// not take, and a client that hears nothing for long gives up.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long the client may take to close once all has been said.
const LINGER: Duration = Duration::from_secs(5);
/// How much of a tunnel is carried in one message.
const TUNNEL_BYTES: usize = 32 << 10;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// Ends the channel that its one byte of content names (v5).
const CLOSE: u8 = 255;

/// A WebSocket over an upgraded connection.
pub(crate) async fn accept<T>(transport: T) -> WebSocketStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(32 << 10)
        .write_buffer_size(32 << 10)
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    WebSocketStream::from_raw_socket(transport, Role::Server, Some(config)).await
}

/// The size of a terminal, as clients write it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads a size; what is none is ignored.
pub(crate) fn size(bytes: &[u8]) -> Option<TerminalSize> {
    let Size { width, height } = serde_json::from_slice(bytes).ok()?;
    (width > 0 && height > 0).then_some(TerminalSize { columns: width, rows: height })
}

/// Where the client's channels lead.
struct Inputs {
    stdin: Option<mpsc::Sender<Bytes>>,
    sizes: Option<mpsc::Sender<TerminalSize>>,
}

/// Takes a WebSocket over for a session. The future carries it and ends with it.
pub(crate) fn session<T>(
    socket: WebSocketStream<T>,
    protocol: Channels,
    options: &Options,
    activity: Activity,
) -> (Remote, impl Future<Output = Result<(), Error>> + Send + use<T>)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    let queue = |wanted: bool| match wanted {
        true => {
            let (sender, receiver) = mpsc::channel(PIECES);
            (Some(sender), Some(receiver))
        }
        false => (None, None),
    };
    let (to_stdin, stdin) = queue(options.streams.stdin);
    let (to_sizes, sizes) = match options.tty {
        true => {
            let (sender, receiver) = mpsc::channel(PIECES);
            (Some(sender), Some(receiver))
        }
        false => (None, None),
    };
    let coding = protocol.coding;
    let sink = |channel| Sink::WebSocket { channel, coding, messages: messages.clone() };
    let gone = CancellationToken::new();
    let remote = Remote {
        stdin,
        stdin_end: None,
        sizes,
        stdout: options.streams.stdout.then(|| sink(STDOUT)),
        stderr: options.streams.stderr.then(|| sink(STDERR)),
        status: sink(STATUS),
        form: protocol.form,
        gone: gone.clone(),
    };
    // An empty message on the lowest of our channels tells old clients that the session is open.
    let first = match options.streams {
        streams if streams.stdout => STDOUT,
        streams if streams.stderr => STDERR,
        _ => STATUS,
    };
    let greeting = coding.message(first, b"");
    let inputs = Inputs { stdin: to_stdin, sizes: to_sizes };
    let carry = async move {
        let (mut writer, reader) = socket.split();
        writer.send(greeting).await?;
        let read = inputs.read(reader, protocol, activity.clone());
        carry(write(writer, outgoing, activity), read, gone).await
    };
    (remote, carry)
}

/// Runs both halves of a socket. When all has been said, the client may close; when the client has
/// gone, nothing more is said.
async fn carry(
    write: impl Future<Output = Result<(), Error>>,
    read: impl Future<Output = Result<(), Error>>,
    gone: CancellationToken,
) -> Result<(), Error> {
    let _guard = gone.drop_guard();
    tokio::pin!(write, read);
    tokio::select! {
        result = &mut read => result,
        result = &mut write => {
            result?;
            tokio::time::timeout(LINGER, read).await.unwrap_or(Ok(()))
        }
    }
}

impl Inputs {
    /// Passes on what the client sends until it closes the socket.
    async fn read<T>(
        mut self,
        mut reader: SplitStream<WebSocketStream<T>>,
        protocol: Channels,
        activity: Activity,
    ) -> Result<(), Error>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some(message) = reader.next().await {
            let message = message?;
            if matches!(message, Message::Close(_)) {
                break;
            }
            let Some((channel, bytes)) = protocol.coding.parse(message) else { continue };
            activity.touch();
            match (channel, bytes.as_ref()) {
                (STDIN, _) => {
                    if let Some(stdin) = &self.stdin {
                        // A process that has ended takes nothing more.
                        let _ = stdin.send(bytes).await;
                    }
                }
                (RESIZE, text) => {
                    if let (Some(sizes), Some(size)) = (&self.sizes, size(text)) {
                        let _ = sizes.send(size).await;
                    }
                }
                (CLOSE, [STDIN, ..]) if protocol.half_close == HalfClose::Signalled => {
                    self.stdin = None;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Writes messages until nobody is left who could send any, then closes.
async fn write<T>(
    mut writer: SplitSink<WebSocketStream<T>, Message>,
    mut messages: mpsc::Receiver<Message>,
    activity: Activity,
) -> Result<(), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.reset();
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            _ = heartbeat.tick() => {
                writer.send(Message::Pong(Bytes::new())).await?;
                continue;
            }
        };
        let Some(message) = message else { break };
        writer.feed(message).await?;
        activity.touch();
        if messages.is_empty() {
            writer.flush().await?;
        }
    }
    let normal = CloseFrame { code: 1000.into(), reason: "".into() };
    writer.send(Message::Close(Some(normal))).await
}

/// The channels of a port-forward: for each port one for its bytes and one for its failure.
pub(crate) struct Lane {
    /// What the client sends.
    pub(crate) data: mpsc::Receiver<Bytes>,
    /// Where the pod's bytes go.
    pub(crate) out: Sink,
    /// Where a failure goes.
    pub(crate) error: Sink,
}

/// Takes a WebSocket over for a number of ports. The future carries it and ends with it.
pub(crate) fn lanes<T>(
    socket: WebSocketStream<T>,
    coding: super::remote::Coding,
    count: usize,
    activity: Activity,
) -> (Vec<Lane>, CancellationToken, impl Future<Output = Result<(), Error>> + Send)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    let mut queues = Vec::new();
    let mut lanes = Vec::new();
    for channel in (0_u8..).step_by(2).take(count) {
        let sink = |channel| Sink::WebSocket { channel, coding, messages: messages.clone() };
        let (queue, data) = mpsc::channel(PIECES);
        queues.push(queue);
        lanes.push(Lane { data, out: sink(channel), error: sink(channel + 1) });
    }
    let gone = CancellationToken::new();
    let token = gone.clone();
    let carrying = async move {
        let (writer, mut reader) = socket.split();
        let reading = activity.clone();
        let read = async move {
            while let Some(message) = reader.next().await {
                let Some((channel, bytes)) = coding.parse(message?) else { continue };
                reading.touch();
                let queue = queues.get(usize::from(channel / 2));
                if let (Some(queue), 0) = (queue, channel % 2) {
                    let _ = queue.send(bytes).await;
                }
            }
            Ok(())
        };
        carry(write(writer, outgoing, activity), read, gone).await
    };
    (lanes, token, carrying)
}

/// Carries a byte stream in binary messages. Ends when either side does.
pub(crate) async fn tunnel<T>(socket: WebSocketStream<T>, inner: DuplexStream) -> Result<(), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut writer, mut reader) = socket.split();
    let (mut from, mut to) = tokio::io::split(inner);
    let inward = async {
        while let Some(message) = reader.next().await {
            match message? {
                Message::Binary(bytes) => to.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        to.shutdown().await?;
        Ok::<_, Error>(())
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.reset();
        loop {
            buffer.reserve(TUNNEL_BYTES);
            let read = tokio::select! {
                read = from.read_buf(&mut buffer) => read?,
                _ = heartbeat.tick() => {
                    writer.send(Message::Pong(Bytes::new())).await?;
                    continue;
                }
            };
            if read == 0 {
                break;
            }
            writer.send(Message::Binary(buffer.split().freeze())).await?;
        }
        let normal = CloseFrame { code: 1000.into(), reason: "".into() };
        writer.send(Message::Close(Some(normal))).await
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        result = &mut inward => {
            result?;
            tokio::time::timeout(LINGER, outward).await.unwrap_or(Ok(()))
        }
        result = &mut outward => {
            result?;
            tokio::time::timeout(LINGER, inward).await.unwrap_or(Ok(()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_two_numbers_above_zero() {
        let expected = Some(TerminalSize { columns: 80, rows: 24 });
        assert_eq!(size(br#"{"Width":80,"Height":24}"#), expected);
        for bad in [&b"{}"[..], br#"{"Width":0,"Height":24}"#, br#"{"Width":-1,"Height":1}"#, b""] {
            assert_eq!(size(bad), None);
        }
    }
}
