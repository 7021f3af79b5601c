//! Opening and making directories without following links.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Directories of ours are for root, and for the group to look at.
pub(super) const MODE: u32 = 0o750;

/// How a directory is opened to be read and changed.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Below a directory, through no link and no mount.
pub(super) const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens a directory of ours by its path; the last component must not be a link.
pub(super) fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?)
}

/// Opens an entry of a directory as a directory, through no link and no mount.
pub(super) fn open_entry(
    parent: impl AsFd,
    name: impl rustix::path::Arg,
) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(parent, name, DIRECTORY, Mode::empty(), CONFINED)
}

/// Makes `path`, which lies below `root`, component by component.
pub(super) fn make_all(root: &Path, path: &Path) -> io::Result<()> {
    let below = path.strip_prefix(root).map_err(io::Error::other)?;
    let mut at = open_path(root)?;
    for component in below.components() {
        let Component::Normal(name) = component else {
            return Err(io::Error::other("not a plain path"));
        };
        let made = match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(MODE)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::openat(&at, name, DIRECTORY, Mode::empty())?;
        if made {
            rustix::fs::fchmod(&at, Mode::from_raw_mode(MODE))?;
        }
    }
    Ok(())
}
