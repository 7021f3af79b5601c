//! What a container said last: its termination message.
//!
//! Reads the termination log file, or the end of the container's log where the policy says so, within
//! Kubernetes' limits. The file's content is the container's and thus not trusted: it is read through
//! a limit and without following links, and a FIFO or device in its place is not read at all.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// What one message may have.
pub const MESSAGE_LIMIT_BYTES: usize = 4096;
/// What the messages of a pod may have together.
pub const POD_MESSAGE_LIMIT_BYTES: usize = 12 * 1024;
const LOG_LIMIT_BYTES: usize = 2048;
const LOG_LIMIT_LINES: usize = 80;
/// How much of a log's end is looked at: 80 lines of a CRI log within 2048 bytes of text need no more.
const LOG_WINDOW_BYTES: u64 = 64 * 1024;

/// Where a termination message may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TerminationPolicy {
    /// The file alone.
    #[default]
    File,
    /// The end of the log when the container failed and the file is empty.
    FallbackToLogsOnError,
}

impl TerminationPolicy {
    /// Reads `terminationMessagePolicy`; anything unknown is `File`.
    pub fn parse(policy: Option<&str>) -> Self {
        match policy {
            Some("FallbackToLogsOnError") => Self::FallbackToLogsOnError,
            _ => Self::File,
        }
    }
}

/// How long one message may be in a pod of so many containers.
pub fn message_limit_bytes(containers: usize) -> usize {
    (POD_MESSAGE_LIMIT_BYTES / containers.max(1)).min(MESSAGE_LIMIT_BYTES)
}

/// Where a container's last words may be.
#[derive(Debug, Clone, Copy)]
pub struct LastWords<'a> {
    /// Its termination log.
    pub file: &'a Path,
    /// Its current log file.
    pub log: &'a Path,
    /// Which of them counts.
    pub policy: TerminationPolicy,
    /// How it ended.
    pub exit_code: i32,
    /// How much is kept ([`message_limit_bytes`]).
    pub limit_bytes: usize,
}

/// A container's termination message. Unreadable files count as empty. Blocks.
pub fn termination_message(sources: &LastWords<'_>) -> String {
    let message = read_message(sources.file, sources.limit_bytes).unwrap_or_default();
    let falls_back = sources.policy == TerminationPolicy::FallbackToLogsOnError;
    if !message.is_empty() || !falls_back || sources.exit_code == 0 {
        return message;
    }
    match read_end(sources.log, LOG_WINDOW_BYTES) {
        Ok(window) => log_tail_message(&window, sources.limit_bytes.min(LOG_LIMIT_BYTES)),
        Err(_) => message,
    }
}

fn open(path: &Path) -> io::Result<std::fs::File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// The first `limit_bytes` of a message file, as text.
pub fn read_message(path: &Path, limit_bytes: usize) -> io::Result<String> {
    let mut content = Vec::new();
    let limit = u64::try_from(limit_bytes).unwrap_or(u64::MAX);
    open(path)?.take(limit).read_to_end(&mut content)?;
    Ok(bounded_text(&content, limit_bytes))
}

fn read_end(path: &Path, window_bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(window_bytes)))?;
    let mut content = Vec::new();
    file.take(window_bytes).read_to_end(&mut content)?;
    Ok(content)
}

/// Valid UTF-8 of at most `limit_bytes`; broken sequences become the replacement character.
fn bounded_text(content: &[u8], limit_bytes: usize) -> String {
    let mut text = String::from_utf8_lossy(content).into_owned();
    let mut end = limit_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// The text of the last 80 lines of a log in the CRI form, at most `limit_bytes` of it, from the end.
pub fn log_tail_message(log: &[u8], limit_bytes: usize) -> String {
    let lines: Vec<&[u8]> = log.split_inclusive(|b| *b == b'\n').collect();
    let skipped = lines.len().saturating_sub(LOG_LIMIT_LINES);
    let mut text = Vec::new();
    for line in &lines[skipped..] {
        let mut fields = line.splitn(4, |b| *b == b' ');
        let (Some(_time), Some(_stream), Some(tag), Some(message)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let partial = tag.first() == Some(&b'P');
        let message = match partial {
            true => message.strip_suffix(b"\n").unwrap_or(message),
            false => message,
        };
        text.extend_from_slice(message);
    }
    let from = text.len().saturating_sub(limit_bytes);
    let mut tail = &text[from..];
    while from > 0 && tail.first().is_some_and(|b| b & 0b1100_0000 == 0b1000_0000) {
        tail = &tail[1..];
    }
    bounded_text(tail, limit_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_at_its_limit_and_is_valid_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "ä".repeat(4000)).unwrap();
        let message = read_message(&path, 4096).unwrap();
        assert_eq!(message.len(), 4096);
        let odd = read_message(&path, 5).unwrap();
        assert!(odd.len() <= 5 && odd.starts_with("ää"));
        std::fs::write(&path, b"\xff\xfe").unwrap();
        assert_eq!(read_message(&path, 4096).unwrap(), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn what_is_no_plain_file_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(read_message(&link, 10).is_err());
        assert!(read_message(Path::new("/dev/zero"), 10).is_err());
    }

    #[test]
    fn a_failed_container_with_an_empty_file_speaks_through_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let (file, log) = (directory.path().join("f"), directory.path().join("l"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&log, "t stdout F one\nt stderr P tw\nt stderr F o\n").unwrap();
        let message = |policy, exit_code| {
            termination_message(&LastWords {
                file: &file,
                log: &log,
                policy,
                exit_code,
                limit_bytes: 4096,
            })
        };
        let fallback = TerminationPolicy::FallbackToLogsOnError;
        assert_eq!(message(fallback, 1), "one\ntwo\n");
        assert_eq!(message(fallback, 0), "");
        assert_eq!(message(TerminationPolicy::File, 1), "");
        std::fs::write(&file, "said").unwrap();
        assert_eq!(message(fallback, 1), "said");
    }

    #[test]
    fn the_log_tail_is_eighty_lines_and_two_kilobytes() {
        let line = |n: usize| format!("t stdout F {n}\n");
        let log: String = (0..100).map(line).collect();
        let tail = log_tail_message(log.as_bytes(), 2048);
        assert!(tail.starts_with("20\n") && tail.ends_with("99\n"));
        let long = format!("t stdout F {}\n", "ü".repeat(3000));
        let tail = log_tail_message(long.as_bytes(), 2048);
        assert!(tail.len() <= 2048 && tail.starts_with('ü'));
    }

    #[test]
    fn containers_of_a_pod_share_its_limit() {
        assert_eq!(message_limit_bytes(1), 4096);
        assert_eq!(message_limit_bytes(3), 4096);
        assert_eq!(message_limit_bytes(12), 1024);
    }
}
