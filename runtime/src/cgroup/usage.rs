//! Reads what a cgroup has used, straight from its files (Linux `admin-guide/cgroup-v2.rst`).
//!
//! Where a controller is missing, what can be had otherwise is taken: processor time is kept by every
//! v2 cgroup; memory is then summed over the processes, which costs a file for each.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::interface::{
    CpuUsage, DeviceUsage, InterfaceUsage, IoUsage, MemoryDetails, MemoryUsage, Pressure,
    Pressures, Stall, Throttling, Traffic, Usage,
};

/// How deep processes of a cgroup may stand below it.
const DEPTH: u32 = 4;

/// Reads a cgroup's counters. A cgroup that is gone has none.
pub fn read(directory: &Path) -> Usage {
    let pids = processes(directory, DEPTH);
    let counters = counters(directory);
    Usage {
        memory: counters.memory.or_else(|| summed(&pids)),
        processes: u64::try_from(pids.len()).ok().filter(|_| directory.exists()),
        ..counters
    }
}

/// Reads what the kernel itself has counted of a cgroup: no process is looked at. Blocking; half a dozen
/// small files.
pub fn counters(directory: &Path) -> Usage {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Usage {
        at_ms: i64::try_from(at.as_millis()).unwrap_or(i64::MAX),
        cpu: text(directory, "cpu.stat").map(|text| cpu(&text)),
        memory: number(directory, "memory.current").map(|current| memory(directory, current)),
        io: text(directory, "io.stat").map(|text| io(&text)),
        processes: None,
        threads: number(directory, "pids.current"),
        pressure: pressures(directory, ".pressure"),
    }
}

/// Reads the pressure files `cpu`, `memory` and `io` of a directory, whose names end in `suffix`:
/// `.pressure` in a cgroup, nothing in `/proc/pressure`.
pub fn pressures(directory: &Path, suffix: &str) -> Pressures {
    let of = |resource: &str| pressure(&text(directory, &format!("{resource}{suffix}"))?);
    Pressures { cpu: of("cpu"), memory: of("memory"), io: of("io") }
}

/// A pressure file; before Linux 5.13 that of the processor has no second line.
fn pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let word = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
        let share = |name: &str| {
            let (whole, part) = word(name)?.split_once('.')?;
            whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)
        };
        let shares = [share("avg10=")?, share("avg60=")?, share("avg300=")?];
        Some(Stall { total_us: word("total=")?.parse().ok()?, shares })
    };
    Some(Pressure { some: stall("some ")?, full: stall("full ").unwrap_or_default() })
}

fn text(directory: &Path, file: &str) -> Option<String> {
    fs::read_to_string(directory.join(file)).ok()
}

fn number(directory: &Path, file: &str) -> Option<u64> {
    text(directory, file)?.trim().parse().ok()
}

/// The value of a `name value` line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

fn cpu(stat: &str) -> CpuUsage {
    let get = |name| field(stat, name).unwrap_or(0);
    CpuUsage {
        total_us: get("usage_usec"),
        user_us: get("user_usec"),
        system_us: get("system_usec"),
        throttling: field(stat, "nr_periods").map(|periods| Throttling {
            periods,
            throttled_periods: get("nr_throttled"),
            throttled_us: get("throttled_usec"),
        }),
    }
}

fn memory(directory: &Path, usage_bytes: u64) -> MemoryUsage {
    let stat = text(directory, "memory.stat").unwrap_or_default();
    let events = text(directory, "memory.events").unwrap_or_default();
    let get = |name| field(&stat, name).unwrap_or(0);
    MemoryUsage {
        usage_bytes,
        working_set_bytes: usage_bytes.saturating_sub(get("inactive_file")),
        details: Some(MemoryDetails {
            rss_bytes: get("anon"),
            cache_bytes: get("file"),
            mapped_bytes: get("file_mapped"),
            swap_bytes: number(directory, "memory.swap.current"),
            peak_bytes: number(directory, "memory.peak"),
            faults: get("pgfault"),
            major_faults: get("pgmajfault"),
            limit_hits: field(&events, "max").unwrap_or(0),
            oom_kills: field(&events, "oom_kill").unwrap_or(0),
        }),
    }
}

