//! The part of a node that needs no API server: lock, image store, runtime, network seam.
//!
//! The agent holds one for its life; commands that find no agent open one for a moment. Opening it
//! harms no running container.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use berth_kubelet::events::recent::Recent;
use berth_kubelet::qos::Driver;
use berth_runtime::cgroup::Hierarchy;
use berth_runtime::engine::{self, Engine};
use berth_runtime::images::{self, Store};

use crate::control::Lock;
use crate::embedded;
use crate::network::LateNetwork;
use crate::settings::Places;

/// A host's images and sandboxes, owned by this process.
pub(crate) struct Host {
    pub(crate) images: Arc<Store>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) network: Arc<LateNetwork>,
    pub(crate) hierarchy: Hierarchy,
    /// What the agent has recorded.
    pub(crate) events: Recent,
    /// How the agent makes cgroups, once it makes pods.
    pub(crate) driver: OnceLock<Driver>,
    _lock: Lock,
}

impl Host {
    /// Takes the lock and opens store and runtime; sandboxes of an earlier run are found again.
    pub(crate) async fn open(places: &Places, resolv_conf: &Path) -> Result<Self> {
        let lock = Lock::take(places).await?;
        make_private(&places.run_dir)?;
        let executable = Arc::new(embedded::executable()?);
        let images = images::Config::new(places.state_dir.join("images"), executable.clone());
        let images = Store::open(images).await?;
        let network = LateNetwork::new();
        let hierarchy = Hierarchy::detect()?;
        let config = engine::Config {
            run_dir: places.run_dir.clone(),
            state_dir: places.state_dir.clone(),
            executable,
            hierarchy: hierarchy.clone(),
            resolv_conf: resolv_conf.to_owned(),
            criu: programs("criu"),
        };
        let engine = Engine::open(config, images.clone(), network.clone()).await?;
        let (events, driver) = (Recent::default(), OnceLock::new());
        Ok(Self { images, engine, network, hierarchy, events, driver, _lock: lock })
    }
}

/// Where a program of the host may be: as the `PATH` says, then where Debian has it.
fn programs(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    own.chain(["/usr/sbin".into(), "/usr/bin".into()])
        .map(|directory| directory.join(name))
        .collect()
}

/// Makes a directory that only root can enter, with its parents.
pub(crate) fn make_private(directory: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("making {}", directory.display()))
}
