//! What a worker makes of what it sees: new exits, the last words of containers, probes that begin
//! and end, waits that have to be announced.

use berth_runtime::interface::{ContainerState, ContainerStatus, SandboxStatus};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::Worker;
use super::members::{self, RestartPolicy, Role};
use super::memory::{Doom, ImageState, Operation, ProbeResults};
use super::recovery::Moment;
use super::{runs, termination_grace};
use crate::events::Severity;
use crate::probe::{self, Found, Kind, Note, Report};
use crate::status::containers;

impl Worker {
    /// Takes in what is new in the runtime's records.
    pub(super) async fn digest(&mut self, pod: &Pod, sandboxes: &[SandboxStatus]) {
        let records: Vec<&ContainerStatus> = sandboxes.iter().flat_map(|s| &s.containers).collect();
        let is_running = |c: &ContainerStatus| matches!(c.state, ContainerState::Running { .. });
        let known = |id: &_| records.iter().any(|r| r.id == *id);
        let runs_on = |id: &_| records.iter().any(|r| r.id == *id && is_running(r));
        self.memory.termination_messages.retain(|id, _| known(id));
        self.memory.doomed.retain(|id, _| runs_on(id));
        self.memory.ending.retain(|id, _| runs_on(id));
        self.memory.probes.retain(|id, _| runs_on(id));
        self.abandon(|o| matches!(o, Operation::PreStop(id) if !runs_on(id)));
        self.probes.retain(runs_on);
        self.note_attempts(sandboxes);
        for sandbox in sandboxes {
            for record in &sandbox.containers {
                match record.state {
                    ContainerState::Created => {}
                    ContainerState::Running { started_at } => {
                        self.note_running(pod, sandbox, (record, started_at));
                    }
                    ContainerState::Exited { finished_at, .. } => {
                        self.note_exit(pod, record, finished_at).await;
                    }
                }
            }
        }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { now: Instant::now(), wall: self.context.clock.now() }
    }

    fn note_attempts(&mut self, sandboxes: &[SandboxStatus]) {
        let attempts = sandboxes.iter().map(|s| s.config.attempt.saturating_add(1));
        let most = attempts.max().unwrap_or(0);
        self.memory.sandbox_attempts = self.memory.sandbox_attempts.max(most);
    }

    fn note_running(
        &mut self,
        pod: &Pod,
        sandbox: &SandboxStatus,
        (record, started_at): (&ContainerStatus, i64),
    ) {
        let Some((role, spec)) = members::find(pod, &record.config.name) else {
            return;
        };
        if role == Role::Ephemeral {
            return;
        }
        self.memory.probes.entry(record.id.clone()).or_insert(ProbeResults {
            started: !probe::is_run(spec.startup_probe.as_ref()),
            ready: !probe::is_run(spec.readiness_probe.as_ref()),
        });
        let ips = match sandbox.ips.is_empty() {
            true => self.context.node_ips.clone(),
            false => sandbox.ips.clone(),
        };
        let known = self.memory.probes.get(&record.id).copied();
        let known = known.unwrap_or(ProbeResults { started: false, ready: false });
        let found = Found { ips: &ips, known, begun: self.moment().instant_of(started_at) };
        self.probes.watch(record, &spec, found);
    }

    async fn note_exit(&mut self, pod: &Pod, record: &ContainerStatus, finished_at: i64) {
        if !self.memory.termination_messages.contains_key(&record.id) {
            let message = self.context.materials.termination_message(pod, record);
            let message = message.await.unwrap_or_default();
            if !message.is_empty() {
                self.memory.termination_messages.insert(record.id.clone(), message);
            }
        }
        let moment = self.moment();
        let name = &record.config.name;
        let attempt = record.config.attempt;
        let memory = self.memory.container(name);
        let is_newest = memory.ended_at.as_ref().is_none_or(|(id, _)| *id != record.id)
            && attempt >= memory.remembered.restart_count;
        if is_newest && !self.announced.contains(&format!("exit/{}", record.id)) {
            self.announced.insert(format!("exit/{}", record.id));
            memory.ended_at = Some((record.id.clone(), moment.instant_of(finished_at)));
            tracing::info!(pod = %self.key.name, uid = %self.key.uid, container = %name, "container ended");
        }
    }

