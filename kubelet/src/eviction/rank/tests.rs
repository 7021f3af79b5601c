//! The ranking, with upstream's cases, and what is told of the victim.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::disk::FileSystem;
use crate::disk::{Used, VolumeUse};
use crate::eviction::plan::Observation;
use crate::eviction::threshold::Amount;

fn pod(uid: &str, priority: i32, request: Option<&str>) -> Pod {
    let resources: Value = match request {
        Some(request) => json!({"requests": {"memory": request, "ephemeral-storage": request}}),
        None => json!({}),
    };
    serde_json::from_value(json!({
        "metadata": {"name": uid, "namespace": "ns", "uid": uid},
        "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}],
                 "volumes": [{"name": "v", "emptyDir": {}},
                             {"name": "m", "emptyDir": {"medium": "Memory"}}]},
    }))
    .unwrap()
}

fn using(memory_bytes: u64) -> Usage {
    let used = |bytes| Used { bytes, inodes: bytes };
    let volume = |bytes| VolumeUse {
        at_ms: 0,
        claim: None,
        is_ephemeral: true,
        used: used(bytes),
        file_system: FileSystem::default(),
    };
    let disk = PodUse {
        containers: [(
            "c".to_owned(),
            ContainerUse { at_ms: 0, rootfs: used(memory_bytes), logs: used(0) },
        )]
        .into(),
        volumes: [("v".to_owned(), volume(1)), ("m".to_owned(), volume(1 << 40))].into(),
    };
    Usage {
        memory_bytes,
        processes: memory_bytes,
        containers: vec![("c".to_owned(), memory_bytes)],
        disk: Some(Arc::new(disk)),
    }
}

/// The UIDs in the order in which they are ended.
fn order(signal: Signal, pods: &[Pod], usages: &Usages) -> Vec<String> {
    let mut left: Vec<&Pod> = pods.iter().collect();
    let mut order = Vec::new();
    while let Some(place) = victim(signal, &left, usages, Layout::One) {
        order.push(left.remove(place).metadata.uid.clone().unwrap());
    }
    order
}

#[test]
fn who_exceeds_its_request_goes_first_then_the_lowest_priority_then_the_greediest() {
    let pods = [
        pod("modest-low", -5, Some("500")),
        pod("modest", 0, Some("500")),
        pod("greedy-urgent", 9, Some("100")),
        pod("greedier", 0, Some("100")),
        pod("greedy", 0, Some("300")),
        pod("unknown", 9, None),
        pod("critical", 2_000_000_000, None),
    ];
    let usages: Usages = [
        ("modest-low", 400),
        ("modest", 400),
        ("greedy-urgent", 900),
        ("greedier", 300),
        ("greedy", 400),
        ("critical", 1000),
    ]
    .map(|(uid, bytes)| (uid.to_owned(), using(bytes)))
    .into();
    let expected = ["unknown", "greedier", "greedy", "greedy-urgent", "modest-low", "modest"];
    assert_eq!(order(Signal::MemoryAvailable, &pods, &usages), expected);
    assert_eq!(order(Signal::NodeFsAvailable, &pods, &usages), expected);
    let by_priority = ["modest-low", "greedy", "modest", "greedier", "unknown", "greedy-urgent"];
    assert_eq!(order(Signal::PidAvailable, &pods, &usages), by_priority);
}

#[test]
fn no_pod_is_on_the_disk_of_the_images_where_that_is_another() {
    let pods = [pod("a", 0, None), pod("b", 0, None)];
    let usages: Usages = [("a".to_owned(), using(1)), ("b".to_owned(), using(9))].into();
    let pods: Vec<_> = pods.iter().collect();
    let first = |signal, layout| victim(signal, &pods, &usages, layout);
    assert_eq!(first(Signal::ImageFsAvailable, Layout::One), Some(1));
    assert_eq!(first(Signal::NodeFsAvailable, Layout::OwnImages), Some(1));
    assert_eq!(first(Signal::ImageFsAvailable, Layout::OwnImages), Some(0), "by name");
}

