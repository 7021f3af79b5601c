//! PriorityClasses: rules for what they say (`pkg/apis/scheduling/validation`), the two that every cluster
//! has, and the priority that pods have of them, as upstream's Priority admission computes it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pod_rules;
use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::resource::{Kind, key, prefix};
use crate::store::Tx;

/// The highest value that users may give.
const HIGHEST: i64 = 1_000_000_000;
const RESERVED: &str = "system-";
const POLICIES: [&str; 2] = ["Never", "PreemptLowerPriority"];
/// What pods do that nothing says otherwise of.
const POLICY: &str = "PreemptLowerPriority";

/// The classes that every cluster has: name, value, description.
const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2 * HIGHEST,
        "Used for system critical pods that must run in the cluster, but can be moved to another \
         node if necessary.",
    ),
    (
        "system-node-critical",
        2 * HIGHEST + 1000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// The classes that every cluster has.
pub(crate) fn system_classes() -> impl Iterator<Item = Value> {
    SYSTEM.iter().map(|(name, value, description)| {
        json!({"metadata": {"name": name}, "value": value, "description": description})
    })
}

/// Whether a class is one of those.
pub(crate) fn is_system_class(name: &str) -> bool {
    SYSTEM.iter().any(|(known, ..)| *known == name)
}

/// Sets what a class leaves out.
pub(super) fn default_class(class: &mut Value) {
    class.default_to("/preemptionPolicy", POLICY);
}

/// Checks a new class.
pub(super) fn check(class: &Value, causes: &mut Vec<Cause>) {
    if class.name().starts_with(RESERVED) {
        if let Some(problem) = system_problem(class) {
            let detail = format!(
                "priority class names with '{RESERVED}' prefix are reserved for system use only. \
                 error: {problem}"
            );
            causes.push(Cause::forbidden("metadata.name", &detail));
        }
    } else if class.int("/value").is_some_and(|value| value > HIGHEST) {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST}");
        causes.push(Cause::forbidden("value", &detail));
    }
    check_policy("preemptionPolicy", class.text("/preemptionPolicy"), causes);
}

fn system_problem(class: &Value) -> Option<String> {
    let name = class.name();
    let Some((_, value, _)) = SYSTEM.iter().find(|(known, ..)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if class.int("/value") != Some(*value) {
        return Some(format!("value of {name} PriorityClass must be {value}"));
    }
    let is_default = class.flag("/globalDefault");
    is_default.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

/// A preemption policy, of a class or a pod.
pub(super) fn check_policy(field: &str, policy: &str, causes: &mut Vec<Cause>) {
    if !POLICIES.contains(&policy) {
        causes.push(Cause::unsupported(field, &json!(policy), &POLICIES));
    }
}

/// What pods have of a class stays.
pub(super) fn check_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    if current.int("/value") != wanted.int("/value") {
        causes.push(Cause::forbidden("value", "may not be changed in an update."));
    }
    let policy = wanted.text("/preemptionPolicy");
    if current.text("/preemptionPolicy") != policy {
        causes.push(Cause::invalid("preemptionPolicy", &json!(policy), "field is immutable"));
    }
}

/// Checks that a class is not a second one for pods that name none.
///
/// # Errors
/// When it is.
pub(crate) fn check_default(tx: &Tx<'_>, class: &Value) -> Result<(), String> {
    match default_of(&classes(tx)) {
        Some(other) if class.flag("/globalDefault") && other.name() != class.name() => {
            Err(format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.name()
            ))
        }
        _ => Ok(()),
    }
}

fn classes(tx: &Tx<'_>) -> Vec<Arc<Value>> {
    tx.list(&prefix(Kind::PriorityClass, "")).into_iter().map(|(_, class)| class).collect()
}

/// The class of pods that name none.
fn default_of(classes: &[Arc<Value>]) -> Option<&Value> {
    let defaults = classes.iter().filter(|class| class.flag("/globalDefault"));
    defaults.map(AsRef::as_ref).min_by_key(|class| class.int("/value"))
}

/// Gives a new pod the priority and the preemption policy of its class, or of the default one.
///
/// # Errors
/// For a class that is not there, and for a pod that says otherwise than its class.
pub(crate) fn use_priority_class(tx: &Tx<'_>, pod: &mut Value) -> Result<(), String> {
    let class = match pod.text("/spec/priorityClassName") {
        "" => default_of(&classes(tx)).cloned(),
        name => {
            let found = tx.get(&key(Kind::PriorityClass, "", name));
            let class = found.ok_or_else(|| format!("no PriorityClass with name {name} was found"));
            Some(class?.as_ref().clone())
        }
    };
    apply(class.as_ref(), pod)
}

fn apply(class: Option<&Value>, pod: &mut Value) -> Result<(), String> {
    let computed = class.and_then(|class| class.int("/value")).unwrap_or(0);
    let policy = class.map_or(POLICY, |class| class.text("/preemptionPolicy")).to_owned();
    let given = pod.int("/spec/priority").filter(|given| *given != computed);
    if let Some(given) = given {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority \
             admission controller computed {computed} from the given PriorityClass name"
        ));
    }
    let given = pod.text("/spec/preemptionPolicy");
    if !given.is_empty() && given != policy {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; \
             priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        pod.put("/spec/priorityClassName", class.name());
    }
    pod.put("/spec/priority", computed);
    pod.put("/spec/preemptionPolicy", policy);
    Ok(())
}

