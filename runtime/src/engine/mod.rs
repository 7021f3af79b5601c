//! Runs sandboxes and containers: [`Runtime`] over cgroups, shims, overlay layers and the pod network.
//!
//! The engine holds no process of a pod: each sandbox has a shim that outlives the agent, and
//! [`Engine::open`] finds sandboxes again from their records, their shims and the kernel. Every
//! operation writes what it is about to do to disk first ([`record`]) and runs as a task of its own,
//! so that a caller that gives up leaves nothing half done.
//!
//! [`sandbox`] and [`container`] are the two lives, [`spec`] is the pure part, [`recover`] is what
//! happens at start. CRI v1 `RuntimeService` says what the operations mean.

pub(crate) mod apparmor;
mod checkpoint;
mod checkpoint_documents;
mod container;
mod creation;
mod dial;
mod host;
mod image_volumes;
mod record;
mod recover;
mod resize;
mod sandbox;
pub(crate) mod selinux;
mod session;
mod shim;
mod spec;
mod stream;
mod usage;
mod user_ids;
mod volumes;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::container::Container;
use self::record::{Layout, Phase};
use self::sandbox::Sandbox;
use self::spec::HostFacts;
use self::user_ids::Pool;
use crate::cgroup::{GroupPath, Hierarchy};
use crate::disk;
use crate::executable::Executable;
use crate::images::Store;
use crate::interface::{
    Checkpoint, ContainerConfig, ContainerId, Exec, ExecOutput, OpenFiles, PodNetwork, PodUsage,
    Resize, Resources, Runtime, RuntimeError, RuntimeEvent, SandboxConfig, SandboxId,
    SandboxStatus, Session, StopSignal, Streams,
};

pub use self::host::Enforcement;

/// How many events a slow reader may be behind.
const EVENT_BACKLOG: usize = 1024;

/// How many checkpoints are made at once: each takes the room of a container's memory twice.
const CHECKPOINTS: usize = 2;

/// Where and with what the engine works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sandbox records, shim sockets, pinned namespaces: `/run/berth`.
    pub run_dir: PathBuf,
    /// Writable layers: `/var/lib/berth`.
    pub state_dir: PathBuf,
    /// `berth-oci`, from which shims are started.
    pub executable: Arc<Executable>,
    /// The cgroup v2 hierarchy.
    pub hierarchy: Hierarchy,
    /// What containers get as `/etc/resolv.conf` where the pod mounts none.
    pub resolv_conf: PathBuf,
    /// Where criu may be; the first that is there makes checkpoints.
    pub criu: Vec<PathBuf>,
}

/// The runtime of one node.
pub struct Engine {
    shared: Arc<Shared>,
    _closing: DropGuard,
}

/// What all operations work with.
struct Shared {
    layout: Layout,
    executable: Arc<Executable>,
    hierarchy: Hierarchy,
    resolv_conf: PathBuf,
    criu: Vec<PathBuf>,
    /// The turns of those who make checkpoints.
    checkpoints: Arc<Semaphore>,
    images: Arc<Store>,
    network: Arc<dyn PodNetwork>,
    facts: HostFacts,
    boot_id: String,
    /// The ids that pods with user namespaces get, or why there are no such pods here.
    user_ids: Result<Pool, String>,
    /// What the host's SELinux has for containers; none where it is off.
    selinux: Option<selinux::Contexts>,
    sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    /// Making and removing a pod's cgroup take turns: its sandboxes share it. Those of other pods seldom
    /// wait for it, as systemd may take its time.
    group_turns: [Mutex<()>; 64],
    events: broadcast::Sender<RuntimeEvent>,
    closing: CancellationToken,
}

/// Tries user namespaces, and reads which ids they may have.
async fn user_ids(executable: &Arc<Executable>, layout: &Layout) -> Result<Pool, String> {
    let (executable, layout) = (executable.clone(), layout.clone());
    let tried = tokio::task::spawn_blocking(move || {
        let directories = [&layout.run_dir, &layout.state_dir];
        for directory in directories {
            disk::make_private_dir(directory).map_err(|error| error.to_string())?;
        }
        host::can_map_ids(&executable, &directories.map(PathBuf::as_path))?;
        Ok(Pool::of_host())
    });
    tried.await.unwrap_or_else(|error| Err(error.to_string()))
}

