//! Header blocks of SPDY/3 (draft 3, section 2.6.10): name and value pairs, compressed over the life
//! of a connection, one state a direction. Both the compressed and the plain form are bounded.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// The longest header block, plain.
pub(crate) const MAX_BLOCK_BYTES: usize = 16 << 10;

/// The most pairs of a block.
const MAX_PAIRS: u32 = 100;

/// Why a header block cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The bytes are no continuation of the compressed stream.
    #[error("header block is not compressed as agreed")]
    Compression,
    /// More than anybody needs.
    #[error("header block is too large")]
    TooLarge,
    /// The plain bytes are no list of pairs.
    #[error("header block is malformed")]
    Malformed,
}

/// Name and value pairs in the order they came; names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn parse(mut block: &[u8]) -> Result<Self, Error> {
        let count = take_number(&mut block)?;
        if count > MAX_PAIRS {
            return Err(Error::TooLarge);
        }
        let mut pairs = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut block)?;
            let value = take_text(&mut block)?;
            if name.is_empty() {
                return Err(Error::Malformed);
            }
            // Several values of a name are parted by NUL; nothing here takes more than the first.
            let first = value.split('\0').next().unwrap_or_default();
            pairs.push((name.to_ascii_lowercase(), first.to_owned()));
        }
        match block.is_empty() {
            true => Ok(Self(pairs)),
            false => Err(Error::Malformed),
        }
    }

    fn render(&self) -> Vec<u8> {
        let mut block = Vec::new();
        put_number(&mut block, self.0.len());
        for (name, value) in &self.0 {
            for text in [name, value] {
                put_number(&mut block, text.len());
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }
}

fn take_number(block: &mut &[u8]) -> Result<u32, Error> {
    let (head, rest) = block.split_first_chunk::<4>().ok_or(Error::Malformed)?;
    *block = rest;
    Ok(u32::from_be_bytes(*head))
}

fn take_text<'a>(block: &mut &'a [u8]) -> Result<&'a str, Error> {
    let length = usize::try_from(take_number(block)?).map_err(|_| Error::Malformed)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Error::Malformed)?;
    *block = rest;
    std::str::from_utf8(text).map_err(|_| Error::Malformed)
}

fn put_number(block: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    block.extend_from_slice(&number.to_be_bytes());
}

/// Reads the header blocks of one direction.
#[derive(Debug)]
pub(crate) struct Reader {
    inflate: Decompress,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    /// Reads one block. After an error the connection cannot go on: the states have parted.
    pub(crate) fn read(&mut self, mut compressed: &[u8]) -> Result<Headers, Error> {
        let mut plain = Vec::with_capacity(1 << 10);
        loop {
            if plain.len() > MAX_BLOCK_BYTES {
                return Err(Error::TooLarge);
            }
            if plain.len() == plain.capacity() {
                plain.reserve(2 << 10);
            }
            let before = self.inflate.total_in();
            let room = plain.capacity() - plain.len();
            let step = self.inflate.decompress_vec(compressed, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.inflate.total_in() - before).unwrap_or(usize::MAX);
            compressed = compressed.get(used..).ok_or(Error::Compression)?;
            match step {
                Ok(Status::StreamEnd) => return Err(Error::Compression),
                Ok(_) if compressed.is_empty() && plain.len() < plain.capacity() => break,
                Ok(Status::BufError) if used == 0 && room > 0 => return Err(Error::Compression),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.inflate.set_dictionary(dictionary());
                    set.map_err(|_| Error::Compression)?;
                }
                Err(_) => return Err(Error::Compression),
            }
        }
        Headers::parse(&plain)
    }
}

/// Writes the header blocks of one direction.
#[derive(Debug)]
pub(crate) struct Writer {
    deflate: Compress,
}

impl Writer {
    pub(crate) fn new() -> Self {
        let mut deflate = Compress::new(Compression::default(), true);
        // A fresh stream takes any dictionary.
        let _ = deflate.set_dictionary(dictionary());
        Self { deflate }
    }

    /// Writes one block.
    pub(crate) fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let plain = headers.render();
        let mut rest = plain.as_slice();
        let mut compressed = Vec::with_capacity(plain.len() + 64);
        loop {
            let before = self.deflate.total_in();
            let flush = FlushCompress::Sync;
            self.deflate
                .compress_vec(rest, &mut compressed, flush)
                .map_err(|_| Error::Compression)?;
            let used = usize::try_from(self.deflate.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(used..).ok_or(Error::Compression)?;
            if rest.is_empty() && compressed.len() < compressed.capacity() {
                return Ok(compressed);
            }
            compressed.reserve(1 << 10);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_block_made_by_another_compressor_is_read() {
        // By zlib 1.2.13 with the dictionary: {streamtype: error}, then {streamtype: data, port: 80}.
        let first = [
            0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x46, 0x70, 0x3a, 0x2b, 0x29,
            0x4a, 0x4d, 0xcc, 0x85, 0x16, 0x25, 0xac, 0xa9, 0xa0, 0x80, 0x06, 0x00, 0x00, 0x00,
            0xff, 0xff,
        ];
        let second = [
            0x02, 0x65, 0x1c, 0x0c, 0x29, 0x50, 0x29, 0x93, 0x08, 0x29, 0xb0, 0x8b, 0x40, 0x89,
            0x9b, 0xc9, 0xc2, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff,
        ];
        let mut reader = Reader::new();
        assert_eq!(reader.read(&first).unwrap(), headers(&[("streamtype", "error")]));
        let expected = headers(&[("streamtype", "data"), ("port", "80")]);
        assert_eq!(reader.read(&second).unwrap(), expected);
    }

    #[test]
    fn a_small_block_that_grows_is_refused() {
        let mut writer = Writer::new();
        let long = "a".repeat(2 << 20);
        let bomb = writer.write(&headers(&[("x", &long)])).unwrap();
        assert!(bomb.len() < MAX_BLOCK_BYTES);
        assert_eq!(Reader::new().read(&bomb), Err(Error::TooLarge));
    }

    #[test]
    fn lengths_beyond_the_block_are_refused() {
        for block in [&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 1], &[0, 0], &[]] {
            assert_eq!(Headers::parse(block), Err(Error::Malformed));
        }
        assert_eq!(Headers::parse(&[0xff; 4]), Err(Error::TooLarge));
        assert_eq!(Headers::parse(&[0, 0, 0, 0, 9]), Err(Error::Malformed));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            blocks in prop::collection::vec(
                prop::collection::vec(("[a-z-]{1,20}", "[ -~]{0,200}"), 0..8), 1..6)
        ) {
            let (mut writer, mut reader) = (Writer::new(), Reader::new());
            for pairs in blocks {
                let headers = Headers(pairs);
                let block = writer.write(&headers).unwrap();
                prop_assert_eq!(reader.read(&block).unwrap(), headers);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(blocks in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..600), 1..4)) {
            let mut reader = Reader::new();
            for block in blocks {
                let _ = reader.read(&block);
                let _ = Headers::parse(&block);
            }
        }
    }
}
