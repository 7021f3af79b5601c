//! The leases on disk: one file an address, named by it, holding the whole [`Record`].
//!
//! ```text
//! <state_dir>/lock                 flock: one pod network a directory
//! <state_dir>/leases/<address>     created with O_EXCL before the pod is wired, removed after
//! <state_dir>/previous             the addresses given last, a hint that may be lost
//! <state_dir>/quarantine/…         what could not be read; never deleted, never in the way
//! ```
//! All calls block. A torn file never stops the node: an attachment's other file restores it, or
//! else the interfaces that exist do ([`Store::adopt`]).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ledger::Ledger;
use super::{Error, Range, Record};
use crate::attachment::{AttachmentId, HostPort};

/// No record is longer: 1000 host ports fit.
const FILE_MAX: u64 = 128 * 1024;

/// The leases of one node, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    ledger: Mutex<Ledger>,
    /// Files that are not on stable storage yet.
    unsynced: Mutex<Vec<File>>,
    _lock: File,
}

/// A lease and where it comes from.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) record: Record,
    pub(crate) origin: Origin,
}

/// Whether a lease was there before it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Held,
    Fresh,
}

/// Lease files to be flushed, off the way of the pods.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    files: Vec<File>,
    dir: PathBuf,
}

impl Unsynced {
    pub(crate) fn sync(self) -> Result<(), Error> {
        for file in &self.files {
            file.sync_all().map_err(disk("write", &self.dir))?;
        }
        if !self.files.is_empty() {
            sync_dir(&self.dir)?;
        }
        Ok(())
    }
}

impl Store {
    /// Opens the directory, makes it if needed and reads what is there.
    pub(crate) fn open(dir: &Path, ranges: Vec<Range>) -> Result<Self, Error> {
        let leases = dir.join("leases");
        make_dir(&leases)?;
        let lock = lock(dir)?;
        let mut ledger = Ledger::new(ranges);
        load(dir, &mut ledger)?;
        if let Ok(previous) = fs::read_to_string(dir.join("previous")) {
            previous.lines().filter_map(|l| l.parse().ok()).for_each(|ip| ledger.resume_after(ip));
        }
        Ok(Self {
            dir: dir.to_owned(),
            ledger: Mutex::new(ledger),
            unsynced: Mutex::default(),
            _lock: lock,
        })
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.ledger().records().cloned().collect()
    }

    pub(crate) fn get(&self, id: &AttachmentId) -> Option<Record> {
        self.ledger().get(id).cloned()
    }

    /// Takes the files that were written and are not on stable storage yet.
    pub(crate) fn unsynced(&self) -> Unsynced {
        let mut files = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        Unsynced { files: std::mem::take(&mut *files), dir: self.leases() }
    }

