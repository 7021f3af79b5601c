//! The agent's local socket, by which other `berth` processes of this host use its images and see its
//! pods.
//!
//! `<run dir>/agent.sock`, mode 0600 in a directory of mode 0700. A connection carries one [`Request`] as
//! a line of JSON, and is answered with lines of [`Answer`]. Where no agent runs, the same conversation is
//! held in memory with a [`Host`] opened for it, under the lock that an agent would hold.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use berth_kubelet::events::recent::Recorded;
use berth_kubelet::qos::Driver;
use berth_runtime::interface::{
    Checkpoint, ContainerId, Credentials, Image, Images, PodUsage, ProgressSink, Runtime,
    SandboxId, SandboxStatus, Session,
};
use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream,
};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::host::{Host, make_private};
use crate::session::{self, Place, Wanted};
use crate::settings::Places;

/// The longest request line.
const MAX_REQUEST_BYTES: u64 = 64 << 10;

/// What may be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Request {
    /// All images.
    List,
    /// The image that a reference or an id names, if it is there.
    Status { image: String },
    /// Pull an image.
    Pull { image: String, login: Option<Login> },
    /// Import the archive at this absolute path.
    Import { archive: PathBuf },
    /// Remove an image.
    Remove { image: String },
    /// All sandboxes.
    Pods,
    /// What the pods use.
    Usage,
    /// End a sandbox.
    Stop { sandbox: SandboxId },
    /// Remove a sandbox.
    Discard { sandbox: SandboxId },
    /// Write a running container into an archive.
    Checkpoint { container: ContainerId, location: PathBuf, timeout: Duration },
    /// What the agent recorded lately.
    Events,
    /// Who makes the cgroups of new pods.
    Driver,
    /// Whether pods can have user namespaces.
    UserNamespaces,
    /// Run a command, or attach where there is none; frames follow ([`session`]).
    Session { place: Place, command: Vec<String>, streams: Wanted },
    /// A connection to a port of a pod, whose bytes follow.
    Forward { place: Place, port: u16 },
}

/// A user at a registry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// What is answered: any number of `Progress`, then one of the others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answer {
    Progress {
        received_bytes: u64,
        total_bytes: u64,
    },
    Images(Vec<Image>),
    Pods(Vec<SandboxStatus>),
    Usage(Vec<PodUsage>),
    Events(Vec<Recorded>),
    /// Nothing where no agent makes pods.
    Driver(Option<Driver>),
    UserNamespaces(bool),
    Started,
    Failed(String),
}

/// How long a state directory's owner has to give it up, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Held by the one process that owns a state directory.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "closing the file unlocks it")] File);

impl Lock {
    /// Takes the lock, making the state directory where it is missing. Waits a while for a command that
    /// has it, since those hold it for one request.
    pub(crate) async fn take(places: &Places) -> Result<Self> {
        let directory = &places.state_dir;
        make_private(directory)?;
        let path = directory.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let (directory, path) = (directory.display(), path.display());
                    bail!("another berth owns {directory} (it holds {path})")
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
        }
    }
}

/// Listens, for root alone, where nobody does any more.
pub(crate) fn listen(path: &Path) -> Result<UnixListener> {
    remove(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to others", path.display()))?;
    Ok(listener)
}

/// Removes a socket that may be gone.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("removing {}", path.display())),
    }
}

/// Serves the socket until `shutdown`.
pub(crate) async fn serve(
    run_dir: PathBuf,
    host: Arc<Host>,
    shutdown: CancellationToken,
) -> Result<()> {
    let path = run_dir.join("agent.sock");
    let listener = listen(&path)?;
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted?.0,
        };
        if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
            tokio::spawn(converse(host.clone(), stream));
        }
    }
    remove(&path)
}

