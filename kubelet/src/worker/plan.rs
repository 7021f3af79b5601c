//! What a pod's worker does next: a pure function of what should be, what is and what is remembered.
//!
//! ```text
//!                 ┌─ volumes ─┐
//!  Goal::Run ─────┼─ sandbox ─┼─► init containers, one by one ─► containers, in spec order
//!                 └─ images ──┘            │ every container has ended for good
//!                                          ▼
//!  Goal::Finish ──► stop containers ─► stop sandboxes ─► tear volumes down ─► (rests)
//!  Goal::Remove ──► the same, then remove sandboxes ─► directories ─► done
//! ```
//!
//! It does no I/O and holds no clock: `now` comes in, the next time to look goes out. Running an
//! action twice must do no harm. Serves the pod lifecycle of the Kubernetes API; `Differs:` the
//! images of all containers are fetched side by side while sandbox and volumes are made, where the
//! kubelet fetches each when its turn comes.

mod ending;

use std::time::Duration;

use berth_runtime::interface::SandboxStatus;
use berth_runtime::interface::{ContainerId, ContainerState, Image, SandboxId, SandboxState};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;

use super::memory::{Doom, ImageState, Memory, Operation, Phase, Verdict, VolumeState};
use super::runs::{self, Run};

/// What is wanted of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// It runs.
    Run,
    /// It ends within the grace period; its records stay for status and logs.
    Finish {
        /// How long containers may take to end.
        grace: Duration,
    },
    /// It ends, and nothing of it stays.
    Remove {
        /// How long containers may take to end.
        grace: Duration,
    },
}

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The pod as the API server has it.
    pub pod: &'a Pod,
    /// What is wanted.
    pub goal: Goal,
    /// The runtime's records.
    pub sandboxes: &'a [SandboxStatus],
    /// What the worker remembers.
    pub memory: &'a Memory,
    /// The time.
    pub now: Instant,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Materialize the volumes.
    PrepareVolumes,
    /// Take the volumes down.
    TearDownVolumes,
    /// Make a sandbox.
    CreateSandbox {
        /// How many there were before.
        attempt: u32,
    },
    /// Stop a sandbox and give its network back.
    StopSandbox(SandboxId),
    /// Remove a sandbox with its records.
    RemoveSandbox(SandboxId),
    /// Find the image of a container, pulling it where the policy says so.
    EnsureImage {
        /// The container.
        container: String,
    },
    /// Create and start a container.
    StartContainer {
        /// The container.
        container: String,
        /// Its restart count.
        attempt: u32,
        /// Its image.
        image: Image,
        /// The sandbox it runs in.
        sandbox: SandboxId,
    },
    /// Ask a container to end, and kill it after the grace period.
    StopContainer {
        /// The container's identifier.
        id: ContainerId,
        /// Its name in the pod.
        container: String,
        /// How long it may take.
        grace: Duration,
        /// The text of the `Killing` event.
        message: String,
    },
    /// Remove the record of a container that has ended.
    RemoveContainer {
        /// The container's identifier.
        id: ContainerId,
        /// Its name in the pod.
        container: String,
    },
    /// Give up what is being pulled.
    AbandonPulls,
    /// Remove the pod's directories and logs.
    RemoveDirectories,
}

/// What a pod's worker does next.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// To be begun now, in this order.
    pub actions: Vec<Action>,
    /// When to look again at the latest if nothing happens.
    pub wake: Option<Instant>,
    /// The goal is reached: nothing is left to do until the goal changes.
    pub reached: bool,
}

impl Plan {
    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

/// How a pod restarts its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Always.
    Always,
    /// After a failure.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    /// The pod's policy.
    pub fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether an app container that ended with `exit_code` runs again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// The pod's init containers.
pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

/// The pod's app containers.
pub fn app_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |s| &s.containers)
}

/// Makes the plan.
pub fn plan(input: &Input<'_>) -> Plan {
    match input.goal {
        Goal::Run => run(input),
        Goal::Finish { grace } => ending::stop(input, grace),
        Goal::Remove { grace } => ending::remove(input, grace),
    }
}

