//! A container's life: Created → Running → Exited, as the shim tells it; and its files.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_oci::protocol::{
    self, ContainerPhase, ExecSync, ExitRecord, FailureKind, Reply, Request, SignalTarget,
};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::Instant;

use super::record::{self, ContainerDir, Phase};
use super::sandbox::{KILL_PATIENCE, Sandbox};
use super::session::{refusal, running_shim};
use super::shim::{self, Shim};
use super::{Failures, Shared, chain, failed, lock, volumes};
use crate::cgroup::GroupPath;
use crate::disk;
use crate::images::Hold;
use crate::interface::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, ExecOutput, ResolvedUser,
    Resources, RuntimeError, SandboxId, StopSignal,
};

const START_PATIENCE: Duration = Duration::from_secs(60);
pub(super) const ORDER_PATIENCE: Duration = Duration::from_secs(20);
/// What an exec may take beyond its own timeout.
const EXEC_MARGIN: Duration = Duration::from_secs(15);
/// What is kept of each stream, the rest being dropped as containerd drops what exceeds its 16 MiB:
/// with base64 both streams still fit into one frame.
const EXEC_OUTPUT_BYTES: u64 = 5 << 20;
/// Killed for want of a shim: 128 + SIGKILL.
const KILLED: i32 = 137;

/// A container in memory.
pub(super) struct Container {
    pub(super) id: ContainerId,
    pub(super) dir: ContainerDir,
    record: Mutex<record::Container>,
    state: watch::Sender<ContainerState>,
    /// One start, stop signal or removal at a time.
    turn: AsyncMutex<()>,
    /// It was removed before it ran. Its end is nobody's: its owner sees it as created until it is gone.
    withdrawn: AtomicBool,
    hold: Mutex<Option<Hold>>,
}

impl Container {
    /// From its record; it counts as created until the shim says more.
    pub(super) fn of(record: record::Container, dir: ContainerDir, hold: Hold) -> Arc<Self> {
        let state = record.ended.clone().unwrap_or(ContainerState::Created);
        Arc::new(Self {
            id: record.id.clone(),
            dir,
            record: Mutex::new(record),
            state: watch::Sender::new(state),
            turn: AsyncMutex::default(),
            withdrawn: AtomicBool::new(false),
            hold: Mutex::new(Some(hold)),
        })
    }

    pub(super) fn config(&self) -> ContainerConfig {
        lock(&self.record).config.clone()
    }

    /// Whether its owner was, or is about to be, told of it.
    pub(super) fn is_made(&self) -> bool {
        lock(&self.record).phase != Phase::Making
    }

    pub(super) fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    pub(super) fn status(&self, sandbox: &SandboxId) -> ContainerStatus {
        let record = lock(&self.record);
        ContainerStatus {
            id: self.id.clone(),
            sandbox: sandbox.clone(),
            config: record.config.clone(),
            state: match self.withdrawn.load(Ordering::Relaxed) {
                true => ContainerState::Created,
                false => self.state(),
            },
            created_at: record.created_at,
            user: record.user.clone(),
        }
    }

    /// Moves on to a later state; going back, or ending twice, changes nothing.
    fn advance(&self, next: ContainerState) -> bool {
        let rank = |state: &ContainerState| match state {
            ContainerState::Created => 0,
            ContainerState::Running { .. } => 1,
            ContainerState::Exited { .. } => 2,
        };
        self.state.send_if_modified(|state| {
            let later = rank(&next) > rank(state);
            if later {
                *state = next;
            }
            later
        })
    }

    /// Takes an exit that the shim tells. Whether it was news.
    pub(super) fn exited(&self, exit: ExitRecord) -> bool {
        self.advance(ContainerState::Exited {
            started_at: exit.started_at,
            finished_at: exit.finished_at,
            exit_code: exit.exit_code,
            oom_killed: exit.oom_killed,
            message: exit.message,
        })
    }

    /// Takes the state that the shim tells at a greeting. Whether an exit was news.
    pub(super) fn told(&self, phase: ContainerPhase) -> bool {
        match phase {
            ContainerPhase::Created => false,
            ContainerPhase::Running { started_at } => {
                self.advance(ContainerState::Running { started_at });
                false
            }
            ContainerPhase::Exited(exit) => self.exited(exit),
        }
    }

    /// Records that it ended with its shim. Whether it was news.
    pub(super) async fn killed(&self, message: &str) -> bool {
        let started_at = match self.state() {
            ContainerState::Exited { .. } => return false,
            ContainerState::Running { started_at } => started_at,
            ContainerState::Created => 0,
        };
        let ended = ContainerState::Exited {
            started_at,
            finished_at: disk::now_nanoseconds(),
            exit_code: KILLED,
            oom_killed: false,
            message: message.to_owned(),
        };
        let record = {
            let mut record = lock(&self.record);
            record.ended = Some(ended.clone());
            record.clone()
        };
        if let Err(error) = self.write(record).await {
            tracing::warn!(container = %self.id, %error, "the container's record is not written");
        }
        self.advance(ended)
    }

