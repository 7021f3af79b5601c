//! One file of a static pod: read, checked, and given what a node gives it (`pkg/kubelet/config`).
//!
//! A static pod cannot use objects of the API (CVE-2025-4563 and its likes): nobody checked whether
//! it may. Such a file is refused.

use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus, Toleration, Volume};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cache;

/// The annotation that says where a pod comes from.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// The annotation with the hash of a static pod.
pub const HASH: &str = "kubernetes.io/config.hash";

/// Why a file is no static pod.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not YAML, or not of the shape of a pod.
    #[error("not a pod: {0}")]
    Malformed(String),
    /// Of another kind.
    #[error("{api_version:?} {kind:?} is not a v1 Pod")]
    Kind {
        /// The version it names.
        api_version: String,
        /// The kind it names.
        kind: String,
    },
    /// A name is missing, or none.
    #[error("{field}: {value:?} is not a name")]
    Name {
        /// Where.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// It refers to an object of the API.
    #[error("includes a reference to {0:?} API objects, which static pods may not use")]
    Reference(&'static str),
    /// It has what only a running pod can get.
    #[error("static pods cannot have ephemeral containers")]
    Ephemeral,
}

/// Makes the pod that the file at `path` describes, as it runs on the node.
///
/// # Errors
/// When it is no pod, or one that no node may run from a file.
pub fn pod(text: &str, path: &Path, node_name: &str) -> Result<Pod, Error> {
    let value: Value =
        serde_saphyr::from_str(text).map_err(|error| Error::Malformed(error.to_string()))?;
    let text_of = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text_of("apiVersion"), text_of("kind"));
    if (api_version, kind) != ("v1", "Pod") {
        return Err(Error::Kind { api_version: api_version.to_owned(), kind: kind.to_owned() });
    }
    let mut pod: Pod =
        serde_json::from_value(value).map_err(|error| Error::Malformed(error.to_string()))?;
    check(&pod)?;
    let node = node_name.to_lowercase();
    let metadata = &mut pod.metadata;
    metadata.name = Some(format!("{}-{node}", metadata.name.as_deref().unwrap_or_default()));
    let namespace = metadata.namespace.take().filter(|name| !name.is_empty());
    metadata.namespace = Some(namespace.unwrap_or_else(|| "default".to_owned()));
    for (field, name) in
        [("metadata.name", &metadata.name), ("metadata.namespace", &metadata.namespace)]
    {
        let value = name.clone().unwrap_or_default();
        if !is_name(&value) {
            return Err(Error::Name { field, value });
        }
    }
    pod.status = None;
    let hash = hash(&pod, path, node_name);
    let uid = pod.metadata.uid.take().filter(|uid| cache::is_safe(uid));
    pod.metadata.uid = Some(uid.unwrap_or_else(|| hash.clone()));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(HASH.to_owned(), hash);
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node_name.to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    // It runs whatever the node's taints; nobody would start it again elsewhere.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    Ok(pod)
}

fn check(pod: &Pod) -> Result<(), Error> {
    let spec = pod.spec.as_ref().filter(|spec| !spec.containers.is_empty());
    let spec = spec.ok_or_else(|| Error::Malformed("no containers".to_owned()))?;
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(Error::Ephemeral);
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for container in containers {
        if !is_name(&container.name) {
            let value = container.name.clone();
            return Err(Error::Name { field: "spec.containers.name", value });
        }
    }
    if let Some(class) = spec.runtime_class_name.as_ref().filter(|name| !is_name(name)) {
        return Err(Error::Name { field: "spec.runtimeClassName", value: class.clone() });
    }
    reference(spec).map_or(Ok(()), |kind| Err(Error::Reference(kind)))
}

/// A DNS subdomain: lower-case letters, digits, dashes and dots.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// The first kind of API object that a pod refers to.
fn reference(spec: &PodSpec) -> Option<&'static str> {
    let account = spec.service_account_name.as_ref().or(spec.service_account.as_ref());
    if account.is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts");
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("resourceclaims");
    }
    if spec.image_pull_secrets.as_ref().is_some_and(|secrets| !secrets.is_empty()) {
        return Some("secrets");
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for container in containers {
        for source in container.env_from.iter().flatten() {
            match (&source.config_map_ref, &source.secret_ref) {
                (Some(_), _) => return Some("configmaps"),
                (_, Some(_)) => return Some("secrets"),
                _ => {}
            }
        }
        for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            match (&source.config_map_key_ref, &source.secret_key_ref) {
                (Some(_), _) => return Some("configmaps"),
                (_, Some(_)) => return Some("secrets"),
                _ => {}
            }
        }
    }
    spec.volumes.iter().flatten().find_map(volume_reference)
}

