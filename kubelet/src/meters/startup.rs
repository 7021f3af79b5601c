//! How long a pod took to start, and how its containers ended, by what changes in its status.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use tokio::time::Instant;

use super::{ENDED_CONTAINERS, Meters, POD_START, POD_START_SLI, POD_START_TOTAL};
use crate::static_pods;

/// A pod's way to its start.
#[derive(Debug)]
pub struct Startup {
    /// When it was first seen.
    pub seen: Instant,
    /// Pulls under way, and since when there is one.
    pulling: (usize, Instant),
    /// How long there was one before.
    pulled: Duration,
    /// Whether its start has been told, or is none of this agent's.
    told: bool,
}

impl Startup {
    /// A pod that is seen for the first time, with the status that it has. One that has been started
    /// before is none of this agent's.
    pub fn new(status: &PodStatus, now: Instant) -> Self {
        let told = status.start_time.is_some();
        Self { seen: now, pulling: (0, now), pulled: Duration::ZERO, told }
    }

    /// An image begins to be got.
    pub fn pull_begun(&mut self, now: Instant) {
        if self.pulling.0 == 0 {
            self.pulling.1 = now;
        }
        self.pulling.0 += 1;
    }

    /// An image has been got, or not.
    pub fn pull_ended(&mut self, now: Instant) {
        self.pulling.0 = self.pulling.0.saturating_sub(1);
        if self.pulling.0 == 0 {
            self.pulled += now.saturating_duration_since(self.pulling.1);
        }
    }
}

/// A change of a pod's status.
pub(crate) struct Change<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) old: &'a PodStatus,
    pub(crate) new: &'a PodStatus,
    pub(crate) now: Instant,
    pub(crate) wall: Timestamp,
}

/// Counts what a change says. As upstream, a container's end is counted once for each time that its
/// status turns to it, and a start without pulls and init containers only of pods whose volumes end
/// with them.
///
/// Differs: a start is over when the status says so, not when the API server has told it back.
pub(crate) fn note_status(meters: &Meters, startup: &mut Startup, change: &Change<'_>) {
    let Change { pod, old, new, now, wall } = change;
    note_ends(meters, old, new);
    let is_running = |status: &PodStatus| status.phase.as_deref() == Some("Running");
    if startup.told || !is_running(new) {
        return;
    }
    if !is_running(old) {
        let took = now.saturating_duration_since(startup.seen);
        meters.time(&POD_START, &[], took);
    }
    let containers = new.container_statuses.as_deref().unwrap_or_default();
    let runs = |one: &ContainerStatus| one.state.as_ref().is_some_and(|s| s.running.is_some());
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let Some(created) = created.filter(|_| containers.iter().all(runs)) else { return };
    startup.told = true;
    if static_pods::is_static(pod) {
        return;
    }
    let took = Duration::try_from(wall.duration_since(created)).unwrap_or_default();
    meters.time(&POD_START_TOTAL, &[], took);
    if !outlives_pods(pod) {
        let others = startup.pulled + initialized(new);
        meters.time(&POD_START_SLI, &[], took.saturating_sub(others));
    }
}

/// Whether a volume of the pod is not made for it alone.
fn outlives_pods(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| {
        let is_own = volume.secret.is_some()
            || volume.config_map.is_some()
            || volume.downward_api.is_some()
            || volume.empty_dir.is_some()
            || volume.projected.is_some();
        !is_own
    })
}

/// How long init containers ran that have ended.
fn initialized(status: &PodStatus) -> Duration {
    let all = status.init_container_statuses.iter().flatten();
    let ended = all.filter_map(|one| one.state.as_ref()?.terminated.as_ref());
    let ran = ended.filter_map(|end| {
        let (from, to) = (end.started_at.as_ref()?.0, end.finished_at.as_ref()?.0);
        Duration::try_from(to.duration_since(from)).ok()
    });
    ran.sum()
}