/// Answers one request. A client that goes away ends it.
async fn converse<S>(host: Arc<Host>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let request = match read_request(&mut reader).await {
        Ok(request @ (Request::Session { .. } | Request::Forward { .. })) => {
            if let Err(error) = stream_for(&host, request, (reader, writer)).await {
                debug!(%error, "a local client went away");
            }
            return;
        }
        request => request,
    };
    let (answers, mut outgoing) = mpsc::unbounded_channel();
    let work = async move {
        let answer = match answer(&host, request, &answers).await {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(format!("{error:#}")),
        };
        // The client may be gone; then nobody wants the answer.
        let _ = answers.send(answer);
    };
    let write = async {
        while let Some(answer) = outgoing.recv().await {
            let mut line = serde_json::to_vec(&answer)?;
            line.push(b'\n');
            writer.write_all(&line).await?;
            if !matches!(answer, Answer::Progress { .. }) {
                break;
            }
        }
        writer.shutdown().await
    };
    let ((), written) = tokio::join!(work, write);
    if let Err(error) = written {
        debug!(%error, "a local client went away");
    }
}

/// Answers a request that begins a stream, and carries the stream.
async fn stream_for<R, W>(
    host: &Host,
    request: Request,
    (mut reader, mut writer): (R, W),
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let opened = open_stream(host, request).await;
    let answer = match &opened {
        Ok(_) => Answer::Started,
        Err(error) => Answer::Failed(format!("{error:#}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await?;
    match opened {
        Ok(Opened::Session(session)) => session::carry(*session, reader, writer).await,
        Ok(Opened::Port(mut port)) => {
            let mut near = tokio::io::join(&mut reader, &mut writer);
            tokio::io::copy_bidirectional(&mut near, &mut port).await.map(drop)
        }
        Err(_) => Ok(()),
    }
}

/// What follows an answer.
enum Opened {
    Session(Box<Session>),
    Port(TcpStream),
}

async fn open_stream(host: &Host, request: Request) -> Result<Opened> {
    match request {
        Request::Session { place, command, streams } => {
            let session = session::open(host, &place, (command, streams)).await?;
            Ok(Opened::Session(Box::new(session)))
        }
        Request::Forward { place, port } => {
            let sandbox = place.sandbox(host).await?;
            Ok(Opened::Port(host.engine.dial(&sandbox, port).await?))
        }
        _ => bail!("this request begins no stream"),
    }
}

async fn answer(
    host: &Host,
    request: Result<Request>,
    answers: &mpsc::UnboundedSender<Answer>,
) -> Result<Answer> {
    let store = &host.images;
    let images = match request? {
        Request::Pods => return Ok(Answer::Pods(host.engine.list().await?)),
        Request::Events => return Ok(Answer::Events(host.events.list())),
        Request::Driver => return Ok(Answer::Driver(host.driver.get().copied())),
        Request::UserNamespaces => {
            return Ok(Answer::UserNamespaces(host.engine.user_namespaces().is_ok()));
        }
        Request::Usage => return Ok(Answer::Usage(host.engine.usage().await?)),
        Request::Session { .. } | Request::Forward { .. } => bail!("this request begins a stream"),
        Request::Stop { sandbox } => {
            host.engine.stop_sandbox(&sandbox).await?;
            Vec::new()
        }
        Request::Discard { sandbox } => {
            host.engine.remove_sandbox(&sandbox).await?;
            Vec::new()
        }
        Request::Checkpoint { container, location, timeout } => {
            host.engine.checkpoint(&container, Checkpoint { location, timeout }).await?;
            Vec::new()
        }
        Request::Status { image } => store.status(&image).await?.into_iter().collect(),
        Request::List => store.list().await?,
        Request::Pull { image, login } => {
            let answers = answers.clone();
            let progress: ProgressSink = Arc::new(move |progress| {
                let (received_bytes, total_bytes) = (progress.received_bytes, progress.total_bytes);
                // The client may be gone; the pull goes on for whoever asks next.
                let _ = answers.send(Answer::Progress { received_bytes, total_bytes });
            });
            let basic = |Login { username, password }| Credentials::Basic { username, password };
            let credentials = login.map(basic).into_iter().collect();
            vec![store.pull(&image, credentials, Some(progress)).await?.image]
        }
        Request::Import { archive } => {
            let file = File::open(&archive);
            store.import(file.with_context(|| format!("opening {}", archive.display()))?).await?
        }
        Request::Remove { image } => {
            store.remove(&image).await?;
            Vec::new()
        }
    };
    Ok(Answer::Images(images))
}

/// Reads a line of a bounded length.
async fn read_request<R: AsyncRead + Unpin>(reader: &mut BufReader<R>) -> Result<Request> {
    let mut line = Vec::new();
    reader.take(MAX_REQUEST_BYTES).read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line).context("not a request")
}

/// Asks for images; `progress` sees bytes received and bytes in all.
pub(crate) async fn images(
    places: &Places,
    request: &Request,
    mut progress: impl FnMut(u64, u64),
) -> Result<Vec<Image>> {
    match ask(places, request, &mut progress).await? {
        Answer::Images(images) => Ok(images),
        other => Err(unexpected(&other)),
    }
}

/// Asks for all sandboxes.
pub(crate) async fn pods(places: &Places) -> Result<Vec<SandboxStatus>> {
    match ask(places, &Request::Pods, &mut |_, _| ()).await? {
        Answer::Pods(pods) => Ok(pods),
        other => Err(unexpected(&other)),
    }
}

/// Asks what the pods use.
pub(crate) async fn usage(places: &Places) -> Result<Vec<PodUsage>> {
    match ask(places, &Request::Usage, &mut |_, _| ()).await? {
        Answer::Usage(pods) => Ok(pods),
        other => Err(unexpected(&other)),
    }
}

/// Asks what the agent has recorded; nobody else knows.
pub(crate) async fn events(places: &Places) -> Result<Vec<Recorded>> {
    let path = places.run_dir.join("agent.sock");
    let stream = UnixStream::connect(&path).await.with_context(|| {
        format!("events are kept by the agent, and none answers at {}", path.display())
    })?;
    match exchange(stream, &Request::Events, &mut |_, _| ()).await? {
        Answer::Events(events) => Ok(events),
        other => Err(unexpected(&other)),
    }
}

/// Sends a request that begins a stream. Its connection stays open: to the agent, or, where none runs,
/// to a host opened for it.
pub(crate) async fn connect(places: &Places, request: &Request) -> Result<DuplexStream> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    match UnixStream::connect(places.run_dir.join("agent.sock")).await {
        Ok(mut stream) => {
            let mut theirs = theirs;
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut theirs, &mut stream).await;
            });
        }
        Err(_) => {
            let host = Arc::new(Host::open(places, Path::new("/etc/resolv.conf")).await?);
            tokio::spawn(converse(host, theirs));
        }
    }
    let mut ours = ours;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    ours.write_all(&line).await?;
    Ok(ours)
}

