//! `fsGroup`: a volume belongs to the pod's group.
//!
//! Files become readable and writable for the group, directories pass it on (setgid). The walk goes by
//! descriptors, never through a link or into another mount, and several threads share it: on a volume
//! of many files the pod waits for nothing else.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;

use super::directory;

const FILE_MASK: u32 = 0o660;
const DIRECTORY_MASK: u32 = 0o2770;
/// Directories that wait for a thread; each holds a descriptor.
const MAX_PENDING: usize = 256;
/// With so many waiting, a thread walks on by itself, a descriptor each level; deeper is refused.
const MAX_DEPTH: usize = 256;
const MAX_THREADS: usize = 8;

/// When existing files change hands (`fsGroupChangePolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChangePolicy {
    /// Each time.
    #[default]
    Always,
    /// Only if the volume's top directory is not the group's yet.
    OnRootMismatch,
}

/// The pod's group for volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsGroup {
    /// The group's id.
    pub gid: u32,
    /// When existing files change hands.
    pub policy: ChangePolicy,
}

/// Whether a volume's top directory is the group's.
pub(super) fn root_matches(directory: impl AsFd, group: &FsGroup) -> io::Result<bool> {
    let status = rustix::fs::fstat(directory)?;
    Ok(status.st_gid == group.gid && status.st_mode & DIRECTORY_MASK == DIRECTORY_MASK)
}

/// Gives a directory and everything in it to the group.
pub(super) fn give_to_group(directory: impl AsFd, group: &FsGroup) -> io::Result<()> {
    if group.policy == ChangePolicy::OnRootMismatch && root_matches(&directory, group)? {
        return Ok(());
    }
    let gid = Gid::from_raw(group.gid);
    Walk::new(gid).run(directory.as_fd().try_clone_to_owned()?)?;
    // The top comes last: a walk that was cut short starts again.
    Ok(change_directory(&directory, gid)?)
}

fn change_directory(directory: impl AsFd, gid: Gid) -> Result<(), Errno> {
    let mode = rustix::fs::fstat(&directory)?.st_mode;
    rustix::fs::fchown(&directory, None, Some(gid))?;
    let mode = Mode::from_raw_mode((mode & 0o7777) | DIRECTORY_MASK);
    rustix::fs::fchmod(&directory, mode)
}

/// A walk that threads share.
struct Walk {
    gid: Gid,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pending: Vec<OwnedFd>,
    /// Threads that are in a directory, which may have more.
    busy: usize,
    failure: Option<io::Error>,
}

impl Walk {
    fn new(gid: Gid) -> Self {
        Self { gid, state: Mutex::default(), changed: Condvar::new() }
    }

