//! State files: written so that a power cut leaves the old or the new content, read so that a torn
//! one is set aside and never stops the agent.
//!
//! Blocking: callers on the async side go through [`blocking`].

mod remove;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::remove::remove_tree;

/// The largest state file that is read.
const MAX_STATE_BYTES: u64 = 8 << 20;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A name part that no other call of this process got.
pub(crate) fn unique_suffix() -> String {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!("{}-{serial}", std::process::id())
}

/// Runs file system work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => Err(io::Error::other(failure)),
    }
}

/// Makes a directory and its missing parents, mode 0700.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| at(path, error))
}

/// Names the path in an I/O error.
pub(crate) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Whether a file's content must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// Synced before it gets its name.
    PowerCut,
    /// Named whole, which a killed process needs; never synced.
    Crash,
}

/// Replaces a file's content: temporary name, fsync, rename, fsync of the directory.
pub(crate) fn write_bytes(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, Durability::PowerCut)
}

fn replace(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("a state file needs a directory"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}", unique_suffix()));
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        if durability == Durability::PowerCut {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)?;
        match durability {
            Durability::PowerCut => File::open(parent)?.sync_all(),
            Durability::Crash => Ok(()),
        }
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        at(path, error)
    })
}

/// Replaces a state file by `value` as JSON.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?, Durability::PowerCut)
}

/// The same for the run directory, whose records mean nothing after a reboot: the boot id tells, and
/// a torn one is set aside. Syncing them would only slow pods down where `/run` is on a disk.
pub(crate) fn write_run_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?, Durability::Crash)
}

/// What reading a state file found.
#[derive(Debug)]
pub(crate) enum Stored<T> {
    /// A whole, valid value.
    Value(T),
    /// No such file.
    Absent,
    /// Something else; it was moved to the quarantine directory.
    Quarantined,
}

impl<T> Stored<T> {
    /// The value, if there is one.
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Quarantined => None,
        }
    }
}

/// Reads a state file; one that does not parse is moved into `quarantine`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, quarantine: &Path) -> Stored<T> {
    let outcome = read_limited(path, MAX_STATE_BYTES)
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from));
    match outcome {
        Ok(value) => Stored::Value(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::Absent,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "unreadable state file set aside");
            set_aside(path, quarantine);
            Stored::Quarantined
        }
    }
}

/// Reads at most `limit` bytes; a longer file is an error.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} is longer than {limit} bytes", path.display()),
        ));
    }
    Ok(bytes)
}

/// Moves a file into the quarantine directory, or deletes it where that fails.
pub(crate) fn set_aside(path: &Path, quarantine: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let target = quarantine.join(format!("{name}.{}", unique_suffix()));
    let moved = make_private_dir(quarantine).and_then(|()| fs::rename(path, target));
    if moved.is_err() {
        let _ = fs::remove_file(path);
    }
}

/// The entries of a directory by name; a missing directory has none. Temporary files are left out.
pub(crate) fn entries(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(at(dir, error)),
    };
    for entry in listing {
        let entry = entry.map_err(|error| at(dir, error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Nanoseconds since the epoch.
pub(crate) fn now_nanoseconds() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.ok().and_then(|elapsed| i64::try_from(elapsed.as_nanos()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_value_is_read_back_and_no_temporary_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &vec![1, 2]).unwrap();
        write_json(&path, &vec![3]).unwrap();
        let read: Stored<Vec<i32>> = read_json(&path, &dir.path().join("quarantine"));
        assert_eq!(read.value(), Some(vec![3]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_torn_file_is_moved_to_quarantine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, b"[1,").unwrap();
        let quarantine = dir.path().join("quarantine");
        let read: Stored<Vec<i32>> = read_json(&path, &quarantine);
        assert!(matches!(read, Stored::Quarantined));
        assert!(!path.exists());
        assert_eq!(fs::read_dir(quarantine).unwrap().count(), 1);
    }
}
