//! Reads containers' logs: across rotated files, from the tail, since a time, and following.
//!
//! Writing and rotating them is the shim's. The text of a record is as the container wrote it;
//! [`LogOptions`] are those of the Kubernetes log API.

mod files;
mod line;
mod part;
mod watch;

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::Stream;
use tokio_util::sync::CancellationToken;

pub use self::line::LogStream;
use self::line::{Assembler, Selection};
use self::part::Part;
use crate::disk;

/// What of a log is wanted.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only what was written at or after this time.
    pub since: Option<jiff::Timestamp>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Only one of the streams.
    pub stream: Option<LogStream>,
    /// What is written later is read as well, until the token is cancelled (the container has
    /// ended) and everything is read.
    pub follow: Option<CancellationToken>,
}

/// How much of a file is read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// A record longer than this is cut: only foreign files have one.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Reads the log whose current file is `path`.
///
/// # Errors
/// The stream's first item is an error when there is no such log.
pub fn read(path: PathBuf, options: LogOptions) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::try_unfold(State::Closed(path, options), |state| async {
        let mut reader = match state {
            State::Closed(path, options) => open(path, options).await?,
            State::Open(reader) => reader,
            State::Done => return Ok(None),
        };
        loop {
            let ended = reader.is_ended();
            let (returned, step) = disk::blocking(move || {
                let step = reader.step()?;
                Ok((reader, step))
            })
            .await?;
            reader = returned;
            match step {
                Step::Text(text) => return Ok(Some((text, State::Open(reader)))),
                Step::Nothing => {}
                Step::End if ended => {
                    let text = reader.finish();
                    let more = (!text.is_empty()).then_some((text, State::Done));
                    return Ok(more);
                }
                Step::End => reader.wait().await,
                Step::Full(text) => return Ok(Some((text, State::Done))),
            }
        }
    })
}

enum State {
    Closed(PathBuf, LogOptions),
    Open(Box<Reader>),
    Done,
}

async fn open(path: PathBuf, options: LogOptions) -> io::Result<Box<Reader>> {
    let watch = match options.follow {
        Some(_) => Some(watch::Watch::new(path.parent().unwrap_or(Path::new("/")))?),
        None => None,
    };
    disk::blocking(move || Reader::open(path, options, watch).map(Box::new)).await
}

enum Step {
    /// Text for the reader.
    Text(Bytes),
    /// Records that gave no text.
    Nothing,
    /// All that is written so far is read.
    End,
    /// The byte limit is reached with this text.
    Full(Bytes),
}

struct Reader {
    path: PathBuf,
    follow: Option<CancellationToken>,
    watch: Option<watch::Watch>,
    assembler: Assembler,
    /// Files still to be read, each opened, oldest first.
    queue: VecDeque<Part>,
    current: Option<Part>,
    /// The beginning of a record whose end is still to come.
    partial: Vec<u8>,
}

impl Reader {
    fn open(path: PathBuf, options: LogOptions, watch: Option<watch::Watch>) -> io::Result<Self> {
        let mut queue = VecDeque::new();
        let mut missing = options.tail_lines;
        let mut search = files::Search::new(options.stream);
        let parts = files::open_chain(&path).map_err(|error| disk::at(&path, error))?;
        for mut part in parts.into_iter().rev() {
            if let Some(lines) = missing {
                missing = Some(part.seek_to_tail(lines, &mut search)?.missing);
            }
            queue.push_front(part);
            if missing == Some(0) {
                break;
            }
        }
        if queue.is_empty() && options.follow.is_none() {
            return Err(disk::at(&path, io::ErrorKind::NotFound.into()));
        }
        let selection = Selection {
            stream: options.stream,
            since: options.since,
            timestamps: options.timestamps,
            limit_bytes: options.limit_bytes,
        };
        Ok(Self {
            path,
            follow: options.follow,
            watch,
            assembler: Assembler::new(selection),
            current: queue.pop_front(),
            queue,
            partial: Vec::new(),
        })
    }

    /// Whether nothing will be written any more. To be asked before the last read.
    fn is_ended(&self) -> bool {
        self.follow.as_ref().is_none_or(CancellationToken::is_cancelled)
    }

