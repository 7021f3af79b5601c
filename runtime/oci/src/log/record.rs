//! Output bytes as CRI log records: `<RFC 3339 time> <stream> <F|P> <text>\n`. Pure.

/// A part longer than this is cut, as containerd and CRI-O do.
pub(super) const MAX_TEXT_BYTES: usize = 16 << 10;

/// Which stream output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts one stream into records, keeping an unfinished line until it is finished or too long.
#[derive(Debug)]
pub(crate) struct Splitter {
    stream: Stream,
    unfinished: Vec<u8>,
}

impl Splitter {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, unfinished: Vec::new() }
    }

    /// The stream it cuts.
    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    /// Calls `emit` with each finished record, all stamped `time`.
    pub(crate) fn push(&mut self, mut output: &[u8], time: &str, mut emit: impl FnMut(&[u8])) {
        let mut record = Vec::with_capacity(256);
        while !output.is_empty() {
            let room = MAX_TEXT_BYTES - self.unfinished.len();
            // A line of exactly the limit is still a full one.
            let window = &output[..output.len().min(room + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.form(&mut record, time, b'F', &output[..end]);
                    output = &output[end + 1..];
                }
                None if output.len() > room => {
                    self.form(&mut record, time, b'P', &output[..room]);
                    output = &output[room..];
                }
                None => {
                    self.unfinished.extend_from_slice(output);
                    return;
                }
            }
            emit(&record);
        }
    }

    /// Calls `emit` with what is left when the stream has ended: part of a line, since no end of it
    /// was written.
    pub(crate) fn finish(&mut self, time: &str, mut emit: impl FnMut(&[u8])) {
        if !self.unfinished.is_empty() {
            let mut record = Vec::new();
            self.form(&mut record, time, b'P', b"");
            emit(&record);
        }
    }

    fn form(&mut self, record: &mut Vec<u8>, time: &str, tag: u8, text: &[u8]) {
        record.clear();
        record.extend_from_slice(time.as_bytes());
        record.push(b' ');
        record.extend_from_slice(self.stream.name().as_bytes());
        record.extend_from_slice(&[b' ', tag, b' ']);
        record.append(&mut self.unfinished);
        record.extend_from_slice(text);
        record.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(chunks: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut list = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, "T", |r| list.push(String::from_utf8_lossy(r).into_owned()));
        }
        splitter.finish("T", |r| list.push(String::from_utf8_lossy(r).into_owned()));
        list
    }

    #[test]
    fn lines_become_full_records_however_they_arrive() {
        let expected = ["T stdout F ab\n", "T stdout F \n", "T stdout F c\n"];
        assert_eq!(records(&[b"ab\n\nc\n"]), expected);
        assert_eq!(records(&[b"a", b"b", b"\n", b"\nc", b"\n"]), expected);
    }

    #[test]
    fn a_line_without_an_end_is_a_part() {
        assert_eq!(records(&[b"ab\n\nc"])[2..], ["T stdout P c\n"]);
    }

    #[test]
    fn a_long_line_is_cut_into_parts() {
        let line = vec![b'x'; 2 * MAX_TEXT_BYTES + 5];
        let list = records(&[&line, b"\n"]);
        assert_eq!(list.len(), 3);
        assert!(list[0].starts_with("T stdout P x") && list[1].starts_with("T stdout P x"));
        assert_eq!(list[2], "T stdout F xxxxx\n");
        let exact = vec![b'x'; MAX_TEXT_BYTES];
        let list = records(&[&exact, b"\n"]);
        assert_eq!(list.len(), 1);
        assert!(list[0].starts_with("T stdout F "));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_invented(
            runs in proptest::collection::vec((prop_oneof![Just(b'\n'), Just(b'x')], 0..20_000usize), 0..8)
        ) {
            let chunks: Vec<Vec<u8>> = runs
                .iter()
                .map(|(byte, count)| vec![*byte; if *byte == b'\n' { count % 3 } else { *count }])
                .collect();
            let mut splitter = Splitter::new(Stream::Stderr);
            let mut rebuilt = Vec::new();
            let mut longest = 0;
            let mut take = |record: &[u8]| {
                let text = &record[b"T stderr F ".len()..record.len() - 1];
                longest = longest.max(text.len());
                rebuilt.extend_from_slice(text);
                if record[b"T stderr ".len()] == b'F' {
                    rebuilt.push(b'\n');
                }
            };
            for chunk in &chunks {
                splitter.push(chunk, "T", &mut take);
            }
            splitter.finish("T", &mut take);
            let whole = chunks.concat();
            prop_assert!(longest <= MAX_TEXT_BYTES);
            prop_assert_eq!(rebuilt, whole);
        }
    }
}
