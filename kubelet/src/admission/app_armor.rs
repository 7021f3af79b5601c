//! Which AppArmor profile a container is to have, by field or by the annotation that was there before, and
//! whether the node has AppArmor for a pod that asks for one. Whether a profile is loaded is the
//! runtime's to know, when it makes the container.

use berth_runtime::interface::AppArmor;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SecurityContext};

/// What a pod's annotations name a container's profile by, before the container's name.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Whether a node's kernel confines by AppArmor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppArmorSupport {
    /// It does.
    Enabled,
    /// It does not.
    Absent,
}

impl AppArmorSupport {
    /// Asks the kernel.
    pub fn of_host() -> Self {
        match berth_runtime::apparmor_is_enabled() {
            true => Self::Enabled,
            false => Self::Absent,
        }
    }
}

/// Why a pod's wish for AppArmor cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppArmorRefused {
    /// The node has none.
    #[error("AppArmor is not enabled on the host")]
    NotEnabled,
    /// A profile of the host without its name.
    #[error("invalid empty AppArmor profile name of container {0}")]
    NoName(String),
    /// A type that does not exist.
    #[error("invalid AppArmor profile type {0:?}")]
    UnknownType(String),
}

/// The container's profile: its own field, the annotation, the pod's field; else the
/// runtime has its way.
pub fn app_armor(pod: &Pod, container: &Container) -> Result<AppArmor, AppArmorRefused> {
    profile(pod, &container.name, container.security_context.as_ref())
}

fn profile(
    pod: &Pod,
    name: &str,
    own: Option<&SecurityContext>,
) -> Result<AppArmor, AppArmorRefused> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    if let Some(field) = own.and_then(|context| context.app_armor_profile.as_ref()) {
        return by_field(field, name);
    }
    let annotations = pod.metadata.annotations.as_ref();
    let annotation = annotations.and_then(|all| all.get(&format!("{ANNOTATION}{name}")));
    if let Some(found) = annotation.and_then(|text| by_annotation(text)) {
        return named(found, name);
    }
    match of_pod.and_then(|context| context.app_armor_profile.as_ref()) {
        Some(field) => by_field(field, name),
        None => Ok(AppArmor::Unspecified),
    }
}

fn by_field(field: &AppArmorProfile, container: &str) -> Result<AppArmor, AppArmorRefused> {
    let found = match field.type_.as_str() {
        "Unconfined" => AppArmor::Unconfined,
        "RuntimeDefault" => AppArmor::RuntimeDefault,
        "Localhost" => AppArmor::Localhost(field.localhost_profile.clone().unwrap_or_default()),
        other => return Err(AppArmorRefused::UnknownType(other.to_owned())),
    };
    named(found, container)
}

/// What an annotation says; one that says nothing known counts as none, as upstream has it.
fn by_annotation(text: &str) -> Option<AppArmor> {
    match text {
        "runtime/default" => Some(AppArmor::RuntimeDefault),
        "unconfined" => Some(AppArmor::Unconfined),
        _ => Some(AppArmor::Localhost(text.strip_prefix("localhost/")?.to_owned())),
    }
}

fn named(profile: AppArmor, container: &str) -> Result<AppArmor, AppArmorRefused> {
    match &profile {
        AppArmor::Localhost(name) if name.trim().is_empty() => {
            Err(AppArmorRefused::NoName(container.to_owned()))
        }
        _ => Ok(profile),
    }
}

/// Whether the node has what the pod's containers ask for.
pub(super) fn check(pod: &Pod, support: AppArmorSupport) -> Result<(), AppArmorRefused> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let inits = spec.init_containers.iter().flatten();
    let all = inits.chain(&spec.containers).map(|c| (&c.name, c.security_context.as_ref()));
    let later = spec.ephemeral_containers.iter().flatten();
    let all = all.chain(later.map(|c| (&c.name, c.security_context.as_ref())));
    for (name, own) in all {
        match profile(pod, name, own)? {
            AppArmor::Unconfined | AppArmor::Unspecified => {}
            _ if support == AppArmorSupport::Enabled => {}
            _ => return Err(AppArmorRefused::NotEnabled),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod with these fields of its own, of its container, and this annotation.
    fn pod(of_pod: Value, own: Value, annotation: Option<&str>) -> Pod {
        let annotations =
            annotation.map(|text| json!({format!("{ANNOTATION}c"): text})).unwrap_or_default();
        serde_json::from_value(json!({
            "metadata": {"annotations": annotations},
            "spec": {
                "securityContext": {"appArmorProfile": of_pod},
                "containers": [{"name": "c", "securityContext": {"appArmorProfile": own}}],
            },
        }))
        .unwrap()
    }

    fn of(pod: &Pod) -> Result<AppArmor, AppArmorRefused> {
        app_armor(pod, &pod.spec.as_ref().unwrap().containers[0])
    }

    #[test]
    fn the_nearest_wish_counts() {
        let local = |name: &str| AppArmor::Localhost(name.to_owned());
        let host = |name: &str| json!({"type": "Localhost", "localhostProfile": name});
        let default = json!({"type": "RuntimeDefault"});
        let none = json!({"type": "Unconfined"});
        for (of_pod, own, annotation, wanted) in [
            (Value::Null, Value::Null, None, AppArmor::Unspecified),
            (Value::Null, Value::Null, Some("nonsense"), AppArmor::Unspecified),
            (default.clone(), Value::Null, None, AppArmor::RuntimeDefault),
            (default.clone(), host("own"), None, local("own")),
            (default.clone(), none.clone(), Some("localhost/x"), AppArmor::Unconfined),
            (none, Value::Null, Some("localhost/x"), local("x")),
            (Value::Null, Value::Null, Some("runtime/default"), AppArmor::RuntimeDefault),
            (default.clone(), Value::Null, Some("unconfined"), AppArmor::Unconfined),
            (default, Value::Null, Some("nonsense"), AppArmor::RuntimeDefault),
        ] {
            assert_eq!(of(&pod(of_pod, own, annotation)), Ok(wanted));
        }
    }

    #[test]
    fn who_asks_in_vain_is_refused() {
        use AppArmorSupport::{Absent, Enabled};
        let host = |name: Value| json!({"type": "Localhost", "localhostProfile": name});
        for nameless in [host(Value::Null), host(json!(" "))] {
            let nameless = pod(Value::Null, nameless, None);
            assert_eq!(check(&nameless, Enabled), Err(AppArmorRefused::NoName("c".into())));
        }
        let unknown = pod(json!({"type": "localhost"}), Value::Null, None);
        assert_eq!(of(&unknown), Err(AppArmorRefused::UnknownType("localhost".into())));
        let ordinary = pod(json!({"type": "Unconfined"}), Value::Null, Some("unconfined"));
        assert_eq!(check(&ordinary, Absent), Ok(()));
        assert_eq!(check(&pod(Value::Null, Value::Null, None), Absent), Ok(()));
        for wish in [
            pod(json!({"type": "RuntimeDefault"}), Value::Null, None),
            pod(Value::Null, host(json!("p")), None),
            pod(Value::Null, Value::Null, Some("runtime/default")),
        ] {
            assert_eq!(check(&wish, Enabled), Ok(()));
            assert_eq!(check(&wish, Absent), Err(AppArmorRefused::NotEnabled));
        }
    }
}
