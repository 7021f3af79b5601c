//! Live streams on the agent's local socket: what follows a request for exec or attach.
//!
//! Once the agent has answered `Started`, both sides send frames: a byte that names the stream, the
//! length as four bytes (big endian), then so many bytes. An empty input frame ends the input. Forwarded
//! ports have no frames: the connection is the port's from then on.

use std::io;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use berth_runtime::interface::{
    ContainerId, ContainerState, Exec, Runtime, RuntimeError, SandboxId, SandboxState, Session,
    SessionInput, SessionOutput, Streams, Terminal, TerminalSize,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, oneshot};

use crate::host::Host;

/// The longest frame.
const MAX_FRAME_BYTES: usize = 64 << 10;

/// Which stream a frame is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Towards the process.
    Input,
    /// Its standard output.
    Output,
    /// Its standard error.
    Error,
    /// Its exit code, as four bytes; nothing follows.
    Exit,
    /// Why there is none; nothing follows.
    Failed,
    /// The size of the client's terminal: columns and lines, two bytes each.
    Size,
}

const KINDS: [Kind; 6] =
    [Kind::Input, Kind::Output, Kind::Error, Kind::Exit, Kind::Failed, Kind::Size];

/// The streams that a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Whether it has input.
    pub(crate) stdin: bool,
    /// Whether the process is to have a terminal, or has one.
    pub(crate) tty: bool,
    /// The size of the client's own: columns and lines.
    pub(crate) size: Option<(u16, u16)>,
}

/// A size as a frame has it.
pub(crate) fn size_bytes(size: TerminalSize) -> [u8; 4] {
    let ([a, b], [c, d]) = (size.columns.to_be_bytes(), size.rows.to_be_bytes());
    [a, b, c, d]
}

fn size_of(bytes: &[u8]) -> Option<TerminalSize> {
    let [a, b, c, d] = *bytes.first_chunk()?;
    let size =
        TerminalSize { columns: u16::from_be_bytes([a, b]), rows: u16::from_be_bytes([c, d]) };
    (bytes.len() == 4 && size.columns > 0 && size.rows > 0).then_some(size)
}

/// Writes a frame.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    kind: Kind,
    bytes: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_be_bytes();
    let number = KINDS.iter().position(|one| *one == kind).and_then(|at| u8::try_from(at).ok());
    let mut head = vec![number.unwrap_or(0)];
    head.extend_from_slice(&length);
    writer.write_all(&head).await?;
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// Reads a frame; `None` at the end of the connection.
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0; 5];
    match reader.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let [number, a, b, c, d] = head;
    let kind = KINDS.get(usize::from(number)).copied();
    let kind = kind.ok_or_else(|| io::Error::other(format!("frame of unknown kind {number}")))?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(io::Error::other)?;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other(format!("frame of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await?;
    Ok(Some((kind, bytes)))
}

/// Names a container: the pod as `name` or `namespace/name`, the container where there are several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) pod: String,
    pub(crate) container: Option<String>,
}

impl Place {
    fn is_pod(&self, namespace: &str, name: &str) -> bool {
        match self.pod.split_once('/') {
            Some((wanted, pod)) => (wanted, pod) == (namespace, name),
            None => self.pod == name,
        }
    }

    /// The running container that is meant.
    pub(crate) async fn container(&self, host: &Host) -> Result<ContainerId> {
        let sandboxes = host.engine.list().await?;
        let mut running: Vec<_> = sandboxes
            .iter()
            .filter(|s| self.is_pod(&s.config.pod.namespace, &s.config.pod.name))
            .flat_map(|s| &s.containers)
            .filter(|c| matches!(c.state, ContainerState::Running { .. }))
            .collect();
        if let Some(wanted) = &self.container {
            running.retain(|c| c.config.name == *wanted);
        }
        match running.as_slice() {
            [one] => Ok(one.id.clone()),
            [] => bail!("no running container of pod {:?} is meant by that", self.pod),
            many => {
                let names: Vec<_> = many.iter().map(|c| c.config.name.as_str()).collect();
                bail!("name one of the containers of pod {:?}: {}", self.pod, names.join(", "))
            }
        }
    }

    /// The sandbox that is meant.
    pub(crate) async fn sandbox(&self, host: &Host) -> Result<SandboxId> {
        let sandboxes = host.engine.list().await?;
        let ready = sandboxes.iter().rev().find(|s| {
            s.state == SandboxState::Ready
                && self.is_pod(&s.config.pod.namespace, &s.config.pod.name)
        });
        Ok(ready.with_context(|| format!("pod {:?} does not run here", self.pod))?.id.clone())
    }
}

