//! The JSON schemas of what is served: made once from the API's own structs, completed with the
//! patch strategies of the upstream types. Strategic merge patches and the OpenAPI documents both
//! read them, so that clients and server merge lists alike.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use k8s_openapi::api::{
    certificates, coordination, core, discovery, events, node, rbac, scheduling,
};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::object::ObjectExt;
use crate::resource::{GROUPS, RESOURCES, Resource};

/// Extension with `merge` and `retainKeys`.
const STRATEGY: &str = "x-kubernetes-patch-strategy";
/// Extension with the field that identifies a list element.
const MERGE_KEY: &str = "x-kubernetes-patch-merge-key";
const REFERENCE: &str = "#/components/schemas/";

/// Lists (and sets, which have no key) that merge: type, field, strategy, merge key.
const PATCH_RULES: &[(&str, &str, &str, Option<&str>)] = &[
    ("Container", "env", "merge", Some("name")),
    ("Container", "ports", "merge", Some("containerPort")),
    ("Container", "volumeDevices", "merge", Some("devicePath")),
    ("Container", "volumeMounts", "merge", Some("mountPath")),
    ("EphemeralContainer", "env", "merge", Some("name")),
    ("EphemeralContainer", "ports", "merge", Some("containerPort")),
    ("EphemeralContainer", "volumeDevices", "merge", Some("devicePath")),
    ("EphemeralContainer", "volumeMounts", "merge", Some("mountPath")),
    ("NamespaceStatus", "conditions", "merge", Some("type")),
    ("NodeSpec", "podCIDRs", "merge", None),
    ("NodeStatus", "addresses", "merge", Some("type")),
    ("NodeStatus", "conditions", "merge", Some("type")),
    ("ObjectMeta", "finalizers", "merge", None),
    ("ObjectMeta", "ownerReferences", "merge", Some("uid")),
    ("PersistentVolumeClaimStatus", "conditions", "merge", Some("type")),
    ("PodSpec", "containers", "merge", Some("name")),
    ("PodSpec", "ephemeralContainers", "merge", Some("name")),
    ("PodSpec", "hostAliases", "merge", Some("ip")),
    ("PodSpec", "imagePullSecrets", "merge", Some("name")),
    ("PodSpec", "initContainers", "merge", Some("name")),
    ("PodSpec", "resourceClaims", "merge,retainKeys", Some("name")),
    ("PodSpec", "schedulingGates", "merge", Some("name")),
    ("PodSpec", "topologySpreadConstraints", "merge", Some("topologyKey")),
    ("PodSpec", "volumes", "merge,retainKeys", Some("name")),
    ("PodStatus", "conditions", "merge", Some("type")),
    ("PodStatus", "hostIPs", "merge", Some("ip")),
    ("PodStatus", "podIPs", "merge", Some("ip")),
    ("PodStatus", "resourceClaimStatuses", "merge,retainKeys", Some("name")),
    ("ServiceAccount", "secrets", "merge", Some("name")),
    ("ServiceSpec", "ports", "merge", Some("port")),
    ("ServiceStatus", "conditions", "merge", Some("type")),
];

/// All definitions by name.
pub(crate) fn definitions() -> &'static Map<String, Value> {
    static DEFINITIONS: OnceLock<Map<String, Value>> = OnceLock::new();
    DEFINITIONS.get_or_init(generate)
}

/// The name of a resource's definition.
pub(crate) fn definition_of(resource: &Resource) -> String {
    let package = match resource.group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    format!("io.k8s.api.{package}.{}.{}", resource.version, resource.kind_name)
}

/// The definitions that a group and version needs.
pub(crate) fn closure(group: &str, version: &str) -> Map<String, Value> {
    let all = definitions();
    let mut wanted: Vec<String> = RESOURCES
        .iter()
        .filter(|r| (r.group, r.version) == (group, version))
        .map(definition_of)
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if let Some(schema) = all.get(&name)
            && seen.insert(name)
        {
            collect_references(schema, &mut wanted);
        }
    }
    seen.into_iter().filter_map(|name| Some((name.clone(), all.get(&name)?.clone()))).collect()
}

fn collect_references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                found.extend(name.strip_prefix(REFERENCE).map(str::to_owned));
            }
            map.values().for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
        _ => {}
    }
}

