//! Tolerations of pods and of runtime classes: rules for what they may say, and two lists made one, as
//! upstream's `pkg/util/tolerations` merges them.
//!
//! Differs: the comparing operators `Gt` and `Lt` are refused, as the scheduler here does not compare.

use serde_json::{Value, json};

use super::names;
use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::selector::label;

/// Checks a list of tolerations.
pub(super) fn check(field: &str, tolerations: &[Value], causes: &mut Vec<Cause>) {
    for (index, one) in tolerations.iter().enumerate() {
        check_one(&format!("{field}[{index}]"), one, causes);
    }
}

fn check_one(field: &str, toleration: &Value, causes: &mut Vec<Cause>) {
    let of = |name: &str| toleration.text(&format!("/{name}"));
    let (key, operator, value, effect) = (of("key"), of("operator"), of("value"), of("effect"));
    let at = |name: &str| format!("{field}.{name}");
    if !key.is_empty() && !label::is_qualified_name(key) {
        causes.push(Cause::invalid(at("key"), &json!(key), label::NAME_RULE));
    }
    if key.is_empty() && operator != "Exists" {
        let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(at("operator"), &json!(operator), detail));
    }
    if toleration.has("/tolerationSeconds") && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.push(Cause::invalid(at("effect"), &json!(effect), detail));
    }
    match operator {
        "" | "Equal" => {
            if let Some(problem) = names::label_value_problem(value) {
                causes.push(Cause::invalid(at("operator"), &json!(value), problem));
            }
        }
        "Exists" if value.is_empty() => {}
        "Exists" => {
            let detail = "value must be empty when `operator` is 'Exists'";
            causes.push(Cause::invalid(at("operator"), &json!(value), detail));
        }
        other => {
            causes.push(Cause::unsupported(at("operator"), &json!(other), &["Equal", "Exists"]));
        }
    }
    const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        causes.push(Cause::unsupported(at("effect"), &json!(effect), &EFFECTS));
    }
}

/// Names the tolerations that are there twice; their time does not tell them apart.
pub(super) fn check_unique(field: &str, tolerations: &[Value], causes: &mut Vec<Cause>) {
    let key = |one: &Value| {
        ["key", "operator", "value", "effect"].map(|name| one.text(&format!("/{name}")).to_owned())
    };
    for (index, one) in tolerations.iter().enumerate() {
        if tolerations[..index].iter().any(|other| key(other) == key(one)) {
            causes.push(Cause::duplicate(format!("{field}[{index}]"), one));
        }
    }
}

/// Both lists in one, without those that another one covers.
pub(super) fn merged(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (index, one) in all.iter().enumerate() {
        let is_covered = merged.iter().any(|other| covers(other, one))
            // Of two equal ones the first stays.
            || all[index + 1..].iter().any(|other| !is_same(other, one) && covers(other, one));
        if !is_covered {
            merged.push((*one).clone());
        }
    }
    merged
}

fn is_same(one: &Value, other: &Value) -> bool {
    ["key", "operator", "value", "effect"].iter().all(|name| {
        let pointer = format!("/{name}");
        one.text(&pointer) == other.text(&pointer)
    }) && one.int("/tolerationSeconds") == other.int("/tolerationSeconds")
}

/// Whether whatever `narrow` tolerates, `wide` tolerates as long.
fn covers(wide: &Value, narrow: &Value) -> bool {
    if is_same(wide, narrow) {
        return true;
    }
    let differs = |name: &str| wide.text(name) != narrow.text(name);
    let any_key = wide.text("/key").is_empty() && wide.text("/operator") == "Exists";
    let effect = wide.text("/effect");
    if (differs("/key") && !any_key) || (differs("/effect") && !effect.is_empty()) {
        return false;
    }
    if effect == "NoExecute"
        && let Some(limit) = wide.int("/tolerationSeconds")
        && narrow.int("/tolerationSeconds").is_none_or(|seconds| seconds > limit)
    {
        return false;
    }
    match wide.text("/operator") {
        "" | "Equal" => narrow.text("/operator") == "Equal" && !differs("/value"),
        operator => operator == "Exists",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(tolerations: Value) -> Vec<String> {
        let mut causes = Vec::new();
        let list = tolerations.as_array().unwrap();
        check("t", list, &mut causes);
        check_unique("t", list, &mut causes);
        causes.iter().map(Cause::line).collect()
    }

    #[test]
    fn a_toleration_says_what_it_matches() {
        let good = json!([{"operator": "Exists"}, {"key": "a"}, {"key": "a", "value": "b"},
            {"key": "x/a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}]);
        assert_eq!(lines(good), [""; 0]);
        for (bad, field) in [
            (json!({"key": "a b"}), "t[0].key: Invalid value"),
            (json!({"value": "b"}), "t[0].operator: Invalid value: \"\": operator must be Exists"),
            (
                json!({"key": "a", "tolerationSeconds": 1}),
                "t[0].effect: Invalid value: \"\": effect must",
            ),
            (json!({"key": "a", "value": "b c"}), "t[0].operator: Invalid value: \"b c\""),
            (
                json!({"key": "a", "operator": "Exists", "value": "b"}),
                "t[0].operator: Invalid value: \"b\": value must be empty",
            ),
            (
                json!({"key": "a", "operator": "Lt", "value": "1"}),
                "t[0].operator: Unsupported value: \"Lt\"",
            ),
            (json!({"key": "a", "effect": "Never"}), "t[0].effect: Unsupported value: \"Never\""),
        ] {
            let found = lines(json!([bad]));
            assert!(found.len() == 1 && found[0].starts_with(field), "{found:?}");
        }
    }

    #[test]
    fn a_toleration_with_another_time_is_there_twice() {
        let twice = json!([{"key": "a", "operator": "Exists", "effect": "NoExecute"},
            {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
        let found = lines(twice);
        assert!(found.len() == 1 && found[0].starts_with("t[1]: Duplicate value"), "{found:?}");
    }

    #[test]
    fn of_two_lists_what_another_covers_is_left_out() {
        let exact = json!({"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"});
        let any_effect = json!({"key": "a", "operator": "Exists"});
        let brief = json!({"key": "c", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let long = json!({"key": "c", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        let all = json!({"operator": "Exists"});
        for (first, second, wanted) in [
            (&[&exact][..], &[&any_effect][..], &[&any_effect][..]),
            (&[&any_effect], &[&exact], &[&any_effect]),
            (&[&exact], &[&exact], &[&exact]),
            (&[&brief], &[&long], &[&long]),
            (&[&exact], &[&brief], &[&exact, &brief]),
            (&[&exact, &brief], &[&any_effect, &all], &[&all]),
        ] {
            let list = |of: &[&Value]| of.iter().map(|one| (*one).clone()).collect::<Vec<_>>();
            assert_eq!(merged(&list(first), &list(second)), list(wanted));
        }
    }
}
