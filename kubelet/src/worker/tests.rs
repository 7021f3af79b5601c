//! The worker and the roster against fakes, on a paused clock.

mod door;
mod ending;
mod eviction;
mod exchange;
mod hooks;
mod images;
mod keys;
mod lifecycle;
mod outage;
mod preemption;
mod probes;
mod resize;
mod rules;
mod scene;
mod schedule;
mod shutdown;
mod size;
mod sources;
mod statics;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::door::Door;
use super::memory::Pacing;
use super::roster::Roster;
use super::{Context, pull_permits};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::events::{Occurrence, Recorder};
use crate::eviction::Order;
use crate::fake::{FakeApi, FakeClock, FakeImages, FakeMaterials, FakeRuntime};
use crate::image_access::{Access, Verification};
use crate::meters::Meters;
use crate::probe::counts::Counts;
use crate::shelf::Shelf;
use crate::shutdown::Standing;
use crate::source::Event;
use crate::static_pods::mirror::Mirrors;
use crate::status::writer::Writer;

pub(super) struct Node {
    pub(super) runtime: Arc<FakeRuntime>,
    pub(super) images: Arc<FakeImages>,
    pub(super) materials: Arc<FakeMaterials>,
    pub(super) api: FakeApi,
    pub(super) shelf: Shelf,
    pub(super) probes: Counts,
    pub(super) meters: Meters,
    pub(super) standing: Standing,
    clock: Arc<dyn Clock>,
    root: tempfile::TempDir,
    /// Whether agents are given static pods.
    has_files: bool,
    parallel_pulls: Option<NonZeroUsize>,
    agent: Option<Agent>,
}

struct Agent {
    changes: mpsc::Sender<Event<Pod>>,
    files: mpsc::Sender<Event<Pod>>,
    evictions: mpsc::Sender<Order>,
    occurrences: mpsc::Receiver<Occurrence>,
    task: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Node {
    pub(super) fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(FakeClock::new());
        let mut node = Self {
            runtime: FakeRuntime::new(Arc::clone(&clock)),
            images: Arc::default(),
            materials: Arc::default(),
            api: FakeApi::default(),
            shelf: Shelf::default(),
            probes: Counts::default(),
            meters: Meters::default(),
            standing: Standing::default(),
            clock,
            root: tempfile::tempdir().unwrap(),
            has_files: false,
            parallel_pulls: None,
            agent: None,
        };
        node.start_agent();
        node
    }

    /// A node that also runs static pods.
    pub(super) fn with_files() -> Self {
        let mut node = Self::new();
        node.has_files = true;
        node.start_agent();
        node
    }

    /// A node that pulls one image at a time.
    pub(super) fn with_one_pull() -> Self {
        let mut node = Self::new();
        node.parallel_pulls = Some(NonZeroUsize::MIN);
        node.start_agent();
        node
    }

    /// These are the static pods now.
    pub(super) async fn tell_files(&self, pods: Vec<Pod>) {
        let agent = self.agent.as_ref().unwrap();
        agent.files.send(Event::Synced(pods)).await.unwrap();
    }

