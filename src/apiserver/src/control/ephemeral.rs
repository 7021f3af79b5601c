//! Makes the claims of generic ephemeral volumes, and lets them go with their pods, as upstream's controller
//! and its garbage collector do (KEP-1698).

use std::sync::Arc;

use serde_json::{Value, json};

use super::put;
use crate::api::Api;
use crate::failure::Failure;
use crate::object::ObjectExt;
use crate::resource::{Kind, key, of, prefix};
use crate::store::Tx;
use crate::verbs::delete::mark;

/// The claim that a pod's volume stands for; empty where it stands for none.
pub(super) fn claim_name(pod: &Value, volume: &Value) -> String {
    match volume.has("/ephemeral") {
        true => format!("{}-{}", pod.name(), volume.text("/name")),
        false => volume.text("/persistentVolumeClaim/claimName").to_owned(),
    }
}

/// Whether a claim was made for a pod.
pub(super) fn is_of(claim: &Value, pod: &Value) -> bool {
    controller(claim).is_some_and(|owner| owner.text("/uid") == pod.uid())
}

fn controller(claim: &Value) -> Option<&Value> {
    let mut owners = claim.list("/metadata/ownerReferences").iter();
    owners.find(|owner| owner["controller"] == true && owner.text("/kind") == "Pod")
}

/// Makes what is missing and takes away what nobody owns any more.
///
/// # Errors
/// When the store fails.
pub(super) async fn reconcile(api: &Api) -> Result<(), Failure> {
    let any = |kind, is: fn(&Value) -> bool| {
        api.store.list(&prefix(kind, "")).items.iter().any(|(_, object)| is(object))
    };
    let asks = |pod: &Value| pod.list("/spec/volumes").iter().any(|v| v.has("/ephemeral"));
    if !any(Kind::Pod, asks) && !any(Kind::PersistentVolumeClaim, |c| controller(c).is_some()) {
        return Ok(());
    }
    api.store
        .write(|tx| {
            let pods: Vec<_> =
                tx.list(&prefix(Kind::Pod, "")).into_iter().map(|(_, pod)| pod).collect();
            make(tx, &pods);
            let_go(tx, &pods);
            Ok(())
        })
        .await
}

fn make(tx: &mut Tx<'_>, pods: &[Arc<Value>]) {
    let has_ended = |pod: &Value| matches!(pod.text("/status/phase"), "Succeeded" | "Failed");
    for pod in pods.iter().filter(|pod| !pod.is_terminating() && !has_ended(pod)) {
        for volume in pod.list("/spec/volumes").iter().filter(|v| v.has("/ephemeral")) {
            let name = claim_name(pod, volume);
            if tx.get(&key(Kind::PersistentVolumeClaim, pod.namespace(), &name)).is_none() {
                put(tx, Kind::PersistentVolumeClaim, claim(pod, volume));
            }
        }
    }
}

fn claim(pod: &Value, volume: &Value) -> Value {
    let template = &volume["ephemeral"]["volumeClaimTemplate"];
    let mut claim = json!({
        "metadata": {
            "name": claim_name(pod, volume), "namespace": pod.namespace(),
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid(),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": template["spec"],
    });
    for field in ["labels", "annotations"] {
        if let Some(map) = template["metadata"].get(field) {
            claim["metadata"][field] = map.clone();
        }
    }
    claim
}

fn let_go(tx: &mut Tx<'_>, pods: &[Arc<Value>]) {
    for (key, claim) in tx.list(&prefix(Kind::PersistentVolumeClaim, "")) {
        let is_owned = controller(&claim).is_none() || pods.iter().any(|pod| is_of(&claim, pod));
        if is_owned || claim.is_terminating() {
            continue;
        }
        if claim.list("/metadata/finalizers").is_empty() {
            tx.remove(&key);
            continue;
        }
        let mut marked = (*claim).clone();
        mark(of(Kind::PersistentVolumeClaim), &mut marked, 0);
        tx.put(&key, marked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_named_and_owned_by_its_pod_and_asks_for_what_the_template_says() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}});
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "manual"});
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec});
        let volume = json!({"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}});
        let made = claim(&pod, &volume);
        assert_eq!((made.name(), made.namespace()), ("p-scratch", "n"));
        assert_eq!((&made["spec"], made.text("/metadata/labels/a")), (&spec, "b"));
        assert!(is_of(&made, &pod));
        let mut successor = pod;
        successor.put("/metadata/uid", "another");
        assert!(!is_of(&made, &successor), "a later pod of that name is another");
    }
}
