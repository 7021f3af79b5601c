//! Roles and bindings: defaults, and rules for what they may say
//! (`rbac.authorization.k8s.io/v1`). Who may write them is decided in [`crate::rbac`].

use serde_json::{Value, json};

use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::resource::Kind;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Sets the groups that references leave out.
pub(super) fn defaults(binding: &mut Value) {
    if binding.has("/roleRef") && binding.text("/roleRef/apiGroup").is_empty() {
        binding.put("/roleRef/apiGroup", GROUP);
    }
    for subject in binding.list_mut("/subjects") {
        if matches!(subject.text("/kind"), "User" | "Group") {
            subject.default_to("/apiGroup", GROUP);
        }
    }
}

/// Checks a role or binding.
pub(super) fn check(kind: Kind, object: &Value, causes: &mut Vec<Cause>) {
    match kind {
        Kind::Role | Kind::ClusterRole => check_role(kind, object, causes),
        _ => check_binding(kind, object, causes),
    }
}

fn check_role(kind: Kind, role: &Value, causes: &mut Vec<Cause>) {
    if role.has("/aggregationRule") {
        causes.push(Cause::forbidden("aggregationRule", "not supported by this server"));
    }
    for (index, rule) in role.list("/rules").iter().enumerate() {
        let field = |name: &str| format!("rules[{index}].{name}");
        if rule.list("/verbs").is_empty() {
            causes.push(Cause::required(field("verbs"), "verbs must contain at least one value"));
        }
        if !rule.list("/nonResourceURLs").is_empty() {
            if kind == Kind::Role {
                let why = "namespaced rules cannot apply to non-resource URLs";
                let value = &rule["nonResourceURLs"];
                causes.push(Cause::invalid(field("nonResourceURLs"), value, why));
            }
            continue;
        }
        if rule.list("/apiGroups").is_empty() {
            let why = "resource rules must supply at least one api group";
            causes.push(Cause::required(field("apiGroups"), why));
        }
        if rule.list("/resources").is_empty() {
            let why = "resource rules must supply at least one resource";
            causes.push(Cause::required(field("resources"), why));
        }
    }
}

fn check_binding(kind: Kind, binding: &Value, causes: &mut Vec<Cause>) {
    let allowed: &[&str] = match kind {
        Kind::ClusterRoleBinding => &["ClusterRole"],
        _ => &["ClusterRole", "Role"],
    };
    let of_role = binding.text("/roleRef/kind");
    if !allowed.contains(&of_role) {
        causes.push(Cause::unsupported("roleRef.kind", &json!(of_role), allowed));
    }
    if binding.text("/roleRef/name").is_empty() {
        causes.push(Cause::required("roleRef.name", ""));
    }
    for (index, subject) in binding.list("/subjects").iter().enumerate() {
        let field = |name: &str| format!("subjects[{index}].{name}");
        if subject.text("/name").is_empty() {
            causes.push(Cause::required(field("name"), ""));
        }
        match subject.text("/kind") {
            "ServiceAccount" if subject.text("/namespace").is_empty() => {
                causes.push(Cause::required(field("namespace"), ""));
            }
            "ServiceAccount" | "User" | "Group" => {}
            other => {
                let kinds = ["Group", "ServiceAccount", "User"];
                causes.push(Cause::unsupported(field("kind"), &json!(other), &kinds));
            }
        }
    }
}

/// What a binding gives cannot be exchanged under its subjects.
pub(super) fn check_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    if current.get("roleRef") != wanted.get("roleRef") {
        let value = wanted.get("roleRef").cloned().unwrap_or_default();
        causes.push(Cause::invalid("roleRef", &value, "cannot change roleRef"));
    }
}
