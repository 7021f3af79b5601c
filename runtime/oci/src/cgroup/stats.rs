//! A cgroup's counters, in the shape of `runc events`.
//!
//! Names and units are runc's, which are cgroup v1's: nanoseconds, swap counted with memory. What the
//! kernel does not offer is left out, as there. kernel `Documentation/admin-guide/cgroup-v2.rst`.

use std::collections::BTreeMap;

use rustix::io::Errno;
use serde::Serialize;

use super::directory::{Directory, find_key};

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The `data` of an event of type `stats`.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub(crate) struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, HugePages>,
    intel_rdt: Empty,
    /// The command line makes no interfaces.
    network_interfaces: Option<Empty>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct Empty {}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// Switches that only cgroup v1 had.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct CpuSet {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct HugePages {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct Pressure {
    some: PressureLine,
    full: PressureLine,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct PressureLine {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

impl Stats {
    /// Reads all counters; fails only when the cgroup is gone.
    pub(super) fn read(directory: &Directory) -> Result<Self, Errno> {
        // Is there with and without controllers.
        let cpu = directory.read("cpu.stat")?;
        Ok(Self::parse(&cpu, &|name| directory.read(name).ok(), &directory.files()?))
    }

    /// Makes them of the files' texts and the files' names.
    fn parse(cpu: &str, file: &impl Fn(&str) -> Option<String>, files: &[String]) -> Self {
        let text = |name: &str| file(name).unwrap_or_default();
        let pressure = |name: &str| file(name).map(|text| parse_pressure(&text));
        let mut stats = Self {
            cpu: Cpu { psi: pressure("cpu.pressure"), ..parse_cpu(cpu) },
            memory: Memory { psi: pressure("memory.pressure"), ..read_memory(&text) },
            blkio: BlockIo { psi: pressure("io.pressure"), ..parse_block_io(&text("io.stat")) },
            pids: Pids {
                current: number(&text("pids.current")),
                // No limit is told as zero.
                limit: Some(number(&text("pids.max"))).filter(|n| *n != u64::MAX).unwrap_or(0),
            },
            ..Self::default()
        };
        if stats.pids.current == 0 {
            stats.pids.current = text("cgroup.procs").lines().count() as u64;
        }
        for size in huge_page_sizes(files) {
            stats.hugetlb.insert(size.clone(), read_huge_pages(&text, &size));
        }
        stats
    }

    /// What would become of a cgroup all of whose files held the same.
    #[cfg(test)]
    pub(crate) fn of_any(text: &str) -> Self {
        let files: Vec<String> = text.lines().map(str::to_owned).collect();
        Self::parse(text, &|_| Some(text.to_owned()), &files)
    }
}

/// A file of one number; `max` is the largest, and nothing is nothing.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

fn parse_cpu(text: &str) -> Cpu {
    const NANOSECONDS: u64 = 1000;
    let get = |key: &str| find_key(text, key).unwrap_or(0);
    Cpu {
        usage: CpuUsage {
            total: get("usage_usec").saturating_mul(NANOSECONDS),
            kernel: get("system_usec").saturating_mul(NANOSECONDS),
            user: get("user_usec").saturating_mul(NANOSECONDS),
        },
        throttling: Throttling {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: get("throttled_usec").saturating_mul(NANOSECONDS),
        },
        psi: None,
    }
}

fn read_memory(text: &impl Fn(&str) -> String) -> Memory {
    let entry = |name: &str| MemoryEntry {
        limit: number(&text(&format!("{name}.max"))),
        usage: number(&text(&format!("{name}.current"))),
        max: number(&text(&format!("{name}.peak"))),
        failcnt: 0,
    };
    let usage = entry("memory");
    let swap = entry("memory.swap");
    let raw = parse_table(&text("memory.stat"));
    Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap: MemoryEntry {
            usage: swap.usage.saturating_add(usage.usage),
            limit: swap.limit.saturating_add(usage.limit),
            // Two peaks at different times have no sum.
            max: 0,
            failcnt: 0,
        },
        raw,
        ..Memory::default()
    }
}