impl Engine {
    /// Opens the engine and finds the sandboxes of an earlier run again: shims are reconnected, exits
    /// that happened meanwhile are learned, what was half made or half removed is removed. Torn
    /// records are set aside. Nothing is killed that was whole.
    ///
    /// # Errors
    /// When the directories cannot be used; never because of what is in them.
    pub async fn open(
        config: Config,
        images: Arc<Store>,
        network: Arc<dyn PodNetwork>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let closing = CancellationToken::new();
        let boot_id = host::boot_id().map_err(|e| failed("read the boot id", e))?;
        let layout = Layout { run_dir: config.run_dir, state_dir: config.state_dir };
        let shared = Arc::new(Shared {
            user_ids: user_ids(&config.executable, &layout).await,
            selinux: selinux::Contexts::of_host(),
            layout,
            facts: host::facts(&config.hierarchy),
            executable: config.executable,
            hierarchy: config.hierarchy,
            resolv_conf: config.resolv_conf,
            criu: config.criu,
            checkpoints: Arc::new(Semaphore::new(CHECKPOINTS)),
            images,
            network,
            boot_id,
            sandboxes: Mutex::default(),
            group_turns: std::array::from_fn(|_| Mutex::default()),
            events: broadcast::channel(EVENT_BACKLOG).0,
            closing: closing.clone(),
        });
        for warning in Enforcement::of(&shared.hierarchy).warnings() {
            tracing::warn!(warning, "not enforced on this host");
        }
        if let Err(why) = &shared.user_ids {
            tracing::warn!(why, "pods cannot have user namespaces on this host");
        }
        recover::run(&shared).await?;
        Ok(Arc::new(Self { shared, _closing: closing.drop_guard() }))
    }

    /// Whether pods can have user namespaces here, or why not.
    pub fn user_namespaces(&self) -> Result<(), &str> {
        self.shared.user_ids.as_ref().map(drop).map_err(String::as_str)
    }

    /// What this host will not enforce.
    pub fn enforcement(&self) -> Enforcement {
        Enforcement::of(&self.shared.hierarchy)
    }

    /// The absolute path of a container's current log file.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`].
    pub fn log_path(&self, container: &ContainerId) -> Result<PathBuf, RuntimeError> {
        let (sandbox, container) = self.shared.container(container)?;
        Ok(sandbox.config.log_directory.join(container.config().log_path))
    }
}

impl Shared {
    fn sandbox(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        lock(&self.sandboxes).get(id).cloned()
    }

    fn container(&self, id: &ContainerId) -> Result<(Arc<Sandbox>, Arc<Container>), RuntimeError> {
        let sandboxes: Vec<_> = lock(&self.sandboxes).values().cloned().collect();
        sandboxes
            .into_iter()
            .find_map(|sandbox| sandbox.container(id).map(|found| (sandbox, found)))
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    /// The turn of whoever makes or removes this cgroup.
    fn turn_of(&self, cgroup: &Path) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        cgroup.hash(&mut hasher);
        let count = self.group_turns.len();
        let index = usize::try_from(hasher.finish() % count as u64).unwrap_or_default();
        lock(&self.group_turns[index])
    }

    fn announce(&self, event: RuntimeEvent) {
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    fn statuses(&self, wanted: impl Fn(&Sandbox) -> bool) -> Vec<SandboxStatus> {
        let sandboxes: Vec<_> = lock(&self.sandboxes).values().cloned().collect();
        let mut statuses: Vec<_> = sandboxes
            .iter()
            .filter(|sandbox| sandbox.phase() != Phase::Making && wanted(sandbox))
            .map(|sandbox| sandbox.status())
            .collect();
        statuses.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        statuses
    }
}

/// Runs an operation to its end, whatever becomes of the caller.
async fn to_the_end<T: Send + 'static>(
    operation: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::spawn(operation).await {
        Ok(outcome) => outcome,
        Err(error) => Err(failed("run an operation", error)),
    }
}

