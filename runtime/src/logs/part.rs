//! One file of a log, opened for reading from its beginning: plain, or compressed by the shim.
//!
//! A rotated file may be compressed at any moment. The compressed one says in its header which file it
//! was (`inode=<number>`, written by `berth-oci`), so that whoever has read the plain one to its end
//! knows what follows. Blocking.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::files::{Search, TailStart, count_lines, tail_start};

/// A file of a log.
pub(super) enum Part {
    /// As it was written.
    Plain(File),
    /// Compressed, with the inode of what it was.
    Compressed { content: Box<GzDecoder<File>>, was: Option<u64> },
}

/// The name of a rotated file once it is compressed.
fn compressed_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    PathBuf::from(name)
}

/// The same content from its beginning.
fn again(content: &GzDecoder<File>) -> io::Result<GzDecoder<File>> {
    let mut file = content.get_ref().try_clone()?;
    file.rewind()?;
    Ok(GzDecoder::new(file))
}

impl Part {
    /// Opens a file of a log, or its compressed form where it has become that meanwhile; `None` when
    /// neither is there.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let is_compressed = path.extension() == Some(OsStr::new("gz"));
        let candidates = match is_compressed {
            true => vec![path.to_owned()],
            false => vec![path.to_owned(), compressed_name(path)],
        };
        for (index, candidate) in candidates.into_iter().enumerate() {
            match File::open(&candidate) {
                Ok(file) if is_compressed || index == 1 => {
                    return Ok(Some(Self::compressed(file)));
                }
                Ok(file) => return Ok(Some(Self::Plain(file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn compressed(file: File) -> Self {
        let content = Box::new(GzDecoder::new(file));
        let comment = content.header().and_then(flate2::GzHeader::comment);
        let was = comment.and_then(|text| std::str::from_utf8(text).ok());
        let was = was.and_then(|text| text.strip_prefix("inode=")?.parse().ok());
        Self::Compressed { content, was }
    }

    /// Goes to where the last `lines` whole lines begin.
    pub(super) fn seek_to_tail(
        &mut self,
        lines: u64,
        search: &mut Search,
    ) -> io::Result<TailStart> {
        let stream = search.stream();
        match self {
            Self::Plain(file) => {
                let tail = tail_start(file, lines, search)?;
                file.seek(SeekFrom::Start(tail.offset))?;
                Ok(tail)
            }
            Self::Compressed { content, .. } => {
                let all = count_lines(content, u64::MAX, stream)?;
                **content = again(content)?;
                let skipped = count_lines(content, all.lines.saturating_sub(lines), stream)?;
                // Counting reads ahead: begin anew and pass over what was counted.
                **content = again(content)?;
                io::copy(&mut content.by_ref().take(skipped.bytes), &mut io::sink())?;
                Ok(TailStart { offset: skipped.bytes, missing: lines.saturating_sub(all.lines) })
            }
        }
    }

    /// Whether this is, or was before it was compressed, the file that is open elsewhere.
    pub(super) fn is(&self, open: &File) -> io::Result<bool> {
        match self {
            Self::Plain(file) => Self::same_file(file, open),
            Self::Compressed { content, was, .. } => {
                let wanted = open.metadata()?;
                let same_device = content.get_ref().metadata()?.dev() == wanted.dev();
                Ok(same_device && *was == Some(wanted.ino()))
            }
        }
    }

    /// Whether two open files are one.
    pub(super) fn same_file(one: &File, other: &File) -> io::Result<bool> {
        let (one, other) = (one.metadata()?, other.metadata()?);
        Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
    }

    /// The file that holds it, compressed or not.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::Plain(file) => file,
            Self::Compressed { content, .. } => content.get_ref(),
        }
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Compressed { content, .. } => content.read(buffer),
        }
    }
}
