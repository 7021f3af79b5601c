//! A sandbox's life: run, stop, remove; and what happens when its shim is lost.
//!
//! ```text
//! run: record(Making) ─┬► cgroup ─────────────────┬► scope ───┬► record(Ready)
//!                      └► files ─► shim ─► events ┴► network ─┘
//!        └───────── any failure: tear down everything, as in remove ─────────┘
//! stop:   shim shut down ─► exits settled ─► network detached ─► unmounted ─► record(Stopped)
//! remove: stop ─► record(Removing) ─► cgroups ─► writable layers ─► directory
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_oci::protocol::{ContainerPhase, Event, PidNamespace, Request, ShimConfig, UserIds};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use super::container::Container;
use super::record::{self, Phase, SandboxDir};
use super::shim::{self, Events, Shim};
use super::{Failures, Shared, chain, failed, lock, random_digits, volumes};
use crate::cgroup::{GroupPath, units};
use crate::disk;
use crate::interface::{
    AttachRequest, ContainerId, NamespaceMode, PidMode, Resources, RuntimeError, RuntimeEvent,
    SandboxConfig, SandboxId, SandboxState, SandboxStatus,
};

/// How long a shim may take to kill its containers and end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);
/// How long killed processes may take to leave a cgroup.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A sandbox in memory.
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    /// What it was made from; [`Self::config`] has what it is held to now.
    pub(super) config: SandboxConfig,
    pub(super) dir: SandboxDir,
    boot_id: String,
    created_at: i64,
    pub(super) user_ids: Option<UserIds>,
    pub(super) selinux_level: Option<String>,
    /// Shared by what works in the sandbox, taken whole by what ends it.
    pub(super) gate: RwLock<()>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What the pod is held to, which may be other than what it was made with.
    resources: Resources,
    labels: BTreeMap<String, String>,
    phase: Phase,
    ips: Vec<IpAddr>,
    containers: Vec<Arc<Container>>,
    shim: Option<Arc<Shim>>,
    follower: Option<JoinHandle<()>>,
}

