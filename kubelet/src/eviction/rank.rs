//! Which pod is ended: the ranking of those that could be, and what the others are told of it. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::limit;
use super::observe::Layout;
use super::plan::Observations;
use super::threshold::{Resource, Signal, Threshold};
use crate::disk::{ContainerUse, PodUse};
use crate::qos::{self, PodDemand};
use crate::quantity::Quantity;

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Its working set.
    pub memory_bytes: u64,
    /// Its processes.
    pub processes: u64,
    /// The working sets of its running containers, in the order in which they are reported.
    pub containers: Vec<(String, u64)>,
    /// Its disk use, where that was measured.
    pub disk: Option<Arc<PodUse>>,
}

/// What pods use, by UID; of a pod that is missing nothing is known.
pub type Usages = BTreeMap<String, Usage>;

/// A pod that is ended, and how that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The message.
    pub message: String,
    /// The annotations of the event.
    pub annotations: BTreeMap<String, String>,
}

/// The place of the pod that is ended for `signal`: the first of the ranking that is not critical.
/// Ranked are, as upstream does, those of which nothing is known, those that use more than they requested,
/// the lowest priority, the largest use beyond the request. The UID decides between equals.
pub fn victim(signal: Signal, pods: &[&Pod], usages: &Usages, layout: Layout) -> Option<usize> {
    let candidates = pods.iter().enumerate().filter(|(_, pod)| !qos::is_critical(pod));
    candidates.min_by_key(|(_, pod)| key(signal, pod, usages, layout)).map(|(place, _)| place)
}

type Key<'a> = (bool, bool, i32, bool, Reverse<Quantity>, &'a str);

fn key<'a>(signal: Signal, pod: &'a Pod, usages: &Usages, layout: Layout) -> Key<'a> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    let usage = usages.get(uid);
    let resource = signal.resource();
    let used = usage.map(|usage| match resource {
        Resource::Memory => Quantity::bytes(usage.memory_bytes),
        Resource::Pids => Quantity::units(i64::try_from(usage.processes).unwrap_or(i64::MAX)),
        Resource::Storage | Resource::Inodes => {
            let of = usage.disk.as_ref().filter(|_| layout.has_pods(signal));
            let measured = of.map(|of| limit::local(pod, of)).unwrap_or_default();
            match resource {
                Resource::Inodes => Quantity::bytes(measured.inodes),
                _ => Quantity::bytes(measured.bytes),
            }
        }
    });
    let is_unknown = used.is_none();
    let used = used.unwrap_or_default();
    if resource == Resource::Pids {
        return (false, false, priority, !is_unknown, Reverse(used), uid);
    }
    let demand = PodDemand::parse(pod).unwrap_or_default().requests();
    let requested = |name: &str| demand.get(name).copied().unwrap_or_default();
    // Nobody can request inodes; beyond what is told of them, upstream weighs them against bytes.
    let threshold = match resource {
        Resource::Inodes => Quantity::ZERO,
        _ => requested(resource.name()),
    };
    let exceeds = used > threshold;
    let request = match resource {
        Resource::Inodes => requested("ephemeral-storage"),
        _ => threshold,
    };
    (!is_unknown, !is_unknown && !exceeds, priority, false, Reverse(used.minus(request)), uid)
}

/// What is told of a pod that is ended for the first of `starved`.
pub fn told(pod: &Pod, starved: &Threshold, observations: &Observations, usages: &Usages) -> Told {
    let resource = starved.signal.resource();
    let name = resource.name();
    let mut message = format!("The node was low on resource: {name}. ");
    if let Some(seen) = observations.get(&starved.signal) {
        let threshold = starved.value.of(seen.capacity);
        message += &format!("Threshold quantity: {threshold}, available: {}. ", seen.available);
    }
    let mut annotations = BTreeMap::new();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let Some(usage) = usages.get(uid) else {
        return Told { message, annotations };
    };
    let demand = PodDemand::parse(pod).unwrap_or_default();
    if resource == Resource::Memory
        && let Some(request) = demand.pod.as_ref().and_then(|own| own.requests.get(name))
    {
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        let used = Quantity::bytes(usage.memory_bytes);
        message += &exceeding("Pod", pod, (used, *request), name);
        annotations.insert("offending_pod".to_owned(), pod.to_owned());
        annotations.insert("offending_pod_usage".to_owned(), used.to_string());
    }
    let (mut offenders, mut used_by_them) = (Vec::new(), Vec::new());
    for (container, used) in used_by_containers(usage, resource) {
        // Ephemeral containers request nothing and are never named.
        let Some(request) = demand.container(&container).map(|c| written(pod, &c.name, name))
        else {
            continue;
        };
        if used > request {
            message += &exceeding("Container", &container, (used, request), name);
            offenders.push(container);
            used_by_them.push(used.to_string());
        }
    }
    annotations.insert("offending_containers".to_owned(), offenders.join(","));
    annotations.insert("offending_containers_usage".to_owned(), used_by_them.join(","));
    annotations.insert("starved_resource".to_owned(), name.to_owned());
    Told { message, annotations }
}

fn exceeding(what: &str, name: &str, (used, request): (Quantity, Quantity), of: &str) -> String {
    format!(
        "{what} {name} was using {used}, request is {request}, has larger consumption of {of}. "
    )
}

/// What a container requests by itself: a limit does not stand for it here.
fn written(pod: &Pod, container: &str, resource: &str) -> Quantity {
    let found = crate::worker::members::find(pod, container);
    let resources = found.and_then(|(_, container)| container.resources.clone());
    let requests = resources.and_then(|resources| resources.requests).unwrap_or_default();
    requests.get(resource).and_then(|amount| Quantity::try_from(amount).ok()).unwrap_or_default()
}

fn used_by_containers(usage: &Usage, resource: Resource) -> Vec<(String, Quantity)> {
    match resource {
        Resource::Memory => {
            let containers = usage.containers.iter();
            containers.map(|(name, bytes)| (name.clone(), Quantity::bytes(*bytes))).collect()
        }
        Resource::Storage => {
            let containers = usage.disk.iter().flat_map(|disk| &disk.containers);
            let bytes = |of: &ContainerUse| Quantity::bytes((of.rootfs + of.logs).bytes);
            containers.map(|(name, of)| (name.clone(), bytes(of))).collect()
        }
        Resource::Inodes | Resource::Pids => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
