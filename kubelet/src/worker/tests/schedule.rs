//! Random schedules of API events, exits, lost sandboxes, failures, agent kills, reboots and time
//! against what must always hold (RELIABILITY: at most one live sandbox a name; terminal phases never
//! revert; restart counts never fall; nothing left at rest).

use std::collections::BTreeMap;
use std::time::Duration;

use berth_runtime::interface::{ContainerState, SandboxState};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Node, pod};
use crate::resize;
use crate::source::Event;

const NAMES: [&str; 2] = ["a", "b"];
const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const CONTAINERS: [&str; 4] = ["c", "i", "s", "e"];
const OPERATIONS: [&str; 7] = [
    "run_sandbox",
    "stop_sandbox",
    "remove_sandbox",
    "create_container",
    "start_container",
    "stop_container",
    "resize",
];

#[derive(Debug, Clone)]
enum Step {
    Create { name: usize, policy: usize, shape: Shape },
    Delete { name: usize, grace: i64 },
    ForceDelete { name: usize },
    Relist,
    SetImage { name: usize, image: u8 },
    SetSize { name: usize, cpu: u8 },
    Debug { name: usize },
    Probes { code: i32 },
    Exit { name: usize, container: usize, code: i32 },
    LoseSandbox { name: usize },
    Fail { operation: usize, times: u32 },
    ApiFails { times: u32 },
    KillAgent,
    Reboot,
    Pass { millis: u64 },
}

/// What a pod has beside its one container.
#[derive(Debug, Clone, Copy)]
struct Shape {
    init: bool,
    sidecar: bool,
    rule: Option<&'static str>,
    probe: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let rule = prop_oneof![
        3 => Just(None),
        1 => Just(Some("Restart")),
        1 => Just(Some("RestartAllContainers")),
    ];
    (any::<bool>(), any::<bool>(), rule, any::<bool>())
        .prop_map(|(init, sidecar, rule, probe)| Shape { init, sidecar, rule, probe })
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    prop_oneof![
        4 => (name.clone(), 0..POLICIES.len(), shape())
            .prop_map(|(name, policy, shape)| Step::Create { name, policy, shape }),
        1 => (name.clone(), 1..4u8).prop_map(|(name, image)| Step::SetImage { name, image }),
        2 => (name.clone(), 1..4u8).prop_map(|(name, cpu)| Step::SetSize { name, cpu }),
        1 => name.clone().prop_map(|name| Step::Debug { name }),
        1 => (0..2i32).prop_map(|code| Step::Probes { code }),
        2 => (name.clone(), 0..40i64).prop_map(|(name, grace)| Step::Delete { name, grace }),
        1 => name.clone().prop_map(|name| Step::ForceDelete { name }),
        1 => Just(Step::Relist),
        4 => (name.clone(), 0..CONTAINERS.len(), prop_oneof![0..2i32, Just(42)])
            .prop_map(|(name, container, code)| Step::Exit { name, container, code }),
        1 => name.prop_map(|name| Step::LoseSandbox { name }),
        1 => (0..OPERATIONS.len(), 1..4u32)
            .prop_map(|(operation, times)| Step::Fail { operation, times }),
        1 => (1..6u32).prop_map(|times| Step::ApiFails { times }),
        1 => Just(Step::KillAgent),
        1 => Just(Step::Reboot),
        6 => prop_oneof![1..50u64, 100..3_000u64, 10_000..400_000u64]
            .prop_map(|millis| Step::Pass { millis }),
    ]
}

/// The API server's side, and what was seen of each pod.
struct Model {
    node: Node,
    pods: BTreeMap<String, Value>,
    serial: u32,
    seen: usize,
    restarts: BTreeMap<(String, String), i64>,
    phases: BTreeMap<String, String>,
}

