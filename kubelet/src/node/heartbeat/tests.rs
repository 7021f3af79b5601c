//! Lease and status against an API server that remembers what it was asked, on a paused clock.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use super::*;
use crate::eviction::threshold::Condition;
use crate::fake::{FakeApi, FakeClock, FakeImages};

struct Scene {
    api: FakeApi,
    config: Config,
    node: Shared,
    shutdown: CancellationToken,
    _root: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::new("n", vec!["192.0.2.1".parse().unwrap()]);
        config.root_dir = root.path().to_owned();
        config.clock = Arc::new(FakeClock::new());
        Self {
            api: FakeApi::default(),
            config,
            node: Arc::new(RwLock::new(Node::default())),
            shutdown: CancellationToken::new(),
            _root: root,
        }
    }

    /// Reports the node's status from now on.
    fn keep_status(&self, images: Arc<FakeImages>, signs: Signs) {
        let (events, _) = Recorder::new();
        let seen = (Arc::clone(&self.node), images as Arc<dyn Images>, signs);
        let (config, client) = (self.config.clone(), self.api.client());
        tokio::spawn(keep_status(config, client, seen, events, self.shutdown.clone()));
    }

    /// The status that was reported last.
    fn reported(&self) -> Value {
        let state = self.api.state.lock().unwrap();
        let mut reports =
            state.requests.iter().filter(|(_, path, _)| path.ends_with("/nodes/n/status"));
        reports.next_back().unwrap().2["status"].clone()
    }

    /// The node's condition Ready, as it was reported last.
    fn ready(&self) -> Value {
        let status = self.reported();
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|one| one["type"] == "Ready").unwrap().clone()
    }

    /// How often something was asked for whose path ends so.
    fn count(&self, methods: &[&str], suffix: &str) -> usize {
        let state = self.api.state.lock().unwrap();
        let requests = state.requests.iter();
        requests
            .filter(|(method, path, _)| {
                methods.contains(&method.as_str()) && path.ends_with(suffix)
            })
            .count()
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_four_times_in_its_life() {
    let scene = Scene::new();
    let client = scene.api.client();
    let (node, shutdown) = (Arc::clone(&scene.node), scene.shutdown.clone());
    let keeping = tokio::spawn(keep_lease(scene.config.clone(), client, node, shutdown));
    tokio::time::sleep(Duration::from_secs(81)).await;
    assert_eq!(scene.count(&["PUT"], "/leases/n"), 9);
    scene.shutdown.cancel();
    keeping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_tried_again_well_before_it_ends() {
    let scene = Scene::new();
    scene.api.state.lock().unwrap().failing = Some((6, 503));
    let client = scene.api.client();
    let (node, shutdown) = (Arc::clone(&scene.node), scene.shutdown.clone());
    tokio::spawn(keep_lease(scene.config.clone(), client, node, shutdown));
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(scene.count(&["PUT"], "/leases/n") >= 1);
}

#[tokio::test(start_paused = true)]
async fn after_six_hours_without_a_server_it_hears_within_seconds_that_the_node_lives() {
    let scene = Scene::new();
    scene.api.state.lock().unwrap().failing = Some((u32::MAX, 503));
    let (node, shutdown) = (Arc::clone(&scene.node), scene.shutdown.clone());
    tokio::spawn(keep_lease(scene.config.clone(), scene.api.client(), node, shutdown));
    let (_pressed, conditions) = watch::channel(Conditions::new());
    scene.keep_status(Arc::default(), Signs { conditions, standing: Standing::default() });
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    let asked = scene.api.state.lock().unwrap().requests.len();
    assert!((2000..8000).contains(&asked), "{asked} requests in six hours");
    scene.api.state.lock().unwrap().failing = None;
    let leases = scene.count(&["PUT"], "/leases/n");
    let reports = scene.count(&["PATCH"], "/nodes/n/status");
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(scene.count(&["PUT"], "/leases/n") > leases);
    assert!(scene.count(&["PATCH"], "/nodes/n/status") > reports);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_does_not_change_is_reported_every_five_minutes() {
    let scene = Scene::new();
    let images = Arc::new(FakeImages::default());
    images.present.lock().unwrap().insert("a:1".to_owned());
    let (pressed, conditions) = watch::channel(Conditions::new());
    let standing = Standing::default();
    scene.keep_status(Arc::clone(&images), Signs { conditions, standing: standing.clone() });
    tokio::time::sleep(Duration::from_secs(299)).await;
    let early = scene.count(&["PATCH"], "/nodes/n/status");
    assert!((1..=2).contains(&early), "{early} reports in five minutes");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let late = scene.count(&["PATCH"], "/nodes/n/status");
    assert!(late > early);
    images.present.lock().unwrap().insert("b:1".to_owned());
    tokio::time::sleep(scene.config.heartbeat.status_check * 2).await;
    let imaged = scene.count(&["PATCH"], "/nodes/n/status");
    assert!(imaged > late, "another image is news");
    pressed.send_replace(Conditions::from([Condition::Disk]));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let pressed = scene.count(&["PATCH"], "/nodes/n/status");
    assert!(pressed > imaged, "pressure is told at once");
    assert_eq!(scene.ready()["status"], "True");
    standing.set(true);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let ready = scene.ready();
    assert_eq!(ready["status"], "False");
    assert_eq!(ready["reason"], "KubeletNotReady");
    assert_eq!(ready["message"], "node is shutting down");
    assert!(standing.is_told());
    standing.set(false);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(scene.ready()["status"], "True");
    assert!(!standing.is_told());
}

#[tokio::test(start_paused = true)]
async fn what_an_administrator_advertises_is_allocatable_at_the_next_look() {
    let scene = Scene::new();
    let (_pressed, conditions) = watch::channel(Conditions::new());
    scene.keep_status(Arc::default(), Signs { conditions, standing: Standing::default() });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let advertise = |capacity: Value, allocatable: Value| {
        let status = json!({"capacity": capacity, "allocatable": allocatable});
        let node = json!({"metadata": {"name": "n"}, "status": status});
        *scene.node.write().unwrap() = serde_json::from_value(node).unwrap();
    };
    advertise(json!({"example.com/dongle": "3"}), json!({}));
    tokio::time::sleep(scene.config.heartbeat.status_check).await;
    let told = scene.reported();
    assert_eq!(told["allocatable"]["example.com/dongle"], "3");
    assert_eq!(told["capacity"].get("example.com/dongle"), None, "it is others' to write");
    advertise(json!({}), json!({"example.com/dongle": "3"}));
    tokio::time::sleep(scene.config.heartbeat.status_check).await;
    let told = scene.reported();
    assert_eq!(told["allocatable"].get("example.com/dongle"), Some(&Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_taken_for_gone_says_at_the_next_look_that_it_is_not() {
    let scene = Scene::new();
    let (_pressed, conditions) = watch::channel(Conditions::new());
    scene.keep_status(Arc::default(), Signs { conditions, standing: Standing::default() });
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = scene.count(&["PATCH"], "/nodes/n/status");
    let gone = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
    let taken = json!({"metadata": {"name": "n"}, "status": gone});
    *scene.node.write().unwrap() = serde_json::from_value(taken).unwrap();
    tokio::time::sleep(scene.config.heartbeat.status_check).await;
    assert!(scene.count(&["PATCH"], "/nodes/n/status") > before);
    assert_eq!(scene.ready()["status"], "True");
}

#[test]
fn a_reported_status_replaces_the_addresses() {
    let status: NodeStatus =
        serde_json::from_value(json!({"addresses": [{"type": "InternalIP", "address": "a"}]}))
            .unwrap();
    let addresses = wire(&status, &Advertised::default())["addresses"].clone();
    assert_eq!(addresses, json!([{"$patch": "replace"}, {"type": "InternalIP", "address": "a"}]));
}

#[tokio::test(start_paused = true)]
async fn what_a_clouds_controller_says_of_addresses_stays() {
    let mut scene = Scene::new();
    scene.config.external_cloud = true;
    let addresses = json!([{"type": "ExternalIP", "address": "198.51.100.7"}]);
    for (given, first) in [(false, 1), (true, 2)] {
        scene.config.is_address_given = given;
        *scene.node.write().unwrap() = Node::default();
        scene.shutdown = CancellationToken::new();
        let (_pressed, conditions) = watch::channel(Conditions::new());
        scene.keep_status(Arc::default(), Signs { conditions, standing: Standing::default() });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let told = scene.reported()["addresses"].clone();
        assert_eq!(told.as_array().map(Vec::len), Some(1 + first), "{told}");
        let known = json!({"metadata": {"name": "n"}, "status": {"addresses": addresses}});
        *scene.node.write().unwrap() = serde_json::from_value(known).unwrap();
        tokio::time::sleep(scene.config.heartbeat.status_check).await;
        assert_eq!(scene.reported()["addresses"], Value::Null);
        scene.shutdown.cancel();
    }
}

#[test]
fn a_condition_that_changes_is_told_once_under_its_name() {
    let (events, mut told) = Recorder::new();
    let config = Config::new("n", vec!["192.0.2.1".parse().unwrap()]);
    let status = |conditions: &[(&str, &str)]| -> NodeStatus {
        let conditions = conditions.iter().map(|(kind, is)| json!({"type": kind, "status": is}));
        serde_json::from_value(json!({"conditions": conditions.collect::<Vec<_>>()})).unwrap()
    };
    let mut previous: Option<NodeStatus> = None;
    for (conditions, expected) in [
        (
            [("Ready", "False"), ("MemoryPressure", "False"), ("DiskPressure", "False")],
            ["NodeNotReady", "NodeHasSufficientMemory", "NodeHasNoDiskPressure"].as_slice(),
        ),
        (
            [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False")],
            &["NodeReady"],
        ),
        ([("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False")], &[]),
        (
            [("Ready", "True"), ("MemoryPressure", "True"), ("PIDPressure", "True")],
            &["NodeHasInsufficientMemory", "NodeHasInsufficientPID"],
        ),
        (
            [("Ready", "Unknown"), ("DiskPressure", "True"), ("PIDPressure", "False")],
            &["NodeNotReady", "NodeHasDiskPressure", "NodeHasSufficientPID"],
        ),
    ] {
        let status = status(&conditions);
        tell_changes(&config, &events, previous.as_ref(), &status);
        let seen: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
        for (event, reason) in seen.iter().zip(expected) {
            assert_eq!(event.message, format!("Node n status is now: {reason}"));
        }
        assert_eq!(seen.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(), expected);
        previous = Some(status);
    }
}
