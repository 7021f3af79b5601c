//! The layer's bytes: decompressed, counted against the budget, hashed as they pass.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::Error;

const BUFFER_BYTES: usize = 128 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How the stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// By its first bytes.
    Detect,
    None,
    Gzip,
    Zstd,
}

/// Standard input, unbuffered but by [`Stream`].
pub(super) fn standard_input() -> Box<dyn Read> {
    match rustix::stdio::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => Box::new(File::from(fd)),
        Err(_) => Box::new(io::stdin()),
    }
}

/// The uncompressed stream.
pub(super) struct Stream {
    inner: Box<dyn Read>,
    hash: Sha256,
    bytes: u64,
    limit: u64,
}

impl Stream {
    pub(super) fn new(
        input: impl Read + 'static,
        compression: Compression,
        limit: u64,
    ) -> io::Result<Self> {
        let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
        let compression = match compression {
            Compression::Detect => {
                let start = input.fill_buf()?;
                if start.starts_with(&GZIP_MAGIC) {
                    Compression::Gzip
                } else if start.starts_with(&ZSTD_MAGIC) {
                    Compression::Zstd
                } else {
                    Compression::None
                }
            }
            given => given,
        };
        let inner: Box<dyn Read> = match compression {
            Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
            Compression::Detect | Compression::None => Box::new(input),
        };
        let inner = Box::new(BufReader::with_capacity(BUFFER_BYTES, inner));
        Ok(Self { inner, hash: Sha256::new(), bytes: 0, limit })
    }

    /// Whether the budget is kept.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        if self.bytes > self.limit {
            return Err(Error::Budget { what: "unpacked size", limit: self.limit });
        }
        Ok(())
    }

    /// Reads what follows the archive and returns the hash, in hexadecimal, and the length of all.
    pub(super) fn finish(mut self) -> Result<(String, u64), Error> {
        let result = io::copy(&mut self, &mut io::sink());
        self.check()?;
        result.map_err(Error::Read)?;
        let digest = self.hash.finalize();
        let hexadecimal = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((hexadecimal, self.bytes))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes > self.limit {
            return Err(io::Error::other("the layer exceeds its limit"));
        }
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write};

    fn read(bytes: Vec<u8>, limit: u64) -> Result<(String, u64), Error> {
        Stream::new(Cursor::new(bytes), Compression::Detect, limit).unwrap().finish()
    }

    #[test]
    fn all_encodings_give_the_same_digest() {
        let text = b"layer".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let zstd = zstd::stream::encode_all(text.as_slice(), 1).unwrap();
        let plain = read(text, 5000).unwrap();
        assert_eq!(read(gzip.finish().unwrap(), 5000).unwrap(), plain);
        assert_eq!(read(zstd, 5000).unwrap(), plain);
        assert_eq!(plain.1, 5000);
    }

    #[test]
    fn the_budget_counts_uncompressed_bytes() {
        let bomb = zstd::stream::encode_all(vec![0; 10 << 20].as_slice(), 1).unwrap();
        assert!(bomb.len() < 10_000);
        let error = read(bomb, 1 << 20).unwrap_err();
        assert_eq!(error.to_string(), "unpacked size limit of 1048576 exceeded");
    }
}
