//! RuntimeClasses: rules for what they say (`pkg/apis/node/validation`), and what a pod that names one gets
//! from it, as upstream's RuntimeClass admission does. What a handler is, the node knows.

use serde_json::{Map, Value, json};

use super::{names, pod_rules, quantity, resources, tolerations};
use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::resource::{Kind, key};
use crate::store::Tx;

/// Checks a class.
pub(super) fn check(class: &Value, causes: &mut Vec<Cause>) {
    names::check_label("handler", class.text("/handler"), causes);
    for (resource, amount) in class.map("/overhead/podFixed").into_iter().flatten() {
        // The name that upstream gives the field, which checks it as limits.
        let field = format!("overhead.limits[{resource}]");
        resources::check_for_container(&field, resource, causes);
        let millis = pod_rules::check_amount(&field, amount, causes);
        if resource.contains('/') && millis.is_some_and(|millis| millis % 1000 != 0) {
            causes.push(Cause::invalid(field, amount, "must be an integer"));
        }
    }
    let fixed = || class.map("/overhead/podFixed").into_iter().flatten().map(|(name, _)| name);
    if fixed().any(|name| name.starts_with(resources::HUGE))
        && !fixed().any(|n| n == "cpu" || n == "memory")
    {
        causes.push(Cause::forbidden("overhead", "HugePages require cpu or memory"));
    }
    let selector = class.map("/scheduling/nodeSelector");
    names::check_labels("scheduling.nodeSelector", selector, causes);
    let (field, listed) = ("scheduling.tolerations", class.list("/scheduling/tolerations"));
    tolerations::check(field, listed, causes);
    tolerations::check_unique(field, listed, causes);
}

/// Which handler a class means stays.
pub(super) fn check_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let handler = wanted.text("/handler");
    if current.text("/handler") != handler {
        causes.push(Cause::invalid("handler", &json!(handler), "field is immutable"));
    }
}

/// Gives a new pod what its class says: overhead, where it may run, what it tolerates.
///
/// # Errors
/// For a class that is not there, and for a pod that says otherwise than its class.
pub(crate) fn use_runtime_class(tx: &Tx<'_>, pod: &mut Value) -> Result<(), String> {
    let class = match pod.text("/spec/runtimeClassName") {
        "" => None,
        name => Some(
            tx.get(&key(Kind::RuntimeClass, "", name))
                .ok_or_else(|| format!("pod rejected: RuntimeClass {name:?} not found"))?,
        ),
    };
    apply(class.as_deref(), pod)
}

fn apply(class: Option<&Value>, pod: &mut Value) -> Result<(), String> {
    match class.filter(|class| class.has("/overhead")) {
        Some(class) => set_overhead(class.map("/overhead/podFixed"), pod)?,
        None if pod.has("/spec/overhead") => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass \
                        defined Overhead"
                .to_owned());
        }
        None => {}
    }
    match class.filter(|class| class.has("/scheduling")) {
        Some(class) => set_scheduling(&class["scheduling"], pod),
        None => Ok(()),
    }
}

fn set_overhead(fixed: Option<&Map<String, Value>>, pod: &mut Value) -> Result<(), String> {
    let given = pod.map("/spec/overhead").filter(|given| !given.is_empty());
    if given.is_some_and(|given| amounts(Some(given)) != amounts(fixed)) {
        return Err(
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned()
        );
    }
    match fixed {
        Some(fixed) => pod.put("/spec/overhead", fixed.clone()),
        None => {
            pod.take_out("/spec/overhead");
        }
    }
    Ok(())
}

/// Amounts of one value are one, however they are written.
fn amounts(map: Option<&Map<String, Value>>) -> Vec<(&String, Option<i128>)> {
    let amount = |value: &Value| quantity::millis(value.as_str().unwrap_or_default());
    map.into_iter().flatten().map(|(resource, value)| (resource, amount(value))).collect()
}

