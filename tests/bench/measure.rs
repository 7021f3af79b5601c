//! What benches take from the machine, and how they print a figure.

use std::fs;

/// User and system time of a process so far, and of the children it has waited for; 0 when it is gone.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(4).filter_map(|text| text.parse::<f64>().ok()).sum();
    ticks / 100.0
}

pub(crate) fn pss_kib(pid: u32) -> f64 {
    rollup_kib(pid, &["Pss"])
}

pub(crate) fn private_kib(pid: u32) -> f64 {
    rollup_kib(pid, &["Private_Clean", "Private_Dirty"])
}

/// The most a process ever had resident.
pub(crate) fn peak_kib(pid: u32) -> f64 {
    kib_of(&format!("/proc/{pid}/status"), &["VmHWM"])
}

fn rollup_kib(pid: u32, fields: &[&str]) -> f64 {
    kib_of(&format!("/proc/{pid}/smaps_rollup"), fields)
}

/// The sum of these fields of a file of `Name: 12 kB` lines.
fn kib_of(file: &str, fields: &[&str]) -> f64 {
    let text = fs::read_to_string(file).expect("a process");
    let of = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        fields.contains(&name).then(|| rest.trim().trim_end_matches(" kB").parse::<f64>().ok())?
    };
    text.lines().filter_map(of).sum()
}

/// A process that is `berth` and not the tool that started it, among those that name `directory`.
pub(crate) fn agent(directory: &std::path::Path) -> u32 {
    let found = std::process::Command::new("pgrep").arg("-f").arg(directory).output();
    let found = String::from_utf8(found.expect("pgrep runs").stdout).expect("process ids");
    let is_agent = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "berth")
    };
    let pids = found.lines().filter_map(|line| line.parse().ok());
    pids.filter(is_agent).max().expect("the agent runs")
}

/// The shims of the machine.
pub(crate) fn shims() -> Vec<u32> {
    let found = std::process::Command::new("pgrep").args(["-f", "^berth-oci shim"]).output();
    let found = String::from_utf8(found.expect("pgrep runs").stdout).expect("process ids");
    found.lines().filter_map(|line| line.parse().ok()).collect()
}

pub(crate) fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    let index = (samples.len() * percent).div_ceil(100).saturating_sub(1);
    samples.get(index).copied().unwrap_or(f64::NAN)
}

/// Prints p50 and p99 of what was sampled, in milliseconds.
pub(crate) fn distribution(area: &str, name: &str, mut samples: Vec<f64>) {
    for percent in [50, 99] {
        let value = percentile(&mut samples, percent);
        figure(area, &format!("{name}_p{percent}"), value, "ms", samples.len());
    }
}

/// Prints one figure. Its peer, a kubelet with a runtime and a control plane, is not on the machine, so
/// there is no ratio.
pub(crate) fn figure(area: &str, name: &str, value: f64, unit: &str, runs: usize) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    println!(
        "bench area={area} figure={name} ours={value:.3}{unit} peer=none n={runs} load={load}"
    );
}
