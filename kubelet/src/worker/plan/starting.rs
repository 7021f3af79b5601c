//! How a pod comes up and stays up: volumes and sandbox, then its containers in their order.
//!
//! ```text
//!   ephemeral ─► at once
//!   init ─ succeeded ─► sidecar ─ started ─► init ─ succeeded ─► apps, in spec order
//!                         │ ended: started again, for as long as the pod runs
//! ```
//!
//! The frontier is the last init container that has a run in the sandbox: all before it has been
//! passed, so a sidecar there that ended is started again but holds nobody up.

use std::borrow::Cow;

use berth_runtime::interface::{ContainerId, ContainerState, SandboxId, SandboxState};
use berth_runtime::interface::{ContainerStatus, SandboxStatus};
use k8s_openapi::api::core::v1::Container;
use tokio::time::Instant;

use super::ending::{self, Wish};
use super::resizing::{self, Starts};
use super::{Action, Afterwards, Input, Plan, Removal, begin, image, is_starting, newest, reset};
use crate::worker::members::{
    self, Role, app_containers, as_container, ephemeral_containers, init_containers, role_of_init,
};
use crate::worker::memory::{Doom, ImageState, Operation, VolumeState};
use crate::worker::runs::{self, Run};
use crate::worker::termination_grace;

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

pub(super) fn run(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    let sandbox = runs::live_sandbox(input.sandboxes);
    volumes(input, &mut plan);
    clear_lost_sandboxes(input, &mut plan);
    match sandbox {
        Some(sandbox) if reset::is_due(input, sandbox, &mut plan) => {
            match reset::unstarted(input, sandbox) {
                Some(container) => drop(start(input, sandbox, container, &mut plan)),
                None => reset::plan(input, sandbox, &mut plan),
            }
        }
        Some(sandbox) => {
            let starts = resizing::plan(input, sandbox, &mut plan);
            if input.memory.volumes == VolumeState::Mounted && starts == Starts::Go {
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
    wake_for_exchanges(input, &mut plan);
    plan
}

fn disposition(
    input: &Input<'_>,
    (role, container): (Role, &Container),
    sandbox: Option<&SandboxId>,
) -> Disposition {
    let memory = input.memory.containers.get(&container.name);
    let (ended, home, id) = match newest(input, container) {
        Run::None => return start_gate(input, container),
        Run::Running(_) => return Disposition::Running,
        Run::Created(record) => return Disposition::Clear(record.id.clone()),
        Run::Ended { ended, sandbox, container } => (ended, sandbox, container),
    };
    let in_this_sandbox = home.is_some() && home.as_ref() == sandbox;
    let again = match role {
        // A new sandbox needs its init containers run again.
        Role::Init | Role::Sidecar if !in_this_sandbox && sandbox.is_some() => true,
        _ => super::runs_again(input, (role, container), (&ended, id.as_ref())),
    };
    if !again {
        return Disposition::Done;
    }
    // What is specified differently now gets its chance at once.
    let is_changed = Some(&ended.image) != container.image.as_ref()
        || super::is_replaced(input, container, id.as_ref());
    if in_this_sandbox
        && !is_changed
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
    let lasting = members::lasting(input.pod).map(|(role, c)| (role, Cow::Borrowed(c)));
    let ephemeral = ephemeral_containers(input.pod).iter();
    let ephemeral = ephemeral.map(|c| (Role::Ephemeral, Cow::Owned(as_container(c))));
    for (role, container) in lasting.chain(ephemeral) {
        if disposition(input, (role, &container), sandbox) == Disposition::Due {
            image(input, &container, plan);
        }
    }
}

fn containers(input: &Input<'_>, sandbox: &SandboxStatus, plan: &mut Plan) {
    for ephemeral in ephemeral_containers(input.pod) {
        let container = as_container(ephemeral);
        let what = disposition(input, (Role::Ephemeral, &container), Some(&sandbox.id));
        advance(input, (sandbox, &container), what, plan);
    }
    if init_sequence(input, sandbox, plan) == Next::Go {
        for container in app_containers(input.pod) {
            let what = disposition(input, (Role::App, container), Some(&sandbox.id));
            if advance(input, (sandbox, container), what, plan) == Next::Wait {
                break;
            }
        }
    }
    images(input, Some(&sandbox.id), plan);
    drop_old_records(input, plan);
}

/// Takes the init containers and sidecars as far as they can go. `Go` once the app containers may
/// start.
fn init_sequence(input: &Input<'_>, sandbox: &SandboxStatus, plan: &mut Plan) -> Next {
    let inits = init_containers(input.pod);
    let has_run = |name: &str| sandbox.containers.iter().any(|c| c.config.name == name);
    let frontier = match app_containers(input.pod).iter().any(|c| has_run(&c.name)) {
        true => inits.len(),
        false => inits.iter().rposition(|c| has_run(&c.name)).unwrap_or(0),
    };
    for (index, container) in inits.iter().enumerate() {
        let is_passed = index < frontier;
        let role = role_of_init(container);
        if is_passed && role == Role::Init {
            continue;
        }
        let what = disposition(input, (role, container), Some(&sandbox.id));
        let is_through = match (&what, role) {
            (Disposition::Running, Role::Sidecar) => is_started(input, sandbox, container),
            (Disposition::Done, _) => true,
            _ => false,
        };
        let next = match what {
            Disposition::Running => Next::Go,
            other => advance(input, (sandbox, container), other, plan),
        };
        if !is_passed && !is_through {
            return Next::Wait;
        }
        // One start at a time, in the order of the specification.
        if is_passed && next == Next::Wait && plan.is_starting() {
            return Next::Wait;
        }
    }
    Next::Go
}

/// Whether a running sidecar lets the next container start.
fn is_started(input: &Input<'_>, sandbox: &SandboxStatus, container: &Container) -> bool {
    let of_container = |record: &&ContainerStatus| {
        record.config.name == container.name
            && matches!(record.state, ContainerState::Running { .. })
    };
    let record = sandbox.containers.iter().find(of_container);
    record.and_then(|r| input.memory.probes.get(&r.id)).is_some_and(|results| results.started)
}

/// Whether the next container of the sequence may be looked at.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Wait,
}

fn advance(
    input: &Input<'_>,
    (sandbox, container): (&SandboxStatus, &Container),
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
                let action = Action::RemoveContainer {
                    id: id.clone(),
                    container: container.name.clone(),
                    because: Removal::Old,
                };
                begin(input, plan, Operation::RemoveContainer(id), action);
            }
            Next::Wait
        }
        Disposition::Due => start(input, sandbox, container, plan),
    }
}

