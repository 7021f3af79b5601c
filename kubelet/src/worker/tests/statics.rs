//! Static pods and their mirrors on the fake node. The names of upstream's suites: `MirrorPod …`,
//! `StaticPod …`, `Standalone …`.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Node, SECOND, pod};
use crate::source::Event;
use crate::static_pods::manifest;

fn file(image: &str) -> Pod {
    named("web", image)
}

pub(super) fn named(name: &str, image: &str) -> Pod {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: ns}}, \
         spec: {{containers: [{{name: c, image: \"{image}\"}}]}}}}"
    );
    let path = format!("/etc/pods/{name}.yaml");
    manifest::pod(&text, Path::new(&path), "node-1").unwrap()
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap()
}

/// The bodies of the mirrors that were made.
pub(super) fn made(node: &Node) -> Vec<Value> {
    let state = node.api.state.lock().unwrap();
    let posts = state.requests.iter().filter(|(m, p, _)| m == "POST" && p.ends_with("/pods"));
    posts.map(|(_, _, body)| body.clone()).collect()
}

/// "should successfully recreate when file is removed and recreated", "the pod should be running
/// without API server".
#[tokio::test(start_paused = true)]
async fn a_static_pod_runs_without_an_api_server_and_goes_with_its_file() {
    let node = Node::with_files();
    let web = file("img:1");
    node.tell_files(vec![web.clone()]).await;
    node.pass(SECOND * 2).await;
    assert_eq!(node.runtime.running(&uid(&web)), ["c"]);
    assert!(made(&node).is_empty(), "nobody was asked");
    node.runtime.state().stubborn.insert("c".into());
    node.tell_files(Vec::new()).await;
    node.pass(SECOND).await;
    // Back before it is gone: it ends, and runs again.
    node.tell_files(vec![web.clone()]).await;
    node.pass(SECOND * 20).await;
    assert_eq!(node.runtime.state().history, ["start c", "signal c"]);
    node.pass(SECOND * 20).await;
    assert_eq!(node.runtime.state().history, ["start c", "signal c", "exit c 137", "start c"]);
    let status = node.shelf.find("ns", "web-node-1").unwrap().status.unwrap();
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 1, "it is the same pod");
    node.tell_files(Vec::new()).await;
    node.pass(SECOND * 40).await;
    assert!(node.runtime.state().sandboxes.is_empty());
    assert!(node.records().is_empty());
    assert_eq!(node.runtime.state().most_live, 1);
}

/// "mirror pod: should be updated when static pod updated", "… should be recreated when mirror pod
/// gracefully/forcibly deleted", "… should have its status".
#[tokio::test(start_paused = true)]
async fn its_mirror_is_made_with_its_status_and_made_again_when_deleted() {
    let node = Node::with_files();
    let web = file("img:1");
    node.tell_files(vec![web.clone()]).await;
    node.tell(Event::Synced(Vec::new())).await;
    node.pass(SECOND * 3).await;
    let mirrors = made(&node);
    assert_eq!(mirrors.len(), 1);
    let annotations = &mirrors[0]["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.mirror"], uid(&web));
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(
        (&mirrors[0]["metadata"]["name"], mirrors[0]["metadata"].get("uid")),
        (&json!("web-node-1"), None)
    );
    let status = node.api.statuses("web-node-1").last().unwrap().clone();
    assert_eq!(status["phase"], "Running");
    let patched = |node: &Node| {
        let state = node.api.state.lock().unwrap();
        let mut patches = state.requests.iter().rev().filter(|(m, ..)| m == "PATCH");
        patches.next().unwrap().2["metadata"]["uid"].clone()
    };
    assert_eq!(patched(&node), "mirror-1");
    let mut gone = mirrors[0].clone();
    gone["metadata"]["uid"] = json!("mirror-1");
    node.tell(Event::Deleted(serde_json::from_value(gone).unwrap())).await;
    node.pass(SECOND * 3).await;
    assert_eq!((made(&node).len(), patched(&node)), (2, json!("mirror-2")));
    assert_eq!(node.runtime.state().history, ["start c"], "the pod never noticed");
    let newer = file("img:2");
    node.tell_files(vec![newer.clone()]).await;
    node.pass(SECOND * 5).await;
    assert_eq!(node.runtime.running(&uid(&newer)), ["c"]);
    assert!(node.runtime.running(&uid(&web)).is_empty());
    assert_eq!((made(&node).len(), node.api.deletions("web-node-1")), (3, 1));
    node.tell_files(Vec::new()).await;
    node.pass(SECOND * 5).await;
    assert_eq!((made(&node).len(), node.api.deletions("web-node-1")), (3, 2));
    assert!(node.runtime.state().sandboxes.is_empty());
}

/// "kubelet restarts should not change container status"
#[tokio::test(start_paused = true)]
async fn a_restarted_agent_keeps_its_static_pods_and_the_server_cannot_take_them() {
    let mut node = Node::with_files();
    let web = file("img:1");
    node.tell_files(vec![web.clone()]).await;
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND * 2).await;
    node.kill_agent().await;
    node.start_agent();
    node.tell(Event::Synced(Vec::new())).await;
    node.pass(SECOND * 3).await;
    assert_eq!(node.runtime.running(&uid(&web)), ["c"], "it is none of the server's");
    assert!(node.runtime.running("u1").is_empty());
    node.tell_files(vec![web.clone()]).await;
    node.pass(SECOND * 3).await;
    assert_eq!(node.runtime.running(&uid(&web)), ["c"]);
    assert_eq!(node.runtime.state().sandboxes.len(), 1);
    // A file that went away while the agent was not there.
    node.kill_agent().await;
    node.start_agent();
    node.tell_files(Vec::new()).await;
    node.pass(SECOND * 3).await;
    assert!(node.runtime.state().sandboxes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_server_cannot_claim_to_be_a_file() {
    let node = Node::with_files();
    let mut claimed = pod("p", "u1", "Always");
    claimed["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
    node.apply(claimed).await;
    node.tell_files(Vec::new()).await;
    node.pass(SECOND * 2).await;
    assert_eq!(node.runtime.running("u1"), ["c"], "no file's absence ends it");
    assert_eq!(node.api.statuses("p").last().unwrap()["phase"], "Running");
}

/// "mirror pod termination should satisfy grace period when static pod is deleted", "… is updated",
/// "should update a static pod when the static pod is updated multiple times during the graceful
/// termination period".
#[tokio::test(start_paused = true)]
async fn its_mirror_stays_until_what_it_shows_has_ended() {
    let node = Node::with_files();
    node.tell_files(vec![file("img:1")]).await;
    node.tell(Event::Synced(Vec::new())).await;
    node.pass(SECOND * 3).await;
    node.runtime.state().stubborn.insert("c".into());
    let counts = || (made(&node).len(), node.api.deletions("web-node-1"));
    for image in 2..=20 {
        node.tell_files(vec![file(&format!("img:{image}"))]).await;
        node.pass(SECOND).await;
        assert_eq!(counts(), (1, 0), "{image}");
    }
    node.pass(SECOND * 20).await;
    assert_eq!(counts(), (2, 1));
    assert_eq!(made(&node)[1]["spec"]["containers"][0]["image"], "img:20");
    assert_eq!(node.runtime.running(&uid(&file("img:20"))), ["c"]);
    node.tell_files(Vec::new()).await;
    node.pass(SECOND * 20).await;
    assert_eq!(counts(), (2, 1));
    node.pass(SECOND * 20).await;
    assert_eq!(counts(), (2, 2));
    assert_eq!(node.runtime.state().most_live, 1);
}