#[async_trait]
impl Runtime for Engine {
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        to_the_end(sandbox::run(self.shared.clone(), config)).await
    }

    async fn stop_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        match self.shared.sandbox(sandbox) {
            Some(sandbox) => to_the_end(sandbox::stop(self.shared.clone(), sandbox)).await,
            None => Ok(()),
        }
    }

    async fn remove_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        match self.shared.sandbox(sandbox) {
            Some(sandbox) => to_the_end(sandbox::remove(self.shared.clone(), sandbox)).await,
            None => Ok(()),
        }
    }

    async fn weigh_class(&self, cgroup: &Path, cpu_weight: u64) -> Result<(), RuntimeError> {
        let operation = || format!("set the weight of {}", cgroup.display());
        let group = GroupPath::try_from(cgroup).map_err(|error| failed(operation(), error))?;
        let hierarchy = self.shared.hierarchy.clone();
        let weigh = move || hierarchy.weigh(&group, cpu_weight).map_err(std::io::Error::other);
        disk::blocking(weigh).await.map_err(|error| failed(operation(), error))
    }

    async fn limit_class(&self, cgroup: &Path, limits: &Resources) -> Result<bool, RuntimeError> {
        let operation = || format!("limit {}", cgroup.display());
        let group = GroupPath::try_from(cgroup).map_err(|error| failed(operation(), error))?;
        let (hierarchy, limits) = (self.shared.hierarchy.clone(), limits.clone());
        let limit = move || {
            let (most, used) = (limits.memory_limit_bytes, hierarchy.memory_in_use(&group));
            if let (Some(most), Some(used)) = (most, used)
                && used > most
            {
                let why = format!("{used} bytes are in use, which is more than {most}");
                return Err(std::io::Error::other(why));
            }
            hierarchy.ensure(&group, &limits).map_err(std::io::Error::other)
        };
        if self.shared.hierarchy.available().is_empty() {
            return Ok(false);
        }
        disk::blocking(limit).await.map_err(|error| failed(operation(), error))?;
        Ok(true)
    }

    async fn resize(&self, sandbox: &SandboxId, sizes: Vec<Resize>) -> Result<(), RuntimeError> {
        let missing = || RuntimeError::NotFound(format!("sandbox {sandbox}"));
        let sandbox = self.shared.sandbox(sandbox).ok_or_else(missing)?;
        to_the_end(resize::resize(self.shared.clone(), sandbox, sizes)).await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let missing = || RuntimeError::NotFound(format!("sandbox {sandbox}"));
        let sandbox = self.shared.sandbox(sandbox).ok_or_else(missing)?;
        to_the_end(creation::create(self.shared.clone(), sandbox, config)).await
    }

    async fn start_container(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let (sandbox, container) = self.shared.container(container)?;
        to_the_end(container::start(sandbox, container)).await
    }

    async fn stop_container(
        &self,
        container: &ContainerId,
        signal: StopSignal,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let Ok((sandbox, container)) = self.shared.container(container) else {
            return Ok(());
        };
        let stop = container::Stop { signal, grace };
        to_the_end(container::stop(self.shared.clone(), sandbox, container, stop)).await
    }

    async fn remove_container(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let Ok((sandbox, container)) = self.shared.container(container) else {
            return Ok(());
        };
        to_the_end(container::remove(self.shared.clone(), sandbox, container)).await
    }

    async fn exec_sync(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError> {
        let (sandbox, container) = self.shared.container(container)?;
        container::exec_sync(&sandbox, &container, command, timeout).await
    }

    async fn dial(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream, RuntimeError> {
        let missing = || RuntimeError::NotFound(format!("sandbox {sandbox}"));
        let sandbox = self.shared.sandbox(sandbox).ok_or_else(missing)?;
        dial::loopback(&sandbox, port).await
    }

    async fn exec(&self, container: &ContainerId, exec: Exec) -> Result<Session, RuntimeError> {
        let (sandbox, container) = self.shared.container(container)?;
        session::exec(&sandbox, &container, exec).await
    }

    async fn attach(
        &self,
        container: &ContainerId,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        let (sandbox, container) = self.shared.container(container)?;
        session::attach(&sandbox, &container, streams).await
    }

    async fn reopen_log(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let (sandbox, container) = self.shared.container(container)?;
        session::reopen_log(&sandbox, &container).await
    }

    async fn checkpoint(
        &self,
        container: &ContainerId,
        checkpoint: Checkpoint,
    ) -> Result<(), RuntimeError> {
        let found = self.shared.container(container)?;
        to_the_end(checkpoint::checkpoint(self.shared.clone(), found, checkpoint)).await
    }

    fn writable_layer(&self, container: &ContainerId) -> Option<PathBuf> {
        Some(self.shared.layout.written_files(container))
    }

    async fn usage(&self) -> Result<Vec<PodUsage>, RuntimeError> {
        let shared = self.shared.clone();
        let read = disk::blocking(move || Ok(usage::read(&shared))).await;
        read.map_err(|error| failed("read what pods have used", error))
    }

    async fn open_files(&self) -> Result<BTreeMap<ContainerId, OpenFiles>, RuntimeError> {
        let shared = self.shared.clone();
        let read = disk::blocking(move || Ok(usage::open_files(&shared))).await;
        read.map_err(|error| failed("count what containers have open", error))
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.shared.statuses(|_| true))
    }

    async fn pod(&self, uid: &str) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.shared.statuses(|sandbox| sandbox.config.pod.uid == uid))
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.shared.events.subscribe()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(
    operation: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RuntimeError {
    RuntimeError::Host { operation: operation.into(), source: source.into() }
}

/// What went wrong in a teardown that went on nevertheless.
#[derive(Debug, Default)]
struct Failures(Vec<String>);

impl Failures {
    /// Notes a failure.
    fn note<T, E: std::error::Error>(&mut self, what: &str, outcome: Result<T, E>) {
        if let Err(error) = outcome {
            self.0.push(format!("{what}: {}", chain(&error)));
        }
    }

    fn into_result(self, operation: String) -> Result<(), RuntimeError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(failed(operation, self.0.join("; "))),
        }
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// `length` random hexadecimal digits.
fn random_digits(length: usize) -> String {
    let digit = |_| char::from_digit(rand::random::<u32>() % 16, 16).unwrap_or('0');
    (0..length).map(digit).collect()
}
