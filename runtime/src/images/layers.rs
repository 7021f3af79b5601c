//! Unpacked layers by chain id: `layers/<hex>/fs` and the marker `layers/<hex>/done`.
//!
//! A layer is made under a temporary name, verified, and renamed into place. Its marker is written
//! when an image that needs it is committed, after one `syncfs` for all its layers; a layer without a
//! marker does not survive a restart. [`Hold`]s keep layers that a pull is about to name or that a
//! container stands on.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::digest::{ChainId, Digest};
use crate::disk;

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// The digest of the uncompressed layer.
    pub(crate) diff_id: Digest,
    /// Bytes of unpacked files.
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

#[derive(Debug)]
struct Known {
    layer: Layer,
    marked: bool,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<ChainId, Known>,
    holds: HashMap<ChainId, usize>,
}

/// All layers of a store.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    temporary: PathBuf,
    state: Mutex<State>,
}

/// Keeps layers from being collected until dropped.
#[derive(Debug)]
pub struct Hold {
    layers: Arc<Layers>,
    chain: Vec<ChainId>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.layers.lock();
        for id in &self.chain {
            if let Some(count) = state.holds.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.holds.remove(id);
                }
            }
        }
    }
}

/// A directory for a layer in the making. Dropped, it is removed in the background.
#[derive(Debug)]
pub(crate) struct Draft(PathBuf);

impl Draft {
    /// Where the layer's files go.
    pub(crate) fn target(&self) -> PathBuf {
        self.0.join("fs")
    }

