//! The root file system as a descriptor: the only way to a path of the container before the pivot.
//!
//! Every lookup is an openat2(2) that the kernel confines to the root, links included, and that never
//! follows the magic links of procfs. Missing directories are made one by one on descriptors, so that
//! no check can come apart from its use. Linux 5.6.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const LINK_LIMIT: u32 = 40;
const RETRY_LIMIT: u32 = 128;
const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const ONE_STEP: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Refuses to work on kernels, and below filters, that lack openat2(2): nothing replaces it.
pub(crate) fn require_openat2() -> Result<(), Errno> {
    openat2(rustix::fs::CWD, Path::new("/"), OFlags::PATH, CONFINED).map(drop)
}

/// A directory that stands for `/`.
#[derive(Debug)]
pub(crate) struct RootFd(OwnedFd);

impl AsFd for RootFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for RootFd {
    fn from(directory: OwnedFd) -> Self {
        Self(directory)
    }
}

impl RootFd {
    /// Resolves a path to a place, without opening what is there.
    pub(crate) fn find(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH)
    }

    /// Opens a file that exists.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat2(self.as_fd(), relative(path), flags, CONFINED)
    }

    /// A directory, made where it is missing.
    pub(crate) fn ensure_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.ensure(&clean(path), LINK_LIMIT)
    }

    /// A place to mount a file on: what exists and is no directory, or a new empty file. A link to what
    /// is missing has its target made, inside the root.
    pub(crate) fn ensure_file(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut path = clean(path);
        for _ in 0..LINK_LIMIT {
            match self.find(&path) {
                Err(Errno::NOENT) => {}
                found => {
                    let found = found?;
                    return match file_type(found.as_fd())? {
                        FileType::Directory => Err(Errno::ISDIR),
                        _ => Ok(found),
                    };
                }
            }
            let name = path.file_name().ok_or(Errno::ISDIR)?;
            let parent = path.parent().unwrap_or(Path::new(""));
            let directory = self.ensure(parent, LINK_LIMIT)?;
            match create_file(directory.as_fd(), name) {
                Err(Errno::EXIST) => {}
                created => return created,
            }
            match link_target(directory.as_fd(), name) {
                Ok(target) => path = clean(&parent.join(target)),
                // Somebody has just made it.
                Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::LOOP)
    }

    /// A directory no component of whose path is a link, made where it is missing.
    pub(crate) fn ensure_ordinary_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut place = openat2(self.as_fd(), Path::new("."), OFlags::PATH, CONFINED)?;
        for name in &clean(path) {
            place = enter(place.as_fd(), name)?;
        }
        Ok(place)
    }

    fn ensure(&self, path: &Path, links_left: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match openat2(self.as_fd(), relative(path), flags, CONFINED) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let name = path.file_name().ok_or(Errno::NOENT)?;
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.ensure(parent_path, links_left)?;
        match enter(parent.as_fd(), name) {
            // A link to what is missing: make its target, still inside the root.
            Err(Errno::LOOP) if links_left > 0 => {
                let target = link_target(parent.as_fd(), name)?;
                self.ensure(&clean(&parent_path.join(target)), links_left - 1)
            }
            entered => entered,
        }
    }
}

/// What a link says; `EINVAL` where there is none. Links of procfs only look like such.
fn link_target(directory: BorrowedFd<'_>, name: &OsStr) -> Result<PathBuf, Errno> {
    if rustix::fs::fstatfs(directory)?.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Err(Errno::LOOP);
    }
    let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
    Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
}

/// Enters or makes one directory.
fn enter(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    openat2(parent, Path::new(name), OFlags::PATH | OFlags::DIRECTORY, ONE_STEP)
}

/// Makes an empty file that must not exist.
fn create_file(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(0o644);
    rustix::fs::openat2(parent, Path::new(name), flags, mode, ONE_STEP)
}

/// The type of what a descriptor refers to.
pub(crate) fn file_type(fd: BorrowedFd<'_>) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Whether a name in a directory exists, as what, without following it.
pub(crate) fn entry(
    directory: BorrowedFd<'_>,
    name: &OsStr,
) -> Result<Option<rustix::fs::Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// openat2 repeats a lookup itself a few times when the tree is renamed under it, then says EAGAIN.
fn openat2(
    directory: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    for _ in 0..RETRY_LIMIT {
        match rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn relative(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// The path without `.`, `..` and its leading slash, by its text alone; `..` stops at the root.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(directory: &Path) -> RootFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        RootFd(rustix::fs::open(directory, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn a_path_is_cleaned_by_its_text_and_stops_at_the_root() {
        assert_eq!(clean(Path::new("/a/./b/../c")), Path::new("a/c"));
        assert_eq!(clean(Path::new("/../../etc")), Path::new("etc"));
        assert_eq!(clean(Path::new("/")), Path::new(""));
    }

    #[test]
    fn links_out_of_the_root_lead_into_it() {
        let outside = tempfile::tempdir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        symlink(outside.path(), directory.path().join("escape")).unwrap();
        symlink("../../../..", directory.path().join("up")).unwrap();
        let root = root(directory.path());
        root.ensure_directory(Path::new("/escape/made")).unwrap();
        root.ensure_file(Path::new("/up/file")).unwrap();
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
        let inside = outside.path().strip_prefix("/").unwrap();
        assert!(directory.path().join(inside).join("made").is_dir());
        assert!(directory.path().join("file").is_file());
    }

    #[test]
    fn a_file_is_made_where_a_dangling_link_leads_inside_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("etc")).unwrap();
        symlink("/tmp/foo/bar", at("jump")).unwrap();
        symlink("/jump/baz/hosts", at("etc/hosts")).unwrap();
        symlink(outside.path().join("made"), at("escape")).unwrap();
        symlink("../../../up", at("etc/relative")).unwrap();
        symlink("/loop", at("loop")).unwrap();
        let root = root(directory.path());
        for path in ["/etc/hosts", "/escape", "/etc/relative"] {
            let made = root.ensure_file(Path::new(path)).unwrap();
            assert_eq!(file_type(made.as_fd()), Ok(FileType::RegularFile), "{path}");
            // A second time it is there.
            root.ensure_file(Path::new(path)).unwrap();
        }
        assert!(at("tmp/foo/bar/baz/hosts").is_file() && at("up").is_file());
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
        let inside = outside.path().strip_prefix("/").unwrap();
        assert!(directory.path().join(inside).join("made").is_file());
        assert_eq!(root.ensure_file(Path::new("/loop")).unwrap_err(), Errno::LOOP);
        assert_eq!(root.ensure_file(Path::new("/etc")).unwrap_err(), Errno::ISDIR);
        assert_eq!(root.ensure_file(Path::new("/")).unwrap_err(), Errno::ISDIR);
    }

    #[test]
    fn a_link_is_no_ordinary_directory() {
        let directory = tempfile::tempdir().unwrap();
        symlink("real", directory.path().join("proc")).unwrap();
        let root = root(directory.path());
        assert_eq!(root.ensure_ordinary_directory(Path::new("/proc")).unwrap_err(), Errno::LOOP);
        assert!(root.ensure_ordinary_directory(Path::new("/sys")).is_ok());
    }

    #[test]
    fn a_loop_of_links_ends() {
        let directory = tempfile::tempdir().unwrap();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        let root = root(directory.path());
        assert_eq!(root.ensure_directory(Path::new("/a/c")).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn magic_links_are_never_followed() {
        let root = root(Path::new("/"));
        let path = Path::new("/proc/self/fd/0");
        assert_eq!(root.find(path).unwrap_err(), Errno::LOOP);
    }
}
