//! `/metrics`: the agent about itself, under the names that the kubelet's dashboards and alerts read.
//! Only what is counted is told. Pure.

use std::collections::BTreeMap;

use berth_runtime::interface::{ContainerState, SandboxState, SandboxStatus};

use super::disks::{self, Claim};
use super::exposition::{Exposition, Kind, number, seconds};
use super::host::{Host, Own};
use crate::config::KUBELET_VERSION;
use crate::disk::VolumeUse;

/// Whether a container is in a state.
type Is = fn(&ContainerState) -> bool;

/// When the agent started, in seconds since the epoch.
pub(super) fn started_at(host: &Host, own: Own) -> f64 {
    number(u64::try_from(host.booted_at).unwrap_or(0)) + number(own.started_ticks) / 100.0
}

/// Renders the page.
pub(super) fn render(
    node: &str,
    (host, own): (&Host, Own),
    (pods, claims): (&[SandboxStatus], &BTreeMap<Claim, VolumeUse>),
) -> String {
    let mut text = Exposition::default();
    let mut gauge = |name, help, value| text.family(name, Kind::Gauge, help).sample(&[], value);
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        number(own.resident_bytes),
    );
    gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        number(own.virtual_bytes),
    );
    gauge("process_open_fds", "Number of open file descriptors.", number(own.descriptors));
    gauge("process_threads", "Number of threads of the process.", number(own.threads));
    let ready = pods.iter().filter(|s| s.state == SandboxState::Ready).count();
    gauge(
        "kubelet_running_pods",
        "Number of pods that have a running pod sandbox",
        number(u64::try_from(ready).unwrap_or(0)),
    );
    text.started(started_at(host, own));
    let cpu = seconds(own.cpu_us);
    text.family(
        "process_cpu_seconds_total",
        Kind::Counter,
        "Total user and system CPU time spent in seconds.",
    )
    .sample(&[], cpu);
    text.family("kubelet_node_name", Kind::Gauge, "The node's name. The count is always 1.")
        .sample(&[("node", node)], 1.0);
    text.family(
        "kubernetes_build_info",
        Kind::Gauge,
        "A metric with a constant '1' value labeled by version and platform.",
    )
    .sample(&[("git_version", KUBELET_VERSION), ("platform", "linux")], 1.0);
    let mut running = text.family(
        "kubelet_running_containers",
        Kind::Gauge,
        "Number of containers currently running",
    );
    let states: [(&str, Is); 3] = [
        ("created", |s| matches!(s, ContainerState::Created)),
        ("exited", |s| matches!(s, ContainerState::Exited { .. })),
        ("running", |s| matches!(s, ContainerState::Running { .. })),
    ];
    for (state, is) in states {
        let count = pods.iter().flat_map(|s| &s.containers).filter(|c| is(&c.state)).count();
        let count = number(u64::try_from(count).unwrap_or(0));
        running.sample(&[("container_state", state)], count);
    }
    disks::volumes(&mut text, claims);
    text.finish()
}
