//! `fsGroup`: a volume belongs to the pod's group.
//!
//! Files become readable and writable for the group, directories pass it on (setgid). The walk goes by
//! descriptors, never through a link or into another mount.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags};

use super::directory;

const FILE_MASK: u32 = 0o660;
const DIRECTORY_MASK: u32 = 0o2770;
/// Deeper trees are refused: each level holds a descriptor.
const MAX_DEPTH: usize = 256;

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
    walk(&directory, Gid::from_raw(group.gid), 0)?;
    // The top comes last: a walk that was cut short starts again.
    change_directory(&directory, Gid::from_raw(group.gid))
}

fn change_directory(directory: impl AsFd, gid: Gid) -> io::Result<()> {
    let mode = rustix::fs::fstat(&directory)?.st_mode;
    rustix::fs::fchown(&directory, None, Some(gid))?;
    let mode = Mode::from_raw_mode((mode & 0o7777) | DIRECTORY_MASK);
    Ok(rustix::fs::fchmod(&directory, mode)?)
}

fn walk(directory: impl AsFd, gid: Gid, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the directory tree is too deep"));
    }
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(
            &directory,
            name,
            flags,
            Mode::empty(),
            directory::CONFINED.difference(rustix::fs::ResolveFlags::NO_SYMLINKS),
        )?;
        match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
            FileType::Directory => {
                let inner = directory::open_entry(&directory, name)?;
                walk(&inner, gid, depth + 1)?;
                change_directory(&inner, gid)?;
            }
            FileType::Symlink => chown(&opened, gid)?,
            _ => change_file(&opened, gid)?,
        }
    }
    Ok(())
}

fn chown(opened: &OwnedFd, gid: Gid) -> io::Result<()> {
    Ok(rustix::fs::chownat(opened, "", None, Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Changes a file through its descriptor's entry in `/proc`, as `fchmodat2` needs Linux 6.6.
fn change_file(opened: &OwnedFd, gid: Gid) -> io::Result<()> {
    let mode = rustix::fs::fstat(opened)?.st_mode;
    chown(opened, gid)?;
    let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let mode = Mode::from_raw_mode((mode & 0o7777) | FILE_MASK);
    Ok(rustix::fs::chmod(path, mode)?)
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
