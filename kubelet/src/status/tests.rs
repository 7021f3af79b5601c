//! Statuses of constructed situations.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_runtime::interface::{
    ContainerConfig, ContainerId, ContainerStatus as Record, LogLimits, NamespaceMode, PidMode,
    PodIdentity, Resources, SandboxConfig, SandboxId, SandboxState, Security,
};
use serde_json::{Value, json};

use super::*;
use crate::fake::image;
use crate::status::writer::{self, Dropped, PodKey};
use crate::worker::memory::{Failed, Failure, ImageState, Pacing};

const SECOND: i64 = 1_000_000_000;

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": "Always",
                 "initContainers": [{"name": "i", "image": "img:1"}],
                 "containers": [{"name": "c", "image": "img:1"}, {"name": "d", "image": "img:1"}]},
    }))
    .unwrap()
}

fn exited(code: i32, oom_killed: bool) -> ContainerState {
    ContainerState::Exited {
        started_at: 10 * SECOND,
        finished_at: 20 * SECOND,
        exit_code: code,
        oom_killed,
        message: String::new(),
    }
}

fn record(name: &str, attempt: u32, state: ContainerState) -> Record {
    let sandbox = SandboxId::try_from("0".repeat(32)).unwrap();
    let number = name.bytes().map(u32::from).sum::<u32>() * 100 + attempt;
    Record {
        id: ContainerId::try_from(format!("{number:064x}")).unwrap(),
        sandbox,
        config: ContainerConfig {
            name: name.to_owned(),
            attempt,
            image: image("img:1").id,
            image_reference: "img:1".to_owned(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            log_path: "x".into(),
            log_limits: LogLimits::default(),
            resources: Resources::default(),
            oom_score_adj: 0,
            security: Security::default(),
            tty: false,
            stdin: false,
            stdin_once: false,
            pid_target: None,
            labels: BTreeMap::new(),
        },
        state,
        created_at: i64::from(attempt) * SECOND,
        user: None,
    }
}

fn sandbox(containers: Vec<Record>) -> SandboxStatus {
    SandboxStatus {
        id: SandboxId::try_from("0".repeat(32)).unwrap(),
        config: SandboxConfig {
            users: NamespaceMode::Host,
            pod: PodIdentity { namespace: "ns".into(), name: "p".into(), uid: "u".into() },
            attempt: 0,
            hostname: "p".into(),
            log_directory: "/l".into(),
            cgroup_path: "c".into(),
            resources: Resources::default(),
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            pid: PidMode::Container,
            sysctls: BTreeMap::new(),
            port_mappings: Vec::new(),
            labels: BTreeMap::new(),
            runtime_handler: String::new(),
        },
        state: SandboxState::Ready,
        created_at: 0,
        ips: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        containers,
    }
}

struct Scene {
    pod: Pod,
    previous: PodStatus,
    sandboxes: Vec<SandboxStatus>,
    memory: Memory,
    stage: Stage,
    now: Instant,
}

impl Scene {
    fn new(containers: Vec<Record>) -> Self {
        Self {
            pod: pod(),
            previous: PodStatus::default(),
            sandboxes: vec![sandbox(containers)],
            memory: Memory::new(Pacing::default(), ["i", "c", "d"].into_iter()),
            stage: Stage::Running,
            now: Instant::now(),
        }
    }

    fn input<'a>(&'a self, ips: &'a [IpAddr]) -> Input<'a> {
        Input {
            pod: &self.pod,
            previous: &self.previous,
            sandboxes: &self.sandboxes,
            memory: &self.memory,
            stage: self.stage,
            host_ips: ips,
            now: self.now,
            wall: Timestamp::from_second(1000).unwrap(),
        }
    }

    fn status(&self) -> Value {
        let ips = ["192.0.2.9".parse().unwrap()];
        serde_json::to_value(compute(&self.input(&ips))).unwrap()
    }
}

fn running() -> ContainerState {
    ContainerState::Running { started_at: 10 * SECOND }
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|c| c["type"] == type_).unwrap()
}

#[test]
fn before_the_init_containers_are_done_the_others_wait_for_them() {
    let status = Scene::new(vec![record("i", 0, running())]).status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["observedGeneration"], 3);
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "PodInitializing");
    let initialized = condition(&status, "Initialized");
    assert_eq!(initialized["status"], "False");
    assert_eq!(initialized["reason"], "ContainersNotInitialized");
    assert_eq!(initialized["message"], "containers with incomplete status: [i]");
    assert_eq!(condition(&status, "PodReadyToStartContainers")["status"], "True");
    assert_eq!(status["podIP"], "10.0.0.5");
    assert_eq!(status["podIPs"][1]["ip"], "fd00::5");
    assert_eq!(status["hostIP"], "192.0.2.9");
}

