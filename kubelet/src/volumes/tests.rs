//! Tests of what volumes should be, and of the plan. Effects on disk are tested as root in
//! `tests/volumes.rs`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::objects::{Lookup, ObjectRef};
use crate::qos::{PodDemand, ResourceAmounts};

fn fetched() -> Fetched {
    let config_map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "/w=="}});
    let secret = json!({"data": {"pw": "czNjcmV0"}});
    Fetched::from_iter([
        (
            ObjectRef::config_map("cm"),
            Lookup::ConfigMap(Arc::new(serde_json::from_value(config_map).unwrap())),
        ),
        (ObjectRef::secret("s"), Lookup::Secret(Arc::new(serde_json::from_value(secret).unwrap()))),
        (ObjectRef::config_map("gone"), Lookup::NotFound),
        (ObjectRef::secret("gone"), Lookup::NotFound),
    ])
}

fn desired_in(spec: Value, volume: Value) -> Result<Desired, String> {
    let mut spec = spec;
    let mut volume = volume;
    volume["name"] = json!("v");
    spec["volumes"] = json!([volume]);
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    let metadata = json!({"name": "p", "namespace": "ns", "labels": {"k": "v"}});
    let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
    let demand = PodDemand::parse(&pod).unwrap();
    let allocatable = ResourceAmounts::from([("memory".to_owned(), "1Gi".parse().unwrap())]);
    let token = |audience: Option<&str>| TokenRequest {
        audience: audience.map(str::to_owned),
        expiration_seconds: 3600,
    };
    let tokens = Tokens::from([
        (token(None), Token::Ready("tok".into())),
        (token(Some("bad")), Token::Failed("forbidden".into())),
    ]);
    let fetched = fetched();
    let sources = Sources {
        facts: Facts {
            pod: &pod,
            demand: &demand,
            host_ips: &[],
            pod_ips: &[],
            allocatable: &allocatable,
        },
        fetched: &fetched,
        tokens: &tokens,
        node: None,
    };
    let mut volumes = desired_volumes(&pod, &sources);
    volumes.remove("v").unwrap().map_err(|e| e.to_string())
}

fn files(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
    files_in(json!({}), volume)
}

fn files_in(spec: Value, volume: Value) -> Result<Vec<(String, String, u32)>, String> {
    let Desired::Files { payload, .. } = desired_in(spec, volume)? else {
        panic!("not a volume of files");
    };
    let files = payload.files().iter();
    Ok(files
        .map(|(path, file)| {
            let text = String::from_utf8_lossy(&file.content).into_owned();
            (path.clone(), text, file.mode)
        })
        .collect())
}

fn listed(files: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
    files.iter().map(|(p, c, m)| ((*p).to_owned(), (*c).to_owned(), *m)).collect()
}

#[test]
fn objects_become_files() {
    assert_eq!(
        files(json!({"configMap": {"name": "cm"}})),
        Ok(listed(&[("a", "1", 0o644), ("b", "2", 0o644), ("bin", "\u{fffd}", 0o644)]))
    );
    let items = json!([{"key": "b", "path": "x/y", "mode": 0o400}, {"key": "a", "path": "z"}]);
    assert_eq!(
        files(json!({"configMap": {"name": "cm", "items": items, "defaultMode": 0o600}})),
        Ok(listed(&[("x/y", "2", 0o400), ("z", "1", 0o600)]))
    );
    assert_eq!(
        files(json!({"secret": {"secretName": "s"}})),
        Ok(listed(&[("pw", "s3cret", 0o644)]))
    );
    let field = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
    assert_eq!(
        files(json!({"downwardAPI": {"items": [field]}})),
        Ok(listed(&[("labels", "k=\"v\"", 0o644)]))
    );
}

