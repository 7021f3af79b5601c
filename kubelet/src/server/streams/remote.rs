//! A client's end of an exec or attach session, whatever protocol carries it, and the copying between
//! it and the process.
//!
//! Everything between the two is a bounded queue of pieces: whoever does not take bytes holds up
//! whoever sends them, and nothing grows.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_runtime::interface::{
    RuntimeError, Session, SessionEnd, SessionInput, SessionOutput, TerminalSize,
};
use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::server::spdy::session::{Gone, Sender};

/// How much is read of a process's output at once.
const PIECE_BYTES: usize = 32 << 10;

/// How long output that others hold open may be silent after the process has ended.
const AFTERGLOW: Duration = Duration::from_secs(1);

/// How a WebSocket channel writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Binary messages: the channel's number as a byte, then the bytes.
    Binary,
    /// Text messages: the channel's number as a digit, then base64.
    Base64,
}

impl Coding {
    /// A message for a channel.
    pub(crate) fn message(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.extend_from_slice(&[channel]);
                message.extend_from_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => Message::text(format!("{channel}{}", STANDARD.encode(bytes))),
        }
    }

    /// The channel and the bytes of a message; `None` for what is no such message.
    pub(crate) fn parse(self, message: Message) -> Option<(u8, Bytes)> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let (channel, _) = bytes.split_first()?;
        match self {
            Self::Binary => Some((*channel, bytes.slice(1..))),
            Self::Base64 => {
                let channel = channel.checked_sub(b'0').filter(|digit| *digit < 10)?;
                Some((channel, STANDARD.decode(bytes.get(1..)?).ok()?.into()))
            }
        }
    }
}

/// Where bytes for the client go.
#[derive(Debug, Clone)]
pub(crate) enum Sink {
    /// A SPDY stream.
    Spdy(Sender),
    /// A channel of a WebSocket.
    WebSocket { channel: u8, coding: Coding, messages: mpsc::Sender<Message> },
}

impl Sink {
    /// Sends bytes; waits while the client does not take them.
    pub(crate) async fn write(&self, bytes: Bytes) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.data(bytes).await,
            Self::WebSocket { channel, coding, messages } => {
                messages.send(coding.message(*channel, &bytes)).await.map_err(|_| Gone)
            }
        }
    }

    /// Says that no more will be sent; a WebSocket has no word for it.
    pub(crate) async fn finish(&self) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.finish().await,
            Self::WebSocket { .. } => Ok(()),
        }
    }
}

/// How the end of a session is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusForm {
    /// A message where something failed, else nothing (v1 to v3).
    Text,
    /// A `Status` object (v4, v5).
    Json,
}

/// A client's end.
pub(crate) struct Remote {
    /// What the client sends for the process; ends with its half.
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    /// The way back of the input's stream: nothing is sent on it, but clients take its end for the end
    /// of the session and stop sending.
    pub(crate) stdin_end: Option<Sink>,
    /// The sizes that the client's terminal takes.
    pub(crate) sizes: Option<mpsc::Receiver<TerminalSize>>,
    /// Where standard output goes.
    pub(crate) stdout: Option<Sink>,
    /// Where standard error goes.
    pub(crate) stderr: Option<Sink>,
    /// Where the end is told.
    pub(crate) status: Sink,
    /// How the end is told.
    pub(crate) form: StatusForm,
    /// Cancelled when the client is gone, or nobody has said anything for too long.
    pub(crate) gone: CancellationToken,
}

/// What the client is told at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended with 0; or an attach is over.
    Success,
    /// The process ended with this code.
    Exit(i32),
    /// It did not run, or nothing is known of its end.
    Failed(String),
}

impl Outcome {
    /// What the end of a command means.
    pub(crate) fn of_exec(end: &Result<SessionEnd, RuntimeError>) -> Self {
        match end {
            Ok(SessionEnd { exit_code: 0, .. }) => Self::Success,
            Ok(SessionEnd { exit_code, .. }) => Self::Exit(*exit_code),
            Err(error) => Self::of_error(error),
        }
    }

