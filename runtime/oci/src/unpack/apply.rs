//! One entry after the other onto the tree.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

use super::Error;
use super::budget::{Account, Budget};
use super::name::{self, Target};
use super::tree::{Place, Tree};
use crate::container::rootfd::{clean, entry as stat_entry};

const CHUNK_BYTES: usize = 128 << 10;
const XATTR_PREFIX: &str = "SCHILY.xattr.";
/// The kernel's own limits of an attribute and of the attributes of a file.
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;

/// Fills a tree.
pub(super) struct Unpacker {
    tree: Tree,
    account: Account,
    chunk: Vec<u8>,
    /// Directories' times, set last, as filling them changes them.
    directory_times: Vec<(PathBuf, Timestamps)>,
}

/// What an entry says of its owner, mode, times and attributes.
struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
    attributes: Vec<(String, Vec<u8>)>,
}

impl Unpacker {
    pub(super) fn new(tree: Tree, budget: Budget) -> Self {
        let account = Account::new(budget);
        Self { tree, account, chunk: vec![0; CHUNK_BYTES], directory_times: Vec::new() }
    }

    /// Applies an entry.
    pub(super) fn apply<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let written = |errno: Errno| Error::Write {
            path: String::from_utf8_lossy(&name).into_owned(),
            source: errno.into(),
        };
        let target = name::target(&name)?;
        let depth = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).count();
        self.account.entry(depth, name.len())?;
        match target {
            Target::Ignored => Ok(()),
            Target::Whiteout(path) => self.whiteout(&path).map_err(written),
            Target::Opaque(path) => self.opaque(&path).map_err(written),
            Target::Root => {
                let metadata = metadata(entry, &name)?;
                if kind != EntryType::Directory {
                    return Err(invalid(&name, "the root is not a directory"));
                }
                self.update_directory(Path::new("."), metadata).map_err(written)
            }
            Target::Path(path) => {
                let metadata = metadata(entry, &name)?;
                self.make(&path, &name, entry, metadata)
            }
        }
    }

    /// Sets what had to wait; returns the number of entries.
    pub(super) fn finish(&mut self) -> Result<u64, Error> {
        for (path, times) in std::mem::take(&mut self.directory_times).iter().rev() {
            // What a later entry replaced has its own times.
            if let Ok(directory) = self.tree.open(path) {
                rustix::fs::futimens(&directory, times).map_err(|errno| Error::Write {
                    path: path.display().to_string(),
                    source: errno.into(),
                })?;
            }
        }
        Ok(self.account.entries)
    }

    fn make<R: Read>(
        &mut self,
        path: &Path,
        name: &[u8],
        entry: &mut tar::Entry<'_, R>,
        metadata: Metadata,
    ) -> Result<(), Error> {
        let written = |errno: Errno| Error::Write {
            path: String::from_utf8_lossy(name).into_owned(),
            source: errno.into(),
        };
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(path, name, entry, &metadata)
            }
            EntryType::Directory => self.directory(path, metadata).map_err(written),
            EntryType::Symlink => {
                let link = link_name(entry, name)?;
                self.symlink(path, &link, &metadata).map_err(written)
            }
            EntryType::Link => {
                let link = link_name(entry, name)?;
                self.hard_link(path, &clean(Path::new(OsStr::from_bytes(&link)))).map_err(written)
            }
            EntryType::Fifo => self.node(path, FileType::Fifo, 0, &metadata).map_err(written),
            kind @ (EntryType::Char | EntryType::Block) => {
                let number = device_number(entry, name)?;
                let kind = match kind {
                    EntryType::Char if number == 0 => {
                        return Err(invalid(name, "a raw overlay whiteout"));
                    }
                    EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                self.node(path, kind, number, &metadata).map_err(written)
            }
            _ => Err(invalid(name, "the entry's type is unknown")),
        }
    }

    fn file<R: Read>(
        &mut self,
        path: &Path,
        name: &[u8],
        entry: &mut tar::Entry<'_, R>,
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let written = |errno: Errno| Error::Write {
            path: String::from_utf8_lossy(name).into_owned(),
            source: errno.into(),
        };
        let place = self.tree.place(path).map_err(written)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let open = |place: &Place| rustix::fs::openat(&place.parent, &place.name, flags, mode);
        let file = match open(&place) {
            Err(Errno::EXIST) => {
                self.tree.clear(&place).map_err(written)?;
                open(&place)
            }
            result => result,
        }
        .map_err(written)?;
        loop {
            let count = entry.read(&mut self.chunk).map_err(Error::Read)?;
            if count == 0 {
                break;
            }
            self.account.content(count)?;
            let mut rest = &self.chunk[..count];
            while !rest.is_empty() {
                let done = rustix::io::write(&file, rest).map_err(written)?;
                rest = &rest[done..];
            }
        }
        finish_file(&file, metadata).map_err(written)
    }

    fn directory(&mut self, path: &Path, metadata: Metadata) -> Result<(), Errno> {
        let place = self.tree.place(path)?;
        match stat_entry(place.parent.as_fd(), &place.name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Some(_) => {
                self.tree.clear(&place)?;
                rustix::fs::mkdirat(&place.parent, &place.name, Mode::from_raw_mode(0o700))?;
            }
            None => rustix::fs::mkdirat(&place.parent, &place.name, Mode::from_raw_mode(0o700))?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&place.parent, &place.name, flags, Mode::empty())?;
        finish_file(&directory, &metadata)?;
        self.directory_times.push((path.to_owned(), metadata.times));
        Ok(())
    }

    fn update_directory(&mut self, path: &Path, metadata: Metadata) -> Result<(), Errno> {
        finish_file(&self.tree.open(path)?, &metadata)?;
        self.directory_times.push((path.to_owned(), metadata.times));
        Ok(())
    }

    fn symlink(&mut self, path: &Path, target: &[u8], metadata: &Metadata) -> Result<(), Errno> {
        let place = self.tree.place(path)?;
        self.tree.clear(&place)?;
        rustix::fs::symlinkat(OsStr::from_bytes(target), &place.parent, &place.name)?;
        finish_place(&place, metadata)
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), Errno> {
        let source = self.tree.existing(target)?;
        let place = self.tree.place(path)?;
        let ids = |place: &Place| -> Result<_, Errno> {
            let stat = stat_entry(place.parent.as_fd(), &place.name)?;
            Ok(stat.map(|stat| (stat.st_dev, stat.st_ino)))
        };
        let existing = ids(&source)?.ok_or(Errno::NOENT)?;
        if ids(&place)? == Some(existing) {
            return Ok(());
        }
        self.tree.clear(&place)?;
        // Without AT_SYMLINK_FOLLOW a link to a link stays one.
        let flags = AtFlags::empty();
        rustix::fs::linkat(&source.parent, &source.name, &place.parent, &place.name, flags)
    }

    fn node(
        &mut self,
        path: &Path,
        kind: FileType,
        number: u64,
        metadata: &Metadata,
    ) -> Result<(), Errno> {
        let place = self.tree.place(path)?;
        self.tree.clear(&place)?;
        rustix::fs::mknodat(&place.parent, &place.name, kind, metadata.mode, number)?;
        finish_place(&place, metadata)
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), Errno> {
        let place = self.tree.place(path)?;
        let kind = FileType::CharacterDevice;
        match rustix::fs::mknodat(&place.parent, &place.name, kind, Mode::empty(), 0) {
            // This layer has an entry of its own there, which hides those below as well; a directory
            // must hide what they hold.
            Err(Errno::EXIST) => match stat_entry(place.parent.as_fd(), &place.name)? {
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    self.opaque(path)
                }
                _ => Ok(()),
            },
            result => result,
        }
    }

    fn opaque(&mut self, path: &Path) -> Result<(), Errno> {
        self.tree.directory(path)?;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let directory = self.tree.open(path)?;
        rustix::fs::fsetxattr(&directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
    }
}

