//! A runtime, or an image store, whose calls are counted and timed under the names that the CRI gives
//! them. Every method is passed on: one that is not would be answered by its trait's own answer.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_runtime::interface::{
    Checkpoint, ContainerConfig, ContainerId, Credentials, Exec, ExecOutput, Image, ImageError,
    Images, OpenFiles, PodUsage, ProgressSink, Pulled, Resize, Resources, Runtime, RuntimeError,
    RuntimeEvent, SandboxConfig, SandboxId, SandboxStatus, Session, StopSignal, Streams,
};
use tokio::net::TcpStream;
use tokio::sync::broadcast::Receiver;
use tokio::time::Instant;

use super::{CALL_TIME, CALLS, FAILED_CALLS, FAILED_SANDBOXES, Meters, PULL_TIME, SANDBOX_TIME};

/// Sizes of images from which on the next name is theirs.
const SIZES: [(u64, &str); 12] = [
    (0, "0-10MB"),
    (10 << 20, "10MB-100MB"),
    (100 << 20, "100MB-500MB"),
    (500 << 20, "500MB-1GB"),
    (1 << 30, "1GB-5GB"),
    (5 << 30, "5GB-10GB"),
    (10 << 30, "10GB-20GB"),
    (20 << 30, "20GB-30GB"),
    (30 << 30, "30GB-40GB"),
    (40 << 30, "40GB-60GB"),
    (60 << 30, "60GB-100GB"),
    (100 << 30, "GT100GB"),
];

/// Counts the calls of what it is around.
pub struct Metered<T: ?Sized> {
    inner: Arc<T>,
    meters: Meters,
}

impl<T: ?Sized> Metered<T> {
    /// Counts the calls of `inner`.
    pub fn new(inner: Arc<T>, meters: Meters) -> Self {
        Self { inner, meters }
    }

    async fn call<R, E: Debug>(
        &self,
        operation: &str,
        call: impl Future<Output = Result<R, E>> + Send,
    ) -> Result<R, E> {
        let begun = Instant::now();
        let result = call.await;
        self.meters.count(&CALLS, &[operation]);
        self.meters.time(&CALL_TIME, &[operation], begun.elapsed());
        if result.is_err() {
            self.meters.count(&FAILED_CALLS, &[operation]);
        }
        result
    }
}

#[async_trait]
impl Runtime for Metered<dyn Runtime> {
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        let begun = Instant::now();
        let handler = config.runtime_handler.clone();
        let result = self.call("run_podsandbox", self.inner.run_sandbox(config)).await;
        self.meters.time(&SANDBOX_TIME, &[&handler], begun.elapsed());
        if result.is_err() {
            self.meters.count(&FAILED_SANDBOXES, &[&handler]);
        }
        result
    }

    async fn stop_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        self.call("stop_podsandbox", self.inner.stop_sandbox(sandbox)).await
    }

    async fn remove_sandbox(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        self.call("remove_podsandbox", self.inner.remove_sandbox(sandbox)).await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        self.call("create_container", self.inner.create_container(sandbox, config)).await
    }

    async fn start_container(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        self.call("start_container", self.inner.start_container(container)).await
    }

    async fn stop_container(
        &self,
        container: &ContainerId,
        signal: StopSignal,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.call("stop_container", self.inner.stop_container(container, signal, grace)).await
    }

    async fn remove_container(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        self.call("remove_container", self.inner.remove_container(container)).await
    }

    async fn exec_sync(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError> {
        self.call("exec_sync", self.inner.exec_sync(container, command, timeout)).await
    }

    async fn exec(&self, container: &ContainerId, exec: Exec) -> Result<Session, RuntimeError> {
        self.call("exec", self.inner.exec(container, exec)).await
    }

    async fn attach(
        &self,
        container: &ContainerId,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        self.call("attach", self.inner.attach(container, streams)).await
    }

    async fn dial(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream, RuntimeError> {
        self.call("port_forward", self.inner.dial(sandbox, port)).await
    }

    async fn reopen_log(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        self.call("reopen_container_log", self.inner.reopen_log(container)).await
    }

    async fn checkpoint(
        &self,
        container: &ContainerId,
        checkpoint: Checkpoint,
    ) -> Result<(), RuntimeError> {
        self.call("checkpoint_container", self.inner.checkpoint(container, checkpoint)).await
    }

    async fn usage(&self) -> Result<Vec<PodUsage>, RuntimeError> {
        self.call("list_podsandbox_stats", self.inner.usage()).await
    }

    async fn open_files(&self) -> Result<BTreeMap<ContainerId, OpenFiles>, RuntimeError> {
        self.call("list_container_stats", self.inner.open_files()).await
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        self.call("list_podsandbox", self.inner.list()).await
    }

    async fn pod(&self, uid: &str) -> Result<Vec<SandboxStatus>, RuntimeError> {
        self.call("podsandbox_status", self.inner.pod(uid)).await
    }

    async fn resize(&self, sandbox: &SandboxId, all: Vec<Resize>) -> Result<(), RuntimeError> {
        self.call("update_container", self.inner.resize(sandbox, all)).await
    }

    async fn limit_class(&self, cgroup: &Path, limits: &Resources) -> Result<bool, RuntimeError> {
        self.inner.limit_class(cgroup, limits).await
    }

    async fn weigh_class(&self, cgroup: &Path, cpu_weight: u64) -> Result<(), RuntimeError> {
        self.inner.weigh_class(cgroup, cpu_weight).await
    }

    fn writable_layer(&self, container: &ContainerId) -> Option<PathBuf> {
        self.inner.writable_layer(container)
    }

    fn events(&self) -> Receiver<RuntimeEvent> {
        self.inner.events()
    }
}

#[async_trait]
impl Images for Metered<dyn Images> {
    async fn status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        self.call("image_status", self.inner.status(reference)).await
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Vec<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Pulled, ImageError> {
        let begun = Instant::now();
        let pull = self.inner.pull(reference, credentials, progress);
        let result = self.call("pull_image", pull).await;
        if let Ok(pulled) = &result {
            let size = size_name(pulled.image.size_bytes);
            self.meters.time(&PULL_TIME, &[size], begun.elapsed());
        }
        result
    }

    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        self.call("list_images", self.inner.list()).await
    }

    async fn stored(&self) -> Result<Option<(u64, u64)>, ImageError> {
        self.call("image_fs_info", self.inner.stored()).await
    }

    async fn sweep(&self) -> Result<(), ImageError> {
        self.call("remove_unused_layers", self.inner.sweep()).await
    }

    async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        self.call("remove_image", self.inner.remove(reference)).await
    }
}