impl Sandbox {
    /// From its record.
    pub(super) fn of(record: record::Sandbox, dir: SandboxDir) -> Arc<Self> {
        let (resources, labels) = (record.config.resources.clone(), record.config.labels.clone());
        Arc::new(Self {
            id: record.id,
            config: record.config,
            dir,
            boot_id: record.boot_id,
            created_at: record.created_at,
            user_ids: record.user_ids,
            selinux_level: record.selinux_level,
            gate: RwLock::default(),
            inner: Mutex::new(Inner {
                resources,
                labels,
                phase: record.phase,
                ips: record.ips,
                containers: Vec::new(),
                shim: None,
                follower: None,
            }),
        })
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.inner).phase
    }

    pub(super) fn shim(&self) -> Option<Arc<Shim>> {
        lock(&self.inner).shim.clone()
    }

    pub(super) fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.inner).containers.clone()
    }

    pub(super) fn container(&self, id: &ContainerId) -> Option<Arc<Container>> {
        let inner = lock(&self.inner);
        inner.containers.iter().find(|c| c.id == *id).cloned()
    }

    pub(super) fn add(&self, container: Arc<Container>) {
        lock(&self.inner).containers.push(container);
    }

    pub(super) fn forget(&self, id: &ContainerId) {
        lock(&self.inner).containers.retain(|c| c.id != *id);
    }

    /// The cgroups of the containers.
    fn container_groups(&self) -> Result<Vec<GroupPath>, crate::cgroup::Error> {
        self.containers()
            .iter()
            .map(|c| GroupPath::try_from(self.group_of(&c.id).as_path()))
            .collect()
    }

    /// The cgroup of a container, relative to the hierarchy's root.
    pub(super) fn group_of(&self, container: &ContainerId) -> PathBuf {
        units::home(&self.config.cgroup_path, &self.id).join(container.as_str())
    }

    pub(super) fn exit_of(&self, container: &Container) -> RuntimeEvent {
        RuntimeEvent::Exited { pod: self.config.pod.clone(), container: container.id.clone() }
    }

    /// The cgroup that those of the containers are in.
    fn home(&self) -> Result<GroupPath, crate::cgroup::Error> {
        GroupPath::try_from(units::home(&self.config.cgroup_path, &self.id).as_path())
    }

    pub(super) fn group(&self) -> Result<GroupPath, crate::cgroup::Error> {
        GroupPath::try_from(self.config.cgroup_path.as_path())
    }

    pub(super) fn status(&self) -> SandboxStatus {
        let config = self.config();
        let inner = lock(&self.inner);
        let whole = inner.containers.iter().filter(|c| c.is_made());
        let mut containers: Vec<_> = whole.map(|c| c.status(&self.id)).collect();
        containers.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        SandboxStatus {
            id: self.id.clone(),
            config,
            state: match (inner.phase, &inner.shim) {
                (Phase::Ready, Some(_)) => SandboxState::Ready,
                _ => SandboxState::NotReady,
            },
            created_at: self.created_at,
            ips: inner.ips.clone(),
            containers,
        }
    }

    /// What it was made from, with what it is held to now.
    pub(super) fn config(&self) -> SandboxConfig {
        let mut config = self.config.clone();
        let inner = lock(&self.inner);
        config.resources.clone_from(&inner.resources);
        config.labels.clone_from(&inner.labels);
        config
    }

    /// Notes what it is held to from now on.
    pub(super) async fn resized(
        &self,
        resources: Resources,
        labels: BTreeMap<String, String>,
    ) -> io::Result<()> {
        let phase = {
            let mut inner = lock(&self.inner);
            inner.resources = resources;
            inner.labels.extend(labels);
            inner.phase
        };
        self.write(phase).await
    }

    async fn write(&self, phase: Phase) -> io::Result<()> {
        let record = record::Sandbox {
            id: self.id.clone(),
            boot_id: self.boot_id.clone(),
            config: self.config(),
            phase,
            created_at: self.created_at,
            ips: lock(&self.inner).ips.clone(),
            user_ids: self.user_ids,
            selinux_level: self.selinux_level.clone(),
        };
        let path = self.dir.record();
        disk::blocking(move || disk::write_run_json(&path, &record)).await
    }

    /// Changes the phase, on disk first.
    pub(super) async fn enter(&self, phase: Phase) -> io::Result<()> {
        let outcome = self.write(phase).await;
        // A full disk must not keep a sandbox from being stopped or removed.
        if outcome.is_ok() || matches!(phase, Phase::Stopped | Phase::Removing) {
            lock(&self.inner).phase = phase;
        }
        outcome
    }

    /// Takes a shim into use and follows its events.
    pub(super) fn follow(self: &Arc<Self>, shared: &Arc<Shared>, shim: Arc<Shim>, events: Events) {
        let task = tokio::spawn(follow(shared.clone(), self.clone(), events));
        let mut inner = lock(&self.inner);
        inner.shim = Some(shim);
        inner.follower = Some(task);
    }
}

/// Makes a sandbox.
pub(super) async fn run(
    shared: Arc<Shared>,
    config: SandboxConfig,
) -> Result<SandboxStatus, RuntimeError> {
    validate(&config)?;
    let id = SandboxId::try_from(random_digits(32)).map_err(|e| failed("choose an id", e))?;
    let sandbox = list(&shared, &id, config)?;
    let made = bring_up(&shared, &sandbox).await;
    let Err(error) = made else {
        return Ok(sandbox.status());
    };
    match tear_down(&shared, &sandbox).await {
        Ok(()) => drop(lock(&shared.sandboxes).remove(&id)),
        // It stays listed, so that its owner removes what could not be undone.
        Err(left) => {
            tracing::error!(sandbox = %id, error = chain(&left), "a failed sandbox is not wholly undone");
        }
    }
    Err(error)
}

