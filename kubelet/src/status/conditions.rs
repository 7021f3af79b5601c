//! The conditions of a pod's status.
//!
//! The kubelet's own conditions are made anew each time and keep their transition time while they do
//! not change; conditions that others set (readiness gates, `DisruptionTarget`) are left as they are.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Input, containers};
use crate::clock;
use crate::worker::memory::Phase;
use crate::worker::runs;

/// The conditions that this agent decides.
pub const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: impl Into<Option<String>>) -> Self {
        Self { holds: false, reason: Some(reason), message: message.into() }
    }
}

/// Makes the conditions of `status`.
pub fn compute(
    input: &Input<'_>,
    status: &PodStatus,
    phase: Phase,
    initialized: bool,
) -> Vec<PodCondition> {
    let sandbox_up = runs::live_sandbox(input.sandboxes).is_some() && !phase.is_terminal();
    let sandbox = Verdict { holds: sandbox_up, reason: None, message: None };
    let containers_ready = containers_ready(status, phase);
    let ready = ready(input, &containers_ready);
    let mut conditions = vec![
        condition(input, "PodReadyToStartContainers", sandbox),
        condition(input, "Initialized", initialized_condition(input, phase, initialized)),
        condition(input, "Ready", ready),
        condition(input, "ContainersReady", containers_ready),
        scheduled(input),
    ];
    let pod = input.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let foreign = pod.into_iter().flatten();
    conditions.extend(foreign.filter(|c| !OWN.contains(&c.type_.as_str())).cloned());
    conditions
}

fn find<'a>(status: Option<&'a PodStatus>, type_: &str) -> Option<&'a PodCondition> {
    let conditions = status?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == type_)
}

fn condition(input: &Input<'_>, type_: &str, verdict: Verdict) -> PodCondition {
    let status = match verdict.holds {
        true => "True",
        false => "False",
    };
    let unchanged = find(Some(input.previous), type_).filter(|c| c.status == status);
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        observed_generation: input.pod.metadata.generation,
        last_transition_time: unchanged
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(second(input.wall))),
        last_probe_time: None,
    }
}

fn second(time: Timestamp) -> Time {
    Time(clock::whole_seconds(time))
}

fn scheduled(input: &Input<'_>) -> PodCondition {
    find(input.pod.status.as_ref(), "PodScheduled")
        .cloned()
        .unwrap_or_else(|| condition(input, "PodScheduled", Verdict::yes()))
}

fn initialized_condition(input: &Input<'_>, phase: Phase, initialized: bool) -> Verdict {
    match phase {
        Phase::Succeeded => Verdict { holds: true, reason: Some("PodCompleted"), message: None },
        _ if initialized => Verdict::yes(),
        _ => Verdict::no(
            "ContainersNotInitialized",
            format!(
                "containers with incomplete status: [{}]",
                containers::incomplete_inits(input).join(" ")
            ),
        ),
    }
}

fn containers_ready(status: &PodStatus, phase: Phase) -> Verdict {
    match phase {
        Phase::Succeeded => return Verdict::no("PodCompleted", None),
        Phase::Failed => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let unready: Vec<&str> = status
        .container_statuses
        .iter()
        .flatten()
        .filter(|c: &&ContainerStatus| !c.ready)
        .map(|c| c.name.as_str())
        .collect();
    match unready.is_empty() {
        true => Verdict::yes(),
        false => Verdict::no(
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        ),
    }
}

fn ready(input: &Input<'_>, containers: &Verdict) -> Verdict {
    if !containers.holds {
        return Verdict {
            holds: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let gates = input.pod.spec.as_ref().and_then(|s| s.readiness_gates.as_ref());
    let problems: Vec<String> = gates
        .into_iter()
        .flatten()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match find(input.pod.status.as_ref(), name) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{name}\" does not exist."
                )),
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    match problems.is_empty() {
        true => Verdict::yes(),
        false => Verdict::no("ReadinessGatesNotReady", problems.join(", ")),
    }
}
