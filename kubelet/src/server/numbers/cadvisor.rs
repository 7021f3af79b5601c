//! `/metrics/cadvisor`: the families that pod dashboards and cost tools read, under the names and
//! labels that cAdvisor gave them. A counter that the host does not keep is left out. Pure.

use berth_runtime::interface::{
    CpuUsage, InterfaceUsage, MemoryDetails, MemoryUsage, PodUsage, Pressure, Usage,
};

use super::devices;
use super::disks::{self, Disks};
use super::exposition::{Exposition, Kind, number, seconds};
use super::host::Host;
use super::limits;
use super::open_files::{self, Counted};

/// One number of a cgroup, where the host keeps it.
type Pick = fn(&Usage) -> Option<f64>;

fn cpu(usage: &Usage, pick: fn(&CpuUsage) -> Option<f64>) -> Option<f64> {
    usage.cpu.as_ref().and_then(pick)
}

fn memory(usage: &Usage, pick: fn(&MemoryUsage) -> u64) -> Option<f64> {
    usage.memory.as_ref().map(|memory| number(pick(memory)))
}

fn details(usage: &Usage, pick: fn(&MemoryDetails) -> Option<u64>) -> Option<f64> {
    usage.memory.as_ref()?.details.as_ref().and_then(pick).map(number)
}

fn stalled(pressure: Option<Pressure>) -> Option<f64> {
    pressure.map(|pressure| seconds(pressure.full.total_us))
}

fn waiting(pressure: Option<Pressure>) -> Option<f64> {
    pressure.map(|pressure| seconds(pressure.some.total_us))
}

const FAMILIES: [(&str, Kind, &str, Pick); 24] = {
    use Kind::{Counter, Gauge};
    [
        (
            "container_cpu_usage_seconds_total",
            Counter,
            "Cumulative cpu time consumed in seconds.",
            |u| cpu(u, |c| Some(seconds(c.total_us))),
        ),
        (
            "container_cpu_user_seconds_total",
            Counter,
            "Cumulative user cpu time consumed in seconds.",
            |u| cpu(u, |c| Some(seconds(c.user_us))),
        ),
        (
            "container_cpu_system_seconds_total",
            Counter,
            "Cumulative system cpu time consumed in seconds.",
            |u| cpu(u, |c| Some(seconds(c.system_us))),
        ),
        (
            "container_cpu_cfs_periods_total",
            Counter,
            "Number of elapsed enforcement period intervals.",
            |u| cpu(u, |c| c.throttling.as_ref().map(|t| number(t.periods))),
        ),
        (
            "container_cpu_cfs_throttled_periods_total",
            Counter,
            "Number of throttled period intervals.",
            |u| cpu(u, |c| c.throttling.as_ref().map(|t| number(t.throttled_periods))),
        ),
        (
            "container_cpu_cfs_throttled_seconds_total",
            Counter,
            "Total time duration the container has been throttled.",
            |u| cpu(u, |c| c.throttling.as_ref().map(|t| seconds(t.throttled_us))),
        ),
        (
            "container_memory_usage_bytes",
            Gauge,
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |u| memory(u, |m| m.usage_bytes),
        ),
        ("container_memory_working_set_bytes", Gauge, "Current working set in bytes.", |u| {
            memory(u, |m| m.working_set_bytes)
        }),
        (
            "container_memory_max_usage_bytes",
            Gauge,
            "Maximum memory usage recorded in bytes",
            |u| details(u, |d| d.peak_bytes),
        ),
        ("container_memory_rss", Gauge, "Size of RSS in bytes.", |u| {
            details(u, |d| Some(d.rss_bytes))
        }),
        ("container_memory_cache", Gauge, "Number of bytes of page cache memory.", |u| {
            details(u, |d| Some(d.cache_bytes))
        }),
        ("container_memory_mapped_file", Gauge, "Size of memory mapped files in bytes.", |u| {
            details(u, |d| Some(d.mapped_bytes))
        }),
        ("container_memory_swap", Gauge, "Container swap usage in bytes.", |u| {
            details(u, |d| d.swap_bytes)
        }),
        ("container_memory_failcnt", Counter, "Number of memory usage hits limits", |u| {
            details(u, |d| Some(d.limit_hits))
        }),
        (
            "container_oom_events_total",
            Counter,
            "Count of out of memory events observed for the container",
            |u| details(u, |d| Some(d.oom_kills)),
        ),
        ("container_processes", Gauge, "Number of processes running inside the container.", |u| {
            u.processes.map(number)
        }),
        ("container_threads", Gauge, "Number of threads running inside the container", |u| {
            u.threads.map(number)
        }),
        (
            "container_pressure_cpu_stalled_seconds_total",
            Counter,
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
            |u| stalled(u.pressure.cpu),
        ),
        (
            "container_pressure_cpu_waiting_seconds_total",
            Counter,
            "Total time duration tasks in the container have waited due to CPU congestion.",
            |u| waiting(u.pressure.cpu),
        ),
        (
            "container_pressure_memory_stalled_seconds_total",
            Counter,
            "Total time duration no tasks in the container could make progress due to memory congestion.",
            |u| stalled(u.pressure.memory),
        ),
        (
            "container_pressure_memory_waiting_seconds_total",
            Counter,
            "Total time duration tasks in the container have waited due to memory congestion.",
            |u| waiting(u.pressure.memory),
        ),
        (
            "container_pressure_io_stalled_seconds_total",
            Counter,
            "Total time duration no tasks in the container could make progress due to IO congestion.",
            |u| stalled(u.pressure.io),
        ),
        (
            "container_pressure_io_waiting_seconds_total",
            Counter,
            "Total time duration tasks in the container have waited due to IO congestion.",
            |u| waiting(u.pressure.io),
        ),
        ("container_last_seen", Gauge, "Last time a container was seen by the exporter", |u| {
            Some(number(u64::try_from(u.at_ms / 1000).unwrap_or(0)))
        }),
    ]
};

