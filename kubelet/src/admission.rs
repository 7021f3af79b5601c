//! Whether a pod may run on this node at all.
//!
//! The checks a kubelet repeats after the scheduler, with its reasons and texts: operating system,
//! node name, selector and affinity, taints, resources, host ports, sysctls, AppArmor. Pods that do not fit
//! may be made room for ([`preemption`]). Pure, but for [`AppArmorSupport::of_host`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint, Toleration};

use crate::qos::{InvalidResource, PodDemand, ResourceAmounts};
use crate::quantity::Quantity;

mod affinity;
mod app_armor;
mod preemption;
mod pressure;
mod sysctl;

pub use affinity::{matches_node, matches_selector};
pub use app_armor::{AppArmorRefused, AppArmorSupport, app_armor};
pub use pressure::under_pressure;
pub use sysctl::{SysctlForbidden, SysctlPolicy};

/// How the message in the status of a pod begins that was turned away.
pub const REJECTED: &str = "Pod was rejected: ";

/// Why a pod is turned away; goes into `status.reason` and `status.message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The reason in CamelCase.
    pub reason: String,
    /// The sentence after [`REJECTED`].
    pub message: String,
}

impl Rejection {
    /// The message as it stands in the pod's status.
    pub fn status_message(&self) -> String {
        format!("{REJECTED}{}", self.message)
    }
}

/// A pod that is on the node already.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its requests.
    pub demand: &'a PodDemand,
}

/// What a pod is held against.
#[derive(Debug, Clone)]
pub struct AdmissionInputs<'a> {
    /// The node as the API server knows it.
    pub node: &'a Node,
    /// What the node offers to pods, `pods` included.
    pub allocatable: &'a ResourceAmounts,
    /// The other pods that hold resources: not terminal, and not this one.
    pub others: Vec<Admitted<'a>>,
    /// What pods may set through sysctls.
    pub sysctls: &'a SysctlPolicy,
    /// Whether the node has AppArmor.
    pub app_armor: AppArmorSupport,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It may run.
    Admit,
    /// It may not.
    Reject(Rejection),
    /// It may run once these of the others have ended, by their places.
    Preempt(Vec<usize>),
}

/// Decides whether a pod may run here. A critical pod that lacks nothing but resources makes room for
/// itself.
pub fn admit(pod: &Pod, demand: &PodDemand, inputs: &AdmissionInputs<'_>) -> Judgement {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    if let Err(rejection) = check_operating_system(pod, spec) {
        return Judgement::Reject(rejection);
    }
    if let Err(error) = inputs.sysctls.admitted(pod) {
        let message = error.to_string();
        return Judgement::Reject(Rejection { reason: "SysctlForbidden".into(), message });
    }
    if let Err(error) = app_armor::check(pod, inputs.app_armor) {
        let message = format!("Cannot enforce AppArmor: {error}");
        return Judgement::Reject(Rejection { reason: "AppArmor".into(), message });
    }
    let shortages = shortages(demand, inputs);
    let rest = check_node(spec, inputs.node)
        .and_then(|()| check_host_ports(spec, &inputs.others))
        .and_then(|()| check_taints(pod, spec, inputs.node));
    match (shortages.first(), rest) {
        (None, Ok(())) => Judgement::Admit,
        (Some(shortage), _) if !crate::qos::is_critical(pod) => {
            Judgement::Reject(shortage.rejection())
        }
        (_, Err(rejection)) => Judgement::Reject(rejection),
        (Some(_), Ok(())) => match preemption::victims(pod, &inputs.others, &shortages) {
            Ok(victims) => Judgement::Preempt(victims),
            Err(error) => Judgement::Reject(unexpected(&error)),
        },
    }
}

fn unexpected(error: &preemption::NoneFound) -> Rejection {
    Rejection {
        reason: "UnexpectedAdmissionError".into(),
        message: format!(
            "Unexpected error while attempting to recover from admission failure: preemption: \
             error finding a set of pods to preempt: {error}"
        ),
    }
}