/// The verdict on a pod whose containers have all ended for good; `None` while it may run on.
pub fn verdict(input: &Input<'_>) -> Option<Verdict> {
    let policy = RestartPolicy::of(input.pod);
    let done = |phase| Some(Verdict { phase, reason: None, message: None });
    if policy == RestartPolicy::Never {
        let init_failed = init_containers(input.pod)
            .iter()
            .any(|c| matches!(newest(input, c), Run::Ended { ended, .. } if ended.exit_code != 0));
        if init_failed && !anything_running(input.sandboxes) {
            return done(Phase::Failed);
        }
    }
    let mut phase = Phase::Succeeded;
    for container in app_containers(input.pod) {
        match newest(input, container) {
            Run::Ended { ended, .. } if !policy.restarts(ended.exit_code) => {
                if ended.exit_code != 0 {
                    phase = Phase::Failed;
                }
            }
            _ => return None,
        }
    }
    if app_containers(input.pod).is_empty() {
        return None;
    }
    done(phase)
}

fn newest<'a>(input: &Input<'a>, container: &Container) -> Run<'a> {
    let remembered = input.memory.containers.get(&container.name).map(|c| &c.remembered);
    let messages = &input.memory.termination_messages;
    runs::newest(input.sandboxes, &container.name, remembered, messages).0
}

fn anything_running(sandboxes: &[SandboxStatus]) -> bool {
    running(sandboxes).next().is_some()
}

fn running(
    sandboxes: &[SandboxStatus],
) -> impl Iterator<Item = &berth_runtime::interface::ContainerStatus> {
    sandboxes
        .iter()
        .flat_map(|s| &s.containers)
        .filter(|c| matches!(c.state, ContainerState::Running { .. }))
}

/// What is to be done about one container of a pod that runs.
#[derive(Debug, Clone, PartialEq)]
enum Disposition {
    /// It runs.
    Running,
    /// It ended and stays so.
    Done,
    /// A record that was never started is in the way.
    Clear(ContainerId),
    /// It is started again later.
    BackingOff(Instant),
    /// It is to be started.
    Due,
}

/// Whether a container is one of the init sequence, whose runs count a sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Init,
    App,
}

fn disposition(
    input: &Input<'_>,
    container: &Container,
    kind: Kind,
    sandbox: Option<&SandboxId>,
) -> Disposition {
    let memory = input.memory.containers.get(&container.name);
    let (ended, home, id) = match newest(input, container) {
        Run::None => return start_gate(input, container),
        Run::Running(_) => return Disposition::Running,
        Run::Created(record) => return Disposition::Clear(record.id.clone()),
        Run::Ended { ended, sandbox, container } => (ended, sandbox, container),
    };
    let policy = RestartPolicy::of(input.pod);
    let in_this_sandbox = home.is_some() && home.as_ref() == sandbox;
    let again = match kind {
        // A new sandbox needs its init containers run again.
        Kind::Init if !in_this_sandbox && sandbox.is_some() => true,
        Kind::Init => ended.exit_code != 0 && policy != RestartPolicy::Never,
        Kind::App => policy.restarts(ended.exit_code),
    };
    if !again {
        return Disposition::Done;
    }
    if in_this_sandbox
        && let (Some(memory), Some(id)) = (memory, id)
        && let Some((seen, at)) = &memory.ended_at
        && *seen == id
        && let Some(wait) = memory.restart_backoff.waiting(*at, input.now)
    {
        return Disposition::BackingOff(wait.until);
    }
    start_gate(input, container)
}

fn start_gate(input: &Input<'_>, container: &Container) -> Disposition {
    let failed =
        input.memory.containers.get(&container.name).and_then(|c| c.start_failure.as_ref());
    match failed {
        Some(failed) if failed.retry_at > input.now => Disposition::BackingOff(failed.retry_at),
        _ => Disposition::Due,
    }
}

