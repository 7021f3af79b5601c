//! Removing directories whose content is not trusted.
//!
//! The walk goes by descriptors, opens each level through no link and no mount, and renames what lies
//! too deep up to the top, so that it needs few descriptors whatever a container has built. What is
//! mounted inside is never entered: it stays, and is an error (CVE-2017-1002102).

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use super::{PodDirectory, VolumePlugin, directory, nfs, tmpfs};

/// Levels that are walked before a subtree is moved up.
const MAX_DEPTH: usize = 32;
/// Entries looked at in one pass, which bounds memory.
const BATCH: usize = 1024;
/// Passes over one directory before a writer that keeps adding wins.
const MAX_PASSES: usize = 100_000;
/// Failures that are told one by one.
const MAX_ERRORS: usize = 64;

/// Something of a pod that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// A volume's own mount could not be taken away.
    #[error("unmount {}: {source}", path.display())]
    Unmount {
        /// The volume.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something is mounted in there.
    #[error("{} is still mounted", .0.display())]
    StillMounted(PathBuf),
    /// An entry stays.
    #[error("remove {}: {source}", path.display())]
    Remove {
        /// The entry.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Removes a pod's directory: first its own mounts, then, only if those are gone, the rest.
pub(super) fn remove_pod(pod: &PodDirectory) -> Result<(), Vec<TeardownError>> {
    let pods = pod.root().join("pods");
    let parent = match directory::open_path(&pods) {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(vec![TeardownError::Remove { path: pods, source }]),
    };
    let mut errors = unmount_volumes(pod);
    if errors.is_empty() {
        let mut walk = Walk::new(pods);
        walk.remove_child(parent.as_fd(), pod.uid());
        errors.append(&mut walk.errors);
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn unmount_volumes(pod: &PodDirectory) -> Vec<TeardownError> {
    const PLUGINS: [VolumePlugin; 4] = [
        VolumePlugin::EmptyDir,
        VolumePlugin::Secret,
        VolumePlugin::DownwardApi,
        VolumePlugin::Projected,
    ];
    let mut errors = Vec::new();
    let files = pod.files_path();
    if let Err(source) = tmpfs::unmount_all(&files) {
        errors.push(TeardownError::Unmount { path: files, source });
    }
    let exports = pod.volumes_path().join(VolumePlugin::Nfs.directory_name());
    if let Err((path, source)) = nfs::unmount_below(&exports) {
        errors.push(TeardownError::Unmount { path, source });
    }
    for plugin in PLUGINS {
        let path = pod.volumes_path().join(plugin.directory_name());
        let Ok(opened) = directory::open_path(&path) else { continue };
        let Ok(listing) = Dir::read_from(&opened) else { continue };
        for entry in listing.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            let path = path.join(name);
            if let Err(source) = tmpfs::unmount_all(&path)
                && source.kind() != io::ErrorKind::NotADirectory
            {
                errors.push(TeardownError::Unmount { path, source });
            }
        }
    }
    errors
}

/// Removes one entry of a directory, with all that is below it.
pub(super) fn remove_entry(parent: impl AsFd, name: &str) -> io::Result<()> {
    let mut walk = Walk::new(PathBuf::new());
    walk.remove_child(parent.as_fd(), name);
    match walk.errors.pop() {
        None => Ok(()),
        Some(error) => Err(io::Error::other(error)),
    }
}

/// A removal under way.
struct Walk {
    /// Where the walk is, for messages.
    at: PathBuf,
    /// The first failures.
    errors: Vec<TeardownError>,
    /// All failures, counted.
    failures: usize,
    moved: usize,
}

enum Emptied {
    /// Nothing is left.
    Yes,
    /// What is left has failed.
    No,
}

impl Walk {
    fn new(at: PathBuf) -> Self {
        Self { at, errors: Vec::new(), failures: 0, moved: 0 }
    }

    fn remove_child(&mut self, parent: BorrowedFd<'_>, name: &str) {
        match CString::new(name) {
            Ok(name) => {
                self.remove(parent, &name, None, 0);
            }
            Err(_) => self.fail(c"", Errno::INVAL),
        }
    }

    fn fail(&mut self, name: &CStr, error: Errno) {
        self.failures += 1;
        if self.errors.len() >= MAX_ERRORS {
            return;
        }
        let path = self.at.join(Path::new(name.to_string_lossy().as_ref()));
        self.errors.push(match error {
            Errno::XDEV | Errno::BUSY => TeardownError::StillMounted(path),
            error => TeardownError::Remove { path, source: error.into() },
        });
    }

    /// Removes an entry; `false` means that it stays. `top` takes in what lies too deep: it is the
    /// entry itself where absent.
    fn remove(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        top: Option<BorrowedFd<'_>>,
        depth: usize,
    ) -> bool {
        let before = self.failures;
        let refused = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return true,
            Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
            Err(error) => {
                self.fail(name, error);
                return false;
            }
        };
        match (directory::open_entry(parent, name), top) {
            (Ok(_), Some(top)) if depth >= MAX_DEPTH => self.move_up(parent, name, top),
            (Ok(inner), top) => {
                self.at.push(name.to_string_lossy().as_ref());
                let emptied = self.empty(&inner, top.unwrap_or(inner.as_fd()), depth + 1);
                self.at.pop();
                if let Emptied::Yes = emptied {
                    self.remove_emptied(parent, name);
                }
            }
            (Err(Errno::NOENT), _) => {}
            (Err(Errno::NOTDIR | Errno::LOOP), _) if refused == Errno::PERM => {
                self.fail(name, refused);
            }
            // It was exchanged for something else meanwhile: the next pass sees what.
            (Err(Errno::NOTDIR | Errno::LOOP), Some(_)) => {}
            (Err(error), _) => self.fail(name, error),
        }
        self.failures == before
    }

    fn remove_emptied(&mut self, parent: BorrowedFd<'_>, name: &CStr) {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => self.fail(name, error),
        }
    }

    /// Removes everything in a directory.
    fn empty(&mut self, directory: &OwnedFd, top: BorrowedFd<'_>, depth: usize) -> Emptied {
        let mut stuck: BTreeSet<CString> = BTreeSet::new();
        for _ in 0..MAX_PASSES {
            let names = match batch(directory, &stuck) {
                Ok(names) => names,
                Err(error) => {
                    self.fail(c"", error);
                    return Emptied::No;
                }
            };
            if names.is_empty() {
                break;
            }
            for name in names {
                if !self.remove(directory.as_fd(), &name, Some(top), depth) {
                    stuck.insert(name);
                }
            }
        }
        if stuck.is_empty() { Emptied::Yes } else { Emptied::No }
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>) {
        self.moved += 1;
        let aside = format!("..removed-{}-{}", std::process::id(), self.moved);
        match rustix::fs::renameat(parent, name, top, aside.as_str()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => self.fail(name, error),
        }
    }
}

/// Some entries of a directory, those that cannot be removed left out.
fn batch(directory: &OwnedFd, stuck: &BTreeSet<CString>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || stuck.contains(name) {
            continue;
        }
        names.push(name.to_owned());
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}