/// A resource of which too little is free; CPU in thousandths.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shortage {
    resource: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

impl Shortage {
    fn rejection(&self) -> Rejection {
        let Self { resource, requested, used, capacity } = self;
        Rejection {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: \
                 {used}, capacity: {capacity}"
            ),
        }
    }

    /// How much has to become free.
    fn missing(&self) -> i64 {
        self.requested.saturating_sub(self.capacity.saturating_sub(self.used))
    }
}

/// An amount in the unit in which shortages are counted.
fn counted(resource: &str, amount: Quantity) -> i64 {
    match resource {
        "cpu" => amount.milli_value(),
        _ => amount.value(),
    }
}

/// Turns an unreadable request into a rejection.
pub fn reject_invalid_resource(error: &InvalidResource) -> Rejection {
    Rejection {
        reason: "UnexpectedAdmissionError".into(),
        message: format!("Allocate failed due to {error}: {}, which is unexpected", error.source),
    }
}

fn check_operating_system(pod: &Pod, spec: &PodSpec) -> Result<(), Rejection> {
    let labels = pod.metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        return Err(Rejection {
            reason: "PodOSSelectorNodeLabelDoesNotMatch".into(),
            message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
                .into(),
        });
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Rejection {
            reason: "PodOSNotSupported".into(),
            message: "Failed to admit pod as the OS field doesn't match node OS".into(),
        });
    }
    Ok(())
}

/// Why the node could never give what a pod requests of processor time and memory, in the words of
/// kubelets before 1.36; later ones leave it to the API server, and would wait for ever.
pub fn beyond_node(demand: &PodDemand, allocatable: &ResourceAmounts) -> Option<String> {
    let requests = demand.requests();
    ["cpu", "memory"].into_iter().find_map(|resource| {
        let requested = requests.get(resource).copied()?;
        let capacity = allocatable.get(resource).copied().unwrap_or_default();
        (requested > capacity).then(|| {
            let (requested, capacity) = (counted(resource, requested), counted(resource, capacity));
            format!(
                "Node didn't have enough capacity: {resource}, requested: {requested}, capacity: \
                 {capacity}"
            )
        })
    })
}

/// What of the pod's requests is not free.
fn shortages(demand: &PodDemand, inputs: &AdmissionInputs<'_>) -> Vec<Shortage> {
    let used: Vec<_> = inputs.others.iter().map(|other| other.demand.requests()).collect();
    let running = i64::try_from(inputs.others.len()).unwrap_or(i64::MAX);
    let mut shortages = Vec::new();
    if let Some(capacity) = inputs.allocatable.get("pods")
        && running.saturating_add(1) > capacity.value()
    {
        let (resource, capacity) = ("pods".to_owned(), capacity.value());
        shortages.push(Shortage { resource, requested: 1, used: running, capacity });
    }
    let requests = demand.requests();
    for (resource, requested) in in_reporting_order(&requests) {
        if !requested.is_positive() {
            continue;
        }
        let known = matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || resource.starts_with("hugepages-");
        let Some(capacity) =
            inputs.allocatable.get(resource).copied().or(known.then_some(Quantity::ZERO))
        else {
            continue;
        };
        let taken: Quantity =
            used.iter().filter_map(|amounts| amounts.get(resource).copied()).sum();
        if requested > capacity.minus(taken) {
            shortages.push(Shortage {
                resource: resource.clone(),
                requested: counted(resource, requested),
                used: counted(resource, taken),
                capacity: counted(resource, capacity),
            });
        }
    }
    shortages
}

