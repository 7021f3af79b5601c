//! A cgroup's directory by descriptor: its files read, written and waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, Uid};
use rustix::io::Errno;

use crate::clock;

/// An open cgroup directory.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Directory> for OwnedFd {
    fn from(directory: Directory) -> Self {
        directory.0
    }
}

fn read_all(file: &OwnedFd) -> Result<String, Errno> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match rustix::io::read(file, &mut chunk)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            count => text.extend_from_slice(&chunk[..count]),
        }
    }
}

/// What an open file holds now; who polls it is woken by changes from here on.
pub(super) fn reread(file: &OwnedFd) -> Result<String, Errno> {
    rustix::fs::seek(file, SeekFrom::Start(0))?;
    read_all(file)
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map(Self)
    }

    /// Opens a cgroup below this one; `name` is one component.
    pub(super) fn below(&self, name: &str) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.0, name, flags, Mode::empty()).map(Self)
    }

    fn file(&self, name: &str, access: OFlags) -> Result<OwnedFd, Errno> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.0, name, flags, Mode::empty())
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let file = self.file(name, OFlags::WRONLY)?;
        rustix::io::write(&file, value.as_bytes()).map(drop)
    }

    pub(super) fn read(&self, name: &str) -> Result<String, Errno> {
        read_all(&self.file(name, OFlags::RDONLY)?)
    }

    /// The number behind `key` in a file of `key number` lines.
    pub(super) fn read_key(&self, name: &str, key: &str) -> Result<Option<u64>, Errno> {
        Ok(find_key(&self.read(name)?, key))
    }

    /// Gives it to a user, with those of `files` that it has.
    pub(super) fn give_to(&self, uid: u32, files: &str) -> Result<(), Errno> {
        let owner = Some(Uid::from_raw(uid));
        rustix::fs::fchown(&self.0, owner, None)?;
        for name in files.split_whitespace() {
            match rustix::fs::chownat(&self.0, name, owner, None, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn open_to_read(&self, name: &str) -> Result<OwnedFd, Errno> {
        self.file(name, OFlags::RDONLY)
    }

    /// The names of the cgroups below.
    pub(super) fn children(&self) -> Result<Vec<String>, Errno> {
        self.names(FileType::Directory)
    }

    /// The names of its files.
    pub(super) fn files(&self) -> Result<Vec<String>, Errno> {
        self.names(FileType::RegularFile)
    }

    fn names(&self, kind: FileType) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if entry.file_type() == kind && name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// Waits until `key` of `cgroup.events` is `value`; `false` when `deadline_ms` of the monotonic
    /// clock comes first. The kernel tells of changes by POLLPRI.
    pub(super) fn wait_event(
        &self,
        key: &str,
        value: u64,
        deadline_ms: u64,
    ) -> Result<bool, Errno> {
        let file = self.file("cgroup.events", OFlags::RDONLY)?;
        loop {
            if find_key(&reread(&file)?, key) == Some(value) {
                return Ok(true);
            }
            let left = deadline_ms.saturating_sub(clock::monotonic_ms());
            if left == 0 {
                return Ok(false);
            }
            let timeout = Timespec {
                tv_sec: (left / 1000) as i64,
                tv_nsec: (left % 1000 * 1_000_000) as i64,
            };
            match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The number behind `key` in lines of `key number`.
pub(super) fn find_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_whole_word_and_its_value_a_number() {
        let text = "oom_kill_more 7\noom 2\noom_kill 3\nbad x\n";
        assert_eq!(find_key(text, "oom_kill"), Some(3));
        assert_eq!(find_key(text, "oom"), Some(2));
        assert_eq!(find_key(text, "bad"), None);
        assert_eq!(find_key(text, "absent"), None);
    }
}
