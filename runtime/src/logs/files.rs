//! A container's log on disk: the current file and its rotated predecessors.
//!
//! Rotated files are `<name>.<suffix>`: with a number, 1 is the youngest; with a time, the greatest
//! is. Those with a time may be compressed, `<name>.<suffix>.gz`. Blocking.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::line::{LogStream, parse};
use super::part::Part;

/// How often a log that rotates while it is opened is looked at again.
const MAX_LOOKS: u32 = 10;

/// The files of a log, oldest first, the current one last where it exists.
pub(super) fn chain(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut rotated = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let plain = |b: u8| b.is_ascii_digit() || b == b'-' || b == b'T' || b == b'.';
        if let Some(suffix) = name.strip_prefix(&prefix)
            && let stamp = suffix.strip_suffix(".gz").unwrap_or(suffix)
            && stamp.bytes().all(plain)
        {
            rotated.push((age(stamp), dir.join(&name)));
        }
    }
    // The plain one first: it stays for a moment when its compressed form appears.
    rotated.sort();
    rotated.dedup_by(|later, earlier| later.0 == earlier.0);
    let mut files: Vec<PathBuf> = rotated.into_iter().map(|(_, path)| path).collect();
    if path.exists() {
        files.push(path.to_owned());
    }
    Ok(files)
}

/// Sorts the oldest first: numbers fall with age, times rise.
fn age(suffix: &str) -> (i64, String) {
    let number: Option<i64> = suffix.parse().ok().filter(|n| *n < 1_000_000);
    (number.map_or(0, |n| -n), suffix.to_owned())
}

/// The whole chain, opened. No rotation or compression that happens meanwhile leaves a file out.
pub(super) fn open_chain(path: &Path) -> io::Result<Vec<Part>> {
    let stem = |path: &PathBuf| path.to_string_lossy().trim_end_matches(".gz").to_owned();
    let mut looks = 0;
    loop {
        looks += 1;
        let before = chain(path)?;
        let opened = before.iter().filter_map(|file| Part::open(file).transpose());
        let opened = opened.collect::<io::Result<Vec<_>>>()?;
        let after = chain(path)?;
        let is_settled = before.iter().map(stem).eq(after.iter().map(stem));
        if (is_settled && opened.len() == before.len()) || looks >= MAX_LOOKS {
            return Ok(opened);
        }
    }
}

/// The file that follows an open one in the chain. `None` while it is the current one; the oldest
/// file when it has been deleted meanwhile.
pub(super) fn successor(path: &Path, current: &Part) -> io::Result<Option<Part>> {
    if let (Part::Plain(open), Some(newest)) = (current, Part::open(path)?)
        && newest.is(open)?
    {
        return Ok(None);
    }
    let opened = open_chain(path)?;
    let mut position = None;
    for (index, part) in opened.iter().enumerate() {
        let same = match current {
            Part::Plain(open) => part.is(open)?,
            Part::Compressed { .. } => match part {
                Part::Compressed { .. } => Part::same_file(part.file(), current.file())?,
                Part::Plain(_) => false,
            },
        };
        // Older ones may have had its inode: what is open keeps it, so that none is younger.
        if same {
            position = Some(index);
        }
    }
    let next = position.map_or(0, |index| index + 1);
    Ok(opened.into_iter().nth(next))
}

/// What was counted of a log's beginning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) lines: u64,
    /// Bytes up to the end of the last line counted.
    pub(super) bytes: u64,
}

/// Counts whole lines of a stream from the beginning, at most `limit`.
pub(super) fn count_lines(
    content: &mut impl Read,
    limit: u64,
    stream: Option<LogStream>,
) -> io::Result<Counted> {
    let mut counted = Counted { lines: 0, bytes: 0 };
    let mut reader = BufReader::with_capacity(BLOCK_BYTES as usize, content);
    let mut record = Vec::new();
    let mut passed = 0;
    while counted.lines < limit {
        record.clear();
        // One that is longer than any of ours is counted by its parts, which are no records.
        let length =
            reader.by_ref().take(MAX_RECORD_BYTES as u64).read_until(b'\n', &mut record)?;
        if length == 0 {
            break;
        }
        passed += length as u64;
        if counts(record.strip_suffix(b"\n").unwrap_or(&record), stream) {
            counted.lines += 1;
            counted.bytes = passed;
        }
    }
    Ok(counted)
}

/// Where the last `lines` whole lines of a stream begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TailStart {
    pub(super) offset: u64,
    /// How many of the lines are still to be found in older files.
    pub(super) missing: u64,
}

const BLOCK_BYTES: u64 = 64 << 10;
/// A record that is longer than this is not one of ours.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// A search for lines from the end of a log, through its files.
#[derive(Debug)]
pub(super) struct Search {
    stream: Option<LogStream>,
    /// The streams of which nothing was seen yet: the last part of a line that never ended is one.
    unseen: [bool; 2],
}

impl Search {
    pub(super) fn new(stream: Option<LogStream>) -> Self {
        Self { stream, unseen: [true; 2] }
    }

    pub(super) fn stream(&self) -> Option<LogStream> {
        self.stream
    }

