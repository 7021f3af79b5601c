//! `persistentVolumeClaim` and `ephemeral`: what a claim is bound to, and whether this node can mount it.
//!
//! The claim must be bound to the volume and the volume to the claim, by UID, so that a claim of the
//! same name does not get at another's data; the claim of an ephemeral volume, which is found by its name,
//! must be the pod's. `hostPath`, `nfs` and `local` volumes with a file
//! system are mounted; every other kind is refused by its name. Access modes are the binder's and the
//! scheduler's, as upstream, but for what they say about reading.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume,
};
use serde_json::Value;

use super::desired::checked_host_path;
use super::ownership::{self, FsGroup};
use super::{Desired, HostPathType, Sources, VolumeError, directory, nfs};
use crate::admission::matches_selector;
use crate::container_config::MountedVolume;
use crate::objects::claim_name;

/// What a claim's volume should be.
pub(super) fn desired(
    (pod, source): (&Pod, &Volume),
    sources: &Sources<'_>,
    fs_group: Option<FsGroup>,
) -> Result<Desired, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let claim_name = claim_name(pod, source).unwrap_or_default();
    let title = format!("{namespace}/{claim_name}");
    let fault =
        |why: &str| Err(VolumeError::Source(format!("error processing PVC {title}: {why}")));
    let claim = sources.fetched.claim(&claim_name)?;
    if claim.metadata.deletion_timestamp.is_some() {
        return fault("PVC is being deleted");
    }
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    let Some(name) = name.filter(|name| bound && !name.is_empty()) else {
        return fault("PVC is not bound");
    };
    let volume = match sources.fetched.bound(name) {
        Some(Ok(volume)) => volume,
        Some(Err(why)) => {
            return fault(&format!("failed to fetch PV {name} from API server: {why}"));
        }
        None => return fault("PVC is not bound"),
    };
    let Some(spec) = &volume.spec else { return fault("PV has no specification") };
    let owner = spec.claim_ref.as_ref().and_then(|owner| owner.uid.as_deref());
    if owner.is_none() || owner != claim.metadata.uid.as_deref() {
        return fault(&format!(
            "PV object binding verification failed: PV {name} is not bound to this PVC"
        ));
    }
    if source.ephemeral.is_some() && !is_controlled_by(claim, pod) {
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        return Err(VolumeError::Source(format!(
            "PVC {title} was not created for pod {namespace}/{pod} (pod is not owner)"
        )));
    }
    check_place(volume, spec, sources)?;
    let named = source.persistent_volume_claim.as_ref();
    let reads_only = named.and_then(|source| source.read_only) == Some(true)
        || spec.access_modes.as_deref().is_some_and(|modes| modes == ["ReadOnlyMany"]);
    of_volume(name, spec, (fs_group, reads_only))
}

