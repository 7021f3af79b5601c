//! What pods use of the node's disks, and how full those are: for `/stats/summary`, the metrics, eviction
//! and image garbage collection.
//!
//! [`keep`] measures in the background and leaves what it saw here; whoever asks gets the last answer and
//! walks nothing. A mount is asked how full it is, with a deadline; any other directory is walked
//! ([`walk`] says within what bounds) by one walker, which works a fifth of the time.
//!
//! Differs: upstream counts a pod's `/etc/hosts` and termination logs, too; here they are in memory.

mod mounts;
mod pass;
mod targets;
mod walk;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustix::fs::statvfs;

pub(crate) use pass::{Sources, keep};

/// How often is measured, where nothing else is said (`volumeStatsAggPeriod`).
pub const USUAL_PERIOD: Duration = Duration::from_secs(60);

/// What files take: bytes as allocated, hard links counted once, as du(1) has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, directories and whatever else has an inode.
    pub inodes: u64,
}

impl std::ops::Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

impl std::iter::Sum for Used {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| sum + one)
    }
}

/// A file system as it is filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Which one it is: two paths with the same id are on one file system.
    pub id: u64,
    /// How much it holds.
    pub capacity_bytes: u64,
    /// What ordinary users can still write.
    pub available_bytes: u64,
    /// What is written.
    pub used_bytes: u64,
    /// How many inodes it has; 0 where it has no such bound.
    pub inodes: u64,
    /// How many of them are free.
    pub inodes_free: u64,
}

impl FileSystem {
    /// The file system that holds a path. Blocks as long as that file system does.
    ///
    /// # Errors
    /// When the path is not there, or the file system does not tell.
    pub fn of(path: &Path) -> io::Result<Self> {
        let facts = statvfs(path)?;
        Ok(Self {
            id: facts.f_fsid,
            capacity_bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
            available_bytes: facts.f_bavail.saturating_mul(facts.f_frsize),
            used_bytes: facts.f_blocks.saturating_sub(facts.f_bfree).saturating_mul(facts.f_frsize),
            inodes: facts.f_files,
            inodes_free: facts.f_ffree,
        })
    }

    /// What is used of it.
    pub fn used(&self) -> Used {
        let inodes = self.inodes.saturating_sub(self.inodes_free);
        Used { bytes: self.used_bytes, inodes }
    }
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUse {
    /// When it was measured, in milliseconds since the epoch.
    pub at_ms: i64,
    /// The claim that it is, in the pod's namespace.
    pub claim: Option<String>,
    /// Whether it counts as the pod's local ephemeral storage: an `emptyDir` on the disk, a `configMap`.
    pub is_ephemeral: bool,
    /// What is in it.
    pub used: Used,
    /// The file system that it is, or is on.
    pub file_system: FileSystem,
}

/// The newest container of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUse {
    /// When it was measured, in milliseconds since the epoch.
    pub at_ms: i64,
    /// Its writable layer.
    pub rootfs: Used,
    /// Its log files, rotated ones and those of its predecessors too.
    pub logs: Used,
}

/// What a pod uses of disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Its containers, by name; also such as have ended.
    pub containers: BTreeMap<String, ContainerUse>,
    /// Its volumes, by name, where they can be measured.
    pub volumes: BTreeMap<String, VolumeUse>,
}

impl PodUse {
    /// The pod's local ephemeral storage: writable layers, logs and ephemeral volumes.
    pub fn ephemeral(&self) -> Used {
        let containers =
            self.containers.values().map(|container| container.rootfs + container.logs);
        let volumes = self.volumes.values().filter(|volume| volume.is_ephemeral);
        containers.chain(volumes.map(|volume| volume.used)).sum()
    }

    /// When the newest of its numbers was measured.
    pub fn at_ms(&self) -> Option<i64> {
        let containers = self.containers.values().map(|container| container.at_ms);
        containers.chain(self.volumes.values().map(|volume| volume.at_ms)).max()
    }
}

/// The disks of the node. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
    pods: Arc<RwLock<BTreeMap<String, Arc<PodUse>>>>,
}

impl Disk {
    /// The disks of a node with its state below this directory (`/var/lib/berth`); nothing is measured
    /// yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root, pods: Arc::default() }
    }

    /// What the pod of a UID used when it was last measured; `None` before that, a minute at most by
    /// default.
    pub fn pod(&self, uid: &str) -> Option<Arc<PodUse>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// The file system of volumes and of the node's state (`nodefs`), as it is now. Blocks shortly.
    ///
    /// # Errors
    /// Those of [`FileSystem::of`].
    pub fn node_fs(&self) -> io::Result<FileSystem> {
        FileSystem::of(&self.root)
    }

    /// The file system of images (`imagefs`), as it is now. Blocks shortly.
    ///
    /// # Errors
    /// Those of [`FileSystem::of`].
    pub fn image_fs(&self) -> io::Result<FileSystem> {
        self.or_node_fs(&self.images())
    }

    /// The file system of writable layers (`containerfs`), as it is now. Blocks shortly.
    ///
    /// # Errors
    /// Those of [`FileSystem::of`].
    pub fn container_fs(&self) -> io::Result<FileSystem> {
        self.or_node_fs(&self.layers())
    }

    /// Where the node's state is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where images are.
    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where writable layers are.
    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("containers")
    }

    fn or_node_fs(&self, path: &Path) -> io::Result<FileSystem> {
        match FileSystem::of(path) {
            // Nothing has been put there yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.node_fs(),
            found => found,
        }
    }

    /// Puts what was measured of a pod.
    pub(crate) fn put(&self, uid: &str, measured: PodUse) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.insert(uid.to_owned(), Arc::new(measured));
    }

    /// Forgets the pods that are not there any more.
    fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|uid, _| is_there(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ephemeral_storage_is_layers_logs_and_ephemeral_volumes() {
        let used = |bytes| Used { bytes, inodes: 1 };
        let volume = |bytes, is_ephemeral| VolumeUse {
            at_ms: 5,
            claim: None,
            is_ephemeral,
            used: used(bytes),
            file_system: FileSystem::default(),
        };
        let pod = PodUse {
            containers: [(
                "c".to_owned(),
                ContainerUse { at_ms: 7, rootfs: used(1), logs: used(10) },
            )]
            .into(),
            volumes: [("a".to_owned(), volume(100, true)), ("b".to_owned(), volume(1000, false))]
                .into(),
        };
        assert_eq!(pod.ephemeral(), Used { bytes: 111, inodes: 3 });
        assert_eq!((pod.at_ms(), PodUse::default().at_ms()), (Some(7), None));
    }

    #[test]
    fn a_directory_that_is_not_made_yet_is_on_the_nodes_file_system() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::new(root.path().to_owned());
        assert_eq!(disk.image_fs().unwrap().id, disk.node_fs().unwrap().id);
        assert!(disk.container_fs().unwrap().capacity_bytes > 0);
        assert!(FileSystem::of(&root.path().join("nowhere")).is_err());
    }
}
