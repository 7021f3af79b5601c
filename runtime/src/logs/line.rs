//! The CRI log format, without I/O: `<RFC 3339 time> <stdout|stderr> <P|F> <content>`.
//!
//! A line of the container that was too long comes as several records tagged `P` and one tagged `F`;
//! [`Assembler`] joins them, each stream by itself, and applies what the reader asked for.

use std::str::FromStr;

use jiff::Timestamp;

/// A standard stream of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) time: &'a str,
    pub(super) stream: LogStream,
    pub(super) whole: bool,
    pub(super) content: &'a [u8],
}

/// Reads one record, without its newline.
pub(super) fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = match fields.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    // Further tags may follow a colon.
    let whole = match fields.next()?.split(|b| *b == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let content = fields.next().unwrap_or_default();
    (!time.is_empty()).then_some(Record { time, stream, whole, content })
}

/// A joined line is passed on in parts once it is longer than this.
const MAX_PENDING_BYTES: usize = 256 << 10;

/// What of a log is wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    pub(super) stream: Option<LogStream>,
    pub(super) since: Option<Timestamp>,
    pub(super) timestamps: bool,
    pub(super) limit_bytes: Option<u64>,
}

/// Joins records into the text that a reader sees.
#[derive(Debug)]
pub(super) struct Assembler {
    selection: Selection,
    pending: [Vec<u8>; 2],
    output: Vec<u8>,
    left_bytes: u64,
    since_passed: bool,
}

impl Assembler {
    pub(super) fn new(selection: Selection) -> Self {
        Self {
            left_bytes: selection.limit_bytes.unwrap_or(u64::MAX),
            since_passed: selection.since.is_none(),
            selection,
            pending: [Vec::new(), Vec::new()],
            output: Vec::new(),
        }
    }

    /// Whether the byte limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.left_bytes == 0
    }

    /// Takes one record's line. What is no record is passed over: only a torn write makes one.
    pub(super) fn push(&mut self, line: &[u8]) {
        let Some(record) = parse(line) else { return };
        if self.selection.stream.is_some_and(|wanted| wanted != record.stream) {
            return;
        }
        if !self.since_passed {
            let since = self.selection.since;
            let time = Timestamp::from_str(record.time).ok();
            if time < since {
                return;
            }
            self.since_passed = true;
        }
        let slot = record.stream as usize;
        if self.selection.timestamps && self.pending[slot].is_empty() {
            self.pending[slot].extend_from_slice(record.time.as_bytes());
            self.pending[slot].push(b' ');
        }
        self.pending[slot].extend_from_slice(record.content);
        if record.whole {
            self.pending[slot].push(b'\n');
        }
        if record.whole || self.pending[slot].len() > MAX_PENDING_BYTES {
            self.flush(slot);
        }
    }

    /// Passes on lines that never ended.
    pub(super) fn finish(&mut self) {
        self.flush(0);
        self.flush(1);
    }

    /// The text so far.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    fn flush(&mut self, slot: usize) {
        let pending = &mut self.pending[slot];
        let room = usize::try_from(self.left_bytes).unwrap_or(usize::MAX);
        pending.truncate(room);
        self.left_bytes -= pending.len() as u64;
        self.output.append(pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: &str = "2026-11-21T08:00:00.000000001Z";

    fn text(selection: Selection, lines: &[&str]) -> String {
        let mut assembler = Assembler::new(selection);
        for line in lines {
            assembler.push(line.as_bytes());
        }
        assembler.finish();
        String::from_utf8(assembler.take()).unwrap()
    }

    #[test]
    fn partial_records_are_joined_stream_by_stream() {
        let lines = [
            format!("{T} stdout P ab"),
            format!("{T} stderr F err"),
            format!("{T} stdout F cd"),
            format!("{T} stdout F "),
            format!("{T} stdout P end"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(text(Selection::default(), &lines), "err\nabcd\n\nend");
        let only =
            Selection { stream: Some(LogStream::Stderr), timestamps: true, ..Selection::default() };
        assert_eq!(text(only, &lines), format!("{T} err\n"));
    }

    #[test]
    fn torn_and_foreign_lines_are_passed_over() {
        for bad in ["", "x", "2026 stdin F a", "2026 stdout X a", " stdout F a", "\u{0}"] {
            assert_eq!(text(Selection::default(), &[bad]), "", "{bad:?}");
        }
    }

    #[test]
    fn since_and_the_byte_limit_cut_both_ends() {
        let lines = [
            "2026-11-21T08:00:00Z stdout F old",
            "2026-11-21T09:00:00+01:00 stdout F same instant",
            "2026-11-21T08:00:01Z stdout F new",
        ];
        let selection = Selection {
            since: Some("2026-11-21T08:00:00.5Z".parse().unwrap()),
            limit_bytes: Some(2),
            ..Selection::default()
        };
        assert_eq!(text(selection, &lines), "ne");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut assembler = Assembler::new(Selection::default());
            assembler.push(&line);
            assembler.finish();
            prop_assert!(assembler.take().len() <= line.len() + 1);
        }
    }
}
