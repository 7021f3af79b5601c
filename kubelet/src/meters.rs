//! What the agent counts of its own work, and how long that took. `/metrics` tells it under the names
//! that the kubelet's dashboards and alerts read.
//!
//! Labels are of small sets known to berth: nothing that a pod or a caller chooses becomes one, and
//! beyond [`MOST`] series no new one is begun.

mod metered;
mod startup;
mod volume;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_runtime::cgroup::observer::{Observer, Operation};

pub use metered::Metered;
pub use startup::Startup;
pub(crate) use startup::{Change, note_status};
pub(crate) use volume::{note_volume, plugins};

/// The most series that are kept: some 200 bytes each.
const MOST: usize = 4096;

/// The upper bounds of Prometheus' own buckets, in seconds.
pub const USUAL: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Buckets of a runtime's operations: each bound is 2.5 times the one before.
const OPERATIONS: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];

/// Buckets of starts of pods.
const STARTS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0,
    300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

/// Buckets of requests to the API server.
const REQUESTS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// Buckets of pulls of images.
const PULLS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0,
    1200.0, 1800.0, 2700.0, 3600.0,
];

/// Buckets of writing a status.
const WRITES: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];

/// What is kept of something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sort {
    /// How often.
    Counter,
    /// How often, and how long it took, by buckets with these upper bounds in seconds.
    Histogram(&'static [f64]),
    /// How long it is until then, in seconds.
    Remaining,
    /// When it was, in seconds since the epoch.
    Moment,
}

/// Something that is counted.
#[derive(Debug, PartialEq)]
pub struct Meter {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What is kept of it.
    pub sort: Sort,
}