    async fn write(&self, record: record::Container) -> io::Result<()> {
        let path = self.dir.record();
        disk::blocking(move || disk::write_run_json(&path, &record)).await
    }

    async fn enter(&self, phase: Phase) -> io::Result<()> {
        let record = {
            let mut record = lock(&self.record);
            record.phase = phase;
            record.clone()
        };
        self.write(record).await
    }

    async fn wait_for_exit(&self) {
        let mut states = self.state.subscribe();
        // The sender lives as long as this container.
        let _ = states.wait_for(|s| matches!(s, ContainerState::Exited { .. })).await;
    }

    /// Removes mounts, writable layer and record. Idempotent.
    pub(super) async fn remove_files(&self, shared: &Shared) -> io::Result<()> {
        let layer = shared.layout.writable_layer(&self.id);
        let dir = self.dir.clone();
        disk::blocking(move || {
            disk::remove_tree(&layer)?;
            clear(&dir)
        })
        .await?;
        drop(lock(&self.hold).take());
        Ok(())
    }
}

impl Container {
    pub(super) fn record_copy(&self) -> record::Container {
        lock(&self.record).clone()
    }

    /// Notes what it is held to from now on.
    pub(super) async fn resized(
        &self,
        resources: Resources,
        labels: BTreeMap<String, String>,
    ) -> io::Result<()> {
        let record = {
            let mut record = lock(&self.record);
            record.config.resources = resources;
            record.config.labels.extend(labels);
            record.clone()
        };
        self.write(record).await
    }

    /// Takes what the shim made of it.
    pub(super) async fn accept(
        &self,
        user: protocol::ResolvedUser,
        stop_signal: i32,
    ) -> Result<(), RuntimeError> {
        {
            let mut record = lock(&self.record);
            record.stop_signal = stop_signal;
            record.user = Some(ResolvedUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: user.supplemental_groups,
            });
        }
        let written = self.enter(Phase::Ready).await;
        written.map_err(|e| failed(format!("record container {}", self.id), e))
    }
}

/// Removes a container's mounts and its directories below the sandbox's. Blocking.
pub(super) fn clear(dir: &ContainerDir) -> io::Result<()> {
    volumes::unmount_below(dir.volumes())?;
    disk::remove_tree(dir.volumes())?;
    disk::remove_tree(dir.path())
}

