//! What a container wrote to its root, as an OCI layer: the overlay's upper directory, whose whiteouts
//! become `.wh.` entries (OCI image specification, *Layer Filesystem Changeset*).
//!
//! All of it is the container's: it is read by descriptor, step by step, without following a link or
//! opening what is no file, and no depth or width exhausts descriptors or the stack. What an archive
//! cannot say is left out and counted: sockets, names that would read as whiteouts, paths longer than
//! `PATH_MAX`, files whose data lies in a lower layer. Kernel: 5.6 for `openat2`.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_oci::protocol::UserIds;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;
use tar::Builder;

use super::entry::{Head, Kind, Owner};
use super::sink::{Limits, Sink};

/// Who owns what belongs to nobody of the pod.
const NOBODY: u32 = 65_534;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The longest path that is written.
const MAX_PATH_BYTES: usize = 4096;
/// The longest list of attributes, and the longest value, that a file can have (xattr(7)).
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Opening what has become something else since it was looked at has no effect.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Writes the layer to a file. Owners are those inside the container where it has a user namespace.
/// Returns how many entries were left out. Blocking.
///
/// # Errors
/// When the directory cannot be read, or the limits are reached.
pub(crate) fn write(
    upper: &Path,
    ids: Option<UserIds>,
    (file, limits): (File, Limits),
) -> io::Result<u64> {
    let root = openat(CWD, upper, DIRECTORY, Mode::empty())?;
    let archive = Builder::new(Sink::new(file, limits));
    let mut walk = Walk { archive, ids, links: HashMap::new(), left_out: 0 };
    walk.all(root)?;
    walk.archive.into_inner()?.into_file().sync_all()?;
    Ok(walk.left_out)
}

/// A directory that is being read. Only the innermost one is open.
struct Level {
    identity: (u64, u64),
    /// How long the path is with its name.
    path_bytes: usize,
    /// Directories in it that are still to be read.
    left: Vec<CString>,
}

struct Walk<W: Write> {
    archive: Builder<W>,
    ids: Option<UserIds>,
    /// Files with several names, by their numbers, and the name that was written.
    links: HashMap<(u64, u64), Vec<u8>>,
    left_out: u64,
}

