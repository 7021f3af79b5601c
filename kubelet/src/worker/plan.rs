//! What a pod's worker does next: a pure function of what should be, what is and what is remembered.
//!
//! ```text
//!                 ┌─ volumes ─┐
//!  Goal::Run ─────┼─ sandbox ─┼─► init containers and sidecars ─► containers, in spec order
//!                 └─ images ──┘      ▲    [`starting`]                 │
//!                                    └── all again [`reset`] ◄─────────┤ a rule says so
//!                                                                      │ all ended for good
//!                                                                      ▼
//!  Goal::Finish ──► stop containers ─► stop sandboxes ─► tear volumes down ─► (rests)  [`ending`]
//!  Goal::Clear  ──► the same, then remove containers with their logs ─► (rests)
//!  Goal::Remove ──► the same, then remove sandboxes ─► directories ─► done
//! ```
//!
//! It does no I/O and holds no clock: `now` comes in, the next time to look goes out. Running an
//! action twice must do no harm. Serves the pod lifecycle of the Kubernetes API; `Differs:` the
//! images of all containers are fetched side by side while sandbox and volumes are made, where the
//! kubelet fetches each when its turn comes.

mod ending;
pub mod reset;
pub mod resizing;
mod starting;

use std::time::Duration;

use berth_runtime::interface::{
    ContainerId, ContainerState, ContainerStatus, Image, SandboxId, SandboxStatus,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;

use super::members::{self, Role, Ruling, app_containers, init_containers};
use super::memory::{ImageState, Memory, Operation, Phase, Verdict};
use super::runs::{self, Ended, Run};

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
    /// It ends, and its containers leave nothing on disk; what its status says stays.
    Clear {
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
    /// Begin to end a container, or make an end that has begun shorter.
    EndContainer {
        /// The container's identifier.
        id: ContainerId,
        /// Its name in the pod.
        container: String,
        /// When it has to be gone.
        deadline: Instant,
        /// The text of the `Killing` event.
        message: String,
        /// What comes afterwards.
        next: Afterwards,
    },
    /// Run the `preStop` hook of a container that is ending.
    RunPreStop {
        /// The container's identifier.
        id: ContainerId,
        /// Its name in the pod.
        container: String,
    },
    /// Send a container its stop signal, and kill it after the grace period.
    StopContainer {
        /// The container's identifier.
        id: ContainerId,
        /// Its name in the pod.
        container: String,
        /// When it is killed. Told as a moment: one reckoned anew would be later than the one before by
        /// what passed meanwhile, and each look would bring it forward with a further signal.
        kills_at: Instant,
    },
    /// Remove the record of a container that has ended.
    RemoveContainer {
        /// The container's identifier.
        id: ContainerId,
        /// Its name in the pod.
        container: String,
        /// What is remembered of it.
        because: Removal,
    },
    /// Hold the pod, or running containers of it, to what they are allocated.
    Resize {
        /// The sandbox.
        sandbox: SandboxId,
        /// How far to go.
        step: resizing::Step,
    },
    /// Give up what is being pulled.
    AbandonPulls,
    /// Remove the pod's directories and logs.
    RemoveDirectories,
}

/// What comes after the end of a container that was made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// What its restart policy says.
    AsRuled,
    /// It runs again as it is specified now.
    Again,
}

/// Why a record is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// There are newer ones, it never ran, or its pod has ended and the disk is wanted back.
    Old,
    /// All containers of the pod are started again.
    Reset,
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

/// Makes the plan.
pub fn plan(input: &Input<'_>) -> Plan {
    match input.goal {
        Goal::Run => starting::run(input),
        Goal::Finish { grace } => ending::stop(input, grace),
        Goal::Clear { grace } => ending::clear(input, grace),
        Goal::Remove { grace } => ending::remove(input, grace),
    }
}

/// The verdict on a pod whose containers have all ended for good; `None` while it may run on.
/// Sidecars and ephemeral containers have no say in it.
pub fn verdict(input: &Input<'_>) -> Option<Verdict> {
    if app_containers(input.pod).is_empty() || reset::is_asked_for(input) {
        return None;
    }
    let done = |phase| Some(Verdict { phase, reason: None, message: None, disruption: None });
    let inits = init_containers(input.pod).iter();
    let mut inits = inits.filter(|c| members::role_of_init(c) == Role::Init);
    let init_failed =
        inits.any(|c| last_exit_code(input, (Role::Init, c)).is_some_and(|code| code != 0));
    if init_failed && !is_app_running(input) {
        return done(Phase::Failed);
    }
    let mut phase = Phase::Succeeded;
    for container in app_containers(input.pod) {
        if last_exit_code(input, (Role::App, container))? != 0 {
            phase = Phase::Failed;
        }
    }
    done(phase)
}

/// The exit code of the last run a container will have, once it has ended.
fn last_exit_code(input: &Input<'_>, (role, container): (Role, &Container)) -> Option<i32> {
    let Run::Ended { ended, container: id, .. } = newest(input, container) else {
        return None;
    };
    let runs_again = runs_again(input, (role, container), (&ended, id.as_ref()));
    (!runs_again).then_some(ended.exit_code)
}

/// Whether a container runs again after this run of it.
fn runs_again(
    input: &Input<'_>,
    (role, container): (Role, &Container),
    (ended, id): (&Ended, Option<&ContainerId>),
) -> bool {
    is_replaced(input, container, id)
        || ended.reason == members::RESTARTING_ALL
        || members::ruling(input.pod, (role, container), ended.exit_code) != Ruling::Stay
}

/// Whether the run was ended because the container is specified differently now.
fn is_replaced(input: &Input<'_>, container: &Container, id: Option<&ContainerId>) -> bool {
    let memory = input.memory.containers.get(&container.name);
    id.is_some() && memory.and_then(|m| m.replaced.as_ref()) == id
}

fn newest<'a>(input: &Input<'a>, container: &Container) -> Run<'a> {
    let remembered = input.memory.containers.get(&container.name).map(|c| &c.remembered);
    let messages = &input.memory.termination_messages;
    runs::newest(input.sandboxes, &container.name, remembered, messages).0
}

fn running(sandboxes: &[SandboxStatus]) -> impl Iterator<Item = &ContainerStatus> {
    sandboxes
        .iter()
        .flat_map(|s| &s.containers)
        .filter(|c| matches!(c.state, ContainerState::Running { .. }))
}

fn is_app_running(input: &Input<'_>) -> bool {
    let is_app = |name: &str| app_containers(input.pod).iter().any(|c| c.name == name);
    running(input.sandboxes).any(|record| is_app(&record.config.name))
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

fn is_starting(input: &Input<'_>) -> bool {
    input.memory.in_flight.keys().any(|o| matches!(o, Operation::Start(_)))
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
