//! What the host as a whole and the agent itself have used: `/proc`, `/sys`.

use std::fs;
use std::path::Path;

use berth_runtime::cgroup::usage::{interfaces, pressures};
use berth_runtime::interface::{InterfaceUsage, Pressures};

/// Clock ticks a second in `/proc` (`USER_HZ`), the same on every architecture.
const TICKS: u64 = 100;

/// How long one of them is, in microseconds.
pub(super) const TICK_US: u64 = 1_000_000 / TICKS;

/// The host's counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Host {
    /// Processor time of everything, in microseconds, without idling.
    pub(super) cpu_us: u64,
    /// Memory that is not free.
    pub(super) memory_usage_bytes: u64,
    /// The same without inactive page cache.
    pub(super) working_set_bytes: u64,
    /// What could be given to new processes.
    pub(super) available_bytes: u64,
    /// Anonymous memory.
    pub(super) rss_bytes: u64,
    /// All memory.
    pub(super) capacity_bytes: u64,
    /// Swap in use.
    pub(super) swap_bytes: u64,
    /// Swap left.
    pub(super) swap_free_bytes: u64,
    /// Page faults and those that waited for a device.
    pub(super) faults: (u64, u64),
    /// Interfaces but loopback.
    pub(super) network: Vec<InterfaceUsage>,
    /// The interface that the default route leads out by.
    pub(super) default_interface: Option<String>,
    /// Processors.
    pub(super) cpus: u64,
    /// When the host was booted, in seconds since the epoch.
    pub(super) booted_at: i64,
    /// The most processes, and how many there are.
    pub(super) processes: (Option<u64>, Option<u64>),
    /// How long tasks waited for what they did not get.
    pub(super) pressure: Pressures,
    /// Block devices and their partitions.
    pub(super) block: Vec<BlockDevice>,
}

/// What `/proc/diskstats` says of one (Linux `admin-guide/iostats.rst`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BlockDevice {
    /// Major and minor.
    pub(super) number: (u32, u32),
    /// Its name below `/dev`.
    pub(super) name: String,
    /// Reads, of which merged, sectors, milliseconds; the same of writes; then what is under way, for how
    /// many milliseconds something was, and these by how much was.
    pub(super) counters: [u64; 11],
}

/// Reads the host's counters. Blocking; half a dozen small files.
pub(super) fn read() -> Host {
    let meminfo = text("/proc/meminfo");
    let vmstat = text("/proc/vmstat");
    let stat = text("/proc/stat");
    let memory = |name: &str| kilobytes(&meminfo, name);
    let capacity_bytes = memory("MemTotal:");
    let memory_usage_bytes = capacity_bytes.saturating_sub(memory("MemFree:"));
    let swap_free_bytes = memory("SwapFree:");
    let count = |name: &str| word_after(&vmstat, name).unwrap_or(0);
    let load = text("/proc/loadavg");
    let running = load.split(' ').nth(3).and_then(|part| part.split('/').nth(1)?.parse().ok());
    Host {
        cpu_us: busy_us(&stat),
        memory_usage_bytes,
        working_set_bytes: memory_usage_bytes.saturating_sub(memory("Inactive(file):")),
        available_bytes: memory("MemAvailable:"),
        rss_bytes: memory("AnonPages:"),
        capacity_bytes,
        swap_bytes: memory("SwapTotal:").saturating_sub(swap_free_bytes),
        swap_free_bytes,
        faults: (count("pgfault"), count("pgmajfault")),
        network: interfaces(std::process::id()),
        default_interface: default_interface(
            &text("/proc/net/route"),
            &text("/proc/net/ipv6_route"),
        ),
        cpus: u64::try_from(stat.lines().filter(|l| is_processor(l)).count()).unwrap_or(0),
        booted_at: word_after(&stat, "btime").and_then(|t| i64::try_from(t).ok()).unwrap_or(0),
        processes: (text("/proc/sys/kernel/pid_max").trim().parse().ok(), running),
        pressure: pressures(Path::new("/proc/pressure"), ""),
        block: text("/proc/diskstats").lines().filter_map(block_device).collect(),
    }
}

pub(super) fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn word_after(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
}

/// The bytes of a `name <number> kB` line.
pub(super) fn kilobytes(meminfo: &str, name: &str) -> u64 {
    word_after(meminfo, name).unwrap_or(0) << 10
}

fn is_processor(line: &str) -> bool {
    line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn block_device(line: &str) -> Option<BlockDevice> {
    let mut words = line.split_ascii_whitespace();
    let number = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    // The kernel writes the slash of a name so.
    let name = words.next()?.replace('!', "/");
    let counters: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    Some(BlockDevice { number, name, counters: *counters.first_chunk()? })
}

/// All ticks of the first line but those of idling and of waiting for devices.
fn busy_us(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user time already.
    let busy: u64 = ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(at, _)| !matches!(at, 3 | 4))
        .map(|(_, ticks)| ticks)
        .sum();
    busy.saturating_mul(TICK_US)
}

