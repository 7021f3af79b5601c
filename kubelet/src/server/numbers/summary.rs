//! `/stats/summary` (`kubelet/pkg/apis/stats/v1alpha1`): the node and its pods as one JSON object.
//! What is not measured is left out. Pure.
//!
//! Differs: the interface whose numbers stand for the node's network is the one that the default route
//! leads out by; upstream knows none but `eth0`, which is taken where there is no such route.

use berth_runtime::interface::{
    ContainerUsage, InterfaceUsage, MemoryUsage, PodUsage, Pressure, Pressures, Stall, Usage,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::disks::{Disks, Place};
use super::host::Host;
use super::rates::NanoCores;
use super::system::{Part, System};
use super::{AGENT, NODE, PODS};
use crate::disk::{FileSystem, Used, VolumeUse};

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything.
    All,
    /// Processor and memory (`only_cpu_and_memory=true`).
    CpuAndMemory,
}

/// What a summary is made from.
pub(super) struct Facts<'a> {
    pub(super) node: &'a str,
    pub(super) at_ms: i64,
    pub(super) host: &'a Host,
    pub(super) disks: &'a Disks,
    pub(super) pods: &'a [PodUsage],
    /// When each pod was started, by UID.
    pub(super) starts: &'a std::collections::BTreeMap<String, Timestamp>,
    /// The node's own parts.
    pub(super) system: &'a System,
    /// When the agent was started.
    pub(super) started: Timestamp,
    /// How much of the processors everything uses.
    pub(super) rates: &'a NanoCores,
}

fn time(at_ms: i64) -> Value {
    let at = Timestamp::from_millisecond(at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    json!(format!("{at:.0}"))
}

/// Renders the summary.
pub(super) fn render(facts: &Facts<'_>, scope: Scope) -> Value {
    json!({
        "node": node(facts, scope),
        "pods": facts.pods.iter().map(|usage| pod(usage, facts, scope)).collect::<Vec<_>>(),
    })
}

fn node(facts: &Facts<'_>, scope: Scope) -> Value {
    let Facts { at_ms, host, .. } = *facts;
    let at = time(at_ms);
    let mut node = json!({
        "nodeName": facts.node,
        "startTime": time(host.booted_at.saturating_mul(1000)),
        "cpu": cpu(host.cpu_us, facts.rates.get(NODE), at_ms),
        "systemContainers": system(facts, scope),
        "memory": {
            "time": at,
            "availableBytes": host.capacity_bytes.saturating_sub(host.working_set_bytes),
            "usageBytes": host.memory_usage_bytes,
            "workingSetBytes": host.working_set_bytes,
            "rssBytes": host.rss_bytes,
            "pageFaults": host.faults.0,
            "majorPageFaults": host.faults.1,
        },
        "swap": {
            "time": at,
            "swapAvailableBytes": host.swap_free_bytes,
            "swapUsageBytes": host.swap_bytes,
        },
    });
    if scope == Scope::All && host.pressure.io.is_some() {
        put(&mut node, "io", json!({"time": at}));
    }
    for (name, object) in node.as_object_mut().into_iter().flatten() {
        press(name, object, &host.pressure);
    }
    if scope == Scope::CpuAndMemory {
        return node;
    }
    let default = host.default_interface.as_deref().unwrap_or(POD_INTERFACE);
    put(&mut node, "network", network(&host.network, default, at_ms));
    let Disks { node: node_fs, images, containers, stored, .. } = facts.disks;
    let mut runtime = json!({});
    if let Some(images) = images {
        let used = stored.unwrap_or_else(|| images.file_system.used());
        put(&mut runtime, "imageFs", file_system(&images.file_system, used, at_ms));
    }
    if let Some(place) = containers {
        let is_shared = images.as_ref().is_some_and(|i| i.file_system.id == place.file_system.id);
        // As upstream: on one file system both are told as one.
        let used = stored.filter(|_| is_shared).unwrap_or_else(|| place.file_system.used());
        put(&mut runtime, "containerFs", file_system(&place.file_system, used, at_ms));
    }
    put(&mut node, "runtime", runtime);
    if let Some(Place { file_system: fs, .. }) = node_fs {
        put(&mut node, "fs", file_system(fs, fs.used(), at_ms));
    }
    if let (Some(most), Some(now)) = host.processes {
        put(&mut node, "rlimit", json!({"time": at, "maxpid": most, "curproc": now}));
    }
    node
}

/// Adds what tasks waited for the resource `name` to what is said of it.
fn press(name: &str, object: &mut Value, pressure: &Pressures) {
    let of = match name {
        "cpu" => pressure.cpu,
        "memory" => pressure.memory,
        "io" => pressure.io,
        _ => None,
    };
    if let Some(Pressure { some, full }) = of {
        put(object, "psi", json!({"full": stall(full), "some": stall(some)}));
    }
}

/// As upstream has it: the total in the kernel's microseconds, shares in percent.
fn stall(Stall { total_us, shares }: Stall) -> Value {
    let [avg10, avg60, avg300] = shares.map(|share| f64::from(share) / 100.0);
    json!({"total": total_us, "avg10": avg10, "avg60": avg60, "avg300": avg300})
}

fn put(object: &mut Value, name: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(name.to_owned(), value);
    }
}

