//! Entering network namespaces without leaving a thread in them.
//!
//! A namespace belongs to a thread, and runtime threads are shared; so whatever must happen inside
//! (a socket, a file below `/proc/sys/net`) happens on a thread made for it, which ends after.
//! A socket stays in the namespace it was made in and can be used from anywhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::Error;

/// An open network namespace.
#[derive(Debug, Clone)]
pub(crate) struct NetNs {
    file: Arc<File>,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace bound at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Namespace { path: path.to_owned(), source };
        // Opening a named pipe or a terminal must neither wait nor have an effect.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags.bits()).open(path);
        let file = file.map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("not a namespace file")));
        }
        Ok(Self { file: Arc::new(file), path: path.to_owned() })
    }

    /// The namespace of the calling thread.
    pub(crate) fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether both are the same namespace.
    pub(crate) fn is(&self, other: &Self) -> Result<bool, Error> {
        let identity = |ns: &Self| {
            let meta = ns.file.metadata();
            meta.map(|m| (m.dev(), m.ino()))
                .map_err(|source| Error::Namespace { path: ns.path.clone(), source })
        };
        Ok(identity(self)? == identity(other)?)
    }

    /// Runs `work` inside, on a thread of its own.
    pub(crate) async fn inside<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let ns = self.clone();
        std::thread::Builder::new()
            .name("berth-netns".into())
            .spawn(move || {
                let _ = done.send(ns.enter().map(|()| work()));
            })
            .map_err(|source| self.failed(source))?;
        match result.await {
            Ok(result) => result.map_err(|source| self.failed(source)),
            Err(_) => Err(Error::Stopped),
        }
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(setns(self.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Namespace { path: self.path.clone(), source }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
