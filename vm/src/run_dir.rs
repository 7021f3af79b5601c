//! The directory that a VM's sockets and images lie in while it runs.
//!
//! Owns making it, removing it, and removing those whose owner was killed before it could: each
//! holds a lock that ends with its owner.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

const PREFIX: &str = "berth-vm-";
const LOCK: &str = "lock";

#[derive(Debug)]
pub(crate) struct RunDir {
    dir: TempDir,
    _lock: File,
}

impl RunDir {
    /// A new one, in the system's directory for temporary files: the path of a socket is short.
    pub(crate) fn create() -> Result<Self> {
        let above = std::env::temp_dir();
        sweep(&above);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(above)
            .context("create a directory for the VM")?;
        let lock = File::create(dir.path().join(LOCK)).context("create the VM's lock")?;
        lock.lock().context("lock the VM's directory")?;
        Ok(RunDir { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes what nobody holds. One that was made this instant has no lock file yet and stays.
fn sweep(above: &Path) {
    for path in candidates(above) {
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            // Somebody else may be removing it too.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn candidates(above: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_whose_owner_is_gone_is_swept_and_a_held_one_stays() {
        let above = tempfile::tempdir().unwrap();
        for name in ["berth-vm-dead", "berth-vm-held", "other"] {
            fs::create_dir(above.path().join(name)).unwrap();
            File::create(above.path().join(name).join(LOCK)).unwrap();
        }
        let held = File::open(above.path().join("berth-vm-held").join(LOCK)).unwrap();
        held.lock().unwrap();
        sweep(above.path());
        let left = |name: &str| above.path().join(name).exists();
        assert!(!left("berth-vm-dead"));
        assert!(left("berth-vm-held") && left("other"));
    }
}
