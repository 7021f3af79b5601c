//! Binds claims to volumes that are there: the smallest volume that has the class, the modes, the
//! labels and the size that a claim asks for, each to one claim and back, by UID.
//!
//! ```text
//!  volume:  Available ──► Bound ──► Released (its claim is gone; whoever owns the data frees it)
//!  claim:   Pending ────► Bound ──► Lost (its volume is gone)
//! ```
//!
//! A claim that a pod on a node names, and a bound volume, stay until that is over, though they are to
//! go: finalizers hold them, as upstream's do.
//!
//! Differs: nothing is provisioned, and reclaim policies other than Retain are not carried out: the
//! volume stays Released.

use serde_json::{Value, json};

use super::ephemeral::claim_name;
use super::{Happening, record};
use crate::admit::{is_finished, quantity, storage};
use crate::api::Api;
use crate::failure::Failure;
use crate::object::ObjectExt;
use crate::resource::{Kind, key, prefix};
use crate::selector::label::Selector;
use crate::store::Tx;

const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// Binds what fits, and says what became of the rest.
///
/// # Errors
/// When the store fails.
pub(super) async fn reconcile(api: &Api) -> Result<(), Failure> {
    let is_empty = |kind| api.store.list(&prefix(kind, "")).items.is_empty();
    if is_empty(Kind::PersistentVolumeClaim) && is_empty(Kind::PersistentVolume) {
        return Ok(());
    }
    api.store
        .write(|tx| {
            look_at_volumes(tx);
            look_at_claims(tx);
            Ok(())
        })
        .await
}

/// A volume is what its claim makes it.
fn look_at_volumes(tx: &mut Tx<'_>) {
    for (key, volume) in tx.list(&prefix(Kind::PersistentVolume, "")) {
        if volume.is_terminating() && volume.text("/status/phase") != "Bound" {
            release(tx, (Kind::PersistentVolume, &key), &volume);
            continue;
        }
        let phase = match volume.text("/spec/claimRef/uid") {
            "" => "Available",
            uid => match claim_of(tx, &volume) {
                Some(claim) if claim.uid() == uid => "Bound",
                _ => "Released",
            },
        };
        if volume.text("/status/phase") != phase {
            let mut next = (*volume).clone();
            next.put("/status/phase", phase);
            tx.put(&key, next);
        }
    }
}

/// Whether a pod that is on a node names a claim.
fn is_used(tx: &Tx<'_>, claim: &Value) -> bool {
    let pods = tx.list(&prefix(Kind::Pod, claim.namespace()));
    let names = |pod: &Value| {
        let mut volumes = pod.list("/spec/volumes").iter();
        volumes.any(|volume| claim_name(pod, volume) == claim.name())
    };
    pods.iter().any(|(_, pod)| !pod.text("/spec/nodeName").is_empty() && names(pod))
}

/// Takes the server's own hold off what is to go and is not in use.
fn release(tx: &mut Tx<'_>, (kind, key): (Kind, &str), object: &Value) {
    let held = object.list("/metadata/finalizers").iter();
    let others: Vec<Value> =
        held.filter(|one| one.as_str() != storage::protection(kind)).cloned().collect();
    if others.len() == object.list("/metadata/finalizers").len() {
        return;
    }
    let mut next = object.clone();
    next.put("/metadata/finalizers", others);
    match is_finished(kind, &next) {
        true => drop(tx.remove(key)),
        false => drop(tx.put(key, next)),
    }
}

fn claim_of(tx: &Tx<'_>, volume: &Value) -> Option<std::sync::Arc<Value>> {
    let part = |field: &str| volume.text(&format!("/spec/claimRef/{field}"));
    tx.get(&key(Kind::PersistentVolumeClaim, part("namespace"), part("name")))
}

fn look_at_claims(tx: &mut Tx<'_>) {
    for (key, claim) in tx.list(&prefix(Kind::PersistentVolumeClaim, "")) {
        if claim.is_terminating() {
            if !is_used(tx, &claim) {
                release(tx, (Kind::PersistentVolumeClaim, &key), &claim);
            }
            continue;
        }
        let volumes = tx.list(&prefix(Kind::PersistentVolume, ""));
        if claim.text("/status/phase") == "Bound" {
            let name = claim.text("/spec/volumeName");
            let owned = volumes.iter().any(|(_, volume)| {
                volume.name() == name && volume.text("/spec/claimRef/uid") == claim.uid()
            });
            if !owned {
                let mut lost = (*claim).clone();
                lost.put("/status/phase", "Lost");
                tx.put(&key, lost);
            }
            continue;
        }
        if claim.text("/status/phase") == "Lost" {
            continue;
        }
        let fitting = volumes.iter().filter(|(_, volume)| fits(volume, &claim));
        let size = |volume: &Value| quantity::millis(volume.text("/spec/capacity/storage"));
        match fitting.min_by_key(|(_, v)| (!is_promised(v, &claim), size(v))) {
            Some((volume_key, volume)) => bind(tx, (&key, &claim), (volume_key, volume)),
            None => say_why(tx, &claim),
        }
    }
}

/// Whether a volume names a claim that it is meant for, or is bound to it already.
fn is_promised(volume: &Value, claim: &Value) -> bool {
    volume.text("/spec/claimRef/name") == claim.name()
        && volume.text("/spec/claimRef/namespace") == claim.namespace()
        && matches!(volume.text("/spec/claimRef/uid"), uid if uid.is_empty() || uid == claim.uid())
}

