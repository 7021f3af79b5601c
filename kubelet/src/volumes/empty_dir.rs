//! `emptyDir`: a directory of the pod's own, on disk or in memory.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode};

use super::desired::Medium;
use super::directory;
use super::ownership::{self, FsGroup};

/// Everybody may use an `emptyDir`, and in memory remove what is theirs alone: upstream leaves a tmpfs
/// the mode that the kernel gives it.
fn mode(medium: &Medium) -> Mode {
    match medium {
        Medium::Memory { .. } => Mode::from_raw_mode(0o1777),
        Medium::Disk | Medium::HugePages { .. } => Mode::from_raw_mode(0o777),
    }
}

/// How deep usage is counted; what lies deeper is not.
const MAX_DEPTH: usize = 128;
/// Directories that wait to be counted, each with a descriptor.
const MAX_PENDING: usize = 512;
/// Files with several names that are remembered, to count them once.
const MAX_LINKS: usize = 100_000;

/// Whether the directory was prepared before. One that was just made has [`directory::MODE`] and is
/// empty; later its mode is the container's business.
pub(super) fn is_prepared(directory: impl AsFd) -> io::Result<bool> {
    let status = rustix::fs::fstat(&directory)?;
    if status.st_mode & 0o7777 != directory::MODE {
        return Ok(true);
    }
    for entry in Dir::read_from(&directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens the directory to everybody and gives it, with what is in it, to the pod's group.
pub(super) fn prepare(
    directory: impl AsFd,
    medium: &Medium,
    fs_group: Option<&FsGroup>,
) -> io::Result<()> {
    rustix::fs::fchmod(&directory, mode(medium))?;
    match fs_group {
        Some(group) => ownership::give_to_group(&directory, group),
        None => Ok(()),
    }
}

/// The disk space that a directory takes, links and mounts in it aside. Blocks; what vanishes while it
/// is counted does not matter.
pub fn usage_bytes(path: &Path) -> io::Result<u64> {
    let root = directory::open_path(path)?;
    let mut total = 0;
    let mut linked = BTreeSet::new();
    let mut pending: Vec<(OwnedFd, usize)> = vec![(root, 0)];
    while let Some((at, depth)) = pending.pop() {
        for entry in Dir::read_from(&at)?.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(status) = rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
            let has_links = !is_directory && status.st_nlink > 1 && linked.len() < MAX_LINKS;
            if !has_links || linked.insert(status.st_ino) {
                total += u64::try_from(status.st_blocks).unwrap_or(0) * 512;
            }
            if is_directory
                && depth < MAX_DEPTH
                && pending.len() < MAX_PENDING
                && let Ok(inner) = directory::open_entry(&at, name)
            {
                pending.push((inner, depth + 1));
            }
        }
    }
    Ok(total)
}
