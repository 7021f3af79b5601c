//! What the shim says to its log writer, and what the writer answers: fixed headers, one message a
//! packet. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// No packet is longer: a batch of records, and one record more.
pub(super) const MAX_PACKET: usize = HEADER + MAX_BATCH + (18 << 10);
/// A batch of records is sent once it is longer.
pub(super) const MAX_BATCH: usize = 32 << 10;
const HEADER: usize = 25;

/// A message to the writer, about the log `key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// The log's path and limits, before anything else is said of it; again when limits change.
    Open { key: u64, max_bytes: u64, max_files: u32, path: &'a Path },
    /// Whole records, `count` of them.
    Records { key: u64, count: u64, bytes: &'a [u8] },
    /// The file was renamed by somebody else: open it anew.
    Reopen { key: u64 },
    /// Answer once everything before was written or given up.
    Sync { key: u64 },
    /// Nothing follows.
    Close { key: u64 },
}

impl Message<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, key, first, second, rest) = match self {
            Self::Open { key, max_bytes, max_files, path } => {
                (b'o', key, *max_bytes, u64::from(*max_files), path.as_os_str().as_bytes())
            }
            Self::Records { key, count, bytes } => (b'r', key, *count, 0, *bytes),
            Self::Reopen { key } => (b'n', key, 0, 0, &[][..]),
            Self::Sync { key } => (b's', key, 0, 0, &[][..]),
            Self::Close { key } => (b'c', key, 0, 0, &[][..]),
        };
        let mut packet = Vec::with_capacity(HEADER + rest.len());
        packet.push(kind);
        for number in [*key, first, second] {
            packet.extend_from_slice(&number.to_le_bytes());
        }
        packet.extend_from_slice(rest);
        packet
    }
}

fn number(packet: &[u8], index: usize) -> Option<u64> {
    let bytes = packet.get(1 + 8 * index..9 + 8 * index)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Reads a message; `None` for anything else.
pub(super) fn decode(packet: &[u8]) -> Option<Message<'_>> {
    let rest = packet.get(HEADER..)?;
    let key = number(packet, 0)?;
    Some(match packet.first()? {
        b'o' => Message::Open {
            key,
            max_bytes: number(packet, 1)?,
            max_files: u32::try_from(number(packet, 2)?).ok()?,
            path: Path::new(OsStr::from_bytes(rest)),
        },
        b'r' => Message::Records { key, count: number(packet, 1)?, bytes: rest },
        b'n' => Message::Reopen { key },
        b's' => Message::Sync { key },
        b'c' => Message::Close { key },
        _ => return None,
    })
}

/// What the writer tells of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) key: u64,
    /// Records taken so far, written or not.
    pub(super) taken: u64,
    /// Those of them that the disk did not take.
    pub(super) lost: u64,
    /// How many [`Message::Sync`]s are answered so far.
    pub(super) syncs: u64,
}

pub(super) const REPORT_BYTES: usize = 33;

impl Report {
    pub(super) fn encode(self) -> [u8; REPORT_BYTES] {
        let mut packet = [b'R'; REPORT_BYTES];
        let numbers = [self.key, self.taken, self.lost, self.syncs];
        for (place, number) in packet[1..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        packet
    }

    pub(super) fn decode(packet: &[u8]) -> Option<Self> {
        Some(Self {
            key: number(packet, 0)?,
            taken: number(packet, 1)?,
            lost: number(packet, 2)?,
            syncs: number(packet, 3)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_survive_the_socket() {
        let path = Path::new("/var/log/pods/x/0.log");
        for message in [
            Message::Open { key: 1, max_bytes: u64::MAX, max_files: 7, path },
            Message::Records { key: 2, count: 3, bytes: b"a\nb\nc\n" },
            Message::Reopen { key: 3 },
            Message::Sync { key: 4 },
            Message::Close { key: 5 },
        ] {
            assert_eq!(decode(&message.encode()), Some(message));
        }
        let report = Report { key: 1, taken: 2, lost: 3, syncs: 4 };
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_writer_fall(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&packet);
            let _ = Report::decode(&packet);
        }
    }
}