#[test]
fn readiness_is_that_of_all_containers() {
    let done = record("i", 0, exited(0, false));
    let mut scene = Scene::new(vec![done.clone(), record("c", 0, running())]);
    let status = scene.status();
    assert_eq!(status["phase"], "Pending");
    let ready = condition(&status, "Ready");
    assert_eq!(ready["reason"], "ContainersNotReady");
    assert_eq!(ready["message"], "containers with unready status: [d]");
    let both = vec![done, record("c", 0, running()), record("d", 0, running())];
    scene.sandboxes = vec![sandbox(both)];
    let status = scene.status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(condition(&status, "Ready")["status"], "True");
    let init = &status["initContainerStatuses"][0];
    assert_eq!(init["state"]["terminated"]["reason"], "Completed");
    assert_eq!(init["ready"], true);
    // A pod on its way out serves until its probe says otherwise.
    scene.stage = Stage::Ending;
    assert_eq!(condition(&scene.status(), "Ready")["status"], "True");
}

/// A look between the making of a record and its start told of a container that had never run.
#[test]
fn a_container_that_is_about_to_run_again_has_its_count_and_its_last_end() {
    let done = record("i", 0, exited(0, false));
    let (before, next) =
        (record("c", 2, exited(7, false)), record("c", 3, ContainerState::Created));
    let scene = Scene::new(vec![done, before, next, record("d", 0, ContainerState::Created)]);
    let status = scene.status();
    let (again, first) = (&status["containerStatuses"][0], &status["containerStatuses"][1]);
    assert!(again["state"]["waiting"].is_object(), "{again}");
    assert_eq!(again["restartCount"], 2);
    assert_eq!(again["lastState"]["terminated"]["exitCode"], 7);
    assert_eq!((&first["restartCount"], &first["lastState"]), (&json!(0), &json!({})));
}

#[test]
fn readiness_gates_are_asked_for_in_the_pod() {
    let done = record("i", 0, exited(0, false));
    let all = vec![done, record("c", 0, running()), record("d", 0, running())];
    let mut scene = Scene::new(all);
    let spec = scene.pod.spec.as_mut().unwrap();
    spec.readiness_gates = serde_json::from_value(json!([{"conditionType": "x/y"}])).unwrap();
    let ready = condition(&scene.status(), "Ready").clone();
    assert_eq!(ready["reason"], "ReadinessGatesNotReady");
    let message = "corresponding condition of pod readiness gate \"x/y\" does not exist.";
    assert_eq!(ready["message"], message);
    let gate = json!({"conditions": [{"type": "x/y", "status": "True"}]});
    scene.pod.status = serde_json::from_value(gate).unwrap();
    let status = scene.status();
    assert_eq!(condition(&status, "Ready")["status"], "True");
    assert_eq!(condition(&status, "x/y")["status"], "True");
}

#[test]
fn an_exit_is_named_by_its_cause() {
    for (state, reason, code) in [
        (exited(0, false), "Completed", 0),
        (exited(1, false), "Error", 1),
        (exited(137, true), "OOMKilled", 137),
        (
            ContainerState::Exited {
                started_at: 0,
                finished_at: SECOND,
                exit_code: 127,
                oom_killed: false,
                message: "no such file".to_owned(),
            },
            "StartError",
            127,
        ),
    ] {
        let done = record("i", 0, exited(0, false));
        let status = Scene::new(vec![done, record("c", 2, state)]).status();
        let container = &status["containerStatuses"][0];
        assert_eq!(container["state"]["terminated"]["reason"], reason);
        assert_eq!(container["state"]["terminated"]["exitCode"], code);
        assert_eq!(container["restartCount"], 2);
        assert!(container["containerID"].as_str().unwrap().starts_with("berth://"));
    }
}