impl Plan {
    fn is_starting(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::StartContainer { .. }))
    }
}

fn start(
    input: &Input<'_>,
    sandbox: &SandboxStatus,
    container: &Container,
    plan: &mut Plan,
) -> Next {
    if is_starting(input) || plan.is_starting() {
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
    for (_, container) in members::lasting(input.pod) {
        let records = runs::records(input.sandboxes, &container.name);
        for (_, record) in records.iter().rev().skip(2) {
            if matches!(record.state, ContainerState::Exited { .. }) {
                let action = Action::RemoveContainer {
                    id: record.id.clone(),
                    container: container.name.clone(),
                    because: Removal::Old,
                };
                begin(input, plan, Operation::RemoveContainer(record.id.clone()), action);
            }
        }
    }
}

/// Ends containers whose probes say so, and those that are specified differently now.
fn end_doomed(input: &Input<'_>, plan: &mut Plan) {
    for record in super::running(input.sandboxes) {
        if let Some(Doom { message, grace }) = input.memory.doomed.get(&record.id) {
            let wish = Wish::at_once(*grace, message.clone(), Afterwards::AsRuled);
            ending::end(input, record, wish, plan);
        } else if let Some(message) = changed(input, record) {
            let grace = termination_grace(input.pod);
            ending::end(input, record, Wish::at_once(grace, message, Afterwards::Again), plan);
        }
    }
}

/// Why a running container has to make way for one of another image.
fn changed(input: &Input<'_>, record: &ContainerStatus) -> Option<String> {
    let (role, container) = members::find(input.pod, &record.config.name)?;
    let is_changed = container.image.as_ref() != Some(&record.config.image_reference);
    let name = &container.name;
    match role {
        Role::App if is_changed => {
            Some(format!("Container {name} definition changed, will be restarted"))
        }
        Role::Sidecar if is_changed => Some(format!("Init container {name} definition changed")),
        _ => None,
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

/// The status of an exchange that takes its time says so by itself.
fn wake_for_exchanges(input: &Input<'_>, plan: &mut Plan) {
    let containers = input.memory.containers.values();
    let until = containers.filter_map(|c| c.exchange(&input.memory.pacing)).map(|(_, until)| until);
    for until in until.filter(|until| *until > input.now) {
        plan.wake_at(until);
    }
}
