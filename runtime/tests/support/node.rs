//! An engine with directories, a cgroup and a fake pod network of its own, and a census at its end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use berth_runtime::cgroup::Hierarchy;
use berth_runtime::engine::{Config, Engine};
use berth_runtime::images::{self, Store};
use berth_runtime::interface::*;

use super::image::{Image, Layout};

/// Remembers who is attached.
#[derive(Default)]
pub struct FakeNetwork {
    pub attached: Mutex<BTreeMap<String, PathBuf>>,
    pub refuse: Mutex<Option<String>>,
    pub collected: Mutex<Option<Vec<SandboxId>>>,
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, request: AttachRequest) -> Result<Vec<IpAddr>, String> {
        if let Some(message) = self.refuse.lock().unwrap().clone() {
            return Err(message);
        }
        assert!(request.netns.exists(), "the network namespace is not pinned");
        let mut attached = self.attached.lock().unwrap();
        attached.insert(request.sandbox.to_string(), request.netns);
        Ok(vec![IpAddr::from([10, 88, 0, 2])])
    }

    async fn detach(&self, sandbox: &SandboxId) -> Result<(), String> {
        self.attached.lock().unwrap().remove(sandbox.as_str());
        Ok(())
    }

    async fn collect(&self, live: &[SandboxId]) -> Result<(), String> {
        *self.collected.lock().unwrap() = Some(live.to_vec());
        let live: Vec<&str> = live.iter().map(SandboxId::as_str).collect();
        self.attached.lock().unwrap().retain(|id, _| live.contains(&id.as_str()));
        Ok(())
    }
}

/// A node's directory: the test's own, or that of the test that started this agent.
pub enum Home {
    Own(Scene),
    Given(PathBuf),
}

/// A directory and what belongs to it on the host, cleared away even when the test fails.
pub struct Scene {
    dir: tempfile::TempDir,
    group: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::write(self.group.join("cgroup.kill"), "1");
        for pid in shims_below(self.dir.path()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let places = table.lines().rev().filter_map(|line| line.split(' ').nth(4));
        for place in places.filter(|place| Path::new(place).starts_with(self.dir.path())) {
            let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
        }
        for _ in 0..100 {
            remove_groups(&self.group);
            if !self.group.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_groups(group: &Path) {
    for name in super::names(group) {
        if group.join(&name).is_dir() {
            remove_groups(&group.join(&name));
        }
    }
    let _ = std::fs::remove_dir(group);
}

impl Home {
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(scene) => scene.dir.path(),
            Self::Given(path) => path,
        }
    }
}

pub struct Node {
    pub dir: Home,
    pub network: Arc<FakeNetwork>,
    pub hierarchy: Hierarchy,
    pub images: Arc<Store>,
    pub engine: Arc<Engine>,
    pub image: ImageId,
    group: String,
}

impl Node {
    pub async fn new() -> Self {
        Self::with_image(Image::busybox()).await
    }

    pub async fn with_image(image: Image) -> Self {
        let dir = super::scratch();
        let images = Self::store(dir.path()).await;
        let mut layout = Layout::new();
        layout.add("test/busybox:1", &image);
        let archive = std::io::Cursor::new(layout.archive());
        images.import(archive).await.unwrap();
        drop(images);
        let hierarchy = Hierarchy::detect().expect("cgroup v2 is mounted");
        let group = hierarchy.root().join(group_name(dir.path()));
        Self::on(Home::Own(Scene { dir, group })).await
    }

    /// On directories that have an image already.
    pub async fn at(dir: PathBuf) -> Self {
        Self::on(Home::Given(dir)).await
    }

    async fn on(dir: Home) -> Self {
        let network = Arc::new(FakeNetwork::default());
        let hierarchy = Hierarchy::detect().expect("cgroup v2 is mounted");
        let images = Self::store(dir.path()).await;
        let image = images.status("test/busybox:1").await.unwrap().expect("an image").id;
        let engine = Self::open(dir.path(), &hierarchy, &images, &network).await;
        let group = group_name(dir.path());
        Self { dir, network, hierarchy, images, engine, image, group }
    }

    async fn store(dir: &Path) -> Arc<Store> {
        let config = images::Config::new(dir.join("images"), super::oci());
        Store::open(config).await.unwrap()
    }

    async fn open(
        dir: &Path,
        hierarchy: &Hierarchy,
        images: &Arc<Store>,
        network: &Arc<FakeNetwork>,
    ) -> Arc<Engine> {
        let config = Config {
            run_dir: dir.join("run"),
            state_dir: dir.join("state"),
            executable: super::oci(),
            hierarchy: hierarchy.clone(),
            resolv_conf: "/etc/resolv.conf".into(),
            criu: Vec::new(),
        };
        Engine::open(config, images.clone(), network.clone()).await.unwrap()
    }

    /// Drops the engine and opens another on the same directories, as a restarted agent does.
    pub async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    /// The same, with something done while no engine is there.
    pub async fn restart_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { dir, network, hierarchy, images, engine, image, group } = self;
        drop(engine);
        drop(images);
        meanwhile(dir.path());
        let images = Self::store(dir.path()).await;
        let engine = Self::open(dir.path(), &hierarchy, &images, &network).await;
        Self { dir, network, hierarchy, images, engine, image, group }
    }

