//! The conditions of a pod's status.
//!
//! The kubelet's own conditions are made anew each time and keep their transition time while they do
//! not change; conditions that others set (readiness gates, `DisruptionTarget`) are left as they are.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::{Input, containers};
use crate::clock;
use crate::resize;
use crate::worker::members::{self, Role};
use crate::worker::memory::Phase;
use crate::worker::{plan, runs};

/// The conditions that this agent decides.
pub const OWN: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "AllContainersRestarting",
    resize::PENDING,
    resize::IN_PROGRESS,
];

/// The reason of a pod that was ended for a critical one.
pub const PREEMPTING: &str = "Preempting";

/// Why a disruption is this node's doing.
const BY_KUBELET: &str = "TerminationByKubelet";

/// Whether a condition, as JSON, is one that this node decides.
pub(super) fn is_own(condition: &Value) -> bool {
    let text = |field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default();
    is_decided(text("type"), text("reason"))
}

/// Whether a condition is one that this node decides.
pub(super) fn is_ours(condition: &PodCondition) -> bool {
    is_decided(&condition.type_, condition.reason.as_deref().unwrap_or_default())
}

fn is_decided(type_: &str, reason: &str) -> bool {
    match type_ {
        "DisruptionTarget" => reason == BY_KUBELET,
        type_ => OWN.contains(&type_),
    }
}

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
    let containers_ready = containers_ready(input, status, phase);
    let ready = ready(input, &containers_ready);
    let mut conditions = vec![
        condition(input, "PodReadyToStartContainers", sandbox),
        condition(input, "Initialized", initialized_condition(input, phase, initialized)),
        condition(input, "Ready", ready),
        condition(input, "ContainersReady", containers_ready),
        scheduled(input),
    ];
    if members::may_restart_all(input.pod) {
        conditions.push(condition(input, "AllContainersRestarting", restarting(input, phase)));
    }
    if !phase.is_terminal() {
        conditions.extend(resizes(input));
    }
    let disruption = disruption(input);
    let is_ours =
        |type_: &str| OWN.contains(&type_) || (disruption.is_some() && type_ == "DisruptionTarget");
    let pod = input.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let foreign = pod.into_iter().flatten();
    conditions.extend(foreign.filter(|c| !is_ours(c.type_.as_str())).cloned());
    conditions.extend(disruption);
    conditions
}

/// Says that the node itself ended the pod: in favour of another, or for want of something.
pub(super) fn disruption(input: &Input<'_>) -> Option<PodCondition> {
    let verdict = input.memory.verdict.as_ref()?;
    let message = match verdict.reason.as_deref() {
        Some(PREEMPTING) => {
            "Pod was preempted by Kubelet to accommodate a critical pod.".to_owned()
        }
        _ => verdict.disruption.clone()?,
    };
    let holds = Verdict { holds: true, reason: Some(BY_KUBELET), message: Some(message) };
    Some(condition(input, "DisruptionTarget", holds))
}

/// What is going on with the pod's size, with the time since which it has that reason.
fn resizes(input: &Input<'_>) -> impl Iterator<Item = PodCondition> {
    input.memory.resize.conditions().into_iter().map(|condition| {
        let known = find(Some(input.previous), &condition.type_);
        let known = known.filter(|known| known.reason == condition.reason);
        let since = known.and_then(|known| known.last_transition_time.clone());
        let since = since.unwrap_or_else(|| second(input.wall));
        PodCondition { last_transition_time: Some(since), ..condition }
    })
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

/// The scheduler's condition with the generation that is served here; this node's own for a pod that
/// no scheduler has seen.
fn scheduled(input: &Input<'_>) -> PodCondition {
    let own = condition(input, "PodScheduled", Verdict::yes());
    match find(input.pod.status.as_ref(), "PodScheduled") {
        Some(theirs) => {
            PodCondition { observed_generation: own.observed_generation, ..theirs.clone() }
        }
        None => own,
    }
}

fn restarting(input: &Input<'_>, phase: Phase) -> Verdict {
    let plan_input = plan::Input {
        pod: input.pod,
        goal: plan::Goal::Run,
        sandboxes: input.sandboxes,
        memory: input.memory,
        now: input.now,
    };
    match phase {
        Phase::Succeeded => Verdict::no("PodCompleted", None),
        Phase::Failed => Verdict::no("PodFailed", None),
        _ if plan::reset::is_under_way(&plan_input) => Verdict {
            holds: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        },
        _ => Verdict { holds: false, reason: None, message: None },
    }
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

fn containers_ready(input: &Input<'_>, status: &PodStatus, phase: Phase) -> Verdict {
    match phase {
        Phase::Succeeded => return Verdict::no("PodCompleted", None),
        Phase::Failed => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let inits = members::init_containers(input.pod).iter();
    let sidecars: Vec<&str> = inits
        .filter(|c| members::role_of_init(c) == Role::Sidecar)
        .map(|c| c.name.as_str())
        .collect();
    let inits = status.init_container_statuses.iter().flatten();
    let unready: Vec<&str> = inits
        .filter(|c| sidecars.contains(&c.name.as_str()))
        .chain(status.container_statuses.iter().flatten())
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
