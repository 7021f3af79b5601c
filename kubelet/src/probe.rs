//! Probes: startup, readiness and liveness of running containers, by `exec`, `httpGet`, `tcpSocket`
//! and `grpc`.
//!
//! ```text
//!   container runs ─► startup (until it succeeds) ─┬─► readiness ─► ready / not ready
//!                          │ threshold             └─► liveness  ─► restart
//!                          └─► restart
//! ```
//!
//! One task a container; it reports to the container's worker and decides nothing about the pod.
//! `Differs:` the first probe runs right after the initial delay, and until a startup or readiness
//! probe first succeeds it is tried again every 0.1 to 1 s. Failures are counted once a period all
//! the same, so thresholds mean what they say.

pub mod counts;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::{ContainerId, ContainerStatus, Runtime};
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http_call::{self, Call};
use crate::worker::memory::ProbeResults;
use crate::{expansion, grpc_call};
use counts::OfPod;

/// How often a probe that could not be run at all is tried before that is told.
const TRIES: usize = 3;

/// Between tries before the first success.
const FAST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How many reports may wait for the worker.
const REPORTS: usize = 16;

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Whether the application has started.
    Startup,
    /// Whether it can serve.
    Readiness,
    /// Whether it has to be restarted.
    Liveness,
}

impl Kind {
    /// As the `Unhealthy` event begins.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }

    /// As the `Killing` event says it.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Startup => "startup",
            Kind::Readiness => "readiness",
            Kind::Liveness => "liveness",
        }
    }
}

/// What an event says of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// It said no.
    Failed(String),
    /// It could not be run.
    Errored(String),
    /// It said yes in a way that is probably not meant.
    Warned(String),
}

/// What a probe says.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The container.
    pub id: ContainerId,
    /// Its name.
    pub container: String,
    /// Which probe.
    pub kind: Kind,
    /// The new verdict, where a threshold was reached and it changed.
    pub verdict: Option<bool>,
    /// What went wrong this time.
    pub note: Option<Note>,
    /// The probe's own grace period for a kill.
    pub grace: Option<Duration>,
}

/// Whether `probe` is there and says how to probe.
pub fn is_run(probe: Option<&Probe>) -> bool {
    probe.is_some_and(|p| {
        p.exec.is_some() || p.http_get.is_some() || p.tcp_socket.is_some() || p.grpc.is_some()
    })
}

/// What is known of a container when its probes begin.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The pod's addresses.
    pub ips: &'a [IpAddr],
    /// What its probes said to the agent before this one.
    pub known: ProbeResults,
    /// When the container started.
    pub begun: Instant,
}

/// The probes of one pod.
pub struct Probers {
    runtime: Arc<dyn Runtime>,
    counts: Arc<OfPod>,
    tasks: HashMap<ContainerId, JoinHandle<()>>,
    /// Cancelled once the pod ends: only readiness is of interest then.
    calm: CancellationToken,
    /// There once there is a probe: most pods have none.
    reports: Option<(mpsc::Sender<Report>, mpsc::Receiver<Report>)>,
}

impl Probers {
    /// None yet.
    pub fn new(runtime: Arc<dyn Runtime>, counts: Arc<OfPod>) -> Self {
        let (tasks, calm) = (HashMap::new(), CancellationToken::new());
        Self { runtime, counts, tasks, calm, reports: None }
    }

    /// Ends startup and liveness probes for good: the pod is ending. Readiness is still probed, so
    /// that a pod on its way out says when it stops serving.
    pub fn calm_down(&self) {
        self.calm.cancel();
    }

    /// Probes a running container from now on; once only.
    pub fn watch(
        &mut self,
        record: &ContainerStatus,
        container: &Container,
        Found { ips, known, begun }: Found<'_>,
    ) {
        let all = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
        let has_probes = all.into_iter().any(|p| is_run(p.as_ref()));
        if !has_probes || self.tasks.contains_key(&record.id) {
            return;
        }
        let (reports, _) = self.reports.get_or_insert_with(|| mpsc::channel(REPORTS));
        let prober = Prober {
            counts: Arc::clone(&self.counts),
            runtime: Arc::clone(&self.runtime),
            id: record.id.clone(),
            container: container.clone(),
            ips: ips.to_vec(),
            reports: reports.clone(),
            calm: self.calm.clone(),
            begun,
        };
        let task = tokio::spawn(prober.run(known));
        self.tasks.insert(record.id.clone(), task);
    }

