//! What sandboxes and containers are, what can be done with them, and how that fails.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::{
    ContainerConfig, ContainerId, Exec, OpenFiles, PodIdentity, PodUsage, Resources, SandboxConfig,
    SandboxId, Session, Streams,
};

/// A sandbox as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its identifier.
    pub id: SandboxId,
    /// The pod and the settings it was made from.
    pub config: SandboxConfig,
    /// Ready until stopped, or until its shim or network is lost.
    pub state: SandboxState,
    /// When it was made, in nanoseconds since the epoch.
    pub created_at: i64,
    /// The pod's addresses, primary first; empty with `hostNetwork`.
    pub ips: Vec<IpAddr>,
    /// Its containers, oldest first.
    pub containers: Vec<ContainerStatus>,
}

/// Whether a sandbox can hold running containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Namespaces and network are up.
    Ready,
    /// Stopped, or lost.
    NotReady,
}

/// A container as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its identifier.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// What it was made from.
    pub config: ContainerConfig,
    /// Its state.
    pub state: ContainerState,
    /// When it was made, in nanoseconds since the epoch.
    pub created_at: i64,
    /// The user it runs as, once resolved.
    pub user: Option<ResolvedUser>,
}

/// The numeric identity a container's first process got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub supplemental_groups: Vec<u32>,
}

/// The life of a container: Created → Running → Exited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running {
        /// When it started, in nanoseconds since the epoch.
        started_at: i64,
    },
    /// Its first process ended.
    Exited {
        /// When it started; 0 when it never did.
        started_at: i64,
        /// When it ended, in nanoseconds since the epoch.
        finished_at: i64,
        /// The exit code, or 128 + signal.
        exit_code: i32,
        /// Whether the kernel killed a process of it for want of memory.
        oom_killed: bool,
        /// Why it ended where the exit code does not say (start failure, shim lost); else empty.
        message: String,
    },
}

/// Something happened that the pod's owner must look at. The event says where; [`Runtime::pod`] says
/// what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container ended.
    Exited {
        /// The pod.
        pod: PodIdentity,
        /// The container.
        container: ContainerId,
    },
    /// A sandbox was lost (its shim ended).
    SandboxLost {
        /// The pod.
        pod: PodIdentity,
        /// The sandbox.
        sandbox: SandboxId,
    },
}

/// Why a runtime operation failed, in the classes that decide a pod's reason strings.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The named sandbox or container does not exist.
    #[error("{0} not found")]
    NotFound(String),
    /// The request is at fault: it will fail again unchanged (CRI `InvalidArgument`).
    #[error("{0}")]
    Invalid(String),
    /// The network could not be attached; the text is the network's own.
    #[error("failed to setup network for sandbox: {0}")]
    Network(String),
    /// Making the container failed (upstream's `CreateContainerError`).
    #[error("{0}")]
    Create(String),
    /// Starting the command failed (upstream's `RunContainerError`, `StartError`), with the exit
    /// code that runc gives: 127 not found, 126 not executable, else 128.
    #[error("{message}")]
    Start {
        /// The exit code a shell would give.
        exit_code: i32,
        /// What failed.
        message: String,
    },
    /// Anything else of the host: disk, kernel, shim.
    #[error("{operation}")]
    Host {
        /// What was being done, with its facts.
        operation: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The outcome of a command run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit code, or 128 + signal.
    pub exit_code: i32,
    /// Standard output, cut at 5 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, cut at 5 MiB.
    pub stderr: Vec<u8>,
}

/// Other limits for something that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resize {
    /// What is held to them.
    pub of: Resized,
    /// The limits.
    pub resources: Resources,
    /// Labels that are set with them.
    pub labels: BTreeMap<String, String>,
}

/// What can be held to other limits while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resized {
    /// The pod as a whole.
    Pod,
    /// One container of it.
    Container(ContainerId),
}

/// Where a checkpoint goes, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The archive, an absolute path at which there is nothing.
    pub location: PathBuf,
    /// After so long it fails, and the container goes on.
    pub timeout: Duration,
}