#[test]
fn what_is_optional_may_be_missing() {
    for volume in [
        json!({"configMap": {"name": "gone", "optional": true}}),
        json!({"secret": {"secretName": "gone", "optional": true}}),
        json!({"configMap": {"name": "cm", "optional": true, "items": [{"key": "no", "path": "no"}]}}),
    ] {
        assert_eq!(files(volume), Ok(vec![]));
    }
}

#[test]
fn failures_carry_upstreams_texts() {
    let item = json!([{"key": "no", "path": "no"}]);
    for (volume, expected) in [
        (json!({"configMap": {"name": "gone"}}), "configmap \"gone\" not found"),
        (json!({"secret": {"secretName": "gone"}}), "secret \"gone\" not found"),
        (
            json!({"configMap": {"name": "cm", "items": item}}),
            "configmap references non-existent config key: no",
        ),
        (
            json!({"secret": {"secretName": "s", "items": item}}),
            "references non-existent secret key: no",
        ),
        (
            json!({"projected": {"sources": [{"configMap": {"name": "gone"}}, {"secret": {"name": "gone"}}]}}),
            "[configmap \"gone\" not found, secret \"gone\" not found]",
        ),
        (
            json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "bad"}}]}}),
            "failed to fetch token: forbidden",
        ),
        (json!({"configMap": {"name": "cm", "defaultMode": 0o1777}}), "invalid mode: \"1023\""),
        (
            json!({"hostPath": {"path": "/a/../b"}}),
            "invalid path \"/a/../b\": must not contain '..'",
        ),
        (json!({"hostPath": {"path": "/a", "type": "Pipe"}}), "Pipe is an invalid volume type"),
        (json!({"iscsi": {"targetPortal": "t", "iqn": "q", "lun": 0}}), "no volume plugin matched"),
        (json!({"emptyDir": {"medium": "Floppy"}}), "invalid medium: \"Floppy\""),
        (json!({"emptyDir": {"medium": "HugePages-"}}), "invalid medium: \"HugePages-\""),
        (
            json!({"emptyDir": {"medium": "HugePages"}}),
            "medium \"HugePages\" cannot be had: the pod requests no huge pages",
        ),
        (
            json!({"emptyDir": {"medium": "HugePages-2Mi"}}),
            "medium \"HugePages-2Mi\" cannot be had: the pod requests no pages of this size",
        ),
        (json!({"nfs": {"server": "-o x", "path": "/"}}), "invalid nfs.server: \"-o x\""),
        (json!({"nfs": {"server": "s", "path": "p"}}), "invalid path \"p\": must be absolute"),
    ] {
        assert_eq!(desired_in(json!({}), volume), Err(expected.to_owned()));
    }
    let error = VolumeError::MissingConfigKey("k".into());
    assert_eq!(
        failed_mount_message("v", &error),
        "MountVolume.SetUp failed for volume \"v\" : configmap references non-existent config key: k"
    );
}

#[test]
fn a_projected_volume_joins_its_sources() {
    let sources = json!([
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"configMap": {"name": "cm", "items": [{"key": "a", "path": "ca"}]}},
        {"secret": {"name": "s"}},
        {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"configMap": {"name": "cm", "items": [{"key": "b", "path": "ca"}]}},
    ]);
    assert_eq!(
        files(json!({"projected": {"sources": sources, "defaultMode": 0o444}})),
        Ok(listed(&[
            ("ca", "2", 0o444),
            ("ns", "ns", 0o444),
            ("pw", "s3cret", 0o444),
            ("token", "tok", 0o444),
        ]))
    );
}

#[test]
fn a_token_is_for_its_reader_alone() {
    let volume = || json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
    let token = |spec: Value| {
        let Ok(Desired::Files { payload, .. }) = desired_in(spec, volume()) else {
            panic!("not a volume of files");
        };
        let file = payload.files()["t"].clone();
        (file.mode, file.uid, payload.gid())
    };
    assert_eq!(token(json!({})), (0o644, None, None));
    assert_eq!(token(json!({"securityContext": {"fsGroup": 9}})), (0o640, None, Some(9)));
    assert_eq!(token(json!({"securityContext": {"runAsUser": 7}})), (0o600, Some(7), None));
    let two_users = json!([{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 8}}]);
    let spec = json!({"securityContext": {"runAsUser": 7}, "containers": two_users});
    assert_eq!(token(spec), (0o644, None, None));
}

