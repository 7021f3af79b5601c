//! What the host is: read from `/proc`, `/sys` and `/etc` (proc(5), machine-id(5), os-release(5)).
//!
//! What cannot be read is left empty or zero: a node with an unknown OS image still runs pods.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The host's facts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Online processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Swap in bytes.
    pub swap_bytes: u64,
    /// Huge pages reserved, in bytes, by page size in bytes.
    pub hugepages: BTreeMap<u64, u64>,
    /// Size of the file system that holds the state directory.
    pub storage_bytes: u64,
    /// How many process ids there are; `None` where the kernel does not say.
    pub most_pids: Option<u64>,
    /// Go's name of the architecture.
    pub architecture: String,
    /// The kernel's release.
    pub kernel: String,
    /// `PRETTY_NAME` of the distribution.
    pub os_image: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The hardware's UUID, or the machine id.
    pub system_uuid: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// Where facts are read from; another root in tests.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root of `/proc`, `/sys` and `/etc`.
    pub root: PathBuf,
    /// A path on the file system that holds the state directory.
    pub storage: PathBuf,
}

impl Places {
    /// This host's, with the state in `storage`.
    pub fn host(storage: &Path) -> Self {
        Self { root: "/".into(), storage: storage.to_owned() }
    }
}

/// Reads the facts. Blocking, but short: a dozen small files.
pub fn read(places: &Places) -> Facts {
    let file = |path: &str| text(&places.root.join(path));
    let meminfo = file("proc/meminfo");
    let machine_id = file("etc/machine-id");
    let uuid = file("sys/class/dmi/id/product_uuid").to_lowercase();
    Facts {
        cpus: cpus(&file("sys/devices/system/cpu/online")),
        memory_bytes: kilobytes(&meminfo, "MemTotal"),
        swap_bytes: kilobytes(&meminfo, "SwapTotal"),
        hugepages: hugepages(&places.root.join("sys/kernel/mm/hugepages")),
        storage_bytes: storage(&places.storage),
        most_pids: most_pids(&places.root),
        architecture: architecture().to_owned(),
        kernel: file("proc/sys/kernel/osrelease"),
        os_image: os_image(&file("etc/os-release")),
        system_uuid: match uuid.is_empty() {
            true => machine_id.clone(),
            false => uuid,
        },
        machine_id,
        boot_id: file("proc/sys/kernel/random/boot_id"),
    }
}

/// How many process ids the kernel whose `/proc` is below `root` gives. proc(5): pid_max, threads-max.
pub(crate) fn most_pids(root: &Path) -> Option<u64> {
    let number = |name: &str| text(&root.join("proc/sys/kernel").join(name)).parse::<u64>().ok();
    let most = number("pid_max")?;
    Some(number("threads-max").map_or(most, |tasks| most.min(tasks)))
}

/// The memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub capacity_bytes: u64,
    /// What is used and cannot easily be taken back: all but inactive page cache.
    pub working_set_bytes: u64,
}

/// Reads the memory of the host whose `/proc` is below `root`.
pub fn memory(root: &Path) -> Option<Memory> {
    let meminfo = text(&root.join("proc/meminfo"));
    let of = |key: &str| kilobytes(&meminfo, key);
    let capacity_bytes = of("MemTotal");
    let used = capacity_bytes.saturating_sub(of("MemFree"));
    let working_set_bytes = used.saturating_sub(of("Inactive(file)"));
    (capacity_bytes > 0).then_some(Memory { capacity_bytes, working_set_bytes })
}

fn text(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim_end().to_owned()
}

fn storage(path: &Path) -> u64 {
    let facts = rustix::fs::statvfs(path);
    facts.map_or(0, |facts| facts.f_blocks.saturating_mul(facts.f_frsize))
}

fn kilobytes(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// Counts a list as the kernel writes it: `0-3,8`.
fn cpus(list: &str) -> u32 {
    let count = |part: &str| -> Option<u32> {
        match part.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
                last.checked_sub(first)?.checked_add(1)
            }
            None => part.parse::<u32>().ok().map(|_| 1),
        }
    };
    let counted: u32 = list.trim().split(',').filter_map(count).sum();
    if counted > 0 {
        return counted;
    }
    let available = std::thread::available_parallelism();
    available.map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

fn hugepages(directory: &Path) -> BTreeMap<u64, u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            let size = kilobytes.parse::<u64>().ok()?.checked_mul(1024)?;
            let pages = text(&entry.path().join("nr_hugepages")).parse::<u64>().ok()?;
            Some((size, size.saturating_mul(pages)))
        })
        .collect()
}

fn os_image(os_release: &str) -> String {
    let value = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_the_files_of_a_host() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        write("proc/meminfo", "MemTotal:        2048 kB\nMemFree: 1 kB\nSwapTotal: 4 kB\n");
        write("sys/devices/system/cpu/online", "0-3,8\n");
        write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3\n");
        write("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n");
        write("etc/machine-id", "abc\n");
        let facts = read(&Places { root: root.path().to_owned(), storage: root.path().to_owned() });
        assert_eq!((facts.cpus, facts.memory_bytes, facts.swap_bytes), (5, 2 << 20, 4096));
        assert_eq!(facts.hugepages, BTreeMap::from([(2 << 20, 6 << 20)]));
        assert_eq!(facts.os_image, "Debian GNU/Linux 12");
        assert_eq!(facts.system_uuid, "abc");
        assert!(facts.storage_bytes > 0);
    }
}