fn threshold(signal: Signal) -> (Threshold, Observations) {
    let value = Amount::Quantity(Quantity::bytes(100 << 20));
    let seen =
        Observation { available: Quantity::bytes(51 << 10), capacity: Quantity::bytes(1 << 30) };
    let threshold =
        Threshold { signal, value, grace: std::time::Duration::ZERO, min_reclaim: None };
    (threshold, [(signal, seen)].into())
}

#[test]
fn the_message_and_the_annotations_are_upstreams() {
    let (starved, observations) = threshold(Signal::MemoryAvailable);
    let usages: Usages = [("p".to_owned(), using(300 << 20))].into();
    let pod = pod("p", 0, Some("100Mi"));
    let told = |pod: &Pod, usages: &Usages| told(pod, &starved, &observations, usages);
    let of_pod = told(&pod, &usages);
    assert_eq!(
        of_pod.message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51Ki. \
         Container c was using 300Mi, request is 100Mi, has larger consumption of memory. "
    );
    let facts = [
        ("offending_containers", "c"),
        ("offending_containers_usage", "300Mi"),
        ("starved_resource", "memory"),
    ];
    let facts = facts.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(of_pod.annotations, facts.into());
    let mut whole = pod.clone();
    whole.spec.as_mut().unwrap().resources =
        serde_json::from_value(json!({"requests": {"memory": "200Mi"}})).unwrap();
    let of_whole = told(&whole, &usages);
    let pods = "Pod p was using 300Mi, request is 200Mi, has larger consumption of memory. ";
    assert!(of_whole.message.contains(pods), "{}", of_whole.message);
    assert_eq!(of_whole.annotations["offending_pod_usage"], "300Mi");
    let unknown = told(&pod, &Usages::new());
    assert!(unknown.annotations.is_empty() && unknown.message.ends_with("available: 51Ki. "));
}

#[test]
fn a_container_that_only_has_a_limit_has_no_request_in_the_message() {
    let (starved, observations) = threshold(Signal::NodeFsAvailable);
    let mut pod = pod("p", 0, None);
    pod.spec.as_mut().unwrap().containers[0].resources =
        serde_json::from_value(json!({"limits": {"ephemeral-storage": "1Gi"}})).unwrap();
    let usages: Usages = [("p".to_owned(), using(1 << 20))].into();
    let told = told(&pod, &starved, &observations, &usages);
    let text =
        "Container c was using 1Mi, request is 0, has larger consumption of ephemeral-storage. ";
    assert!(told.message.ends_with(text), "{}", told.message);
}

proptest! {
    /// Whatever the pods are: everybody but the critical is ranked, in an order that does not depend on
    /// that in which they were seen.
    #[test]
    fn the_ranking_is_total_and_stable_and_spares_critical_pods(
        drawn in prop::collection::vec((0i32..3, 0u64..4, any::<bool>(), 0u8..8), 0..12),
        seed in any::<u64>(),
        signal in prop::sample::select(Signal::ALL.to_vec()),
    ) {
        let mut usages = Usages::new();
        let mut pods: Vec<Pod> = Vec::new();
        for (at, (priority, used, is_known, kind)) in drawn.iter().enumerate() {
            let uid = format!("u{at}");
            let mut pod = pod(&uid, *priority, (kind % 2 == 0).then_some("2"));
            if *kind == 7 {
                let source = json!({"kubernetes.io/config.source": "file"});
                pod.metadata.annotations = serde_json::from_value(source).unwrap();
            }
            if *is_known {
                usages.insert(uid, using(*used));
            }
            pods.push(pod);
        }
        let first = order(signal, &pods, &usages);
        let spared = drawn.iter().filter(|(.., kind)| *kind == 7).count();
        prop_assert_eq!(first.len(), pods.len() - spared);
        let turned = pods.len().max(1);
        pods.rotate_left(usize::try_from(seed % turned as u64).unwrap());
        pods.reverse();
        prop_assert_eq!(first, order(signal, &pods, &usages));
    }
}