    /// Reads one chunk. Blocking.
    fn step(&mut self) -> io::Result<Step> {
        if self.assembler.is_full() {
            return Ok(Step::Full(self.assembler.take().into()));
        }
        if self.current.is_none() {
            self.current = match self.queue.pop_front() {
                Some(file) => Some(file),
                None => match Part::open(&self.path)? {
                    Some(part) => Some(part),
                    None => return Ok(Step::End),
                },
            };
        }
        let Some(file) = &mut self.current else {
            return Ok(Step::End);
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return self.next_file();
        }
        buffer.truncate(length);
        self.take_records(&buffer);
        let full = self.assembler.is_full();
        let text: Bytes = self.assembler.take().into();
        Ok(match (full, text.is_empty()) {
            (true, _) => Step::Full(text),
            (false, true) => Step::Nothing,
            (false, false) => Step::Text(text),
        })
    }

    /// Goes on to the file after the one that is read to its end.
    fn next_file(&mut self) -> io::Result<Step> {
        let next = match (self.queue.pop_front(), &self.current) {
            (Some(file), _) => Some(file),
            (None, Some(current)) => files::successor(&self.path, current)?,
            (None, None) => None,
        };
        let Some(next) = next else {
            return Ok(Step::End);
        };
        // What was written between the last read and the rotation.
        if let Some(mut old) = self.current.replace(next) {
            let mut rest = Vec::new();
            old.by_ref().take(MAX_RECORD_BYTES as u64).read_to_end(&mut rest)?;
            self.take_records(&rest);
        }
        self.partial.clear();
        Ok(Step::Nothing)
    }

