//! What of a pod is measured.

use std::path::Path;

use berth_runtime::interface::{ContainerState, ContainerStatus, SandboxState};
use serde_json::json;

use super::*;
use crate::fake::FakeMaterials;
use crate::worker::materials::{ContainerRequest, Materials};

async fn sandbox(pod: &Pod, attempts: &[u32]) -> SandboxStatus {
    let materials = FakeMaterials::default();
    let mut containers = Vec::new();
    for attempt in attempts {
        let request = ContainerRequest {
            pod,
            container: &pod.spec.as_ref().unwrap().containers[0],
            image: &crate::fake::image("image"),
            attempt: *attempt,
            volume_images: Default::default(),
            pod_ips: vec![],
            before: None,
        };
        containers.push(ContainerStatus {
            id: ContainerId::try_from(attempt.to_string().repeat(64)).unwrap(),
            sandbox: "5".repeat(32).try_into().unwrap(),
            config: materials.container(request).await.unwrap(),
            state: ContainerState::Created,
            created_at: 7,
            user: None,
        });
    }
    SandboxStatus {
        id: "5".repeat(32).try_into().unwrap(),
        config: materials.sandbox(pod, 0).await.unwrap(),
        state: SandboxState::Ready,
        created_at: 1,
        ips: vec![],
        containers,
    }
}

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1"},
        "spec": {
            "containers": [{"name": "c", "volumeMounts": [{"name": "mine", "mountPath": "/mine"}]}],
            "volumes": [
                {"name": "disk", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "map", "configMap": {"name": "m"}},
                {"name": "token", "projected": {"sources": []}},
                {"name": "host", "hostPath": {"path": "/etc"}},
                {"name": "image", "image": {"reference": "i"}},
                {"name": "nas", "nfs": {"server": "s", "path": "/"}},
                {"name": "mine", "persistentVolumeClaim": {"claimName": "claim"}},
            ],
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn volumes_are_those_that_upstream_measures() {
    let pod = pod();
    let directory = PodDirectory::new(Path::new("/r"), "u1").unwrap();
    let below = |path: &str| PathBuf::from("/r/pods/u1/volumes").join(path);
    let mut sandboxes = vec![sandbox(&pod, &[0]).await];
    let targets = volumes(&pod, &directory, &sandboxes);
    let told: Vec<_> =
        targets.iter().map(|t| (t.name.as_str(), t.is_ephemeral, t.place.clone())).collect();
    let expected = [
        ("disk", true, Place::Own(below("kubernetes.io~empty-dir/disk"))),
        ("memory", false, Place::Own(below("kubernetes.io~empty-dir/memory"))),
        ("map", true, Place::Own(below("kubernetes.io~configmap/map"))),
        ("token", false, Place::Own(below("kubernetes.io~projected/token"))),
        ("nas", false, Place::Mounted(below("kubernetes.io~nfs/nas"))),
        ("mine", false, Place::Mounted(below("kubernetes.io~nfs/mine"))),
    ];
    assert_eq!(told, expected);
    assert_eq!(targets[5].claim.as_deref(), Some("claim"));
    let mounts = &mut sandboxes[0].containers[0].config.mounts;
    mounts.push(berth_runtime::interface::Mount {
        host_path: "/data".into(),
        image: None,
        sub_path: None,
        container_path: "/mine".into(),
        read_only: false,
        recursive_read_only: false,
        propagation: berth_runtime::interface::Propagation::Private,
        relabel: false,
    });
    let local = volumes(&pod, &directory, &sandboxes).pop().unwrap();
    assert_eq!(local.place, Place::Host("/data".into()));
}

#[tokio::test]
async fn of_each_name_the_newest_container_counts() {
    let pod = pod();
    let found = members(&[sandbox(&pod, &[0, 2, 1]).await]);
    let [member] = &found[..] else { panic!("{found:?}") };
    assert_eq!((member.name.as_str(), member.id.as_str()), ("c", &*"2".repeat(64)));
    assert!(member.log_directory.ends_with("c"), "{member:?}");
}
