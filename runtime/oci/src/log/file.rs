//! The log file: whole records up to the limit, rotation before it, a full disk survived.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::rotation;
use crate::clock;

/// A log file being written.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_bytes: u64,
    max_files: u32,
    lost: u64,
    /// Seconds of the last rotation: names must rise even when the clock does not.
    last_rotation: i64,
    rotated: bool,
}

/// Checks that a log can be written there, making the file.
pub(crate) fn probe(path: &Path) -> io::Result<()> {
    open(path).map(drop)
}

impl LogFile {
    /// Opens or makes the file for appending; one that cannot be opened is tried again with each
    /// record.
    pub(super) fn new(path: &Path, max_bytes: u64, max_files: u32) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            size: 0,
            max_bytes: max_bytes.max(1),
            max_files: max_files.max(2),
            lost: 0,
            last_rotation: 0,
            rotated: false,
        };
        log.reopen();
        log
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Changes when to rotate, and how many files stay.
    pub(super) fn limit(&mut self, max_bytes: u64, max_files: u32) {
        self.max_bytes = max_bytes.max(1);
        self.max_files = max_files.max(2);
    }

    /// Writes whole records, rotating where one would exceed the limit. A record that exceeds it alone
    /// has a file of its own.
    pub(super) fn write(&mut self, mut records: &[u8]) {
        while !records.is_empty() {
            let room = self.max_bytes.saturating_sub(self.size);
            let mut end = fitting(records, room);
            if end == 0 {
                if self.size > 0 && self.rotate() {
                    continue;
                }
                end = records.iter().position(|b| *b == b'\n').map_or(records.len(), |at| at + 1);
            }
            self.put(&records[..end]);
            records = &records[end..];
        }
    }

    /// Writes records to the present file, those that fit on the disk.
    fn put(&mut self, records: &[u8]) {
        if self.file.is_none() {
            self.reopen();
        }
        let mut rest = records;
        while let Some(file) = &mut self.file
            && !rest.is_empty()
        {
            match file.write(rest) {
                Ok(count @ 1..) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        let written = &records[..records.len() - rest.len()];
        let whole = written.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.size += whole as u64;
        if whole < written.len()
            && let Some(file) = &self.file
        {
            // A torn record would spoil the one after it. A disk that refuses that keeps it torn.
            let _ = file.set_len(self.size);
        }
        self.lost += records[whole..].iter().filter(|b| **b == b'\n').count() as u64;
    }

    /// Records lost to a failing disk.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether it has rotated since this was asked last.
    pub(super) fn take_rotated(&mut self) -> bool {
        std::mem::take(&mut self.rotated)
    }

    /// Opens the path anew.
    pub(super) fn reopen(&mut self) {
        if let Ok((file, size)) = open(&self.path) {
            self.file = Some(file);
            self.size = size;
        }
    }

    fn rotate(&mut self) -> bool {
        let mut seconds = (clock::now() / 1_000_000_000).max(self.last_rotation + 1);
        while rotation::is_taken(&self.path, seconds) {
            seconds += 1;
        }
        if std::fs::rename(&self.path, rotation::place(&self.path, seconds)).is_err() {
            return false;
        }
        self.last_rotation = seconds;
        self.rotated = true;
        self.file = None;
        self.size = 0;
        self.reopen();
        rotation::prune(&self.path, self.max_files);
        true
    }

    /// Removes what exceeds the count of files.
    pub(super) fn prune(&self) {
        rotation::prune(&self.path, self.max_files);
    }
}

/// How many bytes of whole records fit.
fn fitting(records: &[u8], room: u64) -> usize {
    match usize::try_from(room) {
        Ok(room) if room < records.len() => {
            records[..room].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)
        }
        _ => records.len(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(directory: &Path) -> Vec<Vec<u8>> {
        let entries = directory.read_dir().unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = entries.collect();
        paths.sort();
        // The current file's name sorts first and is the newest.
        paths.rotate_left(1);
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    #[test]
    fn no_file_exceeds_the_limit_and_only_so_many_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogFile::new(&path, 100, 3);
        for _ in 0..40 {
            log.write(b"0123456789012345678901234567\n");
        }
        let sizes: Vec<usize> = files(directory.path()).iter().map(Vec::len).collect();
        assert_eq!(sizes, [87, 87, 29]);
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn a_full_disk_loses_records_and_counts_them() {
        let mut log = LogFile::new(Path::new("/nonexistent/0.log"), 1000, 2);
        log.write(b"a\nb\n");
        assert_eq!(log.lost(), 2);
        log.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.write(b"c\n");
        assert_eq!(log.lost(), 3);
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogFile::new(&path, 1000, 2);
        log.write(b"a\n");
        std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        log.reopen();
        log.write(b"b\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"b\n");
    }

    proptest! {
        #[test]
        fn a_rotated_set_is_the_whole_log_in_order(
            lengths in proptest::collection::vec(0usize..60, 1..80),
            cuts in proptest::collection::vec(1usize..10, 1..80),
            limit in 1u64..200,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut log = LogFile::new(&directory.path().join("0.log"), limit, 1000);
            let records: Vec<Vec<u8>> =
                lengths.iter().map(|n| [vec![b'x'; *n], b"\n".to_vec()].concat()).collect();
            let mut rest = records.as_slice();
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                log.write(&now.concat());
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let files = files(directory.path());
            prop_assert_eq!(files.concat(), records.concat());
            for pair in files.windows(2) {
                let first = pair[1].iter().position(|b| *b == b'\n').unwrap() + 1;
                // Full to the byte: the next record would not have fitted.
                prop_assert!(pair[0].len() as u64 + first as u64 > limit);
                prop_assert!(pair[0].len() as u64 <= limit || pair[0].iter().filter(|b| **b == b'\n').count() == 1);
            }
        }
    }
}
