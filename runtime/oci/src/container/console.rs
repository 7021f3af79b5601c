//! A container's terminal: made in the container's own devpts, its master sent to the shim.
//!
//! The slave is taken from the master's descriptor (TIOCGPTPEER), never looked up by path, and bound
//! on `/dev/console` by descriptor (CVE-2025-52565, CVE-2026-88264).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::pty::OpenptFlags;

use super::mounts::{copy, move_onto};
use super::rootfd::{RootFd, entry, file_type};
use super::{Doing, Error, Result};

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// The two sides of a terminal.
pub(super) struct Console {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// Makes a terminal in the devpts at `/dev/pts`.
pub(super) fn open(root: &RootFd) -> Result<Console> {
    let operation = || "make a terminal";
    let path = Path::new("/dev/pts/ptmx");
    let place = root.find(path).doing(operation)?;
    let stat = rustix::fs::fstat(&place).doing(operation)?;
    let magic = rustix::fs::fstatfs(&place).doing(operation)?.f_type as u64;
    let is_ptmx = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(5, 2)
        && magic == DEVPTS_MAGIC;
    if !is_ptmx {
        return Err(Error::invalid("process.terminal", "there is no devpts at /dev/pts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = root.open(path, flags).doing(operation)?;
    rustix::pty::unlockpt(&master).doing(operation)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).doing(operation)?;
    Ok(Console { master, slave })
}

/// Binds the slave on `/dev/console`.
pub(super) fn bind(root: &RootFd, slave: &OwnedFd) -> Result<()> {
    let operation = || "mount the terminal at /dev/console";
    let dev = root.ensure_directory(Path::new("dev")).doing(operation)?;
    let name = OsStr::new("console");
    if let Some(stat) = entry(dev.as_fd(), name).doing(operation)?
        && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
    {
        return Err(Errno::LOOP).doing(operation);
    }
    let dev = RootFd::from(dev);
    let place = dev.ensure_file(Path::new(name)).doing(operation)?;
    match file_type(place.as_fd()).doing(operation)? {
        FileType::RegularFile | FileType::CharacterDevice => {}
        _ => return Err(Errno::INVAL).doing(operation),
    }
    let cover = copy(slave.as_fd(), OpenTreeFlags::empty()).doing(operation)?;
    move_onto(cover.as_fd(), place.as_fd()).doing(operation)
}

/// Makes a terminal the controlling one of this process' session, which it leads.
pub(super) fn control(terminal: BorrowedFd<'_>) -> Result<()> {
    rustix::process::ioctl_tiocsctty(terminal).doing(|| "take the terminal")
}

/// Makes the slave the standard streams.
pub(super) fn take(slave: &OwnedFd) -> Result<()> {
    rustix::stdio::dup2_stdin(slave).doing(|| "set standard input")?;
    rustix::stdio::dup2_stdout(slave).doing(|| "set standard output")?;
    rustix::stdio::dup2_stderr(slave).doing(|| "set standard error")
}
