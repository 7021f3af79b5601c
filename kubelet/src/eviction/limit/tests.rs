//! Limits on disk use, with upstream's messages.

use serde_json::{Value, json};

use super::*;
use crate::disk::{ContainerUse, FileSystem, VolumeUse};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
}

fn used(bytes: u64) -> Used {
    Used { bytes, inodes: 1 }
}

fn of(volumes: &[(&str, u64)], containers: &[(&str, u64)]) -> PodUse {
    let volume = |bytes| VolumeUse {
        at_ms: 0,
        claim: None,
        is_ephemeral: true,
        used: used(bytes),
        file_system: FileSystem::default(),
    };
    let container = |bytes| ContainerUse { at_ms: 0, rootfs: used(bytes), logs: used(1) };
    PodUse {
        volumes: volumes.iter().map(|(name, bytes)| ((*name).to_owned(), volume(*bytes))).collect(),
        containers: containers
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), container(*bytes)))
            .collect(),
    }
}

fn message(pod: &Pod, disk: &PodUse) -> Option<String> {
    excess(pod, disk).map(|excess| excess.message)
}

#[test]
fn an_empty_dir_over_its_limit_is_named() {
    let pod = pod(json!({"containers": [{"name": "c"}], "volumes": [
        {"name": "free", "emptyDir": {}},
        {"name": "zero", "emptyDir": {"sizeLimit": "0"}},
        {"name": "memory", "emptyDir": {"sizeLimit": "1Ki", "medium": "Memory"}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]}));
    assert!(is_limited(&pod));
    let within = [("free", 1 << 40), ("zero", 9), ("memory", 1024), ("scratch", 1 << 20)];
    assert_eq!(message(&pod, &of(&within, &[])), None);
    assert_eq!(message(&pod, &PodUse::default()), None, "nothing is known");
    let over = message(&pod, &of(&[("scratch", (1 << 20) + 1)], &[])).unwrap();
    assert_eq!(over, "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ");
    assert!(message(&pod, &of(&[("memory", 1025)], &[])).is_some());
}

#[test]
fn a_pod_is_held_to_the_sum_and_a_container_to_its_own_limit() {
    let limit = |amount: &str| json!({"limits": {"ephemeral-storage": amount}});
    let pod = pod(json!({"containers": [
        {"name": "a", "resources": limit("1Ki")}, {"name": "b", "resources": limit("1Mi")}]}));
    assert!(is_limited(&pod));
    assert_eq!(message(&pod, &of(&[("v", 1000)], &[("a", 1023), ("b", 1)])), None);
    assert_eq!(
        message(&pod, &of(&[], &[("a", 1024), ("b", 1)])).unwrap(),
        "Container a exceeded its local ephemeral storage limit \"1Ki\". "
    );
    assert_eq!(
        message(&pod, &of(&[("v", 1 << 20)], &[("a", 1024)])).unwrap(),
        "Pod ephemeral local storage usage exceeds the total limit of containers 1025Ki. "
    );
}

#[test]
fn a_pod_without_limits_is_not_measured() {
    let pod = pod(json!({"containers": [{"name": "c", "resources": {
        "requests": {"ephemeral-storage": "1Ki"}}}], "volumes": [{"name": "v", "emptyDir": {}}]}));
    assert!(!is_limited(&pod));
    assert_eq!(excess(&pod, &of(&[("v", 1 << 40)], &[("c", 1 << 40)])), None);
}