    /// Removes it now. Blocking.
    pub(crate) fn discard(mut self) -> io::Result<()> {
        disk::remove_tree(&std::mem::take(&mut self.0))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        if path.as_os_str().is_empty() {
            return;
        }
        let remove = move || {
            if let Err(error) = disk::remove_tree(&path) {
                tracing::warn!(%error, "an unfinished layer could not be removed");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

impl Layers {
    /// Reads what is there; unfinished layers are removed.
    pub(crate) fn open(root: &Path, quarantine: &Path) -> io::Result<Self> {
        let layers =
            Self { dir: root.join("layers"), temporary: root.join("tmp"), state: Mutex::default() };
        disk::remove_tree(&layers.temporary)?;
        disk::make_private_dir(&layers.temporary)?;
        disk::make_private_dir(&layers.dir)?;
        for (name, path) in disk::entries(&layers.dir)? {
            let id = Digest::try_from(format!("sha256:{name}")).map(ChainId::from);
            let layer = disk::read_json(&path.join("done"), quarantine).value();
            match (id, layer) {
                (Ok(id), Some(layer)) => {
                    let marked = true;
                    layers.lock().known.insert(id, Known { layer, marked });
                }
                _ => disk::remove_tree(&path)?,
            }
        }
        Ok(layers)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a layer's files are.
    pub(crate) fn files(&self, id: &ChainId) -> PathBuf {
        self.dir.join(id.hex()).join("fs")
    }

    /// The layer, when it is in the store.
    pub(crate) fn get(&self, id: &ChainId) -> Option<Layer> {
        self.lock().known.get(id).map(|known| known.layer.clone())
    }

    /// Bytes and entries of all layers.
    pub(crate) fn total(&self) -> (u64, u64) {
        let state = self.lock();
        let all = state.known.values().map(|known| &known.layer);
        all.fold((0, 0), |sum, layer| (sum.0 + layer.bytes, sum.1 + layer.entries))
    }

    /// Keeps layers, present or to come.
    pub(crate) fn hold(self: &Arc<Self>, chain: &[ChainId]) -> Hold {
        let mut state = self.lock();
        for id in chain {
            *state.holds.entry(id.clone()).or_default() += 1;
        }
        Hold { layers: self.clone(), chain: chain.to_vec() }
    }

    /// A place to unpack a layer in. Blocking.
    pub(crate) fn draft(&self) -> io::Result<Draft> {
        let draft = Draft(self.temporary.join(disk::unique_suffix()));
        disk::make_private_dir(&draft.0)?;
        let target = draft.target();
        fs::create_dir(&target).map_err(|error| disk::at(&target, error))?;
        // The root of a layer is the container's `/`; its mode is the layer's own where it has one.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        Ok(draft)
    }

    /// Makes a verified draft the layer `id`. Blocking.
    pub(crate) fn publish(&self, mut draft: Draft, id: &ChainId, layer: Layer) -> io::Result<()> {
        let target = self.dir.join(id.hex());
        let mut state = self.lock();
        if state.known.contains_key(id) {
            return Ok(());
        }
        fs::rename(&draft.0, &target).map_err(|error| disk::at(&target, error))?;
        draft.0 = PathBuf::new();
        let marked = false;
        state.known.insert(id.clone(), Known { layer, marked });
        Ok(())
    }

    /// Makes layers durable: one `syncfs`, then their markers. Blocking.
    pub(crate) fn mark(&self, chain: &[ChainId]) -> io::Result<()> {
        let unmarked: Vec<(ChainId, Layer)> = {
            let state = self.lock();
            let known = chain.iter().filter_map(|id| Some((id, state.known.get(id)?)));
            known
                .filter(|(_, known)| !known.marked)
                .map(|(id, known)| (id.clone(), known.layer.clone()))
                .collect()
        };
        if unmarked.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(File::open(&self.dir)?)?;
        for (id, layer) in unmarked {
            disk::write_json(&self.dir.join(id.hex()).join("done"), &layer)?;
            if let Some(known) = self.lock().known.get_mut(&id) {
                known.marked = true;
            }
        }
        Ok(())
    }

    /// Takes layers away that are neither needed nor held: the directories that are left to be removed.
    /// Blocking.
    pub(crate) fn discard(&self, needed: &HashSet<ChainId>) -> io::Result<Vec<PathBuf>> {
        let mut doomed = Vec::new();
        let mut state = self.lock();
        let State { known, holds } = &mut *state;
        let stale: Vec<ChainId> = known
            .keys()
            .filter(|id| !needed.contains(id) && !holds.contains_key(id))
            .cloned()
            .collect();
        for id in stale {
            let trash = self.temporary.join(disk::unique_suffix());
            // The marker goes with the directory: after a crash here, `open` empties `tmp`.
            fs::rename(self.dir.join(id.hex()), &trash)?;
            known.remove(&id);
            doomed.push(trash);
        }
        Ok(doomed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> Layer {
        Layer { diff_id: Digest::of(b"a"), bytes: 1, entries: 1 }
    }

    fn id() -> ChainId {
        ChainId::from(Digest::of(b"a"))
    }

    fn open(dir: &Path) -> Arc<Layers> {
        Arc::new(Layers::open(dir, &dir.join("quarantine")).unwrap())
    }

    #[test]
    fn a_marked_layer_survives_a_restart_and_an_unmarked_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let layers = open(dir.path());
        let draft = layers.draft().unwrap();
        layers.publish(draft, &id(), layer()).unwrap();
        assert!(open(dir.path()).get(&id()).is_none());

        let layers = open(dir.path());
        let draft = layers.draft().unwrap();
        layers.publish(draft, &id(), layer()).unwrap();
        layers.mark(&[id()]).unwrap();
        let again = open(dir.path());
        assert_eq!(again.get(&id()), Some(layer()));
        assert!(again.files(&id()).is_dir());
    }

    #[test]
    fn a_held_layer_is_collected_only_after_the_hold_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let layers = open(dir.path());
        let hold = layers.hold(&[id()]);
        layers.publish(layers.draft().unwrap(), &id(), layer()).unwrap();
        assert!(layers.discard(&HashSet::new()).unwrap().is_empty());
        assert!(layers.get(&id()).is_some());
        drop(hold);
        let doomed = layers.discard(&HashSet::new()).unwrap();
        assert!(doomed.len() == 1 && doomed[0].starts_with(dir.path().join("tmp")));
        assert!(layers.get(&id()).is_none());
        assert_eq!(disk::entries(&dir.path().join("layers")).unwrap().len(), 0);
    }

    #[test]
    fn an_abandoned_draft_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let layers = open(dir.path());
        drop(layers.draft().unwrap());
        assert_eq!(disk::entries(&dir.path().join("tmp")).unwrap().len(), 0);
    }
}
