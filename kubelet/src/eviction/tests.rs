//! The loop on a made-up host: a `/proc` in a directory, and a paused clock.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use super::threshold::Amount;
use super::*;
use crate::events::Occurrence;
use crate::fake::{FakeClock, FakeRuntime};
use crate::meters::tests::counted;
use crate::quantity::Quantity;

struct Scene {
    root: tempfile::TempDir,
    shelf: Shelf,
    orders: mpsc::Receiver<Order>,
    occurrences: mpsc::Receiver<Occurrence>,
    conditions: watch::Receiver<Conditions>,
    meters: Meters,
    disk: Disk,
    shutdown: CancellationToken,
}

fn memory(root: &Path, free_mebibytes: u64) {
    std::fs::create_dir_all(root.join("proc")).unwrap();
    let text = format!("MemTotal: 1024000 kB\nMemFree: {} kB\n", free_mebibytes << 10);
    std::fs::write(root.join("proc/meminfo"), text).unwrap();
}

/// Takes the node's directory off a file system that is full.
struct Images(PathBuf);

#[async_trait]
impl Reclaim for Images {
    async fn free_unused(&self) -> Result<u64, image_gc::Error> {
        std::fs::remove_file(&self.0).unwrap();
        std::fs::create_dir(&self.0).unwrap();
        Ok(7)
    }
}

impl Scene {
    /// Looks after a node with so much memory free.
    fn start(free_mebibytes: u64) -> Self {
        Self::with(free_mebibytes, |thresholds| {
            thresholds.retain(|t| t.signal == Signal::MemoryAvailable);
        })
    }

    /// The same, with other thresholds.
    fn with(free_mebibytes: u64, adjust: impl FnOnce(&mut Vec<Threshold>)) -> Self {
        let root = tempfile::tempdir().unwrap();
        memory(root.path(), free_mebibytes);
        // Of this file system nothing is free, ever.
        let node = root.path().join("node");
        std::os::unix::fs::symlink("/proc", &node).unwrap();
        let (sender, orders) = mpsc::channel(8);
        let (events, occurrences) = Recorder::new();
        let (told, conditions) = watch::channel(Conditions::new());
        let disk = Disk::new(node.clone());
        let mut config = Config::default();
        adjust(&mut config.thresholds);
        let (shelf, meters) = (Shelf::default(), Meters::default());
        let parts = Parts {
            config,
            node: "n".to_owned(),
            places: Places {
                root: root.path().to_owned(),
                disk: disk.clone(),
                pods: None,
                reserved_bytes: 0,
            },
            shelf: shelf.clone(),
            runtime: FakeRuntime::new(Arc::new(FakeClock::new())),
            disk: disk.clone(),
            images: Arc::new(Images(node)),
            events,
            orders: sender,
            conditions: told,
            meters: meters.clone(),
        };
        let shutdown = CancellationToken::new();
        tokio::spawn(run(parts, shutdown.clone()));
        Self { root, shelf, orders, occurrences, conditions, meters, disk, shutdown }
    }

    fn put(&self, uid: &str, priority: i32, phase: &str) {
        let pod = json!({
            "metadata": {"name": uid, "namespace": "ns", "uid": uid},
            "spec": {"priority": priority, "containers": [{"name": "c"}],
                     "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]},
        });
        let status = PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() };
        self.shelf.put(&Arc::new(serde_json::from_value(pod).unwrap()), &status);
    }

    /// The next pod that is to end.
    async fn evicted(&mut self) -> (String, Eviction) {
        match self.orders.recv().await.unwrap() {
            Order::End { uid, eviction } => (uid, eviction),
            order => panic!("{order:?}"),
        }
    }

    fn evictions(&self) -> BTreeMap<String, u64> {
        counted(&self.meters, &meters::EVICTIONS)
    }