fn invalid(name: &[u8], reason: &'static str) -> Error {
    Error::Invalid { path: String::from_utf8_lossy(name).into_owned(), reason }
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>, name: &[u8]) -> Result<Vec<u8>, Error> {
    let link = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
    if link.is_empty() || link.contains(&0) || link.len() > 4095 {
        return Err(invalid(name, "the link's target is malformed"));
    }
    Ok(link)
}

fn device_number<R: Read>(entry: &tar::Entry<'_, R>, name: &[u8]) -> Result<u64, Error> {
    let header = entry.header();
    match (header.device_major(), header.device_minor()) {
        // Wider numbers would wrap into those of other devices.
        (Ok(Some(major)), Ok(Some(minor))) if major < 1 << 12 && minor < 1 << 20 => {
            Ok(rustix::fs::makedev(major, minor))
        }
        _ => Err(invalid(name, "the device number is out of range")),
    }
}

fn metadata<R: Read>(entry: &mut tar::Entry<'_, R>, name: &[u8]) -> Result<Metadata, Error> {
    let header = entry.header();
    let mtime = unless_blank(&header.as_old().mtime, header.mtime());
    let mut seconds = mtime.map_err(Error::Read)? as i64;
    let mut nanoseconds = 0;
    let mut attributes = Vec::new();
    let extensions = entry.pax_extensions().map_err(Error::Read)?;
    for extension in extensions.into_iter().flatten() {
        let extension = extension.map_err(Error::Read)?;
        let Ok(key) = extension.key() else { continue };
        if key == "mtime" {
            if let Some((s, n)) = extension.value().ok().and_then(pax_time) {
                (seconds, nanoseconds) = (s, n);
            }
        } else if let Some(attribute) = key.strip_prefix(XATTR_PREFIX)
            && name::keeps_attribute(attribute)
        {
            let value = extension.value_bytes();
            if value.len() > MAX_ATTRIBUTE_BYTES || attribute.contains('\0') {
                return Err(invalid(name, "an extended attribute is malformed"));
            }
            attributes.push((attribute.to_owned(), value.to_vec()));
        }
    }
    let header = entry.header();
    let id = |value: std::io::Result<u64>| match value.map(u32::try_from) {
        // The all-ones id means "unchanged" to the kernel.
        Ok(Ok(id)) if id != u32::MAX => Ok(id),
        _ => Err(invalid(name, "the owner is out of range")),
    };
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Ok(Metadata {
        uid: Uid::from_raw(id(unless_blank(&header.as_old().uid, header.uid()))?),
        gid: Gid::from_raw(id(unless_blank(&header.as_old().gid, header.gid()))?),
        mode: Mode::from_raw_mode(header.mode().map_err(Error::Read)? & 0o7777),
        times: Timestamps { last_access: time, last_modification: time },
        attributes,
    })
}

