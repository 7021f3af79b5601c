//! Rules for the mounts of containers: of volumes that the pod has, each at a place of its own.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::failure::Cause;
use crate::object::ObjectExt;

/// Checks the mounts of one container.
pub(super) fn check(
    path: &str,
    (container, volumes): (&Value, &BTreeSet<&str>),
    causes: &mut Vec<Cause>,
) {
    let mut paths = BTreeSet::new();
    for (index, mount) in container.list("/volumeMounts").iter().enumerate() {
        let field = format!("{path}.volumeMounts[{index}]");
        let name = mount.text("/name");
        if !volumes.contains(name) {
            causes.push(Cause::missing(format!("{field}.name"), &json!(name)));
        }
        let target = mount.text("/mountPath");
        if target.is_empty() {
            causes.push(Cause::required(format!("{field}.mountPath"), ""));
        } else if !paths.insert(target) {
            let detail = "must be unique";
            causes.push(Cause::invalid(format!("{field}.mountPath"), &json!(target), detail));
        }
        // Named as upstream names it, without the place in the list.
        check_recursion(&format!("{path}.volumeMounts.recursiveReadOnly"), mount, causes);
        let sub = mount.text("/subPath");
        if sub.starts_with('/') || sub.split('/').any(|part| part == "..") {
            let detail = "must be a relative path without '..'";
            causes.push(Cause::invalid(format!("{field}.subPath"), &json!(sub), detail));
        }
    }
}

/// A mount is read-only all the way down only where it is read-only, and nothing is mounted into it
/// later.
fn check_recursion(field: &str, mount: &Value, causes: &mut Vec<Cause>) {
    match mount.text("/recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.flag("/readOnly") {
                let detail = "may only be specified when readOnly is true";
                causes.push(Cause::forbidden(field, detail));
            }
            if !matches!(mount.text("/mountPropagation"), "" | "None") {
                let detail = "may only be specified when mountPropagation is None or not specified";
                causes.push(Cause::forbidden(field, detail));
            }
        }
        other => {
            let allowed = ["Disabled", "Enabled", "IfPossible"];
            causes.push(Cause::unsupported(field, &json!(other), &allowed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_recursively_read_only_where_it_is_read_only_and_private() {
        let found = |fields: Value| {
            let mut mount = json!({"name": "v", "mountPath": "/v"});
            for (field, value) in fields.as_object().into_iter().flatten() {
                mount[field] = value.clone();
            }
            let mut causes = Vec::new();
            let container = json!({"volumeMounts": [mount]});
            check("c", (&container, &BTreeSet::from(["v"])), &mut causes);
            causes.len()
        };
        for (more, count) in [
            (json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), 0),
            (json!({"recursiveReadOnly": "Disabled"}), 0),
            (json!({"recursiveReadOnly": "IfPossible"}), 1),
            (json!({"recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer"}), 2),
            (json!({"readOnly": true, "recursiveReadOnly": "Always"}), 1),
        ] {
            assert_eq!(found(more.clone()), count, "{more}");
        }
    }
}