    fn reasons(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.occurrences.try_recv().ok()).map(|o| o.reason).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn under_pressure_one_pod_after_the_other_ends_and_never_a_critical_one() {
    let mut scene = Scene::start(500);
    for (uid, priority) in [("b", 5), ("a", 5), ("critical", 2_000_000_000)] {
        scene.put(uid, priority, "Running");
    }
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(scene.orders.try_recv().is_err() && scene.conditions.borrow().is_empty());
    memory(scene.root.path(), 99);
    let (uid, eviction) = scene.evicted().await;
    assert_eq!((uid.as_str(), eviction.cause), ("a", Cause::Pressure));
    assert_eq!(eviction.grace, AT_ONCE);
    let text = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 99Mi. ";
    assert_eq!(eviction.message, text);
    assert_eq!(*scene.conditions.borrow(), Conditions::from([threshold::Condition::Memory]));
    assert_eq!(scene.reasons(), ["EvictionThresholdMet", "Evicted"]);
    tokio::time::sleep(PATIENCE / 2).await;
    assert!(scene.orders.try_recv().is_err(), "its end is waited for");
    assert_eq!(scene.reasons(), [overdue::REASON], "once");
    scene.put("a", 5, "Failed");
    let early = tokio::time::timeout(PATIENCE / 4, scene.orders.recv()).await;
    assert!(early.is_err(), "its volumes may still hold memory");
    scene.shelf.give_back("a", Holds::Remains);
    let second = tokio::time::timeout(INTERVAL / 2, scene.evicted()).await;
    assert_eq!(second.unwrap().0, "b", "and then is looked at once");
    scene.put("b", 5, "Failed");
    scene.shelf.give_back("b", Holds::Remains);
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(scene.orders.try_recv().is_err(), "nobody is left who may be ended");
    assert!(!scene.reasons().contains(&overdue::REASON.to_owned()), "it was in time");
    assert_eq!(scene.evictions(), [("memory.available".to_owned(), 2)].into());
    memory(scene.root.path(), 500);
    tokio::time::sleep(Duration::from_secs(290)).await;
    assert!(!scene.conditions.borrow().is_empty(), "the transition period is not over");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(scene.conditions.borrow().is_empty());
}

/// Of the node's disk so much has to be free.
fn full(bytes: u64) -> impl FnOnce(&mut Vec<Threshold>) {
    move |thresholds| {
        thresholds.retain(|t| t.signal == Signal::NodeFsAvailable);
        thresholds[0].value = Amount::Quantity(Quantity::bytes(bytes));
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_pods_left_goes_before_images_and_once() {
    let mut scene = Scene::with(500, full(1 << 62));
    for uid in ["done", "ends"] {
        scene.put(uid, 0, "Succeeded");
    }
    scene.put("runs", 0, "Running");
    scene.shelf.give_back("done", Holds::Remains);
    assert_eq!(scene.orders.recv().await.unwrap(), Order::Clear { uid: "done".to_owned() });
    tokio::time::sleep(PATIENCE / 2).await;
    let node = scene.root.path().join("node");
    assert!(node.is_symlink() && scene.orders.try_recv().is_err(), "its worker is waited for");
    scene.shelf.give_back("done", Holds::Nothing);
    assert_eq!(scene.evicted().await.0, "runs", "that was not enough");
    assert!(node.is_dir() && !node.is_symlink(), "nor were images");
    scene.put("runs", 0, "Failed");
    for uid in ["runs", "ends"] {
        scene.shelf.give_back(uid, Holds::Remains);
    }
    // In the order of their UIDs, and not the one before again.
    for uid in ["ends", "runs"] {
        let clear = Order::Clear { uid: uid.to_owned() };
        assert_eq!(scene.orders.recv().await.unwrap(), clear);
    }
}

#[tokio::test(start_paused = true)]
async fn images_go_before_pods_and_pods_stay_where_that_is_enough() {
    let mut enough = Scene::with(500, full(1));
    enough.put("a", 0, "Running");
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(enough.root.path().join("node").is_dir(), "images were removed");
    assert!(enough.orders.try_recv().is_err());
    assert_eq!(*enough.conditions.borrow(), Conditions::from([threshold::Condition::Disk]));
    assert_eq!(enough.reasons(), ["EvictionThresholdMet"]);
    let mut too_little = Scene::with(500, full(1 << 62));
    too_little.put("a", 0, "Running");
    assert_eq!(too_little.evicted().await.0, "a");
    assert!(too_little.root.path().join("node").is_dir(), "images were removed");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_end_is_not_told_again() {
    let mut scene = Scene::start(1);
    scene.put("a", 0, "Running");
    assert_eq!(scene.evicted().await.0, "a");
    scene.put("b", 9, "Running");
    let waited = tokio::time::Instant::now();
    assert_eq!(scene.evicted().await.0, "b");
    assert!(waited.elapsed() >= PATIENCE);
    tokio::time::sleep(PATIENCE * 10).await;
    assert!(scene.orders.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn everybody_over_a_limit_is_ended_whatever_the_node_has() {
    use crate::disk::{FileSystem, PodUse, Used, VolumeUse};
    let mut scene = Scene::start(500);
    for (uid, bytes) in [("a", 2 << 20), ("b", 1 << 20), ("c", 3 << 20)] {
        scene.put(uid, 0, "Running");
        let used = Used { bytes, inodes: 1 };
        let file_system = FileSystem::default();
        let volume = VolumeUse { at_ms: 0, claim: None, is_ephemeral: true, used, file_system };
        let volumes = [("v".to_owned(), volume)].into();
        scene.disk.put(uid, PodUse { volumes, ..PodUse::default() });
    }
    let mut ended = Vec::new();
    for _ in 0..2 {
        let (uid, eviction) = scene.evicted().await;
        let text = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        assert_eq!((eviction.message.as_str(), eviction.cause), (text, Cause::Limit));
        ended.push(uid);
    }
    assert_eq!(ended, ["a", "c"]);
    assert_eq!(scene.evictions(), [("emptydirfs.limit".to_owned(), 2)].into());
    assert_eq!(scene.reasons(), ["Evicted", "Evicted"]);
}
