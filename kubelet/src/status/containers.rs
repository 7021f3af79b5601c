//! The state of one container in a pod's status: waiting, running or terminated, with upstream's
//! reasons.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_runtime::interface::ContainerState as RuntimeState;
use berth_runtime::interface::ContainerStatus as Record;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser, Pod,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Input, Stage};
use crate::clock;
use crate::probe;
use crate::resize::{self, Size};
use crate::worker::members::{self, Role, Ruling};
use crate::worker::memory::{self, Failed, Failure, ImageState};
use crate::worker::runs::{self, Ended, Run};

/// The scheme of container identifiers in a status.
pub const SCHEME: &str = "berth";

/// Whether all init containers are through (in the live sandbox, if there is one).
pub fn initialized(input: &Input<'_>) -> bool {
    incomplete_inits(input).is_empty()
}

/// The init containers that have not succeeded, and the sidecars that have not started. Empty once
/// an app container was made.
pub fn incomplete_inits(input: &Input<'_>) -> Vec<String> {
    let apps = members::app_containers(input.pod);
    if apps.iter().any(|c| !matches!(newest(input, c).0, Run::None)) {
        return Vec::new();
    }
    let is_through = |container: &Container| match (
        members::role_of_init(container),
        newest(input, container).0,
    ) {
        (Role::Sidecar, Run::Running(record)) => {
            input.memory.probes.get(&record.id).is_some_and(|results| results.started)
        }
        (Role::Sidecar, _) => false,
        (_, Run::Ended { ended, .. }) => ended.exit_code == 0,
        _ => false,
    };
    let inits = members::init_containers(input.pod).iter();
    inits.filter(|c| !is_through(c)).map(|c| c.name.clone()).collect()
}

fn newest<'a>(input: &Input<'a>, container: &Container) -> (Run<'a>, Option<Ended>) {
    let remembered = input.memory.containers.get(&container.name).map(|c| &c.remembered);
    runs::newest(input.sandboxes, &container.name, remembered, &input.memory.termination_messages)
}

/// The status of one container.
pub fn status(input: &Input<'_>, (role, container): (Role, &Container)) -> ContainerStatus {
    let (run, before) = newest(input, container);
    if !matches!(run, Run::Running(_))
        && let Some(told) = exchanged(input, container)
    {
        return told.clone();
    }
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: (role != Role::Ephemeral).then_some(false),
        last_state: Some(ContainerState::default()),
        ..ContainerStatus::default()
    };
    match run {
        Run::None => {
            status.state = Some(waiting(not_started(input, container, role)));
            status.restart_count = remembered_restarts(input, container);
        }
        // It is about to run, for the first time or again; its number counts once it does.
        Run::Created(_) => {
            let counted = before.as_ref().map_or(0, |before| count(before.restart_count));
            status.state = Some(waiting(not_started(input, container, role)));
            status.restart_count = counted.max(remembered_restarts(input, container));
            status.last_state = Some(before.as_ref().map(terminated).unwrap_or_default());
        }
        Run::Running(record) => {
            running(input, (role, container), (record, before), &mut status);
        }
        Run::Ended { ended, .. } => {
            status.restart_count = count(ended.restart_count);
            status.image.clone_from(&ended.image);
            status.image_id = ended.image_id.clone();
            status.container_id = ended.id.as_deref().map(with_scheme);
            status.resources = resize::shown(container, None);
            status.allocated_resources = allocated(container);
            let waits = will_restart(input, (role, container), &ended)
                .then(|| between_runs(input, container, &ended))
                .flatten();
            match waits {
                Some(failure) => {
                    status.state = Some(waiting(failure));
                    status.last_state = Some(terminated(&ended));
                }
                None => {
                    status.ready = role == Role::Init && ended.exit_code == 0;
                    status.state = Some(terminated(&ended));
                    status.last_state = Some(before.as_ref().map(terminated).unwrap_or_default());
                }
            }
        }
    }
    status.volume_mounts = volume_mounts(container);
    status
}