/// Runs sandboxes and containers. All methods are idempotent where the CRI asks for it: stopping or
/// removing what is gone succeeds.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes a sandbox: cgroup, shim, namespaces, network. On failure nothing is left.
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError>;

    /// Kills what runs in a sandbox and gives its network back. It stays listed as `NotReady`.
    async fn stop_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError>;

    /// Removes a sandbox with its containers, cgroup and records; stops it first where needed.
    async fn remove_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError>;

    /// Makes a container ready to start. On failure nothing is left.
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError>;

    /// Runs the container's command. A failure to execute it is [`RuntimeError::Start`], and the
    /// container is then `Exited`.
    async fn start_container(&self, container: &ContainerId) -> Result<(), RuntimeError>;

    /// Sends `signal` to the first process; after `grace`, kills the container's whole cgroup.
    /// Returns once it has exited. A later call with a shorter grace shortens a running one.
    async fn stop_container(
        &self,
        container: &ContainerId,
        signal: StopSignal,
        grace: Duration,
    ) -> Result<(), RuntimeError>;

    /// Removes an exited container, its writable layer and its record; not its log.
    async fn remove_container(&self, container: &ContainerId) -> Result<(), RuntimeError>;

    /// Runs a command in a running container and collects what it prints; at `timeout` it is killed
    /// and the call fails with [`RuntimeError::Host`].
    async fn exec_sync(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError>;

    /// Starts a command in a running container and gives its streams. Returns once it is executed;
    /// a failure to execute it is [`RuntimeError::Start`].
    async fn exec(&self, container: &ContainerId, exec: Exec) -> Result<Session, RuntimeError> {
        let message = format!("container {container}: cannot run {:?} here", exec.command);
        Err(RuntimeError::Invalid(message))
    }

    /// Joins the streams of a running container's first process, from now on.
    ///
    /// A session that does not take its output holds the container back for at most a second at a
    /// time; what does not fit then is not given to it, and counted. The log is never held back.
    async fn attach(
        &self,
        container: &ContainerId,
        _streams: Streams,
    ) -> Result<Session, RuntimeError> {
        Err(RuntimeError::Invalid(format!("container {container} cannot be attached to here")))
    }

    /// Connects to a TCP port on the loopback of a sandbox's network, IPv4 first.
    async fn dial(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream, RuntimeError> {
        let message = format!("sandbox {sandbox}: port {port} cannot be reached from here");
        Err(RuntimeError::Invalid(message))
    }

    /// Opens a container's log anew under its path, somebody else having moved it (CRI
    /// `ReopenContainerLog`). Rotation needs none of this.
    async fn reopen_log(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        Err(RuntimeError::Invalid(format!("container {container} has no log here")))
    }

    /// Writes a running container, memory and files, into an archive as containerd does (CRI
    /// `CheckpointContainer`). It runs on, whether that succeeds or not, after having stood still; the
    /// archive is there whole or not at all.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`]; [`RuntimeError::Invalid`] where it does not run or is being
    /// checkpointed already; [`RuntimeError::Host`] with what criu says, where it cannot be.
    async fn checkpoint(&self, container: &ContainerId, _: Checkpoint) -> Result<(), RuntimeError> {
        Err(RuntimeError::Invalid(format!("container {container} cannot be checkpointed here")))
    }

    /// Where the files are that a container has written to its root. A runtime without such a place says
    /// `None`.
    fn writable_layer(&self, _container: &ContainerId) -> Option<PathBuf> {
        None
    }

    /// What the pods that are up have used. A runtime without cgroups knows of none.
    async fn usage(&self) -> Result<Vec<PodUsage>, RuntimeError> {
        Ok(Vec::new())
    }

    /// What the processes of each running container have open. A runtime without cgroups knows of none.
    async fn open_files(&self) -> Result<BTreeMap<ContainerId, OpenFiles>, RuntimeError> {
        Ok(BTreeMap::new())
    }

    /// All sandboxes with their containers, oldest first.
    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;

    /// The sandboxes of one pod, oldest first.
    async fn pod(&self, uid: &str) -> Result<Vec<SandboxStatus>, RuntimeError>;

    /// Holds a pod, or running containers of it, to other limits, one after the other, and keeps them
    /// with their records; a container that has ended by then is left out. Nothing is done when a
    /// memory limit would fall below what is in use: that is [`RuntimeError::Invalid`], in upstream's
    /// words.
    async fn resize(&self, sandbox: &SandboxId, _: Vec<Resize>) -> Result<(), RuntimeError> {
        Err(RuntimeError::Invalid(format!("sandbox {sandbox} cannot be resized here")))
    }

    /// Sets `cpu.weight` of a QoS class's cgroup, a path relative to the cgroup v2 mount. A class
    /// without pods has no cgroup, and nothing is done. A runtime without cgroups keeps this.
    async fn weigh_class(&self, _cgroup: &Path, _cpu_weight: u64) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Makes a QoS class's cgroup, a path relative to the cgroup v2 mount, and holds it to `limits`. `false`
    /// where cgroups are not there, or no controllers: nothing is held then.
    ///
    /// # Errors
    /// When a memory limit is below what is in use, so that nobody is killed for it, or the kernel refuses.
    async fn limit_class(&self, _cgroup: &Path, _limits: &Resources) -> Result<bool, RuntimeError> {
        Ok(false)
    }

    /// Exits and losses from now on. A slow reader sees `Lagged` and must list again.
    fn events(&self) -> tokio::sync::broadcast::Receiver<RuntimeEvent>;
}

/// The signal that asks a container to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// The image's `STOPSIGNAL`, or `SIGTERM`.
    ImageDefault,
    /// This signal number.
    Signal(i32),
}
