//! A running container as an archive (CRI `CheckpointContainer`, KEP-2008); it runs on.
//!
//! ```text
//! <state>/checkpointing/<container>/criu.log      locked for as long as criu is at work
//!                                   hold          criu's action script
//!                                   checkpoint/, dump.log, stats-dump     criu's
//!                                   rootfs-diff.tar, archive.tar          ours
//! ```
//! ```text
//! stage ─► start criu ─► stands still: the layer ─► goes on ─► same process? ─► pack ─► rename
//!    └─────────┴──────────────┴──────────────────────┴── any failure ─► goes on, stage removed
//! ```
//! The archive appears under its name whole. A time that is over lets the container go on and fails the
//! call; criu is left to end by itself ([`crate::checkpoint`] says why), and the stage goes with it. An
//! agent that was killed leaves the stage to the next one ([`sweep`]).

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader};
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_oci::protocol::{ContainerPhase, Reply, Request};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use tokio::time::Instant;

use super::container::{Container, ORDER_PATIENCE};
use super::record::Layout;
use super::sandbox::Sandbox;
use super::{Shared, chain, checkpoint_documents as documents, failed, shim};
use crate::checkpoint::{self, Dump, Error, Files, Limits, Running};
use crate::disk;
use crate::interface::{Checkpoint, ContainerState, RuntimeError};

/// The longest that a checkpoint may take, whatever is asked.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How often a stage is looked at whose criu is still at work.
const PAUSE: Duration = Duration::from_millis(200);
/// The numbers of devices that a devpts has.
const SLAVES: RangeInclusive<u32> = 136..=143;
/// The largest specification.
const MAX_SPEC_BYTES: u64 = 16 << 20;

/// A directory that a checkpoint is made in.
#[derive(Debug, Clone)]
struct Stage(PathBuf);

impl Stage {
    fn log(&self) -> PathBuf {
        self.0.join("criu.log")
    }

    fn hold(&self) -> PathBuf {
        self.0.join("hold")
    }

    fn images(&self) -> PathBuf {
        self.0.join("checkpoint")
    }

    fn dump_log(&self) -> PathBuf {
        self.0.join("dump.log")
    }

    fn layer(&self) -> PathBuf {
        self.0.join("rootfs-diff.tar")
    }

    fn archive(&self) -> PathBuf {
        self.0.join("archive.tar")
    }

    /// Makes the directory, which must not be there, and locks its log. Blocking.
    fn make(&self) -> io::Result<File> {
        if let Some(parent) = self.0.parent() {
            disk::make_private_dir(parent)?;
        }
        for directory in [&self.0, &self.images()] {
            let made = DirBuilder::new().mode(0o700).create(directory);
            made.map_err(|error| disk::at(directory, error))?;
        }
        let log = new_file(&self.log())?;
        flock(&log, FlockOperation::NonBlockingLockExclusive)?;
        checkpoint::write_hold(&self.hold())?;
        Ok(log)
    }

    async fn remove(self) {
        let path = self.0.clone();
        if let Err(error) = disk::blocking(move || disk::remove_tree(&path)).await {
            tracing::warn!(path = %self.0.display(), %error, "what a checkpoint was made in stays");
        }
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|error| disk::at(path, error))
}

/// Writes a container's checkpoint.
pub(super) async fn checkpoint(
    shared: Arc<Shared>,
    (sandbox, container): (Arc<Sandbox>, Arc<Container>),
    wanted: Checkpoint,
) -> Result<(), RuntimeError> {
    let operation = format!("checkpoint container {}", container.id);
    let ContainerState::Running { started_at } = container.state() else {
        let message = format!("container {} is not running: nothing to checkpoint", container.id);
        return Err(RuntimeError::Invalid(message));
    };
    if !wanted.location.is_absolute() || wanted.location.file_name().is_none() {
        let message = format!("{:?} is no absolute path of an archive", wanted.location);
        return Err(RuntimeError::Invalid(message));
    }
    let deadline = Instant::now() + wanted.timeout.min(LONGEST);
    let late = || failed(operation.clone(), Error::Deadline(wanted.timeout));
    // Held until the stage is gone: that is what takes room.
    let turn = tokio::time::timeout_at(deadline, shared.checkpoints.clone().acquire_owned());
    let Ok(turn) = turn.await else { return Err(late()) };
    let stage = Stage(shared.layout.checkpointing().join(container.id.as_str()));
    let making = stage.clone();
    let log = match disk::blocking(move || making.make()).await {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let message = format!("container {} is being checkpointed already", container.id);
            return Err(RuntimeError::Invalid(message));
        }
        Err(error) => {
            stage.remove().await;
            return Err(failed(operation, error));
        }
    };
    let capture =
        Capture { shared, sandbox, container, wanted, stage: stage.clone(), deadline, started_at };
    let (outcome, running) = capture.run(log).await;
    match running {
        None => stage.remove().await,
        Some(running) => {
            tokio::spawn(async move {
                leave(running, stage).await;
                drop(turn);
            });
        }
    }
    outcome.map_err(|error| failed(operation, error))
}

