//! A running container's resources, and those that `update` asks for, made one. Pure.
//!
//! The rules are runc's: what is not spoken of stays, throttles are replaced device by device. Works on
//! JSON, so that a field is never lost for being unknown here; what is unknown is refused later.

use serde_json::{Map, Value, json};

use super::limits;
use crate::container::{Error, Result};

/// `current` changed to what `wanted` speaks of. Both are `linux.resources` objects.
pub(crate) fn merge(current: &Value, wanted: &Value) -> Result<Value> {
    let mut merged = current.clone();
    if !merged.is_object() {
        merged = json!({});
    }
    let mut wanted = wanted.clone();
    let unified = wanted.as_object_mut().and_then(|wanted| wanted.remove("unified"));
    overlay(&mut merged, &wanted);
    settle_cpu(&mut merged, &wanted, unified.as_ref());
    settle_memory(&mut merged, &wanted);
    settle_unified(&mut merged, unified)?;
    Ok(merged)
}

fn overlay(base: &mut Value, over: &Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over.iter().filter(|(_, value)| !value.is_null()) {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(base), Value::Array(over)) if over.iter().all(is_device) => {
            for device in over {
                let same = |one: &&mut Value| {
                    one["major"] == device["major"] && one["minor"] == device["minor"]
                };
                // Named twice, the later one would be the one that counts.
                let mut is_new = true;
                for known in base.iter_mut().filter(same) {
                    overlay(known, device);
                    is_new = false;
                }
                if is_new {
                    base.push(device.clone());
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// A throttle or weight of a block device; the rules of the device filter have no rate.
fn is_device(value: &Value) -> bool {
    value.get("rate").is_some() || value.get("weight").is_some()
}

fn remove(merged: &mut Value, part: &str, field: &str) {
    if let Some(part) = merged.get_mut(part).and_then(Value::as_object_mut) {
        part.remove(field);
    }
}

/// The files of a weight, which an idle cgroup has not.
const WEIGHTS: [&str; 2] = ["cpu.weight", "cpu.weight.nice"];

/// Whether resources, and what they set by file name, make a cgroup idle; `None` where they do not say.
fn says_idle(resources: &Value, unified: Option<&Value>) -> Option<bool> {
    let by_name = unified.and_then(|unified| unified.get("cpu.idle")).and_then(Value::as_str);
    let by_field = resources["cpu"]["idle"].as_i64().map(|idle| idle != 0);
    by_name.map(|idle| idle.trim() != "0").or(by_field)
}

/// An idle cgroup has no weight, one that is idle no longer has the default's, and one that is given a weight
/// is idle no longer: the later word counts. Who asks for both at once is refused later.
fn settle_cpu(merged: &mut Value, wanted: &Value, unified: Option<&Value>) {
    let weighs = wanted["cpu"]["shares"].as_u64().is_some_and(|shares| shares != 0)
        || WEIGHTS.iter().any(|file| unified.is_some_and(|unified| unified.get(file).is_some()));
    match says_idle(wanted, unified) {
        Some(is_idle) => {
            if wanted["cpu"]["shares"].is_null() {
                remove(merged, "cpu", "shares");
            }
            if is_idle && !weighs {
                WEIGHTS.iter().for_each(|file| remove(merged, "unified", file));
            }
        }
        None if weighs && says_idle(merged, merged.get("unified")) == Some(true) => {
            remove(merged, "unified", "cpu.idle");
            overlay(merged, &json!({"cpu": {"idle": 0}}));
        }
        None => {}
    }
}

/// Memory without a limit leaves none on swap.
fn settle_memory(merged: &mut Value, wanted: &Value) {
    if wanted["memory"]["limit"] == json!(-1) && wanted["memory"]["swap"].is_null() {
        remove(merged, "memory", "swap");
    }
}

/// What was set by file name goes where a field now sets the same file: the later word counts.
fn settle_unified(merged: &mut Value, wanted: Option<Value>) -> Result<()> {
    let Some(merged) = merged.as_object_mut() else { return Ok(()) };
    let kept = merged.remove("unified");
    let resources = crate::spec::typed(&Value::Object(merged.clone()))
        .map_err(|error| Error::invalid("linux.resources", error.to_string()))?;
    let files: Vec<String> =
        limits::plan(&resources)?.into_iter().map(|setting| setting.file).collect();
    let mut unified = match kept {
        Some(Value::Object(kept)) => kept,
        _ => Map::new(),
    };
    unified.retain(|file, _| !files.contains(file));
    if let Some(Value::Object(wanted)) = wanted {
        unified.extend(wanted);
    }
    if !unified.is_empty() {
        merged.insert("unified".to_owned(), Value::Object(unified));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_spoken_of_stays() {
        let current = json!({
            "memory": {"limit": 100, "swap": 200}, "pids": {"limit": 5},
            "cpu": {"quota": 10, "period": 20},
            "devices": [{"allow": false, "access": "rwm"}],
        });
        let wanted = json!({"memory": {"limit": 150, "swap": null}, "cpu": {"quota": 15}});
        let expected = json!({
            "memory": {"limit": 150, "swap": 200}, "pids": {"limit": 5},
            "cpu": {"quota": 15, "period": 20},
            "devices": [{"allow": false, "access": "rwm"}],
        });
        assert_eq!(merge(&current, &wanted).unwrap(), expected);
        assert_eq!(merge(&Value::Null, &json!({})).unwrap(), json!({}));
    }

    #[test]
    fn throttles_are_replaced_device_by_device() {
        let entry = |minor: u64, rate: u64| json!({"major": 8, "minor": minor, "rate": rate});
        let current = json!({"blockIO": {"throttleReadBpsDevice": [entry(0, 1), entry(16, 2)]}});
        let wanted = json!({"blockIO": {"throttleReadBpsDevice": [entry(16, 3), entry(32, 4)]}});
        let merged = merge(&current, &wanted).unwrap();
        let expected = json!([entry(0, 1), entry(16, 3), entry(32, 4)]);
        assert_eq!(merged["blockIO"]["throttleReadBpsDevice"], expected);
        let twice = json!({"blockIO": {"throttleReadBpsDevice": [entry(16, 1), entry(16, 2)]}});
        let merged = merge(&twice, &wanted).unwrap();
        let expected = json!([entry(16, 3), entry(16, 3), entry(32, 4)]);
        assert_eq!(merged["blockIO"]["throttleReadBpsDevice"], expected);
    }

    #[test]
    fn idle_and_unlimited_take_what_contradicts_them_along() {
        let current = json!({"cpu": {"shares": 1024}, "memory": {"limit": 5, "swap": 9}});
        let merged = merge(&current, &json!({"cpu": {"idle": 1}})).unwrap();
        assert_eq!(merged["cpu"], json!({"idle": 1}));
        let merged = merge(&current, &json!({"memory": {"limit": -1}})).unwrap();
        assert_eq!(merged["memory"], json!({"limit": -1}));
    }

    #[test]
    fn of_idle_and_a_weight_the_later_counts() {
        for (current, wanted, expected) in [
            (
                json!({"unified": {"cpu.weight": "8", "pids.max": "9"}}),
                json!({"cpu": {"idle": 1}}),
                json!({"cpu": {"idle": 1}, "unified": {"pids.max": "9"}}),
            ),
            (
                json!({"cpu": {"shares": 300}}),
                json!({"unified": {"cpu.idle": "1"}}),
                json!({"cpu": {}, "unified": {"cpu.idle": "1"}}),
            ),
            (
                json!({"cpu": {"idle": 1}}),
                json!({"cpu": {"shares": 300}}),
                json!({"cpu": {"idle": 0, "shares": 300}}),
            ),
            (
                json!({"unified": {"cpu.idle": "1"}}),
                json!({"cpu": {"shares": 300}}),
                json!({"cpu": {"idle": 0, "shares": 300}}),
            ),
            (
                json!({"cpu": {"idle": 1}}),
                json!({"unified": {"cpu.weight.nice": "3"}}),
                json!({"cpu": {"idle": 0}, "unified": {"cpu.weight.nice": "3"}}),
            ),
            (
                json!({"unified": {"cpu.idle": "0"}}),
                json!({"unified": {"cpu.weight": "8"}}),
                json!({"unified": {"cpu.idle": "0", "cpu.weight": "8"}}),
            ),
            (
                json!({"cpu": {"idle": 1}}),
                json!({"memory": {"limit": 5}}),
                json!({"cpu": {"idle": 1}, "memory": {"limit": 5}}),
            ),
        ] {
            assert_eq!(merge(&current, &wanted).unwrap(), expected, "{current} {wanted}");
        }
        assert!(merge(&json!({}), &json!({"cpu": {"idle": 1, "shares": 300}})).is_err());
        assert!(merge(&json!({"cpu": 3}), &json!({"unified": {"cpu.weight": "8"}})).is_err());
    }

    #[test]
    fn a_field_overrides_the_same_file_set_by_name_before() {
        let current = json!({"unified": {"memory.max": "5", "memory.oom.group": "1"}});
        let merged = merge(&current, &json!({"memory": {"limit": 9}})).unwrap();
        assert_eq!(merged["unified"], json!({"memory.oom.group": "1"}));
        let wanted = json!({"memory": {"limit": 9}, "unified": {"memory.max": "7"}});
        let merged = merge(&current, &wanted).unwrap();
        assert_eq!(merged["unified"], json!({"memory.max": "7", "memory.oom.group": "1"}));
    }

    #[test]
    fn contradictions_are_errors() {
        let current = json!({"memory": {"limit": 100, "swap": 200}});
        assert!(merge(&current, &json!({"memory": {"limit": 300}})).is_err());
        assert!(merge(&current, &json!({"memory": 7})).is_err());
    }
}