macro_rules! meters {
    ($($(#[$doc:meta])* $title:ident: $sort:expr, $name:literal, $labels:expr, $help:literal;)*) => {
        $($(#[$doc])* pub static $title: Meter =
            Meter { name: $name, help: $help, labels: &$labels, sort: $sort };)*
    };
}

meters! {
    /// Calls of the runtime or the image store.
    CALLS: Sort::Counter, "kubelet_runtime_operations_total", ["operation_type"],
        "Calls of the container runtime.";
    /// Those that failed.
    FAILED_CALLS: Sort::Counter, "kubelet_runtime_operations_errors_total", ["operation_type"],
        "Calls of the container runtime that failed.";
    /// How long they took.
    CALL_TIME: Sort::Histogram(&OPERATIONS), "kubelet_runtime_operations_duration_seconds",
        ["operation_type"], "How long calls of the container runtime took.";
    /// What was done to cgroups of pods.
    CGROUP_TIME: Sort::Histogram(&USUAL), "kubelet_cgroup_manager_duration_seconds",
        ["operation_type"], "How long it took to make, change or remove a cgroup.";
    /// Images that garbage collection removed.
    IMAGES_REMOVED: Sort::Counter, "kubelet_image_garbage_collected_total", ["reason"],
        "Images that were removed for want of space, or for their age.";
    /// How long sandboxes took.
    SANDBOX_TIME: Sort::Histogram(&USUAL), "kubelet_run_podsandbox_duration_seconds",
        ["runtime_handler"], "How long it took to make a pod sandbox.";
    /// Sandboxes that could not be made.
    FAILED_SANDBOXES: Sort::Counter, "kubelet_run_podsandbox_errors_total", ["runtime_handler"],
        "Pod sandboxes that could not be made.";
    /// Pods that were started.
    PODS: Sort::Counter, "kubelet_started_pods_total", [], "Pods that were begun to start.";
    /// Those whose sandbox could not be made.
    FAILED_PODS: Sort::Counter, "kubelet_started_pods_errors_total", [],
        "Pods that could not be started.";
    /// Pods with a user namespace of their own that were started.
    USER_PODS: Sort::Counter, "kubelet_started_user_namespaced_pods_total", [],
        "Pods with a user namespace of their own that were begun to start.";
    /// Those whose sandbox could not be made.
    FAILED_USER_PODS: Sort::Counter, "kubelet_started_user_namespaced_pods_errors_total", [],
        "Pods with a user namespace of their own that could not be started.";
    /// Containers that were started.
    CONTAINERS: Sort::Counter, "kubelet_started_containers_total", ["container_type"],
        "Containers that were begun to start.";
    /// Those that did not start.
    FAILED_CONTAINERS: Sort::Counter, "kubelet_started_containers_errors_total",
        ["container_type", "code"], "Containers that did not start, by reason.";
    /// Containers that ended.
    ENDED_CONTAINERS: Sort::Counter, "kubelet_terminated_containers_total",
        ["container_type", "exit_code", "reason"], "Containers that ended.";
    /// From the first sight of a pod until it runs.
    POD_START: Sort::Histogram(&STARTS), "kubelet_pod_start_duration_seconds", [],
        "From the first sight of a pod until it runs.";
    /// From the making of a pod until all its containers are started.
    POD_START_TOTAL: Sort::Histogram(&STARTS), "kubelet_pod_start_total_duration_seconds", [],
        "From a pod's creation until all its containers are started.";
    /// The same without pulls and init containers, for pods without lasting volumes.
    POD_START_SLI: Sort::Histogram(&STARTS), "kubelet_pod_start_sli_duration_seconds", [],
        "From a pod's creation until all its containers are started, without pulls and init containers.";
    /// From the first sight of a pod until its worker looks.
    WORKER_START: Sort::Histogram(&USUAL), "kubelet_pod_worker_start_duration_seconds", [],
        "From the first sight of a pod until its worker begins.";
    /// A worker's looks.
    WORKER_TIME: Sort::Histogram(&USUAL), "kubelet_pod_worker_duration_seconds",
        ["operation_type"], "How long a pod's worker took to see and to plan.";
    /// Writes of statuses.
    STATUS_TIME: Sort::Histogram(&WRITES), "kubelet_pod_status_sync_duration_seconds", [],
        "From a change of a pod's status until the API server has it.";
    /// Pulls of images.
    PULL_TIME: Sort::Histogram(&PULLS), "kubelet_image_pull_duration_seconds",
        ["image_size_in_bytes"], "How long images took to be pulled, by their size.";
    /// Hooks that spoke TLS to who does not.
    HOOK_FALLBACKS: Sort::Counter, "kubelet_lifecycle_handler_http_fallbacks_total", [],
        "Hooks that asked by HTTPS and were answered by HTTP.";
    /// Pods that were refused.
    REFUSED_PODS: Sort::Counter, "kubelet_admission_rejections_total", ["reason"],
        "Pods that the node refused.";
    /// Pods that were evicted.
    EVICTIONS: Sort::Counter, "kubelet_evictions", ["eviction_signal"],
        "Pods that were evicted, by what was short.";
    /// When the node began to go down last.
    SHUTDOWN_START: Sort::Moment, "kubelet_graceful_shutdown_start_time_seconds", [],
        "When the node began to shut down last, in seconds since the epoch.";
    /// When all that was to end had ended.
    SHUTDOWN_END: Sort::Moment, "kubelet_graceful_shutdown_end_time_seconds", [],
        "When the last shutdown of the node had ended its pods, in seconds since the epoch; 0 meanwhile.";
    /// How old what was seen of the node is when a pod is evicted for it.
    EVICTION_AGE: Sort::Histogram(&USUAL), "kubelet_eviction_stats_age_seconds",
        ["eviction_signal"], "How old the numbers were that a pod was evicted by.";
    /// Requests of the node's API.
    SERVED: Sort::Counter, "kubelet_http_requests_total",
        ["method", "path", "server_type", "long_running"], "Requests of the node's API.";
    /// How long they took.
    SERVED_TIME: Sort::Histogram(&USUAL), "kubelet_http_requests_duration_seconds",
        ["method", "path", "server_type", "long_running"], "How long requests of the node's API took.";
    /// Streams by WebSocket.
    WEB_SOCKETS: Sort::Counter, "kubelet_websocket_streaming_requests_total", ["subresource"],
        "Streams that came by WebSocket.";
    /// Requests to the API server.
    ASKED: Sort::Counter, "rest_client_requests_total", ["code", "host", "method"],
        "Requests to the API server, by status.";
    /// How long they took.
    ASKED_TIME: Sort::Histogram(&REQUESTS), "rest_client_request_duration_seconds",
        ["host", "verb"], "How long the API server took to answer.";
    /// Calls of the podresources socket.
    POD_RESOURCES: Sort::Counter, "kubelet_pod_resources_endpoint_requests_total",
        ["server_api_version"], "Calls of the podresources socket.";
    /// Those that list pods.
    LISTS: Sort::Counter, "kubelet_pod_resources_endpoint_requests_list", ["server_api_version"],
        "Calls of the podresources socket that list pods.";
    /// Those that ask what can be assigned.
    ALLOCATABLES: Sort::Counter, "kubelet_pod_resources_endpoint_requests_get_allocatable",
        ["server_api_version"], "Calls of the podresources socket for what can be assigned.";
    /// Those that ask for a pod.
    GETS: Sort::Counter, "kubelet_pod_resources_endpoint_requests_get", ["server_api_version"],
        "Calls of the podresources socket for one pod.";
    /// Those that asked for a pod in vain.
    FAILED_GETS: Sort::Counter, "kubelet_pod_resources_endpoint_errors_get",
        ["server_api_version"], "Calls of the podresources socket for a pod that is not there.";
    /// Client certificates that could not be had.
    FAILED_CLIENT_RENEWALS: Sort::Counter,
        "kubelet_certificate_manager_client_expiration_renew_errors", [],
        "Client certificates that could not be renewed.";
    /// Serving certificates that could not be had.
    FAILED_SERVING_RENEWALS: Sort::Counter, "kubelet_server_expiration_renew_errors", [],
        "Serving certificates that could not be renewed.";
    /// Until the client certificate ends.
    CLIENT_CERTIFICATE: Sort::Remaining, "kubelet_certificate_manager_client_ttl_seconds", [],
        "Until the client certificate ends; negative when it has.";
    /// Until the serving certificate ends.
    SERVING_CERTIFICATE: Sort::Remaining, "kubelet_certificate_manager_server_ttl_seconds", [],
        "Until the serving certificate ends; negative when it has.";
    /// Mounts of volumes.
    VOLUME_TIME: Sort::Histogram(&VOLUMES), "storage_operation_duration_seconds",
        ["migrated", "operation_name", "status", "volume_plugin"], "How long volumes took to be made.";
}

/// Buckets of volumes.
const VOLUMES: [f64; 11] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0];

/// What was counted under some labels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// The sum of all seconds; the moment for [`Sort::Remaining`] and [`Sort::Moment`], in seconds since the
    /// epoch.
    pub seconds: f64,
    /// How many took at most as long as each bound, and longer than the one before.
    pub buckets: Vec<u64>,
}

impl Tally {
    fn take(&mut self, seconds: f64, bounds: &[f64]) {
        self.count += 1;
        self.seconds += seconds;
        self.buckets.resize(bounds.len(), 0);
        if let Some(at) = bounds.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
    }
}

/// A meter's labels with what was counted under them.
pub type Series = (Vec<String>, Tally);

type Kept = BTreeMap<&'static str, (&'static Meter, BTreeMap<Vec<String>, Tally>)>;