/// Asks the shim to forget a container, which may take a moment to end.
pub(super) async fn delete(shim: &Shim, id: &str) -> Result<(), shim::Error> {
    let deadline = Instant::now() + ORDER_PATIENCE;
    loop {
        let request = Request::Delete { id: id.to_owned() };
        match shim.order(&request, ORDER_PATIENCE).await {
            Err(shim::Error::Refused(failure))
                if failure.kind == FailureKind::State && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Lets a created container run.
pub(super) async fn start(
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
) -> Result<(), RuntimeError> {
    let _shared_gate = sandbox.gate.read().await;
    let _turn = container.turn.lock().await;
    if container.state() != ContainerState::Created {
        let message = format!("container {} is not in the state created", container.id);
        return Err(RuntimeError::Invalid(message));
    }
    let gone = || RuntimeError::Invalid(format!("sandbox {} is not ready", sandbox.id));
    let shim = sandbox.shim().ok_or_else(gone)?;
    let request = Request::Start { id: container.id.to_string() };
    let answer = shim.ask(&request, Some(START_PATIENCE)).await;
    let started = answer.and_then(|reply| match reply {
        Reply::Started { started_at } => Ok(started_at),
        Reply::Done => Ok(disk::now_nanoseconds()),
        _ => Err(shim::Error::Protocol),
    });
    match started {
        Ok(started_at) => {
            container.advance(ContainerState::Running { started_at });
            Ok(())
        }
        Err(shim::Error::Refused(failure)) if failure.kind == FailureKind::Start => {
            let exit_code = failure.exit_code.unwrap_or(128);
            container.exited(ExitRecord {
                started_at: 0,
                finished_at: disk::now_nanoseconds(),
                exit_code,
                oom_killed: false,
                message: failure.message.clone(),
            });
            Err(RuntimeError::Start { exit_code, message: failure.message })
        }
        Err(error) => Err(failed(format!("start container {}", container.id), error)),
    }
}

/// How to stop a container.
pub(super) struct Stop {
    pub(super) signal: StopSignal,
    pub(super) grace: Duration,
}

/// Asks a container to end, and ends it after the grace. Several calls each keep their own grace; the
/// shortest one ends it.
pub(super) async fn stop(
    shared: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    stop: Stop,
) -> Result<(), RuntimeError> {
    if matches!(container.state(), ContainerState::Exited { .. }) {
        return Ok(());
    }
    let running = matches!(container.state(), ContainerState::Running { .. });
    if running && !stop.grace.is_zero() {
        let signal = match stop.signal {
            StopSignal::Signal(number) => number,
            StopSignal::ImageDefault => match lock(&container.record).stop_signal {
                0 => 15,
                number => number,
            },
        };
        let asked = signal_one(&sandbox, &container, signal, SignalTarget::Init).await;
        if let Err(error) = asked {
            tracing::warn!(container = %container.id, error = chain(&error), "the stop signal failed");
        }
        if tokio::time::timeout(stop.grace, container.wait_for_exit()).await.is_ok() {
            return Ok(());
        }
    }
    kill(&shared, &sandbox, &container).await
}

async fn signal_one(
    sandbox: &Sandbox,
    container: &Container,
    signal: i32,
    target: SignalTarget,
) -> Result<(), shim::Error> {
    let Some(shim) = sandbox.shim() else {
        return Ok(());
    };
    let request = Request::Signal { id: container.id.to_string(), signal, target };
    shim.order(&request, ORDER_PATIENCE).await
}

/// Kills the whole container and waits for its end.
async fn kill(
    shared: &Arc<Shared>,
    sandbox: &Sandbox,
    container: &Container,
) -> Result<(), RuntimeError> {
    let asked = signal_one(sandbox, container, 9, SignalTarget::All).await;
    if let Err(error) = asked {
        tracing::warn!(container = %container.id, error = chain(&error), "the shim did not kill");
        let path = sandbox.group_of(&container.id);
        let hierarchy = shared.hierarchy.clone();
        let killed = tokio::task::spawn_blocking(move || {
            hierarchy.kill(&GroupPath::try_from(path.as_path())?, KILL_PATIENCE)
        });
        if let Ok(Err(error)) = killed.await {
            return Err(failed(format!("kill container {}", container.id), error));
        }
        // Of what the shim does not know it tells no end either.
        if error.is_unknown() && container.killed("the shim does not know it").await {
            shared.announce(sandbox.exit_of(container));
        }
    }
    // Of what it was still making the shim tells no end, and forgets it with that.
    if !container.is_made() {
        return Ok(());
    }
    let ended = tokio::time::timeout(KILL_PATIENCE, container.wait_for_exit()).await;
    ended.map_err(|elapsed| {
        failed(format!("wait for the end of container {}", container.id), elapsed)
    })
}

/// Removes a container, ending it first where it still runs.
pub(super) async fn remove(
    shared: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
) -> Result<(), RuntimeError> {
    let _shared_gate = sandbox.gate.read().await;
    let _turn = container.turn.lock().await;
    let operation = format!("remove container {}", container.id);
    let state = container.state();
    if matches!(state, ContainerState::Created) {
        container.withdrawn.store(true, Ordering::Relaxed);
    }
    if !matches!(state, ContainerState::Exited { .. }) {
        kill(&shared, &sandbox, &container).await?;
    }
    let mut failures = Failures::default();
    failures.note("write the record", container.enter(Phase::Removing).await);
    match sandbox.shim() {
        Some(shim) => failures.note("delete", delete(&shim, container.id.as_str()).await),
        None => {
            let path = sandbox.group_of(&container.id);
            let hierarchy = shared.hierarchy.clone();
            let remove = move || hierarchy.remove(&GroupPath::try_from(path.as_path())?);
            let removed = tokio::task::spawn_blocking(remove).await;
            failures.note("remove the cgroup", removed.unwrap_or(Ok(())));
        }
    }
    failures.note("remove the files", container.remove_files(&shared).await);
    failures.into_result(operation)?;
    sandbox.forget(&container.id);
    Ok(())
}

/// Runs a command in a running container.
pub(super) async fn exec_sync(
    sandbox: &Sandbox,
    container: &Container,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, RuntimeError> {
    let operation = format!("execute a command in container {}", container.id);
    let shim = running_shim(sandbox, container)?;
    let milliseconds = |t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX).max(1);
    let request = Request::ExecSync(Box::new(ExecSync {
        id: container.id.to_string(),
        args: command,
        timeout_ms: timeout.map(milliseconds),
        output_limit_bytes: EXEC_OUTPUT_BYTES,
        once: None,
    }));
    let reply = shim.ask(&request, timeout.map(|t| t.saturating_add(EXEC_MARGIN))).await;
    match reply {
        Ok(Reply::Executed { timed_out: true, .. }) => {
            let limit = timeout.unwrap_or_default();
            Err(failed(operation, format!("command timed out: timeout {limit:?} exceeded")))
        }
        Ok(Reply::Executed { exit_code, stdout, stderr, .. }) => {
            let decode = |text: String| STANDARD.decode(text);
            let stdout = decode(stdout).map_err(|e| failed(operation.clone(), e))?;
            let stderr = decode(stderr).map_err(|e| failed(operation, e))?;
            Ok(ExecOutput { exit_code, stdout, stderr })
        }
        Ok(_) => Err(failed(operation, shim::Error::Protocol)),
        Err(error) => Err(refusal(operation, error)),
    }
}
