//! Tests of the audit, and of the tables against the API's own list of fields.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1;
use serde::de::value::Error;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde_json::json;

use super::*;

/// Learns the JSON field names of a struct from what it asks a deserializer for.
struct FieldNames<'a>(&'a mut BTreeSet<&'static str>);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0.extend(fields);
        Err(Error::custom("names taken"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields_of<T: for<'de> Deserialize<'de>>() -> BTreeSet<&'static str> {
    let mut names = BTreeSet::new();
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

#[test]
fn every_field_of_the_api_is_classified() {
    for table in tables::ALL {
        let expected = match table.name {
            "PodSpec" => fields_of::<v1::PodSpec>(),
            "Container" => fields_of::<v1::Container>(),
            "Lifecycle" => fields_of::<v1::Lifecycle>(),
            "LifecycleHandler" => fields_of::<v1::LifecycleHandler>(),
            "Probe" => fields_of::<v1::Probe>(),
            "EnvVar" => fields_of::<v1::EnvVar>(),
            "EnvVarSource" => fields_of::<v1::EnvVarSource>(),
            "ResourceRequirements" => fields_of::<v1::ResourceRequirements>(),
            "SecurityContext" => fields_of::<v1::SecurityContext>(),
            "PodSecurityContext" => fields_of::<v1::PodSecurityContext>(),
            "Volume" => fields_of::<v1::Volume>(),
            "EmptyDirVolumeSource" => fields_of::<v1::EmptyDirVolumeSource>(),
            "ProjectedVolumeSource" => fields_of::<v1::ProjectedVolumeSource>(),
            "VolumeProjection" => fields_of::<v1::VolumeProjection>(),
            other => panic!("{other} is not compared with the API"),
        };
        assert!(!expected.is_empty());
        let classified: Vec<_> = table.fields.iter().map(|(name, _)| *name).collect();
        let unique: BTreeSet<_> = classified.iter().copied().collect();
        assert_eq!(unique.len(), classified.len(), "{} lists a field twice", table.name);
        assert_eq!(unique, expected, "{}", table.name);
    }
}

fn findings(spec: Value) -> Vec<(String, Severity)> {
    let pod = serde_json::from_value(json!({"spec": spec})).unwrap();
    audit(&pod).into_iter().map(|f| (f.path, f.severity)).collect()
}

#[test]
fn an_ordinary_pod_raises_nothing() {
    let spec = json!({
        "restartPolicy": "Always", "hostUsers": false, "nodeName": "n", "priority": 0,
        "runtimeClassName": "usual",
        "securityContext": {}, "initContainers": [{"name": "i"}],
        "containers": [{
            "name": "c", "image": "x", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
            "resources": {"limits": {"cpu": "1"}},
            "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}},
        }],
        "volumes": [
            {"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {"medium": "Memory"}},
            {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
        ],
    });
    assert_eq!(findings(spec), []);
}

#[test]
fn what_is_not_done_is_found_where_it_stands() {
    use Severity::{Refuse, Report};
    for (spec, path, severity) in [
        (
            json!({"containers": [], "resourceClaims": [{"name": "r"}]}),
            "spec.resourceClaims",
            Refuse,
        ),
        (
            json!({"containers": [], "securityContext": {"windowsOptions": {}}}),
            "spec.securityContext.windowsOptions",
            Report,
        ),
        (
            json!({"containers": [], "volumes": [{"name": "v", "gitRepo": {"repository": "r"}}]}),
            "spec.volumes[0].gitRepo",
            Refuse,
        ),
        (
            json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"medium": "Floppy"}}]}),
            "spec.volumes[0].emptyDir.medium",
            Refuse,
        ),
        (
            json!({"containers": [], "volumes": [{"name": "v", "projected": {"sources": [{"podCertificate": {"signerName": "s", "keyType": "ED25519"}}]}}]}),
            "spec.volumes[0].projected.sources[0].podCertificate",
            Refuse,
        ),
    ] {
        assert_eq!(findings(spec), [(path.to_owned(), severity)]);
    }
}

#[test]
fn a_container_that_comes_later_is_judged_too() {
    let container = serde_json::from_value(json!({
        "name": "debugger",
        "resources": {"claims": [{"name": "r"}]},
        "volumeDevices": [{"name": "d", "devicePath": "/dev/d"}],
    }))
    .unwrap();
    let text = refusal(&audit_container(&container)).unwrap();
    for place in ["debugger.volumeDevices", "debugger.resources.claims"] {
        assert!(text.contains(place), "{text}");
    }
    let plain = serde_json::from_value(json!({"name": "debugger", "image": "x"})).unwrap();
    assert_eq!(audit_container(&plain), []);
}

#[test]
fn a_refusal_names_the_refused_fields_only() {
    let pod = serde_json::from_value(json!({"spec": {
        "containers": [], "securityContext": {"windowsOptions": {}},
        "resourceClaims": [{"name": "r"}],
    }}))
    .unwrap();
    let text = refusal(&audit(&pod)).unwrap();
    assert!(text.starts_with("spec.resourceClaims: dynamic resource"), "{text}");
    assert!(!text.contains("windows"));
    assert_eq!(refusal(&[]), None);
}