/// Keeps what is counted. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Meters(Arc<Mutex<Kept>>);

impl Meters {
    /// Counts one.
    pub fn count(&self, meter: &'static Meter, labels: &[&str]) {
        self.change(meter, labels, |tally| tally.count += 1);
    }

    /// Counts one that took so long.
    pub fn time(&self, meter: &'static Meter, labels: &[&str], took: Duration) {
        if let Sort::Histogram(bounds) = meter.sort {
            self.change(meter, labels, |tally| tally.take(took.as_secs_f64(), bounds));
        }
    }

    /// Keeps a moment, in seconds since the epoch.
    pub fn at(&self, meter: &'static Meter, moment: f64) {
        self.change(meter, &[], |tally| tally.seconds = moment);
    }

    fn change(&self, meter: &'static Meter, labels: &[&str], change: impl FnOnce(&mut Tally)) {
        debug_assert_eq!(meter.labels.len(), labels.len(), "{}", meter.name);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = kept.values().map(|(_, series)| series.len()).sum();
        let (_, series) = kept.entry(meter.name).or_insert((meter, BTreeMap::new()));
        let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
        if total < MOST || series.contains_key(&labels) {
            change(series.entry(labels).or_default());
        }
    }

    /// All that was counted, by name.
    pub fn all(&self) -> Vec<(&'static Meter, Vec<Series>)> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let series = |series: &BTreeMap<Vec<String>, Tally>| {
            series.iter().map(|(labels, tally)| (labels.clone(), tally.clone())).collect()
        };
        kept.values().map(|(meter, kept)| (*meter, series(kept))).collect()
    }
}

impl Observer for Meters {
    fn ended(&self, operation: Operation, took: Duration) {
        let name = match operation {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::Destroy => "destroy",
        };
        self.time(&CGROUP_TIME, &[name], took);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What was counted of a meter, by its labels joined by spaces.
    pub(crate) fn counted(meters: &Meters, meter: &Meter) -> BTreeMap<String, u64> {
        let all = meters.all();
        let of_meter = all.iter().filter(|(one, _)| *one == meter).flat_map(|(_, series)| series);
        of_meter.map(|(labels, tally)| (labels.join(" "), tally.count)).collect()
    }

    #[test]
    fn what_took_longer_than_the_last_bound_is_counted_all_the_same() {
        let meters = Meters::default();
        for seconds in [0.005, 0.02, 700.0, 800.0] {
            meters.time(&CALL_TIME, &["exec"], Duration::from_secs_f64(seconds));
        }
        let all = meters.all();
        let (_, tally) = &all[0].1[0];
        assert_eq!((tally.count, tally.buckets[0], tally.buckets[2]), (4, 1, 1));
        assert_eq!((tally.buckets[13], tally.buckets.iter().sum::<u64>()), (1, 3));
    }

    #[test]
    fn no_more_series_are_begun_than_there_is_room_for() {
        let meters = Meters::default();
        for number in 0..MOST + 10 {
            meters.count(&REFUSED_PODS, &[&number.to_string()]);
        }
        meters.count(&REFUSED_PODS, &["0"]);
        meters.count(&PODS, &[]);
        let counts = counted(&meters, &REFUSED_PODS);
        assert_eq!((counts.len(), counts["0"]), (MOST, 2));
        assert!(counted(&meters, &PODS).is_empty());
    }
}
