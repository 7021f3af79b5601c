//! Standard streams of a process: pipes to its keeper, the keeper's own, or a terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;

use super::birth::Terminal;
use super::channel::{self, Message};
use super::rootfd::RootFd;
use super::{Doing, Result, console};
use crate::protocol;

/// Where the standard streams of a process come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stdio {
    /// Pipes for what it writes; it reads from the null device.
    Output,
    /// Pipes for all three.
    Pipes,
    /// Pipes where wanted, else the null device.
    Wanted(protocol::Streams),
    /// Those of the caller.
    Inherited,
    /// A terminal of the container's own devpts; the master comes over the channel.
    Terminal(Option<Winsize>),
}

/// The keeper's ends of the standard streams.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The process' ends.
pub(super) enum Ends {
    Descriptors(Box<[OwnedFd; 3]>),
    Inherited,
    Terminal(Option<Winsize>),
}

/// Whether a terminal is the container's console too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is bound on `/dev/console`.
    Console,
    /// The same, and a sibling takes control of it.
    ConsoleOfSibling,
    /// It is only the process' own.
    Elsewhere,
    /// It is that of a sibling which this process clones in the end, and which takes control of it.
    OfSibling,
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe")
}

fn null(access: OFlags) -> Result<OwnedFd> {
    let flags = access | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty()).doing(|| "open the null device")
}

/// The null device that the container itself has at `/dev/null`, if it has one there.
///
/// What a process has open of a mount that is not its own cannot be checkpointed (criu(8)). A node that
/// is another device by the time it is opened is not taken.
fn null_of(root: &RootFd, access: OFlags) -> Option<OwnedFd> {
    let path = Path::new("/dev/null");
    let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let found = root.find(path).ok().filter(|place| is_null(place.as_fd()) == Ok(true));
    let opened = found.and_then(|_| root.open(path, flags).ok())?;
    let is_blocking = rustix::io::ioctl_fionbio(&opened, false).is_ok();
    (is_blocking && is_null(opened.as_fd()) == Ok(true)).then_some(opened)
}

fn is_null(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3))
}

/// Makes what the streams need before the clone.
pub(super) fn make(stdio: Stdio) -> Result<(Streams, Ends)> {
    let wanted = match stdio {
        Stdio::Output => protocol::Streams { stdin: false, stdout: true, stderr: true },
        Stdio::Pipes => protocol::Streams { stdin: true, stdout: true, stderr: true },
        Stdio::Wanted(streams) => streams,
        Stdio::Inherited => return Ok((Streams::default(), Ends::Inherited)),
        Stdio::Terminal(size) => return Ok((Streams::default(), Ends::Terminal(size))),
    };
    let (child_in, stdin) = match wanted.stdin {
        false => (null(OFlags::RDONLY)?, None),
        true => pipe().map(|(read, write)| (read, Some(write)))?,
    };
    let output = |wanted| match wanted {
        false => null(OFlags::WRONLY).map(|null| (None, null)),
        true => pipe().map(|(read, write)| (Some(read), write)),
    };
    let (stdout, child_out) = output(wanted.stdout)?;
    let (stderr, child_err) = output(wanted.stderr)?;
    for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).doing(|| "make a pipe non-blocking")?;
    }
    let ours = Streams { stdin, stdout, stderr };
    Ok((ours, Ends::Descriptors(Box::new([child_in, child_out, child_err]))))
}

impl Ends {
    pub(super) fn terminal(&self) -> Terminal {
        match self {
            Self::Terminal(_) => Terminal::Controls,
            Self::Descriptors(_) | Self::Inherited => Terminal::None,
        }
    }

    /// Makes pipes belong to another user.
    pub(super) fn give_to(&self, uid: rustix::fs::Uid, gid: rustix::fs::Gid) -> Result<()> {
        let Self::Descriptors(streams) = self else { return Ok(()) };
        for stream in streams.iter() {
            let kind = super::rootfd::file_type(stream.as_fd());
            if kind.doing(|| "look at a standard stream")? == FileType::Fifo {
                rustix::fs::fchown(stream, Some(uid), Some(gid))
                    .doing(|| "give a standard stream to the container's root")?;
            }
        }
        Ok(())
    }

    /// Makes them the process' standard streams. A terminal is made in the devpts of `root`.
    pub(super) fn connect(
        &self,
        root: &RootFd,
        place: Place,
        channel: BorrowedFd<'_>,
    ) -> Result<()> {
        match self {
            Self::Inherited => Ok(()),
            Self::Descriptors(streams) => {
                let accesses = [OFlags::RDONLY, OFlags::WRONLY, OFlags::WRONLY];
                // Whoever is in the container already may have put anything there.
                let is_new = place != Place::Elsewhere && place != Place::OfSibling;
                let own: [Option<OwnedFd>; 3] = std::array::from_fn(|index| {
                    let replaced = is_new && is_null(streams[index].as_fd()) == Ok(true);
                    replaced.then(|| null_of(root, accesses[index])).flatten()
                });
                let stream = |index: usize| own[index].as_ref().unwrap_or(&streams[index]);
                let [stdin, stdout, stderr] = [stream(0), stream(1), stream(2)];
                rustix::stdio::dup2_stdin(stdin).doing(|| "set standard input")?;
                rustix::stdio::dup2_stdout(stdout).doing(|| "set standard output")?;
                rustix::stdio::dup2_stderr(stderr).doing(|| "set standard error")
            }
            Self::Terminal(size) => {
                let console = console::open(root)?;
                if matches!(place, Place::Console | Place::ConsoleOfSibling) {
                    console::bind(root, &console.slave)?;
                }
                if let Some(size) = size {
                    rustix::termios::tcsetwinsize(&console.master, *size)
                        .doing(|| "set process.consoleSize")?;
                }
                if matches!(place, Place::Console | Place::Elsewhere) {
                    console::control(console.slave.as_fd())?;
                }
                console::take(&console.slave)?;
                channel::send(channel, &Message::Console, Some(console.master.as_fd()))
            }
        }
    }
}
