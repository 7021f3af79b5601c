//! Images that secrets opened, and pods that come after.

use super::*;

/// A pod that wants `img:1`, with this pull secret or none.
fn wanting(name: &str, secret: Option<&str>, policy: &str) -> Value {
    let mut pod = pod(name, &format!("uid-{name}"), "Always");
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    if let Some(secret) = secret {
        pod["spec"]["imagePullSecrets"] = json!([{"name": secret}]);
    }
    pod
}

async fn waiting(node: &mut Node, pod: Value) -> Value {
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    node.apply(pod).await;
    node.pass(SECOND).await;
    state(&node.status(&name))["state"]["waiting"]["reason"].clone()
}

#[tokio::test(start_paused = true)]
async fn an_image_stays_with_those_whose_secrets_open_it() {
    let mut node = Node::new();
    node.images.closed.lock().unwrap().insert("img:1".into(), "right".into());
    assert_eq!(
        waiting(&mut node, wanting("first", Some("right"), "IfNotPresent")).await,
        Value::Null
    );
    assert_eq!(node.reasons(), ["Pulling", "Pulled", "Created", "Started"]);
    assert_eq!(
        waiting(&mut node, wanting("same", Some("right"), "IfNotPresent")).await,
        Value::Null
    );
    assert_eq!(node.reasons(), ["Pulled", "Created", "Started"], "nobody was asked");
    assert_eq!(waiting(&mut node, wanting("never", Some("right"), "Never")).await, Value::Null);
    node.reasons();
    let denied = ["ErrImagePull", "ImagePullBackOff"];
    for (name, secret) in [("without", None), ("other", Some("wrong"))] {
        let reason = waiting(&mut node, wanting(name, secret, "IfNotPresent")).await;
        assert!(denied.contains(&reason.as_str().unwrap()), "{name}: {reason}");
        let reasons = node.reasons();
        assert!(reasons.iter().any(|reason| reason == "Pulling"), "{name}: {reasons:?}");
    }
    let reason = waiting(&mut node, wanting("barred", None, "Never")).await;
    assert_eq!(reason, "ErrImageNeverPull");
    // Who needed none is let in: the registry opens it to everybody now.
    node.images.closed.lock().unwrap().clear();
    assert_eq!(waiting(&mut node, wanting("later", None, "IfNotPresent")).await, Value::Null);
    node.reasons();
    assert_eq!(waiting(&mut node, wanting("latest", Some("wrong"), "Never")).await, Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_container_restarts_with_the_image_that_it_had_also_when_its_secret_is_gone() {
    let mut node = Node::new();
    node.images.closed.lock().unwrap().insert("img:1".into(), "right".into());
    assert_eq!(waiting(&mut node, wanting("p", Some("right"), "IfNotPresent")).await, Value::Null);
    node.kill_agent().await;
    node.start_agent();
    node.apply(wanting("p", None, "IfNotPresent")).await;
    node.pass(SECOND).await;
    assert!(node.runtime.exit("uid-p", "c", 1));
    node.pass(30 * SECOND).await;
    let status = state(&node.status("p"));
    assert_eq!(status["restartCount"], 1, "{status}");
    assert!(status["state"]["running"].is_object(), "{status}");
    let reason = waiting(&mut node, wanting("new", None, "IfNotPresent")).await;
    assert!(reason.is_string(), "a pod that never had it does not get it");
}

#[tokio::test(start_paused = true)]
async fn what_a_pull_brought_that_failed_is_not_everybodys() {
    let mut node = Node::new();
    node.images.torn.lock().unwrap().insert("img:1".into());
    let reason = waiting(&mut node, wanting("first", None, "IfNotPresent")).await;
    assert!(reason.is_string());
    let barred = waiting(&mut node, wanting("barred", None, "Never")).await;
    assert_eq!(barred, "ErrImageNeverPull");
    node.images.torn.lock().unwrap().clear();
    assert_eq!(waiting(&mut node, wanting("second", None, "IfNotPresent")).await, Value::Null);
    assert_eq!(waiting(&mut node, wanting("third", None, "Never")).await, Value::Null);
}
