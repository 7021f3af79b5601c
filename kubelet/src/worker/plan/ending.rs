//! How containers and pods end.
//!
//! ```text
//!   container:  told ─► preStop hook ─► its turn ─► signal ─► killed at the deadline
//!   pod:        containers ─► sandboxes ─► volumes ─► (when removed) records ─► directories
//! ```
//!
//! The hooks of all containers run at once; one that outlives the deadline goes on beside the signal until
//! its container is gone. A sidecar's turn comes when the app containers and the sidecars after it are gone;
//! at the deadline everybody's turn has come.

use std::time::Duration;

use berth_runtime::interface::{ContainerStatus, SandboxState};

use super::{Action, Afterwards, Input, Plan, Removal, begin, running};
use crate::worker::members::{self, Role};
use crate::worker::memory::{Hook, Operation, VolumeState};
use crate::worker::{LAST_GRACE, MIN_GRACE};

/// How a container is to end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wish {
    /// How long it may take.
    grace: Duration,
    /// The text of the `Killing` event.
    message: String,
    next: Afterwards,
    turn: Turn,
    hooks: Hooks,
}

/// Whether a container waits for those that end before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Now,
    InOrder,
}

/// Whether `preStop` hooks are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hooks {
    Run,
    Skip,
}

impl Wish {
    /// Alone, whatever the others do.
    pub(super) fn at_once(grace: Duration, message: String, next: Afterwards) -> Self {
        Self { grace, message, next, turn: Turn::Now, hooks: Hooks::Run }
    }

    /// At once, without hooks.
    pub(super) fn hard(message: String, next: Afterwards) -> Self {
        Self { grace: LAST_GRACE, message, next, turn: Turn::Now, hooks: Hooks::Skip }
    }

    /// With its pod.
    fn with_pod(grace: Duration, container: &str) -> Self {
        Self {
            grace,
            message: format!("Stopping container {container}"),
            next: Afterwards::AsRuled,
            turn: Turn::InOrder,
            hooks: Hooks::Run,
        }
    }
}

/// Takes one running container a step nearer to its end.
pub(super) fn end(input: &Input<'_>, record: &ContainerStatus, wish: Wish, plan: &mut Plan) {
    let (id, name) = (&record.id, &record.config.name);
    let known = input.memory.ending.get(id);
    let asked = input.now + wish.grace;
    // An end under way is only ever made shorter.
    let deadline = known.map_or(asked, |e| e.deadline.min(asked));
    if known.is_none_or(|e| deadline < e.deadline) {
        plan.actions.push(Action::EndContainer {
            id: id.clone(),
            container: name.clone(),
            deadline,
            message: wish.message.clone(),
            next: wish.next,
        });
    }
    let hook = match wish.hooks == Hooks::Run && has_pre_stop(input, name) {
        true => known.map_or(Hook::Due, |e| e.hook),
        false => Hook::Done,
    };
    let has_turn = wish.turn == Turn::Now || has_turn(input, name);
    if input.now < deadline && (hook == Hook::Due || !has_turn) {
        let operation = Operation::PreStop(id.clone());
        if hook == Hook::Due && !input.memory.busy(&operation) {
            let (id, container) = (id.clone(), name.clone());
            plan.actions.push(Action::RunPreStop { id, container });
        }
        plan.wake_at(deadline);
        return;
    }
    let waits = wish.turn == Turn::InOrder && is_sidecar(input, name);
    let least = match known {
        Some(_) if has_pre_stop(input, name) || waits => LAST_GRACE,
        _ => MIN_GRACE,
    };
    let grace = deadline.saturating_duration_since(input.now).max(least);
    signal(input, record, grace, plan);
}