#[test]
fn what_holds_a_container_up_is_its_waiting_reason() {
    let done = record("i", 0, exited(0, false));
    let mut scene = Scene::new(vec![done]);
    let failed = |reason: &str, at| Failed {
        failure: Failure::new(reason, "why"),
        at,
        retry_at: at + Duration::from_secs(10),
    };
    let now = scene.now;
    let old = now - Duration::from_secs(2);
    for (reason, at, shown, message) in [
        ("ErrImagePull", now, "ErrImagePull", "why"),
        (
            "ErrImagePull",
            old,
            "ImagePullBackOff",
            "Back-off pulling image \"img:1\": ErrImagePull: why",
        ),
        ("InvalidImageName", old, "InvalidImageName", "why"),
        ("ErrImageNeverPull", old, "ErrImageNeverPull", "why"),
    ] {
        scene.memory.container("c").image = ImageState::Failed(failed(reason, at));
        let waiting = scene.status()["containerStatuses"][0]["state"]["waiting"].clone();
        assert_eq!((&waiting["reason"], &waiting["message"]), (&json!(shown), &json!(message)));
    }
    scene.memory.container("c").image = ImageState::Unknown;
    scene.memory.container("c").start_failure = Some(failed("CreateContainerError", old));
    let waiting = scene.status()["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "CreateContainerError");
}

#[test]
fn a_crash_loop_shows_its_delay_and_the_last_exit() {
    let done = record("i", 0, exited(0, false));
    let crashed = record("c", 7, exited(1, false));
    let mut scene = Scene::new(vec![done, crashed.clone()]);
    let now = scene.now;
    let memory = scene.memory.container("c");
    for _ in 0..4 {
        memory.restart_backoff.charge(now, now);
    }
    memory.ended_at = Some((crashed.id, now));
    let container = scene.status()["containerStatuses"][0].clone();
    let waiting = &container["state"]["waiting"];
    assert_eq!(waiting["reason"], "CrashLoopBackOff");
    assert_eq!(waiting["message"], "back-off 1m20s restarting failed container=c pod=p_ns(u)");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(container["restartCount"], 7);
}

#[test]
fn a_condition_keeps_its_transition_time_until_it_changes() {
    let done = record("i", 0, exited(0, false));
    let mut scene = Scene::new(vec![done, record("c", 0, running()), record("d", 0, running())]);
    let old = json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        {"type": "Initialized", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
    ]});
    scene.previous = serde_json::from_value(old).unwrap();
    let status = scene.status();
    assert_eq!(condition(&status, "Ready")["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(condition(&status, "Initialized")["lastTransitionTime"], "1970-01-01T00:16:40Z");
}

#[test]
fn a_terminal_phase_is_final() {
    let mut scene = Scene::new(vec![record("c", 0, running())]);
    scene.previous.phase = Some("Failed".to_owned());
    assert_eq!(scene.status()["phase"], "Failed");
}

#[test]
fn durations_read_as_go_prints_them() {
    for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
        assert_eq!(containers::go_duration(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn a_patch_names_the_pod_and_drops_what_is_gone() {
    let key = PodKey { uid: "u".into(), namespace: "ns".into(), name: "p".into() };
    let status = PodStatus {
        pod_ip: Some("10.0.0.6".into()),
        pod_ips: Some(vec![PodIP { ip: "10.0.0.6".into() }]),
        ..PodStatus::default()
    };
    let dropped = Dropped {
        ips: vec!["10.0.0.5".to_owned(), "10.0.0.6".to_owned()],
        conditions: vec!["PodResizePending".to_owned()],
    };
    let patch = writer::patch(&key, &status, &dropped);
    let gone = json!([{"$patch": "delete", "type": "PodResizePending"}]);
    assert_eq!(patch["status"]["conditions"], gone);
    assert_eq!(patch["metadata"]["uid"], "u");
    let ips = json!([{"ip": "10.0.0.6"}, {"$patch": "delete", "ip": "10.0.0.5"}]);
    assert_eq!(patch["status"]["podIPs"], ips);
    assert_eq!(patch["status"]["reason"], Value::Null);
}

#[test]
fn a_patch_leaves_the_conditions_of_others_alone() {
    let condition = |type_: &str, reason: Option<&str>| json!({"type": type_, "status": "True", "reason": reason});
    let status = serde_json::from_value(json!({"conditions": [
        condition("Ready", None),
        condition("example.com/gate", None),
        condition("DisruptionTarget", Some("EvictionByEvictionAPI")),
    ]}));
    let key = PodKey::of(&pod());
    let conditions = |status: &PodStatus| -> Vec<String> {
        let body = writer::patch(&key, status, &Dropped::default());
        let all = body["status"]["conditions"].as_array().unwrap();
        all.iter().map(|c| c["type"].as_str().unwrap().to_owned()).collect()
    };
    let mut status: PodStatus = status.unwrap();
    assert_eq!(conditions(&status), ["Ready"]);
    let disruption = status.conditions.as_mut().unwrap().last_mut().unwrap();
    disruption.reason = Some("TerminationByKubelet".to_owned());
    assert_eq!(conditions(&status), ["Ready", "DisruptionTarget"]);
}

/// A strategic merge keeps what a condition does not name: a pod that was ready said
/// `ContainersNotReady` all the same.
#[test]
fn a_patch_takes_back_the_reasons_of_conditions() {
    let done = record("i", 0, exited(0, false));
    let scene = Scene::new(vec![done, record("c", 0, running()), record("d", 0, running())]);
    let key = PodKey::of(&scene.pod);
    let patch = writer::patch(&key, &compute(&scene.input(&[])), &Dropped::default());
    let ready = condition(&patch["status"], "Ready").as_object().unwrap();
    assert_eq!(ready["status"], "True");
    assert_eq!(ready.get("reason"), Some(&Value::Null));
    assert_eq!(ready.get("message"), Some(&Value::Null));
}
