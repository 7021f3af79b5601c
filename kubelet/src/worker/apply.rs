//! Carries actions out: dull, each in a task of its own, each harmless when done twice.

use std::sync::Arc;

use berth_runtime::interface::{
    ContainerId, ContainerState, Image, RuntimeError, SandboxId, SandboxStatus,
};
use k8s_openapi::api::core::v1::Pod;
use tokio::task::{Id, JoinError};
use tokio::time::Instant;

use super::materials::ContainerRequest;
use super::members::{self, Role};
use super::memory::{Ending, Failed, Failure, Hook, ImageState, Operation, VolumeState};
use super::plan::{Action, Afterwards, Goal, Removal};
use super::{Context, Worker, image, runs, sight, stop_signal};
use crate::events::Severity;
use crate::hooks;
use crate::meters;
use crate::resize::{self, SIZE_LABEL, Size};

/// What an operation gave.
pub(super) enum Outcome {
    /// It is done.
    Done,
    /// The image is in the store.
    Image(Image),
    /// It failed.
    Failed(Failure),
}

/// An operation that has ended, or a task that ended without a result.
pub(super) enum Finished {
    /// With a result.
    Result(Id, Operation, Outcome),
    /// Abandoned, or panicked.
    Nothing(Id, JoinError),
}

impl Finished {
    pub(super) fn of(joined: Result<(Id, (Operation, Outcome)), JoinError>) -> Self {
        match joined {
            Ok((id, (operation, outcome))) => Self::Result(id, operation, outcome),
            Err(error) => Self::Nothing(error.id(), error),
        }
    }
}

impl Worker {
    /// Begins one action.
    pub(super) fn begin(&mut self, pod: &Arc<Pod>, sandboxes: &[SandboxStatus], action: Action) {
        let context = Arc::clone(&self.context);
        let pod = Arc::clone(pod);
        match action {
            Action::PrepareVolumes => {
                // What changes from here on, this run may have missed.
                self.memory.refresh_at = None;
                self.spawn(Operation::Volumes, None, prepare_volumes(context, pod));
            }
            Action::TearDownVolumes => {
                self.spawn(Operation::TearDown, None, async move {
                    outcome(context.materials.tear_down_volumes(&pod).await)
                });
            }
            Action::CreateSandbox { attempt } => {
                self.spawn(Operation::Sandbox, None, create_sandbox(context, pod, attempt));
            }
            Action::StopSandbox(id) => {
                self.note_lost(&pod, &id);
                self.spawn(Operation::StopSandbox(id.clone()), None, async move {
                    stopped(context.runtime.stop_sandbox(&id).await)
                });
            }
            Action::RemoveSandbox(id) => {
                if let Some(sandbox) = sandboxes.iter().find(|s| s.id == id) {
                    sight::fold(&mut self.memory, sandbox);
                }
                self.spawn(Operation::RemoveSandbox(id.clone()), None, async move {
                    stopped(context.runtime.remove_sandbox(&id).await)
                });
            }
            Action::EnsureImage { container } => {
                self.ensure_image(context, pod, sandboxes, container);
            }
            start @ Action::StartContainer { .. } => self.start(context, pod, sandboxes, start),
            end @ Action::EndContainer { .. } => self.end(&pod, end),
            Action::RunPreStop { id, container } => {
                self.spawn(Operation::PreStop(id.clone()), None, async move {
                    hooks::pre_stop(&context, &pod, (&container, &id)).await;
                    Outcome::Done
                });
            }
            Action::StopContainer { id, container, kills_at } => {
                self.stop(context, &pod, (id, &container), kills_at);
            }
            resize @ Action::Resize { .. } => self.resize(context, pod, sandboxes, resize),
            remove @ Action::RemoveContainer { .. } => {
                self.remove_container(context, pod, sandboxes, remove);
            }
            Action::AbandonPulls => self.abandon(|o| matches!(o, Operation::Image(_))),
            Action::RemoveDirectories => {
                self.spawn(Operation::Directories, None, async move {
                    outcome(context.materials.remove_directories(&pod).await)
                });
            }
        }
    }

    pub(super) fn spawn(
        &mut self,
        operation: Operation,
        kills_at: Option<Instant>,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.memory.in_flight.insert(operation.clone(), kills_at);
        let named = operation.clone();
        let handle = self.operations.spawn(async move { (operation, work.await) });
        self.tasks.insert(handle.id(), (named, handle));
    }

