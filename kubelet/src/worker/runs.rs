//! What is known of each container's runs: the runtime's records, joined with what is remembered of
//! runs whose records are gone (API status after a reboot, removed sandboxes).
//!
//! Pure; decides nothing. The restart count of a run is the `attempt` its record carries.

use std::collections::BTreeMap;

use berth_runtime::interface::{ContainerId, ContainerState, ContainerStatus, ImageId, SandboxId};
use berth_runtime::interface::{SandboxState, SandboxStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;

use super::members::RESTARTING_ALL;
use crate::clock;

/// The exit code of a container of which nothing is known any more.
pub const UNKNOWN_EXIT_CODE: i32 = 137;

/// What a status says of a run that a restart of all containers took away.
pub const RESET_MESSAGE: &str = "The container is removed because RestartAllContainers in place";

/// The label of a container record that holds the image's identity as the status shows it.
pub const IMAGE_ID_LABEL: &str = "berth.io/image-id";

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The container's identifier; absent when it was never known.
    pub id: Option<String>,
    /// The restart count during the run.
    pub restart_count: u32,
    /// The exit code, or 128 + signal.
    pub exit_code: i32,
    /// Upstream's reason: `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// The termination message.
    pub message: Option<String>,
    /// When it started; absent when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The image as the status names it.
    pub image: String,
    /// The image's identity as the status names it.
    pub image_id: String,
}

/// The newest run of one container.
#[derive(Debug, Clone, PartialEq)]
pub enum Run<'a> {
    /// It never ran.
    None,
    /// A record exists whose command was not started (the agent died in between).
    Created(&'a ContainerStatus),
    /// It runs.
    Running(&'a ContainerStatus),
    /// It ended, in the sandbox named, or in one that is gone.
    Ended {
        /// How.
        ended: Box<Ended>,
        /// The sandbox that still has the record.
        sandbox: Option<SandboxId>,
        /// The record's identifier.
        container: Option<ContainerId>,
    },
}

/// What is remembered of a container beyond the runtime's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The newest run without a record.
    pub last: Option<Ended>,
    /// The run before it.
    pub previous: Option<Ended>,
    /// The restart count that may not be undercut.
    pub restart_count: u32,
}

impl Remembered {
    /// Takes in a run whose record is about to go.
    pub fn fold(&mut self, ended: Ended) {
        self.restart_count = self.restart_count.max(ended.restart_count);
        match &self.last {
            Some(last) if last.restart_count > ended.restart_count => {
                if self.previous.as_ref().is_none_or(|p| p.restart_count <= ended.restart_count) {
                    self.previous = Some(ended);
                }
            }
            Some(last) if last.restart_count == ended.restart_count => self.last = Some(ended),
            _ => self.previous = self.last.replace(ended),
        }
    }

    /// What a status from the API (or the disk) tells of a container that the runtime has no record
    /// of. A run that it calls running was lost with the host.
    pub fn from_status(status: &api::ContainerStatus) -> Self {
        let restart_count = u32::try_from(status.restart_count).unwrap_or(0);
        let previous = status
            .last_state
            .as_ref()
            .and_then(|s| s.terminated.as_ref())
            .map(|t| ended_from_api(status, t, restart_count.saturating_sub(1)));
        let state = status.state.as_ref();
        let current = match state {
            Some(api::ContainerState { terminated: Some(terminated), .. }) => {
                Some(ended_from_api(status, terminated, restart_count))
            }
            Some(api::ContainerState { running: Some(running), .. }) => Some(Ended {
                id: status.container_id.clone().map(strip_scheme),
                restart_count,
                exit_code: UNKNOWN_EXIT_CODE,
                reason: "ContainerStatusUnknown".to_owned(),
                message: Some(
                    "The container could not be located when the pod was deleted.  The container \
                     used to be Running"
                        .to_owned(),
                ),
                started_at: running.started_at.as_ref().map(|t| t.0),
                finished_at: None,
                image: status.image.clone(),
                image_id: status.image_id.clone(),
            }),
            _ => None,
        };
        match current {
            Some(current) => Self { last: Some(current), previous, restart_count },
            // Waiting: the last run that ended carries the restart count.
            None => Self {
                last: previous.map(|p| Ended { restart_count, ..p }),
                previous: None,
                restart_count,
            },
        }
    }
}

fn strip_scheme(id: String) -> String {
    match id.split_once("://") {
        Some((_, digits)) => digits.to_owned(),
        None => id,
    }
}

fn ended_from_api(
    status: &api::ContainerStatus,
    terminated: &api::ContainerStateTerminated,
    restart_count: u32,
) -> Ended {
    Ended {
        id: terminated.container_id.clone().map(strip_scheme),
        restart_count,
        exit_code: terminated.exit_code,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone(),
        started_at: terminated.started_at.as_ref().map(|t| t.0),
        finished_at: terminated.finished_at.as_ref().map(|t| t.0),
        image: status.image.clone(),
        image_id: status.image_id.clone(),
    }
}

