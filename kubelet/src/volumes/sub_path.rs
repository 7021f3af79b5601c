//! Making the directories that a `subPath` names, inside its volume and nowhere else.
//!
//! The runtime opens a sub-path below its volume when it mounts it; what is missing must be made
//! before, with the volume's own mode, so that `fsGroup` holds there too (CVE-2017-1002101,
//! CVE-2021-25741). Every step is resolved beneath the volume by the kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use berth_runtime::interface::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// A sub-path that is not inside its volume, or could not be made. The text tells nothing about the
/// host's file system.
#[derive(Debug, thiserror::Error)]
#[error("failed to create subPath directory for volumeMount at {container_path:?}")]
pub struct SubPathError {
    /// Where it was to be mounted.
    pub container_path: PathBuf,
    /// The cause, for the node's log only.
    #[source]
    pub source: io::Error,
}

/// Makes the missing sub-paths of a container's mounts. Blocks; idempotent.
pub fn ensure_sub_paths(mounts: &[Mount]) -> Result<(), SubPathError> {
    // An image is as it is: its sub-paths are the runtime's to find.
    for mount in mounts.iter().filter(|mount| mount.image.is_none()) {
        let Some(sub_path) = &mount.sub_path else { continue };
        ensure(&mount.host_path, sub_path).map_err(|source| SubPathError {
            container_path: mount.container_path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn ensure(volume: &Path, sub_path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, volume, flags, Mode::empty())?;
    match open_inside(&root, sub_path, OFlags::empty()) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o7777);
    let mut prefix = PathBuf::new();
    let mut parent = root.try_clone()?;
    for component in sub_path.components() {
        let Component::Normal(name) = component else {
            return Err(io::Error::other("not a plain path"));
        };
        prefix.push(name);
        parent = match open_inside(&root, &prefix, OFlags::DIRECTORY) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => make(&root, &parent, &prefix, mode)?,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(())
}

fn open_inside(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE)
}

fn make(root: &OwnedFd, parent: &OwnedFd, prefix: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let name = prefix.file_name().ok_or_else(|| io::Error::other("not a plain path"))?;
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(open_inside(root, prefix, OFlags::DIRECTORY)?),
        Err(error) => return Err(error.into()),
    }
    // Only what was just made gets its mode set, and not through a link put in its place.
    let made = rustix::fs::openat(parent, name, super::directory::DIRECTORY, Mode::empty())?;
    rustix::fs::fchmod(&made, mode)?;
    Ok(made)
}
