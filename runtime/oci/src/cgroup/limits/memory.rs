//! Memory and swap.

use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::{Settings, Tolerance, limit, refuse};
use crate::container::Result;

pub(super) fn plan(settings: &mut Settings, memory: &LinuxMemory) -> Result<()> {
    refuse_unsupported(memory)?;
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(value) = swap(set(memory.swap()), set(memory.limit()))? {
        let setting = settings.add("memory.swap", "memory.swap.max", &value);
        if value == "max" || value == "0" {
            // Without swap there is nothing to forbid.
            setting.tolerance = Tolerance::Absent;
        }
    }
    if let Some(value) = set(memory.limit()) {
        settings.add("memory.limit", "memory.max", limit(value));
    }
    if let Some(value) = set(memory.reservation()) {
        settings.add("memory.reservation", "memory.low", limit(value));
    }
    Ok(())
}

fn refuse_unsupported(memory: &LinuxMemory) -> Result<()> {
    #[allow(deprecated, reason = "it is read to be refused")]
    let kernel = [("memory.kernel", memory.kernel()), ("memory.kernelTCP", memory.kernel_tcp())];
    for (field, value) in kernel {
        if value.is_some_and(|value| value > 0) {
            return refuse(field, "is not supported on cgroup v2");
        }
    }
    if memory.swappiness().is_some() {
        return refuse("memory.swappiness", "is not supported on cgroup v2");
    }
    if memory.disable_oom_killer() == Some(true) {
        return refuse("memory.disableOOMKiller", "is not supported on cgroup v2");
    }
    if memory.use_hierarchy() == Some(false) {
        return refuse("memory.useHierarchy", "cgroup v2 always accounts hierarchically");
    }
    Ok(())
}

/// The specification counts memory and swap together, cgroup v2 counts swap alone.
fn swap(swap: Option<i64>, memory: Option<i64>) -> Result<Option<String>> {
    let field = "memory.swap";
    match (swap, memory) {
        // Unlimited memory without a word about swap means both.
        (None, Some(memory)) if memory < 0 => Ok(Some(limit(-1))),
        (None, _) => Ok(None),
        (Some(swap), _) if swap < 0 => Ok(Some(limit(-1))),
        (Some(_), None) => refuse(field, "cannot be set without a memory limit"),
        (Some(swap), Some(memory)) if memory < 0 => Ok(Some(limit(swap))),
        (Some(swap), Some(memory)) if swap < memory => refuse(
            field,
            format!("memory and swap together, {swap}, are less than the memory limit, {memory}"),
        ),
        (Some(swap), Some(memory)) => Ok(Some(limit(swap - memory))),
    }
}

/// Says no to limits below what is in use, where the specification asks for that check.
pub(in crate::cgroup) fn check_usage(resources: &LinuxResources, usage: u64) -> Result<()> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    let limits =
        [("memory.swap", "memory+swap", memory.swap()), ("memory.limit", "memory", memory.limit())];
    for (field, what, value) in limits {
        let too_small = |value: i64| u64::try_from(value).is_ok_and(|value| value <= usage);
        if let Some(value) = value.filter(|value| *value > 0 && too_small(*value)) {
            return refuse(field, format!("rejecting {what} limit {value} <= usage {usage}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{try_plan, writes};
    use super::*;

    #[test]
    fn swap_is_what_is_beyond_memory() {
        for (json, expected) in [
            (r#"{"limit":100,"swap":150}"#, vec!["memory.swap.max=50", "memory.max=100"]),
            (r#"{"limit":100,"swap":100}"#, vec!["memory.swap.max=0", "memory.max=100"]),
            (r#"{"limit":100,"swap":-1}"#, vec!["memory.swap.max=max", "memory.max=100"]),
            (r#"{"limit":100,"swap":0}"#, vec!["memory.max=100"]),
            (r#"{"limit":100}"#, vec!["memory.max=100"]),
            (r#"{"limit":-1}"#, vec!["memory.swap.max=max", "memory.max=max"]),
            (r#"{"limit":-1,"swap":30}"#, vec!["memory.swap.max=30", "memory.max=max"]),
            (r#"{"swap":-1}"#, vec!["memory.swap.max=max"]),
            (r#"{"limit":0,"reservation":7}"#, vec!["memory.low=7"]),
            (r#"{"reservation":-1}"#, vec!["memory.low=max"]),
        ] {
            assert_eq!(writes(&format!(r#"{{"memory":{json}}}"#)), expected, "{json}");
        }
    }

    #[test]
    fn contradictions_and_what_only_v1_had_are_refused() {
        for json in [
            r#"{"limit":100,"swap":99}"#,
            r#"{"swap":99}"#,
            r#"{"disableOOMKiller":true}"#,
            r#"{"swappiness":60}"#,
            r#"{"kernel":5}"#,
            r#"{"kernelTCP":5}"#,
            r#"{"useHierarchy":false}"#,
        ] {
            assert!(try_plan(&format!(r#"{{"memory":{json}}}"#)).is_err(), "{json}");
        }
        let harmless = r#"{"memory":{"disableOOMKiller":false,"useHierarchy":true,"kernel":-1}}"#;
        assert!(writes(harmless).is_empty());
    }

    #[test]
    fn limits_below_the_usage_are_refused_only_where_asked() {
        let check = |json: &str| check_usage(&serde_json::from_str(json).unwrap(), 100);
        assert!(check(r#"{"memory":{"limit":100,"checkBeforeUpdate":true}}"#).is_err());
        assert!(check(r#"{"memory":{"limit":500,"swap":90,"checkBeforeUpdate":true}}"#).is_err());
        assert!(check(r#"{"memory":{"limit":101,"checkBeforeUpdate":true}}"#).is_ok());
        assert!(check(r#"{"memory":{"limit":-1,"checkBeforeUpdate":true}}"#).is_ok());
        assert!(check(r#"{"memory":{"limit":5,"checkBeforeUpdate":false}}"#).is_ok());
        assert!(check(r#"{"memory":{"limit":5}}"#).is_ok());
    }
}
