//! What a pod's worker knows beyond what it can observe: operations under way, failures and their
//! back-offs, probe results, the verdict once there is one.
//!
//! Everything here can be lost with the agent: [`super::recovery`] rebuilds what matters from the
//! runtime's records and the last status.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_runtime::interface::{ContainerId, Image, SandboxId};
use tokio::time::Instant;

use super::runs::Remembered;
use crate::backoff::{Backoff, Limits};
use crate::resize::Progress;

/// Something a worker does that takes time. At most one of each runs at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Materialize the volumes.
    Volumes,
    /// Take the volumes down.
    TearDown,
    /// Make a sandbox.
    Sandbox,
    /// Hold the pod or its containers to other limits.
    Resize,
    /// Stop a sandbox.
    StopSandbox(SandboxId),
    /// Remove a sandbox and its containers.
    RemoveSandbox(SandboxId),
    /// Resolve or pull the image of the named container.
    Image(String),
    /// Create and start the named container.
    Start(String),
    /// Run a container's `preStop` hook.
    PreStop(ContainerId),
    /// Stop a container.
    Stop(ContainerId),
    /// Remove a container's record.
    RemoveContainer(ContainerId),
    /// Remove the pod's directories.
    Directories,
}

/// Why something is not there yet, as the status says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Upstream's reason.
    pub reason: String,
    /// The message.
    pub message: String,
    /// The image that it is about, where that is not the container's own.
    pub image: Option<String>,
}

impl Failure {
    /// A failure of this reason and message.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into(), image: None }
    }

    /// The failure of a volume that is this image.
    pub fn of_volume(self, reference: &str) -> Self {
        Self { image: Some(reference.to_owned()), ..self }
    }
}

/// A failure that is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What failed.
    pub failure: Failure,
    /// When it failed.
    pub at: Instant,
    /// When it is tried again.
    pub retry_at: Instant,
}

/// How far a container's image is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImageState {
    /// Not looked at since the last start.
    #[default]
    Unknown,
    /// In the store.
    Ready(Image),
    /// Not to be had for now.
    Failed(Failed),
}

/// How far the volumes are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VolumeState {
    /// Nothing is known to be there.
    #[default]
    Unknown,
    /// All are there.
    Mounted,
    /// All are gone.
    TornDown,
}

/// What the probes of one running container have said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeResults {
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
}

/// A running container that has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doom {
    /// Why, as the `Killing` event says it.
    pub message: String,
    /// How long it may take.
    pub grace: Duration,
}

/// A container that is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// When it has to be gone.
    pub deadline: Instant,
    /// How far its `preStop` hook is.
    pub hook: Hook,
}

/// How far a `preStop` hook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// It has not ended; perhaps there is none.
    Due,
    /// It has ended, well or not.
    Done,
}

/// What is known of one container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Runs without a record.
    pub remembered: Remembered,
    /// Its image.
    pub image: ImageState,
    /// The delay between pulls.
    pub pull_backoff: Backoff,
    /// Why its last start failed.
    pub start_failure: Option<Failed>,
    /// The delay between starts that fail before the command runs.
    pub start_backoff: Backoff,
    /// The delay between restarts.
    pub restart_backoff: Backoff,
    /// When the newest run's end was seen.
    pub ended_at: Option<(ContainerId, Instant)>,
    /// The run that was ended so that the container runs as it is specified now, until that start has
    /// come to something.
    pub replaced: Option<ContainerId>,
}

/// A final judgement on a pod: it will not run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `Succeeded` or `Failed`.
    pub phase: Phase,
    /// Why, where the containers do not say it (`Evicted`, `DeadlineExceeded`, `OutOfcpu`).
    pub reason: Option<String>,
    /// The message to the reason.
    pub message: Option<String>,
    /// The message of the condition `DisruptionTarget`, where the pod ends for the node's sake.
    pub disruption: Option<String>,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accepted; not every container has been started.
    Pending,
    /// At least one container runs or will run again.
    Running,
    /// Every container ended well.
    Succeeded,
    /// Every container ended, one badly, or the pod was refused or evicted.
    Failed,
}

impl Phase {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    /// Whether nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// The numbers behind the waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pacing {
    /// Between restarts of a container.
    pub restart: Limits,
    /// Between pulls of an image.
    pub pull: Limits,
    /// Between tries to create a container.
    pub create: Limits,
    /// Between tries of a sandbox or of volumes, and of anything else that failed.
    pub operation: Limits,
    /// How long a fresh failure is shown under its own name (`ErrImagePull`) before the status tells
    /// of the wait (`ImagePullBackOff`).
    pub fresh: Duration,
    /// How long a container that makes way for one of another image is told of as it was, before the
    /// status says that nothing runs: as long as the kubelet takes to see an end.
    pub exchange: Duration,
    /// How often volumes are filled anew though nothing is known to have changed.
    pub refresh: Duration,
}

