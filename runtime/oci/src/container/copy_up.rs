//! `tmpcopyup`: what a directory of the image holds, copied into the tmpfs that is to cover it.
//!
//! Works on descriptors below the two directories, follows no link, and enters no other mount. Owner,
//! mode, times and links are kept; extended attributes are not.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

/// Deeper trees end in an error, not in the end of the stack.
const MAX_DEPTH: u32 = 256;
const CHUNK_BYTES: usize = 64 << 10;
const ONE_STEP: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Copies the content of one directory into another.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, ".", directory, Mode::empty())?;
    let to = rustix::fs::openat(to, ".", directory, Mode::empty())?;
    copy_directory(&from, &to, MAX_DEPTH)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: u32) -> Result<(), Errno> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: u32) -> Result<(), Errno> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let open = |at: &OwnedFd, flags| {
        rustix::fs::openat2(at, name, flags | OFlags::CLOEXEC, Mode::empty(), ONE_STEP)
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            return copy_directory(&open(from, flags)?, &open(to, flags)?, depth);
        }
        FileType::RegularFile => {
            // Should it have become something else meanwhile, opening it must not wait for anybody.
            let source = open(from, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = rustix::fs::openat2(to, name, flags, Mode::RUSR, ONE_STEP)?;
            copy_bytes(source.as_fd(), target.as_fd())?;
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(link, to, name)?;
        }
        _ => rustix::fs::mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?,
    }
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), flags)?;
    if kind != FileType::Symlink {
        // The file system is not attached yet: nobody can put a link in this one's place.
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(to, name, &times(&stat), flags)
}

fn copy_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut chunk[..]))?;
        let mut rest = &chunk[..count];
        if count == 0 {
            return Ok(());
        }
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(to, rest))?;
            rest = &rest[written..];
        }
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_tree_is_copied_with_links_modes_and_times_and_nothing_outside_it() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("a/b")).unwrap();
        std::fs::write(from.path().join("a/b/file"), "x".repeat(100_000)).unwrap();
        let mode = std::fs::Permissions::from_mode(0o4751);
        std::fs::set_permissions(from.path().join("a/b/file"), mode).unwrap();
        symlink("/etc/passwd", from.path().join("link")).unwrap();
        let open = |path| rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
        copy(open(from.path()).as_fd(), open(to.path()).as_fd()).unwrap();
        let copied = std::fs::metadata(to.path().join("a/b/file")).unwrap();
        let original = std::fs::metadata(from.path().join("a/b/file")).unwrap();
        assert_eq!((copied.mode(), copied.len()), (original.mode(), 100_000));
        assert_eq!(copied.mtime(), original.mtime());
        let link = std::fs::read_link(to.path().join("link")).unwrap();
        assert_eq!(link.to_str(), Some("/etc/passwd"));
    }
}