fn size_name(bytes: u64) -> &'static str {
    SIZES.iter().rfind(|(least, _)| bytes >= *least).map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeClock, FakeMaterials, FakeRuntime};
    use crate::meters::tests::counted;
    use crate::worker::materials::Materials;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn images_are_told_by_the_size_that_they_reach() {
        let sizes = [0, (10 << 20) - 1, 10 << 20, 1 << 30, 1 << 40].map(size_name);
        assert_eq!(sizes, ["0-10MB", "0-10MB", "10MB-100MB", "1GB-5GB", "GT100GB"]);
    }

    #[test]
    fn every_method_is_passed_on() {
        let own = include_str!("metered.rs");
        for seam in [
            include_str!("../../../runtime/src/interface/runtime.rs"),
            include_str!("../../../runtime/src/interface/images.rs"),
        ] {
            let (_, rest) = seam.split_once("\npub trait ").unwrap();
            let (body, _) = rest.split_once("\n}\n").unwrap();
            let heads = body.lines().filter_map(|line| line.trim().split_once("fn "));
            let names: Vec<&str> =
                heads.filter_map(|(_, rest)| rest.split_once('(')).map(|(name, _)| name).collect();
            assert!(names.len() > 4, "{names:?}");
            for name in names {
                assert!(own.contains(&format!(".{name}(")), "{name} is not passed on");
            }
        }
    }

    #[tokio::test]
    async fn calls_and_failures_are_counted_by_what_was_called() {
        let meters = Meters::default();
        let runtime: Arc<dyn Runtime> = FakeRuntime::new(Arc::new(FakeClock::new()));
        let runtime = Metered::<dyn Runtime>::new(runtime, meters.clone());
        runtime.list().await.unwrap();
        runtime.list().await.unwrap();
        runtime.start_container(&ContainerId::try_from("0".repeat(64)).unwrap()).await.unwrap_err();
        assert_eq!(counted(&meters, &CALLS)["list_podsandbox"], 2);
        let failed = counted(&meters, &FAILED_CALLS);
        assert_eq!(failed.into_iter().collect::<Vec<_>>(), [("start_container".to_owned(), 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn sandboxes_are_counted_by_the_handler_that_their_class_names() {
        let meters = Meters::default();
        let inner = FakeRuntime::new(Arc::new(FakeClock::new()));
        inner.state().failures.insert("run_sandbox", 1);
        let runtime = Metered::<dyn Runtime>::new(inner, meters.clone());
        let mut config = FakeMaterials::default().sandbox(&Pod::default(), 0).await.unwrap();
        config.runtime_handler = "fast".to_owned();
        runtime.run_sandbox(config.clone()).await.unwrap_err();
        runtime.run_sandbox(config).await.unwrap();
        let counts = [&SANDBOX_TIME, &FAILED_SANDBOXES].map(|meter| counted(&meters, meter));
        assert_eq!(counts, [2, 1].map(|count| [("fast".to_owned(), count)].into()));
    }
}