/// Where packets to anywhere leave the host: by the route with the least metric, of IPv4 where that has
/// one. Of IPv6 the kernel has a refusal on loopback where it has no route.
fn default_interface(ipv4: &str, ipv6: &str) -> Option<String> {
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let ipv4 = ipv4.lines().map(words).filter_map(|line| {
        let [name, to, _, flags, _, _, metric, mask, ..] = line.as_slice() else { return None };
        let is_default = [to, mask].iter().all(|word| is_zero(word)) && leads_out(flags);
        is_default.then_some((metric.parse::<u64>().ok()?, name.clone()))
    });
    let ipv6 = ipv6.lines().map(words).filter_map(|line| {
        let [to, length, _, _, _, metric, _, _, flags, name] = line.as_slice() else { return None };
        let is_default = [to, length].iter().all(|word| is_zero(word)) && leads_out(flags);
        let metric = u64::from_str_radix(metric, 16).ok()?;
        (is_default && name != "lo").then_some((metric, name.clone()))
    });
    ipv4.min().or_else(|| ipv6.min()).map(|(_, name)| name)
}

fn is_zero(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|digit| digit == b'0')
}

/// Whether a route with these flags (`RTF_UP`, `RTF_REJECT`) is used and not a refusal.
fn leads_out(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x1 != 0 && flags & 0x200 == 0)
}

/// The agent's own process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) cpu_us: u64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) descriptors: u64,
    pub(super) threads: u64,
    /// When it started, in clock ticks after boot.
    pub(super) started_ticks: u64,
}

/// Reads the agent's own counters.
pub(super) fn own() -> Own {
    let fields = stat_fields(&text("/proc/self/stat"));
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    let status = text("/proc/self/status");
    let descriptors = fs::read_dir("/proc/self/fd").map(|all| all.count()).unwrap_or(0);
    Own {
        cpu_us: (field(11) + field(12)) * TICK_US,
        resident_bytes: kilobytes(&status, "VmRSS:"),
        virtual_bytes: kilobytes(&status, "VmSize:"),
        descriptors: u64::try_from(descriptors).unwrap_or(0),
        threads: field(17),
        started_ticks: field(19),
    }
}

/// The numbers of a process's `stat` from its state on, which is none and reads as 0.
pub(super) fn stat_fields(stat: &str) -> Vec<u64> {
    // The command's name may have blanks; what follows its bracket does not.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_idling_out() {
        assert_eq!(busy_us("cpu  1 2 3 400 500 4 5 6 7 8\ncpu0 1\n"), 21 * TICK_US);
        assert!(is_processor("cpu0 1") && !is_processor("cpu  1"));
    }

    #[test]
    fn the_default_interface_is_the_default_routes() {
        let ipv4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    berth0\t0000F40A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                    wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                    ens3\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                    none\t00000000\t00000000\t0201\t0\t0\t1\t00000000\t0\t0\t0\n\
                    half\t00000000\t0101A8C0\t0003\t0\t0\t1\t00000080\t0\t0\t0\n";
        let (any, via) = ("0".repeat(32), "f".repeat(32));
        let refusal =
            format!("{any} 00 {any} 00 {any} ffffffff 00000001 00000000 00200200       lo\n");
        let ipv6 = format!(
            "{any} 00 {any} 00 {via} 00000400 00000001 00000000 00450003     ens4\n{refusal}"
        );
        let of = |ipv4: &str, ipv6: &str| default_interface(ipv4, ipv6).unwrap_or_default();
        assert_eq!(of(ipv4, &ipv6), "ens3");
        assert_eq!(of("", &ipv6), "ens4");
        assert_eq!(of("Iface\tDestination\n", &refusal), "");
    }

    #[test]
    fn a_block_device_is_a_line_of_eleven_counters_or_more() {
        let line = " 254       0 cciss!c0 1 2 3 4 5 6 7 8 9 10 11 12 13";
        let device = block_device(line).unwrap();
        assert_eq!((device.number, device.name.as_str()), ((254, 0), "cciss/c0"));
        assert_eq!(device.counters, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(block_device("254 0 vda 1 2 3"), None);
    }

    #[test]
    fn this_host_and_this_process_have_used_something() {
        let host = read();
        assert!(host.cpus > 0 && host.cpu_us > 0 && host.booted_at > 0, "{host:?}");
        assert!(host.working_set_bytes <= host.memory_usage_bytes, "{host:?}");
        let own = own();
        assert!(own.resident_bytes > 0 && own.descriptors > 0 && own.threads > 0, "{own:?}");
    }
}
