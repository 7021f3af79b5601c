//! The agent's end of the shim protocol: starting a shim, asking it, hearing from it.
//!
//! Requests travel on a small pool of connections, each used by one request at a time, so that a long
//! `ExecSync` holds up nothing else; events come on one of their own. Every request has a deadline.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_oci::protocol::{
    Answer, ContainerRecord, Descriptor, Event, Failure, FailureKind, MAX_FRAME_BYTES, Reply,
    Request,
};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::record::SandboxDir;
use crate::executable::Executable;
use crate::{descriptors, disk};

/// How long a starting shim may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// How long a shim may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How many idle connections are kept.
const MAX_IDLE: usize = 4;
/// Standard streams and a terminal.
const MAX_DESCRIPTORS: usize = 4;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Refused(#[from] Failure),
    #[error("the shim is not reachable")]
    Lost(#[source] io::Error),
    #[error("the shim did not answer within {0:?}")]
    Deadline(Duration),
    #[error("the shim answered something else than was asked")]
    Protocol,
    #[error("cannot start the shim: {0}")]
    Start(String),
}

impl Error {
    /// Whether the shim does not know the container that was named.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused(failure) if failure.kind == FailureKind::NotFound)
    }
}

/// A connection to a sandbox's shim.
#[derive(Debug)]
pub(super) struct Shim {
    socket: PathBuf,
    process: OwnedFd,
    idle: Mutex<Vec<UnixStream>>,
}

/// What a shim holds.
pub(super) struct Greeting {
    pub(super) shim: Shim,
    /// Its process, for as long as it lives.
    pub(super) pid: u32,
    pub(super) containers: Vec<ContainerRecord>,
}

/// Starts the shim of a sandbox (it makes itself the leader of a session) whose `sandbox.json` is written, and connects to it.
pub(super) async fn start(executable: &Executable, dir: &SandboxDir) -> Result<Greeting, Error> {
    let failed = |error: io::Error| Error::Start(error.to_string());
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.shim_log())
        .map_err(failed)?;
    // Held by the shim, through its standard error, until it listens: see `await_starting`.
    flock(&log, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
    let mut command = executable.command();
    command
        .args(["shim", "--dir"])
        .arg(dir.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut child = tokio::process::Command::from(command).spawn().map_err(failed)?;
    // It starts nothing before it is asked to.
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
        && let Err(error) = descriptors::give_back_limit(pid)
    {
        tracing::warn!(%error, "a shim keeps the agent's limit of descriptors");
    }
    let deadline = Instant::now() + START_DEADLINE;
    let mut pause = Duration::from_millis(1);
    loop {
        let outcome = connect(&dir.socket()).await;
        let error = match outcome {
            Ok(greeting) => return Ok(greeting),
            Err(error) => error,
        };
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::Start(format!("it ended with {status}: {}", last_words(dir))));
        }
        if Instant::now() >= deadline {
            // Not yet anybody's: a shim that does not listen must not stay.
            let _ = child.kill().await;
            return Err(Error::Start(format!("{error}: {}", last_words(dir))));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Waits until no shim is starting in the directory: it listens, or has ended. An agent that was
/// killed may have left one that does not listen yet, and whose directory must not be taken away.
pub(super) async fn await_starting(dir: &SandboxDir) -> io::Result<()> {
    let log = match File::open(dir.shim_log()) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        match flock(&log, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// The last line a shim wrote to its log.
fn last_words(dir: &SandboxDir) -> String {
    let log = disk::read_limited(&dir.shim_log(), 1 << 20).unwrap_or_default();
    let text = String::from_utf8_lossy(&log);
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or("it left no message").chars().take(500).collect()
}

/// Connects to a running shim.
pub(super) async fn connect(socket: &Path) -> Result<Greeting, Error> {
    let stream = UnixStream::connect(socket).await.map_err(Error::Lost)?;
    let credentials = stream.peer_cred().map_err(Error::Lost)?;
    let pid = credentials.pid().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::Lost(io::Error::other("the peer has no process id")))?;
    // Taken before the greeting: the process that answers on this connection is the one it names.
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| Error::Lost(e.into()))?;
    let shim = Shim { socket: socket.to_owned(), process, idle: Mutex::new(vec![stream]) };
    match shim.ask(&Request::Hello, Some(HELLO_DEADLINE)).await? {
        Reply::Shim { containers, .. } => {
            Ok(Greeting { shim, pid: pid.as_raw_nonzero().get().unsigned_abs(), containers })
        }
        _ => Err(Error::Protocol),
    }
}

impl Shim {
    /// Sends a request and waits for its answer, at most `patience`.
    pub(super) async fn ask(
        &self,
        request: &Request,
        patience: Option<Duration>,
    ) -> Result<Reply, Error> {
        let exchange = async {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut stream = match idle {
                Some(stream) => stream,
                None => UnixStream::connect(&self.socket).await?,
            };
            write_frame(&mut stream, request).await?;
            let answer: Answer = read_frame(&mut stream).await?;
            Ok::<_, io::Error>((stream, answer))
        };
        let outcome = match patience {
            None => exchange.await,
            Some(patience) => match tokio::time::timeout(patience, exchange).await {
                Ok(outcome) => outcome,
                Err(_) => return Err(Error::Deadline(patience)),
            },
        };
        let (stream, answer) = outcome.map_err(Error::Lost)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(stream);
        }
        Ok(answer?)
    }

    /// A request that is answered by [`Reply::Done`].
    pub(super) async fn order(&self, request: &Request, patience: Duration) -> Result<(), Error> {
        match self.ask(request, Some(patience)).await? {
            Reply::Done => Ok(()),
            _ => Err(Error::Protocol),
        }
    }

    /// Opens the stream of events.
    pub(super) async fn subscribe(&self) -> Result<Events, Error> {
        let open = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            write_frame(&mut stream, &Request::Subscribe { log_losses: true }).await?;
            Ok(Events(stream))
        };
        match tokio::time::timeout(HELLO_DEADLINE, open).await {
            Ok(outcome) => outcome.map_err(Error::Lost),
            Err(_) => Err(Error::Deadline(HELLO_DEADLINE)),
        }
    }

    /// Opens a session on a connection of its own: the descriptors that came, and its ending.
    pub(super) async fn open(
        &self,
        request: &Request,
        patience: Duration,
    ) -> Result<(Vec<(Descriptor, OwnedFd)>, Ending), Error> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            write_frame(&mut stream, request).await?;
            let (answer, fds) = read_with_descriptors(&mut stream).await?;
            Ok::<_, io::Error>((stream, answer, fds))
        };
        let (stream, answer, fds) = match tokio::time::timeout(patience, exchange).await {
            Ok(outcome) => outcome.map_err(Error::Lost)?,
            Err(_) => return Err(Error::Deadline(patience)),
        };
        match answer? {
            Reply::Opened { descriptors } if descriptors.len() == fds.len() => {
                Ok((descriptors.into_iter().zip(fds).collect(), Ending(stream)))
            }
            _ => Err(Error::Protocol),
        }
    }

    /// Kills the shim's process.
    pub(super) fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Waits for the end of the shim's process.
    pub(super) async fn ended(&self) -> io::Result<()> {
        let watched = crate::sys::watch(self.process.try_clone()?, Interest::READABLE)?;
        watched.readable().await.map(drop)
    }
}