    /// Ends the probes of containers that do not run any more.
    pub fn retain(&mut self, mut runs: impl FnMut(&ContainerId) -> bool) {
        self.tasks.retain(|id, task| {
            let keep = runs(id);
            if !keep {
                task.abort();
            }
            keep
        });
    }

    /// The next report; waits for ever when there is none.
    pub async fn next(&mut self) -> Report {
        if let Some((_, inbox)) = &mut self.reports
            && let Some(report) = inbox.recv().await
        {
            return report;
        }
        std::future::pending().await
    }
}

impl Drop for Probers {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

struct Prober {
    runtime: Arc<dyn Runtime>,
    counts: Arc<OfPod>,
    id: ContainerId,
    container: Container,
    ips: Vec<IpAddr>,
    reports: mpsc::Sender<Report>,
    calm: CancellationToken,
    begun: Instant,
}

/// The numbers of a probe, with the API's defaults.
struct Numbers {
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Numbers {
    fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            let value = value.and_then(|v| u64::try_from(v).ok());
            Duration::from_secs(value.unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            let value = value.and_then(|v| u32::try_from(v).ok());
            value.filter(|v| *v > 0).unwrap_or(default)
        };
        let least = Duration::from_secs(1);
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(least),
            timeout: seconds(probe.timeout_seconds, 1).max(least),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }
    }
}

/// Counts results until a threshold is reached.
#[derive(Debug, Default)]
struct Tally {
    successes: u32,
    failures: u32,
    verdict: Option<bool>,
}

impl Tally {
    /// The verdict, if this result changes it.
    fn count(&mut self, healthy: bool, numbers: &Numbers) -> Option<bool> {
        if healthy {
            self.successes += 1;
            self.failures = 0;
        } else {
            self.failures += 1;
            self.successes = 0;
        }
        let reached = match healthy {
            true => self.successes >= numbers.successes,
            false => self.failures >= numbers.failures,
        };
        let changed = reached && self.verdict != Some(healthy);
        if changed {
            self.verdict = Some(healthy);
        }
        changed.then_some(healthy)
    }
}

impl Prober {
    async fn run(self, known: ProbeResults) {
        let startup = self.container.startup_probe.as_ref().filter(|p| is_run(Some(p)));
        if let Some(probe) = startup.filter(|_| !known.started)
            && self.calmly(self.watch(Kind::Startup, probe, None)).await != Some(true)
            && !self.calm.is_cancelled()
        {
            return;
        }
        let readiness = async {
            let probe = self.container.readiness_probe.as_ref().filter(|p| is_run(Some(p)));
            if let Some(probe) = probe {
                let before = known.ready.then_some(true);
                self.watch(Kind::Readiness, probe, before).await;
            }
        };
        let liveness = async {
            let probe = self.container.liveness_probe.as_ref().filter(|p| is_run(Some(p)));
            if let Some(probe) = probe {
                self.calmly(self.watch(Kind::Liveness, probe, None)).await;
            }
        };
        tokio::join!(readiness, liveness);
    }

    /// Goes on with `probing` until the pod ends.
    async fn calmly(&self, probing: impl Future<Output = Option<bool>>) -> Option<bool> {
        tokio::select! {
            verdict = probing => verdict,
            () = self.calm.cancelled() => None,
        }
    }