#[test]
fn memory_volumes_are_bounded_by_volume_pod_and_node() {
    let size =
        |spec: Value, empty_dir: Value| match desired_in(spec, json!({"emptyDir": empty_dir}))
            .unwrap()
        {
            Desired::EmptyDir { medium: Medium::Memory { size_bytes }, .. } => size_bytes,
            other => panic!("{other:?}"),
        };
    let memory = json!({"medium": "Memory"});
    assert_eq!(size(json!({}), memory.clone()), Some(1 << 30));
    assert_eq!(size(json!({}), json!({"medium": "Memory", "sizeLimit": "1Mi"})), Some(1 << 20));
    let limited =
        json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi"}}}]});
    assert_eq!(size(limited, memory), Some(64 << 20));
}

#[test]
fn secrets_never_reach_a_disk() {
    for volume in [json!({"secret": {"secretName": "s"}}), json!({"projected": {"sources": []}})] {
        let Ok(Desired::Files { tmpfs_bytes, .. }) = desired_in(json!({}), volume) else {
            panic!("not a volume of files");
        };
        assert_eq!(tmpfs_bytes, Some(1 << 30));
    }
}

#[test]
fn the_plan_does_what_is_missing_and_no_more() {
    use Action::{CheckHostPath, MakeDirectory, MountTmpfs, Prepare, WritePayload};
    let disk = Desired::EmptyDir { medium: Medium::Disk, fs_group: None };
    let memory = Desired::EmptyDir { medium: Medium::Memory { size_bytes: None }, fs_group: None };
    let config = Desired::Files {
        plugin: VolumePlugin::ConfigMap,
        payload: Payload::default(),
        tmpfs_bytes: None,
    };
    let secret = Desired::Files {
        plugin: VolumePlugin::Secret,
        payload: Payload::default(),
        tmpfs_bytes: Some(1),
    };
    let host = Desired::HostPath { path: "/".into(), kind: HostPathType::Unset, read_only: false };
    let seen = |present, mounted, current| Observed { present, mounted, current };
    let nothing = seen(false, false, false);
    for (desired, observed, expected) in [
        (&disk, nothing, vec![MakeDirectory, Prepare]),
        (&disk, seen(true, false, false), vec![Prepare]),
        (&disk, seen(true, false, true), vec![]),
        (&memory, nothing, vec![MakeDirectory, MountTmpfs, Prepare]),
        (&memory, seen(true, false, true), vec![MountTmpfs, Prepare]),
        (&memory, seen(true, true, true), vec![]),
        (&config, nothing, vec![MakeDirectory, WritePayload]),
        (&config, seen(true, false, false), vec![WritePayload]),
        (&config, seen(true, false, true), vec![]),
        (&secret, seen(true, false, true), vec![MountTmpfs, WritePayload]),
        (&secret, seen(true, true, false), vec![WritePayload]),
        (&secret, seen(true, true, true), vec![]),
        (&host, nothing, vec![CheckHostPath]),
    ] {
        assert_eq!(plan(desired, observed), expected, "{desired:?} {observed:?}");
    }
}

#[test]
fn names_that_leave_the_pods_directory_are_refused() {
    let root = std::path::Path::new("/r");
    assert!(PodDirectory::new(root, "../x").is_err());
    let pod = PodDirectory::new(root, "u-1").unwrap();
    assert!(pod.volume_path(VolumePlugin::Secret, "../x").is_err());
    assert_eq!(
        pod.volume_path(VolumePlugin::ConfigMap, "v").unwrap(),
        PathBuf::from("/r/pods/u-1/volumes/kubernetes.io~configmap/v")
    );
}
