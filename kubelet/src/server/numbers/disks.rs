//! The node's disks as the pages tell them: how full each file system is now, and what pods used of them
//! when that was last measured.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use berth_runtime::interface::PodUsage;
use berth_runtime::mount_table;
use rustix::fs::{major, minor};

use super::exposition::{Exposition, Kind, number};
use crate::disk::{Disk, FileSystem, PodUse, Used, VolumeUse};
use crate::shelf::Shelf;

/// A file system, and what is mounted there.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Place {
    pub(super) device: String,
    /// The numbers of the block device, where it is one.
    pub(super) number: Option<(u32, u32)>,
    pub(super) file_system: FileSystem,
}

/// What is told of disks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Disks {
    /// Where volumes and the node's state are.
    pub(super) node: Option<Place>,
    /// Where images are.
    pub(super) images: Option<Place>,
    /// Where writable layers are.
    pub(super) containers: Option<Place>,
    /// What the image store holds.
    pub(super) stored: Option<Used>,
    /// What pods use, by UID.
    pub(super) pods: BTreeMap<String, Arc<PodUse>>,
}

impl Disks {
    /// Asks the node's own file systems how full they are. Blocking.
    pub(super) fn read(disk: &Disk) -> Self {
        let place = |path: &Path, found: std::io::Result<FileSystem>| {
            let device = mount_table::source_of(path).ok().flatten().unwrap_or_default();
            let number = block_number(&device);
            Some(Place { device, number, file_system: found.ok()? })
        };
        Self {
            node: place(disk.root(), disk.node_fs()),
            images: place(&disk.images(), disk.image_fs()),
            containers: place(&disk.layers(), disk.container_fs()),
            ..Self::default()
        }
    }

    /// The node's own file systems, each once.
    pub(super) fn places(&self) -> Vec<&Place> {
        let mut places: Vec<&Place> = Vec::new();
        for place in [&self.node, &self.images, &self.containers].into_iter().flatten() {
            let is_same = |known: &&Place| {
                known.file_system.id == place.file_system.id || known.device == place.device
            };
            if !places.iter().any(is_same) {
                places.push(place);
            }
        }
        places
    }

    /// With what these pods used.
    pub(super) fn with(mut self, disk: &Disk, pods: &[PodUsage]) -> Self {
        let uids = pods.iter().map(|pod| &pod.pod.uid);
        self.pods = uids.filter_map(|uid| Some((uid.clone(), disk.pod(uid)?))).collect();
        self
    }
}

/// The numbers of the block device that a file system is mounted from.
fn block_number(device: &str) -> Option<(u32, u32)> {
    let metadata = device.starts_with("/dev/").then(|| std::fs::metadata(device))?.ok()?;
    let number = metadata.rdev();
    metadata.file_type().is_block_device().then(|| (major(number), minor(number)))
}

/// A claim's namespace and name.
pub(super) type Claim = (String, String);

/// The volumes of pods that are claims, each once.
pub(super) fn claims(shelf: &Shelf, disk: &Disk) -> BTreeMap<Claim, VolumeUse> {
    let mut claims = BTreeMap::new();
    for shown in shelf.shown() {
        let metadata = &shown.pod.metadata;
        let Some(used) = metadata.uid.as_deref().and_then(|uid| disk.pod(uid)) else { continue };
        for volume in used.volumes.values() {
            let Some(claim) = &volume.claim else { continue };
            let namespace = metadata.namespace.clone().unwrap_or_default();
            claims.entry((namespace, claim.clone())).or_insert_with(|| volume.clone());
        }
    }
    claims
}

/// A number of a volume.
type Pick = fn(&VolumeUse) -> u64;

const VOLUMES: [(&str, &str, Pick); 6] = [
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |v| {
        v.file_system.capacity_bytes
    }),
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |v| {
        v.file_system.available_bytes
    }),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |v| v.used.bytes),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |v| {
        v.file_system.inodes
    }),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |v| {
        v.file_system.inodes_free
    }),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |v| v.used.inodes),
];

/// Writes what is told of claims.
pub(super) fn volumes(text: &mut Exposition, claims: &BTreeMap<Claim, VolumeUse>) {
    for (name, help, pick) in VOLUMES {
        let mut family = text.family(name, Kind::Gauge, help);
        for ((namespace, claim), volume) in claims {
            let labels = [("namespace", namespace.as_str()), ("persistentvolumeclaim", claim)];
            family.sample(&labels, number(pick(volume)));
        }
    }
}

/// A number of a file system.
pub(super) type FsPick = fn(&FileSystem) -> u64;

/// What cAdvisor tells of file systems besides what is used of them.
pub(super) const LIMITS: [(&str, &str, FsPick); 3] = [
    (
        "container_fs_limit_bytes",
        "Number of bytes that can be consumed by the container on this filesystem.",
        |fs| fs.capacity_bytes,
    ),
    ("container_fs_inodes_free", "Number of available Inodes", |fs| fs.inodes_free),
    ("container_fs_inodes_total", "Number of Inodes", |fs| fs.inodes),
];
