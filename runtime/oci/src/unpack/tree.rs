//! The directory being filled: every write is relative to a descriptor below its root.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::container::rootfd::{RootFd, entry};

/// Deep enough for any honest tree that an entry may replace.
const REMOVAL_DEPTH: u32 = 512;

/// A tree, with the directory that was written to last.
#[derive(Debug)]
pub(super) struct Tree {
    root: RootFd,
    last: Option<(PathBuf, OwnedFd)>,
}

/// A directory and a name in it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: OsString,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root: RootFd::from(root), last: None }
    }

    /// The directory at a path, made where it is missing.
    pub(super) fn directory(&mut self, path: &Path) -> Result<BorrowedFd<'_>, Errno> {
        let known = self.last.as_ref().is_some_and(|(last, _)| last == path);
        if !known {
            let directory = self.root.ensure_directory(path)?;
            self.last = Some((path.to_owned(), directory));
        }
        match &self.last {
            Some((_, directory)) => Ok(directory.as_fd()),
            None => Err(Errno::NOENT),
        }
    }

    /// The parent of a path and its name.
    pub(super) fn place(&mut self, path: &Path) -> Result<Place, Errno> {
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(Place { parent: rustix::io::fcntl_dupfd_cloexec(parent, 3)?, name })
    }

    /// The parent of a path that must exist, and its name.
    pub(super) fn existing(&self, path: &Path) -> Result<Place, Errno> {
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = self.root.open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Place { parent, name })
    }

    /// Opens a directory to change what it is.
    pub(super) fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.root.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
    }

    /// Makes room at a place: what is there goes.
    pub(super) fn clear(&mut self, place: &Place) -> Result<(), Errno> {
        let Some(stat) = entry(place.parent.as_fd(), &place.name)? else { return Ok(()) };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.last = None;
            return remove_all(place.parent.as_fd(), &place.name, REMOVAL_DEPTH);
        }
        rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::empty())
    }
}

fn remove_all(parent: BorrowedFd<'_>, name: &OsStr, depth: u32) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let names: Vec<OsString> = rustix::fs::Dir::read_from(&directory)?
        .filter_map(|entry| entry.ok())
        .map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    for child in names {
        let is_directory = entry(directory.as_fd(), &child)?
            .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if is_directory {
            remove_all(directory.as_fd(), &child, depth - 1)?;
        } else {
            rustix::fs::unlinkat(&directory, &child, AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
