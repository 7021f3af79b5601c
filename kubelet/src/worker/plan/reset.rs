//! All containers again, from the first: the action `RestartAllContainers` of a restart rule
//! (KEP-5532).
//!
//! ```text
//!   a container ends and its rule says so ─► app containers whose turn to start was next start
//!      ─► all are killed ─► their records go ─► the records of those that caused it go, last
//!      ─► everything starts as in a new pod
//! ```
//!
//! So all containers have been restarted equally often, as by upstream, which starts them in one pass.
//!
//! The record of the cause is the only state of it, so a restarted agent goes on where this one was.
//! Volumes, sandbox and addresses stay. `Differs:` a container that brings this about again and again
//! waits out its restart delay before each time; upstream does it at once.

use berth_runtime::interface::{ContainerState, ContainerStatus, SandboxStatus};
use k8s_openapi::api::core::v1::Container;

use super::ending::{self, Wish};
use super::{Action, Afterwards, Input, Plan, Removal, begin, is_starting};
use crate::worker::members::{self, Ruling, app_containers};
use crate::worker::memory::{ImageState, Operation};
use crate::worker::runs;

/// Whether a container has ended in a way that asks for all containers to be restarted.
pub fn is_asked_for(input: &Input<'_>) -> bool {
    members::may_restart_all(input.pod)
        && runs::live_sandbox(input.sandboxes)
            .is_some_and(|sandbox| causes(input, sandbox).next().is_some())
}

/// Whether the containers are being restarted, and the causes have waited out their delays.
pub fn is_under_way(input: &Input<'_>) -> bool {
    let sandbox = runs::live_sandbox(input.sandboxes);
    sandbox.is_some_and(|sandbox| is_due(input, sandbox, &mut Plan::default()))
}

/// As [`is_under_way`]; the plan wakes when a delay ends.
pub(super) fn is_due(input: &Input<'_>, sandbox: &SandboxStatus, plan: &mut Plan) -> bool {
    if !members::may_restart_all(input.pod) {
        return false;
    }
    let mut due = false;
    for record in causes(input, sandbox) {
        let memory = input.memory.containers.get(&record.config.name);
        let wait = memory.and_then(|memory| match &memory.ended_at {
            Some((id, at)) if *id == record.id => memory.restart_backoff.waiting(*at, input.now),
            _ => None,
        });
        match wait {
            // The delay is charged when the cause's record is taken away, and is for the next time.
            Some(wait) if !input.memory.resetting => plan.wake_at(wait.until),
            _ => due = true,
        }
    }
    due
}

/// An app container that can be started and was not yet, though others of them have run.
pub(super) fn unstarted<'a>(input: &Input<'a>, sandbox: &SandboxStatus) -> Option<&'a Container> {
    let has_run = |c: &&Container| sandbox.containers.iter().any(|r| r.config.name == c.name);
    let mut apps = app_containers(input.pod).iter();
    if input.memory.resetting || !apps.any(|c| has_run(&c)) {
        return None;
    }
    let can_start = |c: &&Container| {
        input.memory.containers.get(&c.name).is_some_and(|memory| {
            matches!(memory.image, ImageState::Ready(_))
                && memory.start_failure.as_ref().is_none_or(|f| f.retry_at <= input.now)
        })
    };
    app_containers(input.pod).iter().filter(|c| !has_run(c)).find(can_start)
}

/// The newest runs whose end asks for it.
fn causes<'a>(
    input: &Input<'a>,
    sandbox: &'a SandboxStatus,
) -> impl Iterator<Item = &'a ContainerStatus> {
    let pod = input.pod;
    let newest = members::lasting(pod).filter_map(move |(role, container)| {
        let of_container = |c: &&ContainerStatus| c.config.name == container.name;
        let records = sandbox.containers.iter().filter(of_container);
        Some((role, container, records.max_by_key(|c| (c.config.attempt, c.created_at))?))
    });
    newest.filter_map(move |(role, container, record)| match record.state {
        ContainerState::Exited { exit_code, .. } => {
            let ruling = members::ruling(pod, (role, container), exit_code);
            (ruling == Ruling::RestartAll).then_some(record)
        }
        _ => None,
    })
}

pub(super) fn plan(input: &Input<'_>, sandbox: &SandboxStatus, plan: &mut Plan) {
    let is_lasting = |c: &&ContainerStatus| {
        members::lasting(input.pod).any(|(_, container)| container.name == c.config.name)
    };
    let records: Vec<_> = sandbox.containers.iter().filter(is_lasting).collect();
    let mut runs = false;
    for record in &records {
        if matches!(record.state, ContainerState::Running { .. }) {
            runs = true;
            let wish = Wish::hard("killing".to_owned(), Afterwards::AsRuled);
            ending::end(input, record, wish, plan);
        }
    }
    if runs || is_starting(input) {
        return;
    }
    let causes: Vec<_> = causes(input, sandbox).map(|record| &record.id).collect();
    let victims: Vec<_> = records.iter().filter(|r| !causes.contains(&&r.id)).collect();
    let next = match victims.is_empty() {
        true => records.iter().collect(),
        false => victims,
    };
    for record in next {
        let action = Action::RemoveContainer {
            id: record.id.clone(),
            container: record.config.name.clone(),
            because: Removal::Reset,
        };
        begin(input, plan, Operation::RemoveContainer(record.id.clone()), action);
    }
}