fn parse_table(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect()
}

fn parse_block_io(text: &str) -> BlockIo {
    let mut result = BlockIo::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut result.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut result.io_service_bytes_recursive, "Write"),
                "rios" => (&mut result.io_serviced_recursive, "Read"),
                "wios" => (&mut result.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlockIoEntry { major, minor, op, value: value.parse().unwrap_or(0) });
        }
    }
    result
}

fn huge_page_sizes(files: &[String]) -> Vec<String> {
    let size = |name: &String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".events")?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    files.iter().filter_map(size).collect()
}

fn read_huge_pages(text: &impl Fn(&str) -> String, size: &str) -> HugePages {
    let mut usage = text(&format!("hugetlb.{size}.rsvd.current"));
    if usage.is_empty() {
        usage = text(&format!("hugetlb.{size}.current"));
    }
    let failures = find_key(&text(&format!("hugetlb.{size}.events")), "max");
    HugePages { usage: number(&usage), max: 0, failcnt: failures.unwrap_or(0) }
}

fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let into = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => into.avg10 = average(value),
                "avg60" => into.avg60 = average(value),
                "avg300" => into.avg300 = average(value),
                "total" => into.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

/// JSON knows numbers that are finite alone.
fn average(text: &str) -> f64 {
    text.parse().ok().filter(|number: &f64| number.is_finite()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> serde_json::Value {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let stats = Stats::read(&Directory::open(directory.path()).unwrap()).unwrap();
        serde_json::to_value(stats).unwrap()
    }

    #[test]
    fn counters_have_the_names_and_units_that_runc_gave_them() {
        let stats = read(&[
            (
                "cpu.stat",
                "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\nthrottled_usec 9\n",
            ),
            ("memory.current", "100\n"),
            ("memory.max", "1000\n"),
            ("memory.peak", "200\n"),
            ("memory.swap.current", "10\n"),
            ("memory.swap.max", "max\n"),
            ("memory.stat", "anon 60\nfile 40\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.25 total=77\n"),
            ("hugetlb.2MB.current", "4096\n"),
            ("hugetlb.2MB.events", "max 2\n"),
            ("hugetlb.2MB.events.local", "max 2\n"),
        ]);
        assert_eq!(
            stats["cpu"]["usage"],
            serde_json::json!({"total":5000,"kernel":2000,"user":3000})
        );
        assert_eq!(
            stats["cpu"]["throttling"],
            serde_json::json!({"throttledPeriods":1,"throttledTime":9000})
        );
        assert_eq!(stats["cpu"]["psi"]["some"]["avg300"], 0.25);
        assert_eq!(
            stats["memory"]["usage"],
            serde_json::json!({"limit":1000,"usage":100,"max":200,"failcnt":0})
        );
        assert_eq!(
            stats["memory"]["swap"],
            serde_json::json!({"limit":u64::MAX,"usage":110,"failcnt":0})
        );
        assert_eq!(stats["memory"]["cache"], 40);
        assert_eq!(stats["memory"]["raw"]["anon"], 60);
        assert_eq!(stats["pids"], serde_json::json!({"current":3}));
        let entries = &stats["blkio"]["ioServicedRecursive"];
        assert_eq!(entries[1], serde_json::json!({"major":8,"op":"Write","value":4}));
        assert_eq!(stats["hugetlb"]["2MB"], serde_json::json!({"usage":4096,"failcnt":2}));
        assert!(stats["network_interfaces"].is_null() && stats["intel_rdt"].is_object());
    }

    #[test]
    fn a_host_without_controllers_still_counts_time_and_processes() {
        let stats = read(&[("cpu.stat", "usage_usec 1\n"), ("cgroup.procs", "7\n8\n")]);
        assert_eq!(
            (&stats["cpu"]["usage"]["total"], &stats["pids"]["current"]),
            (&1000.into(), &2.into())
        );
        assert_eq!(stats["hugetlb"], serde_json::json!({}));
    }
}
