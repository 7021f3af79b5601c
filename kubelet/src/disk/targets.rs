//! What of a pod is measured, and how. Pure.

use std::path::PathBuf;

use berth_runtime::interface::{ContainerId, SandboxStatus};
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::objects::claim_name;
use crate::volumes::{PodDirectory, VolumePlugin};

/// A volume to be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Its name in the pod.
    pub(super) name: String,
    /// The claim that it is.
    pub(super) claim: Option<String>,
    /// Whether it is local ephemeral storage.
    pub(super) is_ephemeral: bool,
    /// Where it may be.
    pub(super) place: Place,
}

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In the pod's own directory: a mount, or files on the node's disk.
    Own(PathBuf),
    /// Mounted here, if anywhere.
    Mounted(PathBuf),
    /// In a directory of the host whose file system is meant.
    Host(PathBuf),
}

/// The newest container of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) id: ContainerId,
    pub(super) log_directory: PathBuf,
}

/// The volumes of a pod that can be measured. As upstream: those of `hostPath` and images are not, and of
/// claims those that are bound to `local` and `nfs` volumes are.
pub(super) fn volumes(
    pod: &Pod,
    directory: &PodDirectory,
    sandboxes: &[SandboxStatus],
) -> Vec<Target> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| target(pod, volume, (directory, sandboxes))).collect()
}

fn target(
    pod: &Pod,
    volume: &Volume,
    (directory, sandboxes): (&PodDirectory, &[SandboxStatus]),
) -> Option<Target> {
    let place = |plugin| directory.volume_path(plugin, &volume.name).ok();
    let own = |plugin| place(plugin).map(Place::Own);
    let (mut claim, mut is_ephemeral) = (None, false);
    let place = if let Some(source) = &volume.empty_dir {
        is_ephemeral = source.medium.as_deref().unwrap_or_default().is_empty();
        own(VolumePlugin::EmptyDir)
    } else if volume.config_map.is_some() {
        is_ephemeral = true;
        own(VolumePlugin::ConfigMap)
    } else if volume.secret.is_some() {
        own(VolumePlugin::Secret)
    } else if volume.downward_api.is_some() {
        own(VolumePlugin::DownwardApi)
    } else if volume.projected.is_some() {
        own(VolumePlugin::Projected)
    } else if volume.nfs.is_some() {
        place(VolumePlugin::Nfs).map(Place::Mounted)
    } else if let Some(name) = claim_name(pod, volume) {
        claim = Some(name);
        let nfs = place(VolumePlugin::Nfs)?;
        match mounted_from(pod, &volume.name, sandboxes) {
            Some(path) if path != nfs => Some(Place::Host(path)),
            _ => Some(Place::Mounted(nfs)),
        }
    } else {
        None
    };
    Some(Target { name: volume.name.clone(), claim, is_ephemeral, place: place? })
}

/// The directory of the host that a container of the pod has as this volume.
fn mounted_from(pod: &Pod, volume: &str, sandboxes: &[SandboxStatus]) -> Option<PathBuf> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        let mounts = container.volume_mounts.iter().flatten().filter(|mount| mount.name == volume);
        for mount in mounts {
            let made = sandboxes.iter().flat_map(|sandbox| &sandbox.containers);
            let found = made
                .filter(|made| made.config.name == container.name)
                .flat_map(|made| &made.config.mounts)
                .find(|made| made.container_path.as_os_str() == mount.mount_path.as_str());
            if let Some(found) = found.filter(|found| found.image.is_none()) {
                return Some(found.host_path.clone());
            }
        }
    }
    None
}

/// The newest container of each name.
pub(super) fn members(sandboxes: &[SandboxStatus]) -> Vec<Member> {
    let mut all: Vec<_> = sandboxes
        .iter()
        .flat_map(|sandbox| sandbox.containers.iter().map(move |container| (sandbox, container)))
        .collect();
    all.sort_by(|(_, a), (_, b)| {
        (&a.config.name, b.created_at, b.config.attempt).cmp(&(
            &b.config.name,
            a.created_at,
            a.config.attempt,
        ))
    });
    all.dedup_by(|(_, a), (_, b)| a.config.name == b.config.name);
    all.into_iter()
        .map(|(sandbox, container)| Member {
            name: container.config.name.clone(),
            id: container.id.clone(),
            log_directory: sandbox.config.log_directory.join(&container.config.name),
        })
        .collect()
}

#[cfg(test)]
mod tests;
