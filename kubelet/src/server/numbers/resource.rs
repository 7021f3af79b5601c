//! `/metrics/resource`: what metrics-server, and so `kubectl top` and the autoscaler, read. Times are
//! those at which the kernel was asked. Pure.

use berth_runtime::interface::{ContainerUsage, PodUsage, Usage};

use super::exposition::{Exposition, Kind, number, seconds};
use super::host::Host;

/// One number of a cgroup, where the host keeps it.
type Pick = fn(&Usage) -> Option<f64>;

const CPU: Pick = |usage| usage.cpu.as_ref().map(|cpu| seconds(cpu.total_us));
const MEMORY: Pick = |usage| usage.memory.as_ref().map(|memory| number(memory.working_set_bytes));
const SWAP: Pick = |usage| {
    let details = usage.memory.as_ref()?.details.as_ref()?;
    details.swap_bytes.map(number)
};

fn labels<'a>(pod: &'a PodUsage, container: &'a ContainerUsage) -> [(&'static str, &'a str); 3] {
    [("container", &container.name), ("namespace", &pod.pod.namespace), ("pod", &pod.pod.name)]
}

/// Renders the page.
pub(super) fn render(host: &Host, at_ms: i64, pods: &[PodUsage]) -> String {
    let mut text = Exposition::default();
    for (name, kind, help, pick) in [
        (
            "container_cpu_usage_seconds_total",
            Kind::Counter,
            "Cumulative cpu time consumed by the container in core-seconds",
            CPU,
        ),
        (
            "container_memory_working_set_bytes",
            Kind::Gauge,
            "Current working set of the container in bytes",
            MEMORY,
        ),
        (
            "container_swap_usage_bytes",
            Kind::Gauge,
            "Current amount of the container swap usage in bytes",
            SWAP,
        ),
    ] {
        let mut family = text.family(name, kind, help);
        for (pod, container) in pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c))) {
            let labels = labels(pod, container);
            if let Some(value) = pick(&container.usage) {
                family.at(&labels, value, Some(container.usage.at_ms));
            }
        }
    }
    let help = "Current amount of the container swap limit in bytes";
    let mut swap = text.family("container_swap_limit_bytes", Kind::Gauge, help);
    for (pod, container) in pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c))) {
        let limit = container.limits.memory_swap_bytes.filter(|_| SWAP(&container.usage).is_some());
        let labels = labels(pod, container);
        if let Some(limit) = limit {
            swap.at(&labels, number(limit), Some(container.usage.at_ms));
        }
    }
    let mut starts = text.family(
        "container_start_time_seconds",
        Kind::Gauge,
        "Start time of the container since unix epoch in seconds",
    );
    for (pod, container) in pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c))) {
        let labels = labels(pod, container);
        let started_us = u64::try_from(container.started_at / 1000).unwrap_or(0);
        starts.sample(&labels, seconds(started_us));
    }
    node(&mut text, host, at_ms);
    for (name, kind, help, pick) in [
        (
            "pod_cpu_usage_seconds_total",
            Kind::Counter,
            "Cumulative cpu time consumed by the pod in core-seconds",
            CPU,
        ),
        (
            "pod_memory_working_set_bytes",
            Kind::Gauge,
            "Current working set of the pod in bytes",
            MEMORY,
        ),
        (
            "pod_swap_usage_bytes",
            Kind::Gauge,
            "Current amount of the pod swap usage in bytes",
            SWAP,
        ),
    ] {
        let mut family = text.family(name, kind, help);
        for pod in pods {
            let labels = [("namespace", pod.pod.namespace.as_str()), ("pod", &pod.pod.name)];
            if let Some(value) = pick(&pod.total) {
                family.at(&labels, value, Some(pod.total.at_ms));
            }
        }
    }
    text.family(
        "resource_scrape_error",
        Kind::Gauge,
        "1 if there was an error while getting container metrics, 0 otherwise",
    )
    .sample(&[], 0.0);
    text.finish()
}

fn node(text: &mut Exposition, host: &Host, at_ms: i64) {
    for (name, kind, help, value) in [
        (
            "node_cpu_usage_seconds_total",
            Kind::Counter,
            "Cumulative cpu time consumed by the node in core-seconds",
            seconds(host.cpu_us),
        ),
        (
            "node_memory_working_set_bytes",
            Kind::Gauge,
            "Current working set of the node in bytes",
            number(host.working_set_bytes),
        ),
        (
            "node_swap_usage_bytes",
            Kind::Gauge,
            "Current swap usage of the node in bytes",
            number(host.swap_bytes),
        ),
    ] {
        text.family(name, kind, help).at(&[], value, Some(at_ms));
    }
}