fn volume_reference(volume: &Volume) -> Option<&'static str> {
    let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    let of_projection = projected.filter_map(|source| match source {
        s if s.config_map.is_some() => Some("configmaps"),
        s if s.secret.is_some() => Some("secrets"),
        s if s.service_account_token.is_some() => Some("serviceaccounts"),
        s if s.cluster_trust_bundle.is_some() => Some("clustertrustbundles"),
        s if s.pod_certificate.is_some() => Some("podcertificates"),
        _ => None,
    });
    match volume {
        v if v.config_map.is_some() => Some("configmaps"),
        v if v.secret.is_some() => Some("secrets"),
        v if v.persistent_volume_claim.is_some() || v.ephemeral.is_some() => {
            Some("persistentvolumeclaims")
        }
        // Drivers of these are told secrets by reference.
        v if v.csi.is_some() => Some("csidrivers"),
        v if v.rbd.is_some() || v.cephfs.is_some() || v.iscsi.is_some() => Some("secrets"),
        v if v.flex_volume.is_some() || v.scale_io.is_some() => Some("secrets"),
        v if v.storageos.is_some() || v.azure_file.is_some() || v.cinder.is_some() => {
            Some("secrets")
        }
        _ => of_projection.into_iter().next(),
    }
}

/// Tells one content from another: 32 hexadecimal digits.
fn hash(pod: &Pod, path: &Path, node_name: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(serde_json::to_vec(pod).unwrap_or_default());
    hasher.update(format!("host:{node_name}file:{}", path.display()));
    let digest = hasher.finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(spec: Value) -> Result<Pod, Error> {
        let text =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
        pod(&text.to_string(), Path::new("/etc/pods/p.json"), "Node-1")
    }

    #[test]
    fn a_file_becomes_a_pod_of_the_node() {
        let made = parse(json!({"containers": [{"name": "c", "image": "i"}]})).unwrap();
        assert_eq!(made.metadata.name.as_deref(), Some("p-node-1"));
        assert_eq!(made.metadata.namespace.as_deref(), Some("default"));
        let annotations = made.metadata.annotations.unwrap();
        assert_eq!(annotations[SOURCE], "file");
        assert_eq!(Some(&annotations[HASH]), made.metadata.uid.as_ref());
        assert_eq!(annotations[HASH].len(), 32);
        let spec = made.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("Node-1"));
        assert_eq!(spec.tolerations.unwrap()[0].operator.as_deref(), Some("Exists"));
    }

    #[test]
    fn nothing_of_the_api_is_used() {
        let with = |more: Value| {
            let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
            for (field, value) in more.as_object().unwrap() {
                spec[field] = value.clone();
            }
            parse(spec)
        };
        let volume = |source: Value| {
            let mut volume = json!({"name": "v"});
            for (field, value) in source.as_object().unwrap() {
                volume[field] = value.clone();
            }
            json!({"volumes": [volume]})
        };
        let container = |more: Value| {
            let mut container = json!({"name": "c", "image": "i"});
            for (field, value) in more.as_object().unwrap() {
                container[field] = value.clone();
            }
            json!({"containers": [container]})
        };
        for (more, kind) in [
            (json!({"serviceAccountName": "x"}), "serviceaccounts"),
            (json!({"imagePullSecrets": [{"name": "x"}]}), "secrets"),
            (
                json!({"resourceClaims": [{"name": "x", "resourceClaimName": "y"}]}),
                "resourceclaims",
            ),
            (volume(json!({"secret": {"secretName": "x"}})), "secrets"),
            (volume(json!({"configMap": {"name": "x"}})), "configmaps"),
            (
                volume(json!({"persistentVolumeClaim": {"claimName": "x"}})),
                "persistentvolumeclaims",
            ),
            (volume(json!({"projected": {"sources": [{"secret": {"name": "x"}}]}})), "secrets"),
            (
                volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "x"}}]}})),
                "serviceaccounts",
            ),
            (volume(json!({"csi": {"driver": "x"}})), "csidrivers"),
            (container(json!({"envFrom": [{"secretRef": {"name": "x"}}]})), "secrets"),
            (
                container(
                    json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}}]}),
                ),
                "configmaps",
            ),
        ] {
            match with(more.clone()) {
                Err(Error::Reference(found)) => assert_eq!(found, kind, "{more}"),
                other => panic!("{more}: {other:?}"),
            }
        }
        assert!(with(volume(json!({"hostPath": {"path": "/x"}}))).is_ok());
        assert!(with(volume(json!({"emptyDir": {}}))).is_ok());
        assert!(
            with(json!({"runtimeClassName": "usual"})).is_ok(),
            "of the cluster, not of a namespace"
        );
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        let path = Path::new("x");
        for text in [
            "",
            "kind: [",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: []}}",
            "{apiVersion: v1, kind: Service, metadata: {name: p}}",
            "{apiVersion: v1, kind: Pod, metadata: {name: ../p}, spec: {containers: [{name: c}]}}",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: ../c}]}}",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {runtimeClassName: A_b, containers: [{name: c}]}}",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {runtimeClassName: '', containers: [{name: c}]}}",
            "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: A/b}, spec: {containers: [{name: c}]}}",
        ] {
            assert!(pod(text, path, "n").is_err(), "{text}");
        }
    }
}