    /// Tells of waits that have begun since the last look.
    pub(super) fn announce(&mut self, pod: &Pod, now: Instant) {
        let mut told = Vec::new();
        for (name, memory) in &self.memory.containers {
            if let ImageState::Failed(failed) = &memory.image
                && now >= failed.at + self.memory.pacing.fresh
                && let Some((_, spec)) = members::find(pod, name)
            {
                let wait = containers::image_wait(&spec, &failed.failure);
                if wait.reason == "ImagePullBackOff" {
                    told.push((name.clone(), format!("pull/{name}/{:?}", failed.at), wait));
                }
            }
            if let Some((id, at)) = &memory.ended_at
                && memory.restart_backoff.waiting(*at, now).is_some()
                && self.memory.verdict.is_none()
            {
                let wait = super::memory::Failure::new(
                    "CrashLoopBackOff",
                    format!(
                        "Back-off restarting failed container {name} in pod {}",
                        containers::full_name(pod)
                    ),
                );
                told.push((name.clone(), format!("crash/{id}"), wait));
            }
        }
        for (name, key, wait) in told {
            if !self.announced.insert(key) {
                continue;
            }
            let events = &self.context.events;
            let place = (pod, name.as_str());
            match wait.reason.as_str() {
                "ImagePullBackOff" => {
                    events.container(place, Severity::Normal, "BackOff", wait.message);
                    let message = "Error: ImagePullBackOff";
                    events.container(place, Severity::Warning, "Failed", message);
                }
                _ => events.container(place, Severity::Warning, "BackOff", wait.message),
            }
        }
    }

    /// Takes in what a probe says.
    pub(super) fn note_probe(&mut self, report: Report) {
        let pod = std::sync::Arc::clone(&self.wishes.borrow().pod);
        let events = &self.context.events;
        let name = report.container.as_str();
        let title = report.kind.title();
        let told = report.note.map(|note| match note {
            Note::Failed(why) => ("Unhealthy", format!("{title} probe failed: {why}")),
            Note::Errored(why) => {
                let state = "errored and resulted in unknown state";
                ("Unhealthy", format!("{title} probe {state}: {why}"))
            }
            Note::Warned(what) => ("ProbeWarning", format!("{title} probe warning: {what}")),
        });
        if let Some((reason, message)) = told {
            events.container((&pod, name), Severity::Warning, reason, message);
        }
        let Some(healthy) = report.verdict else {
            return;
        };
        let results = self
            .memory
            .probes
            .entry(report.id.clone())
            .or_insert(ProbeResults { started: false, ready: false });
        match (report.kind, healthy) {
            (Kind::Startup, true) => results.started = true,
            (Kind::Readiness, ready) => results.ready = ready,
            (Kind::Liveness, true) => {}
            (kind @ (Kind::Startup | Kind::Liveness), false) => {
                let doom = Doom {
                    message: doom_message(&pod, name, kind),
                    grace: report.grace.unwrap_or_else(|| termination_grace(&pod)),
                };
                self.memory.doomed.entry(report.id).or_insert(doom);
            }
        }
    }
}

/// Why a container is ended whose probe failed, as the `Killing` event says it.
fn doom_message(pod: &Pod, name: &str, kind: Kind) -> String {
    let probe = kind.noun();
    match members::find(pod, name) {
        Some((Role::Sidecar, _)) => format!("Init container {name} failed {probe} probe"),
        Some((_, container))
            if RestartPolicy::of_container(pod, &container) == RestartPolicy::Never =>
        {
            format!("Container {name} failed {probe} probe")
        }
        _ => format!("Container {name} failed {probe} probe, will be restarted"),
    }
}

/// Keeps what a sandbox's records tell before they go.
pub(super) fn fold(memory: &mut super::memory::Memory, sandbox: &SandboxStatus) {
    let mut records: Vec<_> = sandbox.containers.iter().collect();
    records.sort_by_key(|r| (r.config.attempt, r.created_at));
    for record in records {
        if let Some(ended) = runs::ended(record, &memory.termination_messages) {
            memory.container(&record.config.name).remembered.fold(ended);
        }
    }
}
