//! Resizing pods that run (KEP-1287): what their containers are allocated, what they have, and what is
//! said of the way from one to the other.
//!
//! ```text
//!   specified ── the roster finds room ──► allocated ── the worker ──► in force
//!            └─ none: PodResizePending              └─ PodResizeInProgress
//! ```
//!
//! What is allocated stands in the specification that a worker is given, and with it on disk. What is
//! in force stands in labels of the runtime's records, written with the cgroup files. Pure.

use std::collections::BTreeMap;

use berth_runtime::interface::{ContainerState, ContainerStatus, Resources, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::{Deserialize, Serialize};

use crate::quantity::Quantity;
use crate::worker::members::{self, Role};

/// The label of a record that holds what is in force, of a container ([`Size`]) or a pod
/// ([`pod_size`]).
pub const SIZE_LABEL: &str = "berth.io/size";
/// The label of a sandbox whose cgroup has been made wide enough for a size.
pub const LOOSENED_LABEL: &str = "berth.io/size-loosened";
/// The condition of a pod for whose resize there is no room.
pub const PENDING: &str = "PodResizePending";
/// The condition of a pod that is being resized.
pub const IN_PROGRESS: &str = "PodResizeInProgress";

/// What can be resized.
const RESOURCES: [&str; 2] = ["cpu", "memory"];

type Amounts = BTreeMap<String, ApiQuantity>;

/// What a container has.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Size {
    requests: Amounts,
    limits: Amounts,
    /// Limits of the pod that hold it for want of its own.
    inherited: Amounts,
}

impl Size {
    /// What `container` is allocated.
    pub fn of(pod: &Pod, container: &Container) -> Self {
        let own = container.resources.clone().unwrap_or_default();
        let limits = own.limits.unwrap_or_default();
        let of_pod = pod.spec.as_ref().and_then(|spec| spec.resources.clone());
        let inherited = of_pod.and_then(|resources| resources.limits).unwrap_or_default();
        let inherited = inherited
            .into_iter()
            .filter(|(name, _)| RESOURCES.contains(&name.as_str()) && !limits.contains_key(name));
        Self { requests: own.requests.unwrap_or_default(), inherited: inherited.collect(), limits }
    }

    /// What the label of a record says is in force; nothing where there is none.
    pub fn in_force(record: &ContainerStatus) -> Option<Self> {
        let label = record.config.labels.get(SIZE_LABEL)?;
        serde_json::from_str(label).ok()
    }

    /// The label.
    pub fn label(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Request and limit of a resource: thousandths of a processor, or bytes; 0 is none.
    fn amounts(&self, resource: &str) -> [i64; 2] {
        let limit = self.limits.get(resource).or_else(|| self.inherited.get(resource));
        [self.requests.get(resource), limit].map(|amount| counted(resource, amount))
    }

    /// Whether `container` is ended rather than given another size while it runs.
    fn restarts(&self, container: &Container, now: &Self) -> bool {
        let policies = container.resize_policy.iter().flatten();
        let mut restarting = policies.filter(|policy| policy.restart_policy == "RestartContainer");
        restarting
            .any(|policy| self.amounts(&policy.resource_name) != now.amounts(&policy.resource_name))
    }

    fn is(&self, other: &Self) -> bool {
        RESOURCES.iter().all(|resource| self.amounts(resource) == other.amounts(resource))
    }

    /// How its limits differ from those of `old`: what becomes tighter first.
    fn order(&self, old: &Self) -> [std::cmp::Ordering; 2] {
        let limit = |size: &Self, resource: &str| match size.amounts(resource)[1] {
            0 => i64::MAX,
            limit => limit,
        };
        ["memory", "cpu"].map(|resource| limit(self, resource).cmp(&limit(old, resource)))
    }
}

fn counted(resource: &str, amount: Option<&ApiQuantity>) -> i64 {
    let amount = amount.and_then(|amount| Quantity::try_from(amount).ok()).unwrap_or_default();
    match resource {
        "cpu" => amount.milli_value(),
        _ => amount.value(),
    }
}

/// What a pod as a whole is allocated, as one text; equal texts are equal amounts.
pub fn pod_size(pod: &Pod) -> String {
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.clone()).unwrap_or_default();
    let whole = Size {
        requests: whole.requests.unwrap_or_default(),
        limits: whole.limits.unwrap_or_default(),
        inherited: Amounts::new(),
    };
    let all = members::lasting(pod).map(|(_, c)| (c.name.as_str(), Size::of(pod, c)));
    let numbers = |size: &Size| RESOURCES.map(|resource| size.amounts(resource));
    let sizes: BTreeMap<_, _> =
        all.chain([("", whole)]).map(|(name, size)| (name, numbers(&size))).collect();
    serde_json::to_string(&sizes).unwrap_or_default()
}

