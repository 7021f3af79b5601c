//! How a pod ends: containers, sandboxes, volumes, then (when it is removed) records and directories.

use std::time::Duration;

use berth_runtime::interface::SandboxState;

use super::{Action, Input, Plan, anything_running, begin, running};
use crate::worker::memory::{Operation, VolumeState};

pub(super) fn stop(input: &Input<'_>, grace: Duration) -> Plan {
    let mut plan = Plan::default();
    let pulling = |o: &Operation| matches!(o, Operation::Image(_));
    if input.memory.in_flight.keys().any(pulling) {
        plan.actions.push(Action::AbandonPulls);
    }
    stop_containers(input, grace, &mut plan);
    let making =
        |o: &Operation| matches!(o, Operation::Sandbox | Operation::Start(_) | Operation::Volumes);
    if anything_running(input.sandboxes) || input.memory.in_flight.keys().any(making) {
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

fn stop_containers(input: &Input<'_>, grace: Duration, plan: &mut Plan) {
    for record in running(input.sandboxes) {
        let operation = Operation::Stop(record.id.clone());
        let kill_at = input.now + grace;
        match input.memory.in_flight.get(&operation) {
            // A stop under way is only ever made shorter.
            Some(Some(kills_at)) if *kills_at <= kill_at => continue,
            Some(None) => continue,
            Some(Some(_)) => {}
            None => {
                if let Some(at) = input.memory.retry_at(&operation, input.now) {
                    plan.wake_at(at);
                    continue;
                }
            }
        }
        plan.actions.push(Action::StopContainer {
            id: record.id.clone(),
            container: record.config.name.clone(),
            grace,
            message: format!("Stopping container {}", record.config.name),
        });
    }
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
