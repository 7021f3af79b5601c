//! One entry of a tar archive, exactly as it is: no name is cleaned, no size is believed twice.
//!
//! GNU headers, with pax records for what does not fit (long names, extended attributes), and GNU's old
//! sparse form for files with large holes, which GNU tar, Go's `archive/tar` and bsdtar read (tar(5)).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tar::{Builder, EntryType, GnuExtSparseHeader, Header};

/// The longest name that a header holds itself.
const NAME_BYTES: usize = 100;
/// Holes are kept where they are at least so large together.
const HOLE_BYTES: u64 = 1 << 20;
/// How many pieces the first header of a sparse file lists.
const FIRST_PIECES: usize = 4;
/// How many each further one does.
const FURTHER_PIECES: usize = 21;

/// Who a file belongs to and since when it is as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since the epoch.
    pub(super) modified_at: u64,
}

/// What an entry is, besides a file with content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    Directory,
    Empty,
    Fifo,
    Link(&'a [u8]),
    Symlink(&'a [u8]),
    Character(u32, u32),
    Block(u32, u32),
}

/// The head of an entry.
pub(super) struct Head<'a> {
    /// The path in the archive, without a slash before it.
    pub(super) path: &'a [u8],
    pub(super) owner: Owner,
    /// Extended attributes.
    pub(super) attributes: &'a [(String, Vec<u8>)],
}

impl Head<'_> {
    /// Writes the pax records, and begins the header.
    fn begin<W: Write>(&self, archive: &mut Builder<W>, target: &[u8]) -> io::Result<Header> {
        let names: Vec<String> =
            self.attributes.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
        let values = self.attributes.iter().map(|(_, value)| value.as_slice());
        let attributes = names.iter().map(String::as_str).zip(values);
        let long = [("path", self.path), ("linkpath", target)];
        let long = long.into_iter().filter(|(_, name)| name.len() > NAME_BYTES);
        archive.append_pax_extensions(long.chain(attributes))?;
        let mut header = Header::new_gnu();
        let Owner { mode, uid, gid, modified_at } = self.owner;
        header.set_mode(mode & 0o7777);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(modified_at);
        header.set_size(0);
        if let Some(gnu) = header.as_gnu_mut() {
            put(&mut gnu.name, self.path);
            put(&mut gnu.linkname, target);
        }
        Ok(header)
    }

    /// Writes an entry without content.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub(super) fn write<W: Write>(
        &self,
        archive: &mut Builder<W>,
        kind: &Kind<'_>,
    ) -> io::Result<()> {
        let target = match kind {
            Kind::Link(target) | Kind::Symlink(target) => *target,
            _ => &[],
        };
        let mut header = self.begin(archive, target)?;
        let device = match *kind {
            Kind::Character(major, minor) | Kind::Block(major, minor) => Some((major, minor)),
            _ => None,
        };
        header.set_entry_type(match kind {
            Kind::Directory => EntryType::Directory,
            Kind::Empty => EntryType::Regular,
            Kind::Fifo => EntryType::Fifo,
            Kind::Link(_) => EntryType::Link,
            Kind::Symlink(_) => EntryType::Symlink,
            Kind::Character(..) => EntryType::Char,
            Kind::Block(..) => EntryType::Block,
        });
        if let Some((major, minor)) = device {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        header.set_cksum();
        archive.append(&header, io::empty())
    }

    /// Writes a file of these bytes.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub(super) fn write_bytes<W: Write>(
        &self,
        archive: &mut Builder<W>,
        content: &[u8],
    ) -> io::Result<()> {
        let mut header = self.begin(archive, &[])?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content)
    }

    /// Writes a file with its content. What the file has lost by the time it is read is zeros, and what
    /// it has gained is left out, so that the archive stays whole.
    ///
    /// # Errors
    /// When the file cannot be read, or the archive cannot be written.
    pub(super) fn write_file<W: Write>(
        &self,
        archive: &mut Builder<W>,
        (file, size_bytes): (&File, u64),
    ) -> io::Result<()> {
        let mut header = self.begin(archive, &[])?;
        let pieces = pieces(file, size_bytes)?;
        let data_bytes = pieces.iter().map(Piece::length).sum();
        if size_bytes - data_bytes < HOLE_BYTES {
            header.set_entry_type(EntryType::Regular);
            header.set_size(size_bytes);
            header.set_cksum();
            let whole = vec![Piece { from: 0, to: size_bytes }];
            return archive.append(&header, Content::new(file, whole));
        }
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(data_bytes);
        // An empty piece at the end says how long the file is.
        let mut listed = pieces.clone();
        listed.push(Piece { from: size_bytes, to: size_bytes });
        let (first, further) = listed.split_at(listed.len().min(FIRST_PIECES));
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.set_real_size(size_bytes);
            gnu.set_is_extended(!further.is_empty());
            for (slot, piece) in gnu.sparse.iter_mut().zip(first) {
                slot.set_offset(piece.from);
                slot.set_length(piece.length());
            }
        }
        header.set_cksum();
        let list = io::Cursor::new(further_headers(further));
        archive.append(&header, list.chain(Content::new(file, pieces)))
    }
}

fn put(field: &mut [u8; NAME_BYTES], name: &[u8]) {
    for (slot, byte) in field.iter_mut().zip(name) {
        *slot = *byte;
    }
}

