//! What makes an object acceptable: defaults, what clients may not set, rules, ownership. The
//! modules are by kind; this one says which apply when. Everything but Service addresses is pure.

mod ephemeral;
pub(crate) mod events;
pub(crate) mod limit_range;
mod mirror;
pub(crate) mod names;
mod objects;
mod pod_defaults;
mod pod_rules;
mod pod_token;
pub(crate) mod priority;
pub(crate) mod quantity;
mod resize;
mod resources;
mod roles;
mod runtime_class;
pub(crate) mod service;
pub(crate) mod signing;
pub(crate) mod storage;
mod tolerations;
mod trust;

use serde_json::{Value, json};

use crate::failure::{Cause, Failure};
use crate::http::access::Identity;
use crate::object::ObjectExt;
use crate::resource::{Kind, Resource};

pub(crate) use mirror::{check_mirror, is_mirror};
pub(crate) use pod_rules::qos_class;
pub(crate) use pod_token::mount_token;
pub(crate) use priority::use_priority_class;
pub(crate) use resize::beyond as beyond_node;
pub(crate) use runtime_class::use_runtime_class;

/// What of an object an update is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Everything but the status.
    Main,
    /// The status.
    Status,
    /// A namespace's finalizers.
    Finalize,
    /// A pod's ephemeral containers.
    EphemeralContainers,
    /// Whether a certificate may be signed.
    Approval,
    /// What a pod's containers may use.
    Resize,
}

/// Sets what a new object starts with and removes what only the server may set.
pub(crate) fn prepare_create(kind: Kind, object: &mut Value) {
    match kind {
        Kind::Pod => {
            object.put("/metadata/generation", 1);
            object.put("/status", json!({"phase": "Pending", "qosClass": qos_class(object)}));
        }
        Kind::EndpointSlice | Kind::PriorityClass | Kind::PodTemplate => {
            object.put("/metadata/generation", 1);
        }
        Kind::PersistentVolume | Kind::PersistentVolumeClaim => {
            object.put("/status", json!({"phase": "Pending"}));
            storage::protect(kind, object);
        }
        Kind::Service => object.put("/status", json!({"loadBalancer": {}})),
        Kind::CertificateSigningRequest => object.put("/status", json!({})),
        Kind::Namespace => {
            object.put("/status", json!({"phase": "Active"}));
            object.put("/spec", json!({"finalizers": ["kubernetes"]}));
            let name = object.name().to_owned();
            if !object.has("/metadata/labels") {
                object.put("/metadata/labels", json!({}));
            }
            if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
                labels.insert("kubernetes.io/metadata.name".into(), name.into());
            }
        }
        Kind::Secret => objects::merge_string_data(object),
        _ => {}
    }
}

/// Sets the defaults of a kind.
pub(crate) fn defaults(kind: Kind, object: &mut Value) {
    match kind {
        Kind::Pod => pod_defaults::apply(object),
        Kind::LimitRange => limit_range::defaults(object),
        Kind::PodTemplate => pod_defaults::apply_to_template(object),
        Kind::Service => service::defaults(object),
        Kind::Secret => object.default_to("/type", "Opaque"),
        Kind::Endpoints => objects::default_endpoints(object),
        Kind::EndpointSlice => objects::default_slice(object),
        Kind::Node => object.default_to("/status", json!({})),
        Kind::RoleBinding | Kind::ClusterRoleBinding => roles::defaults(object),
        Kind::PersistentVolume => storage::default_volume(object),
        Kind::PersistentVolumeClaim => object.default_to("/spec/volumeMode", "Filesystem"),
        Kind::PriorityClass => priority::default_class(object),
        _ => {}
    }
}

/// Brings over what an update of this sort does not change.
pub(crate) fn prepare_update(
    (resource, change): (&Resource, Change),
    current: &Value,
    wanted: &mut Value,
) {
    let keep = |wanted: &mut Value, field: &str| match current.get(field) {
        Some(value) => wanted.put(&format!("/{field}"), value.clone()),
        None => {
            wanted.take_out(&format!("/{field}"));
        }
    };
    match change {
        Change::Main if resource.has_status() => keep(wanted, "status"),
        Change::Main => {}
        Change::Status => {
            keep(wanted, "spec");
            for field in ["ownerReferences", "finalizers"] {
                let pointer = format!("/metadata/{field}");
                match current.pointer(&pointer) {
                    Some(value) => wanted.put(&pointer, value.clone()),
                    None => {
                        wanted.take_out(&pointer);
                    }
                }
            }
        }
        Change::Finalize => {
            keep(wanted, "status");
        }
        Change::EphemeralContainers => ephemeral::prepare(current, wanted),
        Change::Approval => {}
        Change::Resize => resize::prepare(current, wanted),
    }
    match (resource.kind, change) {
        (Kind::Namespace, Change::Main) => keep(wanted, "spec"),
        (Kind::Secret, _) => objects::merge_string_data(wanted),
        (Kind::Pod, Change::Status) => {
            // The class follows from the spec, whatever the writer thinks.
            let class = qos_class(wanted);
            wanted.put("/status/qosClass", class);
        }
        (Kind::Pod, _) => priority::keep(current, wanted),
        (Kind::CertificateSigningRequest, _) => signing::prepare_update(change, current, wanted),
        _ => {}
    }
}

