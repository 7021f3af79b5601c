//! The log file: batches records into writes, rotates before the limit, survives a full disk.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::clock;

/// A log file being written.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_bytes: u64,
    max_files: u32,
    batch: Vec<u8>,
    dropped: u64,
}

impl LogFile {
    /// Opens or makes the file for appending.
    pub(crate) fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let (file, size) = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            size,
            max_bytes: max_bytes.max(1),
            max_files: max_files.max(2),
            batch: Vec::new(),
            dropped: 0,
        })
    }

    /// Adds a record, rotating first where it would exceed the limit.
    pub(crate) fn append(&mut self, record: &[u8]) {
        let pending = self.size + self.batch.len() as u64;
        if pending > 0 && pending + record.len() as u64 > self.max_bytes {
            self.flush();
            if self.size > 0 {
                self.rotate();
            }
        }
        self.batch.extend_from_slice(record);
    }

    /// Writes what was added.
    pub(crate) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.reopen();
        }
        let mut rest = self.batch.as_slice();
        if let Some(file) = &mut self.file {
            while !rest.is_empty() {
                match file.write(rest) {
                    Ok(0) => break,
                    Ok(count) => {
                        self.size += count as u64;
                        rest = &rest[count..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        self.dropped += rest.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.batch.clear();
    }

    /// Records lost to a failing disk.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn reopen(&mut self) {
        if let Ok((file, size)) = open(&self.path) {
            self.file = Some(file);
            self.size = size;
        }
    }

    fn rotate(&mut self) {
        let mut seconds = clock::now() / 1_000_000_000;
        let mut target = rotated(&self.path, seconds);
        // Twice within a second: the names must stay distinct and in order.
        while target.exists() {
            seconds += 1;
            target = rotated(&self.path, seconds);
        }
        if std::fs::rename(&self.path, &target).is_ok() {
            self.file = None;
            self.size = 0;
            self.reopen();
            self.prune();
        }
    }

    fn prune(&self) {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names: Vec<OsString> = names.map(|entry| entry.file_name()).collect();
        for old in superfluous(name.to_string_lossy().as_ref(), &names, self.max_files) {
            // A file that somebody else removed is gone as well.
            let _ = std::fs::remove_file(directory.join(old));
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = options.append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("the log is not a regular file"));
    }
    Ok((file, metadata.size()))
}

fn rotated(path: &Path, seconds: i64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(clock::rotation_suffix(seconds));
    PathBuf::from(name)
}

/// Whether `suffix` starts with the time of a rotation; what follows may be `.gz`.
fn is_rotation(suffix: &str) -> bool {
    let stamp = suffix.as_bytes().get(..15);
    stamp.is_some_and(|stamp| {
        stamp.iter().enumerate().all(
            |(at, b)| {
                if at == 8 { *b == b'-' } else { b.is_ascii_digit() }
            },
        )
    })
}

/// The rotated files of `name` that exceed the count, oldest first. Pure.
fn superfluous(name: &str, names: &[OsString], max_files: u32) -> Vec<OsString> {
    let prefix = format!("{name}.");
    let of_this_log = |candidate: &&OsString| {
        candidate.to_string_lossy().strip_prefix(&prefix).is_some_and(is_rotation)
    };
    let mut rotated: Vec<OsString> = names.iter().filter(of_this_log).cloned().collect();
    rotated.sort();
    let kept = max_files.saturating_sub(1) as usize;
    let excess = rotated.len().saturating_sub(kept);
    rotated.truncate(excess);
    rotated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_beyond_the_count_go_and_strangers_stay() {
        let names: Vec<OsString> = [
            "0.log",
            "0.log.20250101-000003",
            "0.log.20250101-000001.gz",
            "0.log.20250101-000002",
            "0.log.backup",
            "10.log.20240101-000000",
        ]
        .iter()
        .map(OsString::from)
        .collect();
        assert_eq!(superfluous("0.log", &names, 3), ["0.log.20250101-000001.gz"]);
        assert_eq!(superfluous("0.log", &names, 10), Vec::<OsString>::new());
    }

    #[test]
    fn no_file_exceeds_the_limit_and_only_so_many_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path, 100, 3).unwrap();
        for _ in 0..40 {
            log.append(b"0123456789012345678901234567\n");
            log.flush();
        }
        let sizes: Vec<u64> = directory
            .path()
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= 100 && *size > 0), "{sizes:?}");
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_full_disk_drops_records_and_counts_them() {
        let mut log = LogFile {
            path: PathBuf::from("/dev/full"),
            file: Some(OpenOptions::new().write(true).open("/dev/full").unwrap()),
            size: 0,
            max_bytes: 1000,
            max_files: 2,
            batch: Vec::new(),
            dropped: 0,
        };
        log.append(b"a\n");
        log.append(b"b\n");
        log.flush();
        assert_eq!(log.dropped(), 2);
    }
}