fn count(attempt: u32) -> i32 {
    i32::try_from(attempt).unwrap_or(i32::MAX)
}

fn with_scheme(id: &str) -> String {
    format!("{SCHEME}://{id}")
}

fn remembered_restarts(input: &Input<'_>, container: &Container) -> i32 {
    let memory = input.memory.containers.get(&container.name);
    count(memory.map_or(0, |m| m.remembered.restart_count))
}

fn running(
    input: &Input<'_>,
    (role, container): (Role, &Container),
    (record, before): (&Record, Option<Ended>),
    status: &mut ContainerStatus,
) {
    let RuntimeState::Running { started_at } = record.state else {
        return;
    };
    let has_startup = probe::is_run(container.startup_probe.as_ref());
    let probes = input.memory.probes.get(&record.id).copied();
    let probes = probes.unwrap_or(memory::ProbeResults {
        started: !has_startup,
        ready: !has_startup && !probe::is_run(container.readiness_probe.as_ref()),
    });
    // Probes have no say about ephemeral containers, and those none about the pod.
    if role != Role::Ephemeral {
        status.started = Some(probes.started);
        status.ready = probes.started && probes.ready;
    }
    status.restart_count = count(record.config.attempt);
    status.container_id = Some(with_scheme(record.id.as_str()));
    status.image.clone_from(&record.config.image_reference);
    status.image_id = runs::shown_image_id(record);
    status.stop_signal = container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    status.state = Some(ContainerState {
        running: Some(ContainerStateRunning {
            started_at: Some(Time(clock::whole_seconds(clock::from_nanoseconds(started_at)))),
        }),
        ..ContainerState::default()
    });
    status.last_state = Some(before.as_ref().map(terminated).unwrap_or_default());
    status.resources = resize::shown(container, Size::in_force(record).as_ref());
    status.allocated_resources = allocated(container);
    status.user = record.user.as_ref().map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: i64::from(user.uid),
            gid: i64::from(user.gid),
            supplemental_groups: Some(
                user.supplemental_groups.iter().map(|g| i64::from(*g)).collect(),
            ),
        }),
    });
}

fn allocated(container: &Container) -> Option<BTreeMap<String, Quantity>> {
    container.resources.as_ref().and_then(|resources| resources.requests.clone())
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let mounts = mounts
        .iter()
        .map(|m| {
            let read_only = m.read_only.unwrap_or(false);
            VolumeMountStatus {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| {
                    match m.recursive_read_only.as_deref() {
                        Some("Enabled" | "IfPossible") => "Enabled",
                        _ => "Disabled",
                    }
                    .to_owned()
                }),
                ..VolumeMountStatus::default()
            }
        })
        .collect();
    Some(mounts)
}

fn waiting(failure: Failure) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(failure.reason),
            message: (!failure.message.is_empty()).then_some(failure.message),
        }),
        ..ContainerState::default()
    }
}

fn terminated(ended: &Ended) -> ContainerState {
    let time = |t: Option<jiff::Timestamp>| t.map(|t| Time(clock::whole_seconds(t)));
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: ended.id.as_deref().map(with_scheme),
            exit_code: ended.exit_code,
            finished_at: time(ended.finished_at),
            message: ended.message.clone(),
            reason: (!ended.reason.is_empty()).then(|| ended.reason.clone()),
            signal: None,
            started_at: time(ended.started_at),
        }),
        ..ContainerState::default()
    }
}

fn will_restart(input: &Input<'_>, (role, container): (Role, &Container), ended: &Ended) -> bool {
    if input.stage == Stage::Ending || input.memory.verdict.is_some() {
        return false;
    }
    ended.reason == members::RESTARTING_ALL
        || members::ruling(input.pod, (role, container), ended.exit_code) != Ruling::Stay
}

fn not_started(input: &Input<'_>, container: &Container, role: Role) -> Failure {
    let failure = match role {
        Role::App if !initialized(input) => None,
        Role::Init | Role::Sidecar if !is_next_init(input, container) => None,
        _ => problem(input, container),
    };
    failure.unwrap_or_else(|| {
        let has_inits = !members::init_containers(input.pod).is_empty();
        let reason = match has_inits && role != Role::Ephemeral {
            true => "PodInitializing",
            false => "ContainerCreating",
        };
        Failure::new(reason, "")
    })
}