fn is_controlled_by(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    let controller = owners.find(|owner| owner.controller == Some(true));
    controller.is_some_and(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
}

/// Whether the node is one that the volume can be reached from.
fn check_place(
    volume: &PersistentVolume,
    spec: &PersistentVolumeSpec,
    sources: &Sources<'_>,
) -> Result<(), VolumeError> {
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let (Some(required), Some(node)) = (required, sources.node) else { return Ok(()) };
    if matches_selector(required, node) {
        return Ok(());
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    Err(VolumeError::Source(format!(
        "MountVolume.NodeAffinity check failed for volume {name:?} : no matching NodeSelectorTerms"
    )))
}

fn of_volume(
    name: &str,
    spec: &PersistentVolumeSpec,
    (fs_group, read_only): (Option<FsGroup>, bool),
) -> Result<Desired, VolumeError> {
    if spec.volume_mode.as_deref().is_some_and(|mode| mode != "Filesystem") {
        return Err(VolumeError::Source(format!(
            "volume {name} has volumeMode {}, but block devices are not supported",
            spec.volume_mode.as_deref().unwrap_or_default()
        )));
    }
    if let Some(source) = &spec.host_path {
        return Ok(Desired::HostPath {
            path: checked_host_path(&source.path)?,
            kind: HostPathType::parse(source.type_.as_deref())?,
            read_only,
        });
    }
    if let Some(source) = &spec.nfs {
        let options = spec.mount_options.as_deref().unwrap_or_default();
        let read_only = read_only || source.read_only == Some(true);
        let export = (source.server.as_str(), source.path.as_str());
        return Ok(Desired::Nfs(nfs::Export::parse(export, options, read_only)?));
    }
    if let Some(source) = &spec.local {
        let path = checked_host_path(&source.path)?;
        return Ok(Desired::Local { path, fs_group, read_only });
    }
    Err(VolumeError::Source(format!(
        "volume {name} is of kind {}, which is not supported by this node",
        kind(spec)
    )))
}

/// The name of the source that a volume has.
fn kind(spec: &PersistentVolumeSpec) -> String {
    const OTHERS: [&str; 3] = ["capacity", "claimRef", "nodeAffinity"];
    let fields = serde_json::to_value(spec).unwrap_or_default();
    let found = fields.as_object().into_iter().flatten().find(|(name, value)| {
        matches!(value, Value::Object(_)) && !OTHERS.contains(&name.as_str())
    });
    found.map_or_else(|| "unknown".to_owned(), |(name, _)| name.clone())
}

/// A `local` volume as it is mounted: a directory that exists.
pub(super) fn local(path: &Path, read_only: bool) -> Result<MountedVolume, VolumeError> {
    let missing = || VolumeError::Source(format!("path {:?} does not exist", path.display()));
    let metadata = std::fs::metadata(path).map_err(|_| missing())?;
    if !metadata.is_dir() {
        return Err(VolumeError::Source(format!(
            "path {:?} is not a directory, and block devices are not supported",
            path.display()
        )));
    }
    // As upstream does: what nobody may write keeps its labels.
    let relabel = !read_only;
    Ok(MountedVolume { relabel, ..MountedVolume::path(PathBuf::from(path), read_only) })
}

/// Gives a `local` volume to the pod's group.
pub(super) fn give(path: &Path, group: &FsGroup) -> Result<(), VolumeError> {
    local(path, false)?;
    let opened = directory::open_path(path).map_err(VolumeError::host("open", path))?;
    ownership::give_to_group(&opened, group).map_err(VolumeError::host("change the group of", path))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::downward::Facts;
    use crate::objects::{Fetched, Lookup, ObjectRef};
    use crate::qos::PodDemand;

    fn outcome(claim: Value, volume: Value, node: Value) -> Result<Desired, String> {
        let source = json!({"name": "x", "persistentVolumeClaim": {"claimName": "c"}});
        outcome_of((source, "c"), (claim, volume), node)
    }

    fn outcome_of(
        (source, name): (Value, &str),
        (claim, volume): (Value, Value),
        node: Value,
    ) -> Result<Desired, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c"}]},
        }))
        .unwrap();
        let mut fetched = Fetched::default();
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
        fetched.insert(ObjectRef::claim(name), Lookup::Claim(Arc::new(claim)));
        for name in fetched.bound_names() {
            let volume = serde_json::from_value(volume.clone()).unwrap();
            fetched.insert_bound(name, Ok(Arc::new(volume)));
        }
        let demand = PodDemand::parse(&pod).unwrap();
        let allocatable = Default::default();
        let facts = Facts {
            pod: &pod,
            demand: &demand,
            host_ips: &[],
            pod_ips: &[],
            allocatable: &allocatable,
        };
        let node = serde_json::from_value(node).unwrap();
        let tokens = Default::default();
        let sources = Sources { facts, fetched: &fetched, tokens: &tokens, node: Some(&node) };
        let source = serde_json::from_value(source).unwrap();
        desired((&pod, &source), &sources, None).map_err(|error| error.to_string())
    }

    fn claim(phase: &str) -> Value {
        json!({"metadata": {"name": "c", "namespace": "ns", "uid": "one"},
            "spec": {"volumeName": "v"}, "status": {"phase": phase}})
    }

    fn volume(uid: &str, source: (&str, Value)) -> Value {
        let (kind, source) = source;
        let mut volume = json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"uid": uid},
            "capacity": {"storage": "1Gi"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]}]}}}});
        volume["spec"][kind] = source;
        volume
    }

    #[test]
    fn an_ephemeral_volume_is_mounted_by_a_claim_that_is_the_pods_own() {
        let node = || json!({"metadata": {"labels": {"disk": "fast"}}});
        let source = || {
            let template = json!({"spec": {"accessModes": ["ReadWriteOnce"]}});
            json!({"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}})
        };
        let of = |owners: Value| {
            let mut claim = claim("Bound");
            claim["metadata"]["name"] = json!("p-scratch");
            claim["metadata"]["ownerReferences"] = owners;
            let volume = volume("one", ("local", json!({"path": "/data"})));
            outcome_of((source(), "p-scratch"), (claim, volume), node())
        };
        let owner = |uid: &str, controller: bool| {
            let kind = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid});
            let mut owner = kind;
            owner["controller"] = json!(controller);
            json!([owner])
        };
        assert!(of(owner("u", true)).is_ok());
        for owners in [json!([]), owner("of an earlier pod", true), owner("u", false)] {
            let error = of(owners).unwrap_err();
            let expected = "PVC ns/p-scratch was not created for pod ns/p (pod is not owner)";
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_claim_is_mounted_where_both_sides_agree_and_the_node_can() {
        let here = || json!({"metadata": {"labels": {"disk": "fast"}}});
        let local = || ("local", json!({"path": "/data"}));
        let good = outcome(claim("Bound"), volume("one", local()), here()).unwrap();
        let expected = Desired::Local { path: "/data".into(), fs_group: None, read_only: false };
        assert_eq!(good, expected);
        let elsewhere = json!({"metadata": {"labels": {"disk": "slow"}}});
        for (claim, volume, node, why) in [
            (claim("Pending"), volume("one", local()), here(), "PVC is not bound"),
            (claim("Bound"), volume("two", local()), here(), "is not bound to this PVC"),
            (claim("Bound"), volume("one", local()), elsewhere, "no matching NodeSelectorTerms"),
            (
                claim("Bound"),
                volume("one", ("iscsi", json!({"targetPortal": "x", "iqn": "y", "lun": 1}))),
                here(),
                "is of kind iscsi, which is not supported",
            ),
            (
                claim("Bound"),
                volume("one", ("local", json!({"path": "/a/../b"}))),
                here(),
                "must not contain '..'",
            ),
        ] {
            let error = outcome(claim, volume, node).unwrap_err();
            assert!(error.contains(why), "{why:?} is not in {error:?}");
        }
    }
}
