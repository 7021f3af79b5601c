//! berth's sandboxes, containers and images in the CRI's words. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::messages::*;
use crate::interface::{self, PidMode, SandboxStatus};

/// A sandbox in a list.
pub(super) fn sandbox(status: &SandboxStatus) -> PodSandbox {
    PodSandbox {
        id: status.id.to_string(),
        metadata: Some(sandbox_metadata(status)),
        state: sandbox_state(status).into(),
        created_at: status.created_at,
        labels: status.config.labels.clone(),
        runtime_handler: status.config.runtime_handler.clone(),
    }
}

fn sandbox_metadata(status: &SandboxStatus) -> PodSandboxMetadata {
    let pod = &status.config.pod;
    PodSandboxMetadata {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        attempt: status.config.attempt,
    }
}

fn sandbox_state(status: &SandboxStatus) -> PodSandboxState {
    match status.state {
        interface::SandboxState::Ready => PodSandboxState::Ready,
        interface::SandboxState::NotReady => PodSandboxState::NotReady,
    }
}

/// Whether a filter lets a sandbox through.
pub(super) fn is_wanted_sandbox(filter: &PodSandboxFilter, status: &SandboxStatus) -> bool {
    let state =
        filter.state.as_ref().is_none_or(|wanted| wanted.state == sandbox_state(status) as i32);
    state
        && status.id.as_str().starts_with(&filter.id)
        && has_labels(&status.config.labels, &filter.label_selector)
}

fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// All that is known of a sandbox.
pub(super) fn sandbox_status(status: &SandboxStatus) -> PodSandboxStatus {
    let mut ips = status.ips.iter().map(IpAddr::to_string);
    let network = PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    };
    let mode = |mode: interface::NamespaceMode| match mode {
        interface::NamespaceMode::Pod => NamespaceMode::Pod.into(),
        interface::NamespaceMode::Host => NamespaceMode::Node.into(),
    };
    let config = &status.config;
    let pid = match config.pid {
        PidMode::Container => NamespaceMode::Container,
        PidMode::Pod => NamespaceMode::Pod,
        PidMode::Host => NamespaceMode::Node,
    };
    let options =
        NamespaceOption { network: mode(config.network), pid: pid.into(), ipc: mode(config.ipc) };
    PodSandboxStatus {
        id: status.id.to_string(),
        metadata: Some(sandbox_metadata(status)),
        state: sandbox_state(status).into(),
        created_at: status.created_at,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(options) }),
        }),
        labels: config.labels.clone(),
        runtime_handler: config.runtime_handler.clone(),
    }
}

/// A container in a list.
pub(super) fn container(status: &interface::ContainerStatus) -> Container {
    let config = &status.config;
    Container {
        id: status.id.to_string(),
        pod_sandbox_id: status.sandbox.to_string(),
        metadata: Some(container_metadata(config)),
        image: Some(ImageSpec { image: config.image_reference.clone() }),
        image_ref: config.image.to_string(),
        state: container_state(&status.state).into(),
        created_at: status.created_at,
        labels: config.labels.clone(),
        image_id: config.image.to_string(),
    }
}

fn container_metadata(config: &interface::ContainerConfig) -> ContainerMetadata {
    ContainerMetadata { name: config.name.clone(), attempt: config.attempt }
}

fn container_state(state: &interface::ContainerState) -> ContainerState {
    match state {
        interface::ContainerState::Created => ContainerState::Created,
        interface::ContainerState::Running { .. } => ContainerState::Running,
        interface::ContainerState::Exited { .. } => ContainerState::Exited,
    }
}

/// Whether a filter lets a container through.
pub(super) fn is_wanted_container(
    filter: &ContainerFilter,
    status: &interface::ContainerStatus,
) -> bool {
    let state = container_state(&status.state);
    filter.state.as_ref().is_none_or(|wanted| wanted.state == state as i32)
        && status.id.as_str().starts_with(&filter.id)
        && status.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && has_labels(&status.config.labels, &filter.label_selector)
}

/// All that is known of a container.
pub(super) fn container_status(
    sandbox: &SandboxStatus,
    status: &interface::ContainerStatus,
) -> ContainerStatus {
    let config = &status.config;
    let mut view = ContainerStatus {
        id: status.id.to_string(),
        metadata: Some(container_metadata(config)),
        state: container_state(&status.state).into(),
        created_at: status.created_at,
        image: Some(ImageSpec { image: config.image_reference.clone() }),
        image_ref: config.image.to_string(),
        image_id: config.image.to_string(),
        labels: config.labels.clone(),
        mounts: config.mounts.iter().map(mount).collect(),
        log_path: sandbox.config.log_directory.join(&config.log_path).display().to_string(),
        user: status.user.as_ref().map(user),
        reason: reason(&status.state).to_owned(),
        ..ContainerStatus::default()
    };
    match &status.state {
        interface::ContainerState::Created => {}
        interface::ContainerState::Running { started_at } => view.started_at = *started_at,
        interface::ContainerState::Exited {
            started_at, finished_at, exit_code, message, ..
        } => {
            view.started_at = *started_at;
            view.finished_at = *finished_at;
            view.exit_code = *exit_code;
            view.message.clone_from(message);
        }
    }
    view
}

/// Why a container ended, in the words that clients know.
pub(super) fn reason(state: &interface::ContainerState) -> &'static str {
    match state {
        interface::ContainerState::Exited { oom_killed: true, .. } => "OOMKilled",
        interface::ContainerState::Exited { exit_code: 0, .. } => "Completed",
        interface::ContainerState::Exited { .. } => "Error",
        _ => "",
    }
}

fn mount(mount: &interface::Mount) -> Mount {
    let propagation = match mount.propagation {
        interface::Propagation::Private => MountPropagation::Private,
        interface::Propagation::HostToContainer => MountPropagation::HostToContainer,
        interface::Propagation::Bidirectional => MountPropagation::Bidirectional,
    };
    let below = mount.sub_path.as_ref().map(|path| mount.host_path.join(path));
    Mount {
        container_path: mount.container_path.display().to_string(),
        host_path: below.as_ref().unwrap_or(&mount.host_path).display().to_string(),
        readonly: mount.read_only,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_read_only,
    }
}

fn user(user: &interface::ResolvedUser) -> ContainerUser {
    let linux = LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: user.supplemental_groups.iter().copied().map(i64::from).collect(),
    };
    ContainerUser { linux: Some(linux) }
}

/// An image. Its user is a number or a name, as the image says it.
pub(super) fn image(image: &interface::Image) -> Image {
    let name = image.user.split(':').next().unwrap_or_default();
    let uid = name.parse::<u32>().ok().map(|uid| Int64Value { value: uid.into() });
    Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size_bytes,
        username: if uid.is_some() { String::new() } else { name.to_owned() },
        uid,
        pinned: image.pinned,
    }
}