    pub(super) fn start_agent(&mut self) {
        let (events, occurrences) = Recorder::new();
        *self.materials.cache.lock().unwrap() = Some(Cache::new(self.root.path()));
        let shutdown = CancellationToken::new();
        self.shelf = Shelf::default();
        self.probes = Counts::default();
        self.standing = Standing::default();
        let statuses = Writer::new(self.api.client(), shutdown.clone());
        let access = Access::new(Verification::default(), self.images.clone(), self.root.path());
        let context = Arc::new(Context {
            runtime: self.runtime.clone(),
            images: self.images.clone(),
            access: Arc::new(access),
            pulls: pull_permits(self.parallel_pulls),
            materials: self.materials.clone(),
            events,
            mirrors: Mirrors::new(statuses.clone()),
            statuses,
            cache: Cache::new(self.root.path()),
            clock: Arc::clone(&self.clock),
            node_ips: vec!["192.0.2.1".parse().unwrap()],
            pacing: Pacing::default(),
            shelf: self.shelf.clone(),
            probes: self.probes.clone(),
            meters: self.meters.clone(),
        });
        let (changes, receiver) = mpsc::channel(64);
        let node = json!({"metadata": {"name": "node-1", "uid": "node-uid"}});
        let node = Arc::new(std::sync::RwLock::new(serde_json::from_value(node).unwrap()));
        let mirrors = context.mirrors.clone();
        tokio::spawn(mirrors.run(self.api.client(), node, shutdown.clone()));
        let (evictions, orders) = mpsc::channel(4);
        let roster = Roster::new(context, Arc::new(Door), shutdown.clone());
        let mut roster = roster.with_evictions(orders, self.standing.clone());
        let (files, inbox) = mpsc::channel(4);
        if self.has_files {
            roster = roster.with_files(inbox);
        }
        self.agent = Some(Agent {
            changes,
            files,
            evictions,
            occurrences,
            task: tokio::spawn(roster.run(receiver)),
            shutdown,
        });
    }

    /// Ends the agent as SIGKILL does: nothing gets to run any more.
    pub(super) async fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.task.abort();
            let _ = agent.task.await;
            agent.shutdown.cancel();
            // Its workers, and their operations, are dropped one after the other.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
    }

    pub(super) async fn tell(&self, event: Event<Pod>) {
        let agent = self.agent.as_ref().unwrap();
        agent.changes.send(event).await.unwrap();
    }

    pub(super) async fn apply(&self, pod: Value) {
        self.tell(Event::Applied(serde_json::from_value(pod).unwrap())).await;
    }

    pub(super) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
        assert!(!self.runtime.state().was_spun, "a worker spins");
    }

    pub(super) fn status(&self, name: &str) -> PodStatus {
        let pod = self.shelf.find("ns", name).unwrap();
        pod.status.unwrap()
    }

    /// The UIDs that the disk remembers.
    pub(super) fn records(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path().join("records"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).collect()
    }

    /// What events have said since they were last asked for.
    pub(super) fn messages(&mut self) -> Vec<String> {
        let agent = self.agent.as_mut().unwrap();
        let mut messages = Vec::new();
        while let Ok(occurrence) = agent.occurrences.try_recv() {
            messages.push(occurrence.message);
        }
        messages
    }

    fn reasons(&mut self) -> Vec<String> {
        let agent = self.agent.as_mut().unwrap();
        let mut reasons = Vec::new();
        while let Ok(occurrence) = agent.occurrences.try_recv() {
            reasons.push(occurrence.reason);
        }
        reasons
    }
}

pub(super) fn pod(name: &str, uid: &str, policy: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "ns", "uid": uid, "generation": 1,
                     "creationTimestamp": "2023-11-14T22:13:20Z"},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 30,
                 "containers": [{"name": "c", "image": "img:1"}]},
    })
}

fn deleted(mut pod: Value, grace: i64) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2023-11-14T22:20:00Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    pod
}

const SECOND: Duration = Duration::from_secs(1);

