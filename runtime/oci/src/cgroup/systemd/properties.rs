//! From the files of cgroup v2 to properties of units. Pure.
//!
//! systemd writes the files of what it has properties for whenever it likes, so it must know the same
//! values as are written. systemd.resource-control(5).

use super::Property;
use crate::cgroup::limits::Setting;
use crate::container::{Error, Result};
use crate::dbus::Value;

/// systemd's `infinity`.
const INFINITY: u64 = u64::MAX;

/// CPUWeight=idle.
const IDLE_SINCE: u32 = 252;
/// OOMPolicy= of scopes.
const OOM_POLICY_SINCE: u32 = 253;

/// Whether [`plan`] has to know systemd's version for these settings.
pub(super) fn depend_on_version(settings: &[Setting]) -> bool {
    settings.iter().any(|one| matches!(one.file.as_str(), "memory.oom.group" | "cpu.idle"))
}

/// The properties for `settings`. A CPU quota is rounded up to what systemd can express, whole percents
/// of a CPU, in the setting as well.
pub(super) fn plan(settings: &mut [Setting], version: u32) -> Result<Vec<Property>> {
    let mut properties: Vec<Property> = Vec::new();
    for setting in settings {
        for (name, value) in convert(setting, version)? {
            // Of two settings of one file the later one wins.
            properties.retain(|(other, _)| other != name);
            properties.push((name.to_owned(), value));
        }
    }
    Ok(properties)
}

/// The properties for files of a slice, by name and value, and the files that systemd has none for.
pub(crate) fn of_files(files: &[(String, String)]) -> Result<(Vec<Property>, Vec<String>)> {
    // OOMPolicy=, which depends on the version, is none of a slice's.
    const NONE: u32 = 0;
    let (mut properties, mut rest) = (Vec::new(), Vec::new());
    for (file, value) in files {
        match plan(&mut [Setting::of_file(file, value)], NONE)?.as_slice() {
            [] => rest.push(file.clone()),
            one => properties.extend_from_slice(one),
        }
    }
    Ok((properties, rest))
}

fn convert(setting: &mut Setting, version: u32) -> Result<Vec<(&'static str, Value)>> {
    let value = setting.value.trim();
    let name = match setting.file.as_str() {
        "memory.max" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "cpu.weight" => "CPUWeight",
        "pids.max" => {
            // Zero is none of its values.
            return Ok(vec![("TasksMax", Value::Uint64(amount(setting)?.max(1)))]);
        }
        "cpu.max" => return bandwidth(setting),
        "cpu.idle" if value == "1" && version >= IDLE_SINCE => {
            return Ok(vec![("CPUWeight", Value::Uint64(0))]);
        }
        "cpuset.cpus" => return Ok(vec![("AllowedCPUs", mask(setting)?)]),
        "cpuset.mems" => return Ok(vec![("AllowedMemoryNodes", mask(setting)?)]),
        "memory.oom.group" if version >= OOM_POLICY_SINCE => {
            let policy = if value == "1" { "kill" } else { "continue" };
            return Ok(vec![("OOMPolicy", policy.into())]);
        }
        // Written as a file alone.
        _ => return Ok(Vec::new()),
    };
    Ok(vec![(name, Value::Uint64(amount(setting)?))])
}

fn refuse<T>(setting: &Setting, what: &str) -> Result<T> {
    Err(Error::invalid(&setting.field, format!("{:?} is no {what}", setting.value)))
}

fn amount(setting: &Setting) -> Result<u64> {
    match setting.value.trim() {
        "max" => Ok(INFINITY),
        number => number.parse().or_else(|_| refuse(setting, "number")),
    }
}

fn bandwidth(setting: &mut Setting) -> Result<Vec<(&'static str, Value)>> {
    const DEFAULT_PERIOD: u64 = 100_000;
    const STEP: u64 = 10_000;
    let mut words = setting.value.split_whitespace();
    let quota = words.next().unwrap_or_default();
    let period = match words.next() {
        None => DEFAULT_PERIOD,
        Some(period) => match period.parse() {
            Ok(period) if period > 0 => period,
            _ => return refuse(setting, "CPU period"),
        },
    };
    let a_second = match quota {
        "max" => INFINITY,
        quota => {
            let Ok(quota) = quota.parse::<u64>() else { return refuse(setting, "CPU quota") };
            let exact = u128::from(quota) * 1_000_000 / u128::from(period);
            let Ok(rounded) = u64::try_from(exact.next_multiple_of(u128::from(STEP))) else {
                return refuse(setting, "CPU quota");
            };
            let quota = u128::from(rounded) * u128::from(period) / 1_000_000;
            setting.value = format!("{quota} {period}");
            rounded
        }
    };
    Ok(vec![
        ("CPUQuotaPeriodUSec", Value::Uint64(period)),
        ("CPUQuotaPerSecUSec", Value::Uint64(a_second)),
    ])
}