/// Counts changes of what is wanted, for the kinds that have a generation.
pub(crate) fn bump_generation(kind: Kind, current: &Value, wanted: &mut Value) {
    let changed = match kind {
        Kind::Pod => wanted.get("spec") != current.get("spec"),
        Kind::PodTemplate => wanted.get("template") != current.get("template"),
        Kind::EndpointSlice => {
            ["endpoints", "ports"].iter().any(|field| wanted.get(*field) != current.get(*field))
        }
        _ => false,
    };
    if changed {
        let generation = current.int("/metadata/generation").unwrap_or(0);
        wanted.put("/metadata/generation", generation + 1);
    }
}

/// Checks a new object.
pub(crate) fn check_create(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    names::check_metadata(resource, object, &mut causes);
    match resource.kind {
        Kind::Pod => pod_rules::check(object, &mut causes),
        Kind::PodTemplate => check_template(object, &mut causes),
        Kind::LimitRange => limit_range::check(object, &mut causes),
        Kind::Service => service::check(object, &mut causes),
        Kind::ConfigMap => objects::check_data(object, &mut causes),
        Kind::Secret => {
            objects::check_data(object, &mut causes);
            objects::check_secret_type(object, &mut causes);
        }
        Kind::Event => events::check(object, &mut causes),
        Kind::CertificateSigningRequest => signing::check(object, &mut causes),
        Kind::ClusterTrustBundle => trust::check(object, &mut causes),
        Kind::Lease => objects::check_lease(object, &mut causes),
        Kind::Endpoints => objects::check_endpoints(object, &mut causes),
        Kind::EndpointSlice => objects::check_slice(object, &mut causes),
        Kind::Role | Kind::ClusterRole | Kind::RoleBinding | Kind::ClusterRoleBinding => {
            roles::check(resource.kind, object, &mut causes);
        }
        Kind::PersistentVolume => storage::check_volume(object, &mut causes),
        Kind::PersistentVolumeClaim => storage::check_claim(object, &mut causes),
        Kind::RuntimeClass => runtime_class::check(object, &mut causes),
        Kind::PriorityClass => priority::check(object, &mut causes),
        Kind::Node | Kind::Namespace | Kind::ServiceAccount => {}
    }
    causes
}

fn check_template(object: &Value, causes: &mut Vec<Cause>) {
    let mut found = Vec::new();
    pod_rules::check_template(&object["template"], &mut found);
    causes.extend(found.into_iter().map(|cause| cause.within("template")));
}

/// Checks a changed object against its former self.
pub(crate) fn check_update(
    (resource, change): (&Resource, Change),
    current: &Value,
    wanted: &Value,
) -> Vec<Cause> {
    let mut causes = Vec::new();
    names::check_metadata(resource, wanted, &mut causes);
    if change == Change::EphemeralContainers {
        ephemeral::check(current, wanted, &mut causes);
    }
    if resource.kind == Kind::CertificateSigningRequest {
        signing::check_update(current, wanted, &mut causes);
    }
    if change == Change::Resize {
        resize::check(current, wanted, &mut causes);
    }
    if change == Change::Main {
        check_main(resource.kind, (current, wanted), &mut causes);
    }
    causes
}

