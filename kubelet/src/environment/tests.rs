//! Tests of environment resolution.

use std::sync::Arc;

use berth_runtime::interface::Protocol;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;
use crate::objects::{Lookup, ObjectRef};
use crate::qos::{PodDemand, ResourceAmounts};

fn fetched() -> Fetched {
    let config_map =
        serde_json::from_value(json!({"data": {"b": "2", "a": "1", "ref": "$(a)"}})).unwrap();
    let secret =
        serde_json::from_value(json!({"data": {"pw": "czNjcmV0", "bin": "/w=="}})).unwrap();
    let nul = serde_json::from_value(json!({"data": {"x": "AA=="}})).unwrap();
    let mut fetched = Fetched::from_iter([
        (ObjectRef::config_map("cm"), Lookup::ConfigMap(Arc::new(config_map))),
        (ObjectRef::secret("s"), Lookup::Secret(Arc::new(secret))),
        (ObjectRef::secret("nul"), Lookup::Secret(Arc::new(nul))),
        (ObjectRef::config_map("gone"), Lookup::NotFound),
        (ObjectRef::secret("gone"), Lookup::NotFound),
        (ObjectRef::config_map("bad"), Lookup::Failed("forbidden".into())),
    ]);
    let file = |path: &str, file| (("own".to_owned(), path.to_owned()), file);
    fetched.insert_files(vec![
        file("p", EnvFile::Text("k='v'\n".into())),
        file("bad", EnvFile::Text("k=v".into())),
        file("gone", EnvFile::Missing),
    ]);
    fetched
}

fn resolve_in(spec: serde_json::Value, services: &[Service]) -> Result<Environment, String> {
    resolve_after(None, spec, Some(services))
}

/// The same after a run with these variables, where Services may be unknown.
fn resolve_after(
    before: Option<Vec<(String, String)>>,
    spec: serde_json::Value,
    services: Option<&[Service]>,
) -> Result<Environment, String> {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
            .unwrap();
    let demand = PodDemand::parse(&pod).unwrap();
    let facts = Facts {
        pod: &pod,
        demand: &demand,
        host_ips: &[],
        pod_ips: &[],
        allocatable: &ResourceAmounts::new(),
    };
    let container = &pod.spec.as_ref().unwrap().containers[0];
    resolve_or_keep(container, &facts, &fetched(), services, before).map_err(|e| e.to_string())
}

#[test]
fn without_services_a_container_keeps_its_environment_and_a_new_one_waits() {
    let spec = json!({"containers": [{"name": "c", "env": [{"name": "A", "value": "new"}]}]});
    let before = pairs(&[("A", "old"), ("KUBERNETES_SERVICE_HOST", "10.96.0.1")]);
    let kept = resolve_after(Some(before.clone()), spec.clone(), None).unwrap();
    assert_eq!((kept.variables(), kept.get("A")), (&*before, Some("old")));
    assert_eq!(
        resolve_after(None, spec.clone(), None).unwrap_err(),
        "services have not yet been read at least once, cannot construct envvars"
    );
    let fresh = resolve_after(Some(before), spec, Some(&[])).unwrap();
    assert_eq!(fresh.variables(), pairs(&[("A", "new")]));
}

fn resolve_env(
    env: serde_json::Value,
    env_from: serde_json::Value,
) -> Result<Vec<(String, String)>, String> {
    let spec = json!({"containers": [{"name": "c", "env": env, "envFrom": env_from}]});
    resolve_in(spec, &[]).map(|e| e.variables().to_vec())
}

fn pairs(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn later_variables_may_use_earlier_ones_only() {
    let env = json!([
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)-$(C)"},
        {"name": "C", "value": "$$(A)"},
        {"name": "A", "value": "$(A)$(A)"},
        {"name": "EMPTY"},
    ]);
    let expected = pairs(&[("A", "11"), ("B", "1-$(C)"), ("C", "$(A)"), ("EMPTY", "")]);
    assert_eq!(resolve_env(env, json!([])), Ok(expected));
}

#[test]
fn sources_come_first_with_their_prefix_and_are_not_expanded() {
    let env = json!([{"name": "P_a", "value": "over"}, {"name": "X", "value": "$(P_b)$(pw)"}]);
    let from = json!([
        {"prefix": "P_", "configMapRef": {"name": "cm"}},
        {"configMapRef": {"name": "gone", "optional": true}},
        {"secretRef": {"name": "gone", "optional": true}},
    ]);
    let expected = pairs(&[("P_a", "over"), ("P_b", "2"), ("P_ref", "$(a)"), ("X", "2$(pw)")]);
    assert_eq!(resolve_env(env, from), Ok(expected));
}