fn signal(input: &Input<'_>, record: &ContainerStatus, grace: Duration, plan: &mut Plan) {
    let operation = Operation::Stop(record.id.clone());
    let kill_at = input.now + grace;
    match input.memory.in_flight.get(&operation) {
        Some(Some(kills_at)) if *kills_at <= kill_at => return,
        Some(None) => return,
        Some(Some(_)) => {}
        None => {
            if let Some(at) = input.memory.retry_at(&operation, input.now) {
                plan.wake_at(at);
                return;
            }
        }
    }
    plan.actions.push(Action::StopContainer {
        id: record.id.clone(),
        container: record.config.name.clone(),
        kills_at: kill_at,
    });
}

fn has_pre_stop(input: &Input<'_>, name: &str) -> bool {
    let found = members::find(input.pod, name);
    found.is_some_and(|(_, c)| c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()))
}

fn is_sidecar(input: &Input<'_>, name: &str) -> bool {
    members::find(input.pod, name).is_some_and(|(role, _)| role == Role::Sidecar)
}

/// Whether everything that ends before the container has ended.
fn has_turn(input: &Input<'_>, name: &str) -> bool {
    let mut earlier = members::lasting(input.pod)
        .rev()
        .take_while(|(_, c)| c.name != name)
        .filter(|(role, _)| matches!(role, Role::App | Role::Sidecar));
    let runs = |name: &str| running(input.sandboxes).any(|r| r.config.name == name);
    !is_sidecar(input, name) || !earlier.any(|(_, c)| runs(&c.name))
}

pub(super) fn stop(input: &Input<'_>, grace: Duration) -> Plan {
    let mut plan = Plan::default();
    let pulling = |o: &Operation| matches!(o, Operation::Image(_));
    if input.memory.in_flight.keys().any(pulling) {
        plan.actions.push(Action::AbandonPulls);
    }
    for record in running(input.sandboxes) {
        end(input, record, Wish::with_pod(grace, &record.config.name), &mut plan);
    }
    let making =
        |o: &Operation| matches!(o, Operation::Sandbox | Operation::Start(_) | Operation::Volumes);
    let any_running = running(input.sandboxes).next().is_some();
    if any_running || input.memory.in_flight.keys().any(making) {
        return plan;
    }
    let unstopped: Vec<_> = input
        .sandboxes
        .iter()
        .filter(|s| s.state == SandboxState::Ready || !input.memory.stopped.contains(&s.id))
        .collect();
    for sandbox in &unstopped {
        let operation = Operation::StopSandbox(sandbox.id.clone());
        let action = Action::StopSandbox(sandbox.id.clone());
        begin(input, &mut plan, operation, action);
    }
    if !unstopped.is_empty() {
        return plan;
    }
    if input.memory.volumes != VolumeState::TornDown {
        begin(input, &mut plan, Operation::TearDown, Action::TearDownVolumes);
        return plan;
    }
    plan.reached = true;
    plan
}

pub(super) fn clear(input: &Input<'_>, grace: Duration) -> Plan {
    let mut plan = stop(input, grace);
    if !plan.reached {
        return plan;
    }
    for record in input.sandboxes.iter().flat_map(|sandbox| &sandbox.containers) {
        plan.reached = false;
        let (id, container) = (record.id.clone(), record.config.name.clone());
        let operation = Operation::RemoveContainer(id.clone());
        let action = Action::RemoveContainer { id, container, because: Removal::Old };
        begin(input, &mut plan, operation, action);
    }
    plan
}

pub(super) fn remove(input: &Input<'_>, grace: Duration) -> Plan {
    let mut plan = stop(input, grace);
    if !plan.reached {
        return plan;
    }
    plan.reached = false;
    for sandbox in input.sandboxes {
        let operation = Operation::RemoveSandbox(sandbox.id.clone());
        let action = Action::RemoveSandbox(sandbox.id.clone());
        begin(input, &mut plan, operation, action);
    }
    if !input.sandboxes.is_empty() {
        return plan;
    }
    if !input.memory.directories_removed {
        begin(input, &mut plan, Operation::Directories, Action::RemoveDirectories);
        return plan;
    }
    plan.reached = true;
    plan
}
