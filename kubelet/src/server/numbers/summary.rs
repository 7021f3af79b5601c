//! `/stats/summary` (`kubelet/pkg/apis/stats/v1alpha1`): the node and its pods as one JSON object.
//! What is not measured is left out. Pure.

use berth_runtime::interface::{
    ContainerUsage, InterfaceUsage, PodUsage, Pressure, Pressures, Stall, Usage,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::host::{FileSystem, Host};

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
    pub(super) storage: Option<FileSystem>,
    pub(super) pods: &'a [PodUsage],
    /// When each pod was started, by UID.
    pub(super) starts: &'a std::collections::BTreeMap<String, Timestamp>,
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
        "cpu": {"time": at, "usageCoreNanoSeconds": host.cpu_us.saturating_mul(1000)},
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
    put(&mut node, "network", network(&host.network, at_ms));
    if let Some(storage) = facts.storage {
        let fs = file_system(storage, at_ms);
        put(&mut node, "runtime", json!({"imageFs": fs, "containerFs": fs}));
        put(&mut node, "fs", fs);
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

fn file_system(fs: FileSystem, at_ms: i64) -> Value {
    json!({
        "time": time(at_ms),
        "availableBytes": fs.available_bytes,
        "capacityBytes": fs.capacity_bytes,
        "usedBytes": fs.used_bytes,
        "inodes": fs.inodes,
        "inodesFree": fs.inodes_free,
        "inodesUsed": fs.inodes.saturating_sub(fs.inodes_free),
    })
}

/// The first interface is the default one.
fn network(interfaces: &[InterfaceUsage], at_ms: i64) -> Value {
    let one = |interface: &InterfaceUsage| {
        json!({
            "name": interface.name,
            "rxBytes": interface.received.bytes,
            "rxErrors": interface.received.errors,
            "txBytes": interface.sent.bytes,
            "txErrors": interface.sent.errors,
        })
    };
    let mut network = interfaces.first().map_or_else(|| json!({}), one);
    put(&mut network, "time", time(at_ms));
    put(&mut network, "interfaces", interfaces.iter().map(one).collect());
    network
}

/// Processor, memory and swap of a cgroup, and what was waited for.
fn usage(usage: &Usage, scope: Scope) -> Map<String, Value> {
    let at = time(usage.at_ms);
    let mut map = Map::new();
    if let Some(cpu) = &usage.cpu {
        let nanoseconds = cpu.total_us.saturating_mul(1000);
        map.insert("cpu".into(), json!({"time": at, "usageCoreNanoSeconds": nanoseconds}));
    }
    if let Some(memory) = &usage.memory {
        let mut object = json!({
            "time": at,
            "usageBytes": memory.usage_bytes,
            "workingSetBytes": memory.working_set_bytes,
        });
        if let Some(details) = &memory.details {
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
    let mut map = usage(&pod.total, scope);
    let reference =
        json!({"name": identity.name, "namespace": identity.namespace, "uid": identity.uid});
    map.insert("podRef".into(), reference);
    if let Some(start) = facts.starts.get(&identity.uid) {
        map.insert("startTime".into(), json!(format!("{start:.0}")));
    }
    map.insert(
        "containers".into(),
        pod.containers.iter().map(|one| container(one, scope)).collect(),
    );
    if scope == Scope::All {
        if !pod.network.is_empty() {
            map.insert("network".into(), network(&pod.network, pod.total.at_ms));
        }
        if let Some(count) = pod.total.processes {
            map.insert("process_stats".into(), json!({"process_count": count}));
        }
    }
    Value::Object(map)
}

fn container(container: &ContainerUsage, scope: Scope) -> Value {
    let mut map = usage(&container.usage, scope);
    map.insert("name".into(), container.name.clone().into());
    map.insert("startTime".into(), time(container.started_at / 1_000_000));
    Value::Object(map)
}
