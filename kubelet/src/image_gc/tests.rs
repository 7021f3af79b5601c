//! Collections over a store and a disk that exist in memory only.

use std::sync::Mutex as Lock;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::events::Occurrence;
use crate::fake::{FakeClock, FakeImages, FakeMaterials, FakeRuntime};
use crate::worker::materials::{ContainerRequest, Materials};

/// Images, each by a name of its own length, of 42 bytes.
const NAMES: [&str; 3] = ["a", "bb", "ccc"];
const AGE: Duration = Duration::from_secs(120);

struct Scene {
    images: Arc<FakeImages>,
    runtime: Arc<FakeRuntime>,
    shelf: Shelf,
    /// What is available of 1000 bytes.
    available: Arc<Lock<u64>>,
    root: tempfile::TempDir,
    meters: Meters,
}

impl Scene {
    fn new() -> Self {
        let images = Arc::new(FakeImages::default());
        images.present.lock().unwrap().extend(NAMES.map(str::to_owned));
        let clock: Arc<dyn Clock> = Arc::new(FakeClock::new());
        Self {
            images,
            runtime: FakeRuntime::new(clock),
            shelf: Shelf::default(),
            available: Arc::new(Lock::new(1000)),
            root: tempfile::tempdir().unwrap(),
            meters: Meters::default(),
        }
    }

    fn collector(&self, policy: Policy) -> (Arc<Collector>, mpsc::Receiver<Occurrence>) {
        let (events, told) = Recorder::new();
        let available = Arc::clone(&self.available);
        let image_fs = move || {
            let available_bytes = *available.lock().unwrap();
            Ok(FileSystem { capacity_bytes: 1000, available_bytes, ..FileSystem::default() })
        };
        let parts = Parts {
            images: Arc::clone(&self.images) as _,
            runtime: Arc::clone(&self.runtime) as _,
            shelf: self.shelf.clone(),
            clock: Arc::new(FakeClock::new()),
            events,
            node: "node".to_owned(),
            image_fs: Box::new(image_fs),
            root: self.root.path().to_owned(),
            meters: self.meters.clone(),
        };
        (Arc::new(Collector::new(policy, parts)), told)
    }

    fn removed(&self, reason: &str) -> u64 {
        crate::meters::tests::counted(&self.meters, &IMAGES_REMOVED)
            .get(reason)
            .copied()
            .unwrap_or(0)
    }

    fn left(&self) -> Vec<String> {
        self.images.present.lock().unwrap().iter().cloned().collect()
    }