/// Lets the container go on and criu come to its end.
async fn leave(mut running: Running, stage: Stage) {
    running.go_on();
    if let Err(error) = running.ended().await {
        tracing::warn!(error = chain(&error), "a checkpoint is not waited for");
    }
    stage.remove().await;
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A checkpoint that is being made.
struct Capture {
    shared: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    wanted: Checkpoint,
    stage: Stage,
    deadline: Instant,
    started_at: i64,
}

impl Capture {
    /// Makes it. What is returned besides is a criu that is still at work.
    async fn run(self, log: File) -> (Result<(), Failure>, Option<Running>) {
        let (pid, mut running) = match self.start(log).await {
            Ok(started) => started,
            Err(error) => return (Err(error), None),
        };
        match self.dump(&mut running).await {
            Ok(()) => (self.finish(pid).await, None),
            Err((error, End::Over)) => (Err(error), None),
            Err((error, End::AtWork)) => (Err(error), Some(running)),
        }
    }

    async fn start(&self, log: File) -> Result<(i32, Running), Failure> {
        let pid = self.pid().await?;
        let candidates = self.shared.criu.clone();
        let stage = self.stage.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let program = checkpoint::find(&candidates)?.to_owned();
            let (external, without_connections) = foreign(pid)?;
            fs::write(stage.images().join("descriptors.json"), descriptors(pid)?)?;
            let dump = Dump {
                pid,
                images: stage.images(),
                work: stage.0.clone(),
                hold: stage.hold(),
                external,
                without_connections,
            };
            Ok::<_, Failure>((program, dump))
        });
        let (program, dump) = prepared.await??;
        // The same process still: what was read is its.
        if self.pid().await? != pid {
            return Err(Error::Ended.into());
        }
        Ok((pid, checkpoint::start(&program, &dump, log)?))
    }

    /// The container's first process, as its parent knows it.
    async fn pid(&self) -> Result<i32, Failure> {
        let shim = self.sandbox.shim().ok_or(Error::Ended)?;
        let Reply::Shim { containers, .. } =
            shim.ask(&Request::Hello, Some(ORDER_PATIENCE)).await?
        else {
            return Err(shim::Error::Protocol.into());
        };
        let running = containers.into_iter().find(|told| {
            let runs = matches!(told.state, ContainerPhase::Running { .. });
            told.id == self.container.id.as_str() && runs && told.pid > 0
        });
        Ok(running.ok_or(Error::Ended)?.pid)
    }

    /// Waits for the dump, and takes the layer while the container stands still.
    async fn dump(&self, running: &mut Running) -> Result<(), (Failure, End)> {
        let at_work = |error: Failure| (error, End::AtWork);
        let late = || at_work(Error::Deadline(self.wanted.timeout).into());
        let stopped = tokio::time::timeout_at(self.deadline, running.is_stopped()).await;
        let is_stopped = stopped.map_err(|_| late())?.map_err(|error| at_work(error.into()))?;
        let layer = match is_stopped {
            true => self.layer().await,
            false => Ok(()),
        };
        running.go_on();
        layer.map_err(at_work)?;
        let ended = tokio::time::timeout_at(self.deadline, running.ended()).await;
        let status = ended.map_err(|_| late())?.map_err(|error| at_work(error.into()))?;
        if status.success() && is_stopped {
            return Ok(());
        }
        let logs = [self.stage.dump_log(), self.stage.log()];
        let refusal = disk::blocking(move || {
            Ok(checkpoint::refusal(status, &logs.each_ref().map(PathBuf::as_path)))
        });
        let error = refusal.await.map_or_else(Failure::from, Failure::from);
        Err((error, End::Over))
    }

    fn limits(&self) -> Limits {
        Limits { deadline: self.deadline.into_std() }
    }

    /// An error of writing, of which one is that time is over.
    fn writing(&self, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::TimedOut => Error::Deadline(self.wanted.timeout).into(),
            _ => error.into(),
        }
    }

    async fn layer(&self) -> Result<(), Failure> {
        let upper = self.shared.layout.written_files(&self.container.id);
        let (path, ids, limits) = (self.stage.layer(), self.sandbox.user_ids, self.limits());
        let written = disk::blocking(move || {
            checkpoint::write_layer(&upper, ids, (new_file(&path)?, limits))
        });
        let left_out = written.await.map_err(|error| self.writing(error))?;
        if left_out > 0 {
            tracing::warn!(container = %self.container.id, left_out, "files are not in the checkpoint");
        }
        Ok(())
    }

    /// Packs the archive and gives it its name.
    async fn finish(&self, pid: i32) -> Result<(), Failure> {
        // Its parent has not reaped it, so that the number was its all the time.
        if self.pid().await? != pid {
            return Err(Error::Ended.into());
        }
        let about = documents::About {
            record: self.container.record_copy(),
            pod: self.sandbox.config.pod.clone(),
            sandbox: self.sandbox.id.to_string(),
            log: self.sandbox.config.log_directory.join(self.container.config().log_path),
            pid,
            started_at: self.started_at,
        };
        let (stage, limits) = (self.stage.clone(), self.limits());
        let (location, spec) = (self.wanted.location.clone(), self.container.dir.spec());
        let packed = disk::blocking(move || {
            let documents = about.documents(&disk::read_limited(&spec, MAX_SPEC_BYTES)?)?;
            let (layer, dump_log) = (stage.layer(), stage.dump_log());
            let stats = stage.0.join("stats-dump");
            let files = Files {
                documents: &documents,
                copies: &[
                    ("rootfs-diff.tar", &layer),
                    ("container.log", &about.log),
                    ("dump.log", &dump_log),
                    ("stats-dump", &stats),
                ],
                images: &stage.images(),
                made_at: u64::try_from(disk::now_nanoseconds()).unwrap_or_default() / 1_000_000_000,
            };
            checkpoint::pack(&files, (new_file(&stage.archive())?, limits))?;
            give_name(&stage.archive(), &location)
        });
        packed.await.map_err(|error| self.writing(error))
    }
}

