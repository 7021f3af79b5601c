//! The state directory: one directory a container, made first and removed last.
//!
//! ```text
//! <root>/<id>/state.json    the record, replaced whole
//!             config.json   the specification as it was when the container was made
//!             start         the socket on which the first process waits, gone once started
//!             notify/       what the container sees of a service manager's socket, where there is one
//! ```
//! Commands that change a container hold a lock (flock(2)) on its directory, which the kernel lets go of
//! whatever becomes of them; commands that only look need none.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::error::During;
use super::id::Id;
use super::record::Record;
use super::{Error, Result};

const RECORD: &str = "state.json";
const CONFIG: &str = "config.json";
const START: &str = "start";
const NOTIFY: &str = "notify";

/// All containers below one root.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    origin: Origin,
}

/// Where the root of a store comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It may not be there yet.
    Default,
    /// Whoever looks into one that is not there has misspelt it.
    Given,
}

/// A container's place in the store, whether there is one or not.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    directory: PathBuf,
}

/// A container's directory, held against other commands that change it.
#[derive(Debug)]
pub(super) struct Held {
    entry: Entry,
    lock: OwnedFd,
}

impl Store {
    pub(super) fn new(root: PathBuf, origin: Origin) -> Self {
        Self { root, origin }
    }

    /// The place of a container.
    pub(super) fn entry(&self, id: &Id) -> Entry {
        Entry { directory: self.root.join(id.as_str()) }
    }

    /// Makes a container's directory, which must not exist, and holds it.
    pub(super) fn create(&self, id: &Id) -> Result<Held> {
        let operation =
            || format!("make state directory {}", self.root.join(id.as_str()).display());
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let entry = self.entry(id);
        let made = match builder.create(&entry.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                builder.recursive(true).create(&self.root).during(operation)?;
                builder.recursive(false).create(&entry.directory)
            }
            made => made,
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists);
            }
            made => made.during(operation)?,
        }
        entry.hold()
    }

    /// The ids of all containers, in order.
    pub(super) fn ids(&self) -> Result<Vec<Id>> {
        let operation = || format!("read state directory {}", self.root.display());
        let entries = match std::fs::read_dir(&self.root) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && self.origin == Origin::Default =>
            {
                return Ok(Vec::new());
            }
            entries => entries.during(operation)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.during(operation)?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // What no container can be called is none.
            if let (true, Ok(id)) = (is_directory, Id::parse(&entry.file_name().to_string_lossy()))
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

impl Entry {
    /// Reads the record.
    pub(super) fn load(&self) -> Result<Record> {
        let path = self.directory.join(RECORD);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound),
            text => text.during(|| format!("read {}", path.display()))?,
        };
        let damaged = |error: serde_json::Error| Error::File { path, reason: error.to_string() };
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// The specification as it was when the container was made.
    pub(super) fn config(&self) -> Result<Vec<u8>> {
        let path = self.directory.join(CONFIG);
        std::fs::read(&path).during(|| format!("read {}", path.display()))
    }

    /// Where the directory is that the container sees beside its own.
    pub(super) fn notify_path(&self) -> PathBuf {
        self.directory.join(NOTIFY)
    }

    /// Opens it; nothing where the container has none.
    pub(super) fn notify(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(self.notify_path(), flags, Mode::empty()) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).during(|| format!("open {}", self.notify_path().display())),
        }
    }

    /// The user whose directory it is.
    pub(super) fn owner(&self) -> Option<u32> {
        rustix::fs::stat(&self.directory).ok().map(|stat| stat.st_uid)
    }

    /// Whether the first process waits for its start.
    pub(super) fn waits(&self) -> bool {
        rustix::fs::access(self.directory.join(START), rustix::fs::Access::EXISTS).is_ok()
    }

    /// Whether some command is changing the container right now.
    pub(super) fn is_held(&self) -> bool {
        let Ok(directory) = self.open() else { return false };
        let operation = FlockOperation::NonBlockingLockShared;
        matches!(rustix::fs::flock(directory, operation), Err(Errno::WOULDBLOCK))
    }

    fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::open(&self.directory, flags, Mode::empty())
    }

    /// Waits until no other command changes the container, then keeps others from it.
    pub(super) fn hold(self) -> Result<Held> {
        let operation = || format!("lock state directory {}", self.directory.display());
        let lock = match self.open() {
            Err(Errno::NOENT) => return Err(Error::NotFound),
            lock => lock.during(operation)?,
        };
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
            .during(operation)?;
        // Whoever held it may have removed it, and somebody made another one.
        let held = rustix::fs::fstat(&lock).during(operation)?;
        match rustix::fs::statat(CWD, &self.directory, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) if now.st_ino == held.st_ino && now.st_dev == held.st_dev => {}
            _ => return Err(Error::NotFound),
        }
        Ok(Held { entry: self, lock })
    }

    /// Connects to the first process, which then runs its command. It answers with a message when it
    /// cannot, and closes the connection when it has.
    pub(super) fn connect(&self) -> Result<OwnedFd, Errno> {
        let directory = self.open()?;
        let socket = socket()?;
        rustix::net::connect(&socket, &address(&directory)?)?;
        Ok(socket)
    }
}

