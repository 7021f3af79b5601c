//! Framing of the shim protocol: a little-endian `u32` length, then that many bytes of JSON.
//!
//! Owns the byte layout on both sides: blocking [`read_frame`]/[`write_frame`] for the agent, and the
//! incremental decoder of the shim's loop. Knows nothing of what the messages mean.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::MAX_FRAME_BYTES;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed or ended inside a frame.
    #[error("transfer a frame")]
    Io(#[from] std::io::Error),
    /// The peer announced, or the message needs, more than [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes exceeds the limit of {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// The payload is not the expected message.
    #[error("decode a frame")]
    Json(#[from] serde_json::Error),
}

/// Encodes a message with its length in front.
///
/// # Errors
/// [`Error::TooLong`] when it exceeds [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME_BYTES => {
            bytes[..4].copy_from_slice(&prefix.to_le_bytes())
        }
        _ => return Err(Error::TooLong(length)),
    }
    Ok(bytes)
}

/// Writes one message. Blocking.
///
/// # Errors
/// When it is too long or the stream fails.
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), Error> {
    Ok(stream.write_all(&encode(message)?)?)
}

/// Reads one message; `None` at a clean end of the stream. Blocking.
///
/// # Errors
/// When the stream fails or ends inside a frame, or the frame is too long or not a `T`.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, Error> {
    let mut prefix = [0; 4];
    let first = loop {
        match stream.read(&mut prefix) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[first..])?;
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(Error::TooLong(length));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok(Some(serde_json::from_slice(&payload)?))
}

/// Collects bytes as they arrive and gives whole messages back.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Adds received bytes.
    pub fn push(&mut self, received: &[u8]) {
        self.bytes.extend_from_slice(received);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// When the announced length or the payload is invalid; the connection is then of no more use.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        match self.next_frame()? {
            Some(payload) => Ok(Some(serde_json::from_slice(&payload)?)),
            None => Ok(None),
        }
    }

    /// The bytes of the next whole message, if there is one.
    ///
    /// # Errors
    /// When the announced length is invalid; the connection is then of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let Some(prefix) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(Error::TooLong(length));
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let rest = self.bytes.split_off(4 + length);
        let mut frame = std::mem::replace(&mut self.bytes, rest);
        frame.drain(..4);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Request;

    #[test]
    fn a_message_survives_the_stream() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &Request::Hello).unwrap();
        let mut reader = bytes.as_slice();
        assert_eq!(read_frame(&mut reader).unwrap(), Some(Request::Hello));
        assert!(read_frame::<Request>(&mut reader).unwrap().is_none());
    }

    #[test]
    fn a_frame_that_announces_too_much_is_refused_before_it_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        assert!(matches!(read_frame::<Request>(&mut &bytes[..]), Err(Error::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert!(matches!(decoder.next_message::<Request>(), Err(Error::TooLong(_))));
    }

    #[test]
    fn a_torn_frame_is_an_error_and_an_incomplete_one_is_awaited() {
        let bytes = encode(&Request::Hello).unwrap();
        let torn = &bytes[..bytes.len() - 1];
        assert!(matches!(read_frame::<Request>(&mut &torn[..]), Err(Error::Io(_))));
        let mut decoder = Decoder::default();
        for byte in torn {
            decoder.push(&[*byte]);
            assert!(decoder.next_message::<Request>().unwrap().is_none());
        }
        decoder.push(&bytes[bytes.len() - 1..]);
        assert_eq!(decoder.next_message().unwrap(), Some(Request::Hello));
    }
}