/// CPU, memory and ephemeral storage first, as upstream reports them.
fn in_reporting_order(amounts: &ResourceAmounts) -> Vec<(&String, Quantity)> {
    let rank = |resource: &str| match resource {
        "cpu" => 0,
        "memory" => 1,
        "ephemeral-storage" => 2,
        _ => 3,
    };
    let mut ordered: Vec<_> = amounts.iter().map(|(name, amount)| (name, *amount)).collect();
    ordered.sort_by_key(|(name, _)| rank(name));
    ordered
}

fn predicate(name: &str, description: &str) -> Rejection {
    Rejection {
        reason: name.to_owned(),
        message: format!("Predicate {name} failed: {description}"),
    }
}

fn check_node(spec: &PodSpec, node: &Node) -> Result<(), Rejection> {
    if !matches_node(spec, node) {
        let text = "node(s) didn't match Pod's node affinity/selector";
        return Err(predicate("NodeAffinity", text));
    }
    let wanted = spec.node_name.as_deref().filter(|name| !name.is_empty());
    if wanted.is_some_and(|wanted| Some(wanted) != node.metadata.name.as_deref()) {
        let text = "node(s) didn't match the requested node name";
        return Err(predicate("NodeName", text));
    }
    Ok(())
}

type HostPort<'a> = (i32, &'a str, &'a str);

fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort<'_>> {
    let host_network = spec.host_network == Some(true);
    let sidecars = spec.init_containers.iter().flatten();
    let running = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = running.chain(&spec.containers).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let declared = port.host_port.filter(|number| *number > 0);
            let number = declared.or(host_network.then_some(port.container_port))?;
            let protocol = port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP");
            let ip = port.host_ip.as_deref().unwrap_or_default();
            let any = matches!(ip, "" | "0.0.0.0" | "::");
            Some((number, protocol, if any { "" } else { ip }))
        })
        .collect()
}

fn check_host_ports(spec: &PodSpec, others: &[Admitted<'_>]) -> Result<(), Rejection> {
    let wanted = host_ports(spec);
    let conflict = |taken: &HostPort<'_>| {
        wanted.iter().any(|(number, protocol, ip)| {
            let same_port = *number == taken.0 && *protocol == taken.1;
            same_port && (ip.is_empty() || taken.2.is_empty() || *ip == taken.2)
        })
    };
    let taken = others.iter().filter_map(|other| other.pod.spec.as_ref());
    if !wanted.is_empty() && taken.flat_map(host_ports).any(|port| conflict(&port)) {
        let text = "node(s) didn't have free ports for the requested pod ports";
        return Err(predicate("NodePorts", text));
    }
    Ok(())
}

/// Static pods run whatever the taints; the others must tolerate those that evict.
fn check_taints(pod: &Pod, spec: &PodSpec, node: &Node) -> Result<(), Rejection> {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|a| a.get("kubernetes.io/config.source"));
    if source.is_some_and(|source| source != "api") {
        return Ok(());
    }
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let untolerated = taints
        .filter(|taint| taint.effect == "NoExecute")
        .any(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)));
    if untolerated {
        let text = "node(s) had taints that the pod didn't tolerate";
        return Err(predicate("TaintToleration", text));
    }
    Ok(())
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    let key = text(&toleration.key);
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let value = text(&taint.value);
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == value,
        "Exists" => true,
        operator @ ("Lt" | "Gt") => {
            let numbers =
                value.parse::<i64>().ok().zip(text(&toleration.value).parse::<i64>().ok());
            numbers.is_some_and(|(taint, bound)| match operator {
                "Lt" => taint < bound,
                _ => taint > bound,
            })
        }
        _ => false,
    }
}

/// Sums requests, for reports of what is allocated.
pub fn allocated<'a>(pods: impl IntoIterator<Item = &'a PodDemand>) -> ResourceAmounts {
    let mut total = BTreeMap::new();
    for demand in pods {
        for (resource, amount) in demand.requests() {
            let sum: &mut Quantity = total.entry(resource).or_default();
            *sum = *sum + amount;
        }
    }
    total
}

#[cfg(test)]
mod tests;
