//! Pods that end for the node's sake, or for overstepping a limit, on the fake node.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde_json::json;

use super::{Node, SECOND, deleted, pod};
use crate::eviction::{Cause, Eviction, Order};
use crate::shelf::Holds;

const MESSAGE: &str = "The node was low on resource: memory. ";

impl Node {
    async fn evict(&self, uid: &str, cause: Cause, seconds: u32) {
        let eviction = Eviction { message: MESSAGE.to_owned(), grace: SECOND * seconds, cause };
        let agent = self.agent.as_ref().unwrap();
        agent.evictions.send(Order::End { uid: uid.to_owned(), eviction }).await.unwrap();
    }
}

/// How many containers there are a record of.
fn records(node: &Node) -> usize {
    let sandboxes = &node.runtime.state().sandboxes;
    sandboxes.iter().map(|sandbox| sandbox.containers.len()).sum()
}

fn disruption(status: &PodStatus) -> Option<PodCondition> {
    let conditions = status.conditions.clone().unwrap_or_default();
    conditions.into_iter().find(|condition| condition.type_ == "DisruptionTarget")
}

fn verdict(status: &PodStatus) -> [Option<&str>; 3] {
    [status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref()]
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_has_the_evictions_grace_and_ends_for_good() {
    let mut node = Node::new();
    node.runtime.state().stubborn.insert("c".into());
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    node.evict("u1", Cause::Pressure, 5).await;
    node.evict("unknown", Cause::Pressure, 5).await;
    node.pass(SECOND * 4).await;
    let status = node.status("p");
    assert_eq!(verdict(&status), [Some("Running"), None, None], "it runs until its grace is over");
    assert!(disruption(&status).is_some() && !node.shelf.shown()[0].is_cleared());
    node.pass(SECOND * 2).await;
    let status = node.status("p");
    assert_eq!(verdict(&status), [Some("Failed"), Some("Evicted"), Some(MESSAGE)]);
    assert!(
        node.shelf.shown()[0].is_cleared() && node.materials.mounted.lock().unwrap().is_empty()
    );
    let target = disruption(&status).unwrap();
    assert_eq!(
        (target.status.as_str(), target.reason.as_deref(), target.message.as_deref()),
        ("True", Some("TerminationByKubelet"), Some(MESSAGE))
    );

    node.kill_agent().await;
    node.start_agent();
    let known = json!({"status": serde_json::to_value(&status).unwrap()});
    let mut again = pod("p", "u1", "Always");
    again["status"] = known["status"].clone();
    node.apply(again).await;
    node.pass(SECOND * 600).await;
    assert!(node.runtime.running("u1").is_empty(), "an agent that begins anew knows it");
    let again = node.status("p");
    assert_eq!(verdict(&again), verdict(&status));
    assert!(disruption(&again).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_overstepped_a_limit_is_no_target_of_a_disruption() {
    let node = Node::new();
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    node.evict("u1", Cause::Limit, 1).await;
    node.pass(SECOND * 2).await;
    let status = node.status("p");
    assert_eq!(verdict(&status), [Some("Failed"), Some("Evicted"), Some(MESSAGE)]);
    assert_eq!(disruption(&status), None);
}

#[tokio::test(start_paused = true)]
async fn an_eviction_never_makes_an_end_longer_and_shortens_one_under_way() {
    let node = Node::new();
    node.runtime.state().stubborn.insert("c".into());
    for (uid, seconds) in [("u1", 100), ("u2", 3)] {
        let pod = pod(uid, uid, "Always");
        node.apply(pod.clone()).await;
        node.pass(SECOND).await;
        node.apply(deleted(pod, 20)).await;
        node.pass(SECOND).await;
        node.evict(uid, Cause::Pressure, seconds).await;
    }
    node.pass(SECOND * 4).await;
    assert_eq!((node.runtime.running("u1").len(), node.runtime.running("u2").len()), (1, 0));
    node.pass(SECOND * 20).await;
    assert!(node.runtime.state().sandboxes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_gives_up_what_its_containers_left_and_keeps_its_status() {
    let mut node = Node::new();
    node.apply(pod("p", "u1", "Never")).await;
    node.pass(SECOND).await;
    assert!(node.runtime.exit("u1", "c", 3));
    node.pass(SECOND).await;
    let ended = node.status("p");
    assert_eq!((records(&node), node.shelf.shown()[0].holds), (1, Holds::Remains));
    let clear = Order::Clear { uid: "u1".to_owned() };
    node.agent.as_ref().unwrap().evictions.send(clear).await.unwrap();
    node.pass(SECOND).await;
    assert_eq!((records(&node), node.shelf.shown()[0].holds), (0, Holds::Nothing));
    assert_eq!(node.status("p"), ended);

    node.kill_agent().await;
    node.start_agent();
    let mut again = pod("p", "u1", "Never");
    again["status"] = serde_json::to_value(&ended).unwrap();
    node.apply(again).await;
    node.pass(SECOND * 60).await;
    assert_eq!((records(&node), node.status("p")), (0, ended), "it does not run again");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_not_started_is_evicted_too() {
    let node = Node::new();
    *node.images.takes.lock().unwrap() = SECOND * 100;
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    node.evict("u1", Cause::Pressure, 1).await;
    node.pass(SECOND * 3).await;
    assert_eq!(verdict(&node.status("p")), [Some("Failed"), Some("Evicted"), Some(MESSAGE)]);
}

/// Not on a paused clock, where no time passes between a look and what it does. Sidecars and containers
/// with a long grace had SIGTERM again at each look.
#[tokio::test]
async fn looks_within_the_grace_send_no_further_signal() {
    let node = Node::new();
    node.runtime.state().stubborn.insert("c".into());
    let mut pod = pod("p", "u1", "Always");
    node.apply(pod.clone()).await;
    let patience = tokio::time::Instant::now() + SECOND * 30;
    while node.runtime.running("u1").is_empty() && tokio::time::Instant::now() < patience {
        tokio::time::sleep(SECOND / 100).await;
    }
    pod = deleted(pod, 600);
    for look in 0..20 {
        pod["metadata"]["labels"] = json!({"look": look.to_string()});
        node.apply(pod.clone()).await;
        tokio::time::sleep(SECOND / 100).await;
    }
    let signals = || {
        let history = node.runtime.state().history.clone();
        history.iter().filter(|one| one.starts_with("signal c")).count()
    };
    // On a busy machine the first one may come late.
    while signals() == 0 && tokio::time::Instant::now() < patience {
        tokio::time::sleep(SECOND / 100).await;
    }
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!(signals(), 1);
}