/// The end of a session, to be waited for.
#[derive(Debug)]
pub(super) struct Ending(UnixStream);

impl Ending {
    /// Exit code, and the bytes that an attachment missed.
    pub(super) async fn wait(mut self) -> Result<(i32, u64), Error> {
        let answer: Answer = read_frame(&mut self.0).await.map_err(Error::Lost)?;
        match answer? {
            Reply::Ended { exit_code, dropped_bytes } => Ok((exit_code, dropped_bytes)),
            _ => Err(Error::Protocol),
        }
    }
}

/// A shim's events.
#[derive(Debug)]
pub(super) struct Events(UnixStream);

impl Events {
    /// The next one. An error when the shim is gone.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        read_frame(&mut self.0).await
    }
}

async fn write_frame<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME_BYTES);
    let prefix = prefix.ok_or_else(|| io::Error::other("the request is too long"))?;
    frame[..4].copy_from_slice(&prefix.to_le_bytes());
    stream.write_all(&frame).await
}

async fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let length = stream.read_u32_le().await? as usize;
    read_payload(stream, length).await
}

async fn read_payload<T: DeserializeOwned>(
    stream: &mut UnixStream,
    length: usize,
) -> io::Result<T> {
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other("the answer is too long"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(serde_json::from_slice(&frame)?)
}

/// Reads an answer and the descriptors that come with its first byte.
async fn read_with_descriptors(stream: &mut UnixStream) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let mut prefix = [0; 4];
    let (count, fds) = loop {
        stream.readable().await?;
        let received = stream.try_io(Interest::READABLE, || receive(stream, &mut prefix));
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => break outcome?,
        }
    };
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut prefix[count..]).await?;
    let answer = read_payload(stream, u32::from_le_bytes(prefix) as usize).await?;
    Ok((answer, fds))
}

fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut slices = [IoSliceMut::new(bytes)];
    let count = rustix::net::recvmsg(stream, &mut slices, &mut control, flags)?.bytes;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((count, fds.flatten().collect()))
}

/// Reads the shim's own record of a container.
pub(super) fn stored_state(path: &Path) -> Option<ContainerRecord> {
    let mut bytes = Vec::new();
    let mut file = File::open(path).ok()?;
    io::Read::read_to_end(&mut io::Read::take(&mut file, 1 << 20), &mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_pass_and_an_oversized_one_is_refused() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        write_frame(&mut a, &Request::Hello).await.unwrap();
        let request: Request = read_frame(&mut b).await.unwrap();
        assert_eq!(request, Request::Hello);
        a.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert!(read_frame::<Request>(&mut b).await.is_err());
    }

    #[tokio::test]
    async fn a_missing_shim_is_lost_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let outcome = connect(&dir.path().join("shim.sock")).await;
        assert!(matches!(outcome, Err(Error::Lost(_))));
    }
}