    /// Whether a record, seen from the end, is the end of a line.
    fn counts(&mut self, record: &[u8]) -> bool {
        let Some(record) = parse(record) else { return false };
        let is_last = std::mem::take(&mut self.unseen[record.stream as usize]);
        (record.whole || is_last) && self.stream.is_none_or(|wanted| wanted == record.stream)
    }
}

/// Searches a file from its end.
pub(super) fn tail_start(file: &File, lines: u64, search: &mut Search) -> io::Result<TailStart> {
    let mut end = file.metadata()?.len();
    let mut found = 0;
    // The beginning of a record whose end has been read already.
    let mut rest: Vec<u8> = Vec::new();
    if lines == 0 {
        return Ok(TailStart { offset: end, missing: 0 });
    }
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or_default()];
        file.read_exact_at(&mut block, start)?;
        block.append(&mut rest);
        let mut upper = block.len();
        while let Some(newline) = block[..upper].iter().rposition(|b| *b == b'\n') {
            let record = &block[newline + 1..upper];
            if search.counts(record) {
                if found == lines {
                    let offset = start + upper as u64 + 1;
                    return Ok(TailStart { offset, missing: 0 });
                }
                found += 1;
            }
            upper = newline;
        }
        block.truncate(upper);
        if block.len() <= MAX_RECORD_BYTES {
            rest = block;
        }
        end = start;
    }
    if search.counts(&rest) {
        if found == lines {
            let offset = rest.len() as u64 + 1;
            return Ok(TailStart { offset, missing: 0 });
        }
        found += 1;
    }
    Ok(TailStart { offset: 0, missing: lines - found })
}

fn counts(record: &[u8], stream: Option<LogStream>) -> bool {
    parse(record).is_some_and(|r| r.whole && stream.is_none_or(|wanted| wanted == r.stream))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(stream: &str, tag: &str, content: &str) -> String {
        format!("2026-11-21T08:00:00Z {stream} {tag} {content}\n")
    }

    fn file_with(content: &str) -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, content).unwrap();
        let file = File::open(path).unwrap();
        (dir, file)
    }

    #[test]
    fn files_are_ordered_by_number_or_by_time() {
        for (rotated, expected) in [
            (vec!["0.log.1", "0.log.2", "0.log.10"], ["0.log.10", "0.log.2", "0.log.1"]),
            (
                vec!["0.log.20261121-080001", "0.log.20261121-080000", "0.log.20261120-235959"],
                ["0.log.20261120-235959", "0.log.20261121-080000", "0.log.20261121-080001"],
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for name in rotated.iter().chain(&["0.log", "0.log.tmp", "0.log.gz", "1.log"]) {
                fs::write(dir.path().join(name), "").unwrap();
            }
            let files = chain(&dir.path().join("0.log")).unwrap();
            let names: Vec<_> =
                files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
            assert_eq!(names[..3], expected);
            assert_eq!(names[3], "0.log");
        }
    }

    #[test]
    fn the_tail_keeps_the_parts_of_its_first_line() {
        let old = record("stdout", "F", "old");
        let content = format!("{old}{}{}", record("stdout", "P", "a"), record("stdout", "F", "b"));
        let (_dir, file) = file_with(&content);
        let tail = tail_start(&file, 1, &mut Search::new(None)).unwrap();
        assert_eq!(tail, TailStart { offset: old.len() as u64, missing: 0 });
        let more = tail_start(&file, 5, &mut Search::new(None)).unwrap();
        assert_eq!(more, TailStart { offset: 0, missing: 3 });
    }

    #[test]
    fn a_line_that_never_ended_is_the_last_one_of_its_stream() {
        let whole = record("stdout", "F", "a") + &record("stdout", "F", "b");
        let content = format!(
            "{whole}{}{}{}",
            record("stdout", "P", "c"),
            record("stdout", "P", "d"),
            record("stderr", "F", "e")
        );
        let (_dir, file) = file_with(&content);
        let start = |lines, stream| {
            let mut search = Search::new(stream);
            let tail = tail_start(&file, lines, &mut search).unwrap();
            content[tail.offset as usize..].lines().map(|l| &l[l.len() - 1..]).collect::<String>()
        };
        assert_eq!(start(1, None), "e");
        assert_eq!(start(2, None), "cde");
        assert_eq!(start(3, None), "bcde");
        assert_eq!(start(1, Some(LogStream::Stdout)), "cde");
    }

    proptest! {
        #[test]
        fn the_tail_of_any_log_holds_as_many_lines_as_asked(
            lengths in proptest::collection::vec(0usize..9000, 0..60),
            wanted in 0u64..70,
        ) {
            let lines: Vec<String> = lengths.iter().map(|n| record("stdout", "F", &"x".repeat(*n))).collect();
            let content = lines.concat();
            let (_dir, file) = file_with(&content);
            let tail = tail_start(&file, wanted, &mut Search::new(None)).unwrap();
            let kept = content[tail.offset as usize..].lines().count() as u64;
            prop_assert_eq!(kept, wanted.min(lines.len() as u64));
            prop_assert_eq!(tail.missing, wanted.saturating_sub(lines.len() as u64));
        }
    }
}
