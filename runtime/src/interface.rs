//! The seam between the pod worker and what runs pods: plain values and three traits.
//!
//! Shaped after CRI v1 (`RuntimeService`, `ImageService`), so that a CRI server can sit on the same
//! traits. It holds no Kubernetes types. [`Runtime`] and [`Images`] are implemented by
//! [`crate::engine`] and by the kubelet's fake; [`PodNetwork`] is implemented by the binary over the
//! `cni` crate, and by fakes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Identifies a sandbox: 32 lower-case hexadecimal digits, unique on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// Identifies a container: 64 lower-case hexadecimal digits, unique on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// An identifier that is not lower-case hexadecimal of the right length.
#[derive(Debug, thiserror::Error)]
#[error("{value:?} is not an identifier of {expected} lower-case hexadecimal digits")]
pub struct InvalidId {
    value: String,
    expected: usize,
}

fn validate_id(value: String, expected: usize) -> Result<String, InvalidId> {
    let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if value.len() == expected && value.bytes().all(hexadecimal) {
        Ok(value)
    } else {
        Err(InvalidId { value, expected })
    }
}

macro_rules! identifier {
    ($name:ident, $length:literal) => {
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                validate_id(value, $length).map(Self)
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl $name {
            /// The identifier's digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
identifier!(SandboxId, 32);
identifier!(ContainerId, 64);

/// Names the pod a sandbox belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodIdentity {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID as the API server (or the static source) gave it.
    pub uid: String,
}

/// Whether a namespace is the pod's own or the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// One namespace for the whole pod.
    #[default]
    Pod,
    /// The host's namespace.
    Host,
}

/// Which PID namespace the containers of a pod see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidMode {
    /// Each container has its own (Kubernetes' default).
    #[default]
    Container,
    /// All share one, with a reaper as PID 1 (`shareProcessNamespace`).
    Pod,
    /// The host's (`hostPID`).
    Host,
}

/// A pod-level port that the host forwards to the pod (`hostPort`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The address on the host, or any when absent.
    pub host_ip: Option<IpAddr>,
    /// The port on the host, 1–65535.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// A transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What a sandbox is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The pod.
    pub pod: PodIdentity,
    /// How many sandboxes this pod had before this one.
    pub attempt: u32,
    /// The UTS host name (already resolved from hostname, subdomain and FQDN settings).
    pub hostname: String,
    /// `/var/log/pods/<namespace>_<name>_<uid>`.
    pub log_directory: PathBuf,
    /// The pod's cgroup, relative to the cgroup v2 mount: `kubepods/burstable/pod<uid>`.
    pub cgroup_path: PathBuf,
    /// What the pod's cgroup is held to.
    pub resources: Resources,
    /// `hostNetwork`; a host-network pod also keeps the host's UTS namespace.
    pub network: NamespaceMode,
    /// `hostIPC`.
    pub ipc: NamespaceMode,
    /// PID namespace sharing.
    pub pid: PidMode,
    /// Namespaced sysctls, already admitted, in the dotted form.
    pub sysctls: BTreeMap<String, String>,
    /// Ports that the host forwards.
    pub port_mappings: Vec<PortMapping>,
    /// Free key-value pairs kept with the sandbox and returned by [`Runtime::list`].
    pub labels: BTreeMap<String, String>,
}

/// cgroup v2 limits. `None` leaves the kernel's default in place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// `cpu.weight`, 1–10000.
    pub cpu_weight: Option<u64>,
    /// `cpu.max`: quota in microseconds a period.
    pub cpu_quota_us: Option<u64>,
    /// `cpu.max`: the period in microseconds (100 000 where absent).
    pub cpu_period_us: Option<u64>,
    /// `memory.max` in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// `memory.swap.max` in bytes.
    pub memory_swap_bytes: Option<u64>,
    /// `memory.oom.group`: an OOM kills the whole container.
    pub oom_group: bool,
    /// `pids.max`.
    pub pids_limit: Option<u64>,
    /// `hugetlb.<size>.max` in bytes, by page size name (`2MB`).
    pub hugetlb: BTreeMap<String, u64>,
}

/// How mount events pass between host and container (`mountPropagation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Propagation {
    /// Nothing passes (`None`).
    #[default]
    Private,
    /// Host to container (`HostToContainer`).
    HostToContainer,
    /// Both ways (`Bidirectional`).
    Bidirectional,
}

/// A bind mount of a host path into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The path on the host.
    pub host_path: PathBuf,
    /// A path below `host_path`, resolved without leaving it (`subPath`).
    pub sub_path: Option<PathBuf>,
    /// The absolute path in the container.
    pub container_path: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
    /// Read-only including submounts.
    pub recursive_read_only: bool,
    /// Mount propagation.
    pub propagation: Propagation,
}

/// Which seccomp filter a container runs under.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Seccomp {
    /// The Docker-equivalent default profile.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile in the OCI/Docker JSON form on the host.
    Localhost(PathBuf),
}

/// How the image's groups and `supplementalGroups` are combined (KEP-3619).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SupplementalGroupsPolicy {
    /// Groups of the image's `/etc/group` are added.
    #[default]
    Merge,
    /// Only the named groups.
    Strict,
}

