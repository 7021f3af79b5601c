//! CPU time and CPU sets.

use oci_spec::runtime::LinuxCpu;

use super::{Settings, Tolerance, refuse};
use crate::container::Result;

/// The kernel's own.
const DEFAULT_PERIOD: u64 = 100_000;
pub(super) const DEFAULT_BANDWIDTH: &str = "max 100000";

/// cgroup v1's 2–262144 onto v2's 1–10000 so that the defaults (1024 and 100) and both ends meet:
/// a quadratic in log2 of the shares, as runc and crun have it since 2025.
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

pub(super) fn plan(settings: &mut Settings, cpu: &LinuxCpu) -> Result<()> {
    if cpu.realtime_runtime().is_some_and(|value| value != 0) {
        return refuse("cpu.realtimeRuntime", "is not supported on cgroup v2");
    }
    if cpu.realtime_period().is_some_and(|value| value != 0) {
        return refuse("cpu.realtimePeriod", "is not supported on cgroup v2");
    }
    if let Some(idle) = cpu.idle() {
        settings.add("cpu.idle", "cpu.idle", idle);
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        settings.add("cpu.shares", "cpu.weight", weight(shares));
    }
    plan_bandwidth(settings, cpu);
    for (field, file, list) in
        [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
    {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            settings.add(field, file, list);
        }
    }
    Ok(())
}

fn plan_bandwidth(settings: &mut Settings, cpu: &LinuxCpu) {
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let limited = quota.is_some() || period.is_some();
    if let (Some(burst), true) = (cpu.burst(), limited) {
        // A quota may not go below the burst in force, nor a burst above the quota in force.
        settings.add("cpu.burst", "cpu.max.burst", burst).tolerance = Tolerance::Early;
    }
    if limited {
        let quota = quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |q| q.to_string());
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD));
        settings.add("cpu.quota", "cpu.max", value);
    }
    if let Some(burst) = cpu.burst() {
        settings.add("cpu.burst", "cpu.max.burst", burst);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{try_plan, writes};
    use super::*;

    #[test]
    fn shares_become_weights_that_keep_the_defaults() {
        // The formula worked out by hand in higher precision.
        let table = [(2, 1), (3, 2), (10, 4), (100, 17), (102, 17), (512, 59), (1024, 100)];
        for (shares, expected) in table.into_iter().chain([(2048, 174), (262_144, 10_000)]) {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert_eq!((weight(0), weight(u64::MAX)), (1, 10_000));
        assert!((3..262_000).step_by(97).all(|s| weight(s) <= weight(s + 97)));
    }

    #[test]
    fn quota_period_and_burst_are_written_in_an_order_that_the_kernel_takes() {
        for (json, expected) in [
            (r#"{"cpu":{"quota":50000,"period":100000}}"#, vec!["cpu.max=50000 100000"]),
            (r#"{"cpu":{"quota":-1}}"#, vec!["cpu.max=max 100000"]),
            (r#"{"cpu":{"period":20000}}"#, vec!["cpu.max=max 20000"]),
            (r#"{"cpu":{"quota":0,"period":0}}"#, vec![]),
            (r#"{"cpu":{"burst":0}}"#, vec!["cpu.max.burst=0"]),
            (
                r#"{"cpu":{"quota":5000,"burst":1000}}"#,
                vec!["cpu.max.burst=1000", "cpu.max=5000 100000", "cpu.max.burst=1000"],
            ),
            (r#"{"cpu":{"shares":1024,"idle":0}}"#, vec!["cpu.idle=0", "cpu.weight=100"]),
            (r#"{"cpu":{"cpus":"0-1","mems":""}}"#, vec!["cpuset.cpus=0-1"]),
        ] {
            assert_eq!(writes(json), expected, "{json}");
        }
    }

    #[test]
    fn real_time_and_an_idle_group_with_a_weight_are_refused() {
        for json in [
            r#"{"cpu":{"realtimeRuntime":1}}"#,
            r#"{"cpu":{"realtimePeriod":1}}"#,
            r#"{"cpu":{"idle":1,"shares":5}}"#,
            r#"{"unified":{"cpu.idle":"1","cpu.weight":"8"}}"#,
            r#"{"cpu":{"idle":1},"unified":{"cpu.weight":"8"}}"#,
        ] {
            assert!(try_plan(json).is_err(), "{json}");
        }
        for (json, expected) in [
            (r#"{"cpu":{"realtimeRuntime":0,"idle":1}}"#, vec!["cpu.idle=1"]),
            (
                r#"{"unified":{"cpu.idle":"0","cpu.weight":"8"}}"#,
                vec!["cpu.idle=0", "cpu.weight=8"],
            ),
            // What was weighed may become idle.
            (
                r#"{"cpu":{"shares":1024},"unified":{"cpu.idle":"1"}}"#,
                vec!["cpu.weight=100", "cpu.idle=1"],
            ),
        ] {
            assert_eq!(writes(json), expected, "{json}");
        }
    }
}