impl<W: Write> Walk<W> {
    fn all(&mut self, root: OwnedFd) -> io::Result<()> {
        let mut path = Vec::new();
        let mut levels = vec![self.read(root.as_fd(), &mut path)?];
        let mut current = root;
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_bytes);
            if let Some(name) = level.left.pop() {
                let entered = openat2(&current, &name, DIRECTORY, Mode::empty(), INSIDE);
                let Some(directory) = self.is_there(entered)? else { continue };
                path.extend_from_slice(name.to_bytes());
                path.push(b'/');
                self.directory(directory.as_fd(), &path)?;
                levels.push(self.read(directory.as_fd(), &mut path)?);
                current = directory;
                continue;
            }
            levels.pop();
            let Some(above) = levels.last() else { break };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = openat(&current, c"..", flags, Mode::empty())?;
            // Somebody moved the directory away: what is above it is not the container's.
            if identity(&rustix::fs::fstat(&parent)?) != above.identity {
                return Err(Errno::STALE.into());
            }
            current = parent;
        }
        Ok(())
    }

    /// What is gone or has become something else is left out; so is what is a mount.
    fn is_there<T>(&mut self, found: Result<T, Errno>) -> io::Result<Option<T>> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO) => {
                self.left_out += 1;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the entries of a directory but for its directories, which it notes.
    fn read(&mut self, directory: BorrowedFd<'_>, path: &mut Vec<u8>) -> io::Result<Level> {
        let path_bytes = path.len();
        let mut left = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let is_too_long = path_bytes + name.to_bytes().len() + 1 > MAX_PATH_BYTES;
            if is_too_long || name.to_bytes().starts_with(WHITEOUT) {
                self.left_out += 1;
                continue;
            }
            let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
            let Some(stat) = self.is_there(found)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                left.push(name.to_owned());
                continue;
            }
            path.extend_from_slice(name.to_bytes());
            let written = self.entry((directory, name), &stat, path);
            path.truncate(path_bytes);
            written?;
        }
        Ok(Level { identity: identity(&rustix::fs::fstat(directory)?), path_bytes, left })
    }

    fn entry(
        &mut self,
        place: (BorrowedFd<'_>, &CStr),
        stat: &Stat,
        path: &[u8],
    ) -> io::Result<()> {
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.file(place, path),
            FileType::CharacterDevice if device == (0, 0) => return self.whiteout(path),
            FileType::Symlink => {
                let found = readlinkat(place.0, place.1, Vec::new());
                let Some(target) = self.is_there(found)? else { return Ok(()) };
                let head = Head { path, owner: self.owner(stat), attributes: &[] };
                return head.write(&mut self.archive, &Kind::Symlink(target.to_bytes()));
            }
            FileType::CharacterDevice => Kind::Character(device.0, device.1),
            FileType::BlockDevice => Kind::Block(device.0, device.1),
            FileType::Fifo => Kind::Fifo,
            _ => {
                self.left_out += 1;
                return Ok(());
            }
        };
        let head = Head { path, owner: self.owner(stat), attributes: &[] };
        head.write(&mut self.archive, &kind)
    }

    fn file(&mut self, (directory, name): (BorrowedFd<'_>, &CStr), path: &[u8]) -> io::Result<()> {
        let opened = openat2(directory, name, FILE, Mode::empty(), INSIDE);
        let Some(opened) = self.is_there(opened)? else { return Ok(()) };
        let file = File::from(opened);
        let stat = rustix::fs::fstat(&file)?;
        let attributes = attributes(file.as_fd())?;
        let is_partial = has(&attributes, b"trusted.overlay.metacopy");
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || is_partial {
            self.left_out += 1;
            return Ok(());
        }
        let attributes = kept(attributes);
        let head = Head { path, owner: self.owner(&stat), attributes: &attributes };
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&identity(&stat)) {
                return head.write(&mut self.archive, &Kind::Link(first));
            }
            self.links.insert(identity(&stat), path.to_owned());
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or_default();
        head.write_file(&mut self.archive, (&file, size_bytes))
    }

    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
        let stat = rustix::fs::fstat(directory)?;
        let attributes = attributes(directory)?;
        let is_opaque = has(&attributes, b"trusted.overlay.opaque");
        // It was renamed, and the rest of what it holds is in a lower layer.
        self.left_out += u64::from(has(&attributes, b"trusted.overlay.redirect"));
        let attributes = kept(attributes);
        let head = Head { path, owner: self.owner(&stat), attributes: &attributes };
        head.write(&mut self.archive, &Kind::Directory)?;
        match is_opaque {
            true => self.mark(&[path, OPAQUE].concat()),
            false => Ok(()),
        }
    }

    fn whiteout(&mut self, path: &[u8]) -> io::Result<()> {
        let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(name_at);
        self.mark(&[parent, WHITEOUT, name].concat())
    }

    /// Writes a name that says something of the layers below.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        let head = Head { path, owner: Owner::default(), attributes: &[] };
        head.write(&mut self.archive, &Kind::Empty)
    }

    fn owner(&self, stat: &Stat) -> Owner {
        Owner {
            mode: stat.st_mode,
            uid: inside(self.ids, stat.st_uid),
            gid: inside(self.ids, stat.st_gid),
            modified_at: u64::try_from(stat.st_mtime).unwrap_or_default(),
        }
    }
}

/// What an id of the host is inside.
fn inside(ids: Option<UserIds>, id: u32) -> u32 {
    match ids {
        None => id,
        Some(ids) => id.checked_sub(ids.first).filter(|inner| *inner < ids.count).unwrap_or(NOBODY),
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

type Attribute = (Vec<u8>, Vec<u8>);

/// The extended attributes of a file, read from its descriptor.
fn attributes(file: BorrowedFd<'_>) -> io::Result<Vec<Attribute>> {
    let mut names = vec![0; MAX_ATTRIBUTE_BYTES];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_ATTRIBUTE_BYTES];
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                found.push((name.to_owned(), value));
            }
            // Gone again.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn has(attributes: &[Attribute], name: &[u8]) -> bool {
    attributes.iter().any(|(known, _)| known == name)
}

/// Those that a layer carries: nothing of overlayfs, and nothing that a pax record cannot name.
fn kept(attributes: Vec<Attribute>) -> Vec<(String, Vec<u8>)> {
    let is_kept = |name: &String| {
        let is_users = name.starts_with("user.") && !name.starts_with("user.overlay.");
        (is_users || name == "security.capability") && !name.contains(['=', '\n'])
    };
    attributes
        .into_iter()
        .filter_map(|(name, value)| Some((String::from_utf8(name).ok()?, value)))
        .filter(|(name, _)| is_kept(name))
        .collect()
}

#[cfg(test)]
mod tests;
