//! Removes directory trees that a container may have made: links are not followed, mounts are not
//! entered, and no depth or width exhausts descriptors or the stack (CVE-2017-1002102).
//!
//! A mount inside the tree is an error, and what is below it stays. Kernel: 5.6 for `openat2`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat,
};
use rustix::io::Errno;

/// A directory whose entries are being removed. Only the innermost one is open.
struct Level {
    /// Its name in the directory above.
    name: CString,
    identity: (u64, u64),
    /// Directories in it that are not empty.
    left: Vec<CString>,
}

/// Removes a directory tree or a file; what is gone already is no error. Blocking.
///
/// # Errors
/// `EXDEV` when something is mounted inside.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match remove(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(super::at(path, error.into())),
    }
}

fn remove(path: &Path) -> Result<(), Errno> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        outcome => return outcome,
    }
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        outcome => return outcome,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty())?;
    // A mount at the root itself: the parent is on another mount than the root.
    if is_mount_root(root.as_fd())? {
        return Err(Errno::XDEV);
    }
    empty(root)?;
    unlinkat(CWD, path, AtFlags::REMOVEDIR)
}

fn is_mount_root(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    use rustix::fs::{StatxAttributes, StatxFlags, statx};
    let found = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn empty(root: OwnedFd) -> Result<(), Errno> {
    let mut current = root;
    let name = CString::from(c".");
    let mut levels = vec![enter(current.as_fd(), name)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH;
            current = openat2(&current, &name, flags, Mode::empty(), resolve)?;
            levels.push(enter(current.as_fd(), name)?);
            continue;
        }
        let Some(done) = levels.pop() else { break };
        let Some(above) = levels.last() else { break };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat(&current, c"..", flags, Mode::empty())?;
        // Somebody moved the directory away: what is above it is not ours.
        if identity(parent.as_fd())? != above.identity {
            return Err(Errno::STALE);
        }
        current = parent;
        unlinkat(&current, &done.name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Removes what can be removed at once and notes the directories that are not empty.
fn enter(dir: BorrowedFd<'_>, name: CString) -> Result<Level, Errno> {
    let mut left = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match remove_entry(dir, name, entry.file_type()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => left.push(name.to_owned()),
            Err(Errno::BUSY) => return Err(Errno::XDEV),
            Err(error) => return Err(error),
        }
    }
    Ok(Level { name, identity: identity(dir)?, left })
}

fn remove_entry(dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<(), Errno> {
    if kind == FileType::Directory {
        return unlinkat(dir, name, AtFlags::REMOVEDIR);
    }
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(dir, name, AtFlags::REMOVEDIR),
        outcome => outcome,
    }
}

fn identity(dir: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    let found = rustix::fs::fstat(dir)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn removing_a_tree_does_not_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("canary"), b"x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/file"), b"x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("nowhere", tree.join("dangling")).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("canary").exists());
        symlink(&outside, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(outside.join("canary").exists() && !tree.is_symlink());
    }

    #[test]
    fn a_tree_deeper_than_a_path_or_the_descriptors_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut current = openat(CWD, &tree, flags, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&current, c"deeper", Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::mkdirat(&current, c"side", Mode::from_raw_mode(0o700)).unwrap();
            current = openat(&current, c"deeper", flags, Mode::empty()).unwrap();
        }
        drop(current);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