    /// A sandbox that is stopped while its pod should run was lost.
    fn note_lost(&mut self, pod: &Pod, id: &SandboxId) {
        let runs = self.goal(&self.wishes.borrow()) == Goal::Run;
        if runs && self.announced.insert(format!("lost/{id}")) {
            self.context.events.pod(
                pod,
                Severity::Normal,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
        }
    }

    fn ensure_image(
        &mut self,
        context: Arc<Context>,
        pod: Arc<Pod>,
        sandboxes: &[SandboxStatus],
        container: String,
    ) {
        let (name, before) = (container.clone(), runs::images(sandboxes, &container));
        self.startup.pull_begun(Instant::now());
        self.spawn(Operation::Image(name), None, async move {
            let ensured = image::ensure(&context, &pod, &container, &before).await;
            ensured.map_or_else(Outcome::Failed, Outcome::Image)
        });
    }

    fn start(
        &mut self,
        context: Arc<Context>,
        pod: Arc<Pod>,
        sandboxes: &[SandboxStatus],
        action: Action,
    ) {
        let Action::StartContainer { container, attempt, image, sandbox } = action else {
            return;
        };
        let now = Instant::now();
        let records = runs::records(sandboxes, &container);
        let memory = self.memory.container(&container);
        // Only a run in this sandbox is a crash; a new sandbox is not the container's fault.
        if let Some((home, newest)) = records.last()
            && home.id == sandbox
            && let Some((id, at)) = &memory.ended_at
            && *id == newest.id
        {
            match memory.replaced.as_ref() == Some(id) {
                // It did not fail, it was told to make way.
                true => memory.restart_backoff.reset(),
                false => memory.restart_backoff.charge(*at, now),
            }
        }
        self.memory.resetting = false;
        let target = target(&pod, sandboxes, &container);
        let ips = sandboxes
            .iter()
            .find(|s| s.id == sandbox)
            .map(|s| s.ips.clone())
            .filter(|ips| !ips.is_empty())
            .unwrap_or_else(|| context.node_ips.clone());
        let before = runs::records(sandboxes, &container);
        let before = before.last().map(|(_, record)| record.config.env.clone());
        let name = container.clone();
        let start = Start { container: name, attempt, image, sandbox, ips, target, before };
        self.spawn(Operation::Start(container), None, async move {
            start_container(context, pod, start).await
        });
    }

    /// Notes that a container ends, or has to be gone earlier than it was told.
    fn end(&mut self, pod: &Pod, action: Action) {
        let Action::EndContainer { id, container, deadline, message, next } = action else {
            return;
        };
        if next == Afterwards::Again {
            self.memory.container(&container).replaced = Some(id.clone());
        }
        if let Some(known) = self.memory.ending.get_mut(&id) {
            known.deadline = known.deadline.min(deadline);
            return;
        }
        let events = &self.context.events;
        events.container((pod, container.as_str()), Severity::Normal, "Killing", message);
        self.memory.ending.insert(id, Ending { deadline, hook: Hook::Due });
    }

    fn stop(
        &mut self,
        context: Arc<Context>,
        pod: &Pod,
        (id, container): (ContainerId, &str),
        kills_at: Instant,
    ) {
        let signal = stop_signal::of(pod, container);
        self.spawn(Operation::Stop(id.clone()), Some(kills_at), async move {
            let grace = kills_at.saturating_duration_since(Instant::now());
            stopped(context.runtime.stop_container(&id, signal, grace).await)
        });
    }

    fn remove_container(
        &mut self,
        context: Arc<Context>,
        pod: Arc<Pod>,
        sandboxes: &[SandboxStatus],
        action: Action,
    ) {
        let Action::RemoveContainer { id, container, because } = action else {
            return;
        };
        let record = sandboxes.iter().flat_map(|s| &s.containers).find(|c| c.id == id);
        let attempt = record.map_or(0, |r| r.config.attempt);
        let ended = record.and_then(|r| runs::ended(r, &self.memory.termination_messages));
        if because == Removal::Reset {
            self.memory.resetting = true;
            self.charge_cause(&pod, &container, ended.as_ref().map(|e| e.exit_code));
        }
        let memory = &mut self.memory.container(&container).remembered;
        match (ended, because) {
            (Some(ended), Removal::Old) => memory.fold(ended),
            (Some(ended), Removal::Reset) => memory.fold(runs::reset(ended)),
            (None, _) => {}
        }
        let keep = match because {
            Removal::Old => attempt.saturating_add(2),
            Removal::Reset => attempt.saturating_add(1),
        };
        self.spawn(Operation::RemoveContainer(id.clone()), None, async move {
            let removed = context.runtime.remove_container(&id).await;
            context.materials.drop_old_logs(&pod, &container, keep).await;
            stopped(removed)
        });
    }

    /// A container that has all others restarted with it waits longer each time.
    fn charge_cause(&mut self, pod: &Pod, name: &str, exit_code: Option<i32>) {
        let found = members::find(pod, name).zip(exit_code);
        let is_cause = found.is_some_and(|((role, container), code)| {
            members::ruling(pod, (role, &container), code) == members::Ruling::RestartAll
        });
        let memory = self.memory.container(name);
        if let (true, Some((_, at))) = (is_cause, &memory.ended_at) {
            memory.restart_backoff.charge(*at, Instant::now());
        }
    }

    /// Aborts what is under way and meets `which`.
    pub(super) fn abandon(&self, which: impl Fn(&Operation) -> bool) {
        for (operation, abort) in self.tasks.values() {
            if which(operation) {
                abort.abort();
            }
        }
    }

    /// Takes in what an operation gave.
    pub(super) fn finish(&mut self, finished: Finished) {
        let (operation, outcome) = match finished {
            Finished::Result(id, operation, outcome) => {
                self.tasks.remove(&id);
                (operation, outcome)
            }
            Finished::Nothing(id, error) => {
                let Some((operation, _)) = self.tasks.remove(&id) else {
                    return;
                };
                if error.is_cancelled() {
                    if matches!(operation, Operation::Image(_)) {
                        self.startup.pull_ended(Instant::now());
                    }
                    self.memory.in_flight.remove(&operation);
                    return;
                }
                let failure = Failure::new("Internal", error.to_string());
                (operation, Outcome::Failed(failure))
            }
        };
        self.memory.in_flight.remove(&operation);
        let now = Instant::now();
        if matches!(operation, Operation::Image(_)) {
            self.startup.pull_ended(now);
        }
        match outcome {
            Outcome::Failed(failure) => self.note_failure(operation, failure, now),
            Outcome::Image(image) => {
                if let Operation::Image(name) = &operation {
                    let memory = self.memory.container(name);
                    memory.image = ImageState::Ready(image);
                    memory.pull_backoff.reset();
                }
            }
            Outcome::Done => self.note_success(operation),
        }
    }

    fn note_success(&mut self, operation: Operation) {
        self.memory.note_success(&operation);
        match operation {
            Operation::Volumes => {
                self.memory.volumes = VolumeState::Mounted;
                self.memory.refresh_at = self.memory.refresh_at.or(self.next_refresh());
            }
            Operation::TearDown => self.memory.volumes = VolumeState::TornDown,
            Operation::StopSandbox(id) => {
                self.memory.stopped.insert(id);
            }
            Operation::RemoveSandbox(id) => {
                self.memory.stopped.remove(&id);
            }
            Operation::Start(name) => {
                let memory = self.memory.container(&name);
                memory.image = ImageState::Unknown;
                memory.replaced = None;
                memory.start_failure = None;
                memory.start_backoff.reset();
            }
            Operation::Directories => self.memory.directories_removed = true,
            Operation::Sandbox
            | Operation::Resize
            | Operation::Image(_)
            | Operation::Stop(_)
            | Operation::RemoveContainer(_) => {}
            Operation::PreStop(id) => {
                if let Some(ending) = self.memory.ending.get_mut(&id) {
                    ending.hook = Hook::Done;
                }
            }
        }
    }

    fn note_failure(&mut self, operation: Operation, failure: Failure, now: Instant) {
        tracing::warn!(
            pod = %self.key.name, uid = %self.key.uid, ?operation,
            reason = %failure.reason, error = %failure.message, "operation failed"
        );
        match &operation {
            Operation::Image(name) => {
                let memory = self.memory.container(name);
                memory.pull_backoff.charge(now, now);
                let wait = memory.pull_backoff.waiting_since_charge(now);
                memory.image = ImageState::Failed(Failed {
                    failure,
                    at: now,
                    retry_at: wait.map_or(now, |w| w.until),
                });
            }
            Operation::Start(name) => {
                let memory = self.memory.container(name);
                memory.replaced = None;
                let retry_at = match failure.reason.as_str() {
                    // Its record has ended: the restart delay rules.
                    "RunContainerError" | "PostStartHookError" => {
                        memory.image = ImageState::Unknown;
                        now
                    }
                    reason => {
                        if reason == image::GONE {
                            memory.image = ImageState::Unknown;
                        }
                        memory.start_backoff.charge(now, now);
                        let wait = memory.start_backoff.waiting_since_charge(now);
                        wait.map_or(now, |w| w.until)
                    }
                };
                memory.start_failure = Some(Failed { failure, at: now, retry_at });
            }
            Operation::Volumes => {
                // Those that are mounted are looked at again as soon as the wait is over.
                self.memory.refresh_at = self.memory.refresh_at.or(Some(now));
                self.memory.note_failure(&operation, now);
            }
            Operation::Resize => {
                self.note_resize_failure(failure);
                self.memory.note_failure(&operation, now);
            }
            Operation::Stop(_)
            | Operation::StopSandbox(_)
            | Operation::RemoveSandbox(_)
            | Operation::TearDown
            | Operation::Directories => {
                let pod = Arc::clone(&self.wishes.borrow().pod);
                let message = format!("error killing pod: {}", failure.message);
                self.context.events.pod(&pod, Severity::Warning, "FailedKillPod", message);
                self.memory.note_failure(&operation, now);
            }
            _ => self.memory.note_failure(&operation, now),
        }
    }
}

fn outcome(result: Result<(), Failure>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(failure) => Outcome::Failed(failure),
    }
}