fn set_scheduling(scheduling: &Value, pod: &mut Value) -> Result<(), String> {
    if let Some(selector) = scheduling.map("/nodeSelector") {
        let mut merged = pod.map("/spec/nodeSelector").cloned().unwrap_or_default();
        for (key, value) in selector {
            if let Some(own) = merged.get(key).filter(|own| *own != value) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; \
                     pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                ));
            }
            merged.insert(key.clone(), value.clone());
        }
        pod.put("/spec/nodeSelector", merged);
    }
    let merged =
        tolerations::merged(pod.list("/spec/tolerations"), scheduling.list("/tolerations"));
    if !merged.is_empty() {
        pod.put("/spec/tolerations", merged);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(class: &Value) -> Vec<String> {
        let mut causes = Vec::new();
        check(class, &mut causes);
        causes.iter().map(Cause::line).collect()
    }

    #[test]
    fn a_class_names_a_handler_and_amounts() {
        let good = json!({"handler": "my-runtime", "overhead": {"podFixed": {"cpu": "10m", "memory": "1Mi",
                "hugepages-2Mi": "2Mi", "a.io/device": "1"}},
            "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "value": "b"}]}});
        assert_eq!(lines(&good), [""; 0]);
        for (pointer, value, line) in [
            ("/handler", json!(""), "handler: Required value"),
            ("/handler", json!("a.b"), "handler: Invalid value: \"a.b\": must not contain dots"),
            ("/handler", json!("A"), "handler: Invalid value: \"A\": a lowercase RFC 1123 label"),
            (
                "/overhead/podFixed/cpu",
                json!("-1"),
                "overhead.limits[cpu]: Invalid value: \"-1\": must be greater",
            ),
            (
                "/overhead/podFixed/cpu",
                json!("x"),
                "overhead.limits[cpu]: Invalid value: \"x\": quantities must match",
            ),
            (
                "/overhead/podFixed/pods",
                json!("1"),
                "overhead.limits[pods]: Invalid value: \"pods\": must be a standard",
            ),
            (
                "/overhead/podFixed/a.io~1device",
                json!("1500m"),
                "overhead.limits[a.io/device]: Invalid value: \"1500m\": must be an integer",
            ),
            (
                "/scheduling/nodeSelector",
                json!({"a": "b c"}),
                "scheduling.nodeSelector: Invalid value: \"b c\"",
            ),
            (
                "/scheduling/tolerations",
                json!([{"key": "a"}, {"key": "a"}]),
                "scheduling.tolerations[1]: Duplicate value",
            ),
        ] {
            let mut bad = good.clone();
            match bad.pointer_mut(pointer) {
                Some(at) => *at = value,
                None => bad.put(pointer, value),
            }
            let found = lines(&bad);
            assert!(found.len() == 1 && found[0].starts_with(line), "{line}: {found:?}");
        }
    }

    #[test]
    fn the_handler_of_a_class_stays() {
        let mut causes = Vec::new();
        check_update(&json!({"handler": "a"}), &json!({"handler": "b"}), &mut causes);
        assert_eq!(causes, [Cause::invalid("handler", &json!("b"), "field is immutable")]);
    }

    fn admitted(class: Option<Value>, spec: Value) -> Result<Value, String> {
        let mut pod = json!({ "spec": spec });
        apply(class.as_ref(), &mut pod).map(|()| pod["spec"].clone())
    }

    #[test]
    fn a_pod_has_the_overhead_of_its_class_and_no_other() {
        let class = || Some(json!({"overhead": {"podFixed": {"cpu": "10m", "memory": "1Mi"}}}));
        let overhead = json!({"overhead": {"cpu": "10m", "memory": "1Mi"}});
        assert_eq!(admitted(class(), json!({})), Ok(overhead.clone()));
        let same = json!({"overhead": {"cpu": "0.01", "memory": "1048576"}});
        assert_eq!(admitted(class(), same), Ok(overhead.clone()));
        let other = admitted(class(), json!({"overhead": {"cpu": "10m"}})).unwrap_err();
        assert_eq!(
            other,
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"
        );
        let without =
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        for class in [None, Some(json!({"handler": "a"}))] {
            assert_eq!(admitted(class, overhead.clone()), Err(without.to_owned()));
        }
    }

    #[test]
    fn a_pod_goes_where_its_class_and_itself_say() {
        let class = || {
            Some(json!({"scheduling": {"nodeSelector": {"kind": "vm"},
                "tolerations": [{"key": "vm", "operator": "Exists"}]}}))
        };
        let spec = json!({"nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "vm", "operator": "Equal", "value": "x"}]});
        let merged = admitted(class(), spec).unwrap();
        assert_eq!(merged["nodeSelector"], json!({"disk": "fast", "kind": "vm"}));
        assert_eq!(merged["tolerations"], json!([{"key": "vm", "operator": "Exists"}]));
        let conflict = admitted(class(), json!({"nodeSelector": {"kind": "bare"}})).unwrap_err();
        assert_eq!(
            conflict,
            "conflict: runtimeClass.scheduling.nodeSelector[kind] = vm; \
             pod.spec.nodeSelector[kind] = bare"
        );
    }
}