/// How full a file system is, and what of it something uses.
fn file_system(fs: &FileSystem, used: Used, at_ms: i64) -> Value {
    json!({
        "time": time(at_ms),
        "availableBytes": fs.available_bytes,
        "capacityBytes": fs.capacity_bytes,
        "usedBytes": used.bytes,
        "inodes": fs.inodes,
        "inodesFree": fs.inodes_free,
        "inodesUsed": used.inodes,
    })
}

fn volume(name: &str, volume: &VolumeUse, namespace: &str) -> Value {
    let mut object = file_system(&volume.file_system, volume.used, volume.at_ms);
    put(&mut object, "name", name.into());
    if let Some(claim) = &volume.claim {
        put(&mut object, "pvcRef", json!({"name": claim, "namespace": namespace}));
    }
    object
}

/// The name of the interface that every pod has.
const POD_INTERFACE: &str = "eth0";

/// All interfaces; the default one's numbers stand for the whole, too.
fn network(interfaces: &[InterfaceUsage], default: &str, at_ms: i64) -> Value {
    let one = |interface: &InterfaceUsage| {
        json!({
            "name": interface.name,
            "rxBytes": interface.received.bytes,
            "rxErrors": interface.received.errors,
            "txBytes": interface.sent.bytes,
            "txErrors": interface.sent.errors,
        })
    };
    let found = interfaces.iter().find(|interface| interface.name == default);
    let mut network = found.map_or_else(|| json!({}), one);
    put(&mut network, "time", time(at_ms));
    put(&mut network, "interfaces", interfaces.iter().map(one).collect());
    network
}

/// Processor time, and how much of the processors that is at the moment, where that is known.
fn cpu(total_us: u64, rate: Option<&u64>, at_ms: i64) -> Value {
    let mut cpu =
        json!({"time": time(at_ms), "usageCoreNanoSeconds": total_us.saturating_mul(1000)});
    if let Some(rate) = rate {
        put(&mut cpu, "usageNanoCores", (*rate).into());
    }
    cpu
}

/// The node's own parts.
fn system(facts: &Facts<'_>, scope: Scope) -> Value {
    let System { agent, pods } = facts.system;
    let rate = |of: &str| facts.rates.get(of);
    let part = |name: &str, part: &Part, rate| {
        let mut map = usage(&part.usage, (rate, part.limit_bytes), scope);
        map.insert("name".into(), name.into());
        map.insert("startTime".into(), part.since_ms.map_or(Value::Null, time));
        Value::Object(map)
    };
    let agent = Part { since_ms: Some(facts.started.as_millisecond()), ..agent.clone() };
    let mut parts =
        vec![part("kubelet", &agent, rate(AGENT)), part("runtime", &agent, rate(AGENT))];
    if let Some(all) = pods {
        let mut all = all.clone();
        if all.usage.memory.is_none() {
            all.usage.memory = summed(facts.pods);
        }
        parts.push(part("pods", &all, rate(PODS)));
    }
    parts.into()
}

/// The memory of all pods, where there is no controller that keeps it.
fn summed(pods: &[PodUsage]) -> Option<MemoryUsage> {
    let each = pods.iter().filter_map(|pod| pod.total.memory.as_ref());
    each.fold(None, |sum: Option<MemoryUsage>, one| {
        let sum = sum.unwrap_or_default();
        Some(MemoryUsage {
            usage_bytes: sum.usage_bytes.saturating_add(one.usage_bytes),
            working_set_bytes: sum.working_set_bytes.saturating_add(one.working_set_bytes),
            details: None,
        })
    })
}