fn run(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    let sandbox = runs::live_sandbox(input.sandboxes);
    volumes(input, &mut plan);
    clear_lost_sandboxes(input, &mut plan);
    match sandbox {
        Some(sandbox) => {
            if input.memory.volumes == VolumeState::Mounted {
                containers(input, sandbox, &mut plan);
            } else {
                images(input, Some(&sandbox.id), &mut plan);
            }
            end_doomed(input, &mut plan);
        }
        None => {
            images(input, None, &mut plan);
            create_sandbox(input, &mut plan);
        }
    }
    wake_for_fresh_failures(input, &mut plan);
    plan
}

fn volumes(input: &Input<'_>, plan: &mut Plan) {
    let is_due = match (&input.memory.volumes, input.memory.refresh_at) {
        (VolumeState::Mounted, None) => false,
        (VolumeState::Mounted, Some(at)) if at > input.now => {
            plan.wake_at(at);
            false
        }
        _ => true,
    };
    if is_due {
        begin(input, plan, Operation::Volumes, Action::PrepareVolumes);
    }
}

/// Queues `action` unless its operation is under way or has to wait.
fn begin(input: &Input<'_>, plan: &mut Plan, operation: Operation, action: Action) {
    if input.memory.busy(&operation) {
        return;
    }
    match input.memory.retry_at(&operation, input.now) {
        Some(at) => plan.wake_at(at),
        None => plan.actions.push(action),
    }
}

/// A sandbox that was lost is stopped, then removed, before another is made.
fn clear_lost_sandboxes(input: &Input<'_>, plan: &mut Plan) {
    let lost = input.sandboxes.iter().filter(|s| s.state == SandboxState::NotReady);
    for sandbox in lost {
        let id = sandbox.id.clone();
        if input.memory.stopped.contains(&id) {
            let operation = Operation::RemoveSandbox(id.clone());
            begin(input, plan, operation, Action::RemoveSandbox(id));
        } else {
            let operation = Operation::StopSandbox(id.clone());
            begin(input, plan, operation, Action::StopSandbox(id));
        }
    }
}

fn create_sandbox(input: &Input<'_>, plan: &mut Plan) {
    if !input.sandboxes.is_empty() {
        return;
    }
    let action = Action::CreateSandbox { attempt: input.memory.sandbox_attempts };
    begin(input, plan, Operation::Sandbox, action);
}

/// Fetches the images of all containers that are to be started, now or later.
fn images(input: &Input<'_>, sandbox: Option<&SandboxId>, plan: &mut Plan) {
    let inits = init_containers(input.pod).iter().map(|c| (c, Kind::Init));
    let apps = app_containers(input.pod).iter().map(|c| (c, Kind::App));
    for (container, kind) in inits.chain(apps) {
        if disposition(input, container, kind, sandbox) == Disposition::Due {
            image(input, container, plan);
        }
    }
}

/// The image of a container that is due, or `None` once it has been asked for.
fn image<'a>(input: &Input<'a>, container: &Container, plan: &mut Plan) -> Option<&'a Image> {
    let operation = Operation::Image(container.name.clone());
    let memory = input.memory.containers.get(&container.name);
    match memory.map(|m| &m.image) {
        Some(ImageState::Ready(image)) => return Some(image),
        Some(ImageState::Failed(failed)) if failed.retry_at > input.now => {
            plan.wake_at(failed.retry_at);
        }
        _ if input.memory.busy(&operation) => {}
        _ => {
            let container = container.name.clone();
            let action = Action::EnsureImage { container };
            if !plan.actions.contains(&action) {
                plan.actions.push(action);
            }
        }
    }
    None
}

fn containers(input: &Input<'_>, sandbox: &SandboxStatus, plan: &mut Plan) {
    for container in init_containers(input.pod) {
        match disposition(input, container, Kind::Init, Some(&sandbox.id)) {
            Disposition::Done => {}
            other => {
                // App containers already running outlive what happened to an init record.
                if !app_started(input, sandbox) {
                    advance(input, sandbox, container, other, plan);
                    images(input, Some(&sandbox.id), plan);
                    return;
                }
            }
        }
    }
    for container in app_containers(input.pod) {
        let what = disposition(input, container, Kind::App, Some(&sandbox.id));
        if advance(input, sandbox, container, what, plan) == Next::Wait {
            break;
        }
    }
    images(input, Some(&sandbox.id), plan);
    drop_old_records(input, plan);
}