    fn pod(&self, image: &str, phase: &str) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": image, "namespace": "ns", "uid": image},
            "spec": {"containers": [{"name": "c", "image": image}]},
        });
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).unwrap());
        let status = PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() };
        self.shelf.put(&pod, &status);
        pod
    }

    /// A container of a pod that is over, which is not removed yet.
    async fn container(&self, image: &str) {
        let (pod, materials) = (self.pod(image, "Failed"), FakeMaterials::default());
        let sandbox = materials.sandbox(&pod, 0).await.unwrap();
        let sandbox = self.runtime.run_sandbox(sandbox).await.unwrap();
        let request = ContainerRequest {
            pod: &pod,
            container: &pod.spec.as_ref().unwrap().containers[0],
            image: &crate::fake::image(image),
            attempt: 0,
            volume_images: Default::default(),
            pod_ips: vec![],
            before: None,
        };
        let config = materials.container(request).await.unwrap();
        self.runtime.create_container(&sandbox.id, config).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_loses_the_images_that_were_used_least_recently() {
    let scene = Scene::new();
    let (collector, _told) = scene.collector(Policy::default());
    *scene.available.lock().unwrap() = 130;
    scene.pod("ccc", "Running");
    assert!(matches!(collector.collect().await, Err(Error::TooLittle { freed: 0, .. })));
    tokio::time::advance(AGE).await;
    scene.shelf.remove("ccc");
    scene.pod("a", "Running");
    // 70 bytes are to go; one that pods ask for stays.
    collector.collect().await.unwrap();
    assert_eq!(scene.left(), ["a"]);
    assert_eq!(scene.removed("space"), 2);

    let scene = Scene::new();
    let (collector, _told) = scene.collector(Policy::default());
    scene.pod("bb", "Running");
    collector.collect().await.unwrap();
    scene.shelf.remove("bb");
    tokio::time::advance(AGE).await;
    *scene.available.lock().unwrap() = 150;
    collector.collect().await.unwrap();
    assert_eq!(scene.left(), ["bb"], "used last, and enough has gone without it");
}

#[tokio::test(start_paused = true)]
async fn an_empty_disk_keeps_all_and_too_old_images_go_all_the_same() {
    let scene = Scene::new();
    let longest_unused = Some(Duration::from_secs(3600));
    let (collector, _told) = scene.collector(Policy { longest_unused, ..Policy::default() });
    collector.collect().await.unwrap();
    tokio::time::advance(Duration::from_secs(1800)).await;
    scene.pod("bb", "Running");
    collector.collect().await.unwrap();
    assert_eq!(scene.left(), NAMES);
    scene.shelf.remove("bb");
    tokio::time::advance(Duration::from_secs(1801)).await;
    collector.collect().await.unwrap();
    assert_eq!(scene.left(), ["bb"]);
    assert_eq!((scene.removed("age"), scene.removed("space")), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_container_has_stays_though_it_has_ended_and_all_else_can_be_freed() {
    let scene = Scene::new();
    scene.container("bb").await;
    let (collector, _told) = scene.collector(Policy::default());
    assert_eq!(collector.free_unused().await.unwrap(), 0, "they may be about to be used");
    tokio::time::advance(AGE).await;
    assert_eq!(collector.free_unused().await.unwrap(), 84);
    assert_eq!(scene.left(), ["bb"]);
}

#[tokio::test(start_paused = true)]
async fn records_outlive_the_agent_and_torn_ones_are_begun_anew() {
    let scene = Scene::new();
    scene.pod("a", "Running");
    scene.collector(Policy::default()).0.collect().await.unwrap();
    scene.shelf.remove("a");
    // The clock of a second collector begins where the first one's does.
    let (again, _told) = scene.collector(Policy { least_age: Duration::ZERO, ..Policy::default() });
    *scene.available.lock().unwrap() = 150;
    again.collect().await.unwrap();
    assert_eq!(scene.left(), ["a"], "it was used, which the second one did not see");

    let file = scene.root.path().join(FILE);
    fs::write(&file, "{\"sha256:").unwrap();
    let (third, _told) = scene.collector(Policy::default());
    assert!(third.collect().await.is_err());
    assert_eq!(scene.left(), ["a"], "first seen just now");
    let kept: Records = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_as_upstream_tells_them() {
    let scene = Scene::new();
    scene.images.kept.lock().unwrap().insert("a".to_owned());
    scene.pod("bb", "Running");
    scene.pod("ccc", "Running");
    *scene.available.lock().unwrap() = 0;
    let (collector, mut told) = scene.collector(Policy::default());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(collector.run(shutdown.clone()));
    let mut next = async || {
        let occurrence = told.recv().await.unwrap();
        (occurrence.reason, occurrence.message)
    };
    let too_little = "Insufficient free disk space on the node's image filesystem (100% of 1000 B used). \
        Failed to free sufficient space by deleting unused images (freed 0 bytes). \
        Investigate disk usage, as it could be used by active images, logs, volumes, or other data.";
    assert_eq!(next().await, ("FreeDiskSpaceFailed".to_owned(), too_little.to_owned()));
    let (reason, message) = next().await;
    assert_eq!(reason, "ImageGCFailed", "for the second time");
    let expected =
        "wanted to free 200 bytes, but freed 0 bytes space with errors in image deletion: ";
    assert!(message.starts_with(expected), "{message}");
    shutdown.cancel();
    running.await.unwrap();
    assert_eq!(scene.left(), NAMES);
}