    /// What a failure to start means: a shell's exit code, where it has one.
    pub(crate) fn of_error(error: &RuntimeError) -> Self {
        Self::Failed(crate::worker::chain(error))
    }

    /// The text for the client; empty where there is nothing to say.
    fn render(&self, form: StatusForm) -> String {
        match (form, self) {
            (StatusForm::Text, Self::Success) => String::new(),
            (StatusForm::Text, Self::Exit(code)) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            (StatusForm::Text, Self::Failed(message)) => message.clone(),
            (StatusForm::Json, outcome) => outcome.status().to_string(),
        }
    }

    fn status(&self) -> serde_json::Value {
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!(
                    "command terminated with non-zero exit code: exit status {code}"
                ),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        }
    }
}

impl Remote {
    /// Tells the client how it ended. All output must have been sent.
    pub(crate) async fn end(self, outcome: &Outcome) {
        let text = outcome.render(self.form);
        let tell = async {
            for output in [&self.stdout, &self.stderr, &self.stdin_end].into_iter().flatten() {
                output.finish().await?;
            }
            if !text.is_empty() {
                self.status.write(text.into()).await?;
            }
            self.status.finish().await
        };
        tokio::select! {
            // A client that is gone needs no answer.
            _ = tell => {}
            () = self.gone.cancelled() => {}
        }
    }

    /// Copies both ways until the process has ended and its output is sent. `None` when the client
    /// went first.
    pub(crate) async fn carry(
        &mut self,
        session: Session,
    ) -> Option<Result<SessionEnd, RuntimeError>> {
        let Session { stdin, stdout, stderr, terminal, end } = session;
        let ended = CancellationToken::new();
        let feeding = feed(self.stdin.take(), stdin);
        let mut sizes = self.sizes.take();
        let resizing = async {
            while let (Some(all), Some(terminal)) = (&mut sizes, &terminal) {
                let Some(size) = all.recv().await else { break };
                if let Err(error) = terminal.resize(size) {
                    tracing::debug!(%error, "terminal not resized");
                }
            }
        };
        let waiting = async {
            let end = end.await;
            ended.cancel();
            end
        };
        let outputs = async {
            let (end, _, _) = tokio::join!(
                waiting,
                drain(stdout, self.stdout.as_ref(), &ended),
                drain(stderr, self.stderr.as_ref(), &ended),
            );
            end
        };
        let inputs = async {
            tokio::join!(feeding, resizing);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = outputs => Some(end),
            () = inputs => None,
            () = self.gone.cancelled() => None,
        }
    }
}

/// Gives the process what the client sends; the end of the one is the end of the other.
async fn feed(from: Option<mpsc::Receiver<Bytes>>, to: Option<SessionInput>) {
    let Some(mut from) = from else { return };
    let Some(mut to) = to else {
        while from.recv().await.is_some() {}
        return;
    };
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            // Nobody reads any more. The client may go on sending; it is not held up by it.
            drop(to);
            while from.recv().await.is_some() {}
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Sends what the process prints until it is complete. Once the process has ended, processes that it
/// left behind and that hold the stream are not waited for.
async fn drain(from: Option<SessionOutput>, to: Option<&Sink>, ended: &CancellationToken) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        let silence = async {
            ended.cancelled().await;
            tokio::time::sleep(AFTERGLOW).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut buffer) => read,
            () = silence => return,
        };
        if !matches!(read, Ok(1..)) || to.write(buffer.split().freeze()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_channel_in_both_codings() {
        for coding in [Coding::Binary, Coding::Base64] {
            let message = coding.message(2, b"text");
            assert_eq!(coding.parse(message), Some((2, Bytes::from_static(b"text"))));
            assert_eq!(coding.parse(Message::Binary(Bytes::new())), None);
        }
        assert_eq!(Coding::Base64.parse(Message::text("x")), None);
        assert_eq!(Coding::Base64.parse(Message::text("0***")), None);
    }

    #[test]
    fn an_exit_code_is_told_as_clients_read_it() {
        let status = Outcome::Exit(3).status();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(Outcome::Success.render(StatusForm::Text), "");
        assert_eq!(Outcome::Success.status()["status"], "Success");
    }
}