fn stopped(result: Result<(), RuntimeError>) -> Outcome {
    match result {
        Ok(()) | Err(RuntimeError::NotFound(_)) => Outcome::Done,
        Err(error) => Outcome::Failed(Failure::new("Runtime", chain(&error))),
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

async fn prepare_volumes(context: Arc<Context>, pod: Arc<Pod>) -> Outcome {
    let prepared = context.materials.prepare_volumes(&pod).await;
    let failures = prepared.err().unwrap_or_default();
    for Failure { reason, message, .. } in &failures {
        context.events.pod(&pod, Severity::Warning, reason, message.clone());
    }
    failures.into_iter().next().map_or(Outcome::Done, Outcome::Failed)
}

async fn create_sandbox(context: Arc<Context>, pod: Arc<Pod>, attempt: u32) -> Outcome {
    let has_own_users = pod.spec.as_ref().is_some_and(|spec| spec.host_users == Some(false));
    let count = |all, of_own_users| {
        context.meters.count(all, &[]);
        if has_own_users {
            context.meters.count(of_own_users, &[]);
        }
    };
    count(&meters::PODS, &meters::USER_PODS);
    let created = async {
        let mut config = context.materials.sandbox(&pod, attempt).await?;
        config.labels.insert(SIZE_LABEL.to_owned(), resize::pod_size(&pod));
        context
            .runtime
            .run_sandbox(config)
            .await
            .map_err(|error| Failure::new("FailedCreatePodSandBox", chain(&error)))
    };
    match created.await {
        Ok(_) => Outcome::Done,
        Err(failure) => {
            count(&meters::FAILED_PODS, &meters::FAILED_USER_PODS);
            let message = format!("Failed to create pod sandbox: {}", failure.message);
            let events = &context.events;
            events.pod(&pod, Severity::Warning, "FailedCreatePodSandBox", message);
            Outcome::Failed(failure)
        }
    }
}

struct Start {
    container: String,
    attempt: u32,
    image: Image,
    sandbox: SandboxId,
    ips: Vec<std::net::IpAddr>,
    /// The container whose processes it sees, if it names one.
    target: Result<Option<ContainerId>, Failure>,
    /// The environment of its run before.
    before: Option<Vec<(String, String)>>,
}

/// The running container that an ephemeral one looks into.
fn target(
    pod: &Pod,
    sandboxes: &[SandboxStatus],
    name: &str,
) -> Result<Option<ContainerId>, Failure> {
    let mut ephemeral = members::ephemeral_containers(pod).iter();
    let wanted = ephemeral.find(|c| c.name == name).and_then(|c| c.target_container_name.as_ref());
    let Some(wanted) = wanted.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let mut records = sandboxes.iter().flat_map(|s| &s.containers);
    let found = records
        .find(|c| c.config.name == *wanted && matches!(c.state, ContainerState::Running { .. }));
    found.map(|record| Some(record.id.clone())).ok_or_else(|| {
        let message = format!("unable to find target container {wanted}");
        Failure::new("CreateContainerConfigError", message)
    })
}

async fn start_container(context: Arc<Context>, pod: Arc<Pod>, start: Start) -> Outcome {
    let kind = members::find(&pod, &start.container).map_or("", |(role, _)| kind_of(role));
    context.meters.count(&meters::CONTAINERS, &[kind]);
    let started = try_start(&context, &pod, &start).await;
    if let Err(failure) = &started {
        context.meters.count(&meters::FAILED_CONTAINERS, &[kind, &failure.reason]);
        let place = (&*pod, start.container.as_str());
        // What a hook said may be secret; it stays in the log and the status.
        let (reason, message) = match failure.reason.as_str() {
            "PostStartHookError" => ("FailedPostStartHook", "PostStartHook failed".to_owned()),
            _ => ("Failed", format!("Error: {}", failure.message)),
        };
        context.events.container(place, Severity::Warning, reason, message);
    }
    outcome(started)
}

/// A container's kind, as upstream counts it.
fn kind_of(role: Role) -> &'static str {
    match role {
        Role::Init | Role::Sidecar => "init_container",
        Role::App => "container",
        Role::Ephemeral => "ephemeral_container",
    }
}

async fn try_start(context: &Context, pod: &Pod, start: &Start) -> Result<(), Failure> {
    let (_, spec) = members::find(pod, &start.container)
        .ok_or_else(|| Failure::new("CreateContainerConfigError", "no such container"))?;
    let spec = &*spec;
    let volume_images = image::of_volumes(context, pod, spec).await?;
    let request = ContainerRequest {
        pod,
        container: spec,
        attempt: start.attempt,
        image: &start.image,
        volume_images,
        pod_ips: start.ips.clone(),
        before: start.before.clone(),
    };
    let target = start.target.clone()?;
    let mut config = context.materials.container(request).await?;
    let shown = image::shown_id(&start.image);
    config.labels.insert(runs::IMAGE_ID_LABEL.to_owned(), shown);
    config.labels.insert(SIZE_LABEL.to_owned(), Size::of(pod, spec).label());
    config.pid_target = target;
    let created = context.runtime.create_container(&start.sandbox, config).await;
    let id = created.map_err(|error| Failure::new("CreateContainerError", chain(&error)))?;
    let place = (pod, start.container.as_str());
    let events = &context.events;
    events.container(place, Severity::Normal, "Created", "Container created");
    let run = context.runtime.start_container(&id).await;
    run.map_err(|error| Failure::new("RunContainerError", chain(&error)))?;
    events.container(place, Severity::Normal, "Started", "Container started");
    link_log(context, pod, &id).await;
    if let Err(message) = hooks::post_start(context, pod, (spec, &id), &start.ips).await {
        events.container(place, Severity::Normal, "Killing", "FailedPostStartHook");
        stop_after_hook(context, pod, (&spec.name, &id)).await;
        return Err(Failure::new("PostStartHookError", message));
    }
    Ok(())
}

async fn link_log(context: &Context, pod: &Pod, id: &ContainerId) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let sandboxes = context.runtime.pod(uid).await.unwrap_or_default();
    let mut records = sandboxes.iter().flat_map(|s| &s.containers);
    if let Some(record) = records.find(|c| c.id == *id) {
        context.materials.link_log(pod, record).await;
    }
}

async fn stop_after_hook(context: &Context, pod: &Pod, (name, id): (&str, &ContainerId)) {
    let deadline = Instant::now() + super::termination_grace(pod);
    let mut hook = std::pin::pin!(hooks::pre_stop(context, pod, (name, id)));
    let hook_ended = tokio::time::timeout_at(deadline, &mut hook).await.is_ok();
    let least = if hook_ended { super::MIN_GRACE } else { super::LAST_GRACE };
    let left = deadline.saturating_duration_since(Instant::now()).max(least);
    let stop = context.runtime.stop_container(id, stop_signal::of(pod, name), left);
    let mut stop = std::pin::pin!(stop);
    // A hook that takes longer goes on until the container is gone.
    let stopped = tokio::select! {
        stopped = &mut stop => stopped,
        () = &mut hook, if !hook_ended => stop.await,
    };
    if let Err(error) = stopped {
        tracing::warn!(container = %id, %error, "container not stopped after its postStart hook");
    }
}