/// Name, help and counter of a network family.
type NetworkFamily = (&'static str, &'static str, fn(&InterfaceUsage) -> u64);

const NETWORK: [NetworkFamily; 8] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| {
        i.received.bytes
    }),
    ("container_network_receive_packets_total", "Cumulative count of packets received", |i| {
        i.received.packets
    }),
    (
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
        |i| i.received.dropped,
    ),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |i| i.received.errors,
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| {
        i.sent.bytes
    }),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", |i| {
        i.sent.packets
    }),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
        |i| i.sent.dropped,
    ),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |i| i.sent.errors,
    ),
];

/// Renders the page.
pub(super) fn render(
    host: &Host,
    at_ms: i64,
    (pods, disks): (&[PodUsage], &Disks),
    open: &Counted,
) -> String {
    let mut text = Exposition::default();
    let root = root(host, at_ms);
    for (name, kind, help, pick) in FAMILIES {
        let mut family = text.family(name, kind, help);
        if let Some(value) = pick(&root) {
            family.at(&labels("", "/", ["", ""], ["", ""]), value, Some(at_ms));
        }
        for pod in pods {
            let place = [pod.pod.namespace.as_str(), &pod.pod.name];
            if let Some(value) = pick(&pod.total) {
                let labels = labels("", &pod.cgroup, ["", ""], place);
                family.at(&labels, value, Some(pod.total.at_ms));
            }
            for container in &pod.containers {
                if let Some(value) = pick(&container.usage) {
                    let of = [container.image.as_str(), container.id.as_str()];
                    let labels = labels(&container.name, &container.cgroup, of, place);
                    family.at(&labels, value, Some(container.usage.at_ms));
                }
            }
        }
    }
    faults(&mut text, pods);
    limits::write(&mut text, pods);
    open_files::write(&mut text, pods, open);
    starts(&mut text, pods);
    network(&mut text, pods);
    file_systems(&mut text, at_ms, (pods, disks));
    devices::write(&mut text, (host, at_ms), (pods, &disks.places()));
    machine(&mut text, host);
    text.finish()
}

/// The labels of every family, in cAdvisor's order.
pub(super) fn labels<'a>(
    container: &'a str,
    id: &'a str,
    [image, name]: [&'a str; 2],
    [namespace, pod]: [&'a str; 2],
) -> [(&'static str, &'a str); 6] {
    [
        ("container", container),
        ("id", id),
        ("image", image),
        ("name", name),
        ("namespace", namespace),
        ("pod", pod),
    ]
}

/// The host in the shape of a cgroup.
fn root(host: &Host, at_ms: i64) -> Usage {
    Usage {
        at_ms,
        cpu: Some(CpuUsage { total_us: host.cpu_us, ..CpuUsage::default() }),
        memory: Some(MemoryUsage {
            usage_bytes: host.memory_usage_bytes,
            working_set_bytes: host.working_set_bytes,
            details: None,
        }),
        io: None,
        processes: host.processes.1,
        threads: None,
        pressure: host.pressure,
    }
}

/// Page faults, in cAdvisor's shape: of a container alone and with what is below it, which is the same.
fn faults(text: &mut Exposition, pods: &[PodUsage]) {
    let mut family = text.family(
        "container_memory_failures_total",
        Kind::Counter,
        "Cumulative count of memory allocation failures.",
    );
    for (pod, container) in pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c))) {
        let memory = container.usage.memory.as_ref();
        let Some(details) = memory.and_then(|memory| memory.details.as_ref()) else { continue };
        let of = [container.image.as_str(), container.id.as_str()];
        let place = [pod.pod.namespace.as_str(), &pod.pod.name];
        let [name, id, image, short, namespace, of_pod] =
            labels(&container.name, &container.cgroup, of, place);
        for (kind, count) in [("pgfault", details.faults), ("pgmajfault", details.major_faults)] {
            for scope in ["container", "hierarchy"] {
                let (kind, scope) = (("failure_type", kind), ("scope", scope));
                let labels = [name, kind, id, image, short, namespace, of_pod, scope];
                family.at(&labels, number(count), Some(container.usage.at_ms));
            }
        }
    }
}

