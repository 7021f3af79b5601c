//! What a worker remembers when it begins: rebuilt from the runtime's records and the last status,
//! so that a restart of the agent, or of the host, neither restarts anything nor loses a count.

use std::time::Duration;

use berth_runtime::interface::{ContainerState, SandboxState, SandboxStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use tokio::time::Instant;

use super::members;
use super::memory::{Memory, Pacing, Phase, ProbeResults, Verdict};
use super::runs::{self, Remembered};
use crate::backoff::{self, Backoff};
use crate::clock;
use crate::resize::Progress;

/// The two clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The monotonic one.
    pub now: Instant,
    /// The time of day.
    pub wall: Timestamp,
}

impl Moment {
    /// When on the monotonic clock something happened that is dated `nanoseconds` since the epoch.
    /// What lies in the future, or before the monotonic clock began, happened now.
    pub fn instant_of(&self, nanoseconds: i64) -> Instant {
        let age = self.wall.duration_since(clock::from_nanoseconds(nanoseconds));
        let age = Duration::try_from(age).unwrap_or_default();
        self.now.checked_sub(age).unwrap_or(self.now)
    }
}

/// Rebuilds the memory of a pod's worker.
pub fn recover(
    pod: &Pod,
    status: &PodStatus,
    sandboxes: &[SandboxStatus],
    pacing: Pacing,
    moment: Moment,
) -> Memory {
    let names = members::names(pod);
    let is_resetting = is_resetting(status);
    let mut memory = Memory::new(pacing, names.clone());
    memory.verdict = verdict(status);
    memory.resetting = is_resetting;
    memory.resize = Progress::recovered(status);
    memory.sandbox_attempts =
        sandboxes.iter().map(|s| s.config.attempt.saturating_add(1)).max().unwrap_or(0);
    for name in names {
        let known = find(status, name);
        let container = memory.container(name);
        container.remembered = remembered(known, sandboxes, name);
        let records = runs::records(sandboxes, name);
        if is_resetting && records.is_empty() && !sandboxes.is_empty() {
            container.remembered.last = container.remembered.last.take().map(runs::reset);
        }
        if let Some((_, newest)) = records.last()
            && let ContainerState::Exited { finished_at, .. } = newest.state
        {
            container.ended_at = Some((newest.id.clone(), moment.instant_of(finished_at)));
        }
        container.restart_backoff = restart_backoff(&records, pacing, moment);
    }
    recover_probes(status, sandboxes, &mut memory);
    memory
}

fn verdict(status: &PodStatus) -> Option<Verdict> {
    let phase = match status.phase.as_deref() {
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        _ => return None,
    };
    let (reason, message) = (status.reason.clone(), status.message.clone());
    Some(Verdict { phase, reason, message, disruption: None })
}

/// Whether the agent ended while it took containers away to start them all again.
fn is_resetting(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|c| c.type_ == "AllContainersRestarting" && c.status == "True")
}

fn find<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let inits = status.init_container_statuses.iter().flatten();
    let ephemeral = status.ephemeral_container_statuses.iter().flatten();
    let apps = status.container_statuses.iter().flatten();
    inits.chain(apps).chain(ephemeral).find(|c| c.name == name)
}

fn remembered(
    known: Option<&ContainerStatus>,
    sandboxes: &[SandboxStatus],
    name: &str,
) -> Remembered {
    let Some(known) = known else {
        return Remembered::default();
    };
    let from_status = Remembered::from_status(known);
    let records = runs::records(sandboxes, name);
    let Some((_, oldest)) = records.first() else {
        return from_status;
    };
    // The records speak for themselves; the status adds only the runs before the oldest of them.
    let oldest = oldest.config.attempt;
    let before = [from_status.last, from_status.previous];
    let last = before.into_iter().flatten().find(|ended| ended.restart_count < oldest);
    Remembered { restart_count: last.as_ref().map_or(0, |l| l.restart_count), last, previous: None }
}

/// The restart delay, told from the pause between the last two runs.
fn restart_backoff(
    records: &[(&SandboxStatus, &berth_runtime::interface::ContainerStatus)],
    pacing: Pacing,
    moment: Moment,
) -> Backoff {
    let [.., (_, before), (_, newest)] = records else {
        return Backoff::new(pacing.restart);
    };
    let ContainerState::Exited { finished_at, .. } = before.state else {
        return Backoff::new(pacing.restart);
    };
    let gap = newest.created_at.saturating_sub(finished_at).max(0);
    let gap = Duration::from_nanos(gap.unsigned_abs());
    let delay = backoff::rung_after(pacing.restart, gap);
    Backoff::recovered(pacing.restart, delay, moment.instant_of(newest.created_at))
}

/// A container that was ready, or started, stays so until its probes say otherwise.
fn recover_probes(status: &PodStatus, sandboxes: &[SandboxStatus], memory: &mut Memory) {
    let running = sandboxes
        .iter()
        .filter(|s| s.state == SandboxState::Ready)
        .flat_map(|s| &s.containers)
        .filter(|c| matches!(c.state, ContainerState::Running { .. }));
    for record in running {
        let Some(known) = find(status, &record.config.name) else {
            continue;
        };
        let id = known.container_id.as_deref().unwrap_or_default();
        if id.ends_with(record.id.as_str()) {
            let results =
                ProbeResults { started: known.started.unwrap_or(false), ready: known.ready };
            memory.probes.insert(record.id.clone(), results);
        }
    }
}