    /// Leases addresses and host ports. The files exist when this returns; they are durable after
    /// [`Unsynced::sync`].
    pub(crate) fn acquire(&self, id: &AttachmentId, ports: &[HostPort]) -> Result<Lease, Error> {
        let mut ledger = self.ledger();
        let held = ledger.get(id).is_some();
        loop {
            let record = ledger.reserve(id, ports)?;
            if held {
                return Ok(Lease { record, origin: Origin::Held });
            }
            match self.write(&record) {
                Ok(files) => {
                    self.remember(&record);
                    self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).extend(files);
                    return Ok(Lease { record, origin: Origin::Fresh });
                }
                Err(Refused::Occupied(ip)) => {
                    // Somebody else's file: its address stays out of reach.
                    ledger.release(id);
                    ledger.block(ip);
                }
                Err(Refused::Disk(error)) => {
                    ledger.release(id);
                    return Err(error);
                }
            }
        }
    }

    /// Takes over a record that only the kernel still knows. False when its addresses are held.
    pub(crate) fn adopt(&self, record: Record) -> Result<bool, Error> {
        let mut ledger = self.ledger();
        if ledger.admit(record.clone()).is_err() {
            return Ok(false);
        }
        match self.write(&record) {
            Ok(_) => Ok(true),
            Err(Refused::Occupied(_)) => {
                ledger.release(&record.attachment);
                Ok(false)
            }
            Err(Refused::Disk(error)) => {
                ledger.release(&record.attachment);
                Err(error)
            }
        }
    }

    /// Frees what `id` holds. The addresses may be given away as soon as this returns.
    pub(crate) fn release(&self, id: &AttachmentId) -> Result<(), Error> {
        let mut ledger = self.ledger();
        let Some(record) = ledger.get(id) else {
            return Ok(());
        };
        for ip in &record.addresses {
            remove_file(&self.path(*ip))?;
        }
        ledger.release(id);
        Ok(())
    }

    /// Removes everything that [`Store::open`] and leases left in the directory, and the
    /// directory itself when nothing else is in it.
    pub(crate) fn erase(&self) -> Result<(), Error> {
        for name in ["leases", "quarantine"] {
            let path = self.dir.join(name);
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(disk("remove", &path)(e));
                }
                _ => {}
            }
        }
        for name in ["previous", "lock"] {
            remove_file(&self.dir.join(name))?;
        }
        match fs::remove_dir(&self.dir) {
            Err(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(disk("remove", &self.dir)(e))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, record: &Record) -> Result<Vec<File>, Refused> {
        let mut files = Vec::new();
        for (done, ip) in record.addresses.iter().enumerate() {
            match write_lease(&self.path(*ip), record) {
                Ok(file) => files.push(file),
                Err(source) => {
                    for ip in &record.addresses[..done] {
                        remove_file(&self.path(*ip)).map_err(Refused::Disk)?;
                    }
                    return Err(match source.kind() {
                        io::ErrorKind::AlreadyExists => Refused::Occupied(*ip),
                        _ => Refused::Disk(disk("write lease", &self.path(*ip))(source)),
                    });
                }
            }
        }
        Ok(files)
    }

    /// The hint may be lost, so a failure is of no consequence.
    fn remember(&self, record: &Record) {
        let lines: String = record.addresses.iter().map(|ip| format!("{ip}\n")).collect();
        let _ = fs::write(self.dir.join("previous"), lines);
    }

    fn leases(&self) -> PathBuf {
        self.dir.join("leases")
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.leases().join(ip.to_string())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Refused {
    Occupied(IpAddr),
    Disk(Error),
}

fn write_lease(path: &Path, record: &Record) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = serde_json::to_vec(record).map_err(io::Error::other).and_then(|mut text| {
        text.push(b'\n');
        file.write_all(&text)
    });
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// Reads all lease files; what cannot be understood is put aside, and what holds nothing is removed.
fn load(dir: &Path, ledger: &mut Ledger) -> Result<(), Error> {
    let leases = dir.join("leases");
    let entries = fs::read_dir(&leases).map_err(disk("read", &leases))?;
    let mut missing = Vec::new();
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(disk("read", &leases))?.path());
    }
    names.sort();
    for path in names {
        if is_unwritten(&path) {
            remove_file(&path)?;
            continue;
        }
        match read_lease(&path) {
            // The attachment's other file told of this address already.
            Ok(record) if ledger.get(&record.attachment) == Some(&record) => {}
            Ok(record) => match ledger.admit(record.clone()) {
                Ok(()) => missing.push(record),
                Err(_) => quarantine(dir, &path, "another lease holds one of its addresses")?,
            },
            Err(reason) => quarantine(dir, &path, &reason)?,
        }
    }
    for record in missing {
        for ip in &record.addresses {
            let path = leases.join(ip.to_string());
            match write_lease(&path, &record) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(disk("write lease", &path)(e));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether whoever made the file died before it said anything: nobody was given that address.
fn is_unwritten(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0)
}

fn read_lease(path: &Path) -> Result<Record, String> {
    let name = path.file_name().and_then(|n| n.to_str()).ok_or("its name is not text")?;
    let ip: IpAddr = name.parse().map_err(|_| "its name is not an address")?;
    if ip.to_string() != name {
        return Err("its name is not written as addresses are".into());
    }
    let meta = fs::symlink_metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut text = String::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(FILE_MAX).read_to_string(&mut text).map_err(|e| e.to_string())?;
    let record: Record = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let families = |v6| record.addresses.iter().filter(|ip| ip.is_ipv6() == v6).count();
    if !record.addresses.contains(&ip) || families(true) > 1 || families(false) > 1 {
        return Err("its addresses do not fit its name".into());
    }
    Ok(record)
}

fn quarantine(dir: &Path, path: &Path, reason: &str) -> Result<(), Error> {
    let quarantine = dir.join("quarantine");
    make_dir(&quarantine)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (0u32..)
        .map(|n| quarantine.join(format!("{name}.{n}")))
        .find(|candidate| fs::symlink_metadata(candidate).is_err());
    let Some(target) = free else { return Ok(()) };
    fs::rename(path, &target).map_err(disk("quarantine", path))?;
    tracing::warn!(lease = %path.display(), reason, kept = %target.display(), "lease quarantined");
    Ok(())
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = open.map_err(disk("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(disk("lock", &path)(source)),
    }
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(disk("create", path))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(disk("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(disk("write", path))
}

fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { action, path, source }
}

#[cfg(test)]
mod tests;
