//! The status of a pod as the API shows it: a pure function of the pod, the runtime's records and
//! what the worker remembers.
//!
//! Phases, conditions, container states and reasons are those of the kubelet, since people and
//! programs match on them. [`writer`] brings it to the API server.

pub mod conditions;
pub mod containers;
pub mod dispute;
mod missing;
pub mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_runtime::interface::{ContainerState, SandboxStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerStatus, HostIP, Pod, PodIP, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

use crate::clock;
use crate::qos::{self, PodDemand, ResourceAmounts};
use crate::worker::members::{self, Role};
use crate::worker::memory::{Memory, Operation, Phase};
use crate::worker::runs;

/// What a status is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The pod as the API server has it.
    pub pod: &'a Pod,
    /// The status made before this one.
    pub previous: &'a PodStatus,
    /// The runtime's records.
    pub sandboxes: &'a [SandboxStatus],
    /// What the worker remembers.
    pub memory: &'a Memory,
    /// Whether the pod is meant to run.
    pub stage: Stage,
    /// The node's addresses, primary first.
    pub host_ips: &'a [IpAddr],
    /// The monotonic time.
    pub now: Instant,
    /// The time of day.
    pub wall: Timestamp,
}

/// Whether a pod is meant to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is.
    Running,
    /// It is being ended.
    Ending,
}

/// Makes the status.
pub fn compute(input: &Input<'_>) -> PodStatus {
    let initialized = containers::initialized(input);
    let inits = members::init_containers(input.pod).iter();
    let mut inits: Vec<_> =
        inits.map(|c| containers::status(input, (members::role_of_init(c), c))).collect();
    let apps = members::app_containers(input.pod).iter();
    let mut apps: Vec<_> = apps.map(|c| containers::status(input, (Role::App, c))).collect();
    let ephemeral = members::ephemeral_containers(input.pod).iter().map(members::as_container);
    let ephemeral: Vec<_> =
        ephemeral.map(|c| containers::status(input, (Role::Ephemeral, &c))).collect();
    let phase = phase(input, initialized, &apps);
    if phase.is_terminal() {
        missing::fill(members::init_containers(input.pod), &mut inits, &mut apps);
    }
    let mut status = PodStatus {
        phase: Some(phase.as_str().to_owned()),
        observed_generation: input.pod.metadata.generation,
        qos_class: Some(qos_class(input.pod)),
        start_time: Some(
            input
                .previous
                .start_time
                .clone()
                .unwrap_or_else(|| Time(clock::whole_seconds(input.wall))),
        ),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: Some(apps),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        ..PodStatus::default()
    };
    if let Some(verdict) = input.memory.verdict.as_ref().filter(|_| phase.is_terminal()) {
        status.reason.clone_from(&verdict.reason);
        status.message.clone_from(&verdict.message);
    }
    addresses(input, &mut status);
    pod_level(input, &mut status);
    status.conditions = Some(conditions::compute(input, &status, phase, initialized));
    status
}

/// Whether any container of the pod runs.
pub fn anything_running(sandboxes: &[SandboxStatus]) -> bool {
    sandboxes
        .iter()
        .flat_map(|s| &s.containers)
        .any(|c| matches!(c.state, ContainerState::Running { .. }))
}

fn previous_phase(previous: &PodStatus) -> Phase {
    match previous.phase.as_deref() {
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Running") => Phase::Running,
        _ => Phase::Pending,
    }
}

fn phase(input: &Input<'_>, initialized: bool, apps: &[ContainerStatus]) -> Phase {
    let previous = previous_phase(input.previous);
    if previous.is_terminal() {
        return previous;
    }
    let runs_still = anything_running(input.sandboxes);
    if let Some(verdict) = &input.memory.verdict
        && !runs_still
    {
        return verdict.phase;
    }
    let counts = Counts::of(apps);
    if input.stage == Stage::Ending && !runs_still && previous == Phase::Running {
        return match counts.ended == counts.succeeded && counts.waiting == 0 {
            true => Phase::Succeeded,
            false => Phase::Failed,
        };
    }
    let making = |o: &Operation| matches!(o, Operation::Start(_) | Operation::Sandbox);
    let is_over = !runs_still && !input.memory.in_flight.keys().any(making);
    if input.stage == Stage::Ending && is_over && previous == Phase::Pending {
        // It will not run any more, and nobody can say that it did well.
        return Phase::Failed;
    }
    let computed = match () {
        () if !initialized || counts.waiting > 0 => Phase::Pending,
        () if counts.running > 0 || counts.ended > 0 => Phase::Running,
        () => Phase::Pending,
    };
    // A pod that has run does not become pending again, whatever is rebuilt under it.
    match (previous, computed) {
        (Phase::Running, Phase::Pending) => Phase::Running,
        (_, computed) => computed,
    }
}