/// What has become of criu by a failure.
enum End {
    Over,
    AtWork,
}

/// Moves an archive where it is wanted; nothing that is there is replaced. Another file system gets a
/// copy, which is renamed there in turn. Blocking.
fn give_name(archive: &Path, location: &Path) -> io::Result<()> {
    let rename = |from: &Path| {
        let renamed = renameat_with(CWD, from, CWD, location, RenameFlags::NOREPLACE);
        renamed.map_err(|error| disk::at(location, error.into()))
    };
    match rename(archive) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        renamed => return renamed,
    }
    let mut name = location.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", disk::unique_suffix()));
    let beside = location.with_file_name(name);
    let copied = (|| {
        let mut copy = new_file(&beside)?;
        io::copy(&mut File::open(archive)?, &mut copy)?;
        copy.sync_all()?;
        rename(&beside)
    })();
    if copied.is_err() {
        // What failed is told; this may not have come to be.
        let _ = fs::remove_file(&beside);
    }
    copied
}

/// What of a process is not its container's own: mounts, namespaces that it joined, the terminal whose
/// other side its shim has, each in criu's words and under runc's names; and whether there are TCP
/// connections in its network. Blocking.
fn foreign(pid: i32) -> io::Result<(Vec<OsString>, bool)> {
    let of = PathBuf::from(format!("/proc/{pid}"));
    let own = Path::new("/proc/self");
    let read = |path: PathBuf| fs::read(&path).map_err(|error| disk::at(&path, error));
    let (mounts, host) = (read(of.join("mountinfo"))?, read(own.join("mountinfo"))?);
    let mut external = checkpoint::external_mounts(&mounts, &host);
    let namespace = |kind: &str| {
        let inode = |of: &Path| fs::metadata(of.join("ns").join(kind)).map(|found| found.ino());
        let (theirs, ours) = (inode(&of)?, inode(own)?);
        Ok::<_, io::Error>((theirs != ours).then_some(theirs))
    };
    if let Some(inode) = namespace("net")? {
        external.push(format!("net[{inode}]:extRootNetNS").into());
    }
    let status = fs::read_to_string(of.join("status"))?;
    if let Some(inode) = namespace("pid")?
        && !is_first(&status)
    {
        external.push(format!("pid[{inode}]:extRootPidNS").into());
    }
    external.extend(terminal(&of)?);
    let mut is_connected = false;
    for table in ["net/tcp", "net/tcp6"] {
        is_connected |= match File::open(of.join(table)) {
            Ok(table) => checkpoint::is_connected(BufReader::new(table))?,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
    }
    Ok((external, is_connected))
}

/// The terminal that a process has of its standard streams.
fn terminal(of: &Path) -> io::Result<Option<OsString>> {
    for number in 0..3 {
        let stream = match fs::metadata(of.join(format!("fd/{number}"))) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let is_terminal = SLAVES.contains(&rustix::fs::major(stream.rdev()));
        if stream.file_type().is_char_device() && is_terminal {
            return Ok(Some(format!("tty[{:x}:{:x}]", stream.rdev(), stream.dev()).into()));
        }
    }
    Ok(None)
}

/// Whether a process is the first of its PID namespace, by its status (proc_pid_status(5)).
fn is_first(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|numbers| numbers.split_ascii_whitespace().last()) == Some("1")
}