fn further_headers(pieces: &[Piece]) -> Vec<u8> {
    let chunks: Vec<&[Piece]> = pieces.chunks(FURTHER_PIECES).collect();
    let count = chunks.len();
    let header = |(index, chunk): (usize, &[Piece])| {
        let mut header = GnuExtSparseHeader::new();
        header.set_is_extended(index + 1 < count);
        for (slot, piece) in header.sparse_mut().iter_mut().zip(chunk) {
            slot.set_offset(piece.from);
            slot.set_length(piece.length());
        }
        *header.as_bytes()
    };
    chunks.into_iter().enumerate().flat_map(header).collect()
}

/// A part of a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    from: u64,
    to: u64,
}

impl Piece {
    fn length(&self) -> u64 {
        self.to - self.from
    }
}

/// What of a file is no hole. Their number is bounded by what the file takes on its disk.
fn pieces(file: &File, size_bytes: u64) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut position = 0;
    while position < size_bytes {
        let from = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(from) => from,
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
            Err(error) => return Err(error.into()),
        };
        if from >= size_bytes {
            break;
        }
        let to = match rustix::fs::seek(file, SeekFrom::Hole(from)) {
            Ok(to) if to > from => to.min(size_bytes),
            _ => size_bytes,
        };
        pieces.push(Piece { from, to });
        position = to;
    }
    Ok(pieces)
}

/// Pieces of a file, one after the other, exactly as long as they were said to be.
struct Content<'a> {
    file: &'a File,
    pieces: std::vec::IntoIter<Piece>,
    current: Piece,
}

impl<'a> Content<'a> {
    fn new(file: &'a File, pieces: Vec<Piece>) -> Self {
        Self { file, pieces: pieces.into_iter(), current: Piece { from: 0, to: 0 } }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.length() == 0 {
            match self.pieces.next() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let most = usize::try_from(self.current.length()).unwrap_or(usize::MAX).min(buffer.len());
        let read = match self.file.read_at(&mut buffer[..most], self.current.from)? {
            0 => {
                buffer[..most].fill(0);
                most
            }
            read => read,
        };
        self.current.from += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &[u8]) -> Head<'_> {
        let owner = Owner { mode: 0o100_640, uid: 1 << 30, gid: 7, modified_at: 1 };
        Head { path, owner, attributes: &[] }
    }

    fn archive(write: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        write(&mut builder);
        builder.into_inner().unwrap()
    }

    fn read_back(bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path_bytes().into_owned(), content)
            })
            .collect()
    }

    #[test]
    fn a_file_that_shrinks_or_grows_while_it_is_read_leaves_the_archive_whole() {
        for said in [0, 1, 511, 5000, 70_000] {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[7; 5000], 0).unwrap();
            let bytes = archive(|builder| {
                head(b"changing").write_file(builder, (&file, said)).unwrap();
                head(b"after").write(builder, &Kind::Empty).unwrap();
            });
            let entries = read_back(&bytes);
            assert_eq!(entries.len(), 2, "{said}");
            assert_eq!(entries[0].1.len() as u64, said);
            let there = usize::try_from(said.min(5000)).unwrap();
            assert!(entries[0].1[..there].iter().all(|byte| *byte == 7));
            assert!(entries[0].1[there..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_huge_sparse_file_takes_what_its_data_takes() {
        for pieces in [0_u64, 1, 4, 5, 26, 60] {
            let file = tempfile::tempfile().unwrap();
            for piece in 0..pieces {
                file.write_all_at(&[1 + piece as u8; 4096], piece << 20).unwrap();
            }
            let size = (pieces + 1) << 20;
            file.set_len(size).unwrap();
            let bytes = archive(|builder| {
                head(b"sparse").write_file(builder, (&file, size)).unwrap();
                head(b"after").write(builder, &Kind::Empty).unwrap();
            });
            assert!((bytes.len() as u64) < 8192 + pieces * 4800, "{}", bytes.len());
            let entries = read_back(&bytes);
            assert_eq!(entries[0].1.len() as u64, size);
            for piece in 0..pieces {
                let at = usize::try_from(piece << 20).unwrap();
                assert_eq!(entries[0].1[at], 1 + piece as u8);
                assert_eq!(entries[0].1[at + 4096], 0);
            }
            assert_eq!(entries[1].0, b"after");
        }
        // So large that it could not be written out.
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 42).unwrap();
        let bytes = archive(|builder| head(b"huge").write_file(builder, (&file, 1 << 42)).unwrap());
        assert!(bytes.len() < 8192);
    }

    #[test]
    fn names_targets_and_attributes_are_kept_byte_by_byte() {
        let long = [b'n'; 300];
        let target = [b"../..//".as_slice(), &[0xff; 200]].concat();
        let attributes =
            [("user.a".to_owned(), b"x\n=\0y".to_vec()), ("security.capability".into(), vec![1])];
        let bytes = archive(|builder| {
            let mut head = head(&long);
            head.attributes = &attributes;
            head.write(builder, &Kind::Symlink(&target)).unwrap();
        });
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path_bytes().as_ref(), long);
        assert_eq!(entry.link_name_bytes().unwrap().as_ref(), target);
        assert_eq!(entry.header().uid().unwrap(), 1 << 30);
        let records: Vec<_> = entry.pax_extensions().unwrap().unwrap().flatten().collect();
        assert!(
            records.iter().any(|record| record.key() == Ok("SCHILY.xattr.security.capability"))
        );
    }
}