fn starts(text: &mut Exposition, pods: &[PodUsage]) {
    let mut family = text.family(
        "container_start_time_seconds",
        Kind::Gauge,
        "Start time of the container since unix epoch in seconds.",
    );
    for (pod, container) in pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c))) {
        let of = [container.image.as_str(), container.id.as_str()];
        let place = [pod.pod.namespace.as_str(), &pod.pod.name];
        let started_us = u64::try_from(container.started_at / 1000).unwrap_or(0);
        let labels = labels(&container.name, &container.cgroup, of, place);
        family.at(&labels, seconds(started_us), Some(container.usage.at_ms));
    }
}

fn network(text: &mut Exposition, pods: &[PodUsage]) {
    for (name, help, pick) in NETWORK {
        let mut family = text.family(name, Kind::Counter, help);
        for (pod, interface) in pods.iter().flat_map(|p| p.network.iter().map(move |i| (p, i))) {
            let labels = [
                ("container", ""),
                ("id", pod.cgroup.as_str()),
                ("image", ""),
                ("interface", &interface.name),
                ("name", pod.sandbox.as_str()),
                ("namespace", &pod.pod.namespace),
                ("pod", &pod.pod.name),
            ];
            family.at(&labels, number(pick(interface)), Some(pod.total.at_ms));
        }
    }
}

/// Of the node by file system, of each container where its writable layer is.
fn file_systems(text: &mut Exposition, at_ms: i64, (pods, disks): (&[PodUsage], &Disks)) {
    let places = disks.places();
    let containers = pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c)));
    let containers: Vec<_> = containers
        .filter_map(|(pod, container)| {
            let used = disks.pods.get(&pod.pod.uid)?.containers.get(&container.name)?;
            Some((pod, container, used, disks.containers.as_ref()?))
        })
        .collect();
    let labels = |device, id, of, [container, namespace, pod]: [_; 3]| {
        let [first, rest @ ..] = labels(container, id, of, [namespace, pod]);
        let [id, image, name, namespace, pod] = rest;
        [first, ("device", device), id, image, name, namespace, pod]
    };
    let used = ("container_fs_usage_bytes", USAGE, None);
    let limits = disks::LIMITS.map(|(name, help, pick)| (name, help, Some(pick)));
    for (name, help, pick) in std::iter::once(used).chain(limits) {
        let mut family = text.family(name, Kind::Gauge, help);
        for place in &places {
            let fs = &place.file_system;
            let value = pick.map_or(fs.used_bytes, |pick| pick(fs));
            let labels = labels(place.device.as_str(), "/", ["", ""], ["", "", ""]);
            family.at(&labels, number(value), Some(at_ms));
        }
        for (pod, container, used, place) in &containers {
            let value =
                pick.map_or(used.rootfs.bytes, |pick: disks::FsPick| pick(&place.file_system));
            let of = [container.image.as_str(), container.id.as_str()];
            let whose = [container.name.as_str(), &pod.pod.namespace, &pod.pod.name];
            let labels = labels(&place.device, &container.cgroup, of, whose);
            let at_ms = if pick.is_some() { at_ms } else { used.at_ms };
            family.at(&labels, number(value), Some(at_ms));
        }
    }
}

const USAGE: &str = "Number of bytes that are consumed by the container on this filesystem.";

fn machine(text: &mut Exposition, host: &Host) {
    text.family("machine_cpu_cores", Kind::Gauge, "Number of logical CPU cores.")
        .sample(&[], number(host.cpus));
    text.family("machine_memory_bytes", Kind::Gauge, "Amount of memory installed on the machine.")
        .sample(&[], number(host.capacity_bytes));
}
