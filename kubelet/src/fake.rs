//! A runtime, an image store, materials and an API server that exist in memory only, for tests.
//!
//! They follow the contracts of their traits, with knobs for what goes wrong. Time is tokio's, so
//! tests with a paused clock decide it.

mod api;
mod images;
mod session;
mod sizes;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use berth_runtime::interface::{
    Checkpoint, ContainerConfig, ContainerId, ContainerState, ContainerStatus, Exec, ExecOutput,
    LogLimits, NamespaceMode, PidMode, PodIdentity, Resize, Runtime, RuntimeError, RuntimeEvent,
    SandboxConfig, SandboxId, SandboxState, SandboxStatus, Security, Session, StopSignal, Streams,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

pub(crate) use api::FakeApi;
pub(crate) use images::{FakeImages, image, key};
use state::RuntimeState;

use crate::clock::Clock;
use crate::image_policy::Key;
use crate::qos::{CgroupPolicy, PodDemand};
use crate::worker::materials::{ContainerRequest, Materials, Sizes};
use crate::worker::memory::Failure;

/// The time of day, moving with tokio's clock from a fixed start.
pub(crate) struct FakeClock {
    start: Instant,
}

impl FakeClock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.start.elapsed()).unwrap();
        Timestamp::from_second(1_700_000_000).unwrap() + passed
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A runtime in memory.
pub(crate) struct FakeRuntime {
    pub(crate) state: Mutex<RuntimeState>,
    clock: Arc<dyn Clock>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl FakeRuntime {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(RuntimeState::default()),
            clock,
            events: broadcast::channel(1024).0,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, RuntimeState> {
        lock(&self.state)
    }

    fn now(&self) -> i64 {
        i64::try_from(self.clock.now().as_nanosecond()).unwrap()
    }

    /// The running containers of a pod, by name.
    pub(crate) fn running(&self, uid: &str) -> Vec<String> {
        let state = self.state();
        let sandboxes = state.sandboxes.iter().filter(|s| s.config.pod.uid == uid);
        let containers = sandboxes.flat_map(|s| &s.containers);
        containers
            .filter(|c| matches!(c.state, ContainerState::Running { .. }))
            .map(|c| c.config.name.clone())
            .collect()
    }

    /// Ends the running container `name` of a pod.
    pub(crate) fn exit(&self, uid: &str, name: &str, exit_code: i32) -> bool {
        let id = {
            let state = self.state();
            let sandboxes = state.sandboxes.iter().filter(|s| s.config.pod.uid == uid);
            let mut containers = sandboxes.flat_map(|s| &s.containers);
            let found = containers.find(|c| {
                c.config.name == name && matches!(c.state, ContainerState::Running { .. })
            });
            found.map(|c| c.id.clone())
        };
        id.is_some_and(|id| {
            self.end(&id, exit_code);
            true
        })
    }

    fn end(&self, id: &ContainerId, code: i32) {
        let finished = self.now();
        let mut event = None;
        let mut ended = String::new();
        for sandbox in &mut self.state().sandboxes {
            for container in &mut sandbox.containers {
                if container.id == *id
                    && let ContainerState::Running { started_at } = container.state
                {
                    container.state = ContainerState::Exited {
                        started_at,
                        finished_at: finished,
                        exit_code: code,
                        oom_killed: false,
                        message: String::new(),
                    };
                    ended = format!("exit {} {code}", container.config.name);
                    event = Some(RuntimeEvent::Exited {
                        pod: sandbox.config.pod.clone(),
                        container: id.clone(),
                    });
                }
            }
        }
        if event.is_some() {
            self.state().history.push(ended);
        }
        if let Some(event) = event {
            let _ = self.events.send(event);
        }
    }

    /// Loses the live sandbox of a pod with everything in it.
    pub(crate) fn lose_sandbox(&self, uid: &str) -> bool {
        let Some((pod, sandbox, containers)) = ({
            let mut state = self.state();
            let mut live = state
                .sandboxes
                .iter_mut()
                .filter(|s| s.config.pod.uid == uid && s.state == SandboxState::Ready);
            live.next().map(|sandbox| {
                sandbox.state = SandboxState::NotReady;
                let ids: Vec<_> = sandbox.containers.iter().map(|c| c.id.clone()).collect();
                (sandbox.config.pod.clone(), sandbox.id.clone(), ids)
            })
        }) else {
            return false;
        };
        for container in containers {
            self.end(&container, 137);
        }
        let _ = self.events.send(RuntimeEvent::SandboxLost { pod, sandbox });
        true
    }

    fn enter(&self, call: &'static str, what: &str) -> Result<(), RuntimeError> {
        let mut state = self.state();
        state.calls.push(format!("{call} {what}"));
        match state.failures.get_mut(call) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(RuntimeError::Invalid(format!("{call} was made to fail")))
            }
            _ => Ok(()),
        }
    }

    /// The configuration of a container that must be running.
    fn running_one(&self, id: &ContainerId) -> Result<ContainerConfig, RuntimeError> {
        self.with(id, |c| match c.state {
            ContainerState::Running { .. } => Ok(c.config.clone()),
            _ => Err(RuntimeError::Invalid(format!("container {id} is not running"))),
        })?
    }

    /// One step of making a container.
    async fn make(&self) {
        let takes = self.state().making;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
    }

    fn serial(&self) -> u64 {
        let mut state = self.state();
        state.serial += 1;
        state.serial
    }

    fn with<T>(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut ContainerStatus) -> T,
    ) -> Result<T, RuntimeError> {
        let mut state = self.state();
        let mut containers = state.sandboxes.iter_mut().flat_map(|s| &mut s.containers);
        match containers.find(|c| c.id == *id) {
            Some(container) => Ok(change(container)),
            None => Err(RuntimeError::NotFound(id.to_string())),
        }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        self.enter("run_sandbox", &config.pod.name)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let serial = self.serial();
        let last = u8::try_from(serial % 250).unwrap();
        let sandbox = SandboxStatus {
            id: SandboxId::try_from(format!("{serial:032x}")).unwrap(),
            ips: match config.network {
                NamespaceMode::Host => Vec::new(),
                NamespaceMode::Pod => vec![IpAddr::from([10, 244, 0, last])],
            },
            config,
            state: SandboxState::Ready,
            created_at: self.now(),
            containers: Vec::new(),
        };
        let mut state = self.state();
        state.sandboxes.push(sandbox.clone());
        let pod = &sandbox.config.pod;
        let live = state.sandboxes.iter().filter(|s| {
            let other = &s.config.pod;
            s.state == SandboxState::Ready
                && (&other.namespace, &other.name) == (&pod.namespace, &pod.name)
        });
        let live = live.count();
        state.most_live = state.most_live.max(live);
        Ok(sandbox)
    }

    async fn stop_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        self.enter("stop_sandbox", sandbox.as_str())?;
        let containers: Vec<_> = {
            let mut state = self.state();
            let mut all = state.sandboxes.iter_mut();
            let Some(found) = all.find(|s| s.id == *sandbox) else {
                return Ok(());
            };
            found.state = SandboxState::NotReady;
            found.containers.iter().map(|c| c.id.clone()).collect()
        };
        for container in containers {
            self.end(&container, 137);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        self.enter("remove_sandbox", sandbox.as_str())?;
        self.state().sandboxes.retain(|s| s.id != *sandbox);
        Ok(())
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        self.enter("create_container", &config.name)?;
        self.make().await;
        let id = ContainerId::try_from(format!("{:064x}", self.serial())).unwrap();
        let status = ContainerStatus {
            id: id.clone(),
            sandbox: sandbox.clone(),
            config,
            state: ContainerState::Created,
            created_at: self.now(),
            user: None,
        };
        let mut state = self.state();
        let mut live = state.sandboxes.iter_mut().filter(|s| s.state == SandboxState::Ready);
        match live.find(|s| s.id == *sandbox) {
            Some(sandbox) => {
                sandbox.containers.push(status);
                Ok(id)
            }
            None => Err(RuntimeError::NotFound(sandbox.to_string())),
        }
    }

    async fn start_container(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        self.make().await;
        let now = self.now();
        let failing = self.enter("start_container", container.as_str());
        let name = self.with(container, |c| {
            c.state = match &failing {
                Ok(()) => ContainerState::Running { started_at: now },
                Err(error) => ContainerState::Exited {
                    started_at: 0,
                    finished_at: now,
                    exit_code: 127,
                    oom_killed: false,
                    message: error.to_string(),
                },
            };
            c.config.name.clone()
        })?;
        if let Err(error) = failing {
            return Err(RuntimeError::Start { exit_code: 127, message: error.to_string() });
        }
        self.state().history.push(format!("start {name}"));
        let at_once = self.state().exits_at_once.get(&name).copied();
        if let Some(code) = at_once {
            self.end(container, code);
        }
        Ok(())
    }

    async fn stop_container(
        &self,
        container: &ContainerId,
        signal: StopSignal,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.enter("stop_container", container.as_str())?;
        let (name, runs) = self.with(container, |c| {
            (c.config.name.clone(), matches!(c.state, ContainerState::Running { .. }))
        })?;
        if !runs {
            return Ok(());
        }
        let (stubborn, lingers, code) = {
            let mut state = self.state();
            let number = match signal {
                StopSignal::ImageDefault => String::new(),
                StopSignal::Signal(number) => format!(" {number}"),
            };
            state.history.push(format!("signal {name}{number}"));
            (
                state.stubborn.contains(&name),
                state.lingers.get(&name).copied().unwrap_or_default(),
                state.stop_codes.get(&name).copied().unwrap_or(143),
            )
        };
        match stubborn || lingers > grace {
            true => {
                tokio::time::sleep(grace).await;
                self.end(container, 137);
            }
            false => {
                tokio::time::sleep(lingers).await;
                self.end(container, code);
            }
        }
        Ok(())
    }

    async fn remove_container(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        self.enter("remove_container", container.as_str())?;
        let takes = self.state().removal;
        tokio::time::sleep(takes).await;
        for sandbox in &mut self.state().sandboxes {
            sandbox.containers.retain(|c| c.id != *container);
        }
        Ok(())
    }

    async fn exec_sync(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError> {
        let command = command.join(" ");
        let outcome = self.enter("exec_sync", &command);
        let name = self.with(container, |c| c.config.name.clone())?;
        let (code, takes) = {
            let mut state = self.state();
            state.history.push(format!("exec {name} {command}"));
            state.commands.get(&command).copied().unwrap_or_default()
        };
        if timeout.is_some_and(|timeout| timeout < takes) {
            tokio::time::sleep(timeout.unwrap_or_default()).await;
            return Err(RuntimeError::Invalid("command timed out".to_owned()));
        }
        tokio::time::sleep(takes).await;
        self.state().history.push(format!("answer {name} {command}"));
        Ok(ExecOutput {
            exit_code: code.max(i32::from(outcome.is_err())),
            stdout: b"said".to_vec(),
            stderr: Vec::new(),
        })
    }

    async fn exec(&self, container: &ContainerId, exec: Exec) -> Result<Session, RuntimeError> {
        self.enter("exec", &exec.command.join(" "))?;
        self.running_one(container)?;
        session::of_exec(&exec)
    }

    async fn attach(
        &self,
        container: &ContainerId,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        self.enter("attach", container.as_str())?;
        let tty = self.running_one(container)?.tty;
        Ok(session::echo(streams, tty))
    }

    async fn checkpoint(&self, id: &ContainerId, _: Checkpoint) -> Result<(), RuntimeError> {
        self.enter("checkpoint", id.as_str())
    }

    async fn resize(&self, sandbox: &SandboxId, sizes: Vec<Resize>) -> Result<(), RuntimeError> {
        self.enter("resize", sandbox.as_str())?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.state().resize(sandbox, sizes)
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.state().sandboxes.clone())
    }

    async fn pod(&self, uid: &str) -> Result<Vec<SandboxStatus>, RuntimeError> {
        if self.state().looks_again() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let state = self.state();
        let of_pod = state.sandboxes.iter().filter(|s| s.config.pod.uid == uid);
        Ok(of_pod.cloned().collect())
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
}

