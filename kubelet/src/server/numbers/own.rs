//! `/metrics`: the agent about itself, under the names that the kubelet's dashboards and alerts read.
//! Only what is counted is told. Pure.

use std::collections::BTreeMap;

use berth_runtime::interface::{ContainerState, SandboxState, SandboxStatus};

use super::disks::{self, Claim};
use super::exposition::{Exposition, Kind, number, seconds};
use super::host::{Host, Own};
use crate::config::KUBELET_VERSION;
use crate::disk::VolumeUse;
use crate::meters::{Meters, Sort, plugins};
use crate::shelf::Shown;

/// Whether a container is in a state.
type Is = fn(&ContainerState) -> bool;

/// When the agent started, in seconds since the epoch.
pub(super) fn started_at(host: &Host, own: Own) -> f64 {
    number(u64::try_from(host.booted_at).unwrap_or(0)) + number(own.started_ticks) / 100.0
}

/// What is told besides what is measured.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) node: &'a str,
    pub(super) pods: &'a [SandboxStatus],
    pub(super) shown: &'a [Shown],
    pub(super) claims: &'a BTreeMap<Claim, VolumeUse>,
    pub(super) meters: &'a Meters,
    /// Now, in seconds since the epoch.
    pub(super) at: f64,
}

/// Renders the page.
pub(super) fn render(facts: &Facts<'_>, (host, own): (&Host, Own)) -> String {
    let Facts { node, pods, claims, meters, at, .. } = *facts;
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
    volumes(&mut text, facts);
    text.family("kubelet_metrics_provider", Kind::Gauge, "Where numbers of containers come from.")
        .sample(&[("provider", "cadvisor")], 1.0);
    text.family("kubelet_cgroup_version", Kind::Gauge, "Of the host's cgroups.").sample(&[], 2.0);
    counted(&mut text, meters, at);
    text.finish()
}

/// The volumes that pods are to have, and those of pods that have a sandbox: all that they want.
fn volumes(text: &mut Exposition, facts: &Facts<'_>) {
    let mut totals: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for shown in facts.shown {
        let uid = shown.pod.metadata.uid.as_deref().unwrap_or_default();
        let is_there = facts.pods.iter().any(|sandbox| sandbox.config.pod.uid == uid);
        for plugin in plugins(&shown.pod) {
            let mut count = |state| *totals.entry((plugin, state)).or_default() += 1;
            if is_there {
                count("actual_state_of_world");
            }
            if !shown.is_over() {
                count("desired_state_of_world");
            }
        }
    }
    let mut family = text.family(
        "volume_manager_total_volumes",
        Kind::Gauge,
        "Number of volumes in Volume Manager",
    );
    for ((plugin, state), count) in totals {
        family.sample(&[("plugin_name", plugin), ("state", state)], number(count));
    }
}

/// What the agent counted; `at` is now, in seconds since the epoch.
fn counted(text: &mut Exposition, meters: &Meters, at: f64) {
    for (meter, all) in meters.all() {
        let kind = match meter.sort {
            Sort::Counter => Kind::Counter,
            Sort::Histogram(_) => Kind::Histogram,
            Sort::Remaining | Sort::Moment => Kind::Gauge,
        };
        let mut family = text.family(meter.name, kind, meter.help);
        for (values, tally) in &all {
            let labels: Vec<(&str, &str)> =
                meter.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            match meter.sort {
                Sort::Counter => family.sample(&labels, number(tally.count)),
                Sort::Remaining => family.sample(&labels, tally.seconds - at),
                Sort::Moment => family.sample(&labels, tally.seconds),
                Sort::Histogram(bounds) => {
                    let buckets = bounds.iter().copied().zip(tally.buckets.iter().copied());
                    family.histogram(&labels, buckets, (tally.count, tally.seconds));
                }
            }
        }
    }
}
