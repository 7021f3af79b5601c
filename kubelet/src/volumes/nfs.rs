//! `nfs`: exports of a server, mounted by the host's `mount.nfs` and taken away by deadline.
//!
//! A server may not answer, now or later. So the helper is a process with a deadline; whether something
//! is mounted is read from the kernel's table and never asked of the mount; before a container is made
//! with a mount its server must answer; and an unmount that takes too long, or is refused as busy while the
//! server does not answer, is forced and detached, as upstream does it. mount.nfs(8), umount2(2).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use berth_runtime::mount_table;
use rustix::fs::{AtFlags, CWD, MemfdFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{PodDirectory, VolumeError, directory};
use crate::inquiry::Asker;

/// Where distributions have it.
const HELPERS: [&str; 2] = ["/sbin/mount.nfs", "/usr/sbin/mount.nfs"];
/// How long a server has to let itself be mounted.
const MOUNT: Duration = Duration::from_secs(60);
/// How long a server has to say that it is there still.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an unmount may write back what is not on the server yet; upstream's.
const UNMOUNT: Duration = Duration::from_secs(60);
/// How long a killed helper, or a forced unmount, takes at most to be gone.
const LAST: Duration = Duration::from_secs(1);
/// What ends requests to a server that is gone, and takes the mount out of sight.
const FORCED: UnmountFlags = UnmountFlags::FORCE.union(UnmountFlags::DETACH);
/// What is told of a helper's words.
const MAX_WORDS: u64 = 1024;

/// Whether servers of mounts are there. An error is an answer, too: whoever uses the mount is told the same.
static SERVERS: Asker<()> = Asker::new(|place| {
    let _ = statx(CWD, place, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
});

/// Why an export is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum NfsError {
    /// The host cannot mount NFS.
    #[error(
        "NFS volumes need /sbin/mount.nfs, which this node does not have (Debian's nfs-common, \
         nfs-utils elsewhere)"
    )]
    NoHelper,
    /// The helper could not be run.
    #[error("run {}: {source}", path.display())]
    Run {
        /// The helper.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The server did not answer, or not in time.
    #[error("mount of {source_name:?} did not end in {} s and was given up", after.as_secs())]
    Late {
        /// `server:path`.
        source_name: String,
        /// The deadline.
        after: Duration,
    },
    /// What is mounted is of no use now: whoever touches it waits.
    #[error("the server of {source_name:?}, which is mounted, does not answer")]
    Silent {
        /// `server:path`.
        source_name: String,
    },
    /// The helper failed.
    #[error("mount of {source_name:?} failed ({status}): {words}")]
    Failed {
        /// `server:path`.
        source_name: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
}

/// What is mounted, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    source: String,
    options: Vec<String>,
    read_only: bool,
}

impl Export {
    /// An export by server and path, with the mount options of a persistent volume.
    pub(super) fn parse(
        (server, path): (&str, &str),
        options: &[String],
        read_only: bool,
    ) -> Result<Self, VolumeError> {
        let is_plain = |text: &str| !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if server.is_empty() || server.starts_with('-') || !is_plain(server) {
            let value = server.to_owned();
            return Err(VolumeError::InvalidValue { field: "nfs.server", value });
        }
        if !path.starts_with('/') || path.chars().any(char::is_control) {
            let path = path.to_owned();
            return Err(VolumeError::InvalidPath { path, why: "must be absolute" });
        }
        if let Some(value) = options.iter().find(|option| option.chars().any(char::is_control)) {
            let value = value.clone();
            return Err(VolumeError::InvalidValue { field: "mountOptions", value });
        }
        let source = match server.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{server}]:{path}"),
            Err(_) => format!("{server}:{path}"),
        };
        let mut options: Vec<String> =
            options.iter().filter(|option| !option.is_empty()).cloned().collect();
        if read_only {
            options.push("ro".to_owned());
        }
        options.sort();
        options.dedup();
        Ok(Self { source, options, read_only })
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    fn arguments(&self, place: &Path) -> Vec<OsString> {
        let mut arguments = vec![OsString::from(&self.source), place.into()];
        if !self.options.is_empty() {
            arguments.extend(["-o".into(), self.options.join(",").into()]);
        }
        arguments
    }
}

/// What mounts exports.
#[derive(Debug, Clone)]
pub struct Helper {
    /// The program, called as mount(8) calls it.
    pub path: PathBuf,
    /// How long it may take.
    pub patience: Duration,
}

impl Helper {
    /// The host's.
    ///
    /// # Errors
    /// [`NfsError::NoHelper`].
    pub fn of_host() -> Result<Self, NfsError> {
        let mut paths = HELPERS.iter().map(PathBuf::from);
        let path = paths.find(|path| path.exists()).ok_or(NfsError::NoHelper)?;
        Ok(Self { path, patience: MOUNT })
    }

    /// Mounts an export on a directory of a pod; one that is mounted already must answer. Blocks up to the
    /// deadlines; idempotent.
    pub fn set_up(
        &self,
        pod: &PodDirectory,
        place: &Path,
        export: &Export,
    ) -> Result<(), VolumeError> {
        if !mount_table::places_below(place)
            .map_err(VolumeError::host("look for mounts on", place))?
            .is_empty()
        {
            let asked =
                SERVERS.ask(place).map_err(VolumeError::host("ask the server of", place))?;
            let silent = || NfsError::Silent { source_name: export.source.clone() };
            return Ok(asked.question().within(ANSWER).ok_or_else(silent)?);
        }
        directory::make_all(pod.root(), place).map_err(VolumeError::host("make", place))?;
        Ok(self.run(place, export)?)
    }

