//! The row of a pod. STATUS is not the phase: the most telling reason of its containers wins, the
//! order of which is upstream's printer's.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{age, or};
use crate::object::{ObjectExt, parse_stamp};

/// What the container statuses add up to.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status.int("/restartCount").unwrap_or(0);
        let finished = parse_stamp(status.text("/lastState/terminated/finishedAt"));
        self.last_restart = self.last_restart.max(finished);
    }
}

/// The cells of a pod.
pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, age(&at.to_string(), now))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = match pod.text("/status/podIPs/0/ip") {
        "" => pod.text("/status/podIP"),
        ip => ip,
    };
    vec![
        pod.name().into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod.text("/metadata/creationTimestamp"), now).into(),
        or(ip, "<none>").into(),
        or(pod.text("/spec/nodeName"), "<none>").into(),
        or(pod.text("/status/nominatedNodeName"), "<none>").into(),
        gates(pod).into(),
    ]
}

fn gates(pod: &Value) -> String {
    let gates = pod.list("/spec/readinessGates");
    let passed = gates.iter().filter(|gate| condition(pod, gate.text("/conditionType"))).count();
    match gates.len() {
        0 => "<none>".into(),
        all => format!("{passed}/{all}"),
    }
}

fn condition(pod: &Value, kind: &str) -> bool {
    pod.list("/status/conditions")
        .iter()
        .any(|one| one.text("/type") == kind && one.text("/status") == "True")
}

fn summarize(pod: &Value) -> Summary {
    let phase = pod.text("/status/phase");
    let gated = pod
        .list("/status/conditions")
        .iter()
        .any(|one| one.text("/type") == "PodScheduled" && one.text("/reason") == "SchedulingGated");
    let reason = match (gated, pod.text("/status/reason")) {
        (true, _) => "SchedulingGated",
        (false, "") => phase,
        (false, reason) => reason,
    };
    let sidecars: Vec<&str> = pod
        .list("/spec/initContainers")
        .iter()
        .filter(|one| one.text("/restartPolicy") == "Always")
        .map(|one| one.text("/name"))
        .collect();
    let mut summary = Summary {
        reason: reason.to_owned(),
        ready: 0,
        total: pod.list("/spec/containers").len() + sidecars.len(),
        restarts: 0,
        last_restart: None,
    };
    let initializing = summarize_init(pod, &sidecars, &mut summary);
    if !initializing || condition(pod, "Initialized") {
        summarize_main(pod, &sidecars, &mut summary);
    }
    if pod.is_terminating() {
        if pod.text("/status/reason") == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".into();
        }
    }
    summary
}

/// Returns whether an init container is still to finish.
fn summarize_init(pod: &Value, sidecars: &[&str], summary: &mut Summary) -> bool {
    let all = pod.list("/spec/initContainers").len();
    for (index, status) in pod.list("/status/initContainerStatuses").iter().enumerate() {
        summary.count_restarts(status);
        let sidecar = sidecars.contains(&status.text("/name"));
        let exit = status.int("/state/terminated/exitCode");
        if status.has("/state/terminated") && exit.unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && status.flag("/started") {
            summary.ready += usize::from(status.flag("/ready"));
            continue;
        }
        let waiting = status.text("/state/waiting/reason");
        summary.reason = if status.has("/state/terminated") {
            format!("Init:{}", ended(status))
        } else if !matches!(waiting, "" | "PodInitializing") {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{all}")
        };
        return true;
    }
    false
}

fn summarize_main(pod: &Value, sidecars: &[&str], summary: &mut Summary) {
    summary.restarts = 0;
    summary.last_restart = None;
    for status in pod.list("/status/initContainerStatuses") {
        if sidecars.contains(&status.text("/name")) {
            summary.count_restarts(status);
        }
    }
    let mut running = false;
    for status in pod.list("/status/containerStatuses").iter().rev() {
        summary.count_restarts(status);
        let waiting = status.text("/state/waiting/reason");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if status.has("/state/terminated") {
            summary.reason = ended(status);
        } else if status.flag("/ready") && status.has("/state/running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = condition(pod, "Ready");
        summary.reason = if ready { "Running" } else { "NotReady" }.into();
    }
}

/// Why a container ended.
fn ended(status: &Value) -> String {
    let terminated = status.pointer("/state/terminated").cloned().unwrap_or(json!({}));
    match (terminated.text("/reason"), terminated.int("/signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated.int("/exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(pod: Value) -> (String, String) {
        let cells = cells(&pod, Timestamp::now());
        let text = |at: usize| cells[at].as_str().unwrap().to_owned();
        (text(1), text(2))
    }

    fn pod(containers: usize, status: Value) -> Value {
        let containers: Vec<Value> =
            (0..containers).map(|n| json!({"name": n.to_string()})).collect();
        json!({"metadata": {"name": "x"}, "spec": {"containers": containers,
            "initContainers": [{"name": "i"}, {"name": "j"}]}, "status": status})
    }

    #[test]
    fn a_running_pod_counts_its_ready_containers() {
        let status = json!({"phase": "Running", "containerStatuses": [
            {"ready": true, "state": {"running": {}}}, {"ready": false, "state": {"running": {}}}]});
        assert_eq!(status_of(pod(2, status)), ("1/2".into(), "Running".into()));
    }

    #[test]
    fn the_reason_of_a_container_wins_over_the_phase() {
        let waiting = json!({"phase": "Pending", "containerStatuses": [
            {"state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
        assert_eq!(status_of(pod(1, waiting)).1, "ImagePullBackOff");
        let killed = json!({"phase": "Failed", "containerStatuses": [
            {"state": {"terminated": {"signal": 9, "exitCode": 137}}}]});
        assert_eq!(status_of(pod(1, killed)).1, "Signal:9");
    }

    #[test]
    fn init_containers_are_counted_until_they_are_done() {
        let first = json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}},
            {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]});
        assert_eq!(status_of(pod(1, first)).1, "Init:1/2");
        let failed = json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}]});
        assert_eq!(status_of(pod(1, failed)).1, "Init:Error");
    }

    #[test]
    fn a_deleted_pod_is_terminating_until_it_has_ended() {
        let mut gone = pod(1, json!({"phase": "Running"}));
        gone.put("/metadata/deletionTimestamp", "2026-01-01T00:00:00Z");
        assert_eq!(status_of(gone.clone()).1, "Terminating");
        gone.put("/status/phase", "Succeeded");
        assert_eq!(status_of(gone).1, "Succeeded");
    }
}