/// Lists a new sandbox, with a label's level and, where it wants them, ids of its own: at once, so that
/// nobody else gets them.
fn list(
    shared: &Shared,
    id: &SandboxId,
    config: SandboxConfig,
) -> Result<Arc<Sandbox>, RuntimeError> {
    let mut sandboxes = lock(&shared.sandboxes);
    let user_ids = match config.users {
        NamespaceMode::Host => None,
        NamespaceMode::Pod => {
            let invalid = |why: &str| RuntimeError::Invalid(format!("user namespace: {why}"));
            let pool = shared.user_ids.as_ref().map_err(|why| invalid(why))?;
            let taken: Vec<UserIds> = sandboxes.values().filter_map(|s| s.user_ids).collect();
            let ids = pool.allocate(&taken);
            Some(ids.ok_or_else(|| invalid("all ids of the host that pods may have are taken"))?)
        }
    };
    let selinux_level = shared.selinux.as_ref().and_then(|contexts| {
        let taken = sandboxes.values().filter_map(|s| s.selinux_level.clone()).collect();
        contexts.free_level(u32::from_str_radix(id.as_str().get(..8)?, 16).ok()?, &taken)
    });
    let record = record::Sandbox {
        boot_id: shared.boot_id.clone(),
        phase: Phase::Making,
        created_at: disk::now_nanoseconds(),
        ips: Vec::new(),
        id: id.clone(),
        config,
        user_ids,
        selinux_level,
    };
    let sandbox = Sandbox::of(record, shared.layout.sandbox(id));
    sandboxes.insert(id.clone(), sandbox.clone());
    Ok(sandbox)
}

fn validate(config: &SandboxConfig) -> Result<(), RuntimeError> {
    GroupPath::try_from(config.cgroup_path.as_path())
        .map_err(|error| RuntimeError::Invalid(error.to_string()))?;
    if !config.log_directory.is_absolute() {
        let message = format!("the log directory {:?} is not absolute", config.log_directory);
        return Err(RuntimeError::Invalid(message));
    }
    let name = &config.hostname;
    if name.len() > 64 || name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '/') {
        return Err(RuntimeError::Invalid(format!("invalid host name {name:?}")));
    }
    let shares = config.network == NamespaceMode::Host
        || config.ipc == NamespaceMode::Host
        || config.pid == PidMode::Host;
    if config.users == NamespaceMode::Pod && shares {
        let message = "a user namespace does not go with the host's network, IPC or PID namespace";
        return Err(RuntimeError::Invalid(message.to_owned()));
    }
    Ok(())
}

async fn bring_up(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
    let operation = |what: &str| format!("{what} of sandbox {}", sandbox.id);
    let dir = sandbox.dir.clone();
    let made = disk::blocking(move || disk::make_private_dir(&dir.containers())).await;
    made.map_err(|e| failed(operation("make the directory"), e))?;
    let recorded = sandbox.enter(Phase::Making).await;
    recorded.map_err(|e| failed(operation("write the record"), e))?;
    // systemd takes its time over a slice; nothing is in need of it before the shim runs.
    let (grouped, started) = tokio::join!(make_group(shared, sandbox), start_shim(shared, sandbox));
    grouped?;
    let pid = started?;
    let (settled, attached) =
        tokio::join!(settle_shim(shared, sandbox, pid), attach(shared, sandbox));
    settled?;
    attached?;
    let recorded = sandbox.enter(Phase::Ready).await;
    recorded.map_err(|e| failed(operation("write the record"), e))
}

