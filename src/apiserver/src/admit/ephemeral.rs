//! pods/ephemeralcontainers: containers that are added to a pod that is there already. They are never
//! changed and never taken away (`ValidatePodEphemeralContainersUpdate`).

use serde_json::Value;

use super::names;
use crate::failure::Cause;
use crate::object::ObjectExt;

const LIST: &str = "/spec/ephemeralContainers";

/// What an ephemeral container cannot have: nothing is kept for it and nothing asks how it does.
const FORBIDDEN: [&str; 6] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"];

/// Of an update nothing but the ephemeral containers counts.
pub(super) fn prepare(current: &Value, wanted: &mut Value) {
    let asked = wanted.pointer(LIST).cloned();
    *wanted = current.clone();
    match asked {
        Some(list) => wanted.put(LIST, list),
        None => {
            wanted.take_out(LIST);
        }
    }
}

/// Checks that known containers stay as they are and that new ones can run.
pub(super) fn check(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let named = |list: &[Value], name: &str| list.iter().find(|c| c.text("/name") == name).cloned();
    let before = current.list(LIST);
    let after = wanted.list(LIST);
    for known in before {
        let name = known.text("/name");
        match named(after, name) {
            None => causes.push(Cause::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            )),
            Some(now) if now != *known => causes.push(Cause::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
    for (index, container) in after.iter().enumerate() {
        let name = container.text("/name");
        if named(before, name).is_none() {
            check_new((&format!("spec.ephemeralContainers[{index}]"), container), wanted, causes);
        }
        if after[..index].iter().any(|other| other.text("/name") == name) {
            let field = format!("spec.ephemeralContainers[{index}].name");
            causes.push(Cause::duplicate(field, &container["name"]));
        }
    }
}

fn check_new((path, container): (&str, &Value), pod: &Value, causes: &mut Vec<Cause>) {
    let name = container.text("/name");
    names::check_label(&format!("{path}.name"), name, causes);
    if container.text("/image").is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    }
    let lasting = || pod.list("/spec/containers").iter().chain(pod.list("/spec/initContainers"));
    if lasting().any(|other| other.text("/name") == name) {
        causes.push(Cause::duplicate(format!("{path}.name"), &container["name"]));
    }
    let target = container.text("/targetContainerName");
    if !target.is_empty() && !lasting().any(|other| other.text("/name") == target) {
        causes.push(Cause::missing(
            format!("{path}.targetContainerName"),
            &container["targetContainerName"],
        ));
    }
    for field in FORBIDDEN {
        let is_set = container.get(field).is_some_and(|value| match value {
            Value::Object(fields) => !fields.is_empty(),
            Value::Array(items) => !items.is_empty(),
            other => !other.is_null(),
        });
        if is_set {
            let detail = "cannot be set for an Ephemeral Container";
            causes.push(Cause::forbidden(format!("{path}.{field}"), detail));
        }
    }
    for (index, mount) in container.list("/volumeMounts").iter().enumerate() {
        if !mount.text("/subPath").is_empty() || !mount.text("/subPathExpr").is_empty() {
            causes.push(Cause::forbidden(
                format!("{path}.volumeMounts[{index}].subPath"),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ephemeral: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "i"}], "ephemeralContainers": ephemeral}})
    }

    fn problems(before: Value, after: Value) -> usize {
        let mut causes = Vec::new();
        check(&pod(before), &pod(after), &mut causes);
        causes.len()
    }

    #[test]
    fn ephemeral_containers_are_added_and_nothing_else_happens_to_them() {
        let one = json!({"name": "e", "image": "i", "resources": {}});
        let other = json!({"name": "f", "image": "i", "targetContainerName": "c"});
        assert_eq!(problems(json!([]), json!([one])), 0);
        assert_eq!(problems(json!([one]), json!([one, other])), 0);
        assert_eq!(problems(json!([one]), json!([other])), 1);
        assert_eq!(problems(json!([one]), json!([{"name": "e", "image": "j"}])), 1);
        for bad in [
            json!({"name": "c", "image": "i"}),
            json!({"name": "E", "image": "i"}),
            json!({"name": "f"}),
            json!({"name": "f", "image": "i", "targetContainerName": "x"}),
            json!({"name": "f", "image": "i", "ports": [{"containerPort": 1}]}),
            json!({"name": "f", "image": "i", "volumeMounts": [{"name": "v", "subPath": "x"}]}),
        ] {
            assert_eq!(problems(json!([one]), json!([one, bad])), 1, "{bad}");
        }
        assert_eq!(problems(json!([]), json!([one, one])), 1);
    }

    #[test]
    fn an_update_changes_nothing_but_the_ephemeral_containers() {
        let mut wanted = pod(json!([{"name": "e", "image": "i"}]));
        wanted.put("/spec/containers/0/image", "other");
        wanted.put("/metadata/labels", json!({"a": "b"}));
        prepare(&pod(json!([])), &mut wanted);
        assert_eq!(wanted, pod(json!([{"name": "e", "image": "i"}])));
    }
}
