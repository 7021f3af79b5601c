//! From a pod to what the runtime is asked to make: [`SandboxConfig`] and [`ContainerConfig`].
//!
//! Pure functions of the pod, its resolved environment and volumes, the image and the node. Errors
//! carry upstream's texts and end up in the container's waiting state
//! (`CreateContainerConfigError`) or in `FailedCreatePodSandBox`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_runtime::interface::{ContainerConfig, Image, LogLimits, Mount, PodIdentity};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::environment::Environment;
use crate::expansion;
use crate::qos::{self, CgroupPolicy, PodDemand};

mod hostname;
mod mounts;
mod sandbox;
mod security;

pub use hostname::{PodHostname, pod_hostname};
pub use mounts::{MountInputs, MountedVolume, PodFilePaths, container_mounts};
pub use sandbox::sandbox_config;
pub use security::{check_seccomp_profile, security};

/// The label that holds the pod's name, on sandboxes and containers.
pub const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The label that holds the pod's namespace.
pub const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// The label that holds the pod's UID.
pub const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
/// The label that holds the container's name.
pub const CONTAINER_NAME_LABEL: &str = "io.kubernetes.container.name";

/// Why a pod or container cannot be described to the runtime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A name or UID that cannot be part of a path.
    #[error("invalid {what} {value:?}")]
    InvalidName {
        /// `pod name`, `pod namespace`, `pod UID` or `container name`.
        what: &'static str,
        /// The name.
        value: String,
    },
    /// A host name that is none, or too long.
    #[error("{0}")]
    Hostname(String),
    /// A user or group id out of range.
    #[error("invalid {field} {value}: must be between 0 and 2147483647, inclusive")]
    InvalidId {
        /// The field.
        field: &'static str,
        /// The id.
        value: i64,
    },
    /// The user contradicts `runAsNonRoot`.
    #[error("{0}")]
    NonRoot(String),
    /// A seccomp profile that cannot be used.
    #[error("{0}")]
    Seccomp(String),
    /// A value that the field does not have.
    #[error("invalid {field}: {value:?}")]
    InvalidValue {
        /// The field.
        field: &'static str,
        /// The value.
        value: String,
    },
    /// A volume mount that cannot be made.
    #[error("{0}")]
    Mount(String),
    /// A sysctl that pods may not set.
    #[error(transparent)]
    Sysctl(#[from] crate::admission::SysctlForbidden),
    /// An AppArmor profile that nobody could have.
    #[error(transparent)]
    AppArmor(#[from] crate::admission::AppArmorRefused),
}

/// What of a node's configuration and hardware shapes sandboxes and containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// What decides cgroup limits.
    pub cgroups: CgroupPolicy,
    /// The node's memory, for OOM scores.
    pub memory_capacity_bytes: u64,
    /// Where Localhost seccomp profiles are.
    pub seccomp_root: PathBuf,
    /// Whether pods without a profile run under the runtime's default one (`seccompDefault`).
    pub seccomp_default: bool,
    /// Log rotation.
    pub log_limits: LogLimits,
    /// `/var/log/pods`.
    pub log_root: PathBuf,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// The node's own host name, which host-network pods keep.
    pub hostname: String,
    /// Patterns of further sysctls that pods may set (`allowedUnsafeSysctls`).
    pub allowed_unsafe_sysctls: Vec<String>,
}

/// What a container's description is made from.
#[derive(Debug, Clone)]
pub struct ContainerInputs<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container, main or init.
    pub container: &'a Container,
    /// The pod's requests and limits.
    pub demand: &'a PodDemand,
    /// The container's resolved environment.
    pub environment: &'a Environment,
    /// The image as it is in the store.
    pub image: &'a Image,
    /// Bind mounts ([`container_mounts`]).
    pub mounts: Vec<Mount>,
    /// How many containers of this name the pod had before.
    pub attempt: u32,
    /// The node.
    pub node: &'a NodeFacts,
}

/// Describes a container to the runtime.
pub fn container_config(inputs: ContainerInputs<'_>) -> Result<ContainerConfig, ConfigError> {
    let ContainerInputs { pod, container, demand, environment, image, mounts, attempt, node } =
        inputs;
    let identity = pod_identity(pod)?;
    require_component("container name", &container.name)?;
    let expand_all = |words: Option<&Vec<String>>| -> Vec<String> {
        let words = words.into_iter().flatten();
        words.map(|word| expansion::expand(word, |name| environment.get(name))).collect()
    };
    let default_demand = qos::ContainerDemand::default();
    let own_demand = demand.container(&container.name).unwrap_or(&default_demand);
    let mut labels = pod_labels(&identity);
    labels.insert(CONTAINER_NAME_LABEL.to_owned(), container.name.clone());
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: image.id.clone(),
        image_reference: container.image.clone().unwrap_or_default(),
        command: expand_all(container.command.as_ref()),
        args: expand_all(container.args.as_ref()),
        env: environment.variables().to_vec(),
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        mounts,
        log_path: PathBuf::from(&container.name).join(format!("{attempt}.log")),
        log_limits: node.log_limits,
        resources: qos::container_resources(demand, own_demand, &node.cgroups),
        oom_score_adj: qos::oom_score_adj(pod, demand, &container.name, node.memory_capacity_bytes),
        security: security(pod, container, image, node)?,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        pid_target: None,
        labels,
    })
}

/// The pod's names, checked to be usable in paths.
pub fn pod_identity(pod: &Pod) -> Result<PodIdentity, ConfigError> {
    let take = |what, value: Option<&String>| {
        let value = value.cloned().unwrap_or_default();
        require_component(what, &value).map(|()| value)
    };
    Ok(PodIdentity {
        namespace: take("pod namespace", pod.metadata.namespace.as_ref())?,
        name: take("pod name", pod.metadata.name.as_ref())?,
        uid: take("pod UID", pod.metadata.uid.as_ref())?,
    })
}

fn pod_labels(identity: &PodIdentity) -> BTreeMap<String, String> {
    BTreeMap::from([
        (POD_NAME_LABEL.to_owned(), identity.name.clone()),
        (POD_NAMESPACE_LABEL.to_owned(), identity.namespace.clone()),
        (POD_UID_LABEL.to_owned(), identity.uid.clone()),
    ])
}

/// Holds a name to what can be one path component and is no surprise in one.
pub(crate) fn require_component(what: &'static str, value: &str) -> Result<(), ConfigError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let usable = !value.is_empty()
        && value.len() <= 253
        && value.bytes().all(allowed)
        && !value.starts_with('.');
    if usable { Ok(()) } else { Err(ConfigError::InvalidName { what, value: value.to_owned() }) }
}

/// A pod as upstream writes it in messages: `name_namespace(uid)`.
fn pod_in_messages(pod: &Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    format!("{}_{}({})", text(&metadata.name), text(&metadata.namespace), text(&metadata.uid))
}

#[cfg(test)]
mod tests;
