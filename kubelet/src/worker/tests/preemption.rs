//! Critical pods that others make room for, on the fake node. The names of upstream's suite:
//! `CriticalPod`.

use serde_json::{Value, json};

use super::{Node, SECOND, deleted, pod};

/// A pod of a node with room for two; an urgent one takes the place of another.
fn guest(name: &str, urgent: bool) -> Value {
    let mut pod = pod(name, &format!("uid-{name}"), "Always");
    pod["metadata"]["labels"] = json!({"room": "2"});
    if urgent {
        pod["metadata"]["labels"]["urgent"] = json!("yes");
    }
    pod["spec"]["containers"][0]["name"] = json!(name);
    pod
}

async fn full_node() -> Node {
    let node = Node::new();
    for name in ["a", "b"] {
        node.apply(guest(name, false)).await;
    }
    node.pass(SECOND).await;
    node
}

/// "should be able to create and delete a critical pod", "should add DisruptionTarget condition to
/// the preempted pod".
#[tokio::test(start_paused = true)]
async fn a_critical_pod_waits_until_its_victim_has_ended() {
    let mut node = full_node().await;
    node.runtime.state().stubborn.insert("a".into());
    node.messages();
    node.apply(guest("critical", true)).await;
    node.pass(SECOND * 5).await;
    assert_eq!(node.runtime.running("uid-a"), ["a"], "it has its grace");
    assert!(node.runtime.running("uid-critical").is_empty());
    let status = node.status("a");
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let target = |status: &k8s_openapi::api::core::v1::PodStatus| {
        let conditions = status.conditions.clone().unwrap_or_default();
        conditions.into_iter().find(|c| c.type_ == "DisruptionTarget")
    };
    let condition = target(&status).unwrap();
    assert_eq!(condition.reason.as_deref(), Some("TerminationByKubelet"));
    assert!(node.messages().contains(&"Preempted in order to admit critical pod".to_owned()));

    node.pass(SECOND * 30).await;
    assert_eq!(node.runtime.running("uid-critical"), ["critical"]);
    assert_eq!(node.runtime.running("uid-b"), ["b"], "one was enough");
    let status = node.status("a");
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("Preempting"))
    );
    assert!(target(&status).is_some());
    // The victim is not started again, whatever its restart policy.
    node.pass(SECOND * 600).await;
    assert!(node.runtime.running("uid-a").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_victim_that_does_not_end_is_told_of() {
    let mut node = full_node().await;
    node.runtime.state().failures.insert("stop_container", u32::MAX);
    node.apply(guest("critical", true)).await;
    let late = "Container runtime did not kill the pod within specified grace period.".to_owned();
    node.pass(SECOND * 44).await;
    assert!(!node.messages().contains(&late));
    node.pass(SECOND * 2).await;
    assert_eq!(node.messages().iter().filter(|message| **message == late).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_fits_once_the_victims_are_gone_waits_with_the_others() {
    let node = full_node().await;
    node.runtime.state().stubborn.extend(["a".into(), "b".into()]);
    node.apply(guest("critical", true)).await;
    node.apply(guest("urgent", true)).await;
    node.pass(SECOND).await;
    node.apply(guest("late", false)).await;
    node.pass(SECOND).await;
    let late = node.status("late");
    assert_eq!(late.reason.as_deref(), Some("OutOfpods"), "both places are taken");
    node.pass(SECOND * 40).await;
    assert_eq!(node.runtime.running("uid-critical"), ["critical"]);
    assert_eq!(node.runtime.running("uid-urgent"), ["urgent"]);
    for victim in ["a", "b"] {
        assert_eq!(node.status(victim).reason.as_deref(), Some("Preempting"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_while_it_waits_never_runs() {
    let node = full_node().await;
    node.runtime.state().stubborn.insert("a".into());
    node.apply(guest("critical", true)).await;
    node.pass(SECOND).await;
    node.apply(deleted(guest("critical", true), 0)).await;
    node.pass(SECOND * 60).await;
    assert!(!node.runtime.state().history.contains(&"start critical".to_owned()));
    assert!(node.shelf.find("ns", "critical").is_none());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_meanwhile_judges_anew() {
    let mut node = full_node().await;
    node.runtime.state().stubborn.insert("a".into());
    node.apply(guest("critical", true)).await;
    node.pass(SECOND).await;
    node.kill_agent().await;
    node.start_agent();
    let pods = [guest("a", false), guest("b", false), guest("critical", true)];
    let pods = pods.map(|pod| serde_json::from_value(pod).unwrap());
    node.tell(crate::source::Event::Synced(pods.into())).await;
    node.pass(SECOND * 60).await;
    assert_eq!(node.runtime.running("uid-critical"), ["critical"]);
    let left: usize = ["uid-a", "uid-b"].iter().map(|uid| node.runtime.running(uid).len()).sum();
    assert_eq!(left, 1);
}
