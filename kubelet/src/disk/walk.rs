//! How much there is below a directory that a pod may change meanwhile, and may have made to exhaust
//! whoever looks at it.
//!
//! By file descriptor: links are not followed, mounts are not entered, and a directory that is moved away
//! during the walk leads nowhere else. One directory is open at a time. Bounds, whatever a pod makes:
//! 65,536 levels, as many hard-linked files told apart (beyond, each link counts its share of the file) and
//! 4,194,304 entries; so less than 10 MiB of memory. A tree that goes beyond is told as what was
//! seen of it, which is [`Measured::Least`]. Kernel: 5.8 for `openat2` and `STATX_ATTR_MOUNT_ROOT`.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxAttributes,
    StatxFlags, openat, openat2, seek, statx,
};
use rustix::io::Errno;

use super::Used;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);
/// How much of a directory is read at once.
const BUFFER_BYTES: usize = 32 << 10;
/// Down to here the subdirectories of a whole buffer are remembered; below, one at a time.
const WIDE_LEVELS: usize = 64;
/// How often a walk begins anew because somebody moved a directory.
const ATTEMPTS: u32 = 3;
/// After so many entries the walker may rest.
const STRIDE: u64 = 256;
/// Shares of files are counted in these parts.
const SHARE: u32 = 20;

/// Within what a walk stays.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The most entries that are looked at.
    pub(super) entries: u64,
    /// The most levels.
    pub(super) levels: usize,
    /// The most files with several links that are told apart.
    pub(super) links: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: 1 << 22, levels: 1 << 16, links: 1 << 16 }
    }
}

/// What a walk saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measured {
    /// All of it.
    Whole(Used),
    /// There is more: the tree is larger than the bounds, or did not hold still.
    Least(Used),
}

/// Called now and then; may sleep, and ends the walk.
pub(super) type Pace<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

/// Measures a directory that nobody but the kubelet can replace. Blocking.
///
/// # Errors
/// When the directory is not there, or is a mount (`EXDEV`); `EINTR` when the walk was ended.
pub(super) fn measure(path: &Path, bounds: Bounds, pace: Pace<'_>) -> io::Result<Measured> {
    let mut seen = Used::default();
    for _ in 0..ATTEMPTS {
        let mut walk = Walk::begin(path, bounds, &mut *pace)?;
        match walk.run() {
            Ok(()) => return Ok(Measured::Whole(walk.sum.used())),
            Err(Stop::Ended) => return Err(Errno::INTR.into()),
            Err(Stop::Bounds) => return Ok(Measured::Least(walk.sum.used())),
            Err(Stop::Moved) => seen = most(seen, walk.sum.used()),
            Err(Stop::Failed(error)) => return Err(error.into()),
        }
    }
    Ok(Measured::Least(seen))
}

fn most(a: Used, b: Used) -> Used {
    Used { bytes: a.bytes.max(b.bytes), inodes: a.inodes.max(b.inodes) }
}

/// Why a walk does not go on.
enum Stop {
    /// The walker was told so.
    Ended,
    /// The tree is larger than the bounds.
    Bounds,
    /// A directory was moved away from where it was entered.
    Moved,
    /// The file system failed.
    Failed(Errno),
}

/// A directory that is being counted.
struct Level {
    identity: (u64, u64),
    /// From where the directory is read on.
    position: u64,
    /// Whether it has been read to its end.
    is_read: bool,
    /// Subdirectories that were read and not entered.
    left: Vec<CString>,
}

struct Walk<'a> {
    /// The innermost directory, the only one that is open.
    current: OwnedFd,
    levels: Vec<Level>,
    sum: Sum,
    entries: u64,
    bounds: Bounds,
    pace: Pace<'a>,
}

impl<'a> Walk<'a> {
    fn begin(path: &Path, bounds: Bounds, pace: Pace<'a>) -> io::Result<Self> {
        let current = openat(CWD, path, DIRECTORY, Mode::empty())?;
        let facts = facts(current.as_fd(), c"")?;
        if is_mount(&facts) {
            return Err(Errno::XDEV.into());
        }
        let mut sum = Sum::default();
        sum.add(&facts, bounds.links);
        let levels = vec![Level::of(&facts)];
        Ok(Self { current, levels, sum, entries: 1, bounds, pace })
    }