/// Makes the pod's cgroup.
async fn make_group(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
    let (shared, sandbox_copy) = (shared.clone(), sandbox.clone());
    let made = disk::blocking(move || {
        let config = &sandbox_copy.config;
        let _turn = shared.turn_of(&config.cgroup_path);
        let made = sandbox_copy
            .group()
            .and_then(|group| shared.hierarchy.ensure(&group, &config.resources));
        made.map_err(|error| io::Error::other(chain(&error)))
    });
    made.await.map_err(|e| failed(format!("make the cgroup of sandbox {}", sandbox.id), e))
}

/// Prepares the host side, starts the shim and hears it. Returns the shim's process.
async fn start_shim(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) -> Result<u32, RuntimeError> {
    let operation = |what: &str| format!("{what} of sandbox {}", sandbox.id);
    let (shared_copy, sandbox_copy) = (shared.clone(), sandbox.clone());
    let prepared = disk::blocking(move || prepare(&shared_copy, &sandbox_copy)).await;
    prepared.map_err(|e| failed(operation("prepare the host side"), e))?;
    let started = shim::start(&shared.executable, &sandbox.dir).await;
    let greeting = started.map_err(|e| failed(operation("start the shim"), e))?;
    let pid = greeting.pid;
    let shim = Arc::new(greeting.shim);
    // Known before anything else can fail, so that it is shut down.
    lock(&sandbox.inner).shim = Some(shim.clone());
    let events = shim.subscribe().await;
    let events = events.map_err(|e| failed(operation("hear the shim"), e))?;
    sandbox.follow(shared, shim, events);
    Ok(pid)
}

/// Puts the shim where the containers will be beside it.
async fn settle_shim(shared: &Shared, sandbox: &Sandbox, pid: u32) -> Result<(), RuntimeError> {
    let operation = || format!("make the scope of sandbox {}", sandbox.id);
    let home = sandbox.home().map_err(|e| failed(operation(), e))?;
    let hierarchy = shared.hierarchy.clone();
    let settle = move || hierarchy.settle(&home, pid).map_err(|e| io::Error::other(chain(&e)));
    disk::blocking(settle).await.map_err(|e| failed(operation(), e))
}

async fn attach(shared: &Shared, sandbox: &Sandbox) -> Result<(), RuntimeError> {
    if sandbox.config.network == NamespaceMode::Host {
        return Ok(());
    }
    let request = AttachRequest {
        sandbox: sandbox.id.clone(),
        pod: sandbox.config.pod.clone(),
        netns: sandbox.dir.network_namespace(),
        port_mappings: sandbox.config.port_mappings.clone(),
    };
    let ips = shared.network.attach(request).await.map_err(RuntimeError::Network)?;
    lock(&sandbox.inner).ips = ips;
    Ok(())
}

/// The files, before any process. Blocking.
fn prepare(shared: &Shared, sandbox: &Sandbox) -> io::Result<()> {
    let config = &sandbox.config;
    fs::create_dir_all(&config.log_directory).map_err(|e| disk::at(&config.log_directory, e))?;
    if config.ipc == NamespaceMode::Pod {
        volumes::mount_shm(&sandbox.dir.shm(), sandbox.user_ids)?;
    }
    let public = |path: std::path::PathBuf, content: &[u8]| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
    };
    public(sandbox.dir.hostname(), format!("{}\n", config.hostname).as_bytes())?;
    let resolv_conf = fs::read(&shared.resolv_conf).unwrap_or_default();
    public(sandbox.dir.resolv_conf(), &resolv_conf)?;
    disk::write_run_json(&sandbox.dir.shim_config(), &shim_config(shared, sandbox))
}

fn shim_config(shared: &Shared, sandbox: &Sandbox) -> ShimConfig {
    let config = &sandbox.config;
    let own_network = config.network == NamespaceMode::Pod;
    ShimConfig {
        sandbox_id: sandbox.id.to_string(),
        cgroup_root: shared.hierarchy.root().to_owned(),
        hostname: own_network.then(|| config.hostname.clone()),
        new_network: own_network,
        new_ipc: config.ipc == NamespaceMode::Pod,
        pid: match config.pid {
            PidMode::Container => PidNamespace::Container,
            PidMode::Pod => PidNamespace::Sandbox,
            PidMode::Host => PidNamespace::Host,
        },
        sysctls: config.sysctls.clone(),
        user_ids: sandbox.user_ids,
    }
}

