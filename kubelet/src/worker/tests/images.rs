//! Images that cannot be had, and how each of the reasons is told.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_had_is_told_and_tried_again() {
    let mut node = Node::new();
    let broken = ("img:1".to_owned(), "manifest unknown".to_owned());
    node.images.broken.lock().unwrap().extend([broken]);
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(Duration::from_millis(500)).await;
    let waiting = state(&node.status("p"))["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "ErrImagePull");
    node.pass(SECOND).await;
    let waiting = state(&node.status("p"))["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "ImagePullBackOff");
    let message = waiting["message"].as_str().unwrap();
    let begin = "Back-off pulling image \"img:1\": ErrImagePull: ";
    assert!(message.starts_with(begin), "{message}");
    let reasons = node.reasons();
    assert_eq!(reasons, ["Pulling", "Failed", "Failed", "BackOff", "Failed"]);
    node.images.broken.lock().unwrap().clear();
    node.pass(SECOND * 10).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_none_is_told_as_such() {
    let node = Node::new();
    let mut pod = pod("p", "u1", "Always");
    pod["spec"]["containers"][0]["image"] = json!("no name");
    node.apply(pod).await;
    node.pass(SECOND * 3).await;
    let waiting = state(&node.status("p"))["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "InvalidImageName");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_cannot_be_reached_is_told_and_asked_again() {
    let node = Node::new();
    node.images.unreachable.lock().unwrap().insert("img:1".into());
    node.apply(pod("p", "u1", "Always")).await;
    let waiting = async |pass| {
        node.pass(pass).await;
        state(&node.status("p"))["state"]["waiting"].clone()
    };
    assert_eq!(waiting(Duration::from_millis(500)).await["reason"], "RegistryUnavailable");
    let later = waiting(SECOND).await;
    assert_eq!(later["reason"], "ImagePullBackOff");
    let begin = "Back-off pulling image \"img:1\": RegistryUnavailable: ";
    assert!(later["message"].as_str().unwrap().starts_with(begin), "{later}");
    node.images.unreachable.lock().unwrap().clear();
    node.pass(SECOND * 10).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_told_and_asked_again() {
    let mut node = Node::new();
    node.images.unreadable.lock().unwrap().insert("img:1".into());
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND * 3).await;
    let waiting = state(&node.status("p"))["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "ImageInspectError");
    assert_eq!(waiting["message"], "read image img:1: input/output error");
    assert!(!node.reasons().contains(&"Pulling".to_owned()));
    node.images.unreadable.lock().unwrap().clear();
    node.pass(SECOND * 10).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
}
