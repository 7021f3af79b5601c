//! Whether the API server shows another status of a pod than the one that was given to it: a
//! controller took a silent node's pods for not ready, or a write was lost with the agent that made it.
//!
//! Only what the node decides is looked at, and of that what a server keeps as it is.

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use super::conditions;

/// Whether what `shown` says is not what `own` says.
pub fn disagree(shown: &PodStatus, own: &PodStatus) -> bool {
    let is_over =
        |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    // A pod that no server has shown yet says nothing, and who has ended it will not have it back.
    if shown.phase.is_none() || (is_over(shown) && !is_over(own)) {
        return false;
    }
    let conditions = own.conditions.iter().flatten();
    let mut decided = conditions.filter(|c| conditions::OWN.contains(&c.type_.as_str()));
    let is_shown = |type_: &str, status: &str| {
        let mut all = shown.conditions.iter().flatten();
        all.any(|c| c.type_ == type_ && c.status == status)
    };
    shown.phase != own.phase
        || shown.pod_ip != own.pod_ip
        || decided.any(|c| !is_shown(&c.type_, &c.status))
        || containers(shown).ne(containers(own))
}

/// What a container's status comes down to.
#[derive(Debug, PartialEq, Eq)]
struct Gist<'a> {
    name: &'a str,
    id: &'a str,
    ready: bool,
    restart_count: i32,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Terminated,
}

fn containers(status: &PodStatus) -> impl Iterator<Item = Gist<'_>> {
    let inits = status.init_container_statuses.iter().flatten();
    let apps = status.container_statuses.iter().flatten();
    let ephemeral = status.ephemeral_container_statuses.iter().flatten();
    inits.chain(apps).chain(ephemeral).map(gist)
}

fn gist(status: &ContainerStatus) -> Gist<'_> {
    let state = status.state.as_ref();
    Gist {
        name: &status.name,
        id: status.container_id.as_deref().unwrap_or_default(),
        ready: status.ready,
        restart_count: status.restart_count,
        state: match state {
            Some(state) if state.running.is_some() => State::Running,
            Some(state) if state.terminated.is_some() => State::Terminated,
            _ => State::Waiting,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(change: impl FnOnce(&mut Value)) -> PodStatus {
        let mut status = json!({
            "phase": "Running",
            "podIP": "10.0.0.5",
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "example.com/gate", "status": "True"},
            ],
            "containerStatuses": [{
                "name": "c", "containerID": "berth://1", "ready": true, "restartCount": 0,
                "image": "i", "imageID": "i", "state": {"running": {}},
            }],
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn what_others_say_of_the_node_s_own_is_a_dispute_and_nothing_else_is() {
        let own = status(|_| ());
        let disputed = |change: fn(&mut Value)| disagree(&status(change), &own);
        assert!(!disputed(|_| ()));
        assert!(disputed(|s| s["conditions"][0]["status"] = json!("False")), "not ready");
        assert!(disputed(|s| s["phase"] = json!("Pending")), "a write was lost");
        assert!(disputed(|s| s["containerStatuses"][0]["restartCount"] = json!(1)));
        assert!(disputed(|s| s["containerStatuses"][0]["state"] = json!({"waiting": {}})));
        assert!(!disputed(|s| s["conditions"][1]["status"] = json!("False")), "another's");
        assert!(!disputed(|s| s["conditions"][0]["lastTransitionTime"] = Value::Null));
        assert!(!disputed(|s| s["phase"] = Value::Null), "not shown yet");
        assert!(!disputed(|s| s["phase"] = json!("Failed")), "a terminal phase stays");
    }
}