    fn run(&self, place: &Path, export: &Export) -> Result<(), NfsError> {
        let failed = |source| NfsError::Run { path: self.path.clone(), source };
        // What the helper leaves running may keep its output open; a file has no end to wait for.
        let words = rustix::fs::memfd_create("mount.nfs", MemfdFlags::CLOEXEC);
        let mut words = File::from(words.map_err(|error| failed(error.into()))?);
        let output = || words.try_clone().map(Stdio::from);
        let child = Command::new(&self.path)
            .args(export.arguments(place))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(output().map_err(failed)?)
            .stderr(output().map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        let status = end_of(child, self.patience).map_err(failed)?;
        let source_name = export.source.clone();
        match status {
            None => Err(NfsError::Late { source_name, after: self.patience }),
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let words = read_words(&mut words);
                Err(NfsError::Failed { source_name, status, words })
            }
        }
    }
}

fn read_words(words: &mut File) -> String {
    let mut bytes = Vec::new();
    let read = words.rewind().and_then(|()| words.take(MAX_WORDS).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => error.to_string(),
    }
}

/// How a process ended, or nothing when it had to be killed.
fn end_of(mut child: Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (sender, ended) = mpsc::channel();
    // Beyond the kill only the kernel holds it up; it is reaped whenever that is over.
    std::thread::spawn(move || sender.send(child.wait()));
    match ended.recv_timeout(patience) {
        Ok(status) => status.map(Some),
        Err(_) => {
            pidfd_send_signal(pidfd.as_fd(), Signal::KILL)?;
            let _ = ended.recv_timeout(LAST);
            Ok(None)
        }
    }
}

/// Takes away what is mounted at and below a directory.
pub(super) fn unmount_below(directory: &Path) -> Result<(), (PathBuf, io::Error)> {
    let mounted =
        mount_table::places_below(directory).map_err(|error| (directory.to_owned(), error))?;
    for place in mounted.into_iter().rev() {
        let (first, last) = (place.clone(), place.clone());
        within(UNMOUNT, move || unmount_or_force(&first), move || away(&last, FORCED))
            .map_err(|error| (place, error))?;
    }
    Ok(())
}

/// Whoever has asked a server that is gone is in the mount until that is forced: nobody else would be.
fn unmount_or_force(place: &Path) -> io::Result<()> {
    match away(place, UnmountFlags::empty()) {
        Err(error) if is_busy(&error) && is_silent(place) => away(place, FORCED),
        outcome => outcome,
    }
}

fn away(place: &Path, flags: UnmountFlags) -> io::Result<()> {
    match unmount(place, UnmountFlags::NOFOLLOW | flags) {
        // It is gone already.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

/// Whether a mount's server does not answer. Blocks up to the deadline, from the first time that is asked on.
fn is_silent(place: &Path) -> bool {
    SERVERS.ask(place).is_ok_and(|asked| asked.question().within(ANSWER).is_none())
}

/// Does `first`, and `last` when that takes too long; `first` then ends whenever the kernel lets it.
fn within(
    patience: Duration,
    first: impl FnOnce() -> io::Result<()> + Send + 'static,
    last: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    for (work, patience) in [
        (Box::new(first) as Box<dyn FnOnce() -> io::Result<()> + Send>, patience),
        (Box::new(last), LAST),
    ] {
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || sender.send(work()));
        if let Ok(outcome) = ended.recv_timeout(patience) {
            return outcome;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Barrier};

    use super::*;

    fn export(server: &str, options: &[&str], read_only: bool) -> Export {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Export::parse((server, "/data"), &options, read_only).unwrap()
    }

    #[test]
    fn the_helper_is_called_as_mount_calls_it() {
        let place = Path::new("/pods/v");
        for (export, expected) in [
            (export("nas", &[], false), "nas:/data /pods/v"),
            (export("fd00::1", &[], true), "[fd00::1]:/data /pods/v -o ro"),
            (export("nas", &["vers=4", "soft", ""], true), "nas:/data /pods/v -o ro,soft,vers=4"),
        ] {
            let arguments = export.arguments(place);
            let texts: Vec<_> = arguments.iter().map(|text| text.to_str().unwrap()).collect();
            assert_eq!(texts.join(" "), expected);
        }
        for bad in [("", "/"), ("-x", "/"), ("a b", "/"), ("a", "relative"), ("a", "/x\n")] {
            assert!(Export::parse(bad, &[], false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_unmount_that_does_not_end_is_forced() {
        let gone = Arc::new(Barrier::new(2));
        let forced = Arc::new(AtomicBool::new(false));
        let (stuck, told) = (Arc::clone(&gone), Arc::clone(&forced));
        let first = move || {
            stuck.wait();
            Ok(())
        };
        let last = move || {
            told.store(true, Ordering::Relaxed);
            gone.wait();
            Ok(())
        };
        within(Duration::from_millis(1), first, last).unwrap();
        assert!(forced.load(Ordering::Relaxed));
        let never = || -> io::Result<()> { panic!("the first one has ended") };
        let refused =
            within(Duration::from_secs(60), || Err(io::ErrorKind::NotFound.into()), never);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