/// A number of the header, or 0 where its field was left empty, as some writers do.
fn unless_blank(field: &[u8], number: std::io::Result<u64>) -> std::io::Result<u64> {
    let blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
    if blank { Ok(0) } else { number }
}

/// `seconds[.fraction]`, which may be negative.
fn pax_time(text: &str) -> Option<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds - 1, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// Owner before mode, which a change of owner would strip of its set-id bits; the mode before the
/// capability attribute for the same reason.
fn finish_file(file: &OwnedFd, metadata: &Metadata) -> Result<(), Errno> {
    rustix::fs::fchown(file, Some(metadata.uid), Some(metadata.gid))?;
    rustix::fs::fchmod(file, metadata.mode)?;
    set_attributes(file.as_fd(), metadata)?;
    rustix::fs::futimens(file, &metadata.times)
}

fn set_attributes(file: BorrowedFd<'_>, metadata: &Metadata) -> Result<(), Errno> {
    for (name, value) in &metadata.attributes {
        match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // The file system keeps none of the user's; the content is what counts.
            Err(Errno::OPNOTSUPP) if name.starts_with("user.") => {}
            result => result?,
        }
    }
    Ok(())
}

/// For what cannot be opened: links and nodes. They carry no attributes.
fn finish_place(place: &Place, metadata: &Metadata) -> Result<(), Errno> {
    let Place { parent, name } = place;
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(metadata.uid), Some(metadata.gid), flags)?;
    rustix::fs::utimensat(parent, name, &metadata.times, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(field: &[u8; 8]) -> std::io::Result<u64> {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().uid = *field;
        unless_blank(&header.as_old().uid, header.uid())
    }

    #[test]
    fn an_empty_number_is_zero_and_a_malformed_one_an_error() {
        assert_eq!(owner(&[0; 8]).unwrap(), 0);
        assert_eq!(owner(b"        ").unwrap(), 0);
        assert_eq!(owner(b"      \0 ").unwrap(), 0);
        assert_eq!(owner(b"0000017\0").unwrap(), 15);
        assert!(owner(b"zzzzzzz\0").is_err());
    }

    #[test]
    fn times_keep_their_fraction_and_their_sign() {
        assert_eq!(pax_time("12"), Some((12, 0)));
        assert_eq!(pax_time("12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(pax_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time("x"), None);
    }
}
