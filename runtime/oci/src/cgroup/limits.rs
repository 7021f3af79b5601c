//! From the resources of the specification to files and values of cgroup v2. Pure.
//!
//! OCI runtime spec, `config-linux.md`, Control groups; conversions as runc 1.3 makes them.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use crate::container::{Error, Result};

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The specification's field, for messages.
    pub(super) field: String,
    pub(super) file: String,
    pub(super) value: String,
    /// A file that kernels may lack although the controller is there.
    pub(super) optional: bool,
}

#[derive(Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, field: &str, file: &str, value: impl ToString) {
        self.0.push(Setting {
            field: format!("linux.resources.{field}"),
            file: file.to_owned(),
            value: value.to_string(),
            optional: false,
        });
    }

    fn add_optional(&mut self, field: &str, file: &str, value: impl ToString) {
        self.add(field, file, value);
        if let Some(last) = self.0.last_mut() {
            last.optional = true;
        }
    }
}

/// `max` for what the specification calls unlimited.
fn limit(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// The writes for `resources`, in order; `unified` comes last and wins.
pub(super) fn plan(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Settings::default();
    if let Some(cpu) = resources.cpu() {
        plan_cpu(&mut settings, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        plan_memory(&mut settings, memory)?;
    }
    if let Some(pids) = resources.pids() {
        let value = pids.limit();
        // Zero has meant "no limit" since the specification's beginning.
        settings.add("pids.limit", "pids.max", limit(if value == 0 { -1 } else { value }));
    }
    if let Some(io) = resources.block_io() {
        plan_io(&mut settings, io);
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        if !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::invalid("linux.resources.hugepageLimits", "page size is malformed"));
        }
        let value = limit(page.limit());
        settings.add("hugepageLimits", &format!("hugetlb.{size}.max"), &value);
        settings.add_optional("hugepageLimits", &format!("hugetlb.{size}.rsvd.max"), &value);
    }
    if resources.network().is_some() {
        return Err(Error::invalid("linux.resources.network", "is not supported on cgroup v2"));
    }
    plan_unified(&mut settings, resources)?;
    Ok(settings.0)
}

fn plan_unified(settings: &mut Settings, resources: &LinuxResources) -> Result<()> {
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !file.bytes().all(plain) || !file.contains('.') || file.starts_with("cgroup.") {
            let field = format!("linux.resources.unified[{file}]");
            return Err(Error::invalid(field, "is not a controller's file"));
        }
        settings.add(&format!("unified[{file}]"), file, value);
    }
    Ok(())
}

/// cgroup v1's 2–262144 onto v2's 1–10000 so that the defaults (1024 and 100) and both ends meet:
/// a quadratic in log2 of the shares.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => return 1,
        262_144.. => return 10_000,
        _ => {}
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

fn plan_cpu(settings: &mut Settings, cpu: &LinuxCpu) -> Result<()> {
    if cpu.realtime_runtime().is_some_and(|v| v != 0)
        || cpu.realtime_period().is_some_and(|v| v != 0)
    {
        return Err(Error::invalid(
            "linux.resources.cpu.realtime*",
            "is not supported on cgroup v2",
        ));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        settings.add("cpu.shares", "cpu.weight", weight(shares));
    }
    if let Some(idle) = cpu.idle() {
        settings.add_optional("cpu.idle", "cpu.idle", idle);
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |q| q.to_string());
        let value = format!("{quota} {}", period.unwrap_or(100_000));
        settings.add("cpu.quota", "cpu.max", value);
    }
    if let Some(burst) = cpu.burst() {
        settings.add_optional("cpu.burst", "cpu.max.burst", burst);
    }
    for (field, file, list) in
        [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
    {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            settings.add(field, file, list);
        }
    }
    Ok(())
}

fn plan_memory(settings: &mut Settings, memory: &LinuxMemory) -> Result<()> {
    let limited = memory.limit().filter(|value| *value != 0);
    if let Some(swap) = memory.swap().filter(|value| *value != 0) {
        // The specification counts memory and swap together.
        let value = match limited {
            _ if swap < 0 => "max".to_owned(),
            Some(memory) if memory > 0 && swap >= memory => (swap - memory).to_string(),
            _ => {
                let reason = "must be at least the memory limit, which must be set";
                return Err(Error::invalid("linux.resources.memory.swap", reason));
            }
        };
        settings.add("memory.swap", "memory.swap.max", value);
    }
    if let Some(value) = limited {
        settings.add("memory.limit", "memory.max", limit(value));
    }
    if let Some(value) = memory.reservation().filter(|value| *value != 0) {
        settings.add("memory.reservation", "memory.low", limit(value));
    }
    if memory.disable_oom_killer() == Some(true) {
        let reason = "is not supported on cgroup v2";
        return Err(Error::invalid("linux.resources.memory.disableOOMKiller", reason));
    }
    Ok(())
}

fn plan_io(settings: &mut Settings, io: &LinuxBlockIo) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        // 10–1000 onto 1–10000.
        let value = 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990;
        settings.add_optional("blockIO.weight", "io.weight", value);
    }
    let limits = [
        ("blockIO.throttleReadBpsDevice", "rbps", io.throttle_read_bps_device()),
        ("blockIO.throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device()),
        ("blockIO.throttleReadIOPSDevice", "riops", io.throttle_read_iops_device()),
        ("blockIO.throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device()),
    ];
    for (field, key, devices) in limits {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
            settings.add(field, "io.max", value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(json: &str) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        plan(&resources).unwrap().into_iter().map(|s| (s.file, s.value)).collect()
    }

    fn one(json: &str) -> (String, String) {
        let list = writes(json);
        assert_eq!(list.len(), 1, "{list:?}");
        list.into_iter().next().unwrap()
    }

    #[test]
    fn shares_become_weights_that_keep_the_defaults() {
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(2), 1);
        assert_eq!(weight(262_144), 10_000);
        assert!((3..262_144).step_by(97).all(|s| (1..=10_000).contains(&weight(s))));
        assert!((3..262_000).step_by(97).all(|s| weight(s) <= weight(s + 97)));
    }

    #[test]
    fn limits_are_written_in_the_form_of_the_kernel() {
        let cpu = one(r#"{"cpu":{"quota":50000,"period":100000}}"#);
        assert_eq!(cpu, ("cpu.max".to_owned(), "50000 100000".to_owned()));
        assert_eq!(one(r#"{"cpu":{"quota":-1}}"#).1, "max 100000");
        assert_eq!(one(r#"{"pids":{"limit":0}}"#).1, "max");
        assert_eq!(one(r#"{"memory":{"limit":1048576}}"#).0, "memory.max");
        let swap = writes(r#"{"memory":{"limit":100,"swap":150}}"#);
        assert_eq!(swap[0], ("memory.swap.max".to_owned(), "50".to_owned()));
    }

    #[test]
    fn unified_files_outside_a_controller_are_refused() {
        for file in ["cgroup.procs", "../x.y", "nodot", "a/b.c"] {
            let json = format!(r#"{{"unified":{{"{file}":"1"}}}}"#);
            let resources: LinuxResources = serde_json::from_str(&json).unwrap();
            assert!(plan(&resources).is_err(), "{file}");
        }
        let write = one(r#"{"unified":{"memory.oom.group":"1"}}"#);
        assert_eq!(write, ("memory.oom.group".to_owned(), "1".to_owned()));
    }
}
