//! What is watched, and from where on it is short: the signals and thresholds of KubeletConfiguration.
//! Reading them from text is the settings' business.

use std::time::Duration;

use crate::quantity::Quantity;

/// Something of the node that can run short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// The node's memory.
    MemoryAvailable,
    /// The memory of all pods together.
    AllocatableMemoryAvailable,
    /// The disk with the node's state, volumes and logs: bytes.
    NodeFsAvailable,
    /// The same: inodes.
    NodeFsInodesFree,
    /// The disk with images and writable layers: bytes.
    ImageFsAvailable,
    /// The same: inodes.
    ImageFsInodesFree,
    /// The disk with writable layers, which is that of the images: bytes.
    ContainerFsAvailable,
    /// The same: inodes.
    ContainerFsInodesFree,
    /// Process ids.
    PidAvailable,
}

impl Signal {
    /// All signals.
    pub const ALL: [Self; 9] = [
        Self::MemoryAvailable,
        Self::AllocatableMemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::ImageFsInodesFree,
        Self::ContainerFsAvailable,
        Self::ContainerFsInodesFree,
        Self::PidAvailable,
    ];

    /// Its name in the configuration and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::AllocatableMemoryAvailable => "allocatableMemory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::ContainerFsAvailable => "containerfs.available",
            Self::ContainerFsInodesFree => "containerfs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The signal of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }

    /// The condition that the node is then in.
    pub fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Condition::Memory,
            Self::PidAvailable => Condition::Pid,
            _ => Condition::Disk,
        }
    }

    /// What is short.
    pub fn resource(self) -> Resource {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Resource::Memory,
            Self::PidAvailable => Resource::Pids,
            Self::NodeFsAvailable | Self::ImageFsAvailable | Self::ContainerFsAvailable => {
                Resource::Storage
            }
            _ => Resource::Inodes,
        }
    }
}

/// A pressure that the node can be under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

impl Condition {
    /// The condition's type in the node's status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

/// What pods are ended to get back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Disk space.
    Storage,
    /// Inodes.
    Inodes,
    /// Process ids.
    Pids,
}

impl Resource {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Storage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

/// A quantity, or a part of all there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So much.
    Quantity(Quantity),
    /// So much of the whole, 1 being all. Of the precision that upstream has, so that amounts are equal.
    Share(f32),
}

impl Amount {
    /// How much that is of a capacity.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "upstream's arithmetic; a share is of a capacity that is no larger than 2^63"
    )]
    pub fn of(self, capacity: Quantity) -> Quantity {
        match self {
            Self::Quantity(quantity) => quantity,
            Self::Share(share) => {
                Quantity::bytes((capacity.unsigned_value() as f64 * f64::from(share)) as u64)
            }
        }
    }
}

/// From where on a signal is a matter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// Less than this is short.
    pub value: Amount,
    /// How long it may be short before pods are ended; zero is a hard threshold.
    pub grace: Duration,
    /// How much more has to be there again before the matter is settled.
    pub min_reclaim: Option<Amount>,
}

impl Threshold {
    /// Whether pods are ended at once.
    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }
}

/// What decides evictions.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The thresholds, those of memory for all pods included.
    pub thresholds: Vec<Threshold>,
    /// The longest grace that a pod has where a soft threshold ends it.
    pub max_pod_grace: Duration,
    /// How long a condition outlasts its cause.
    pub transition: Duration,
}

impl Config {
    /// These thresholds and upstream's usual rest. Where there is a hard threshold for the node's memory,
    /// it also holds for that of the pods.
    pub fn new(mut thresholds: Vec<Threshold>) -> Self {
        let hard = |t: &&Threshold| t.signal == Signal::MemoryAvailable && t.is_hard();
        let memory = thresholds.iter().find(hard).copied();
        let signal = Signal::AllocatableMemoryAvailable;
        thresholds.extend(memory.map(|threshold| Threshold { signal, ..threshold }));
        Self { thresholds, max_pod_grace: Duration::ZERO, transition: Duration::from_secs(300) }
    }

    /// How much of a capacity the hard threshold of a signal keeps from pods.
    pub fn kept_bytes(&self, signal: Signal, capacity_bytes: u64) -> u64 {
        let hard = self.thresholds.iter().find(|t| t.signal == signal && t.is_hard());
        let capacity = Quantity::bytes(capacity_bytes);
        hard.map_or(0, |threshold| threshold.value.of(capacity).unsigned_value())
    }
}

impl Default for Config {
    /// Upstream's hard thresholds.
    fn default() -> Self {
        let hard =
            |signal, value| Threshold { signal, value, grace: Duration::ZERO, min_reclaim: None };
        Self::new(vec![
            hard(Signal::MemoryAvailable, Amount::Quantity(Quantity::bytes(100 << 20))),
            hard(Signal::NodeFsAvailable, Amount::Share(0.10)),
            hard(Signal::NodeFsInodesFree, Amount::Share(0.05)),
            hard(Signal::ImageFsAvailable, Amount::Share(0.15)),
            hard(Signal::ImageFsInodesFree, Amount::Share(0.05)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_found_by_its_name() {
        for signal in Signal::ALL {
            assert_eq!(Signal::named(signal.name()), Some(signal));
        }
        assert_eq!(Signal::named("memory.free"), None);
    }

    #[test]
    fn a_share_is_of_the_capacity_and_the_default_keeps_what_upstream_keeps() {
        let config = Config::default();
        let kept = |signal, capacity| config.kept_bytes(signal, capacity);
        assert_eq!(kept(Signal::MemoryAvailable, 1 << 40), 100 << 20);
        // 0.1 has no exact form; upstream's nodes show the same odd end.
        assert_eq!(kept(Signal::NodeFsAvailable, 100_000_000_000), 10_000_000_149);
        assert_eq!(kept(Signal::PidAvailable, 1000), 0);
        let hard = config.thresholds.iter().filter(|t| t.is_hard()).count();
        assert_eq!((hard, config.thresholds.len()), (6, 6), "the pods' memory is one of them");
    }
}