fn generate() -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    generator.subschema_for::<core::v1::ConfigMap>();
    generator.subschema_for::<core::v1::Endpoints>();
    generator.subschema_for::<core::v1::Event>();
    generator.subschema_for::<core::v1::LimitRange>();
    generator.subschema_for::<core::v1::Namespace>();
    generator.subschema_for::<core::v1::Node>();
    generator.subschema_for::<core::v1::PersistentVolume>();
    generator.subschema_for::<core::v1::PersistentVolumeClaim>();
    generator.subschema_for::<core::v1::Pod>();
    generator.subschema_for::<core::v1::PodTemplate>();
    generator.subschema_for::<core::v1::Secret>();
    generator.subschema_for::<core::v1::Service>();
    generator.subschema_for::<core::v1::ServiceAccount>();
    generator.subschema_for::<certificates::v1::CertificateSigningRequest>();
    generator.subschema_for::<certificates::v1beta1::ClusterTrustBundle>();
    generator.subschema_for::<coordination::v1::Lease>();
    generator.subschema_for::<discovery::v1::EndpointSlice>();
    generator.subschema_for::<events::v1::Event>();
    generator.subschema_for::<node::v1::RuntimeClass>();
    generator.subschema_for::<rbac::v1::ClusterRole>();
    generator.subschema_for::<rbac::v1::ClusterRoleBinding>();
    generator.subschema_for::<rbac::v1::Role>();
    generator.subschema_for::<rbac::v1::RoleBinding>();
    generator.subschema_for::<scheduling::v1::PriorityClass>();
    let mut definitions: Map<String, Value> =
        generator.take_definitions(true).into_iter().collect();
    for (name, schema) in &mut definitions {
        wrap_references(schema);
        mark_patches(name, schema);
    }
    for resource in RESOURCES {
        if let Some(schema) = definitions.get_mut(&definition_of(resource)) {
            schema["x-kubernetes-group-version-kind"] = json!([{
                "group": resource.group, "kind": resource.kind_name, "version": resource.version,
            }]);
        }
    }
    debug_assert!(GROUPS.iter().all(|(group, _)| RESOURCES.iter().any(|r| r.group == *group)));
    definitions
}

/// A reference with siblings is not OpenAPI 3.0; upstream says the same with `allOf`.
fn wrap_references(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(wrap_references);
            if map.len() > 1
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".into(), json!([{ "$ref": reference }]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

fn mark_patches(name: &str, schema: &mut Value) {
    let short = name.rsplit('.').next().unwrap_or(name);
    for (_, field, strategy, key) in PATCH_RULES.iter().filter(|rule| rule.0 == short) {
        let Some(property) = schema.pointer_mut(&format!("/properties/{field}")) else { continue };
        property[STRATEGY] = (*strategy).into();
        if let Some(key) = key {
            property[MERGE_KEY] = (*key).into();
        }
    }
}

/// A place in the schemas: the shape of a value, possibly unknown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape(Option<&'static Value>);

impl Shape {
    /// The shape of a resource's objects.
    pub(crate) fn of(resource: &Resource) -> Self {
        Self(definitions().get(&definition_of(resource)))
    }

    fn resolved(self) -> Option<&'static Value> {
        let schema = self.0?;
        let reference = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref"));
        match reference.and_then(Value::as_str) {
            Some(name) => definitions().get(name.strip_prefix(REFERENCE)?),
            None => Some(schema),
        }
    }

    /// The shape of a member.
    pub(crate) fn field(self, name: &str) -> Self {
        let Some(schema) = self.resolved() else { return Self(None) };
        let property = schema.get("properties").and_then(|all| all.get(name));
        Self(property.or_else(|| schema.get("additionalProperties")))
    }

    /// The shape of a list's elements.
    pub(crate) fn items(self) -> Self {
        Self(self.resolved().and_then(|schema| schema.get("items")))
    }

    /// Whether a list merges, rather than being replaced.
    pub(crate) fn merges(self) -> bool {
        self.0.is_some_and(|schema| {
            schema.text(&format!("/{STRATEGY}")).split(',').any(|one| one == "merge")
        })
    }

    /// The field that identifies an element of a merging list; none for sets of scalars.
    pub(crate) fn merge_key(self) -> Option<&'static str> {
        self.0?.get(MERGE_KEY)?.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Kind, of};

    #[test]
    fn every_patch_rule_names_an_existing_field() {
        for (kind, field, _, _) in PATCH_RULES {
            let found = definitions().iter().any(|(name, schema)| {
                name.ends_with(&format!(".{kind}")) && schema["properties"][field].is_object()
            });
            assert!(found, "{kind}.{field}");
        }
    }

    #[test]
    fn shapes_follow_references() {
        let containers = Shape::of(of(Kind::Pod)).field("spec").field("containers");
        assert_eq!(containers.merge_key(), Some("name"));
        assert_eq!(containers.items().field("ports").merge_key(), Some("containerPort"));
        assert!(!containers.items().field("args").merges());
    }

    #[test]
    fn every_reference_of_a_group_is_in_its_closure() {
        for (group, version) in GROUPS {
            let schemas = closure(group, version);
            let mut wanted = Vec::new();
            schemas.values().for_each(|schema| collect_references(schema, &mut wanted));
            assert!(!wanted.is_empty());
            for name in wanted {
                assert!(schemas.contains_key(&name), "{name}");
            }
        }
    }
}
