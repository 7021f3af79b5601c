//! Frames of SPDY/3.1 (draft 3, section 2.2), without what is in header blocks. Owns the bytes, knows
//! no connection. Data arrives in pieces: a frame of 16 MiB needs no 16 MiB.

use super::headers::MAX_BLOCK_BYTES;

/// The version that control frames carry; 3.1 is 3 on the wire.
const VERSION: u16 = 3;

/// The length of every frame's head.
pub(crate) const HEAD_BYTES: usize = 8;

/// The longest control frame that is read: a block and its fixed fields.
const MAX_CONTROL_BYTES: u32 = 10 + MAX_BLOCK_BYTES as u32;

/// The sender sends no more on this stream.
pub(crate) const FIN: u8 = 1;

/// The stream is of no protocol that is understood here.
pub(crate) const PROTOCOL_ERROR: u32 = 1;
/// There are too many streams.
pub(crate) const REFUSED: u32 = 3;
/// The sender does not want the stream any more.
pub(crate) const CANCEL: u32 = 5;

/// Identifies a stream of a connection; the client's are odd.
pub(crate) type StreamId = u32;

/// Why frames cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A control frame of another version.
    #[error("control frame of version {0}")]
    Version(u16),
    /// A control frame longer than any that makes sense.
    #[error("control frame of {0} bytes")]
    TooLong(u32),
    /// A control frame too short for its kind.
    #[error("control frame of kind {0} is cut short")]
    Short(u16),
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// `length` bytes for a stream follow.
    Data { stream: StreamId, flags: u8, length: u32 },
    /// A control frame's `length` bytes follow.
    Control { kind: u16, flags: u8, length: u32 },
}

impl Head {
    /// Reads a head.
    pub(crate) fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, Error> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let length = u32::from_be_bytes([0, x, y, z]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Self::Data { stream, flags, length });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        if length > MAX_CONTROL_BYTES {
            return Err(Error::TooLong(length));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

/// A control frame that means something here; header blocks are still compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control<'a> {
    /// SYN_STREAM: a stream begins.
    Open { stream: StreamId, fin: bool, block: &'a [u8] },
    /// SYN_REPLY or HEADERS: only the compression state matters.
    Headers { block: &'a [u8] },
    /// RST_STREAM: the stream is over.
    Reset { stream: StreamId },
    /// PING: to be sent back.
    Ping { id: u32 },
    /// GOAWAY: the peer opens no more streams.
    GoAway,
    /// SETTINGS, WINDOW_UPDATE, and what is unknown (to be ignored by the draft).
    Other,
}

impl<'a> Control<'a> {
    /// Reads the bytes after a control frame's head.
    pub(crate) fn parse(kind: u16, flags: u8, payload: &'a [u8]) -> Result<Self, Error> {
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
            bytes.map(u32::from_be_bytes).ok_or(Error::Short(kind))
        };
        let stream = |at: usize| number(at).map(|n| n & 0x7fff_ffff);
        let rest = |at: usize| payload.get(at..).ok_or(Error::Short(kind));
        Ok(match kind {
            1 => Self::Open { stream: stream(0)?, fin: flags & FIN != 0, block: rest(10)? },
            2 | 8 => Self::Headers { block: rest(4)? },
            3 => Self::Reset { stream: stream(0)? },
            6 => Self::Ping { id: number(0)? },
            7 => Self::GoAway,
            _ => Self::Other,
        })
    }
}

/// The head of a data frame. At most 2^24 − 1 bytes may follow.
pub(crate) fn data_head(stream: StreamId, length: usize, flags: u8) -> [u8; HEAD_BYTES] {
    let length = u32::try_from(length).unwrap_or(0).to_be_bytes();
    let [a, b, c, d] = (stream & 0x7fff_ffff).to_be_bytes();
    [a, b, c, d, flags, length[1], length[2], length[3]]
}

fn control(kind: u16, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEAD_BYTES + length);
    frame.extend_from_slice(&(VERSION | 0x8000).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.push(flags);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes()[1..]);
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

/// SYN_STREAM, as a client sends it.
#[cfg(test)]
pub(crate) fn open(stream: StreamId, flags: u8, block: &[u8]) -> Vec<u8> {
    control(1, flags, &[&stream.to_be_bytes(), &[0; 6], block])
}

/// SYN_REPLY.
pub(crate) fn reply(stream: StreamId, block: &[u8]) -> Vec<u8> {
    control(2, 0, &[&stream.to_be_bytes(), block])
}

/// RST_STREAM.
pub(crate) fn reset(stream: StreamId, status: u32) -> Vec<u8> {
    control(3, 0, &[&stream.to_be_bytes(), &status.to_be_bytes()])
}

/// PING.
pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[&id.to_be_bytes()])
}

/// GOAWAY with the last stream that was looked at.
pub(crate) fn go_away(last: StreamId) -> Vec<u8> {
    control(7, 0, &[&last.to_be_bytes(), &[0; 4]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(frame: &[u8]) -> Result<Head, Error> {
        Head::parse(*frame.first_chunk().unwrap())
    }

    #[test]
    fn frames_have_the_bytes_of_the_draft() {
        assert_eq!(ping(7), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]);
        assert_eq!(reset(1, 5), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 5]);
        assert_eq!(data_head(3, 0x01_02_03, FIN), [0, 0, 0, 3, 1, 1, 2, 3]);
        let stream = Head::Data { stream: 3, flags: FIN, length: 0x01_02_03 };
        assert_eq!(head(&data_head(3, 0x01_02_03, FIN)), Ok(stream));
    }

    #[test]
    fn what_is_no_frame_of_ours_is_refused() {
        assert_eq!(head(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Err(Error::Version(2)));
        assert_eq!(head(&[0x80, 3, 0, 1, 0, 0xff, 0, 0]), Err(Error::TooLong(0xff_0000)));
        assert_eq!(Control::parse(1, 0, &[0; 9]), Err(Error::Short(1)));
        assert_eq!(Control::parse(6, 0, &[0; 3]), Err(Error::Short(6)));
        assert_eq!(Control::parse(99, 0, &[]), Ok(Control::Other));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; 8], payload: Vec<u8>) {
            if let Ok(Head::Control { kind, flags, .. }) = Head::parse(bytes) {
                let _ = Control::parse(kind, flags, &payload);
            }
        }
    }
}