/// A list such as `0-2,7` as bits, the lowest in the first byte.
fn mask(setting: &Setting) -> Result<Value> {
    /// More than any kernel is built for.
    const MOST: usize = 1 << 13;
    let mut bytes = Vec::new();
    let list = setting.value.trim();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.trim().parse(), last.trim().parse::<usize>()) else {
            return refuse(setting, "list of numbers");
        };
        if first > last || last >= MOST {
            return refuse(setting, "list of numbers");
        }
        for number in first..=last {
            if bytes.len() <= number / 8 {
                bytes.resize(number / 8 + 1, 0u8);
            }
            bytes[number / 8] |= 1 << (number % 8);
        }
    }
    Ok(Value::Array("y".to_owned(), bytes.into_iter().map(Value::Byte).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::limits;

    fn convert_all(json: &str, version: u32) -> Result<(Vec<Property>, Vec<String>)> {
        let mut settings = limits::plan(&serde_json::from_str(json).unwrap()).unwrap();
        let properties = plan(&mut settings, version)?;
        Ok((properties, settings.into_iter().map(|s| format!("{}={}", s.file, s.value)).collect()))
    }

    fn properties(json: &str) -> Vec<(String, Value)> {
        convert_all(json, 255).unwrap().0
    }

    fn number(name: &str, value: u64) -> Property {
        (name.to_owned(), Value::Uint64(value))
    }

    #[test]
    fn limits_have_the_property_that_systemd_writes_to_their_file() {
        for (json, expected) in [
            (r#"{"memory":{"limit":5}}"#, number("MemoryMax", 5)),
            (r#"{"memory":{"swap":-1}}"#, number("MemorySwapMax", u64::MAX)),
            (r#"{"memory":{"reservation":6}}"#, number("MemoryLow", 6)),
            (r#"{"unified":{"memory.high":"max"}}"#, number("MemoryHigh", u64::MAX)),
            (r#"{"cpu":{"shares":1024}}"#, number("CPUWeight", 100)),
            (r#"{"cpu":{"idle":1}}"#, number("CPUWeight", 0)),
            (r#"{"pids":{"limit":-1}}"#, number("TasksMax", u64::MAX)),
            (r#"{"unified":{"pids.max":"0"}}"#, number("TasksMax", 1)),
            (r#"{"memory":{"limit":5},"unified":{"memory.max":"7"}}"#, number("MemoryMax", 7)),
            (r#"{"unified":{"memory.oom.group":"1"}}"#, ("OOMPolicy".to_owned(), "kill".into())),
        ] {
            assert_eq!(properties(json), [expected], "{json}");
        }
        for json in [r#"{"unified":{"hugetlb.2MB.max":"5"}}"#, r#"{"cpu":{"idle":0}}"#] {
            assert!(properties(json).is_empty(), "{json}");
        }
        let old = convert_all(r#"{"unified":{"memory.oom.group":"1","cpu.idle":"1"}}"#, 251);
        assert!(old.unwrap().0.is_empty());
    }

    #[test]
    fn a_slices_files_are_properties_or_stay_files() {
        let files = [
            ("cpu.max", "12345 100000"),
            ("memory.max", "max"),
            ("memory.oom.group", "1"),
            ("hugetlb.2MB.max", "0"),
        ];
        let files = files.map(|(file, value)| (file.to_owned(), value.to_owned()));
        let (properties, rest) = of_files(&files).unwrap();
        let expected = [
            number("CPUQuotaPeriodUSec", 100_000),
            number("CPUQuotaPerSecUSec", 130_000),
            number("MemoryMax", u64::MAX),
        ];
        assert_eq!(properties, expected);
        assert_eq!(rest, ["memory.oom.group", "hugetlb.2MB.max"]);
    }

    #[test]
    fn quotas_are_rounded_up_to_a_percent_in_both_places() {
        let (properties, files) = convert_all(r#"{"cpu":{"quota":12345}}"#, 255).unwrap();
        let period = number("CPUQuotaPeriodUSec", 100_000);
        assert_eq!(properties, [period, number("CPUQuotaPerSecUSec", 130_000)]);
        assert_eq!(files, ["cpu.max=13000 100000"]);
        let (properties, files) =
            convert_all(r#"{"cpu":{"quota":-1,"period":50000}}"#, 255).unwrap();
        let period = number("CPUQuotaPeriodUSec", 50_000);
        assert_eq!(properties, [period, number("CPUQuotaPerSecUSec", u64::MAX)]);
        assert_eq!(files, ["cpu.max=max 50000"]);
    }

    #[test]
    fn lists_become_bits_from_the_lowest_byte_on() {
        let bits = |list: &str| properties(&format!(r#"{{"cpu":{{"cpus":"{list}"}}}}"#));
        let expected = |bytes: &[u8]| {
            let bytes = bytes.iter().copied().map(Value::Byte).collect();
            [("AllowedCPUs".to_owned(), Value::Array("y".to_owned(), bytes))]
        };
        assert_eq!(bits("0"), expected(&[1]));
        assert_eq!(bits("0-2, 7,9"), expected(&[0x87, 2]));
        for list in ["x", "2-1", "0-99999999", "1-", "-1"] {
            let json = format!(r#"{{"cpu":{{"cpus":"{list}"}}}}"#);
            assert!(convert_all(&json, 255).is_err(), "{list}");
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_refused_by_name() {
        for json in [
            r#"{"unified":{"memory.max":"1G"}}"#,
            r#"{"unified":{"cpu.max":"a b"}}"#,
            r#"{"unified":{"cpu.max":"5 0"}}"#,
            r#"{"unified":{"cpu.weight":"-1"}}"#,
        ] {
            let error = convert_all(json, 255).unwrap_err().to_string();
            assert!(error.contains("linux.resources.unified["), "{error}");
        }
    }
}