/// A container's security settings, pod and container level already merged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Security {
    /// Full capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// The user id; absent means the image's `USER`.
    pub run_as_user: Option<u32>,
    /// The primary group id; absent means the user's group of the image.
    pub run_as_group: Option<u32>,
    /// Additional groups (`supplementalGroups`, `fsGroup`).
    pub supplemental_groups: Vec<u32>,
    /// Merge or Strict.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Capabilities added to the default set, without `CAP_`; `ALL` is all.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken from the default set, without `CAP_`; `ALL` is all.
    pub drop_capabilities: Vec<String>,
    /// Sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// The root file system is mounted read-only.
    pub read_only_rootfs: bool,
    /// The seccomp filter.
    pub seccomp: Seccomp,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
}

/// What a container is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The container's name in the pod.
    pub name: String,
    /// How many containers of this name the pod had before (the restart count).
    pub attempt: u32,
    /// The image as resolved by [`Images`].
    pub image: ImageId,
    /// The reference the pod asked for, kept for listings.
    pub image_reference: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Environment in order; overrides the image's.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Bind mounts in mount order.
    pub mounts: Vec<Mount>,
    /// The log file's path below the sandbox's log directory: `<name>/<attempt>.log`.
    pub log_path: PathBuf,
    /// When to rotate the log.
    pub log_limits: LogLimits,
    /// The container's cgroup limits.
    pub resources: Resources,
    /// `oom_score_adj`, −1000–1000.
    pub oom_score_adj: i32,
    /// Security settings.
    pub security: Security,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// Standard input stays open for attach.
    pub stdin: bool,
    /// Standard input closes after the first attach session.
    pub stdin_once: bool,
    /// Free key-value pairs kept with the container and returned by [`Runtime::list`].
    pub labels: BTreeMap<String, String>,
}

/// Log rotation: `containerLogMaxSize` and `containerLogMaxFiles`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Rotate before the file would exceed this many bytes.
    pub max_bytes: u64,
    /// Keep at most this many files, the current one included; at least 2.
    pub max_files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_files: 5 }
    }
}

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
    /// Standard output, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
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

    /// All sandboxes with their containers, oldest first.
    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;

    /// The sandboxes of one pod, oldest first.
    async fn pod(&self, uid: &str) -> Result<Vec<SandboxStatus>, RuntimeError>;

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

/// An image's identity: the digest of its configuration, `sha256:<64 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl TryFrom<String> for ImageId {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        match value.strip_prefix("sha256:") {
            Some(digits) => validate_id(digits.to_owned(), 64).map(|d| Self(format!("sha256:{d}"))),
            None => Err(InvalidId { value, expected: 64 }),
        }
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.0
    }
}

impl ImageId {
    /// `sha256:<64 hex digits>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ImageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The configuration's digest.
    pub id: ImageId,
    /// Normalized references with a tag: `docker.io/library/busybox:1.36`.
    pub tags: Vec<String>,
    /// Normalized references with the manifest's digest: `docker.io/library/busybox@sha256:…`.
    pub digests: Vec<String>,
    /// Bytes of the layers as stored, unpacked.
    pub size_bytes: u64,
    /// The `USER` of the configuration, unresolved.
    pub user: String,
    /// Whether garbage collection must keep it.
    pub pinned: bool,
}

/// A user name and password, or an identity token, for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Basic authentication, also used to ask for bearer tokens.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A bearer token used as it is.
    Bearer(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

/// How far a pull has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    /// Compressed bytes received.
    pub received_bytes: u64,
    /// Compressed bytes in all; 0 until the manifest is known.
    pub total_bytes: u64,
}

/// Receives progress; must not block.
pub type ProgressSink = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// Why an image operation failed, in the classes that decide a pod's reason strings.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a reference (upstream's `InvalidImageName`).
    #[error("couldn't parse image name {reference:?}: {message}")]
    InvalidName {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        message: String,
    },
    /// The registry has no such image, or denies it (`ErrImagePull`).
    #[error("failed to pull image {reference:?}: {message}")]
    Pull {
        /// What was asked for.
        reference: String,
        /// What the registry, the network or the verification said, without credentials.
        message: String,
    },
    /// The registry cannot be reached (`RegistryUnavailable`).
    #[error("failed to pull image {reference:?}: registry unavailable: {message}")]
    RegistryUnavailable {
        /// What was asked for.
        reference: String,
        /// What the network said.
        message: String,
    },
    /// The store failed.
    #[error("{operation}")]
    Store {
        /// What was being done, with its facts.
        operation: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Keeps images.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The image a reference (tag, digest or image id) names in the store, without any network.
    async fn status(&self, reference: &str) -> Result<Option<Image>, ImageError>;

    /// Pulls, verifies and unpacks. Concurrent pulls of one layer share it.
    async fn pull(
        &self,
        reference: &str,
        credentials: Vec<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Image, ImageError>;

    /// All images.
    async fn list(&self) -> Result<Vec<Image>, ImageError>;

    /// Drops an image's references and, where no other image needs them, its layers.
    async fn remove(&self, reference: &str) -> Result<(), ImageError>;
}

/// A pod's wish for a network interface.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The pod.
    pub pod: PodIdentity,
    /// The pinned network namespace (`/run/berth/…/ns/net`).
    pub netns: PathBuf,
    /// Ports that the host forwards.
    pub port_mappings: Vec<PortMapping>,
}

/// Wires sandboxes to the pod network.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the sandbox its interface and addresses, primary first. Attaching twice returns the
    /// same addresses. On failure nothing is left.
    async fn attach(&self, request: AttachRequest) -> Result<Vec<IpAddr>, String>;

    /// Takes interface, addresses and ports back. Succeeds when they are gone.
    async fn detach(&self, sandbox: &SandboxId) -> Result<(), String>;

    /// Frees everything not held by one of `live`.
    async fn collect(&self, live: &[SandboxId]) -> Result<(), String>;
}
