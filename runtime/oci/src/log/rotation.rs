//! Rotated files of a log: `<log>.<time>`, later `<log>.<time>.gz`. Names, order, pruning.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::clock;

const COMPRESSED: &str = ".gz";
/// What is being compressed; one that nobody finishes is removed when the log is pruned.
const UNFINISHED: &str = ".gz.tmp";

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Where a log rotates to at a time.
pub(super) fn place(log: &Path, seconds: i64) -> PathBuf {
    suffixed(log, &format!(".{}", clock::rotation_suffix(seconds)))
}

/// Where a rotated file is compressed to, and by which way.
pub(super) fn compressed(rotated: &Path) -> (PathBuf, PathBuf) {
    (suffixed(rotated, COMPRESSED), suffixed(rotated, UNFINISHED))
}

/// Whether a rotation of that time is there in any form.
pub(super) fn is_taken(log: &Path, seconds: i64) -> bool {
    let plain = place(log, seconds);
    let (done, unfinished) = compressed(&plain);
    [plain, done, unfinished].iter().any(|path| path.symlink_metadata().is_ok())
}

/// A rotated file of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Plain,
    Compressed,
    Unfinished,
}

/// The time and kind of a name, if it is a rotation of `log`.
fn parse<'a>(log: &str, name: &'a OsStr) -> Option<(&'a str, Kind)> {
    let suffix = name.to_str()?.strip_prefix(log)?.strip_prefix('.')?;
    let (stamp, rest) = suffix.split_at_checked(15)?;
    let digit = |(at, b): (usize, u8)| if at == 8 { b == b'-' } else { b.is_ascii_digit() };
    if !stamp.bytes().enumerate().all(digit) {
        return None;
    }
    match rest {
        "" => Some((stamp, Kind::Plain)),
        COMPRESSED => Some((stamp, Kind::Compressed)),
        UNFINISHED => Some((stamp, Kind::Unfinished)),
        _ => None,
    }
}

fn names(log: &Path) -> (PathBuf, String, Vec<OsString>) {
    let directory = log.parent().unwrap_or(Path::new("/")).to_owned();
    let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = std::fs::read_dir(&directory).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name()).collect();
    (directory, name, names)
}

/// Removes the oldest files beyond the count, the current one included.
pub(super) fn prune(log: &Path, max_files: u32) {
    let (directory, name, names) = names(log);
    for old in superfluous(&name, &names, max_files) {
        // A file that somebody else removed is gone as well.
        let _ = std::fs::remove_file(directory.join(old));
    }
}

/// The files of rotations that exceed the count. Pure.
fn superfluous(log: &str, names: &[OsString], max_files: u32) -> Vec<OsString> {
    let mut stamps: Vec<&str> = names.iter().filter_map(|n| Some(parse(log, n)?.0)).collect();
    stamps.sort_unstable();
    stamps.dedup();
    let kept = max_files.saturating_sub(1) as usize;
    let old = &stamps[..stamps.len().saturating_sub(kept)];
    let is_old = |name: &&OsString| parse(log, name).is_some_and(|(stamp, _)| old.contains(&stamp));
    names.iter().filter(is_old).cloned().collect()
}

/// The oldest rotated file to be compressed: the youngest stays as it is for those who still read it.
pub(super) fn next_to_compress(log: &Path) -> Option<PathBuf> {
    let (directory, name, names) = names(log);
    compressible(&name, &names).map(|name| directory.join(name))
}

/// Pure.
fn compressible(log: &str, names: &[OsString]) -> Option<OsString> {
    let parsed = |name: &OsString| parse(log, name).map(|(stamp, kind)| (stamp.to_owned(), kind));
    let newest = names.iter().filter_map(parsed).map(|(stamp, _)| stamp).max()?;
    let plain = names.iter().filter(|name| {
        parsed(name).is_some_and(|(stamp, kind)| kind == Kind::Plain && stamp != newest)
    });
    plain.min().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<OsString> {
        names.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_oldest_files_beyond_the_count_go_and_strangers_stay() {
        let names = list(&[
            "0.log",
            "0.log.20250101-000003",
            "0.log.20250101-000001.gz",
            "0.log.20250101-000001.gz.tmp",
            "0.log.20250101-000002",
            "0.log.backup",
            "0.log.20250101-000000.bak",
            "10.log.20240101-000000",
        ]);
        let expected = ["0.log.20250101-000001.gz", "0.log.20250101-000001.gz.tmp"];
        assert_eq!(superfluous("0.log", &names, 3), expected);
        assert_eq!(superfluous("0.log", &names, 10), Vec::<OsString>::new());
    }

    #[test]
    fn all_but_the_youngest_are_compressed_oldest_first() {
        let mut names = list(&[
            "0.log",
            "0.log.20250101-000003",
            "0.log.20250101-000002",
            "0.log.20250101-000001.gz",
            "0.log.20250101-000000",
        ]);
        assert_eq!(compressible("0.log", &names), Some("0.log.20250101-000000".into()));
        names.pop();
        assert_eq!(compressible("0.log", &names), Some("0.log.20250101-000002".into()));
        names.remove(2);
        assert_eq!(compressible("0.log", &names), None);
        assert_eq!(compressible("0.log", &[]), None);
    }

    #[test]
    fn a_time_is_taken_in_any_form() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for suffix in ["", ".gz", ".gz.tmp"] {
            assert!(!is_taken(&log, 5));
            let path = suffixed(&place(&log, 5), suffix);
            std::fs::write(&path, "").unwrap();
            assert!(is_taken(&log, 5));
            std::fs::remove_file(path).unwrap();
        }
    }
}
