//! Terminals: handing them to the caller's sockets, and how they show lines; process ids in files.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::termios::{OptionalActions, OutputModes};

use super::error::During;
use super::{Result, store};

/// Sends a descriptor and its name over the socket at `path`.
pub(super) fn hand_over(path: &Path, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
    let operation = || format!("send a descriptor to {}", path.display());
    let socket = UnixStream::connect(path).during(operation)?;
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let data = [IoSlice::new(name.as_bytes())];
    let sent =
        rustix::net::sendmsg(socket.as_fd(), &data, &mut control, SendFlags::NOSIGNAL).map(drop);
    sent.during(operation)
}

/// Lets lines of a terminal that is relayed end as they were written: our own terminal, where there is
/// one, adds carriage returns itself.
pub(super) fn plain_lines(master: &OwnedFd) {
    if let Ok(mut mode) = rustix::termios::tcgetattr(master) {
        mode.output_modes.remove(OutputModes::ONLCR);
        // Only how lines look: the terminal works with any.
        let _ = rustix::termios::tcsetattr(master, OptionalActions::Now, &mode);
    }
}

/// Writes a process id to a file, at once or not at all.
pub(super) fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let mut text = Vec::new();
    // Memory takes whatever is written to it.
    let _ = write!(text, "{pid}");
    store::replace(path, &text, 0o644).during(|| format!("write process id to {}", path.display()))
}
