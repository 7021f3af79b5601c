//! Volumes follow what they are filled from, at once.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Node, SECOND, pod};

fn with_config_map(name: &str, uid: &str) -> Value {
    let mut pod = pod(name, uid, "Always");
    pod["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "x"}}]);
    pod
}

#[tokio::test(start_paused = true)]
async fn volumes_that_can_change_are_filled_anew_and_at_once_when_the_pod_changes() {
    let node = Node::new();
    let mut pod = with_config_map("p", "u1");
    node.apply(pod.clone()).await;
    node.pass(SECOND).await;
    let prepared = || *node.materials.preparations.lock().unwrap();
    assert_eq!(prepared(), 1);
    node.pass(SECOND * 370).await;
    assert_eq!(prepared(), 2);
    pod["metadata"]["labels"] = json!({"new": "label"});
    node.apply(pod).await;
    node.pass(Duration::from_millis(100)).await;
    assert_eq!(prepared(), 3);
}

#[tokio::test(start_paused = true)]
async fn volumes_are_filled_anew_at_once_when_their_sources_change() {
    let node = Node::new();
    node.apply(with_config_map("p", "u1")).await;
    node.apply(pod("other", "u2", "Always")).await;
    node.pass(SECOND).await;
    let prepared = || *node.materials.preparations.lock().unwrap();
    assert_eq!(prepared(), 2);
    node.materials.sources.send_modify(|count| *count += 1);
    node.pass(Duration::from_millis(100)).await;
    assert_eq!(prepared(), 3, "a pod whose volumes never change is left alone");
}

#[tokio::test(start_paused = true)]
async fn what_failed_for_want_of_an_object_does_not_wait_once_it_is_there() {
    let node = Node::new();
    *node.materials.volume_failure.lock().unwrap() = Some("configmap \"x\" not found".into());
    node.apply(with_config_map("p", "u1")).await;
    // By now the tries are half a minute apart.
    node.pass(SECOND * 200).await;
    *node.materials.volume_failure.lock().unwrap() = None;
    *node.materials.config_failure.lock().unwrap() = Some("secret \"y\" not found".into());
    node.materials.sources.send_modify(|count| *count += 1);
    node.pass(Duration::from_millis(500)).await;
    assert!(node.materials.mounted.lock().unwrap().contains("u1"));
    node.pass(SECOND * 200).await;
    *node.materials.config_failure.lock().unwrap() = None;
    node.materials.sources.send_modify(|count| *count += 1);
    node.pass(Duration::from_millis(500)).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_side_by_side_unless_one_at_a_time_was_said() {
    for (node, after_one) in [(Node::new(), 2), (Node::with_one_pull(), 1)] {
        *node.images.takes.lock().unwrap() = SECOND * 10;
        for (name, image) in [("p", "one:1"), ("q", "other:1")] {
            let mut pod = pod(name, name, "Always");
            pod["spec"]["containers"][0]["image"] = json!(image);
            node.apply(pod).await;
        }
        let running =
            || ["p", "q"].iter().map(|uid| node.runtime.running(uid).len()).sum::<usize>();
        node.pass(SECOND * 11).await;
        assert_eq!(running(), after_one);
        node.pass(SECOND * 10).await;
        assert_eq!(running(), 2);
    }
}