/// Starts a command, or attaches where there is none.
pub(crate) async fn open(
    host: &Host,
    place: &Place,
    (command, wanted): (Vec<String>, Wanted),
) -> Result<Session> {
    let id = place.container(host).await?;
    let Wanted { stdin, tty, size } = wanted;
    let size = size.map(|(columns, rows)| TerminalSize { columns, rows });
    // A terminal has one output.
    let streams = Streams { stdin, stdout: true, stderr: !tty };
    let attaches = command.is_empty();
    let opened = match attaches {
        true => host.engine.attach(&id, streams).await,
        false => host.engine.exec(&id, Exec { command, streams, tty, size }).await,
    };
    let session = opened.context("opening the session")?;
    if attaches && tty {
        let terminal = session.terminal.as_ref().context("the container has no terminal")?;
        if let Some(size) = size {
            terminal.resize(size).context("setting the terminal's size")?;
        }
    }
    Ok(session)
}

/// Carries a session on frames until the process has ended or the client has gone.
pub(crate) async fn carry<R, W>(session: Session, mut reader: R, writer: W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Session { stdin, stdout, stderr, end, terminal } = session;
    let writer = Mutex::new(writer);
    let (ended, mut end_seen) = oneshot::channel();
    let (outs, errs) = (copy(stdout, Kind::Output, &writer), copy(stderr, Kind::Error, &writer));
    let outputs = async {
        let streams = async { tokio::try_join!(outs, errs).map(drop) };
        tokio::pin!(streams);
        tokio::select! {
            copied = &mut streams => { copied?; let _ = (&mut end_seen).await; }
            _ = &mut end_seen => {
                // What others hold open is not waited for.
                let last = tokio::time::timeout(std::time::Duration::from_secs(1), streams);
                last.await.unwrap_or(Ok(()))?;
            }
        }
        Ok::<_, io::Error>(())
    };
    let process = async {
        let end = end.await;
        let _ = ended.send(());
        end
    };
    let work = async {
        let (end, copied) = tokio::join!(process, outputs);
        copied?;
        let mut writer = writer.lock().await;
        match end {
            Ok(end) => write_frame(&mut *writer, Kind::Exit, &end.exit_code.to_be_bytes()).await,
            Err(error) => write_frame(&mut *writer, Kind::Failed, told(&error).as_bytes()).await,
        }
    };
    tokio::select! {
        done = work => done,
        gone = feed(&mut reader, stdin, terminal) => gone,
    }
}

fn told(error: &RuntimeError) -> String {
    error.to_string()
}

async fn copy<W: AsyncWrite + Unpin>(
    from: Option<SessionOutput>,
    kind: Kind,
    to: &Mutex<W>,
) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; 32 << 10];
    loop {
        match from.read(&mut buffer).await {
            // A terminal that hangs up says so by an error.
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => write_frame(&mut *to.lock().await, kind, &buffer[..count]).await?,
        }
    }
}

/// Gives the process what the client sends. Returns when the client is gone.
async fn feed<R: AsyncRead + Unpin>(
    reader: &mut R,
    mut stdin: Option<SessionInput>,
    terminal: Option<Arc<dyn Terminal>>,
) -> io::Result<()> {
    while let Some((kind, bytes)) = read_frame(reader).await? {
        if let (Kind::Size, Some(terminal), Some(size)) = (kind, &terminal, size_of(&bytes))
            && let Err(error) = terminal.resize(size)
        {
            tracing::debug!(%error, "terminal not resized");
        }
        if kind != Kind::Input {
            continue;
        }
        let Some(open) = &mut stdin else { continue };
        let closes = bytes.is_empty() || open.write_all(&bytes).await.is_err();
        if closes {
            let _ = open.shutdown().await;
            stdin = None;
        } else {
            let _ = open.flush().await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let write = async {
            for (kind, bytes) in [(Kind::Input, &b"abc"[..]), (Kind::Exit, &[0, 0, 0, 3])] {
                write_frame(&mut near, kind, bytes).await.unwrap();
            }
            drop(near);
        };
        let read = async {
            assert_eq!(read_frame(&mut far).await.unwrap(), Some((Kind::Input, b"abc".to_vec())));
            assert_eq!(read_frame(&mut far).await.unwrap(), Some((Kind::Exit, vec![0, 0, 0, 3])));
            assert_eq!(read_frame(&mut far).await.unwrap(), None);
        };
        tokio::join!(write, read);
        for bad in [&[9, 0, 0, 0, 0][..], &[0, 255, 0, 0, 0], &[0, 0, 0, 0, 4, 1]] {
            assert!(read_frame(&mut &bad[..]).await.is_err());
        }
    }

    #[test]
    fn a_size_is_four_bytes_and_nothing_else() {
        let size = TerminalSize { columns: 300, rows: 24 };
        assert_eq!(size_of(&size_bytes(size)), Some(size));
        for bad in [&[][..], &[0, 1, 0], &[0, 0, 0, 1], &[0, 1, 0, 1, 0]] {
            assert_eq!(size_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_pod_is_named_with_or_without_its_namespace() {
        let place = |pod: &str| Place { pod: pod.to_owned(), container: None };
        assert!(place("web").is_pod("default", "web") && place("a/web").is_pod("a", "web"));
        assert!(!place("a/web").is_pod("b", "web") && !place("web").is_pod("web", "x"));
    }
}