    /// Probes until there is a verdict that ends it: any for startup, a bad one for liveness.
    /// `before` is what it said to an earlier agent.
    async fn watch(&self, kind: Kind, probe: &Probe, before: Option<bool>) -> Option<bool> {
        let numbers = Numbers::of(probe);
        tokio::time::sleep_until(self.begun + numbers.initial_delay).await;
        let mut tally = Tally { verdict: before, ..Tally::default() };
        loop {
            let next = Instant::now() + numbers.period;
            let mut result = self.attempt(kind, probe, &numbers).await;
            let verdict = match result {
                // It says nothing about the container.
                Answer::NotRun(_) => None,
                _ => tally.count(result.is_healthy(), &numbers),
            };
            let mut ended = self.tell(kind, probe, verdict, &result).await;
            let mut pause = FAST.0;
            // Fast tries while nothing has succeeded yet; they can only make things better.
            while ended.is_none()
                && !result.is_healthy()
                && kind != Kind::Liveness
                && tally.verdict != Some(true)
                && Instant::now() + pause < next
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FAST.1);
                result = self.attempt(kind, probe, &numbers).await;
                if result.is_healthy() {
                    let verdict = tally.count(true, &numbers);
                    ended = self.tell(kind, probe, verdict, &result).await;
                }
            }
            if let Some(verdict) = ended {
                return Some(verdict);
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// Reports what is new. Returns the verdict if it ends the probe.
    async fn tell(
        &self,
        kind: Kind,
        probe: &Probe,
        verdict: Option<bool>,
        result: &Answer,
    ) -> Option<bool> {
        let note = match result.clone() {
            Answer::Healthy => None,
            Answer::Suspect(what) => Some(Note::Warned(what)),
            Answer::Unhealthy(why) => Some(Note::Failed(why)),
            Answer::NotRun(why) => Some(Note::Errored(why)),
        };
        if verdict.is_some() || note.is_some() {
            let grace = probe.termination_grace_period_seconds;
            let report = Report {
                id: self.id.clone(),
                container: self.container.name.clone(),
                kind,
                verdict,
                note,
                grace: grace.map(|g| Duration::from_secs(u64::try_from(g).unwrap_or(1))),
            };
            if self.reports.send(report).await.is_err() {
                return Some(false);
            }
        }
        match (kind, verdict) {
            (Kind::Startup, verdict) => verdict,
            (Kind::Liveness, Some(false)) => Some(false),
            _ => None,
        }
    }

    /// One probe; tried again where it could not be run at all.
    async fn attempt(&self, kind: Kind, probe: &Probe, numbers: &Numbers) -> Answer {
        let begun = Instant::now();
        let mut last = Answer::NotRun(String::new());
        for _ in 0..TRIES {
            last = self.once(probe, numbers).await.unwrap_or_else(Answer::NotRun);
            if !matches!(last, Answer::NotRun(_)) {
                break;
            }
        }
        if !matches!(last, Answer::NotRun(_)) {
            let probe = (self.container.name.as_str(), kind);
            self.counts.note(probe, last.is_healthy(), begun.elapsed());
        }
        last
    }

    /// One probe. The error is why it could not be run.
    async fn once(&self, probe: &Probe, numbers: &Numbers) -> Result<Answer, String> {
        let timeout = numbers.timeout;
        if let Some(exec) = &probe.exec {
            return self.exec(exec.command.clone().unwrap_or_default(), timeout).await;
        }
        if let Some(action) = &probe.http_get {
            let call = Call::of_action(&self.container, action, &self.ips)?;
            return Ok(http_answer(http_call::get(&call, AGENT, timeout).await));
        }
        let own = self.ips.first().map(ToString::to_string);
        let no_address = || "the pod has no address".to_owned();
        if let Some(action) = &probe.tcp_socket {
            let port = http_call::port(&self.container, &action.port)?;
            let host = action.host.clone().filter(|h| !h.is_empty()).or(own);
            let host = host.ok_or_else(no_address)?;
            let dialing = tokio::time::timeout(timeout, http_call::connect(&host, port)).await;
            return Ok(match dialing {
                Ok(Ok(_)) => Answer::Healthy,
                Ok(Err(why)) => Answer::Unhealthy(why),
                Err(_) => Answer::Unhealthy(format!("dial tcp {host}:{port}: i/o timeout")),
            });
        }
        if let Some(action) = &probe.grpc {
            let call = grpc_call::Call {
                host: own.ok_or_else(no_address)?,
                port: u16::try_from(action.port)
                    .map_err(|_| format!("invalid port number: {}", action.port))?,
                service: action.service.clone().unwrap_or_default(),
            };
            let checked = grpc_call::check(&call, AGENT, timeout).await;
            return Ok(checked.map_or_else(Answer::Unhealthy, |()| Answer::Healthy));
        }
        Err("missing probe handler".to_owned())
    }

    async fn exec(&self, command: Vec<String>, timeout: Duration) -> Result<Answer, String> {
        let begun = Instant::now();
        let shown = command.join(" ");
        let run = self.runtime.exec_sync(&self.id, self.expanded(command), Some(timeout)).await;
        let output = match run {
            Ok(output) => output,
            Err(_) if begun.elapsed() >= timeout => {
                let why = format!("command timed out: {shown:?} timed out after {timeout:?}");
                return Ok(Answer::Unhealthy(why));
            }
            Err(error) => return Err(error.to_string()),
        };
        if output.exit_code == 0 {
            return Ok(Answer::Healthy);
        }
        let mut said = output.stdout;
        said.extend_from_slice(&output.stderr);
        said.truncate(10 << 10);
        Ok(Answer::Unhealthy(String::from_utf8_lossy(&said).trim_end().to_owned()))
    }

    /// The command with variables in it that have fixed values.
    fn expanded(&self, command: Vec<String>) -> Vec<String> {
        let variables = self.container.env.iter().flatten();
        let known: HashMap<_, _> = variables
            .filter(|v| v.value_from.is_none())
            .map(|v| (v.name.as_str(), v.value.as_deref().unwrap_or_default()))
            .collect();
        let expand = |word: String| expansion::expand(&word, |name| known.get(name).copied());
        command.into_iter().map(expand).collect()
    }
}

/// How probes name themselves.
const AGENT: &str = "kube-probe/1.36";

/// How much of a body an event shows.
const SHOWN: usize = 10 << 10;

fn http_answer(reply: Result<http_call::Reply, http_call::Failure>) -> Answer {
    match reply {
        Ok(http_call::Reply { status, body: Ok(body) }) => match status {
            200..300 => Answer::Healthy,
            // Redirects on the same host were followed: this one leads away.
            300..400 => {
                let body = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
                Answer::Suspect(format!("Probe terminated redirects, Response body: {body}"))
            }
            status => Answer::Unhealthy(format!("HTTP probe failed with statuscode: {status}")),
        },
        Ok(http_call::Reply { body: Err(why), .. }) => Answer::NotRun(why),
        Err(failure) => Answer::Unhealthy(failure.to_string()),
    }
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Healthy,
    /// Healthy, but probably not in the way that was meant.
    Suspect(String),
    /// It ran and said no.
    Unhealthy(String),
    /// It could not be run.
    NotRun(String),
}

impl Answer {
    fn is_healthy(&self) -> bool {
        matches!(self, Self::Healthy | Self::Suspect(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(successes: u32, failures: u32) -> Numbers {
        Numbers {
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            successes,
            failures,
        }
    }

    #[test]
    fn a_verdict_comes_with_its_threshold_and_only_when_it_changes() {
        let numbers = numbers(2, 3);
        let mut tally = Tally::default();
        let results = [true, true, true, false, false, true, false, false, false, false];
        let verdicts: Vec<_> = results.iter().map(|r| tally.count(*r, &numbers)).collect();
        let mut expected = [None; 10];
        expected[1] = Some(true);
        expected[8] = Some(false);
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn absent_numbers_are_the_defaults_of_the_api() {
        let numbers = Numbers::of(&Probe::default());
        assert_eq!(numbers.period, Duration::from_secs(10));
        assert_eq!(numbers.timeout, Duration::from_secs(1));
        assert_eq!((numbers.successes, numbers.failures), (1, 3));
    }
}