/// A running container that has not got what it is allocated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outgrown<'a> {
    /// Its record.
    pub record: &'a ContainerStatus,
    /// What becomes of it.
    pub way: Way,
}

/// How a container comes to another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// While it runs.
    InPlace,
    /// It is ended, and starts again with it.
    Restart,
}

/// The running containers of a sandbox that have another size than they are allocated, in the order in
/// which they are resized: those first whose limits fall.
pub fn outgrown<'a>(pod: &Pod, sandbox: &'a SandboxStatus) -> Vec<Outgrown<'a>> {
    let mut found: Vec<_> = sandbox
        .containers
        .iter()
        .filter(|record| matches!(record.state, ContainerState::Running { .. }))
        .filter_map(|record| {
            let (role, container) = members::find(pod, &record.config.name)?;
            // Init containers that end, and ephemeral ones, keep what they started with.
            matches!(role, Role::App | Role::Sidecar).then_some(())?;
            let wanted = Size::of(pod, &container);
            // A record of an agent that knew no sizes is brought up to date without a restart.
            let known = Size::in_force(record);
            let is_known = known.is_some();
            let now = known.unwrap_or_default();
            let way = match is_known && now.restarts(&container, &wanted) {
                true => Way::Restart,
                false => Way::InPlace,
            };
            let outgrown = (wanted.order(&now), Outgrown { record, way });
            (!is_known || !now.is(&wanted)).then_some(outgrown)
        })
        .collect();
    found.sort_by_key(|(order, _)| *order);
    found.into_iter().map(|(_, outgrown)| outgrown).collect()
}

/// Whether everything that runs of the pod has what it is allocated.
pub fn is_settled(pod: &Pod, sandbox: Option<&SandboxStatus>) -> bool {
    let Some(sandbox) = sandbox else {
        return true;
    };
    let known = sandbox.config.labels.get(SIZE_LABEL);
    known.is_none_or(|known| *known == pod_size(pod))
        && outgrown(pod, sandbox).iter().all(|o| Size::in_force(o.record).is_none())
}

/// What a status says a container has: its specification, with the amounts that are in force, where it
/// runs.
pub fn shown(container: &Container, in_force: Option<&Size>) -> Option<ResourceRequirements> {
    let mut shown = container.resources.clone()?;
    let Some(size) = in_force else {
        return Some(shown);
    };
    for (list, known) in [(&mut shown.requests, &size.requests), (&mut shown.limits, &size.limits)]
    {
        for resource in RESOURCES {
            let Some(list) = list.as_mut() else {
                continue;
            };
            let (wanted, has) = (list.get(resource), known.get(resource));
            if counted(resource, wanted) != counted(resource, has) {
                match has.cloned() {
                    Some(has) => list.insert(resource.to_owned(), has),
                    None => list.remove(resource),
                };
            }
        }
    }
    Some(shown)
}

/// `pod` with the resources of `held`; nothing where they are the same amounts.
pub fn with_allocation(pod: &Pod, held: &Pod) -> Option<Pod> {
    if pod_size(pod) == pod_size(held) {
        return None;
    }
    let mut allocated = pod.clone();
    let spec = allocated.spec.as_mut()?;
    spec.resources = held.spec.as_ref().and_then(|spec| spec.resources.clone());
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for container in containers {
        if let Some((_, known)) = members::lasting(held).find(|(_, c)| c.name == container.name) {
            container.resources.clone_from(&known.resources);
        }
    }
    Some(allocated)
}

