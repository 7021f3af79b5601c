//! Reads what is left of the node's resources: `/proc`, the cgroup of all pods, statvfs(3).
//!
//! Blocking, and cheap: half a dozen small files and system calls a round.

use std::path::{Path, PathBuf};

use super::plan::{Observation, Observations};
use super::threshold::{Condition, Signal};
use crate::disk::{Disk, FileSystem};
use crate::node::facts;
use crate::quantity::Quantity;

/// Where the node's resources are seen.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root of `/proc`; another in tests.
    pub root: PathBuf,
    /// The node's disks.
    pub disk: Disk,
    /// The cgroup of all pods, where there is a memory controller.
    pub pods: Option<PathBuf>,
    /// Memory that is kept from pods for the system and for berth.
    pub reserved_bytes: u64,
}

/// Reads everything; what cannot be read is left out.
pub(super) fn read(places: &Places) -> Observations {
    let memory = facts::memory(&places.root);
    let of_pods = places.pods.as_deref().and_then(pods_working_set);
    let allocatable = memory.map(|m| m.capacity_bytes.saturating_sub(places.reserved_bytes));
    let node = places.disk.node_fs().ok();
    let images = places.disk.image_fs().ok();
    let layers = places.disk.container_fs().ok();
    let bytes = |fs: Option<FileSystem>| {
        fs.map(|fs| Observation {
            available: Quantity::bytes(fs.available_bytes),
            capacity: Quantity::bytes(fs.capacity_bytes),
        })
    };
    // Some file systems have no bound on inodes.
    let inodes = |fs: Option<FileSystem>| {
        fs.filter(|fs| fs.inodes > 0).map(|fs| counted(fs.inodes_free, fs.inodes))
    };
    let all = [
        (
            Signal::MemoryAvailable,
            memory.map(|m| left_bytes(m.working_set_bytes, m.capacity_bytes)),
        ),
        (
            Signal::AllocatableMemoryAvailable,
            allocatable.zip(of_pods).map(|(capacity, used)| left_bytes(used, capacity)),
        ),
        (Signal::NodeFsAvailable, bytes(node)),
        (Signal::NodeFsInodesFree, inodes(node)),
        (Signal::ImageFsAvailable, bytes(images)),
        (Signal::ImageFsInodesFree, inodes(images)),
        (Signal::ContainerFsAvailable, bytes(layers)),
        (Signal::ContainerFsInodesFree, inodes(layers)),
        (Signal::PidAvailable, pids(&places.root)),
    ];
    all.into_iter().filter_map(|(signal, seen)| Some((signal, seen?))).collect()
}

/// Whether images are on a disk of their own. Writable layers are where the node's state is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// Everything is on one.
    #[default]
    One,
    /// They are.
    OwnImages,
}

impl Layout {
    /// Whether images are on the disk of `signal`.
    pub(super) fn has_images(self, signal: Signal) -> bool {
        signal.condition() == Condition::Disk && (self == Self::One || is_of_images(signal))
    }

    /// Whether what pods write is on the disk of `signal`.
    pub(super) fn has_pods(self, signal: Signal) -> bool {
        self == Self::One || !is_of_images(signal)
    }
}

fn is_of_images(signal: Signal) -> bool {
    matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree)
}

/// Reads which it is.
pub(super) fn layout(disk: &Disk) -> Layout {
    match disk.image_fs().ok().zip(disk.node_fs().ok()) {
        Some((images, node)) if images.id != node.id => Layout::OwnImages,
        _ => Layout::One,
    }
}

fn left_bytes(used: u64, capacity: u64) -> Observation {
    Observation {
        available: Quantity::bytes(capacity.saturating_sub(used)),
        capacity: Quantity::bytes(capacity),
    }
}

fn counted(available: u64, capacity: u64) -> Observation {
    let units = |count: u64| Quantity::units(i64::try_from(count).unwrap_or(i64::MAX));
    Observation { available: units(available), capacity: units(capacity) }
}

/// What the pods hold but inactive page cache.
fn pods_working_set(cgroup: &Path) -> Option<u64> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let current = number(&std::fs::read_to_string(cgroup.join("memory.current")).ok()?)?;
    let stat = std::fs::read_to_string(cgroup.join("memory.stat")).ok()?;
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    Some(current.saturating_sub(inactive.and_then(number).unwrap_or(0)))
}

/// Process ids: as many as the kernel gives, less the tasks there are.
fn pids(root: &Path) -> Option<Observation> {
    let most = facts::most_pids(root)?;
    let load = std::fs::read_to_string(root.join("proc/loadavg")).ok()?;
    let tasks = load.split(' ').nth(3)?.split_once('/')?.1.parse::<u64>().ok()?;
    Some(counted(most.saturating_sub(tasks), most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn what_is_left_is_read_from_the_kernels_files() {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal: 1000 kB\nMemFree: 300 kB\nInactive(file): 200 kB\n";
        write(root.path(), "proc/meminfo", meminfo);
        write(root.path(), "proc/sys/kernel/pid_max", "4194304\n");
        write(root.path(), "proc/sys/kernel/threads-max", "1000\n");
        write(root.path(), "proc/loadavg", "0.1 0.2 0.3 2/250 99\n");
        write(root.path(), "kubepods/memory.current", "500000\n");
        write(root.path(), "kubepods/memory.stat", "anon 1\ninactive_file 100000\n");
        let seen = read(&Places {
            root: root.path().to_owned(),
            disk: Disk::new(root.path().to_owned()),
            pods: Some(root.path().join("kubepods")),
            reserved_bytes: 24_000,
        });
        let left = |signal| seen.get(&signal).map(|s| (s.available.value(), s.capacity.value()));
        assert_eq!(left(Signal::MemoryAvailable), Some((500 << 10, 1000 << 10)));
        assert_eq!(left(Signal::AllocatableMemoryAvailable), Some((600_000, 1_000_000)));
        assert_eq!(left(Signal::PidAvailable), Some((750, 1000)));
        for signal in [Signal::NodeFsAvailable, Signal::ImageFsAvailable] {
            assert!(left(signal).is_some(), "{signal:?}");
        }
        assert_eq!(layout(&Disk::new(root.path().to_owned())), Layout::One);
    }
}
