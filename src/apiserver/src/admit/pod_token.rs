//! The token of a pod's service account, mounted where every client library looks for it, as
//! upstream's ServiceAccount admission does.

use serde_json::{Value, json};

use crate::object::{ObjectExt, random_suffix};

/// Where client libraries look.
const PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The odd seconds tell tokens of this volume from those that users ask for.
const SECONDS: i64 = 3607;
const PREFIX: &str = "kube-api-access-";

/// Gives a new pod the volume with its token, the CA and its namespace, unless pod or account opts out
/// or every container has something of its own there.
pub(crate) fn mount_token(account: &Value, pod: &mut Value) {
    let choice = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_bool);
    let wanted = choice(pod, "/spec/automountServiceAccountToken")
        .or_else(|| choice(account, "/automountServiceAccountToken"));
    if wanted == Some(false) {
        return;
    }
    let known = pod.list("/spec/volumes").iter().map(|volume| volume.text("/name"));
    let given = known.into_iter().find(|name| name.starts_with(PREFIX)).map(str::to_owned);
    let name = given.clone().unwrap_or_else(|| format!("{PREFIX}{}", random_suffix()));
    let mut mounted = false;
    for list in ["/spec/initContainers", "/spec/containers"] {
        for container in pod.list_mut(list) {
            let mounts = container.list("/volumeMounts");
            if mounts.iter().any(|mount| mount.text("/mountPath") == PATH) {
                continue;
            }
            let mut mounts = mounts.to_vec();
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": PATH}));
            container.put("/volumeMounts", mounts);
            mounted = true;
        }
    }
    if mounted && given.is_none() {
        let mut volumes = pod.list("/spec/volumes").to_vec();
        volumes.push(volume(&name));
        pod.put("/spec/volumes", volumes);
    }
}

fn volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(own: Value) -> Value {
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "v", "mountPath": PATH}]}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }});
        if !own.is_null() {
            pod.put("/spec/automountServiceAccountToken", own);
        }
        pod
    }

    #[test]
    fn every_container_without_something_there_gets_the_token_once() {
        let mut first = pod(Value::Null);
        mount_token(&json!({}), &mut first);
        assert_eq!(first.list("/spec/volumes").len(), 2);
        let name = first.text("/spec/volumes/1/name").to_owned();
        assert!(name.starts_with(PREFIX));
        for container in ["/spec/initContainers/0", "/spec/containers/0"] {
            assert_eq!(first.text(&format!("{container}/volumeMounts/0/name")), name);
        }
        assert_eq!(first.text("/spec/containers/1/volumeMounts/0/name"), "v");
        let before = first.clone();
        mount_token(&json!({}), &mut first);
        assert_eq!(first, before);
    }

    #[test]
    fn the_pod_opts_out_or_in_before_its_account() {
        let count = |account: Value, own: Value| {
            let mut pod = pod(own);
            mount_token(&account, &mut pod);
            pod.list("/spec/volumes").len()
        };
        let account = |value: bool| json!({"automountServiceAccountToken": value});
        assert_eq!(count(account(false), Value::Null), 1);
        assert_eq!(count(account(false), true.into()), 2);
        assert_eq!(count(account(true), false.into()), 1);
        assert_eq!(count(json!({}), false.into()), 1);
    }
}
