//! What a pod's sandbox is made from.

use std::net::IpAddr;
use std::path::PathBuf;

use berth_runtime::interface::{
    NamespaceMode, PidMode, PodIdentity, PortMapping, Protocol, SandboxConfig,
};
use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodSpec};

use super::{ConfigError, NodeFacts, pod_hostname, pod_identity, pod_labels};
use crate::admission::SysctlPolicy;
use crate::qos::{self, PodDemand};

/// Describes a pod's sandbox to the runtime; the handler is the unnamed one, until its class is known
/// ([`crate::runtime_class`]).
pub fn sandbox_config(
    pod: &Pod,
    demand: &PodDemand,
    attempt: u32,
    node: &NodeFacts,
) -> Result<SandboxConfig, ConfigError> {
    let identity = pod_identity(pod)?;
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let mode = |host: Option<bool>| match host {
        Some(true) => NamespaceMode::Host,
        _ => NamespaceMode::Pod,
    };
    let network = mode(spec.host_network);
    let hostname = match network {
        NamespaceMode::Host => node.hostname.clone(),
        NamespaceMode::Pod => pod_hostname(pod, &node.cluster_domain)?.kernel_name,
    };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => PidMode::Host,
        (_, Some(true)) => PidMode::Pod,
        _ => PidMode::Container,
    };
    Ok(SandboxConfig {
        attempt,
        hostname,
        log_directory: log_directory(&node.log_root, &identity),
        cgroup_path: node.cgroups.driver.pod_path(demand.class(), &identity.uid),
        resources: qos::pod_resources(demand, &node.cgroups),
        network,
        ipc: mode(spec.host_ipc),
        pid,
        users: match spec.host_users {
            Some(false) => NamespaceMode::Pod,
            None | Some(true) => NamespaceMode::Host,
        },
        sysctls: SysctlPolicy::new(&node.allowed_unsafe_sysctls).admitted(pod)?,
        port_mappings: port_mappings(spec)?,
        labels: pod_labels(&identity),
        runtime_handler: String::new(),
        pod: identity,
    })
}

/// `<log root>/<namespace>_<name>_<uid>`.
fn log_directory(root: &std::path::Path, pod: &PodIdentity) -> PathBuf {
    root.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

/// Ports that the host forwards. A host-network pod listens on the host itself, so it has none.
fn port_mappings(spec: &PodSpec) -> Result<Vec<PortMapping>, ConfigError> {
    if spec.host_network == Some(true) {
        return Ok(Vec::new());
    }
    let sidecars = spec.init_containers.iter().flatten();
    let running = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports =
        running.chain(&spec.containers).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.is_some_and(|number| number != 0))
        .map(port_mapping)
        .collect()
}

fn port_mapping(port: &ContainerPort) -> Result<PortMapping, ConfigError> {
    let number = |field, value: i32| match u16::try_from(value) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(ConfigError::InvalidValue { field, value: value.to_string() }),
    };
    let invalid = |field, value: &str| ConfigError::InvalidValue { field, value: value.to_owned() };
    let host_ip = match port.host_ip.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let address: IpAddr = text.parse().map_err(|_| invalid("hostIP", text))?;
            Some(address).filter(|address| !address.is_unspecified())
        }
    };
    Ok(PortMapping {
        host_ip,
        host_port: number("hostPort", port.host_port.unwrap_or(0))?,
        container_port: number("containerPort", port.container_port)?,
        protocol: match port.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => return Err(invalid("protocol", other)),
        },
    })
}