/// Materials in memory.
#[derive(Default)]
pub(crate) struct FakeMaterials {
    /// The pods whose volumes are there.
    pub(crate) mounted: Mutex<BTreeSet<String>>,
    /// How often volumes were made, or filled anew.
    pub(crate) preparations: Mutex<u32>,
    /// The pods whose directories are there.
    pub(crate) directories: Mutex<BTreeSet<String>>,
    /// The records on disk, which go with the directories.
    pub(crate) cache: Mutex<Option<crate::cache::Cache>>,
    /// The message with which volumes fail, while set.
    pub(crate) volume_failure: Mutex<Option<String>>,
    /// The message with which container configurations fail, while set.
    pub(crate) config_failure: Mutex<Option<String>>,
    /// Counts changes of what volumes are filled from.
    pub(crate) sources: watch::Sender<u64>,
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

#[async_trait]
impl Materials for FakeMaterials {
    async fn prepare_volumes(&self, pod: &Pod) -> Result<(), Vec<Failure>> {
        lock(&self.directories).insert(uid(pod));
        *lock(&self.preparations) += 1;
        if let Some(message) = lock(&self.volume_failure).clone() {
            return Err(vec![Failure::new("FailedMount", message)]);
        }
        lock(&self.mounted).insert(uid(pod));
        Ok(())
    }