/// A changed pod keeps what it got.
pub(super) fn keep(current: &Value, wanted: &mut Value) {
    for pointer in ["/spec/priority", "/spec/preemptionPolicy"] {
        if !wanted.has(pointer) {
            pod_rules::restore(wanted, current, pointer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, value: i64) -> Value {
        let mut class = json!({"metadata": {"name": name}, "value": value});
        default_class(&mut class);
        class
    }

    fn lines(class: &Value) -> Vec<String> {
        let mut causes = Vec::new();
        check(class, &mut causes);
        causes.iter().map(Cause::line).collect()
    }

    #[test]
    fn the_systems_classes_are_good_and_nobody_makes_others_under_such_names() {
        for mut class in system_classes() {
            default_class(&mut class);
            assert_eq!(lines(&class), [""; 0]);
            assert!(is_system_class(class.name()));
            class.put("/globalDefault", true);
            assert!(lines(&class)[0].ends_with("PriorityClass must be false"));
        }
        let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are \
                        reserved for system use only. error: ";
        for (bad, why) in [
            (class("system-x", 1), "system-x is not a known system priority class"),
            (
                class("system-node-critical", 1),
                "value of system-node-critical PriorityClass must be 2000001000",
            ),
        ] {
            assert_eq!(lines(&bad), [format!("{reserved}{why}")]);
        }
    }

    #[test]
    fn a_class_has_a_value_for_users_and_a_policy() {
        assert_eq!(lines(&class("high", HIGHEST)), [""; 0]);
        assert_eq!(lines(&class("low", -5)), [""; 0]);
        let high =
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000";
        assert_eq!(lines(&class("high", HIGHEST + 1)), [high]);
        let mut odd = class("odd", 1);
        odd.put("/preemptionPolicy", "Sometimes");
        assert!(lines(&odd)[0].starts_with("preemptionPolicy: Unsupported value: \"Sometimes\""));
    }

    #[test]
    fn value_and_policy_of_a_class_stay() {
        let mut next = class("a", 2);
        next.put("/preemptionPolicy", "Never");
        let mut causes = Vec::new();
        check_update(&class("a", 1), &next, &mut causes);
        let lines: Vec<String> = causes.iter().map(Cause::line).collect();
        assert_eq!(
            lines,
            [
                "value: Forbidden: may not be changed in an update.",
                "preemptionPolicy: Invalid value: \"Never\": field is immutable"
            ]
        );
    }

    #[test]
    fn of_two_default_classes_the_lower_one_counts() {
        let list = |values: &[(i64, bool)]| -> Vec<Arc<Value>> {
            let one = |(value, default): &(i64, bool)| {
                let mut class = class(&format!("c{value}"), *value);
                class.put("/globalDefault", *default);
                Arc::new(class)
            };
            values.iter().map(one).collect()
        };
        assert_eq!(default_of(&list(&[(1, false)])), None);
        let found = list(&[(1, false), (9, true), (5, true)]);
        assert_eq!(default_of(&found).map(ObjectExt::name), Some("c5"));
    }

    fn admitted(class: Option<&Value>, spec: Value) -> Result<Value, String> {
        let mut pod = json!({ "spec": spec });
        apply(class, &mut pod).map(|()| pod["spec"].clone())
    }

    #[test]
    fn the_class_says_the_priority_and_nothing_else_does() {
        let plain = json!({"priority": 0, "preemptionPolicy": POLICY});
        assert_eq!(admitted(None, json!({})), Ok(plain.clone()));
        assert_eq!(admitted(None, plain.clone()), Ok(plain));
        let mut gold = class("gold", 7);
        gold.put("/preemptionPolicy", "Never");
        let given =
            json!({"priorityClassName": "gold", "priority": 7, "preemptionPolicy": "Never"});
        assert_eq!(admitted(Some(&gold), json!({})), Ok(given.clone()));
        assert_eq!(admitted(Some(&gold), given.clone()), Ok(given));
        let forged = admitted(None, json!({"priority": 2_000_000_000})).unwrap_err();
        assert!(forged.contains("(2000000000) must not be") && forged.contains("computed 0 from"));
        let forged = admitted(Some(&gold), json!({"preemptionPolicy": POLICY})).unwrap_err();
        assert!(forged.contains("PreemptionPolicy (PreemptLowerPriority)"), "{forged}");
        assert!(forged.contains("computed Never from"), "{forged}");
    }

    #[test]
    fn a_pod_keeps_its_priority_when_an_update_leaves_it_out() {
        let current = json!({"spec": {"priority": 7, "preemptionPolicy": "Never"}});
        let mut wanted = json!({"spec": {"priority": 8}});
        keep(&current, &mut wanted);
        assert_eq!(wanted["spec"], json!({"priority": 8, "preemptionPolicy": "Never"}));
    }
}