    fn run(&mut self) -> Result<(), Stop> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.left.pop() {
                self.enter(&name)?;
            } else if level.is_read {
                self.leave()?;
            } else {
                self.read(&mut buffer)?;
            }
        }
        Ok(())
    }

    /// Counts the entries of one buffer, and notes the directories among them.
    fn read(&mut self, buffer: &mut [MaybeUninit<u8>]) -> Result<(), Stop> {
        let room = if self.levels.len() > WIDE_LEVELS { 1 } else { usize::MAX };
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        seek(&self.current, SeekFrom::Start(level.position)).map_err(Stop::Failed)?;
        let mut entries = RawDir::new(&self.current, buffer);
        loop {
            let entry = match entries.next() {
                Some(Ok(entry)) => entry,
                // A directory that was removed has no entries.
                None | Some(Err(Errno::NOENT)) => {
                    level.is_read = true;
                    return Ok(());
                }
                Some(Err(error)) => return Err(Stop::Failed(error)),
            };
            level.position = entry.next_entry_cookie();
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entries += 1;
                let kind = self.sum.entry(
                    self.current.as_fd(),
                    (name, entry.file_type()),
                    self.bounds.links,
                );
                if kind.map_err(Stop::Failed)? == Some(FileType::Directory) {
                    level.left.push(name.to_owned());
                }
                if self.entries.is_multiple_of(STRIDE) && (self.pace)().is_break() {
                    return Err(Stop::Ended);
                }
                if self.entries > self.bounds.entries {
                    return Err(Stop::Bounds);
                }
            }
            if entries.is_buffer_empty() || level.left.len() >= room {
                return Ok(());
            }
        }
    }

    fn enter(&mut self, name: &CStr) -> Result<(), Stop> {
        if self.levels.len() >= self.bounds.levels {
            return Err(Stop::Bounds);
        }
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let opened = match openat2(&self.current, name, DIRECTORY, Mode::empty(), resolve) {
            // A mount, or not there any more.
            Err(Errno::XDEV | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            opened => opened.map_err(Stop::Failed)?,
        };
        let facts = facts(opened.as_fd(), c"").map_err(Stop::Failed)?;
        self.sum.add(&facts, self.bounds.links);
        self.levels.push(Level::of(&facts));
        self.current = opened;
        Ok(())
    }

    /// Goes back to the directory above, if that is still the one that this was entered from.
    fn leave(&mut self) -> Result<(), Stop> {
        self.levels.pop();
        let Some(above) = self.levels.last() else { return Ok(()) };
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let parent = match openat(&self.current, c"..", flags, Mode::empty()) {
            Err(Errno::NOENT) => return Err(Stop::Moved),
            parent => parent.map_err(Stop::Failed)?,
        };
        if Level::of(&facts(parent.as_fd(), c"").map_err(Stop::Failed)?).identity != above.identity
        {
            return Err(Stop::Moved);
        }
        self.current = parent;
        Ok(())
    }
}

impl Level {
    fn of(facts: &Statx) -> Self {
        let device = u64::from(facts.stx_dev_major) << 32 | u64::from(facts.stx_dev_minor);
        let identity = (device, facts.stx_ino);
        Self { identity, position: 0, is_read: false, left: Vec::new() }
    }
}

fn is_mount(facts: &Statx) -> bool {
    facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

/// Facts of an entry, or of the directory itself where the name is empty.
fn facts(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::INO | StatxFlags::BLOCKS;
    statx(dir, name, flags, wanted)
}

/// What was counted.
#[derive(Debug, Default)]
struct Sum {
    whole: Used,
    /// Bytes and inodes of files that were counted by their links, in parts of 2^[`SHARE`].
    shares: (u128, u128),
    /// Files with several links that were counted.
    linked: HashSet<u64>,
}

impl Sum {
    /// Counts an entry that is no directory. What kind it is; `None` where it is gone, or a mount.
    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        (name, kind): (&CStr, FileType),
        most_links: usize,
    ) -> Result<Option<FileType>, Errno> {
        if kind == FileType::Directory {
            return Ok(Some(kind));
        }
        let facts = match facts(dir, name) {
            Err(Errno::NOENT) => return Ok(None),
            facts => facts?,
        };
        if is_mount(&facts) {
            return Ok(None);
        }
        let kind = FileType::from_raw_mode(facts.stx_mode.into());
        // A file system need not tell what an entry is, and the entry may have been exchanged.
        if kind != FileType::Directory {
            self.add(&facts, most_links);
        }
        Ok(Some(kind))
    }

    fn add(&mut self, facts: &Statx, most_links: usize) {
        let bytes = facts.stx_blocks.saturating_mul(512);
        let is_directory = FileType::from_raw_mode(facts.stx_mode.into()) == FileType::Directory;
        if facts.stx_nlink > 1 && !is_directory {
            if self.linked.contains(&facts.stx_ino) {
                return;
            }
            if self.linked.len() >= most_links {
                let links = u128::from(facts.stx_nlink);
                self.shares.0 += (u128::from(bytes) << SHARE) / links;
                self.shares.1 += (1 << SHARE) / links;
                return;
            }
            self.linked.insert(facts.stx_ino);
        }
        self.whole = self.whole + Used { bytes, inodes: 1 };
    }

    fn used(&self) -> Used {
        // To the next whole one: the parts of a file's links may fall short of it.
        let whole = |parts: u128| u64::try_from(parts.div_ceil(1 << SHARE)).unwrap_or(u64::MAX);
        self.whole + Used { bytes: whole(self.shares.0), inodes: whole(self.shares.1) }
    }
}

#[cfg(test)]
mod tests;
