//! What happens at start: the sandboxes of an earlier run are found again.
//!
//! ```text
//! record torn, of another boot, Making or Removing ─► torn down (nobody waits for it)
//! record Stopped                                   ─► listed, exits from the shim's files
//! record Ready ─► shim answers ─► followed; containers half made are removed
//!              └► shim gone    ─► lost: containers killed and exited with 137
//! ```
//! At the end, what belongs to no sandbox or container is removed: directories, writable layers, addresses,
//! unused layers.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_oci::protocol::{ContainerRecord, Request, SignalTarget};
use futures::StreamExt;

use super::container::{self, Container};
use super::record::{self, Phase, SandboxDir};
use super::sandbox::{self, Sandbox};
use super::shim::{self, Shim};
use super::{Shared, chain, checkpoint, failed, lock, volumes};
use crate::cgroup::{GroupPath, Hierarchy};
use crate::disk::{self, Stored};
use crate::interface::{ContainerId, RuntimeError, SandboxId};

/// How many sandboxes are looked at at once.
const PARALLEL: usize = 16;
/// How long ending what nobody knows may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(shared: &Arc<Shared>) -> Result<(), RuntimeError> {
    let layout = shared.layout.clone();
    let found = disk::blocking(move || {
        disk::make_private_dir(&layout.sandboxes())?;
        disk::make_private_dir(&layout.writable_layers())?;
        disk::entries(&layout.sandboxes())
    });
    let found = found.await.map_err(|e| failed("open the engine's directories", e))?;
    let mut known = Vec::new();
    for (name, path) in found {
        match SandboxId::try_from(name) {
            Ok(id) => known.extend(load(shared, id).await),
            Err(_) => disk::set_aside(&path, &shared.layout.quarantine()),
        }
    }
    // All are known before one is acted on: sandboxes of one pod share its cgroup.
    futures::stream::iter(known).for_each_concurrent(PARALLEL, |loaded| one(shared, loaded)).await;
    sweep(shared).await;
    checkpoint::sweep(&shared.layout).await;
    Ok(())
}

/// A sandbox as its records tell.
struct Loaded {
    sandbox: Arc<Sandbox>,
    same_boot: bool,
    half_made: Vec<Arc<Container>>,
}

async fn load(shared: &Arc<Shared>, id: SandboxId) -> Option<Loaded> {
    let dir = shared.layout.sandbox(&id);
    let (path, quarantine) = (dir.record(), shared.layout.quarantine());
    let read = disk::blocking(move || Ok(disk::read_json::<record::Sandbox>(&path, &quarantine)));
    let record = match read.await {
        Ok(Stored::Value(record)) if record.id == id => record,
        _ => {
            tracing::warn!(sandbox = %id, "a sandbox without a readable record is removed");
            clear_unknown(shared, &dir).await;
            return None;
        }
    };
    let same_boot = record.boot_id == shared.boot_id;
    let sandbox = Sandbox::of(record, dir);
    let half_made = load_containers(shared, &sandbox).await;
    lock(&shared.sandboxes).insert(id, sandbox.clone());
    Some(Loaded { sandbox, same_boot, half_made })
}

async fn one(shared: &Arc<Shared>, loaded: Loaded) {
    let Loaded { sandbox, same_boot, half_made } = loaded;
    let phase = sandbox.phase();
    if let Err(error) = shim::await_starting(&sandbox.dir).await {
        tracing::error!(sandbox = %sandbox.id, %error, "a shim neither listens nor ends");
    }
    let greeting = match same_boot {
        true => shim::connect(&sandbox.dir.socket()).await.ok(),
        false => None,
    };
    if !same_boot || matches!(phase, Phase::Making | Phase::Removing) {
        discard(shared, sandbox, greeting).await;
        return;
    }
    match (phase, greeting) {
        (Phase::Ready, Some(greeting)) => {
            adopt(shared, &sandbox, greeting).await;
        }
        (Phase::Ready, None) => {
            tracing::warn!(sandbox = %sandbox.id, "the shim ended while the agent was down");
            sandbox::lost(shared, &sandbox).await;
        }
        (_, greeting) => {
            if let Some(greeting) = greeting {
                greeting.shim.kill();
            }
            sandbox::settle(shared, &sandbox, "the sandbox was stopped").await;
        }
    }
    for container in half_made {
        remove_half_made(shared, &sandbox, &container).await;
    }
}

/// Takes in the containers that have records; returns those that were being made or removed.
async fn load_containers(shared: &Arc<Shared>, sandbox: &Sandbox) -> Vec<Arc<Container>> {
    let (dir, quarantine) = (sandbox.dir.clone(), shared.layout.quarantine());
    let read = disk::blocking(move || {
        let mut records = Vec::new();
        for (name, _) in disk::entries(&dir.containers())? {
            let Ok(id) = ContainerId::try_from(name) else {
                continue;
            };
            let dir = dir.container(&id);
            let record: Option<record::Container> =
                disk::read_json(&dir.record(), &quarantine).value();
            if let Some(record) = record.filter(|record| record.id == id) {
                records.push((record, dir));
            }
        }
        Ok(records)
    });
    let mut half_made = Vec::new();
    for (record, dir) in read.await.unwrap_or_default() {
        let hold = shared.images.hold(&record.layers);
        let whole = record.phase == Phase::Ready;
        let container = Container::of(record, dir, hold);
        sandbox.add(container.clone());
        if !whole {
            half_made.push(container);
        }
    }
    half_made
}

