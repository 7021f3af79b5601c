//! An API server that is away for hours, on the fake node.

use std::time::Duration;

use super::{Node, SECOND, pod, state};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn six_hours_without_an_api_server_harm_no_pod_and_are_told_of_afterwards() {
    let node = Node::new();
    node.apply(pod("steady", "u1", "Always")).await;
    node.apply(pod("fails", "u2", "Always")).await;
    node.pass(SECOND * 2).await;
    let asked = || node.api.state.lock().unwrap().requests.len();
    let before = asked();
    node.api.state.lock().unwrap().failing = Some((u32::MAX, 503));
    for _ in 0..6 {
        assert!(node.runtime.exit("u2", "c", 1));
        node.pass(HOUR).await;
        let running = ["u1", "u2"].map(|uid| node.runtime.running(uid).len());
        assert_eq!(running, [1, 1]);
    }
    let during = asked() - before;
    assert!((400..1500).contains(&during), "{during} requests in six hours");
    node.api.state.lock().unwrap().failing = None;
    let told = node.api.statuses("fails").len();
    node.pass(SECOND * 40).await;
    let statuses = node.api.statuses("fails");
    let last = &statuses.last().unwrap()["containerStatuses"][0];
    assert_eq!(statuses.len(), told + 1, "the newest status, once");
    assert_eq!((&last["restartCount"], &last["ready"]), (&6.into(), &true.into()));
    assert_eq!(state(&node.status("steady"))["restartCount"], 0);
}