/// Processor, memory and swap of a cgroup with its rate and memory limit, and what was waited for.
fn usage(
    usage: &Usage,
    (rate, limit_bytes): (Option<&u64>, Option<u64>),
    scope: Scope,
) -> Map<String, Value> {
    let at = time(usage.at_ms);
    let mut map = Map::new();
    if let Some(used) = &usage.cpu {
        map.insert("cpu".into(), cpu(used.total_us, rate, usage.at_ms));
    }
    if let Some(memory) = &usage.memory {
        let mut object = json!({
            "time": at,
            "usageBytes": memory.usage_bytes,
            "workingSetBytes": memory.working_set_bytes,
        });
        if let Some(details) = &memory.details {
            // Without the controller a limit holds nobody.
            if let Some(limit) = limit_bytes {
                let left = limit.saturating_sub(memory.working_set_bytes);
                put(&mut object, "availableBytes", left.into());
            }
            put(&mut object, "rssBytes", details.rss_bytes.into());
            put(&mut object, "pageFaults", details.faults.into());
            put(&mut object, "majorPageFaults", details.major_faults.into());
            if let Some(swap) = details.swap_bytes {
                map.insert("swap".into(), json!({"time": at, "swapUsageBytes": swap}));
            }
        }
        map.insert("memory".into(), object);
    }
    if scope == Scope::All && usage.pressure.io.is_some() {
        map.insert("io".into(), json!({"time": at}));
    }
    for (name, object) in &mut map {
        press(name, object, &usage.pressure);
    }
    map
}

fn pod(pod: &PodUsage, facts: &Facts<'_>, scope: Scope) -> Value {
    let identity = &pod.pod;
    let bounds = (facts.rates.get(&pod.cgroup), pod.limits.memory_limit_bytes);
    let mut map = usage(&pod.total, bounds, scope);
    let reference =
        json!({"name": identity.name, "namespace": identity.namespace, "uid": identity.uid});
    map.insert("podRef".into(), reference);
    if let Some(start) = facts.starts.get(&identity.uid) {
        map.insert("startTime".into(), json!(format!("{start:.0}")));
    }
    let used = facts.disks.pods.get(&identity.uid).filter(|_| scope == Scope::All);
    let containers = pod.containers.iter().map(|one| {
        let mut map = container(one, facts.rates.get(&one.cgroup), scope);
        if let Some(used) = used.and_then(|used| used.containers.get(&one.name)) {
            for (name, place, used_here) in [
                ("rootfs", &facts.disks.containers, used.rootfs),
                ("logs", &facts.disks.node, used.logs),
            ] {
                let Some(place) = place else { continue };
                let fs = file_system(&place.file_system, used_here, used.at_ms);
                map.insert(name.to_owned(), fs);
            }
        }
        Value::Object(map)
    });
    map.insert("containers".into(), containers.collect());
    if let Some(used) = used {
        let volumes = used.volumes.iter();
        let volumes = volumes.map(|(name, one)| volume(name, one, &identity.namespace));
        map.insert("volume".into(), volumes.collect());
        if let (Some(Place { file_system: fs, .. }), Some(at_ms)) =
            (&facts.disks.node, used.at_ms())
        {
            map.insert("ephemeral-storage".into(), file_system(fs, used.ephemeral(), at_ms));
        }
    }
    if scope == Scope::All {
        if !pod.network.is_empty() {
            map.insert("network".into(), network(&pod.network, POD_INTERFACE, pod.total.at_ms));
        }
        if let Some(count) = pod.total.processes {
            map.insert("process_stats".into(), json!({"process_count": count}));
        }
    }
    Value::Object(map)
}

fn container(container: &ContainerUsage, rate: Option<&u64>, scope: Scope) -> Map<String, Value> {
    let bounds = (rate, container.limits.memory_limit_bytes);
    let mut map = usage(&container.usage, bounds, scope);
    map.insert("name".into(), container.name.clone().into());
    map.insert("startTime".into(), time(container.started_at / 1_000_000));
    map
}