    pub fn sandbox_config(&self, uid: &str) -> SandboxConfig {
        SandboxConfig {
            users: NamespaceMode::Host,
            pod: PodIdentity { namespace: "default".into(), name: "p".into(), uid: uid.into() },
            attempt: 0,
            hostname: "pod-host".into(),
            log_directory: self.dir.path().join("logs").join(uid),
            cgroup_path: format!("{}/pod{uid}", self.group).into(),
            resources: Resources::default(),
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            pid: PidMode::Container,
            sysctls: BTreeMap::new(),
            port_mappings: vec![],
            labels: BTreeMap::new(),
            runtime_handler: String::new(),
        }
    }

    pub fn container(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            attempt: 0,
            image: self.image.clone(),
            image_reference: "test/busybox:1".into(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            args: vec![],
            env: vec![("FROM_POD".into(), "yes".into())],
            working_dir: None,
            mounts: vec![],
            log_path: format!("{name}/0.log").into(),
            log_limits: LogLimits::default(),
            resources: Resources::default(),
            oom_score_adj: 0,
            security: Security::default(),
            tty: false,
            stdin: false,
            stdin_once: false,
            pid_target: None,
            labels: BTreeMap::new(),
        }
    }

    pub async fn run_sandbox(&self, uid: &str) -> SandboxId {
        self.engine.run_sandbox(self.sandbox_config(uid)).await.unwrap().id
    }

    /// Creates and starts a container that runs a script.
    pub async fn run(&self, sandbox: &SandboxId, name: &str, script: &str) -> ContainerId {
        let config = self.container(name, script);
        let id = self.engine.create_container(sandbox, config).await.unwrap();
        self.engine.start_container(&id).await.unwrap();
        id
    }

    pub async fn state(&self, id: &ContainerId) -> ContainerState {
        let sandboxes = self.engine.list().await.unwrap();
        let mut containers = sandboxes.into_iter().flat_map(|sandbox| sandbox.containers);
        containers.find(|container| container.id == *id).expect("the container is listed").state
    }

    /// Waits for the end of a container: exit code and message.
    pub async fn exit(&self, id: &ContainerId) -> (i32, String) {
        let mut events = self.engine.events();
        let wait = async {
            loop {
                if let ContainerState::Exited { exit_code, message, .. } = self.state(id).await {
                    return (exit_code, message);
                }
                let _ = tokio::time::timeout(Duration::from_millis(200), events.recv()).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        waited.expect("the container ends")
    }

    /// What a container has written so far.
    pub async fn log(&self, id: &ContainerId) -> String {
        use futures::StreamExt;
        let path = self.engine.log_path(id).unwrap();
        let options = berth_runtime::logs::LogOptions::default();
        let chunks: Vec<_> = berth_runtime::logs::read(path, options).collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Waits until the log holds a text.
    pub async fn wait_for_log(&self, id: &ContainerId, text: &str) {
        for _ in 0..400 {
            if self.log(id).await.contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{text:?} is not logged: {:?}", self.log(id).await);
    }

    /// The processes that name the node's directory on their command line: shims, but not their
    /// children, which have the same one until they execute a command.
    pub fn shims(&self) -> Vec<i32> {
        shims_below(self.dir.path())
    }

    pub fn group_dir(&self) -> PathBuf {
        self.hierarchy.root().join(&self.group)
    }

    /// Removes all sandboxes and asserts that nothing of the node is left on the host.
    pub async fn finish(self) {
        for sandbox in self.engine.list().await.unwrap() {
            self.engine.remove_sandbox(&sandbox.id).await.unwrap();
        }
        self.assert_clean();
        let group = self.group_dir();
        if group.exists() {
            std::fs::remove_dir(&group).expect("the test's cgroup is empty");
        }
    }

    pub fn assert_clean(&self) {
        assert!(self.engine_list_is_empty(), "sandboxes are left");
        for dir in ["run/pods", "state/containers"] {
            let left = super::names(&self.dir.path().join(dir));
            assert!(left.is_empty(), "{dir} holds {left:?}");
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = self.dir.path().to_string_lossy().into_owned();
        let mounts: Vec<&str> = table.lines().filter(|line| line.contains(&path)).collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:?}");
        assert!(self.network.attached.lock().unwrap().is_empty(), "addresses are left");
        let groups: Vec<_> = super::names(&self.group_dir())
            .into_iter()
            .filter(|name| self.group_dir().join(name).is_dir())
            .collect();
        assert!(groups.is_empty(), "cgroups are left: {groups:?}");
        // A zombie waits for the test's own runtime; its command line is gone already.
        let shims = self.shims();
        assert!(shims.is_empty(), "shims are left: {shims:?}");
    }

    fn engine_list_is_empty(&self) -> bool {
        super::names(&self.dir.path().join("run/pods")).is_empty()
    }
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

fn group_name(dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_string_lossy();
    format!("berth-test-{name}")
}

fn shims_below(dir: &Path) -> Vec<i32> {
    let needle = dir.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for name in super::names(Path::new("/proc")) {
        let Ok(pid) = name.parse::<i32>() else { continue };
        if pid == std::process::id() as i32 {
            continue;
        }
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&needle) {
            found.push(pid);
        }
    }
    let all = found.clone();
    found.retain(|pid| parent(*pid).is_none_or(|parent| !all.contains(&parent)));
    found
}