impl Model {
    async fn act(&mut self, step: &Step) {
        match step {
            Step::Create { name, policy, shape } => self.create(*name, *policy, *shape).await,
            Step::SetImage { name, image } => {
                let image = json!(format!("img:{image}"));
                self.change(*name, |spec| spec["containers"][0]["image"] = image.clone()).await;
            }
            Step::SetSize { name, cpu } => {
                let amounts = json!({"cpu": format!("{cpu}00m"), "memory": format!("{cpu}Mi")});
                let resources = json!({"requests": amounts, "limits": amounts});
                let policy = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
                self.change(*name, |spec| {
                    let restarts = spec["restartPolicy"] == "OnFailure";
                    spec["containers"][0]["resources"] = resources.clone();
                    if restarts {
                        spec["containers"][0]["resizePolicy"] = policy.clone();
                    }
                })
                .await;
            }
            Step::Debug { name } => {
                let debug = json!([{"name": "e", "image": "img:1", "targetContainerName": "c"}]);
                self.change(*name, |spec| spec["ephemeralContainers"] = debug.clone()).await;
            }
            Step::Probes { code } => {
                let commands = &mut self.node.runtime.state().commands;
                commands.insert("probe".to_owned(), (*code, Duration::ZERO));
            }
            Step::Delete { name, grace } => {
                if let Some(known) = self.pods.get_mut(NAMES[*name]) {
                    known["metadata"]["deletionTimestamp"] = json!("2023-11-14T22:20:00Z");
                    let before = known["metadata"]["deletionGracePeriodSeconds"].as_i64();
                    let grace = before.map_or(*grace, |b| b.min(*grace));
                    known["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                    let changed = known.clone();
                    self.node.apply(changed).await;
                }
            }
            Step::ForceDelete { name } => self.remove(NAMES[*name]).await,
            Step::Relist => self.relist().await,
            Step::Exit { name, container, code } => {
                if let Some(uid) = self.uid(*name) {
                    self.node.runtime.exit(&uid, CONTAINERS[*container], *code);
                }
            }
            Step::LoseSandbox { name } => {
                if let Some(uid) = self.uid(*name) {
                    self.node.runtime.lose_sandbox(&uid);
                }
            }
            Step::Fail { operation, times } => {
                let failures = &mut self.node.runtime.state().failures;
                failures.insert(OPERATIONS[*operation], *times);
            }
            Step::ApiFails { times } => {
                self.node.api.state.lock().unwrap().failing = Some((*times, 500));
            }
            Step::KillAgent => self.restart().await,
            Step::Reboot => {
                self.node.kill_agent().await;
                self.node.runtime.state().sandboxes.clear();
                self.node.materials.mounted.lock().unwrap().clear();
                self.restart().await;
            }
            Step::Pass { millis } => self.node.pass(Duration::from_millis(*millis)).await,
        }
    }

    fn uid(&self, name: usize) -> Option<String> {
        let known = self.pods.get(NAMES[name])?;
        known["metadata"]["uid"].as_str().map(str::to_owned)
    }

    /// Changes what is specified of a pod that is not being deleted.
    async fn change(&mut self, name: usize, change: impl Fn(&mut Value)) {
        if let Some(known) = self.pods.get_mut(NAMES[name])
            && known["metadata"]["deletionTimestamp"].is_null()
        {
            change(&mut known["spec"]);
            let changed = known.clone();
            self.node.apply(changed).await;
        }
    }

    async fn create(&mut self, name: usize, policy: usize, shape: Shape) {
        let name = NAMES[name];
        if self.pods.contains_key(name) {
            return;
        }
        self.serial += 1;
        let mut new = pod(name, &format!("uid-{}", self.serial), POLICIES[policy]);
        let probe = json!({"exec": {"command": ["probe"]}, "periodSeconds": 1});
        let mut inits = Vec::new();
        if shape.sidecar {
            inits.push(json!({"name": "s", "image": "img:1", "restartPolicy": "Always",
                              "lifecycle": {"preStop": {"exec": {"command": ["probe"]}}}}));
        }
        if shape.init {
            inits.push(json!({"name": "i", "image": "img:1"}));
        }
        if shape.probe {
            for container in inits.iter_mut().filter(|c| c["name"] == "s") {
                container["startupProbe"] = probe.clone();
            }
            new["spec"]["containers"][0]["livenessProbe"] = probe;
        }
        if let Some(action) = shape.rule {
            let rule = json!({"action": action, "exitCodes": {"operator": "In", "values": [42]}});
            new["spec"]["containers"][0]["restartPolicy"] = json!(POLICIES[policy]);
            new["spec"]["containers"][0]["restartPolicyRules"] = json!([rule]);
        }
        new["spec"]["initContainers"] = json!(inits);
        self.pods.insert(name.to_owned(), new.clone());
        self.node.apply(new).await;
    }

    async fn remove(&mut self, name: &str) {
        if let Some(known) = self.pods.remove(name) {
            let last: Pod = serde_json::from_value(known).unwrap();
            self.node.tell(Event::Deleted(last)).await;
        }
    }

    async fn relist(&self) {
        let pods = self.pods.values().cloned();
        let pods = pods.map(|p| serde_json::from_value(p).unwrap()).collect();
        self.node.tell(Event::Synced(pods)).await;
    }

    /// Kills the agent (what it had under way is lost with it) and starts another.
    async fn restart(&mut self) {
        self.node.kill_agent().await;
        self.node.start_agent();
        self.relist().await;
    }

    /// Takes in what the agent wrote, as the API server does, and holds it to the invariants.
    async fn settle(&mut self) {
        let new: Vec<_> = {
            let state = self.node.api.state.lock().unwrap();
            state.requests[self.seen..].to_vec()
        };
        self.seen += new.len();
        for (method, path, body) in new {
            let name = path.trim_end_matches("/status").rsplit('/').next().unwrap().to_owned();
            if method == "DELETE" {
                let uid = body["preconditions"]["uid"].as_str();
                let known = self.pods.get(&name).and_then(|p| p["metadata"]["uid"].as_str());
                if uid.is_some() && uid == known {
                    self.remove(&name).await;
                }
            } else if path.ends_with("/status") {
                self.check(&body);
                let known = self.pods.get_mut(&name);
                if let Some(known) =
                    known.filter(|p| p["metadata"]["uid"] == body["metadata"]["uid"])
                {
                    known["status"] = body["status"].clone();
                }
            }
        }
        assert!(self.node.runtime.state().most_live <= 1, "two live sandboxes of one name");
        let runtime = self.node.runtime.state();
        for sandbox in &runtime.sandboxes {
            let mut running: Vec<_> = sandbox
                .containers
                .iter()
                .filter(|c| matches!(c.state, ContainerState::Running { .. }))
                .map(|c| c.config.name.as_str())
                .collect();
            running.sort_unstable();
            let all = running.len();
            running.dedup();
            assert_eq!(running.len(), all, "a container runs twice: {sandbox:?}");
            let is_early = running.contains(&"c") && running.contains(&"i");
            assert!(!is_early, "an init container runs beside the one it prepares for");
        }
    }

    fn check(&mut self, body: &Value) {
        let uid = body["metadata"]["uid"].as_str().unwrap().to_owned();
        let phase = body["status"]["phase"].as_str().unwrap().to_owned();
        if let Some(before) = self.phases.get(&uid)
            && matches!(before.as_str(), "Succeeded" | "Failed")
        {
            assert_eq!(*before, phase, "{uid}: a terminal phase was left");
        }
        self.phases.insert(uid.clone(), phase);
        for list in ["containerStatuses", "initContainerStatuses"] {
            for container in body["status"][list].as_array().into_iter().flatten() {
                let key = (uid.clone(), container["name"].as_str().unwrap().to_owned());
                let count = container["restartCount"].as_i64().unwrap();
                let before = self.restarts.insert(key.clone(), count).unwrap_or(0);
                assert!(before <= count, "{key:?}: restart count fell from {before} to {count}");
            }
        }
    }

    /// Whoever runs has what it is specified with.
    fn check_sizes(&self) {
        for known in self.pods.values().filter(|p| p["metadata"]["deletionTimestamp"].is_null()) {
            let pod: Pod = serde_json::from_value(known.clone()).unwrap();
            let uid = pod.metadata.uid.clone().unwrap();
            let runtime = self.node.runtime.state();
            let mut live = runtime.sandboxes.iter();
            let live = live.find(|s| s.config.pod.uid == uid && s.state == SandboxState::Ready);
            assert!(resize::is_settled(&pod, live), "{uid} has another size: {live:?}");
        }
    }

    /// Everything is deleted, time passes, and nothing is left.
    async fn rest(mut self) {
        self.node.runtime.state().failures.clear();
        self.node.runtime.state().commands.clear();
        self.node.api.state.lock().unwrap().failing = None;
        self.node.pass(Duration::from_secs(60)).await;
        self.settle().await;
        self.check_sizes();
        for name in 0..NAMES.len() {
            self.act(&Step::Delete { name, grace: 1 }).await;
        }
        for _ in 0..20 {
            self.node.pass(Duration::from_secs(30)).await;
            self.settle().await;
        }
        assert!(self.pods.is_empty(), "never deleted: {:?}", self.pods.keys());
        let sandboxes = self.node.runtime.state().sandboxes.clone();
        assert!(sandboxes.is_empty(), "left behind: {sandboxes:?}");
        assert!(self.node.materials.mounted.lock().unwrap().is_empty());
        assert!(self.node.materials.directories.lock().unwrap().is_empty());
        assert!(self.node.records().is_empty(), "remembered: {:?}", self.node.records());
    }
}

async fn run(steps: Vec<Step>, making: Duration) {
    let mut model = Model {
        node: Node::new(),
        pods: BTreeMap::new(),
        serial: 0,
        seen: 0,
        restarts: BTreeMap::new(),
        phases: BTreeMap::new(),
    };
    model.node.runtime.state().making = making;
    model.relist().await;
    for step in &steps {
        model.act(step).await;
        // What the agent began gets a moment, so that kills land in the middle of things as well.
        model.node.pass(Duration::from_millis(3)).await;
        model.settle().await;
    }
    model.rest().await;
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        failure_persistence: None,
        // What fails is told in time, if not in its shortest form.
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    })]
    #[test]
    fn whatever_happens_to_pods_the_invariants_hold(
        steps in prop::collection::vec(step(), 1..40),
        making in prop_oneof![Just(0), 1..100u64],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps, Duration::from_millis(making)));
    }
}
