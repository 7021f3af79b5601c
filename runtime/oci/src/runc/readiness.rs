//! Readiness told across the container's wall: what its process says to the service manager that runs
//! this program, where that has named a socket by `NOTIFY_SOCKET`.
//!
//! ```text
//! create: <state>/<id>/notify/ is bound into the container, its process told of a socket in it
//! start, run: make the socket ─ command executed ─ READY=1 read there ─► READY=1, MAINPID=… sent on
//! ```
//! Nothing else that a container says is passed on, and none of its bytes are. As with runc, `start` and
//! `run --detach` last until the container is ready or has ended. sd_notify(3).

use std::ffi::OsString;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;

use super::error::During;
use super::journal::{Journal, Level};
use super::store::Entry;
use super::{Error, Result};

const VARIABLE: &str = "NOTIFY_SOCKET";
/// Where the container finds the directory.
const INSIDE: &str = "/run/notify";
const SOCKET: &str = "notify.sock";
/// Larger than any message that is understood.
const MAX_MESSAGE: usize = 4096;
/// How long the service manager may take to read what it was told.
const BARRIER: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The service manager that waits to hear of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manager {
    address: SocketAddrUnix,
}

/// The socket that the container's process tells its readiness to.
#[derive(Debug)]
pub(super) struct Proxy {
    socket: OwnedFd,
    manager: Manager,
}

impl Manager {
    /// The one that this program's environment names.
    pub(super) fn named() -> Result<Option<Self>> {
        std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(Self::parse).transpose()
    }

    fn parse(name: OsString) -> Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
            [b'/', ..] => SocketAddrUnix::new(Path::new(&name)),
            _ => Err(Errno::AFNOSUPPORT),
        };
        Ok(Self { address: address.during(|| format!("{VARIABLE}={name:?}"))? })
    }

    /// Has the container see a directory of the host, and its process know of the socket in it.
    pub(super) fn show(spec: &mut Spec, directory: PathBuf) {
        let mut mount = Mount::default();
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
        mount
            .set_destination(PathBuf::from(INSIDE))
            .set_typ(None)
            .set_source(Some(directory))
            .set_options(Some(options.to_vec()));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
    }

    /// What the process is told.
    pub(super) fn variable() -> String {
        format!("{VARIABLE}={INSIDE}/{SOCKET}")
    }

    /// Makes the socket in the directory that the container sees.
    fn listen(self, directory: BorrowedFd<'_>) -> Result<Proxy> {
        let operation = || format!("{VARIABLE}: make the container's socket");
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
            .during(operation)?;
        match rustix::fs::unlinkat(directory, SOCKET, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).during(operation),
        }
        // By its own path it could be too long for an address.
        let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        let address = SocketAddrUnix::new(path).during(operation)?;
        rustix::net::bind(&socket, &address).during(operation)?;
        // Whoever the container's process is may write to it.
        let everybody = Mode::from_raw_mode(0o777);
        rustix::fs::chmodat(directory, SOCKET, everybody, AtFlags::empty()).during(operation)?;
        Ok(Proxy { socket, manager: self })
    }
}

impl AsFd for Proxy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Proxy {
    /// Makes the socket of a container, which must have been made for one.
    pub(super) fn make(manager: Manager, entry: &Entry) -> Result<Self> {
        let Some(directory) = entry.notify()? else {
            let reason = format!("{VARIABLE} is set, and was not when the container was made");
            return Err(Error::State(reason));
        };
        manager.listen(directory.as_fd())
    }

    /// Reads all that the container's process has said so far; whether it is ready.
    pub(super) fn hear(&self) -> bool {
        let mut message = [0; MAX_MESSAGE];
        let mut ready = false;
        // Descriptors that come along are dropped by the kernel.
        while let Ok((_, length)) =
            rustix::net::recv(&self.socket, &mut message, RecvFlags::DONTWAIT)
        {
            ready |= says_ready(&message[..length.min(MAX_MESSAGE)]);
        }
        ready
    }