/// `descriptors.json`: what the standard streams are, by which runc finds them when it restores.
fn descriptors(pid: i32) -> io::Result<Vec<u8>> {
    let stream = |number: u32| match fs::read_link(format!("/proc/{pid}/fd/{number}")) {
        Ok(target) => Ok(target.to_string_lossy().into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    };
    let streams = [stream(0)?, stream(1)?, stream(2)?];
    Ok(serde_json::to_vec(&streams)?)
}

/// Removes what checkpoints of an earlier agent have left; where criu is still at work, once it has
/// ended.
pub(super) async fn sweep(layout: &Layout) {
    let directory = layout.checkpointing();
    let found = disk::blocking(move || disk::entries(&directory)).await;
    for (_, path) in found.unwrap_or_default() {
        let stage = Stage(path);
        let log = stage.log();
        match disk::blocking(move || checkpoint::is_over(&log)).await {
            Ok(false) => drop(tokio::spawn(await_end(stage))),
            _ => stage.remove().await,
        }
    }
}

async fn await_end(stage: Stage) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let log = stage.log();
        if disk::blocking(move || checkpoint::is_over(&log)).await.unwrap_or(true) {
            break;
        }
    }
    stage.remove().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_pid_namespace_is_told_by_its_last_number() {
        assert!(is_first("Name:\tsh\nNSpid:\t4711\t1\n"));
        assert!(is_first("NSpid:\t4711\t7\t1\n"));
        assert!(!is_first("NSpid:\t4711\t12\n"));
        assert!(!is_first("NSpid:\t11\n"));
        assert!(!is_first(""));
    }

    #[test]
    fn an_archive_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, location) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&archive, b"new").unwrap();
        fs::write(&location, b"old").unwrap();
        assert!(give_name(&archive, &location).is_err());
        assert_eq!(fs::read(&location).unwrap(), b"old");
        fs::remove_file(&location).unwrap();
        give_name(&archive, &location).unwrap();
        assert_eq!(fs::read(&location).unwrap(), b"new");
    }

    #[test]
    fn what_is_this_process_own_is_not_declared() {
        let pid = std::process::id().cast_signed();
        let (external, _) = foreign(pid).unwrap();
        assert!(external.iter().all(|told| told.to_string_lossy().starts_with("mnt[")));
        let streams: Vec<String> = serde_json::from_slice(&descriptors(pid).unwrap()).unwrap();
        assert_eq!(streams.len(), 3);
    }

    #[tokio::test]
    async fn what_was_left_is_removed_and_what_criu_holds_waits() {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            Layout { run_dir: dir.path().join("run"), state_dir: dir.path().join("state") };
        let (left, held) = (layout.checkpointing().join("a"), layout.checkpointing().join("b"));
        drop(Stage(left.clone()).make().unwrap());
        let lock = Stage(held.clone()).make().unwrap();
        sweep(&layout).await;
        assert!(!left.exists());
        assert!(held.exists());
        drop(lock);
        while held.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
