//! Reading the journal by journalctl(1), which is executed without a shell and with an empty
//! environment, and the log files of services that do not write to the journal.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::query::{Options, Services};
use super::{Refusal, files};

/// How long a query may take in all.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most that is read of the journal's list of units.
const MAX_UNITS_BYTES: u64 = 4 << 20;

/// Where commands are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The host's journal.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    /// The command that reads it.
    command: Arc<[String]>,
    turns: Arc<Semaphore>,
}

type Piece = io::Result<Bytes>;

impl Journal {
    pub(super) fn new(command: Vec<String>, turns: Arc<Semaphore>) -> Self {
        Self { command: command.into(), turns }
    }

    /// What the services wrote, the journal's first.
    ///
    /// # Errors
    /// When too many ask at once.
    pub(super) async fn read(&self, logs: &Path, asked: Services) -> Result<Body, Refusal> {
        let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() else {
            let why = "too many node log queries at once\n".to_owned();
            return Err((StatusCode::TOO_MANY_REQUESTS, why));
        };
        let deadline = Instant::now() + PATIENCE;
        let units = tokio::time::timeout_at(deadline, self.units()).await.unwrap_or_default();
        let unit = |name: &String| units.lines().any(|unit| is_of(unit, name));
        let (native, other): (Vec<_>, Vec<_>) = asked.names.into_iter().partition(unit);
        let mut parts: Vec<futures::stream::BoxStream<'static, Piece>> = Vec::new();
        if !native.is_empty() {
            parts.push(match self.start(&asked.options.arguments(&native)) {
                Ok((child, output)) => pieces(output, child),
                Err(error) => {
                    tracing::warn!(%error, "journal not read");
                    said("\nerror: journal output not available\n".to_owned())
                }
            });
        }
        if !other.is_empty() && asked.options != Options::default() {
            parts.push(said(format!(
                "\noptions present and query resolved to log files for [{}]\n\
                 try without specifying options\n",
                other.join(" ")
            )));
        } else {
            for name in other {
                parts.push(match file_of(logs, &name).await {
                    Ok(file) => pieces(file, ()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        said(format!("\nlog not found for {name}\n"))
                    }
                    Err(error) => said(format!("\nerror getting log for {name}: {error}\n")),
                });
            }
        }
        Ok(Body::from_stream(until(futures::stream::iter(parts).flatten(), deadline, turn)))
    }

    /// The units that the journal knows, one a line.
    async fn units(&self) -> String {
        let arguments = ["--field", "_SYSTEMD_UNIT"].map(str::to_owned);
        let Ok((_child, output)) = self.start(&arguments) else { return String::new() };
        let mut text = Vec::new();
        match output.take(MAX_UNITS_BYTES).read_to_end(&mut text).await {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// Executes the command. Both its outputs come by one pipe; it dies with what is returned first.
    fn start(&self, arguments: &[String]) -> io::Result<(Child, pipe::Receiver)> {
        let (program, leading) = self.command.split_first().ok_or(io::ErrorKind::NotFound)?;
        let (reader, writer) = io::pipe()?;
        let child = Command::new(program)
            .args(leading)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .kill_on_drop(true)
            .spawn()?;
        Ok((child, pipe::Receiver::from_owned_fd(reader.into())?))
    }
}

/// Whether a unit is the service of that name.
fn is_of(unit: &str, name: &str) -> bool {
    unit == name || unit.strip_suffix(".service") == Some(name)
}

/// The log file of a service, where one has a usual name.
async fn file_of(logs: &Path, name: &str) -> io::Result<tokio::fs::File> {
    for path in [name.to_owned(), format!("{name}.log"), format!("{name}/{name}.log")] {
        match files::open(logs, &path).await {
            Err(error) if files::is_nothing(&error) => {}
            opened => return opened,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn said(text: String) -> futures::stream::BoxStream<'static, Piece> {
    futures::stream::iter([Ok(Bytes::from(text))]).boxed()
}

/// What is read; `kept` is let go with it.
fn pieces<R, K>(from: R, kept: K) -> futures::stream::BoxStream<'static, Piece>
where
    R: AsyncRead + Send + 'static,
    K: Send + 'static,
{
    let stream = ReaderStream::with_capacity(from, 32 << 10);
    stream
        .map(move |piece| {
            let _ = &kept;
            piece
        })
        .boxed()
}

/// The pieces that come before the deadline. The turn is given back with the last.
fn until(
    stream: impl futures::Stream<Item = Piece> + Send + 'static,
    deadline: Instant,
    turn: OwnedSemaphorePermit,
) -> impl futures::Stream<Item = Piece> + Send + 'static {
    let state = (Box::pin(stream), Some(turn));
    futures::stream::unfold(state, move |(mut stream, turn)| async move {
        turn.as_ref()?;
        match tokio::time::timeout_at(deadline, stream.next()).await {
            Ok(piece) => Some((piece?, (stream, turn))),
            Err(_) => {
                let text = format!("\nerror: nothing more after {} seconds\n", PATIENCE.as_secs());
                Some((Ok(Bytes::from(text)), (stream, None)))
            }
        }
    })
}