/// Hears a shim until it is gone.
async fn follow(shared: Arc<Shared>, sandbox: Arc<Sandbox>, mut events: Events) {
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            () = shared.closing.cancelled() => return,
        };
        match next {
            Ok(Event::Exited { id, exit }) => {
                let id = ContainerId::try_from(id).ok();
                let Some(container) = id.and_then(|id| sandbox.container(&id)) else {
                    continue;
                };
                if container.exited(exit) {
                    shared.announce(sandbox.exit_of(&container));
                }
            }
            Ok(Event::LogLost { id, records }) => {
                let pod = &sandbox.config.pod;
                tracing::warn!(
                    pod = %format_args!("{}/{}", pod.namespace, pod.name),
                    container = id,
                    records,
                    "the log lacks records: its disk is too slow, or full"
                );
            }
            Err(error) => {
                if sandbox.phase() == Phase::Ready {
                    tracing::warn!(sandbox = %sandbox.id, %error, "the shim is lost");
                    lost(&shared, &sandbox).await;
                }
                return;
            }
        }
    }
}

/// A shim ended by itself: nothing of its containers may live on unseen.
pub(super) async fn lost(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) {
    if let Some(shim) = lock(&sandbox.inner).shim.take() {
        shim.kill();
    }
    if let Err(error) = kill_groups(shared, sandbox).await {
        tracing::error!(sandbox = %sandbox.id, error = chain(&error), "processes of a lost sandbox");
    }
    if let Err(error) = sandbox.enter(Phase::Stopped).await {
        tracing::warn!(sandbox = %sandbox.id, %error, "the sandbox's record is not written");
    }
    settle(shared, sandbox, "the sandbox's shim was lost").await;
    shared.announce(RuntimeEvent::SandboxLost {
        pod: sandbox.config.pod.clone(),
        sandbox: sandbox.id.clone(),
    });
}

/// Kills what is in the containers' own cgroups: another sandbox of the pod may share the pod's.
async fn kill_groups(shared: &Arc<Shared>, sandbox: &Sandbox) -> Result<(), crate::cgroup::Error> {
    let groups = sandbox.container_groups()?;
    let hierarchy = shared.hierarchy.clone();
    let kill_all = move || {
        let kill = |group| hierarchy.kill(group, KILL_PATIENCE);
        groups.iter().map(kill).fold(Ok(()), Result::and)
    };
    tokio::task::spawn_blocking(kill_all).await.unwrap_or(Ok(()))
}

/// Removes the containers' cgroups, and the pod's with the last of its sandboxes. Blocking.
fn remove_groups(shared: &Shared, sandbox: &Sandbox) -> Result<(), crate::cgroup::Error> {
    for group in sandbox.container_groups()? {
        shared.hierarchy.remove(&group)?;
    }
    let _turn = shared.turn_of(&sandbox.config.cgroup_path);
    let shares = |other: &Arc<Sandbox>| {
        other.id != sandbox.id && other.config.cgroup_path == sandbox.config.cgroup_path
    };
    let is_shared = lock(&shared.sandboxes).values().any(shares);
    let (home, group) = (sandbox.home()?, sandbox.group()?);
    match is_shared {
        true if home == group => Ok(()),
        true => shared.hierarchy.remove(&home),
        false => shared.hierarchy.remove(&group),
    }
}

