//! How a pod that runs comes to another size.
//!
//! ```text
//!   the pod's cgroup wide enough ─► containers, those first that shrink ─► the pod's cgroup as it is to be
//!                                └► those that have to restart: ended, started again
//! ```
//!
//! In between the pod is never held tighter than before and after, so that no order of its containers
//! can starve one of them (KEP-1287). A label of the sandbox says how far it is; each step is taken
//! from what is seen, so an agent that died goes on.

use berth_runtime::interface::SandboxStatus;

use super::ending::{self, Wish};
use super::{Action, Afterwards, Input, Plan, begin};
use crate::resize::{self, LOOSENED_LABEL, Outgrown, SIZE_LABEL, Way};
use crate::worker::memory::Operation;
use crate::worker::termination_grace;

/// One step towards another size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The pod's cgroup gets the wider of old and new limits.
    Loosen,
    /// These containers get theirs, in this order, by name.
    Containers(Vec<String>),
    /// The pod's cgroup gets the new limits.
    Settle,
}

/// Whether containers may start meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starts {
    Go,
    Wait,
}

/// Takes the pod a step nearer to its size.
pub(super) fn plan(input: &Input<'_>, sandbox: &SandboxStatus, plan: &mut Plan) -> Starts {
    let size = resize::pod_size(input.pod);
    let label = |name: &str| sandbox.config.labels.get(name) == Some(&size);
    let outgrown = resize::outgrown(input.pod, sandbox);
    if label(SIZE_LABEL) && outgrown.is_empty() {
        return Starts::Go;
    }
    if !label(SIZE_LABEL) && !label(LOOSENED_LABEL) {
        ask(input, sandbox, Step::Loosen, plan);
        return Starts::Wait;
    }
    for Outgrown { record, .. } in outgrown.iter().filter(|o| o.way == Way::Restart) {
        let message = format!("Container {} resize requires restart", record.config.name);
        let grace = termination_grace(input.pod);
        ending::end(input, record, Wish::at_once(grace, message, Afterwards::Again), plan);
    }
    let in_place = outgrown.iter().filter(|outgrown| {
        outgrown.way == Way::InPlace && !input.memory.ending.contains_key(&outgrown.record.id)
    });
    let in_place: Vec<String> = in_place.map(|o| o.record.config.name.clone()).collect();
    if !in_place.is_empty() {
        ask(input, sandbox, Step::Containers(in_place), plan);
    } else if outgrown.is_empty() {
        ask(input, sandbox, Step::Settle, plan);
    }
    Starts::Go
}

fn ask(input: &Input<'_>, sandbox: &SandboxStatus, step: Step, plan: &mut Plan) {
    let action = Action::Resize { sandbox: sandbox.id.clone(), step };
    begin(input, plan, Operation::Resize, action);
}
