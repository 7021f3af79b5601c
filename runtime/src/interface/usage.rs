//! What pods and containers have used, as the kernel counts it.
//!
//! A counter that the host does not keep is absent: it is not zero.

use serde::{Deserialize, Serialize};

use super::{ContainerId, PodIdentity, Resources, SandboxId};

/// What a cgroup has used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// When it was read, in milliseconds since the epoch.
    pub at_ms: i64,
    /// Processor time.
    pub cpu: Option<CpuUsage>,
    /// Memory.
    pub memory: Option<MemoryUsage>,
    /// Block devices.
    pub io: Option<IoUsage>,
    /// How many processes there are.
    pub processes: Option<u64>,
    /// How many threads they have; absent without the controller.
    #[serde(default)]
    pub threads: Option<u64>,
    /// How long tasks waited for what they did not get.
    #[serde(default)]
    pub pressure: Pressures,
}

/// Pressure stall information, each absent where the kernel does not keep it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressures {
    /// Of the processor.
    pub cpu: Option<Pressure>,
    /// Of memory.
    pub memory: Option<Pressure>,
    /// Of block devices.
    pub io: Option<Pressure>,
}

/// How long a resource was waited for (Linux `accounting/psi.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// While at least one task waited.
    pub some: Stall,
    /// While none could go on.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Altogether, in microseconds.
    pub total_us: u64,
    /// The share of the last 10, 60 and 300 seconds, in hundredths of a percent.
    pub shares: [u32; 3],
}

/// Processor time (`cpu.stat`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuUsage {
    /// All of it, in microseconds.
    pub total_us: u64,
    /// In user mode, in microseconds.
    pub user_us: u64,
    /// In the kernel, in microseconds.
    pub system_us: u64,
    /// What the limit did; absent where none can be set.
    pub throttling: Option<Throttling>,
}

/// What a processor limit did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttling {
    /// Periods in which something ran.
    pub periods: u64,
    /// Periods in which it was stopped.
    pub throttled_periods: u64,
    /// How long it was stopped, in microseconds.
    pub throttled_us: u64,
}

/// Memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Everything charged, page cache included.
    pub usage_bytes: u64,
    /// What cannot easily be taken back: all but inactive page cache.
    pub working_set_bytes: u64,
    /// What the memory controller tells besides; absent where it is not there, and the other numbers
    /// are sums over the processes.
    pub details: Option<MemoryDetails>,
}

/// What the memory controller tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryDetails {
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Page cache.
    pub cache_bytes: u64,
    /// Mapped page cache.
    pub mapped_bytes: u64,
    /// Swap used; absent where swap is not accounted.
    pub swap_bytes: Option<u64>,
    /// The most that was charged at once; absent before Linux 5.19.
    pub peak_bytes: Option<u64>,
    /// Page faults.
    pub faults: u64,
    /// Page faults that waited for a device.
    pub major_faults: u64,
    /// How often the limit was met.
    pub limit_hits: u64,
    /// How often a process was killed for want of memory.
    pub oom_kills: u64,
}

/// Block devices (`io.stat`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoUsage {
    /// Each that was used.
    #[serde(default)]
    pub devices: Vec<DeviceUsage>,
}

/// A block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceUsage {
    /// Its numbers, major and minor.
    pub number: (u32, u32),
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// The counters of one network interface, seen from inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceUsage {
    /// Its name.
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// One direction of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Errors.
    pub errors: u64,
    /// Dropped packets.
    pub dropped: u64,
}

/// What processes have open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFiles {
    /// Descriptors.
    pub descriptors: u64,
    /// Those of sockets among them.
    pub sockets: u64,
    /// How many descriptors the first process may have; absent without a bound.
    pub soft_limit: Option<u64>,
}

/// A pod's cgroup, its network and its containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUsage {
    /// The pod.
    pub pod: PodIdentity,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// The cgroup, as a path below the root: `/kubepods/pod…`.
    pub cgroup: String,
    /// The pod as a whole.
    pub total: Usage,
    /// What it is held to as a whole.
    #[serde(default)]
    pub limits: Resources,
    /// Its interfaces but loopback; empty with `hostNetwork`.
    pub network: Vec<InterfaceUsage>,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// A running container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// The container.
    pub id: ContainerId,
    /// Its name in the pod.
    pub name: String,
    /// The image as the pod names it.
    pub image: String,
    /// When it started, in nanoseconds since the epoch.
    pub started_at: i64,
    /// The cgroup, as a path below the root.
    pub cgroup: String,
    /// What it has used.
    pub usage: Usage,
    /// What it is held to.
    #[serde(default)]
    pub limits: Resources,
}
