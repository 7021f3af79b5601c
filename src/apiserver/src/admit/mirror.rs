//! Mirror pods: a node's pictures of the pods that it runs from files. Such a pod was admitted by
//! nobody, so its picture may name no object of the API, and nothing of the API is added to it
//! (upstream's ServiceAccount and NodeRestriction admission).

use serde_json::Value;

use crate::object::ObjectExt;

/// Whether a pod is a node's picture of one that runs from a file.
pub(crate) fn is_mirror(pod: &Value) -> bool {
    pod.annotation("kubernetes.io/config.mirror").is_some()
}

/// Checks that a mirror refers to nothing of the API.
///
/// # Errors
/// What it refers to.
pub(crate) fn check_mirror(pod: &Value) -> Result<(), &'static str> {
    if !pod.text("/spec/serviceAccountName").is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    if !pod.list("/spec/imagePullSecrets").is_empty() {
        return Err("a mirror pod may not reference secrets");
    }
    if !pod.list("/spec/resourceClaims").is_empty() {
        return Err("a mirror pod may not reference resourceclaims");
    }
    let volumes = pod.list("/spec/volumes").iter();
    let volumes = volumes.flat_map(|v| v.list("/projected/sources").iter().chain([v]));
    let mut sources: Vec<&Value> = volumes.collect();
    for list in ["/spec/initContainers", "/spec/containers"] {
        for container in pod.list(list) {
            sources.extend(container.list("/envFrom"));
            sources.extend(container.list("/env").iter().filter_map(|v| v.get("valueFrom")));
        }
    }
    match sources.into_iter().find_map(referenced) {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

/// What a volume, a projection or a source of variables takes from the API.
fn referenced(source: &Value) -> Option<&'static str> {
    const KINDS: [(&str, &str); 11] = [
        ("secret", "a mirror pod may not reference secrets"),
        ("secretRef", "a mirror pod may not reference secrets"),
        ("secretKeyRef", "a mirror pod may not reference secrets"),
        ("configMap", "a mirror pod may not reference configmaps"),
        ("configMapRef", "a mirror pod may not reference configmaps"),
        ("configMapKeyRef", "a mirror pod may not reference configmaps"),
        ("persistentVolumeClaim", "a mirror pod may not reference persistentvolumeclaims"),
        ("ephemeral", "a mirror pod may not reference persistentvolumeclaims"),
        ("serviceAccountToken", "a mirror pod may not use ServiceAccountToken volume projections"),
        ("clusterTrustBundle", "a mirror pod may not reference clustertrustbundles"),
        ("podCertificate", "a mirror pod may not use PodCertificate volume projections"),
    ];
    KINDS.iter().find(|(field, _)| source.get(*field).is_some()).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mirror_refers_to_nothing_of_the_api() {
        let with = |spec: Value| check_mirror(&json!({"spec": spec}));
        assert_eq!(with(json!({"containers": [{"name": "c"}]})), Ok(()));
        assert_eq!(with(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})), Ok(()));
        let token = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
        for (spec, what) in [
            (json!({"serviceAccountName": "robot"}), "service accounts"),
            (json!({"imagePullSecrets": [{"name": "s"}]}), "secrets"),
            (json!({"resourceClaims": [{"name": "r"}]}), "resourceclaims"),
            (json!({"volumes": [{"secret": {"secretName": "s"}}]}), "secrets"),
            (json!({"volumes": [token]}), "ServiceAccountToken"),
            (json!({"containers": [{"envFrom": [{"configMapRef": {}}]}]}), "configmaps"),
            (
                json!({"initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {}}}]}]}),
                "secrets",
            ),
        ] {
            let refused = with(spec.clone()).unwrap_err();
            assert!(refused.contains(what), "{spec}: {refused}");
        }
    }
}
