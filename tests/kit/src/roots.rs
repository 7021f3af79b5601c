//! The directories of a node under test.
//!
//! Owns making them under one temporary directory, and that nothing stays mounted in there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

/// Directories in place of `/var/lib/berth`, `/run/berth`, `/var/log/pods`.
#[derive(Debug)]
pub struct Roots {
    dir: Option<TempDir>,
    base: PathBuf,
}

impl Roots {
    /// Makes them, mode 0700.
    ///
    /// # Panics
    /// They cannot be made.
    pub fn create() -> Roots {
        // Short: sockets below have paths of at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("berth-").tempdir().expect("temporary root");
        for name in ["lib", "run", "log"] {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("create a root");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("mode of a root");
        }
        let base = dir.path().to_owned();
        Roots { dir: Some(dir), base }
    }

    /// The directory that holds them all.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// In place of `/var/lib/berth`.
    pub fn lib(&self) -> PathBuf {
        self.base.join("lib")
    }

    /// In place of `/run/berth`.
    pub fn run(&self) -> PathBuf {
        self.base.join("run")
    }

    /// In place of `/var/log/pods`.
    pub fn log(&self) -> PathBuf {
        self.base.join("log")
    }

    /// The census of these directories in place of the usual ones.
    pub fn scope(&self) -> crate::Scope {
        crate::Scope { roots: vec![self.lib(), self.run(), self.log()], ..crate::Scope::default() }
    }
}

impl Drop for Roots {
    fn drop(&mut self) {
        let left = mounts_below(&self.base);
        // The deepest first. What cannot be unmounted makes the removal below fail.
        for target in left.iter().rev() {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
        let removed = self.dir.take().map(TempDir::close);
        if std::thread::panicking() {
            return;
        }
        assert!(left.is_empty(), "still mounted below the node's directories: {left:?}");
        if let Some(Err(error)) = removed {
            panic!("remove {}: {error}", self.base.display());
        }
    }
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let targets = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    targets.filter(|target| target.starts_with(dir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_are_private_and_gone_when_dropped() {
        let roots = Roots::create();
        let mode = fs::metadata(roots.lib()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let base = roots.base().to_owned();
        drop(roots);
        assert!(!base.exists());
    }
}