#[test]
fn key_references_resolve_and_optional_ones_may_be_missing() {
    let env = json!([
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
        {"name": "N", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}},
        {"name": "M", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "no", "optional": true}}},
        {"name": "E", "valueFrom": {"fileKeyRef": {"volumeName": "own", "path": "p", "key": "k"}}},
        {"name": "K", "valueFrom": {"fileKeyRef": {"volumeName": "own", "path": "p", "key": "x", "optional": true}}},
        {"name": "L", "valueFrom": {"fileKeyRef": {"volumeName": "own", "path": "gone", "key": "k", "optional": true}}},
        {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
    ]);
    let expected = pairs(&[("A", "1"), ("S", "s3cret"), ("E", "v"), ("F", "p"), ("R", "0")]);
    assert_eq!(resolve_env(env, json!([])), Ok(expected));
}

#[test]
fn failures_carry_the_texts_users_search_for() {
    let key = |source: serde_json::Value| (json!([{"name": "A", "valueFrom": source}]), json!([]));
    let from = |source: serde_json::Value| (json!([]), json!([source]));
    for ((env, env_from), expected) in [
        (from(json!({"configMapRef": {"name": "gone"}})), "configmap \"gone\" not found"),
        (from(json!({"secretRef": {"name": "gone"}})), "secret \"gone\" not found"),
        (from(json!({"configMapRef": {"name": "bad", "optional": true}})), "forbidden"),
        (
            from(json!({"secretRef": {"name": "s"}})),
            "environment variable \"bin\" is not valid UTF-8",
        ),
        (
            from(json!({"secretRef": {"name": "nul"}})),
            "environment variable \"x\" contains a NUL byte, or its name an equals sign",
        ),
        (
            key(json!({"configMapKeyRef": {"name": "cm", "key": "no"}})),
            "couldn't find key no in ConfigMap ns/cm",
        ),
        (
            key(json!({"secretKeyRef": {"name": "s", "key": "no"}})),
            "couldn't find key no in Secret ns/s",
        ),
        (
            key(json!({"configMapKeyRef": {"name": "gone", "key": "no"}})),
            "configmap \"gone\" not found",
        ),
        (
            key(json!({"fieldRef": {"fieldPath": "status.phase"}})),
            "unsupported fieldPath: status.phase",
        ),
        (
            key(json!({"fileKeyRef": {"key": "k", "path": "p", "volumeName": "v"}})),
            "cannot find the volume \"v\" referenced by FileKeyRef",
        ),
        (
            key(json!({"fileKeyRef": {"key": "no", "path": "p", "volumeName": "own"}})),
            "environment variable key \"no\" not found in file \"p\" of volume \"own\"",
        ),
        (
            key(json!({"fileKeyRef": {"key": "no", "path": "gone", "volumeName": "own"}})),
            "environment variable key \"no\" not found in file \"gone\" of volume \"own\"",
        ),
        (
            key(json!({"fileKeyRef": {"key": "k", "path": "bad", "volumeName": "own"}})),
            "couldn't parse env file",
        ),
        (key(json!({})), "environment variable \"A\" has a source that is not supported"),
    ] {
        assert_eq!(resolve_env(env, env_from), Err(expected.to_owned()));
    }
}

#[test]
fn service_variables_yield_to_declared_ones_but_can_be_referenced() {
    let services = [Service {
        namespace: "ns".into(),
        name: "db".into(),
        cluster_ip: "10.0.0.1".parse().ok(),
        ports: vec![ServicePort { name: String::new(), port: 5432, protocol: Protocol::Tcp }],
    }];
    let container = json!([{"name": "c", "env": [
        {"name": "URL", "value": "$(DB_SERVICE_HOST):$(DB_SERVICE_PORT)"},
        {"name": "DB_SERVICE_PORT", "value": "mine"},
    ]}]);
    let environment = resolve_in(json!({"containers": container}), &services).unwrap();
    assert_eq!(environment.get("URL"), Some("10.0.0.1:5432"));
    assert_eq!(environment.get("DB_SERVICE_PORT"), Some("mine"));
    assert_eq!(environment.get("DB_PORT_5432_TCP_PROTO"), Some("tcp"));
    let unlinked = json!({"containers": container, "enableServiceLinks": false});
    let environment = resolve_in(unlinked, &services).unwrap();
    assert_eq!(environment.get("DB_SERVICE_HOST"), None);
}