fn state(status: &PodStatus) -> Value {
    let containers = status.container_statuses.as_ref().unwrap();
    serde_json::to_value(&containers[0]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_container_that_keeps_failing_is_restarted_with_growing_delays() {
    let mut node = Node::new();
    node.runtime.state().exits_at_once.insert("c".into(), 1);
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND * 5).await;
    let status = state(&node.status("p"));
    assert_eq!(status["restartCount"], 1);
    assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let message = "back-off 10s restarting failed container=c pod=p_ns(u1)";
    assert_eq!(status["state"]["waiting"]["message"], message);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(node.status("p").phase.as_deref(), Some("Running"));
    node.pass(SECOND * 10).await;
    let status = state(&node.status("p"));
    assert_eq!(status["restartCount"], 2);
    let message = "back-off 20s restarting failed container=c pod=p_ns(u1)";
    assert_eq!(status["state"]["waiting"]["message"], message);
    assert!(node.reasons().contains(&"BackOff".to_owned()));
    // Two ended records are kept, no more.
    assert!(node.runtime.state().sandboxes[0].containers.len() <= 3);
    node.runtime.state().exits_at_once.clear();
    node.pass(SECOND * 20).await;
    let status = state(&node.status("p"));
    assert_eq!(status["restartCount"], 3);
    assert!(status["ready"].as_bool().unwrap());
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_containers_are_done_ends_and_gives_everything_back_but_its_records() {
    for (policy, code, phase) in
        [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")]
    {
        let node = Node::new();
        node.runtime.state().exits_at_once.insert("c".into(), code);
        node.apply(pod("p", "u1", policy)).await;
        node.pass(SECOND * 2).await;
        let status = node.status("p");
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {code}");
        assert_eq!(state(&status)["state"]["terminated"]["exitCode"], code);
        assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.1"));
        assert!(node.materials.mounted.lock().unwrap().is_empty());
        assert_eq!(node.runtime.state().sandboxes.len(), 1);
        node.apply(deleted(pod("p", "u1", policy), 30)).await;
        node.pass(SECOND * 2).await;
        assert!(node.runtime.state().sandboxes.is_empty());
        assert_eq!(node.api.deletions("p"), 1);
        let last = node.api.statuses("p").last().unwrap().clone();
        assert_eq!(last["phase"], phase);
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_keeps_to_the_grace_period_and_a_shorter_one_cuts_it() {
    let mut node = Node::new();
    node.runtime.state().stubborn.insert("c".into());
    let wanted = pod("p", "u1", "Always");
    node.apply(wanted.clone()).await;
    node.pass(SECOND).await;
    node.apply(deleted(wanted.clone(), 300)).await;
    node.pass(SECOND * 100).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
    node.apply(deleted(wanted, 5)).await;
    node.pass(SECOND * 4).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
    node.pass(SECOND * 2).await;
    assert!(node.runtime.state().sandboxes.is_empty());
    assert!(node.materials.directories.lock().unwrap().is_empty());
    assert_eq!(node.api.deletions("p"), 1);
    let last = node.api.statuses("p").last().unwrap().clone();
    assert_eq!(last["phase"], "Failed");
    assert_eq!(last["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    let killing = node.reasons();
    assert_eq!(killing.iter().filter(|r| *r == "Killing").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_server_has_no_more_is_killed_and_its_successor_waits_for_that() {
    let mut node = Node::new();
    node.runtime.state().stubborn.insert("c".into());
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    let gone: Pod = serde_json::from_value(deleted(pod("p", "u1", "Always"), 10)).unwrap();
    node.tell(Event::Deleted(gone)).await;
    node.apply(pod("p", "u2", "Always")).await;
    node.pass(SECOND * 9).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
    assert!(node.runtime.running("u2").is_empty());
    node.pass(SECOND * 2).await;
    assert!(node.runtime.running("u1").is_empty());
    assert_eq!(node.runtime.running("u2"), ["c"]);
    assert_eq!(node.runtime.state().most_live, 1);
    assert_eq!(node.api.deletions("p"), 0);
    assert!(!node.reasons().contains(&"SandboxChanged".to_owned()), "it was not lost");
}

#[tokio::test(start_paused = true)]
async fn a_pull_is_given_up_when_its_pod_is_deleted() {
    let node = Node::new();
    *node.images.takes.lock().unwrap() = SECOND * 3600;
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    node.apply(deleted(pod("p", "u1", "Always"), 30)).await;
    node.pass(SECOND * 2).await;
    assert!(node.runtime.state().sandboxes.is_empty());
    assert_eq!(node.api.deletions("p"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_again_and_restart_counts_go_on() {
    let mut node = Node::new();
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    node.runtime.lose_sandbox("u1");
    node.pass(SECOND * 2).await;
    let status = node.status("p");
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(state(&status)["restartCount"], 1);
    assert_eq!(state(&status)["lastState"]["terminated"]["exitCode"], 137);
    assert_ne!(status.pod_ip.as_deref(), Some("10.244.0.1"));
    assert!(node.reasons().contains(&"SandboxChanged".to_owned()));
    assert_eq!(node.runtime.state().most_live, 1);
}

#[tokio::test(start_paused = true)]
async fn what_fails_before_the_command_runs_is_told_and_mends_itself() {
    let mut node = Node::new();
    node.runtime.state().failures.insert("run_sandbox", 2);
    let message = "configmap \"x\" not found".to_owned();
    *node.materials.config_failure.lock().unwrap() = Some(message.clone());
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND * 3).await;
    let waiting = state(&node.status("p"))["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "CreateContainerConfigError");
    assert_eq!(waiting["message"], message);
    *node.materials.config_failure.lock().unwrap() = None;
    node.pass(SECOND * 11).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
    let reasons = node.reasons();
    let sandboxes = reasons.iter().filter(|r| *r == "FailedCreatePodSandBox");
    assert_eq!(sandboxes.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_cannot_be_run_ends_as_a_start_error() {
    let node = Node::new();
    node.runtime.state().failures.insert("start_container", 100);
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(Duration::from_millis(500)).await;
    let status = state(&node.status("p"));
    assert_eq!(status["state"]["waiting"]["reason"], "RunContainerError");
    assert_eq!(status["lastState"]["terminated"]["reason"], "StartError");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 127);
    node.pass(SECOND * 3).await;
    let status = state(&node.status("p"));
    assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let never = Node::new();
    never.runtime.state().failures.insert("start_container", 1);
    never.apply(pod("p", "u1", "Never")).await;
    never.pass(SECOND).await;
    assert_eq!(never.status("p").phase.as_deref(), Some("Failed"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_past_its_deadline_fails() {
    let node = Node::new();
    let mut pod = pod("p", "u1", "Always");
    pod["spec"]["activeDeadlineSeconds"] = json!(20);
    node.apply(pod).await;
    node.pass(SECOND * 15).await;
    assert_eq!(node.status("p").phase.as_deref(), Some("Running"));
    node.pass(SECOND * 10).await;
    let status = node.status("p");
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(node.runtime.running("u1").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_fails_without_ever_running() {
    let mut node = Node::new();
    let mut pod = pod("p", "u1", "Always");
    pod["metadata"]["labels"] = json!({"refuse": "yes"});
    node.apply(pod).await;
    node.pass(SECOND).await;
    let status = node.status("p");
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert_eq!(node.messages(), ["no cpu"]);
    assert!(node.runtime.state().calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_changes_nothing_and_goes_on_without_an_api_server() {
    let mut node = Node::new();
    node.runtime.state().exits_at_once.insert("d".into(), 1);
    let mut two = pod("p", "u1", "Always");
    two["spec"]["containers"] =
        json!([{"name": "c", "image": "img:1"}, {"name": "d", "image": "img:1"}]);
    node.apply(two).await;
    node.pass(SECOND * 5).await;
    let before = node.status("p");
    node.kill_agent().await;
    node.pass(SECOND).await;
    let writes = node.api.statuses("p").len();
    let calls = node.runtime.state().calls.len();
    node.start_agent();
    node.pass(SECOND).await;
    assert_eq!(node.status("p"), before);
    assert_eq!(node.api.statuses("p").len(), writes);
    assert_eq!(node.runtime.state().calls.len(), calls);
    // No word from the API server, and the crashing container is restarted all the same.
    node.pass(SECOND * 15).await;
    let statuses = node.status("p").container_statuses.unwrap();
    assert_eq!((statuses[0].restart_count, statuses[1].restart_count), (0, 2));
    assert_eq!(node.runtime.running("u1"), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_pods_run_again_and_counts_go_on() {
    let mut node = Node::new();
    node.apply(pod("always", "u1", "Always")).await;
    node.apply(pod("never", "u2", "Never")).await;
    node.pass(SECOND).await;
    node.kill_agent().await;
    node.runtime.state().sandboxes.clear();
    node.start_agent();
    node.pass(SECOND * 2).await;
    let status = node.status("always");
    assert_eq!(state(&status)["restartCount"], 1);
    let last = &state(&status)["lastState"]["terminated"];
    assert_eq!(last["reason"], "ContainerStatusUnknown");
    let never = node.status("never");
    assert_eq!(never.phase.as_deref(), Some("Failed"));
    assert_eq!(state(&never)["state"]["terminated"]["exitCode"], 137);
    assert_eq!(node.runtime.running("u2").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn sandboxes_of_pods_that_nobody_knows_are_removed_once_the_server_has_spoken() {
    let mut node = Node::new();
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    node.kill_agent().await;
    node.root = tempfile::tempdir().unwrap();
    node.start_agent();
    node.pass(SECOND).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
    node.tell(Event::Synced(Vec::new())).await;
    node.pass(SECOND * 3).await;
    assert!(node.runtime.state().sandboxes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_again_until_the_server_takes_it() {
    let node = Node::new();
    node.api.state.lock().unwrap().failing = Some((5, 503));
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND * 60).await;
    let written = node.api.statuses("p");
    assert_eq!(written.last().unwrap()["phase"], "Running");
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_its_probe_and_a_failed_liveness_probe_restarts() {
    let mut node = Node::new();
    let mut pod = pod("p", "u1", "Always");
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["live"]}, "initialDelaySeconds": 30, "periodSeconds": 1, "failureThreshold": 3});
    node.runtime.state().failures.insert("exec_sync", 5);
    node.apply(pod).await;
    node.pass(Duration::from_millis(300)).await;
    assert!(!node.status("p").container_statuses.unwrap()[0].ready);
    node.pass(SECOND * 5).await;
    assert!(node.status("p").container_statuses.unwrap()[0].ready);
    node.pass(SECOND * 26).await;
    node.runtime.state().failures.insert("exec_sync", 20);
    node.pass(SECOND * 5).await;
    let status = state(&node.status("p"));
    assert_eq!(status["restartCount"], 1);
    let reasons = node.reasons();
    assert!(["Unhealthy", "Killing"].iter().all(|one| reasons.contains(&(*one).to_owned())));
}

/// Found by the random schedules: two records of one name on the disk made the agent take the new
/// pod for deleted, and it was never looked at again.
#[tokio::test(start_paused = true)]
async fn a_leftover_record_of_an_old_owner_does_no_harm_to_the_new_one() {
    let mut node = Node::new();
    node.kill_agent().await;
    let cache = Cache::new(node.root.path());
    for (uid, created) in [("old", "2023-11-14T22:13:20Z"), ("new", "2023-11-14T22:13:21Z")] {
        let mut pod = pod("p", uid, "Always");
        pod["metadata"]["creationTimestamp"] = json!(created);
        cache.save_pod(&serde_json::from_value(pod).unwrap()).await;
    }
    node.start_agent();
    node.pass(SECOND).await;
    assert_eq!(node.runtime.running("new"), ["c"]);
    let listed = serde_json::from_value(pod("p", "new", "Always")).unwrap();
    node.tell(Event::Synced(vec![listed])).await;
    node.pass(SECOND * 40).await;
    assert_eq!(node.runtime.running("new"), ["c"]);
    assert!(node.runtime.running("old").is_empty());
    assert_eq!(node.runtime.state().most_live, 1);
}
