//! Pods that end as the node goes down, on the fake node.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

use super::{Node, SECOND, pod};
use crate::eviction::{Cause, Eviction, Order};
use crate::shutdown::{MESSAGE, is_of_shutdown};
use crate::source::Event;

impl Node {
    async fn shut_down(&self, uid: &str, seconds: u32) {
        let (message, cause) = (MESSAGE.to_owned(), Cause::Shutdown);
        let eviction = Eviction { message, grace: SECOND * seconds, cause };
        let agent = self.agent.as_ref().unwrap();
        agent.evictions.send(Order::End { uid: uid.to_owned(), eviction }).await.unwrap();
    }
}

fn told(status: &PodStatus) -> [Option<&str>; 3] {
    [status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref()]
}

const ENDED: [Option<&str>; 3] = [
    Some("Failed"),
    Some("Terminated"),
    Some("Pod was terminated in response to imminent node shutdown."),
];

fn has_condition(status: &Value, condition: &Value) -> bool {
    status["conditions"].as_array().is_some_and(|all| all.contains(condition))
}

fn file(name: &str) -> Pod {
    super::statics::named(name, "img:1")
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_its_own_grace_or_the_buckets_and_stays_ended_after_the_reboot() {
    let mut node = Node::new();
    node.runtime.state().stubborn.insert("c".into());
    let mut short = pod("short", "u2", "Always");
    short["spec"]["terminationGracePeriodSeconds"] = json!(3);
    node.apply(pod("p", "u1", "Always")).await;
    node.apply(short).await;
    node.pass(SECOND).await;
    for uid in ["u1", "u2"] {
        node.shut_down(uid, 10).await;
    }
    node.pass(SECOND * 4).await;
    assert_eq!((node.runtime.running("u1").len(), node.runtime.running("u2").len()), (1, 0));
    node.pass(SECOND * 7).await;
    for name in ["p", "short"] {
        let status = node.status(name);
        assert_eq!(told(&status), ENDED, "{name}");
        let conditions = status.conditions.unwrap();
        let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
        assert_eq!(
            [Some(target.status.as_str()), target.reason.as_deref(), target.message.as_deref()],
            [Some("True"), Some("TerminationByKubelet"), Some(MESSAGE)]
        );
    }
    assert!(node.shelf.shown().iter().all(|shown| shown.is_cleared()));

    node.kill_agent().await;
    node.runtime.state().sandboxes.clear();
    node.start_agent();
    let known = pod("p", "u1", "Always");
    node.tell(Event::Synced(vec![serde_json::from_value(known).unwrap()])).await;
    node.pass(SECOND * 60).await;
    assert!(node.runtime.running("u1").is_empty(), "it does not begin again");
    assert_eq!(told(&node.status("p")), ENDED);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_evicted_already_has_no_more_time_and_keeps_its_reason() {
    let node = Node::new();
    node.runtime.state().stubborn.insert("c".into());
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    let message = "The node was low on resource: memory. ".to_owned();
    let eviction = Eviction { message, grace: SECOND * 2, cause: Cause::Pressure };
    let agent = node.agent.as_ref().unwrap();
    agent.evictions.send(Order::End { uid: "u1".to_owned(), eviction }).await.unwrap();
    node.shut_down("u1", 20).await;
    node.pass(SECOND * 3).await;
    let status = node.status("p");
    assert_eq!(told(&status)[..2], [Some("Failed"), Some("Evicted")]);
    assert!(!is_of_shutdown(&status));
}

#[tokio::test(start_paused = true)]
async fn static_pods_begin_anew_when_the_node_stays() {
    let node = Node::with_files();
    let (web, other) = (file("web"), file("other"));
    node.tell_files(vec![web.clone(), other.clone()]).await;
    node.tell(Event::Synced(Vec::new())).await;
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND * 2).await;
    node.standing.set(true);
    for uid in [&uid(&web), "u1"] {
        node.shut_down(uid, 1).await;
    }
    node.pass(SECOND * 3).await;
    assert!(node.runtime.running(&uid(&web)).is_empty());
    assert_eq!(node.runtime.running(&uid(&other)), ["c"]);
    let mirrored = node.api.statuses("web-node-1").last().unwrap().clone();
    assert_eq!((&mirrored["phase"], &mirrored["reason"]), (&json!("Failed"), &json!("Terminated")));
    // The server tells of it.
    let mirrors = super::statics::made(&node).into_iter().zip(1..);
    let (mut mirror, number) =
        mirrors.into_iter().find(|(one, _)| one["metadata"]["name"] == "web-node-1").unwrap();
    mirror["metadata"]["uid"] = json!(format!("mirror-{number}"));
    mirror["status"] = mirrored;
    node.apply(mirror).await;
    node.pass(SECOND).await;
    node.standing.set(false);
    node.pass(SECOND * 5).await;
    assert_eq!(node.runtime.running(&uid(&web)), ["c"]);
    assert!(node.runtime.running("u1").is_empty(), "others replace the server's pods");
    let mirrored = node.api.statuses("web-node-1").last().unwrap().clone();
    assert_eq!((&mirrored["phase"], &mirrored["reason"]), (&json!("Running"), &json!(null)));
    let written = node.api.statuses("web-node-1");
    let told = |gone: &Value| written.iter().any(|status| has_condition(status, gone));
    assert!(told(&json!({"$patch": "delete", "type": "DisruptionTarget"})), "{written:?}");
    let signals = node.runtime.state().history.iter().filter(|one| *one == "signal c").count();
    assert_eq!(signals, 2, "who was not told to end went on");
}

#[tokio::test(start_paused = true)]
async fn static_pods_begin_anew_with_the_next_agent() {
    let mut node = Node::with_files();
    let web = file("web");
    node.tell_files(vec![web.clone()]).await;
    node.pass(SECOND * 2).await;
    node.standing.set(true);
    node.shut_down(&uid(&web), 1).await;
    node.pass(SECOND * 3).await;
    let status = node.status("web-node-1");
    assert_eq!(told(&status), ENDED);
    node.kill_agent().await;
    // The reboot.
    node.runtime.state().sandboxes.clear();
    node.start_agent();
    node.tell(Event::Synced(Vec::new())).await;
    node.pass(SECOND).await;
    assert!(node.runtime.running(&uid(&web)).is_empty(), "its file has not been read");
    node.tell_files(vec![web.clone()]).await;
    node.pass(SECOND * 3).await;
    assert_eq!(node.runtime.running(&uid(&web)), ["c"]);
    let status = node.status("web-node-1");
    assert_eq!(told(&status), [Some("Running"), None, None]);
}