fn is_next_init(input: &Input<'_>, container: &Container) -> bool {
    incomplete_inits(input).first() == Some(&container.name)
}

/// What was told of a container while it ran, where it has made way for one of another image that is
/// about to run: upstream does both in one go, and tells of what comes of it.
fn exchanged<'a>(input: &Input<'a>, container: &Container) -> Option<&'a ContainerStatus> {
    if input.stage == Stage::Ending || input.memory.verdict.is_some() {
        return None;
    }
    let memory = input.memory.containers.get(&container.name)?;
    let (id, until) = memory.exchange(&input.memory.pacing)?;
    let sandbox = runs::live_sandbox(input.sandboxes)?;
    if input.now >= until || !sandbox.containers.iter().any(|record| record.id == *id) {
        return None;
    }
    let (inits, apps) =
        (&input.previous.init_container_statuses, &input.previous.container_statuses);
    let told = inits.iter().chain(apps).flatten().find(|told| told.name == container.name)?;
    let is_told_running = told.state.as_ref().is_some_and(|state| state.running.is_some())
        && told.container_id == Some(with_scheme(id.as_str()));
    is_told_running.then_some(told)
}

/// Why a container that ended is not running again yet; `None` while nothing holds it up.
fn between_runs(input: &Input<'_>, container: &Container, ended: &Ended) -> Option<Failure> {
    if let Some(problem) = problem(input, container) {
        return Some(problem);
    }
    if ended.reason == members::RESTARTING_ALL {
        return Some(Failure::new(members::RESTARTING_ALL, runs::RESET_MESSAGE));
    }
    let memory = input.memory.containers.get(&container.name)?;
    let (_, at) = memory.ended_at.as_ref()?;
    let wait = memory.restart_backoff.waiting(*at, input.now)?;
    Some(crash_loop(input.pod, &container.name, wait.delay))
}

/// The wait of a container that keeps ending.
pub fn crash_loop(pod: &Pod, container: &str, delay: Duration) -> Failure {
    Failure::new(
        "CrashLoopBackOff",
        format!(
            "back-off {} restarting failed container={container} pod={}",
            go_duration(delay),
            full_name(pod)
        ),
    )
}

/// What keeps a container from starting: its image, or the start itself.
fn problem(input: &Input<'_>, container: &Container) -> Option<Failure> {
    let memory = input.memory.containers.get(&container.name)?;
    let fresh = |failed: &Failed| input.now < failed.at + input.memory.pacing.fresh;
    if let ImageState::Failed(failed) = &memory.image {
        return Some(match fresh(failed) {
            true => failed.failure.clone(),
            false => image_wait(container, &failed.failure),
        });
    }
    let failed = memory.start_failure.as_ref()?;
    let in_crash_loop = memory.ended_at.is_some() && failed.failure.reason == "RunContainerError";
    (fresh(failed) || !in_crash_loop).then(|| failed.failure.clone())
}

/// What an image failure is called while the next pull is waited for.
pub fn image_wait(container: &Container, failure: &Failure) -> Failure {
    match failure.reason.as_str() {
        "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed" => Failure::new(
            "ImagePullBackOff",
            format!(
                "Back-off pulling image \"{}\": {}: {}",
                failure.image.as_ref().or(container.image.as_ref()).map_or("", String::as_str),
                failure.reason,
                failure.message
            ),
        ),
        _ => failure.clone(),
    }
}

/// `<name>_<namespace>(<uid>)`, as upstream's messages name a pod.
pub fn full_name(pod: &Pod) -> String {
    format!(
        "{}_{}({})",
        pod.metadata.name.as_deref().unwrap_or_default(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.uid.as_deref().unwrap_or_default()
    )
}

/// A duration of whole seconds as Go prints it: `10s`, `1m20s`, `1h0m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}