    fn take_records(&mut self, mut bytes: &[u8]) {
        while let Some(newline) = bytes.iter().position(|b| *b == b'\n') {
            let (record, rest) = bytes.split_at(newline);
            bytes = &rest[1..];
            if self.partial.is_empty() {
                self.assembler.push(record);
            } else {
                self.partial.extend_from_slice(record);
                self.assembler.push(&self.partial);
                self.partial.clear();
            }
        }
        if self.partial.len() + bytes.len() > MAX_RECORD_BYTES {
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn finish(&mut self) -> Bytes {
        self.assembler.finish();
        self.assembler.take().into()
    }

    /// Waits until something may have been written, or the container has ended.
    async fn wait(&mut self) {
        let (Some(watch), Some(follow)) = (&mut self.watch, &self.follow) else {
            return;
        };
        tokio::select! {
            () = watch.changed() => {}
            () = follow.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use std::fs;
    use std::io::Write;
    use std::pin::Pin;

    fn record(content: &str) -> String {
        format!("2026-11-21T08:00:00Z stdout F {content}\n")
    }

    async fn text(path: &Path, options: LogOptions) -> String {
        let chunks: Vec<_> = read(path.to_owned(), options).collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
        String::from_utf8(bytes).unwrap()
    }

    fn log_of_three() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.2"), record("1") + &record("2")).unwrap();
        fs::write(dir.path().join("0.log.1"), record("3") + &record("4")).unwrap();
        fs::write(&path, record("5") + &record("6")).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn a_log_is_read_across_its_rotated_files() {
        let (_dir, path) = log_of_three();
        assert_eq!(text(&path, LogOptions::default()).await, "1\n2\n3\n4\n5\n6\n");
    }

    #[tokio::test]
    async fn the_tail_reaches_back_into_older_files() {
        let (_dir, path) = log_of_three();
        for (lines, expected) in [(0, ""), (1, "6\n"), (3, "4\n5\n6\n"), (9, "1\n2\n3\n4\n5\n6\n")]
        {
            let options = LogOptions { tail_lines: Some(lines), ..LogOptions::default() };
            assert_eq!(text(&path, options).await, expected, "{lines}");
        }
    }

    /// As the shim compresses: the new file whole, then the old one gone.
    /// Follows a log from its last line on, until the token is cancelled.
    fn follow(
        path: &Path,
    ) -> (CancellationToken, Pin<Box<impl Stream<Item = io::Result<Bytes>> + use<>>>) {
        let ended = CancellationToken::new();
        let options = LogOptions {
            tail_lines: Some(1),
            follow: Some(ended.clone()),
            ..LogOptions::default()
        };
        (ended, Box::pin(read(path.to_owned(), options)))
    }

    fn compress(path: &Path) {
        compress_as(inode(path), path);
    }

    fn inode(path: &Path) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap())
    }

    fn compress_as(inode: u64, path: &Path) {
        let target = fs::File::create(format!("{}.gz", path.display())).unwrap();
        let level = flate2::Compression::default();
        let builder = flate2::GzBuilder::new().comment(format!("inode={inode}"));
        let mut encoder = builder.write(target, level);
        encoder.write_all(&fs::read(path).unwrap()).unwrap();
        encoder.finish().unwrap();
        fs::remove_file(path).unwrap();
    }

    fn log_of_times() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for (suffix, first) in [("1", 1), ("2", 3), ("3", 5)] {
            let rotated = dir.path().join(format!("0.log.20261121-08000{suffix}"));
            let content = record(&first.to_string()) + &record(&(first + 1).to_string());
            fs::write(&rotated, content).unwrap();
            if suffix != "3" {
                compress(&rotated);
            }
        }
        fs::write(&path, record("7")).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn compressed_files_are_read_like_the_others() {
        let (dir, path) = log_of_times();
        assert_eq!(text(&path, LogOptions::default()).await, "1\n2\n3\n4\n5\n6\n7\n");
        for (lines, expected) in [(2, "6\n7\n"), (4, "4\n5\n6\n7\n"), (6, "2\n3\n4\n5\n6\n7\n")] {
            let options = LogOptions { tail_lines: Some(lines), ..LogOptions::default() };
            assert_eq!(text(&path, options).await, expected, "{lines}");
        }
        // Just appeared, the plain one not gone yet: nothing is doubled.
        let plain = dir.path().join("0.log.20261121-080003");
        let kept = fs::read(&plain).unwrap();
        compress(&plain);
        fs::write(&plain, kept).unwrap();
        assert_eq!(text(&path, LogOptions::default()).await, "1\n2\n3\n4\n5\n6\n7\n");
    }

    #[tokio::test]
    async fn a_follower_whose_file_is_compressed_goes_on_with_the_next() {
        let (dir, path) = log_of_times();
        let (ended, mut stream) = follow(&path);
        let mut seen = Vec::new();
        seen.extend(stream.next().await.unwrap().unwrap());
        for (suffix, line) in [("4", "8"), ("5", "9")] {
            let rotated = dir.path().join(format!("0.log.20261121-08000{suffix}"));
            fs::rename(&path, &rotated).unwrap();
            fs::write(&path, record(line)).unwrap();
            compress(&rotated);
        }
        for _ in 0..2 {
            seen.extend(stream.next().await.unwrap().unwrap());
        }
        ended.cancel();
        assert!(stream.next().await.is_none());
        assert_eq!(String::from_utf8(seen).unwrap(), "7\n8\n9\n");
    }

    #[tokio::test]
    async fn a_file_whose_inode_older_ones_had_is_followed_by_the_next() {
        let (dir, path) = log_of_times();
        let rotated = |suffix| dir.path().join(format!("0.log.20261121-08000{suffix}"));
        compress_as(inode(&path), &rotated(3));
        let (ended, mut stream) = follow(&path);
        assert_eq!(stream.next().await.unwrap().unwrap(), "7\n");
        fs::rename(&path, rotated(4)).unwrap();
        fs::write(&path, record("8")).unwrap();
        compress(&rotated(4));
        assert_eq!(stream.next().await.unwrap().unwrap(), "8\n");
        ended.cancel();
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn the_byte_limit_ends_the_text() {
        let (_dir, path) = log_of_three();
        let options = LogOptions { limit_bytes: Some(5), ..LogOptions::default() };
        assert_eq!(text(&path, options).await, "1\n2\n3");
    }

    #[tokio::test]
    async fn a_missing_log_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = Box::pin(read(dir.path().join("0.log"), LogOptions::default()));
        assert!(stream.next().await.unwrap().is_err());
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn following_reads_what_comes_later_and_over_a_rotation() {
        let (dir, path) = log_of_three();
        let (ended, mut stream) = follow(&path);
        let mut seen = Vec::new();
        seen.extend(stream.next().await.unwrap().unwrap());
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(record("7").as_bytes()).unwrap();
        seen.extend(stream.next().await.unwrap().unwrap());
        fs::rename(dir.path().join("0.log.1"), dir.path().join("0.log.2")).unwrap();
        fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        fs::write(&path, record("8")).unwrap();
        seen.extend(stream.next().await.unwrap().unwrap());
        ended.cancel();
        assert!(stream.next().await.is_none());
        assert_eq!(String::from_utf8(seen).unwrap(), "6\n7\n8\n");
    }
}