fn check_main(kind: Kind, (current, wanted): (&Value, &Value), causes: &mut Vec<Cause>) {
    match kind {
        Kind::Pod => pod_rules::check_update(current, wanted, causes),
        Kind::Service => {
            service::check(wanted, causes);
            service::check_update(current, wanted, causes);
        }
        Kind::Secret | Kind::ConfigMap => {
            objects::check_data(wanted, causes);
            objects::check_data_update(kind, (current, wanted), causes);
        }
        Kind::ClusterTrustBundle => {
            trust::check(wanted, causes);
            trust::check_update(current, wanted, causes);
        }
        Kind::Lease => objects::check_lease(wanted, causes),
        Kind::Endpoints => objects::check_endpoints(wanted, causes),
        Kind::EndpointSlice => {
            objects::check_slice(wanted, causes);
            if current.text("/addressType") != wanted.text("/addressType") {
                let value = json!(wanted.text("/addressType"));
                causes.push(Cause::invalid("addressType", &value, "field is immutable"));
            }
        }
        Kind::Node => objects::check_node_update(current, wanted, causes),
        Kind::Role | Kind::ClusterRole | Kind::RoleBinding | Kind::ClusterRoleBinding => {
            roles::check(kind, wanted, causes);
            roles::check_update(current, wanted, causes);
        }
        Kind::PersistentVolume => {
            storage::check_volume(wanted, causes);
            storage::check_volume_update(current, wanted, causes);
        }
        Kind::PersistentVolumeClaim => {
            storage::check_claim(wanted, causes);
            storage::check_claim_update(current, wanted, causes);
        }
        Kind::PodTemplate => check_template(wanted, causes),
        Kind::LimitRange => limit_range::check(wanted, causes),
        Kind::PriorityClass => priority::check_update(current, wanted, causes),
        Kind::RuntimeClass => {
            runtime_class::check(wanted, causes);
            runtime_class::check_update(current, wanted, causes);
        }
        Kind::Event | Kind::Namespace | Kind::ServiceAccount | Kind::CertificateSigningRequest => {}
    }
}

/// Whether an update of the kind must say which form of the object it saw.
pub(crate) fn needs_revision(kind: Kind) -> bool {
    kind == Kind::RuntimeClass
}

/// Whether a marked object has nothing left to wait for.
pub(crate) fn is_finished(kind: Kind, object: &Value) -> bool {
    object.is_terminating()
        && object.list("/metadata/finalizers").is_empty()
        && object.int("/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && (kind != Kind::Namespace || object.list("/spec/finalizers").is_empty())
}

/// Rules for what a node may create, which need the object.
///
/// # Errors
/// 403.
pub(crate) fn check_creator(
    identity: &Identity,
    resource: &Resource,
    object: &Value,
) -> Result<(), Failure> {
    let Some(node) = identity.node().filter(|_| !identity.is_master()) else { return Ok(()) };
    let (allowed, why) = match resource.kind {
        Kind::Node | Kind::Lease => {
            (object.name() == node, format!("node {node:?} is not allowed to create it"))
        }
        Kind::Pod => (
            object.text("/spec/nodeName") == node && is_mirror(object),
            format!("node {node:?} can only create mirror pods with its own name"),
        ),
        _ => (true, String::new()),
    };
    match allowed {
        true => Ok(()),
        false => Err(Failure::forbidden(resource, object.name(), &why)),
    }
}

/// Rules for what a node may change or delete, which need the object.
///
/// # Errors
/// 403.
pub(crate) fn check_writer(
    identity: &Identity,
    resource: &Resource,
    object: &Value,
) -> Result<(), Failure> {
    let Some(node) = identity.node().filter(|_| !identity.is_master()) else { return Ok(()) };
    if resource.kind == Kind::Pod && object.text("/spec/nodeName") != node {
        let why = format!("node {node:?} can only change pods with spec.nodeName set to itself");
        return Err(Failure::forbidden(resource, object.name(), &why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::form::Ride;
    use crate::resource::RESOURCES;
    use crate::verbs::body::{Parsed, Validation, decode};
    use proptest::prelude::*;

    /// Objects made of words that mean something, in places where they may not belong.
    fn anything() -> impl Strategy<Value = Value> {
        const WORDS: [&str; 24] = [
            "metadata",
            "spec",
            "status",
            "name",
            "namespace",
            "labels",
            "containers",
            "ports",
            "resources",
            "limits",
            "cpu",
            "env",
            "value",
            "volumes",
            "emptyDir",
            "conditions",
            "type",
            "containerStatuses",
            "state",
            "selector",
            "data",
            "endpoints",
            "addresses",
            "taints",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i16>().prop_map(Value::from),
            prop::sample::select(&WORDS[..]).prop_map(Value::from),
            "[a-z0-9./-]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 48, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map(prop::sample::select(&WORDS[..]), inner, 0..5)
                    .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_object_makes_admission_or_printing_panic(value in anything()) {
            for resource in RESOURCES {
                let parsed = Parsed { value: value.clone(), duplicates: Vec::new() };
                let Ok(decoded) = decode(resource, parsed, Validation::Warn) else { continue };
                let mut object = decoded.object;
                prepare_create(resource.kind, &mut object);
                defaults(resource.kind, &mut object);
                let once = object.clone();
                defaults(resource.kind, &mut object);
                prop_assert_eq!(&once, &object, "defaults are idempotent");
                let _ = check_create(resource, &object);
                let mut next = object.clone();
                prepare_update((resource, Change::Main), &object, &mut next);
                let _ = check_update((resource, Change::Main), &object, &next);
                let _ = crate::table::of(resource, [&object].into_iter(), Ride::Object);
            }
        }
    }
}