/// Memory of these processes without the controller: what is each one's own, and of files and of shared memory
/// what one of them has most of. Pages that a fork left to both count twice; files of the others are left out.
fn summed(pids: &[u32]) -> Option<MemoryUsage> {
    let all: Vec<Resident> = pids.iter().filter_map(|pid| resident(*pid)).collect();
    let own = all.iter().map(|one| one.own).sum::<u64>();
    let most = |of: fn(&Resident) -> u64| all.iter().map(of).max();
    let bytes = (own + most(|one| one.files)? + most(|one| one.shared)?) << 10;
    Some(MemoryUsage { usage_bytes: bytes, working_set_bytes: bytes, details: None })
}

/// What a process has resident, in KiB.
struct Resident {
    own: u64,
    files: u64,
    shared: u64,
}

/// A first thread that has ended has nothing more to tell: then the others are asked.
fn resident(pid: u32) -> Option<Resident> {
    let of = |path: &Path| {
        let status = fs::read_to_string(path.join("status")).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        Some(Resident { own: kib("RssAnon:")?, files: kib("RssFile:")?, shared: kib("RssShmem:")? })
    };
    let process = Path::new("/proc").join(pid.to_string());
    of(&process).or_else(|| {
        let mut threads = fs::read_dir(process.join("task")).ok()?.flatten();
        threads.find_map(|thread| of(&thread.path()))
    })
}

fn io(stat: &str) -> IoUsage {
    IoUsage { devices: stat.lines().filter_map(device).collect() }
}

/// A line of `io.stat`; that of a device which was not used has no counters.
fn device(line: &str) -> Option<DeviceUsage> {
    let (number, counters) = line.split_once(' ')?;
    let (major, minor) = number.split_once(':')?;
    let number = (major.parse().ok()?, minor.parse().ok()?);
    let counter = |name: &str| {
        let mut words = counters.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        words.find(|(key, _)| *key == name)?.1.parse::<u64>().ok()
    };
    Some(DeviceUsage {
        number,
        read_bytes: counter("rbytes")?,
        written_bytes: counter("wbytes")?,
        reads: counter("rios")?,
        writes: counter("wios")?,
    })
}

/// The processes of a cgroup and of those below it.
pub fn processes(directory: &Path, depth: u32) -> Vec<u32> {
    let mut pids: Vec<u32> = text(directory, "cgroup.procs")
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default();
    // One link is its name, one its own `.`, and each cgroup below has one.
    let has_below = || directory.metadata().is_ok_and(|found| found.nlink() != 2);
    let below = (depth > 0 && has_below()).then(|| fs::read_dir(directory).ok()).flatten();
    for entry in below.into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&entry.path(), depth - 1));
        }
    }
    pids
}

/// The interfaces of the network namespace that a process is in, but loopback.
pub fn interfaces(pid: u32) -> Vec<InterfaceUsage> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    text.lines().filter_map(interface).collect()
}