#[derive(Default)]
struct Counts {
    running: usize,
    waiting: usize,
    ended: usize,
    succeeded: usize,
}

impl Counts {
    fn of(statuses: &[ContainerStatus]) -> Self {
        let mut counts = Self::default();
        for status in statuses {
            let state = status.state.as_ref();
            let last = status.last_state.as_ref();
            if state.is_some_and(|s| s.running.is_some()) {
                counts.running += 1;
            } else if let Some(ended) = state.and_then(|s| s.terminated.as_ref()) {
                counts.ended += 1;
                counts.succeeded += usize::from(ended.exit_code == 0);
            } else if last.is_some_and(|s| s.terminated.is_some()) {
                counts.ended += 1;
            } else {
                counts.waiting += 1;
            }
        }
        counts
    }
}

fn addresses(input: &Input<'_>, status: &mut PodStatus) {
    let host: Vec<String> = input.host_ips.iter().map(ToString::to_string).collect();
    let is_host_network = input.pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let live = runs::live_sandbox(input.sandboxes).or(input.sandboxes.last());
    let pod: Vec<String> = match live {
        Some(_) if is_host_network => host.clone(),
        Some(sandbox) => sandbox.ips.iter().map(ToString::to_string).collect(),
        // The addresses of a pod that ended stay in its status.
        None => match &input.previous.pod_ips {
            Some(ips) => ips.iter().map(|i| i.ip.clone()).collect(),
            None => Vec::new(),
        },
    };
    let list = |ips: &[String]| (!ips.is_empty()).then(|| ips.to_vec());
    status.host_ip = host.first().cloned();
    status.host_ips = list(&host).map(|ips| ips.into_iter().map(|ip| HostIP { ip }).collect());
    status.pod_ip = pod.first().cloned();
    status.pod_ips = list(&pod).map(|ips| ips.into_iter().map(|ip| PodIP { ip }).collect());
}

/// What the pod as a whole is allocated, and what is in force of it.
fn pod_level(input: &Input<'_>, status: &mut PodStatus) {
    let Ok(demand) = PodDemand::parse(input.pod) else {
        return;
    };
    let amounts = |amounts: ResourceAmounts| -> Option<BTreeMap<String, Quantity>> {
        let amounts = amounts.into_iter().map(|(name, amount)| (name, amount.into()));
        Some(amounts.collect()).filter(|amounts: &BTreeMap<_, _>| !amounts.is_empty())
    };
    let (requests, limits) = (amounts(demand.requests()), amounts(demand.limits()));
    status.allocated_resources.clone_from(&requests);
    let resources = ResourceRequirements { requests, limits, ..ResourceRequirements::default() };
    let before = input.previous.resources.clone();
    status.resources = match input.memory.resize.under_way {
        Some(_) if before.is_some() => before,
        _ => Some(resources),
    };
}

/// The status of a pod that is refused: it never ran and never will.
pub fn refused(input: &Input<'_>, reason: &str, message: &str) -> PodStatus {
    let time = Time(clock::whole_seconds(input.wall));
    let mut conditions = input.previous.conditions.clone();
    if let Some(disruption) = conditions::disruption(input) {
        let conditions = conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != disruption.type_);
        conditions.push(disruption);
    }
    PodStatus {
        phase: Some(Phase::Failed.as_str().to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        observed_generation: input.pod.metadata.generation,
        qos_class: Some(qos_class(input.pod)),
        start_time: Some(input.previous.start_time.clone().unwrap_or(time)),
        conditions,
        ..PodStatus::default()
    }
}

fn qos_class(pod: &Pod) -> String {
    match pod.status.as_ref().and_then(|s| s.qos_class.clone()) {
        Some(class) => class,
        None => match qos::PodDemand::parse(pod) {
            Ok(demand) => demand.class().as_str().to_owned(),
            Err(_) => qos::Class::BestEffort.as_str().to_owned(),
        },
    }
}