/// Whether the init sequence of this sandbox is over: an app container was made in it.
fn app_started(input: &Input<'_>, sandbox: &SandboxStatus) -> bool {
    let is_app = |name: &str| app_containers(input.pod).iter().any(|c| c.name == name);
    sandbox.containers.iter().any(|c| is_app(&c.config.name))
}

/// Whether the next container of the sequence may be looked at.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Wait,
}

fn advance(
    input: &Input<'_>,
    sandbox: &SandboxStatus,
    container: &Container,
    what: Disposition,
    plan: &mut Plan,
) -> Next {
    match what {
        Disposition::Running | Disposition::Done => Next::Go,
        Disposition::BackingOff(until) => {
            plan.wake_at(until);
            Next::Go
        }
        Disposition::Clear(id) => {
            // While its start is under way, the record is not in the way but on its way.
            if !input.memory.busy(&Operation::Start(container.name.clone())) {
                let action =
                    Action::RemoveContainer { id: id.clone(), container: container.name.clone() };
                begin(input, plan, Operation::RemoveContainer(id), action);
            }
            Next::Wait
        }
        Disposition::Due => start(input, sandbox, container, plan),
    }
}

fn start(
    input: &Input<'_>,
    sandbox: &SandboxStatus,
    container: &Container,
    plan: &mut Plan,
) -> Next {
    let starting = |o: &Operation| matches!(o, Operation::Start(_));
    if input.memory.in_flight.keys().any(starting) {
        return Next::Wait;
    }
    let memory = input.memory.containers.get(&container.name);
    let Some(image) = image(input, container, plan) else {
        // A pull that failed holds nobody else up; one under way does, to keep the order.
        let failed = matches!(
            memory.map(|m| &m.image),
            Some(ImageState::Failed(f)) if f.retry_at > input.now
        );
        return if failed { Next::Go } else { Next::Wait };
    };
    let remembered = memory.map(|m| &m.remembered);
    plan.actions.push(Action::StartContainer {
        container: container.name.clone(),
        attempt: runs::next_attempt(input.sandboxes, &container.name, remembered),
        image: image.clone(),
        sandbox: sandbox.id.clone(),
    });
    Next::Wait
}

/// Keeps the newest record of each container and the ended one before it.
fn drop_old_records(input: &Input<'_>, plan: &mut Plan) {
    let inits = init_containers(input.pod).iter();
    for container in inits.chain(app_containers(input.pod)) {
        let records = runs::records(input.sandboxes, &container.name);
        for (_, record) in records.iter().rev().skip(2) {
            if matches!(record.state, ContainerState::Exited { .. }) {
                let action = Action::RemoveContainer {
                    id: record.id.clone(),
                    container: container.name.clone(),
                };
                begin(input, plan, Operation::RemoveContainer(record.id.clone()), action);
            }
        }
    }
}

fn end_doomed(input: &Input<'_>, plan: &mut Plan) {
    for record in running(input.sandboxes) {
        if let Some(Doom { message, grace }) = input.memory.doomed.get(&record.id) {
            let operation = Operation::Stop(record.id.clone());
            let action = Action::StopContainer {
                id: record.id.clone(),
                container: record.config.name.clone(),
                grace: *grace,
                message: message.clone(),
            };
            begin(input, plan, operation, action);
        }
    }
}

/// The status of a fresh failure changes by itself when it is no longer fresh.
fn wake_for_fresh_failures(input: &Input<'_>, plan: &mut Plan) {
    for container in input.memory.containers.values() {
        let image = match &container.image {
            ImageState::Failed(failed) => Some(failed),
            _ => None,
        };
        for failed in image.into_iter().chain(&container.start_failure) {
            let stale = failed.at + input.memory.pacing.fresh;
            if stale > input.now {
                plan.wake_at(stale);
            }
        }
    }
}