fn interface(line: &str) -> Option<InterfaceUsage> {
    let (name, rest) = line.split_once(':')?;
    let name = name.trim();
    let numbers: Vec<u64> =
        rest.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    let traffic = |at: usize| {
        Some(Traffic {
            bytes: *numbers.get(at)?,
            packets: *numbers.get(at + 1)?,
            errors: *numbers.get(at + 2)?,
            dropped: *numbers.get(at + 3)?,
        })
    };
    let usage = InterfaceUsage { name: name.to_owned(), received: traffic(0)?, sent: traffic(8)? };
    (name != "lo").then_some(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_cgroup_are_read() {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 1\nthrottled_usec 7\n",
            ),
            ("memory.current", "1000\n"),
            (
                "memory.stat",
                "anon 400\nfile 500\nfile_mapped 50\ninactive_file 300\npgfault 9\npgmajfault 2\n",
            ),
            ("memory.events", "low 0\nmax 3\noom_kill 1\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=0 rios=1 wios=0\n254:0 \n",
            ),
            ("pids.current", "5\n"),
            ("cgroup.procs", "7\n9\n"),
            (
                "memory.pressure",
                "some avg10=98.26 avg60=7.08 avg300=0.00 total=31019926485\nfull avg10=0.01 avg60=0.00 avg300=100.00 total=12\n",
            ),
            ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n"),
            ("io.pressure", "some avg10=zero\n"),
        ] {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let usage = read(directory.path());
        let cpu = usage.cpu.unwrap();
        assert_eq!((cpu.total_us, cpu.throttling.unwrap().throttled_us), (30, 7));
        let memory = usage.memory.unwrap();
        assert_eq!((memory.usage_bytes, memory.working_set_bytes), (1000, 700));
        let details = memory.details.unwrap();
        assert_eq!((details.rss_bytes, details.limit_hits, details.oom_kills), (400, 3, 1));
        assert_eq!((details.swap_bytes, details.peak_bytes), (None, None));
        let device = |number, [read_bytes, written_bytes, reads, writes]: [u64; 4]| DeviceUsage {
            number,
            read_bytes,
            written_bytes,
            reads,
            writes,
        };
        let devices = vec![device((8, 0), [10, 20, 1, 2]), device((8, 16), [1, 0, 1, 0])];
        assert_eq!(usage.io, Some(IoUsage { devices }), "none was used of the third");
        assert_eq!((usage.processes, usage.threads), (Some(2), Some(5)));
        let some = Stall { total_us: 31_019_926_485, shares: [9826, 708, 0] };
        let full = Stall { total_us: 12, shares: [1, 0, 10_000] };
        assert_eq!(usage.pressure.memory, Some(Pressure { some, full }));
        assert_eq!(usage.pressure.cpu.unwrap().some.total_us, 3);
        assert_eq!(usage.pressure.io, None, "what cannot be read is not told");
    }

    #[test]
    fn without_controllers_the_processes_are_asked() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("container");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        fs::write(directory.path().join("cpu.stat"), "usage_usec 30\nuser_usec 20\n").unwrap();
        let usage = read(directory.path());
        assert_eq!(usage.cpu.unwrap().throttling, None, "no limit can be set");
        let memory = usage.memory.unwrap();
        assert!(memory.working_set_bytes > 100 << 10 && memory.details.is_none(), "{memory:?}");
        assert_eq!((usage.processes, usage.io), (Some(1), None));
    }

    #[test]
    fn what_processes_share_counts_once_and_who_cannot_be_asked_not_at_all() {
        let own = std::process::id();
        let once = summed(&[own]).unwrap().usage_bytes;
        let twice = summed(&[own, own]).unwrap().usage_bytes;
        assert!(twice < once * 2, "{once} {twice}");
        assert_eq!(summed(&[u32::MAX]), None);
        // The kernel's own processes have no memory of users.
        assert_eq!(summed(&[2]), None);
    }

    #[test]
    fn a_cgroup_that_is_gone_has_used_nothing_that_could_be_told() {
        let usage = Usage { at_ms: 0, ..read(Path::new("/nonexistent/cgroup")) };
        assert_eq!(usage, Usage::default());
    }

    #[test]
    fn an_interface_is_a_line_of_sixteen_numbers() {
        let line = "  eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0";
        let usage = interface(line).unwrap();
        assert_eq!((usage.received.bytes, usage.sent.dropped), (100, 8));
        assert_eq!(interface("    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0"), None);
        assert_eq!(interface(" face |bytes packets errs"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_counters_or_none(
            words in proptest::collection::vec(
                proptest::sample::select(
                    [
                        "\n", " ", "=", ":", "usage_usec", "rbytes=", "rios", "lo", "eth0:", "-1", "7",
                        "18446744073709551615", "18446744073709551616", "max", "é",
                    ].as_slice()
                ),
                0..40,
            )
        ) {
            let text = words.concat();
            proptest::prop_assert!(text.contains("usage_usec ") || cpu(&text).total_us == 0);
            proptest::prop_assert!(text.contains("rbytes=") || io(&text).devices.is_empty());
            let mut interfaces = text.lines().filter_map(interface);
            proptest::prop_assert!(interfaces.all(|one| one.name != "lo" && !one.name.contains(':')));
        }
    }
}