/// Gives every container that has not been heard to exit its end: as the shim recorded it, else as
/// killed.
pub(super) async fn settle(shared: &Shared, sandbox: &Sandbox, message: &str) {
    for container in sandbox.containers() {
        let stored = shim::stored_state(&container.dir.shim_state());
        let settled = match stored.map(|record| record.state) {
            Some(ContainerPhase::Exited(exit)) => container.exited(exit),
            _ => container.killed(message).await,
        };
        if settled {
            shared.announce(sandbox.exit_of(&container));
        }
    }
}

/// Ends what runs and gives the network back.
pub(super) async fn stop(shared: Arc<Shared>, sandbox: Arc<Sandbox>) -> Result<(), RuntimeError> {
    let _whole = sandbox.gate.write().await;
    stop_within(&shared, &sandbox).await
}

async fn stop_within(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
    let mut failures = Failures::default();
    if matches!(sandbox.phase(), Phase::Making | Phase::Ready) {
        failures.note("write the record", sandbox.enter(Phase::Stopped).await);
    }
    end_shim(sandbox, &mut failures).await;
    failures.note("kill the processes", kill_groups(shared, sandbox).await);
    settle(shared, sandbox, "the sandbox was stopped").await;
    if sandbox.config.network == NamespaceMode::Pod {
        let detached = shared.network.detach(&sandbox.id).await;
        failures.note("detach the network", detached.map_err(io::Error::other));
    }
    let dir = sandbox.dir.path().to_owned();
    let unmounted = disk::blocking(move || volumes::unmount_below(&dir)).await;
    failures.note("unmount", unmounted);
    failures.into_result(format!("stop sandbox {}", sandbox.id))
}

async fn end_shim(sandbox: &Arc<Sandbox>, failures: &mut Failures) {
    let (shim, follower) = {
        let mut inner = lock(&sandbox.inner);
        (inner.shim.take(), inner.follower.take())
    };
    let Some(shim) = shim else { return };
    let ordered = shim.order(&Request::Shutdown, SHUTDOWN_PATIENCE).await;
    match ordered {
        Ok(()) | Err(shim::Error::Lost(_)) => {}
        Err(error) => {
            failures.note("shut the shim down", Err::<(), _>(error));
            shim.kill();
        }
    }
    match tokio::time::timeout(Duration::from_secs(5), shim.ended()).await {
        Ok(ended) => failures.note("wait for the shim", ended),
        Err(_) => shim.kill(),
    }
    // Its last events are read before exits are settled without it.
    if let Some(follower) = follower {
        let _ = tokio::time::timeout(Duration::from_secs(2), follower).await;
    }
}

/// Removes a sandbox.
pub(super) async fn remove(shared: Arc<Shared>, sandbox: Arc<Sandbox>) -> Result<(), RuntimeError> {
    tear_down(&shared, &sandbox).await?;
    lock(&shared.sandboxes).remove(&sandbox.id);
    Ok(())
}

/// Undoes everything of a sandbox, going on past failures. Idempotent.
pub(super) async fn tear_down(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
) -> Result<(), RuntimeError> {
    let _whole = sandbox.gate.write().await;
    let mut failures = Failures::default();
    failures.note("stop", stop_within(shared, sandbox).await);
    failures.note("write the record", sandbox.enter(Phase::Removing).await);
    let (shared_copy, sandbox_copy) = (shared.clone(), sandbox.clone());
    let removed = tokio::task::spawn_blocking(move || remove_groups(&shared_copy, &sandbox_copy));
    failures.note("remove the cgroups", removed.await.unwrap_or(Ok(())));
    for container in sandbox.containers() {
        let outcome = container.remove_files(shared).await;
        match outcome {
            Ok(()) => sandbox.forget(&container.id),
            Err(error) => failures.note("remove a writable layer", Err::<(), _>(error)),
        }
    }
    if failures.0.is_empty() {
        let dir = sandbox.dir.path().to_owned();
        let removed = disk::blocking(move || disk::remove_tree(&dir)).await;
        failures.note("remove the directory", removed);
    }
    failures.into_result(format!("remove sandbox {}", sandbox.id))
}