fn note_ends(meters: &Meters, old: &PodStatus, new: &PodStatus) {
    let lists = |status: &'_ PodStatus| {
        [
            ("init_container", status.init_container_statuses.clone()),
            ("container", status.container_statuses.clone()),
            ("ephemeral_container", status.ephemeral_container_statuses.clone()),
        ]
    };
    for ((kind, new), (_, old)) in lists(new).into_iter().zip(lists(old)) {
        let has_ended = |name: &str| {
            let mut old = old.iter().flatten();
            old.any(|one| {
                one.name == name && one.state.as_ref().is_some_and(|s| s.terminated.is_some())
            })
        };
        for one in new.iter().flatten() {
            let end = one.state.as_ref().and_then(|state| state.terminated.as_ref());
            if let Some(end) = end.filter(|_| !has_ended(&one.name)) {
                let reason = end.reason.as_deref().unwrap_or_default();
                meters.count(&ENDED_CONTAINERS, &[kind, &end.exit_code.to_string(), reason]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::meters::tests::counted;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    fn pod(volumes: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [], "volumes": volumes},
        }))
        .unwrap()
    }

    fn ended(code: i32) -> Value {
        json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state":
            {"terminated": {"exitCode": code, "reason": "Error",
                "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:03Z"}}})
    }

    fn running() -> Value {
        json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:09Z"}}})
    }

    fn seconds(meters: &Meters, meter: &super::super::Meter) -> Vec<f64> {
        let all = meters.all();
        let found = all.iter().find(|(one, _)| *one == meter);
        found.iter().flat_map(|(_, series)| series).map(|(_, tally)| tally.seconds).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_is_told_once_and_without_pulls_and_init_containers() {
        let meters = Meters::default();
        let old = PodStatus::default();
        let now = Instant::now();
        let mut startup = Startup::new(&old, now);
        startup.pull_begun(now);
        startup.pull_begun(now + Duration::from_secs(1));
        startup.pull_ended(now + Duration::from_secs(2));
        startup.pull_ended(now + Duration::from_secs(4));
        let new = status(json!({"phase": "Running", "initContainerStatuses": [ended(0)],
            "containerStatuses": [running()]}));
        let pod = pod(json!([{"name": "v", "emptyDir": {}}]));
        let wall = "2026-01-01T00:00:10Z".parse().unwrap();
        let now = now + Duration::from_secs(7);
        note_status(&meters, &mut startup, &Change { pod: &pod, old: &old, new: &new, now, wall });
        note_status(&meters, &mut startup, &Change { pod: &pod, old: &old, new: &new, now, wall });
        assert_eq!(seconds(&meters, &POD_START), [7.0]);
        assert_eq!(seconds(&meters, &POD_START_TOTAL), [10.0]);
        assert_eq!(seconds(&meters, &POD_START_SLI), [4.0], "10 less 4 of pulls less 2 of init");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_with_lasting_volumes_have_no_bound_to_keep() {
        let meters = Meters::default();
        let (old, now) = (PodStatus::default(), Instant::now());
        let new = status(json!({"phase": "Running", "containerStatuses": [running()]}));
        let pod = pod(json!([{"name": "v", "hostPath": {"path": "/"}}]));
        let wall = "2026-01-01T00:00:10Z".parse().unwrap();
        let change = Change { pod: &pod, old: &old, new: &new, now, wall };
        note_status(&meters, &mut Startup::new(&old, now), &change);
        assert_eq!(seconds(&meters, &POD_START_SLI), [0.0; 0]);
        assert_eq!(seconds(&meters, &POD_START_TOTAL), [10.0]);
        // One that an earlier agent started is not this one's to tell of.
        let known = status(json!({"startTime": "2026-01-01T00:00:00Z"}));
        note_status(&meters, &mut Startup::new(&known, now), &change);
        assert_eq!(counted(&meters, &POD_START_TOTAL)[""], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_container_is_counted_when_the_status_turns_to_it() {
        let meters = Meters::default();
        let (pod, now, wall) = (pod(json!([])), Instant::now(), Timestamp::UNIX_EPOCH);
        let runs = status(json!({"containerStatuses": [running()]}));
        let has_ended = status(json!({"containerStatuses": [ended(137)]}));
        let mut startup = Startup::new(&PodStatus::default(), now);
        for (old, new) in [(&runs, &has_ended), (&has_ended, &has_ended), (&runs, &has_ended)] {
            note_status(&meters, &mut startup, &Change { pod: &pod, old, new, now, wall });
        }
        assert_eq!(counted(&meters, &ENDED_CONTAINERS)["container 137 Error"], 2);
    }
}
