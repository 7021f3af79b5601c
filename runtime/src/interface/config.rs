//! What sandboxes and containers are made from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ContainerId, ImageId};

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
    /// The pod's cgroup, relative to the cgroup v2 mount: `kubepods/burstable/pod<uid>`. The path of a
    /// slice (`kubepods.slice/kubepods-pod1.slice`) is systemd's to make.
    pub cgroup_path: PathBuf,
    /// What the pod's cgroup is held to.
    pub resources: Resources,
    /// `hostNetwork`; a host-network pod also keeps the host's UTS namespace.
    pub network: NamespaceMode,
    /// `hostIPC`.
    pub ipc: NamespaceMode,
    /// PID namespace sharing.
    pub pid: PidMode,
    /// A user namespace of the pod's own (`hostUsers: false`), with 65536 ids that no other pod has.
    #[serde(default = "of_host")]
    pub users: NamespaceMode,
    /// Namespaced sysctls, already admitted, in the dotted form.
    pub sysctls: BTreeMap<String, String>,
    /// Ports that the host forwards.
    pub port_mappings: Vec<PortMapping>,
    /// The name that a runtime class has for what runs the pod; it is berth-oci whatever the name.
    #[serde(default)]
    pub runtime_handler: String,
    /// Free key-value pairs kept with the sandbox and returned by [`Runtime::list`].
    pub labels: BTreeMap<String, String>,
}

fn of_host() -> NamespaceMode {
    NamespaceMode::Host
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
    /// The path on the host; empty where it is an image that is mounted.
    pub host_path: PathBuf,
    /// An image of the store that is mounted instead, read-only.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// A path below `host_path` or in the image, resolved without leaving it (`subPath`).
    pub sub_path: Option<PathBuf>,
    /// The absolute path in the container.
    pub container_path: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
    /// Read-only including submounts.
    pub recursive_read_only: bool,
    /// Mount propagation.
    pub propagation: Propagation,
    /// Its files get the container's SELinux label first.
    #[serde(default)]
    pub relabel: bool,
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

/// Which AppArmor profile a container's command executes under.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AppArmor {
    /// None.
    #[default]
    Unconfined,
    /// Nothing is asked for: the runtime's own where the host can have it, else none.
    Unspecified,
    /// The runtime's own.
    RuntimeDefault,
    /// One that is loaded on the host.
    Localhost(String),
}

/// Parts of an SELinux label (`seLinuxOptions`); an absent one is the host's policy's, an absent level the
/// pod's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeLinuxOptions {
    /// The user.
    pub user: Option<String>,
    /// The role.
    pub role: Option<String>,
    /// The type.
    pub kind: Option<String>,
    /// Sensitivities and categories.
    pub level: Option<String>,
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
    /// The AppArmor profile; a privileged container has none.
    #[serde(default)]
    pub app_armor: AppArmor,
    /// Its SELinux label, where the host has SELinux; a privileged container has the agent's.
    #[serde(default)]
    pub selinux: SeLinuxOptions,
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
    /// Sees the processes of this running container of the same sandbox instead of its own
    /// (`targetContainerName` of an ephemeral container). Where the sandbox shares one PID namespace
    /// it changes nothing.
    #[serde(default)]
    pub pid_target: Option<ContainerId>,
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