/// Takes a living shim into use.
async fn adopt(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, greeting: shim::Greeting) {
    let shim = Arc::new(greeting.shim);
    for told in greeting.containers {
        let id = ContainerId::try_from(told.id.clone()).ok();
        match id.and_then(|id| sandbox.container(&id)) {
            Some(container) => {
                container.told(told.state);
            }
            None => forget(&shim, &told).await,
        }
    }
    match shim.subscribe().await {
        Ok(events) => sandbox.follow(shared, shim, events),
        Err(error) => {
            tracing::warn!(sandbox = %sandbox.id, error = chain(&error), "the shim does not listen");
            shim.kill();
            sandbox::lost(shared, sandbox).await;
        }
    }
}

/// Ends a container that the shim knows and the engine does not.
async fn forget(shim: &Shim, told: &ContainerRecord) {
    let kill = Request::Signal { id: told.id.clone(), signal: 9, target: SignalTarget::All };
    let killed = shim.order(&kill, PATIENCE).await;
    let deleted = container::delete(shim, &told.id).await;
    if let Err(error) = killed.and(deleted) {
        tracing::warn!(container = told.id, error = chain(&error), "an unknown container stays");
    }
}

async fn remove_half_made(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
) {
    let removal = container::remove(shared.clone(), sandbox.clone(), container.clone());
    if let Err(error) = removal.await {
        tracing::warn!(container = %container.id, error = chain(&error), "a half-made container stays");
    }
}

/// Tears down a sandbox nobody is waiting for.
async fn discard(shared: &Arc<Shared>, sandbox: Arc<Sandbox>, greeting: Option<shim::Greeting>) {
    if let Some(greeting) = greeting {
        greeting.shim.kill();
        // Its processes are gone with their cgroup in the teardown.
        let _ = greeting.shim.ended().await;
    }
    let id = sandbox.id.clone();
    if let Err(error) = sandbox::remove(shared.clone(), sandbox).await {
        tracing::error!(sandbox = %id, error = chain(&error), "a stale sandbox is not wholly removed");
    }
}

/// Removes a sandbox of which only the directory is known, and the shim where it lives.
async fn clear_unknown(shared: &Arc<Shared>, dir: &SandboxDir) {
    if let Ok(greeting) = shim::connect(&dir.socket()).await {
        let ordered = greeting.shim.order(&Request::Shutdown, PATIENCE).await;
        if ordered.is_err() {
            greeting.shim.kill();
        }
    }
    let (dir, hierarchy) = (dir.clone(), shared.hierarchy.clone());
    let path = dir.path().to_owned();
    let cleared = disk::blocking(move || {
        for (_, container) in disk::entries(&dir.containers())? {
            if let Some(state) = shim::stored_state(&container.join("state.json")) {
                clear_group(&hierarchy, &state.cgroup_path)?;
            }
        }
        volumes::unmount_below(dir.path())?;
        disk::remove_tree(dir.path())
    });
    if let Err(error) = cleared.await {
        tracing::error!(path = %path.display(), %error, "a sandbox directory stays");
    }
}

/// Ends what is in a container's cgroup and removes it. The pod's around it may have other users;
/// [`sweep_group`] removes it where it has none.
fn clear_group(hierarchy: &Hierarchy, container: &Path) -> io::Result<()> {
    if let Ok(group) = GroupPath::try_from(container) {
        hierarchy.kill(&group, PATIENCE).map_err(io::Error::other)?;
        hierarchy.remove(&group).map_err(io::Error::other)?;
    }
    sweep_group(hierarchy, container);
    Ok(())
}

/// Removes the pod's cgroup when nobody else is in it, and the sandbox's scope in it.
fn sweep_group(hierarchy: &Hierarchy, container: &Path) {
    let Some(Ok(home)) = container.parent().map(GroupPath::try_from) else { return };
    if let Err(error) = hierarchy.sweep(&home) {
        tracing::warn!(cgroup = %home.as_path().display(), error = chain(&error), "it stays");
    }
}

/// Removes what belongs to no sandbox.
async fn sweep(shared: &Arc<Shared>) {
    let sandboxes: Vec<_> = lock(&shared.sandboxes).values().cloned().collect();
    let known: HashSet<String> = sandboxes
        .iter()
        .flat_map(|sandbox| sandbox.containers())
        .map(|container| container.id.to_string())
        .collect();
    let layers = shared.layout.writable_layers();
    let homes: Vec<SandboxDir> = sandboxes.iter().map(|sandbox| sandbox.dir.clone()).collect();
    let swept = disk::blocking(move || {
        for (name, path) in disk::entries(&layers)? {
            if !known.contains(&name) {
                disk::remove_tree(&path)?;
            }
        }
        homes.iter().try_for_each(|home| sweep_containers(home, &known))
    });
    if let Err(error) = swept.await {
        tracing::warn!(%error, "what containers left stays");
    }
    let live = sandboxes.iter().filter(|s| s.phase() == Phase::Ready);
    let live: Vec<SandboxId> = live.map(|sandbox| sandbox.id.clone()).collect();
    if let Err(error) = shared.network.collect(&live).await {
        tracing::warn!(error, "stale addresses stay");
    }
    if let Err(error) = shared.images.collect().await {
        tracing::warn!(error = chain(&error), "unused layers stay");
    }
}

/// Removes what containers left that never came to have a record. Blocking.
fn sweep_containers(home: &SandboxDir, known: &HashSet<String>) -> io::Result<()> {
    for directory in [home.containers(), home.volumes()] {
        for (name, _) in disk::entries(&directory)? {
            if !known.contains(&name)
                && let Ok(id) = ContainerId::try_from(name)
            {
                container::clear(&home.container(&id))?;
            }
        }
    }
    Ok(())
}
