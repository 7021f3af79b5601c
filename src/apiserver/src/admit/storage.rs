//! PersistentVolumes and PersistentVolumeClaims: defaults, and rules for what they may say and change.
//! What is bound to what is decided in [`crate::control`].

use serde_json::{Value, json};

use super::quantity;
use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::resource::Kind;

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// The fields of a volume's specification that are no source.
const NO_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// The finalizer that holds claims, or volumes, as long as they are in use.
pub(crate) fn protection(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::PersistentVolumeClaim => Some("kubernetes.io/pvc-protection"),
        Kind::PersistentVolume => Some("kubernetes.io/pv-protection"),
        _ => None,
    }
}

/// Puts it on a new object.
pub(super) fn protect(kind: Kind, object: &mut Value) {
    let mut held = object.list("/metadata/finalizers").to_vec();
    if let Some(finalizer) = protection(kind)
        && !held.iter().any(|one| one == finalizer)
    {
        held.push(finalizer.into());
        object.put("/metadata/finalizers", held);
    }
}

/// Sets what a volume leaves out.
pub(super) fn default_volume(volume: &mut Value) {
    volume.default_to("/spec/persistentVolumeReclaimPolicy", "Retain");
    volume.default_to("/spec/volumeMode", "Filesystem");
    if volume.has("/spec/hostPath") {
        volume.default_to("/spec/hostPath/type", "");
    }
}

/// The sources that a volume has, by field.
fn sources(volume: &Value) -> Vec<&str> {
    let fields = volume.map("/spec").into_iter().flatten();
    let set =
        fields.filter(|(field, value)| !value.is_null() && !NO_SOURCES.contains(&field.as_str()));
    set.map(|(field, _)| field.as_str()).collect()
}

fn check_modes(object: &Value, causes: &mut Vec<Cause>) {
    let modes = object.list("/spec/accessModes");
    if modes.is_empty() {
        let why = "at least 1 access mode is required";
        causes.push(Cause::required("spec.accessModes", why));
    }
    for mode in modes {
        if !MODES.iter().any(|known| mode.as_str() == Some(known)) {
            causes.push(Cause::unsupported("spec.accessModes", mode, &MODES));
        }
    }
}

fn check_size(object: &Value, (pointer, field): (&str, &str), causes: &mut Vec<Cause>) {
    let text = object.text(pointer);
    match quantity::millis(text) {
        None if text.is_empty() => causes.push(Cause::required(field, "")),
        Some(size) if size > 0 => {}
        _ => causes.push(Cause::invalid(field, &json!(text), "must be greater than zero")),
    }
}

/// Checks a volume.
pub(super) fn check_volume(volume: &Value, causes: &mut Vec<Cause>) {
    check_modes(volume, causes);
    check_size(volume, ("/spec/capacity/storage", "spec.capacity[storage]"), causes);
    match sources(volume).as_slice() {
        [] => causes.push(Cause::required("spec", "must specify a volume type")),
        [_] => {}
        [_, rest @ ..] => {
            for source in rest {
                let why = "may not specify more than 1 volume type";
                causes.push(Cause::forbidden(format!("spec.{source}"), why));
            }
        }
    }
    for source in ["hostPath", "local"] {
        let path = volume.text(&format!("/spec/{source}/path"));
        if volume.has(&format!("/spec/{source}")) && path.is_empty() {
            causes.push(Cause::required(format!("spec.{source}.path"), ""));
        }
        if path.split('/').any(|part| part == "..") {
            let field = format!("spec.{source}.path");
            causes.push(Cause::invalid(field, &json!(path), "must not contain '..'"));
        }
    }
    if volume.has("/spec/local") && !volume.has("/spec/nodeAffinity") {
        let why = "Local volume requires node affinity";
        causes.push(Cause::required("spec.nodeAffinity", why));
    }
}

/// What holds the data stays.
pub(super) fn check_volume_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let source = |volume: &Value| {
        let name = sources(volume).first().map(|name| (*name).to_owned());
        name.map(|name| (volume["spec"][&name].clone(), name))
    };
    if source(current) != source(wanted) {
        let why = "spec.persistentvolumesource is immutable after creation";
        causes.push(Cause::forbidden("spec.persistentvolumesource", why));
    }
}

/// Checks a claim.
pub(super) fn check_claim(claim: &Value, causes: &mut Vec<Cause>) {
    check_modes(claim, causes);
    let size = ("/spec/resources/requests/storage", "spec.resources[storage]");
    check_size(claim, size, causes);
}

/// Checks what a pod's volume has its claim made from, if it is a generic ephemeral one.
pub(super) fn check_ephemeral(index: usize, volume: &Value, causes: &mut Vec<Cause>) {
    if !volume.has("/ephemeral") {
        return;
    }
    let path = format!("spec.volumes[{index}].ephemeral.volumeClaimTemplate");
    let Some(template) = volume.pointer("/ephemeral/volumeClaimTemplate") else {
        causes.push(Cause::required(path, ""));
        return;
    };
    let mut found = Vec::new();
    check_claim(template, &mut found);
    causes.extend(found.into_iter().map(|cause| cause.below(&path)));
}

/// What a claim asks for stays; what it gets may be filled in.
pub(super) fn check_claim_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let mut before = current["spec"].clone();
    let mut after = wanted["spec"].clone();
    for spec in [&mut before, &mut after] {
        spec.take_out("/resources");
        spec.take_out("/volumeAttributesClassName");
    }
    if before.text("/volumeName").is_empty() {
        after.take_out("/volumeName");
        before.take_out("/volumeName");
    }
    if before != after {
        let why = "spec is immutable after creation except resources.requests and \
                   volumeAttributesClassName for bound claims";
        causes.push(Cause::forbidden("spec", why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(check: fn(&Value, &mut Vec<Cause>), object: &Value) -> usize {
        let mut causes = Vec::new();
        check(object, &mut causes);
        causes.len()
    }

    #[test]
    fn a_volume_is_one_thing_of_some_size() {
        let good = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/data"}}});
        assert_eq!(lines(check_volume, &good), 0);
        for (pointer, value) in [
            ("/spec/accessModes", json!([])),
            ("/spec/accessModes", json!(["Sometimes"])),
            ("/spec/capacity/storage", json!("0")),
            ("/spec/hostPath", Value::Null),
            ("/spec/hostPath/path", json!("/a/../b")),
            ("/spec/nfs", json!({"server": "x", "path": "/"})),
        ] {
            let mut bad = good.clone();
            bad.put(pointer, value);
            assert_eq!(lines(check_volume, &bad), 1, "{pointer}");
        }
    }

    #[test]
    fn a_claim_keeps_what_it_asked_for() {
        let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        let changed = |pointer: &str, value: Value| {
            let mut next = claim.clone();
            next.put(pointer, value);
            let mut causes = Vec::new();
            check_claim_update(&claim, &next, &mut causes);
            causes.len()
        };
        assert_eq!(changed("/spec/volumeName", json!("v")), 0);
        assert_eq!(changed("/spec/resources/requests/storage", json!("2Gi")), 0);
        assert_eq!(changed("/spec/storageClassName", json!("fast")), 1);
    }
}