/// Describes a record that has exited; `None` while it has not.
pub fn ended(status: &ContainerStatus, messages: &BTreeMap<ContainerId, String>) -> Option<Ended> {
    let ContainerState::Exited { started_at, finished_at, exit_code, oom_killed, ref message } =
        status.state
    else {
        return None;
    };
    let reason = if oom_killed {
        "OOMKilled"
    } else if started_at == 0 {
        "StartError"
    } else if exit_code == 0 {
        "Completed"
    } else {
        "Error"
    };
    let said = messages.get(&status.id).cloned();
    Some(Ended {
        id: Some(status.id.to_string()),
        restart_count: status.config.attempt,
        exit_code,
        reason: reason.to_owned(),
        message: said.or_else(|| (!message.is_empty()).then(|| message.clone())),
        started_at: Some(clock::from_nanoseconds(started_at)),
        finished_at: Some(clock::from_nanoseconds(finished_at)),
        image: status.config.image_reference.clone(),
        image_id: shown_image_id(status),
    })
}

/// How a run is remembered that was taken away so that all containers of the pod start again.
pub fn reset(ended: Ended) -> Ended {
    Ended {
        exit_code: UNKNOWN_EXIT_CODE,
        reason: RESTARTING_ALL.to_owned(),
        message: Some(RESET_MESSAGE.to_owned()),
        ..ended
    }
}

/// The identity of a record's image as statuses show it.
pub fn shown_image_id(status: &ContainerStatus) -> String {
    let label = status.config.labels.get(IMAGE_ID_LABEL);
    label.cloned().unwrap_or_else(|| status.config.image.to_string())
}

/// All records of the container `name`, oldest first.
pub fn records<'a>(
    sandboxes: &'a [SandboxStatus],
    name: &str,
) -> Vec<(&'a SandboxStatus, &'a ContainerStatus)> {
    let mut found: Vec<_> = sandboxes
        .iter()
        .flat_map(|s| s.containers.iter().map(move |c| (s, c)))
        .filter(|(_, c)| c.config.name == name)
        .collect();
    found.sort_by_key(|(_, c)| (c.config.attempt, c.created_at));
    found
}

/// The images that the container `name` has run with, those of its volumes among them.
pub fn images(sandboxes: &[SandboxStatus], name: &str) -> Vec<ImageId> {
    let configs = records(sandboxes, name).into_iter().map(|(_, record)| &record.config);
    let all = configs.flat_map(|config| {
        let mounted = config.mounts.iter().filter_map(|mount| mount.image.clone());
        mounted.chain([config.image.clone()])
    });
    all.collect()
}

/// The newest run of the container `name`, and the one before it that ended.
pub fn newest<'a>(
    sandboxes: &'a [SandboxStatus],
    name: &str,
    remembered: Option<&Remembered>,
    messages: &BTreeMap<ContainerId, String>,
) -> (Run<'a>, Option<Ended>) {
    let records = records(sandboxes, name);
    let Some((last, older)) = records.split_last() else {
        return match remembered.and_then(|r| r.last.clone()) {
            Some(ended) => (
                Run::Ended { ended: Box::new(ended), sandbox: None, container: None },
                remembered.and_then(|r| r.previous.clone()),
            ),
            None => (Run::None, None),
        };
    };
    let before = older
        .iter()
        .rev()
        .find_map(|(_, c)| ended(c, messages))
        .or_else(|| remembered.and_then(|r| r.last.clone()));
    let (sandbox, status) = last;
    let run = match status.state {
        ContainerState::Created => Run::Created(status),
        ContainerState::Running { .. } => Run::Running(status),
        ContainerState::Exited { .. } => match ended(status, messages) {
            Some(ended) => Run::Ended {
                ended: Box::new(ended),
                sandbox: Some(sandbox.id.clone()),
                container: Some(status.id.clone()),
            },
            None => Run::Created(status),
        },
    };
    (run, before)
}

/// The restart count that the next run of `name` gets.
pub fn next_attempt(
    sandboxes: &[SandboxStatus],
    name: &str,
    remembered: Option<&Remembered>,
) -> u32 {
    let records = records(sandboxes, name);
    // A record that was never started does not count: its number is used again.
    let used = records
        .iter()
        .filter(|(_, c)| !matches!(c.state, ContainerState::Created))
        .map(|(_, c)| c.config.attempt.saturating_add(1))
        .max();
    let floor = remembered.map(|r| match r.last {
        Some(_) => r.restart_count.saturating_add(1),
        None => r.restart_count,
    });
    used.max(floor).unwrap_or(0)
}

/// The newest sandbox that can hold running containers.
pub fn live_sandbox(sandboxes: &[SandboxStatus]) -> Option<&SandboxStatus> {
    sandboxes.iter().rev().find(|s| s.state == SandboxState::Ready)
}