fn fits(volume: &Value, claim: &Value) -> bool {
    let free = !volume.has("/spec/claimRef") || is_promised(volume, claim);
    if !free || volume.is_terminating() {
        return false;
    }
    let same = |pointer: &str| volume.text(pointer) == claim.text(pointer);
    let wanted = claim.text("/spec/volumeName");
    if !wanted.is_empty() {
        return wanted == volume.name() && same("/spec/storageClassName");
    }
    let offered = volume.list("/spec/accessModes");
    let size = quantity::millis(volume.text("/spec/capacity/storage"));
    let asked = quantity::millis(claim.text("/spec/resources/requests/storage"));
    same("/spec/storageClassName")
        && same("/spec/volumeMode")
        && claim.list("/spec/accessModes").iter().all(|mode| offered.contains(mode))
        && size >= asked
        && is_selected(volume, claim)
}

fn is_selected(volume: &Value, claim: &Value) -> bool {
    let labels = claim.map("/spec/selector/matchLabels").cloned().unwrap_or_default();
    let expressions = claim.list("/spec/selector/matchExpressions").iter().map(|one| {
        let values: Vec<&str> = one.list("/values").iter().filter_map(Value::as_str).collect();
        let (key, values) = (one.text("/key"), values.join(","));
        let text = match one.text("/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        Selector::parse(&text)
    });
    Selector::from_map(&labels).matches(volume)
        && expressions.into_iter().all(|one| one.is_ok_and(|one| one.matches(volume)))
}

fn bind(tx: &mut Tx<'_>, (key, claim): (&str, &Value), (volume_key, volume): (&str, &Value)) {
    let mut bound = volume.clone();
    bound.put(
        "/spec/claimRef",
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(),
            "name": claim.name(), "uid": claim.uid(),
            "resourceVersion": claim.text("/metadata/resourceVersion"),
        }),
    );
    bound.put("/status/phase", "Bound");
    annotate(&mut bound, &[BY_CONTROLLER]);
    tx.put(volume_key, bound);
    let mut next = claim.clone();
    next.put("/spec/volumeName", volume.name());
    next.put(
        "/status",
        json!({
            "phase": "Bound",
            "accessModes": volume["spec"]["accessModes"],
            "capacity": volume["spec"]["capacity"],
        }),
    );
    annotate(&mut next, &[COMPLETED, BY_CONTROLLER]);
    tx.put(key, next);
}

fn annotate(object: &mut Value, names: &[&str]) {
    if !object.has("/metadata/annotations") {
        object.put("/metadata/annotations", json!({}));
    }
    for name in names {
        object["metadata"]["annotations"][*name] = "yes".into();
    }
}

/// Tells once why a claim waits.
fn say_why(tx: &mut Tx<'_>, claim: &Value) {
    let class = claim.text("/spec/storageClassName");
    let message = match class {
        "" => {
            "no persistent volumes available for this claim and no storage class is set".to_owned()
        }
        class => format!("storageclass.storage.k8s.io {class:?} not found"),
    };
    let events = tx.list(&prefix(Kind::Event, claim.namespace()));
    let told = events.iter().any(|(_, event)| {
        event.text("/involvedObject/uid") == claim.uid() && event.text("/message") == message
    });
    if !told {
        record(
            tx,
            &Happening {
                about: claim,
                kind: Kind::PersistentVolumeClaim,
                class: "Normal",
                reason: "FailedBinding",
                message: &message,
                component: "persistentvolume-controller",
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Value {
        json!({"metadata": {"name": "v", "labels": {"disk": "fast"}}, "spec": {
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": "10Gi"},
            "volumeMode": "Filesystem", "storageClassName": "manual"}})
    }

    fn claim() -> Value {
        json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "storageClassName": "manual", "resources": {"requests": {"storage": "5Gi"}}}})
    }

    #[test]
    fn a_volume_fits_a_claim_in_every_respect_or_not_at_all() {
        assert!(fits(&volume(), &claim()));
        for (pointer, value) in [
            ("/spec/storageClassName", json!("other")),
            ("/spec/volumeMode", json!("Block")),
            ("/spec/accessModes", json!(["ReadWriteMany"])),
            ("/spec/resources/requests/storage", json!("11Gi")),
            ("/spec/selector", json!({"matchLabels": {"disk": "slow"}})),
            (
                "/spec/selector",
                json!({"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]}),
            ),
            ("/spec/volumeName", json!("another")),
        ] {
            let mut other = claim();
            other.put(pointer, value);
            assert!(!fits(&volume(), &other), "{pointer}");
        }
        let mut selected = claim();
        selected.put(
            "/spec/selector",
            json!({"matchExpressions": [
            {"key": "disk", "operator": "In", "values": ["fast", "faster"]}]}),
        );
        assert!(fits(&volume(), &selected));
    }

    #[test]
    fn a_volume_of_somebody_else_is_not_taken() {
        let mut taken = volume();
        taken.put("/spec/claimRef", json!({"name": "c", "namespace": "n", "uid": "before"}));
        assert!(!fits(&taken, &claim()), "a claim of the same name, but another one");
        taken.put("/spec/claimRef", json!({"name": "c", "namespace": "n"}));
        assert!(fits(&taken, &claim()) && is_promised(&taken, &claim()));
        taken.put("/spec/claimRef", json!({"name": "d", "namespace": "n"}));
        assert!(!fits(&taken, &claim()));
    }
}