impl Held {
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Replaces the record.
    pub(super) fn save(&self, record: &Record) -> Result<()> {
        // Plain strings and numbers: encoding cannot fail.
        self.write(RECORD, &serde_json::to_vec(record).unwrap_or_default())
    }

    /// Keeps the specification.
    pub(super) fn keep_config(&self, text: &[u8]) -> Result<()> {
        self.write(CONFIG, text)
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<()> {
        let path = self.entry.directory.join(name);
        replace(&path, text, 0o600).during(|| format!("write {}", path.display()))
    }

    /// Makes the directory that the container sees, for everybody in it.
    pub(super) fn make_notify(&self) -> Result<()> {
        let path = self.entry.notify_path();
        let operation = || format!("make {}", path.display());
        std::fs::create_dir(&path).during(operation)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).during(operation)
    }

    /// Makes the socket on which the first process waits for its start.
    pub(super) fn listen(&self) -> Result<OwnedFd> {
        let listen = || {
            let socket = socket()?;
            rustix::net::bind(&socket, &address(&self.lock)?)?;
            rustix::net::listen(&socket, 1)?;
            Ok::<_, Errno>(socket)
        };
        listen().during(|| "make the socket that a start is told by")
    }

    /// The first process waits no more.
    pub(super) fn started(&self) {
        // Gone already is what is wanted, and what stays goes with the directory.
        let _ = rustix::fs::unlinkat(&self.lock, START, rustix::fs::AtFlags::empty());
    }

    /// Removes the directory with all that is in it.
    pub(super) fn remove(self) -> Result<()> {
        let directory = &self.entry.directory;
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.during(|| format!("remove state directory {}", directory.display())),
        }
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The start socket in a directory; by its own path it could be too long for an address.
fn address(directory: &OwnedFd) -> Result<SocketAddrUnix, Errno> {
    use std::os::fd::AsRawFd;
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{START}", directory.as_fd().as_raw_fd()))
}

/// Writes a file under a temporary name beside it, and renames it.
pub(super) fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let mut options = std::fs::OpenOptions::new();
    let mut file: File =
        options.write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    let written = file.write_all(text).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The failure to write is what counts.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runc::record::tests::record;

    #[test]
    fn a_container_is_made_once_and_can_be_made_again_once_removed() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("a/b"), Origin::Default);
        let id = Id::parse("one").unwrap();
        assert!(matches!(store.entry(&id).load(), Err(Error::NotFound)));
        assert!(store.ids().unwrap().is_empty());
        assert!(Store::new(root.path().join("a/b"), Origin::Given).ids().is_err());
        let held = store.create(&id).unwrap();
        assert!(matches!(store.create(&id), Err(Error::Exists)));
        assert!(matches!(store.entry(&id).load(), Err(Error::NotFound)));
        held.save(&record("one")).unwrap();
        assert_eq!(store.entry(&id).load().unwrap(), record("one"));
        assert_eq!(store.ids().unwrap(), std::slice::from_ref(&id));
        held.remove().unwrap();
        assert!(matches!(store.entry(&id).hold(), Err(Error::NotFound)));
        store.create(&id).unwrap();
    }

    #[test]
    fn a_torn_record_is_named_and_other_entries_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().to_owned(), Origin::Given);
        let id = Id::parse("torn").unwrap();
        let _held = store.create(&id).unwrap();
        std::fs::write(root.path().join("torn/state.json"), "{\"id\": \"to").unwrap();
        assert!(matches!(store.entry(&id).load(), Err(Error::File { .. })));
        std::fs::write(root.path().join("file"), "").unwrap();
        std::fs::create_dir(root.path().join("not an id")).unwrap();
        assert_eq!(store.ids().unwrap(), [id]);
    }

    #[test]
    fn a_held_container_is_seen_to_be_held() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().to_owned(), Origin::Given);
        let id = Id::parse("one").unwrap();
        let held = store.create(&id).unwrap();
        assert!(store.entry(&id).is_held());
        drop(held);
        assert!(!store.entry(&id).is_held());
    }

    #[test]
    fn the_start_socket_is_reached_however_long_the_path_is() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("x".repeat(200)), Origin::Given);
        let held = store.create(&Id::parse(&"y".repeat(200)).unwrap()).unwrap();
        let listener = held.listen().unwrap();
        assert!(held.entry().waits());
        let _connection = held.entry().connect().unwrap();
        drop(listener);
        assert_eq!(held.entry().connect().unwrap_err(), Errno::CONNREFUSED);
        held.started();
        assert!(!held.entry().waits());
    }
}