impl Default for Pacing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            restart: Limits::of_restarts(seconds(300)),
            pull: Limits::new(seconds(10), seconds(300)),
            create: Limits::new(seconds(1), seconds(10)),
            operation: Limits::new(Duration::from_millis(500), seconds(30)),
            fresh: seconds(1),
            exchange: seconds(1),
            refresh: seconds(300),
        }
    }
}

/// Everything a worker remembers.
#[derive(Debug, Clone)]
pub struct Memory {
    /// The numbers behind the waits.
    pub pacing: Pacing,
    /// Operations under way; a stop carries the time at which it kills.
    pub in_flight: BTreeMap<Operation, Option<Instant>>,
    /// Operations that failed, and when they are tried again.
    pub retries: BTreeMap<Operation, (Backoff, Instant)>,
    /// The volumes.
    pub volumes: VolumeState,
    /// When the volumes are filled anew from their sources; absent where they never change.
    pub refresh_at: Option<Instant>,
    /// The sandboxes whose stop has succeeded.
    pub stopped: BTreeSet<SandboxId>,
    /// How many sandboxes the pod has had.
    pub sandbox_attempts: u32,
    /// The containers by name; all kinds share the name space.
    pub containers: BTreeMap<String, Box<Container>>,
    /// What the probes have said.
    pub probes: BTreeMap<ContainerId, ProbeResults>,
    /// Running containers that have to end.
    pub doomed: BTreeMap<ContainerId, Doom>,
    /// Running containers that are being ended.
    pub ending: BTreeMap<ContainerId, Ending>,
    /// What ended containers left in their termination log.
    pub termination_messages: BTreeMap<ContainerId, String>,
    /// The final judgement.
    pub verdict: Option<Verdict>,
    /// Whether the pod's directories are gone.
    pub directories_removed: bool,
    /// What is going on with the pod's size.
    pub resize: Progress,
    /// Whether records are being taken away so that all containers start again.
    pub resetting: bool,
}

impl Memory {
    /// Of a pod that was never seen before, with these containers.
    pub fn new<'a>(pacing: Pacing, containers: impl Iterator<Item = &'a str>) -> Self {
        Self {
            pacing,
            in_flight: BTreeMap::new(),
            retries: BTreeMap::new(),
            volumes: VolumeState::default(),
            refresh_at: None,
            stopped: BTreeSet::new(),
            sandbox_attempts: 0,
            containers: containers
                .map(|name| (name.to_owned(), Box::new(Container::new(pacing))))
                .collect(),
            probes: BTreeMap::new(),
            doomed: BTreeMap::new(),
            ending: BTreeMap::new(),
            termination_messages: BTreeMap::new(),
            verdict: None,
            directories_removed: false,
            resize: Progress::default(),
            resetting: false,
        }
    }

    /// The container `name`, made where it is not known yet.
    pub fn container(&mut self, name: &str) -> &mut Container {
        let pacing = self.pacing;
        self.containers.entry(name.to_owned()).or_insert_with(|| Box::new(Container::new(pacing)))
    }

    /// Whether `operation` is under way.
    pub fn busy(&self, operation: &Operation) -> bool {
        self.in_flight.contains_key(operation)
    }

    /// When `operation` may be tried again, if it failed and has to wait.
    pub fn retry_at(&self, operation: &Operation, now: Instant) -> Option<Instant> {
        self.retries.get(operation).map(|(_, at)| *at).filter(|at| *at > now)
    }

    /// Notes that `operation` failed, and when it is tried again.
    pub fn note_failure(&mut self, operation: &Operation, now: Instant) {
        let limits = self.pacing.operation;
        let (backoff, at) =
            self.retries.entry(operation.clone()).or_insert_with(|| (Backoff::new(limits), now));
        backoff.charge(now, now);
        *at = backoff.waiting_since_charge(now).map_or(now, |wait| wait.until);
    }

    /// Notes that `operation` succeeded.
    pub fn note_success(&mut self, operation: &Operation) {
        self.retries.remove(operation);
    }
}

impl Container {
    /// One that has never been looked at.
    pub fn new(pacing: Pacing) -> Self {
        Self {
            remembered: Remembered::default(),
            image: ImageState::Unknown,
            pull_backoff: Backoff::new(pacing.pull),
            start_failure: None,
            start_backoff: Backoff::new(pacing.create),
            restart_backoff: Backoff::new(pacing.restart),
            ended_at: None,
            replaced: None,
        }
    }

    /// The run that has made way for its successor, and until when it is told of as if it had not.
    /// `None` where there is none, or where the successor is held up by a failure.
    pub fn exchange(&self, pacing: &Pacing) -> Option<(&ContainerId, Instant)> {
        let (id, ended) = self.ended_at.as_ref()?;
        let is_held_up =
            self.start_failure.is_some() || matches!(self.image, ImageState::Failed(_));
        let is_exchanged = self.replaced.as_ref() == Some(id) && !is_held_up;
        is_exchanged.then(|| (id, *ended + pacing.exchange))
    }
}