    fn changes(&self, _pod: &Pod) -> watch::Receiver<u64> {
        self.sources.subscribe()
    }

    async fn tear_down_volumes(&self, pod: &Pod) -> Result<(), Failure> {
        lock(&self.mounted).remove(&uid(pod));
        Ok(())
    }

    async fn sandbox(&self, pod: &Pod, attempt: u32) -> Result<SandboxConfig, Failure> {
        Ok(SandboxConfig {
            users: NamespaceMode::Host,
            pod: PodIdentity {
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                name: pod.metadata.name.clone().unwrap_or_default(),
                uid: uid(pod),
            },
            attempt,
            hostname: "h".to_owned(),
            log_directory: PathBuf::from("/logs"),
            cgroup_path: PathBuf::from("kubepods"),
            resources: self.sizes(pod)?.pod,
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            pid: PidMode::Container,
            sysctls: BTreeMap::new(),
            port_mappings: Vec::new(),
            labels: BTreeMap::new(),
            runtime_handler: String::new(),
        })
    }

    async fn container(&self, request: ContainerRequest<'_>) -> Result<ContainerConfig, Failure> {
        if let Some(message) = lock(&self.config_failure).clone() {
            return Err(Failure::new("CreateContainerConfigError", message));
        }
        let name = request.container.name.clone();
        let resources = self.sizes(request.pod)?.containers.remove(&name).unwrap_or_default();
        Ok(ContainerConfig {
            log_path: PathBuf::from(&name).join(format!("{}.log", request.attempt)),
            name,
            attempt: request.attempt,
            image: request.image.id.clone(),
            image_reference: request.container.image.clone().unwrap_or_default(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            log_limits: LogLimits::default(),
            resources,
            oom_score_adj: 0,
            security: Security::default(),
            tty: false,
            stdin: false,
            stdin_once: false,
            pid_target: None,
            labels: BTreeMap::new(),
        })
    }

    fn sizes(&self, pod: &Pod) -> Result<Sizes, Failure> {
        let demand = PodDemand::parse(pod).map_err(|e| Failure::new("Invalid", e.to_string()))?;
        Ok(Sizes::of(pod, &demand, &CgroupPolicy::default()))
    }

    async fn keys(&self, pod: &Pod, _: &str) -> Vec<Key> {
        let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        named.map(|secret| images::key(&secret.name)).collect()
    }

    async fn termination_message(&self, _: &Pod, _: &ContainerStatus) -> Option<String> {
        None
    }

    async fn link_log(&self, _: &Pod, _: &ContainerStatus) {}

    async fn drop_old_logs(&self, _: &Pod, _: &str, _: u32) {}

    async fn sweep(&self, keep: &BTreeSet<String>) {
        lock(&self.directories).retain(|uid| keep.contains(uid));
    }

    async fn remove_directories(&self, pod: &Pod) -> Result<(), Failure> {
        lock(&self.directories).remove(&uid(pod));
        let cache = lock(&self.cache).clone();
        if let Some(cache) = cache {
            cache.remove(&uid(pod)).await.unwrap();
        }
        Ok(())
    }
}
