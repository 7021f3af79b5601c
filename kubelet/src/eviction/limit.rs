//! The limits on what a pod has on the node's disks, held against what was measured. Pure.

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::disk::{PodUse, Used};
use crate::qos::PodDemand;
use crate::quantity::Quantity;

/// What a pod has on disk that counts when pods are ranked: layers, logs and local volumes.
pub(super) fn local(pod: &Pod, of: &PodUse) -> Used {
    let containers = of.containers.values().map(|of| of.rootfs + of.logs);
    let volumes = volumes(pod).filter(|volume| is_local(volume));
    let volumes = volumes.filter_map(|volume| of.volumes.get(&volume.name)).map(|of| of.used);
    containers.chain(volumes).sum()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Whether a volume takes space on the node's disks.
fn is_local(volume: &Volume) -> bool {
    let is_on_disk = |medium: &str| medium.is_empty();
    let empty_dir = volume.empty_dir.as_ref();
    empty_dir.is_some_and(|dir| dir.medium.as_deref().is_none_or(is_on_disk))
        || volume.host_path.is_some()
        || volume.git_repo.is_some()
        || volume.config_map.is_some()
}

/// A limit on the disk use of a pod that is overstepped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// Which sort of limit, as metrics name it.
    pub limit: &'static str,
    /// The message.
    pub message: String,
}

/// Whether there is any limit on the disk use of a pod, so that it has to be measured.
pub fn is_limited(pod: &Pod) -> bool {
    let has_limit = |volume: &Volume| size_limit(volume).is_some();
    let limited = |demand: PodDemand| demand.limits().contains_key("ephemeral-storage");
    volumes(pod).any(has_limit) || PodDemand::parse(pod).is_ok_and(limited)
}

fn size_limit(volume: &Volume) -> Option<Quantity> {
    let limit = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
    Quantity::try_from(limit).ok().filter(Quantity::is_positive)
}

/// The first limit on its disk use that a pod oversteps.
pub fn excess(pod: &Pod, disk: &PodUse) -> Option<Excess> {
    for volume in volumes(pod) {
        let used = disk.volumes.get(&volume.name).map(|used| Quantity::bytes(used.used.bytes));
        if let (Some(limit), Some(used)) = (size_limit(volume), used)
            && used > limit
        {
            let name = &volume.name;
            return Some(Excess {
                limit: "emptydirfs.limit",
                message: format!(
                    "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". "
                ),
            });
        }
    }
    let demand = PodDemand::parse(pod).ok()?;
    if let Some(limit) = demand.limits().get("ephemeral-storage")
        && Quantity::bytes(disk.ephemeral().bytes) > *limit
    {
        return Some(Excess {
            limit: "ephemeralpodfs.limit",
            message: format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
            ),
        });
    }
    disk.containers.iter().find_map(|(name, of)| {
        let main = demand.containers.iter().find(|container| container.name == *name)?;
        let limit = main.limit("ephemeral-storage")?;
        let bytes = (of.rootfs + of.logs).bytes;
        (Quantity::bytes(bytes) > limit).then(|| Excess {
            limit: "ephemeralcontainerfs.limit",
            message: format!(
                "Container {name} exceeded its local ephemeral storage limit \"{limit}\". "
            ),
        })
    })
}

#[cfg(test)]
mod tests;