    fn run(self, top: OwnedFd) -> io::Result<()> {
        if is_empty(&top)? {
            return Ok(());
        }
        self.state().pending.push(top);
        // What waits is a disk as often as a processor.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 1..(processors * 2).min(MAX_THREADS) {
                scope.spawn(|| self.work());
            }
            self.work();
        });
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.failure.map_or(Ok(()), Err)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes directories until there are none, or something failed.
    fn work(&self) {
        let mut state = self.state();
        while state.failure.is_none() {
            let Some(directory) = state.pending.pop() else {
                if state.busy == 0 {
                    break;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            drop(state);
            let outcome = self.visit(&directory, 0);
            drop(directory);
            state = self.state();
            state.busy -= 1;
            if let Err(error) = outcome {
                state.failure.get_or_insert(error);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Changes what is in a directory. What vanishes meanwhile needs no change.
    fn visit(&self, directory: &OwnedFd, depth: usize) -> io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match self.change(directory, name) {
                Ok(Some(inner)) => self.descend(inner, depth)?,
                Ok(None) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn descend(&self, directory: OwnedFd, depth: usize) -> io::Result<()> {
        let mut state = self.state();
        if state.pending.len() < MAX_PENDING {
            state.pending.push(directory);
            drop(state);
            self.changed.notify_one();
            return Ok(());
        }
        drop(state);
        match depth < MAX_DEPTH {
            true => self.visit(&directory, depth + 1),
            false => Err(io::Error::other("the directory tree is too deep")),
        }
    }

    /// Changes one entry; returns it if it is a directory.
    fn change(&self, parent: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = directory::CONFINED.difference(rustix::fs::ResolveFlags::NO_SYMLINKS);
        let opened = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
            FileType::Directory => {
                let inner = directory::open_entry(parent, name)?;
                change_directory(&inner, self.gid)?;
                return Ok(Some(inner));
            }
            FileType::Symlink => chown(&opened, self.gid)?,
            _ => change_file(&opened, self.gid)?,
        }
        Ok(None)
    }
}

fn is_empty(directory: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn chown(opened: &OwnedFd, gid: Gid) -> Result<(), Errno> {
    rustix::fs::chownat(opened, "", None, Some(gid), AtFlags::EMPTY_PATH)
}

/// Changes a file through its descriptor's entry in `/proc`, as `fchmodat2` needs Linux 6.6.
fn change_file(opened: &OwnedFd, gid: Gid) -> Result<(), Errno> {
    let mode = rustix::fs::fstat(opened)?.st_mode;
    chown(opened, gid)?;
    let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let mode = Mode::from_raw_mode((mode & 0o7777) | FILE_MASK);
    rustix::fs::chmod(path, mode)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn modes_reach_everything_but_what_links_point_to() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        let outside = root.path().join("outside");
        fs::create_dir_all(volume.join("d")).unwrap();
        for file in [volume.join("d/f"), volume.join("x"), outside.clone()] {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::set_permissions(volume.join("x"), fs::Permissions::from_mode(0o701)).unwrap();
        symlink(&outside, volume.join("link")).unwrap();
        symlink(root.path(), volume.join("d/up")).unwrap();
        let group =
            FsGroup { gid: rustix::process::getegid().as_raw(), policy: ChangePolicy::Always };
        let opened = directory::open_path(&volume).unwrap();
        assert!(!root_matches(&opened, &group).unwrap());
        give_to_group(&opened, &group).unwrap();
        let mode = |path: std::path::PathBuf| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(volume.join("d/f")) & 0o7777, 0o660);
        assert_eq!(mode(volume.join("x")) & 0o7777, 0o761);
        assert_eq!(mode(volume.join("d")) & 0o2770, 0o2770);
        assert_eq!(mode(outside) & 0o7777, 0o600);
        assert!(root_matches(&opened, &group).unwrap());
    }

    #[test]
    fn a_wide_tree_is_changed_to_the_last_file_and_a_failure_is_told() {
        let root = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        // More directories at once than may wait.
        for index in 0..MAX_PENDING * 2 {
            let place = root.path().join(format!("{index}/a/b"));
            fs::create_dir_all(&place).unwrap();
            files.push(place.join("f"));
        }
        for file in &files {
            fs::write(file, "").unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let group =
            FsGroup { gid: rustix::process::getegid().as_raw(), policy: ChangePolicy::Always };
        let opened = directory::open_path(root.path()).unwrap();
        give_to_group(&opened, &group).unwrap();
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode();
        let wrong: Vec<_> = files.iter().filter(|file| mode(file) & 0o7777 != 0o660).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let directories = files.iter().map(|file| file.parent().unwrap());
        assert!(directories.into_iter().all(|place| mode(place) & 0o2770 == 0o2770));
        assert!(root_matches(&opened, &group).unwrap());
        // A group that does not exist cannot be given, and the top stays as it was.
        let nobody = FsGroup { gid: u32::MAX - 1, policy: ChangePolicy::Always };
        if !rustix::process::geteuid().is_root() {
            assert!(give_to_group(&opened, &nobody).is_err());
            assert!(!root_matches(&opened, &nobody).unwrap());
        }
    }

    #[test]
    fn a_long_chain_of_directories_is_walked_to_its_end() {
        let root = tempfile::tempdir().unwrap();
        let chain: std::path::PathBuf = std::iter::repeat_n("d", 3 * MAX_DEPTH).collect();
        fs::create_dir_all(root.path().join(&chain)).unwrap();
        let group =
            FsGroup { gid: rustix::process::getegid().as_raw(), policy: ChangePolicy::Always };
        give_to_group(directory::open_path(root.path()).unwrap(), &group).unwrap();
        let end = fs::metadata(root.path().join(&chain)).unwrap();
        assert_eq!(end.permissions().mode() & 0o2770, 0o2770);
    }

    #[test]
    fn a_root_that_matches_saves_the_walk() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("f");
        let group = FsGroup {
            gid: rustix::process::getegid().as_raw(),
            policy: ChangePolicy::OnRootMismatch,
        };
        let opened = directory::open_path(root.path()).unwrap();
        give_to_group(&opened, &group).unwrap();
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        give_to_group(&opened, &group).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}