/// The wider of two sets of limits, one by one; what has no limit is widest.
pub fn loosest(a: &Resources, b: &Resources) -> Resources {
    let wider = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.max(b));
    let mut wide = b.clone();
    wide.cpu_weight = a.cpu_weight.max(b.cpu_weight);
    wide.cpu_quota_us = wider(a.cpu_quota_us, b.cpu_quota_us);
    wide.memory_limit_bytes = wider(a.memory_limit_bytes, b.memory_limit_bytes);
    wide.memory_swap_bytes = wider(a.memory_swap_bytes, b.memory_swap_bytes);
    wide
}

/// Why a resize has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no room now.
    Deferred,
    /// There never will be.
    Infeasible,
}

impl Why {
    /// The reason of the condition.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deferred => "Deferred",
            Self::Infeasible => "Infeasible",
        }
    }

    /// The reason of the event.
    pub fn event(self) -> &'static str {
        match self {
            Self::Deferred => "ResizeDeferred",
            Self::Infeasible => "ResizeInfeasible",
        }
    }
}

/// A resize that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Why.
    pub why: Why,
    /// What is missing.
    pub message: String,
    /// The generation of the pod that asks for it.
    pub generation: Option<i64>,
}

/// A resize that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// The generation of the pod that asks for it.
    pub generation: Option<i64>,
    /// Why it gets no further.
    pub error: Option<String>,
}

/// What is going on with a pod's size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// What has to wait.
    pub pending: Option<Pending>,
    /// What is under way.
    pub under_way: Option<UnderWay>,
}

impl Progress {
    /// What the last status said of it.
    pub fn recovered(status: &PodStatus) -> Self {
        let find = |type_: &str| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|c| c.type_ == type_ && c.status == "True")
        };
        let pending = find(PENDING).map(|condition| Pending {
            why: match condition.reason.as_deref() {
                Some("Infeasible") => Why::Infeasible,
                _ => Why::Deferred,
            },
            message: condition.message.clone().unwrap_or_default(),
            generation: condition.observed_generation,
        });
        let under_way = find(IN_PROGRESS).map(|condition| UnderWay {
            generation: condition.observed_generation,
            error: condition
                .reason
                .is_some()
                .then(|| condition.message.clone().unwrap_or_default()),
        });
        Self { pending, under_way }
    }

    /// The conditions that tell of it, without times.
    pub fn conditions(&self) -> Vec<PodCondition> {
        let condition =
            |type_: &str, generation, reason: Option<&str>, message: Option<String>| PodCondition {
                type_: type_.to_owned(),
                status: "True".to_owned(),
                observed_generation: generation,
                reason: reason.map(str::to_owned),
                message,
                ..PodCondition::default()
            };
        let pending = self.pending.as_ref().map(|pending| {
            let message = Some(pending.message.clone());
            condition(PENDING, pending.generation, Some(pending.why.reason()), message)
        });
        let under_way = self.under_way.as_ref().map(|under_way| {
            let error = under_way.error.clone();
            let reason = error.as_ref().map(|_| "Error");
            condition(IN_PROGRESS, under_way.generation, reason, error)
        });
        pending.into_iter().chain(under_way).collect()
    }
}

/// A container in the message of an event.
#[derive(Serialize)]
struct Told<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

/// A pod in the message of an event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Told<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Told<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

fn each(containers: &[Container]) -> Vec<Told<'_>> {
    let resources = |c: &Container| c.resources.clone().unwrap_or_default();
    containers.iter().map(|c| Told { name: &c.name, resources: resources(c) }).collect()
}

/// The message of an event: what happened, and to which resources.
pub fn told(what: &str, pod: &Pod, (generation, error): (Option<i64>, &str)) -> String {
    let summary = Summary {
        init_containers: each(members::init_containers(pod)),
        containers: each(members::app_containers(pod)),
        generation: generation.unwrap_or_default(),
        error,
    };
    format!("Pod resize {what}: {}", serde_json::to_string(&summary).unwrap_or_default())
}

#[cfg(test)]
mod tests;