    /// Tells the service manager that the container is ready and which process to watch. The barrier,
    /// which the manager lifts once it has read that, is returned.
    fn tell(&self, main: i32) -> Result<OwnedFd> {
        let operation = || format!("{VARIABLE}: tell the service manager");
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
            .during(operation)?;
        rustix::net::connect(&socket, &self.manager.address).during(operation)?;
        for message in ["READY=1\n".to_owned(), format!("MAINPID={main}\n")] {
            rustix::net::send(&socket, message.as_bytes(), SendFlags::NOSIGNAL)
                .during(operation)?;
        }
        let (barrier, other) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during(operation)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [other.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let message = [IoSlice::new(b"BARRIER=1")];
        rustix::net::sendmsg(&socket, &message, &mut control, SendFlags::NOSIGNAL)
            .during(operation)?;
        Ok(barrier)
    }

    /// The same from a process that lasts as long as the container: nobody waits.
    pub(super) fn tell_for_good(&self, journal: &Journal) {
        let own = rustix::process::getpid().as_raw_pid();
        if let Err(error) = self.tell(own) {
            journal.say(Level::Warning, &error.chain());
        }
    }

    /// Waits until the container is ready, and the service manager knows, or until it has ended.
    pub(super) fn attend(&self, main: i32, pidfd: BorrowedFd<'_>, journal: &Journal) -> Result<()> {
        loop {
            let mut waiting = [
                PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            ];
            rustix::io::retry_on_intr(|| poll(&mut waiting, None))
                .during(|| "wait for the container to be ready")?;
            let ended = !waiting[1].revents().is_empty();
            if self.hear() {
                break;
            }
            if ended {
                return Ok(());
            }
        }
        let barrier = self.tell(main)?;
        let mut waiting = [PollFd::new(&barrier, PollFlags::IN)];
        let lifted = rustix::io::retry_on_intr(|| poll(&mut waiting, Some(&BARRIER)));
        if lifted.during(|| "wait for the service manager")? == 0 {
            let message = "the service manager has not lifted its barrier within 30 s";
            journal.say(Level::Warning, message);
        }
        Ok(())
    }
}

/// Whether one of a message's lines is that the sender is ready.
fn says_ready(message: &[u8]) -> bool {
    message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_a_line_of_its_own_and_nothing_else() {
        for (message, ready) in [
            ("READY=1", true),
            ("STATUS=up\nREADY=1\n", true),
            ("READY=0", false),
            ("READY=1 ", false),
            ("STATUS=READY=1", false),
            ("MAINPID=1\nWATCHDOG=1", false),
            ("", false),
        ] {
            assert_eq!(says_ready(message.as_bytes()), ready, "{message:?}");
        }
    }

    #[test]
    fn a_manager_is_named_by_a_path_or_an_abstract_name() {
        let parse = |name: &str| Manager::parse(name.into());
        let path = parse("/run/x").unwrap();
        assert_eq!(path.address.path_bytes().unwrap(), b"/run/x");
        let name = parse("@x").unwrap();
        assert_eq!(name.address.abstract_name(), Some(&b"x"[..]));
        for other in ["x", "vsock:2:1", &format!("/{}", "x".repeat(200))] {
            assert!(parse(other).unwrap_err().chain().contains("NOTIFY_SOCKET="), "{other}");
        }
    }

    #[test]
    fn what_a_container_says_is_read_to_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        let proxy = Manager::parse("/none".into()).unwrap().listen(opened.as_fd()).unwrap();
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let say = |text: &[u8]| sender.send_to(text, directory.path().join(SOCKET)).unwrap();
        assert!(!proxy.hear());
        say(b"STATUS=starting");
        assert!(!proxy.hear());
        say(b"READY=1");
        say(&[b'x'; 2 * MAX_MESSAGE]);
        assert!(proxy.hear());
        assert!(!proxy.hear());
        assert!(proxy.tell(1).is_err(), "nobody listens at /none");
    }
}