/// Why an answer is of no use.
pub(crate) fn unexpected(answer: &Answer) -> anyhow::Error {
    match answer {
        Answer::Failed(message) => anyhow!(message.clone()),
        _ => anyhow!("the agent is of another version: it answered something else"),
    }
}

/// Asks the agent of these places, or, where none runs, a host opened for this one request.
async fn ask(
    places: &Places,
    request: &Request,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Answer> {
    match ask_agent(places, request, progress).await? {
        Some(answer) => Ok(answer),
        None => {
            let host = Host::open(places, Path::new("/etc/resolv.conf")).await?;
            ask_host(host, request, progress).await
        }
    }
}

/// Asks the agent of these places; `None` where none runs.
pub(crate) async fn ask_agent(
    places: &Places,
    request: &Request,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Option<Answer>> {
    match UnixStream::connect(places.run_dir.join("agent.sock")).await {
        Ok(stream) => exchange(stream, request, progress).await.map(Some),
        Err(_) => Ok(None),
    }
}

/// Asks a host that was opened for this one request.
pub(crate) async fn ask_host(
    host: Host,
    request: &Request,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Answer> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::join!(exchange(ours, request, progress), converse(Arc::new(host), theirs)).0
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite,
    request: &Request,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Answer> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line)? {
            Answer::Progress { received_bytes, total_bytes } => {
                progress(received_bytes, total_bytes);
            }
            answer => return Ok(answer),
        }
    }
    bail!("the agent ended before it answered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_owns_a_state_directory_is_waited_for_and_not_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Places {
            state_dir: at("state"),
            run_dir: at("run"),
            log_dir: at("log"),
            log_links_dir: at("links"),
        };
        let first = Lock::take(&places).await.unwrap();
        let refused = Lock::take(&places).await.unwrap_err().to_string();
        assert!(refused.starts_with("another berth owns "), "{refused}");
        let release = async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(Lock::take(&places), release);
        assert!(second.is_ok());
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_listened_on_again_and_by_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
