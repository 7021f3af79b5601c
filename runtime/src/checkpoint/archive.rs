//! The archive of a checkpoint, with the names that containerd, CRI-O and checkpointctl read.
//!
//! ```text
//! checkpoint/        criu's images                 rootfs-diff.tar   what the container wrote to its root
//! config.dump        which container, which image  container.log     its log
//! spec.dump          its OCI specification         dump.log          what criu said
//! status, status.dump   its state, as containerd and the CRI tell it   stats-dump   what criu counted
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use tar::Builder;

use super::entry::{Head, Kind, Owner};
use super::sink::{Limits, Sink};

/// What is put into the archive beside criu's images.
pub(crate) struct Files<'a> {
    /// Small documents by name.
    pub(crate) documents: &'a [(&'static str, Vec<u8>)],
    /// Files by name in the archive and place; one that is not there is left out.
    pub(crate) copies: &'a [(&'static str, &'a Path)],
    /// The directory of criu's images.
    pub(crate) images: &'a Path,
    /// When it was made, in seconds since the epoch.
    pub(crate) made_at: u64,
}

/// Writes the archive, synced. Blocking.
///
/// # Errors
/// When something cannot be read, or the limits are reached.
pub(crate) fn pack(files: &Files<'_>, (file, limits): (File, Limits)) -> io::Result<()> {
    let mut archive = Builder::new(Sink::new(file, limits));
    let owner = |mode| Owner { mode, uid: 0, gid: 0, modified_at: files.made_at };
    for (name, content) in files.documents {
        let head = Head { path: name.as_bytes(), owner: owner(0o600), attributes: &[] };
        head.write_bytes(&mut archive, content)?;
    }
    let head = Head { path: b"checkpoint/", owner: owner(0o700), attributes: &[] };
    head.write(&mut archive, &Kind::Directory)?;
    let mut images: Vec<_> = fs::read_dir(files.images)?.collect::<Result<_, _>>()?;
    images.sort_by_key(fs::DirEntry::file_name);
    let images = images.iter().map(|image| {
        let name = [b"checkpoint/", image.file_name().as_encoded_bytes()].concat();
        (name, image.path())
    });
    let copies = files.copies.iter().map(|(name, path)| (name.as_bytes().to_vec(), path.into()));
    for (name, path) in images.chain(copies) {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = match File::options().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(crate::disk::at(&path, error)),
        };
        let metadata = file.metadata()?;
        if metadata.is_file() {
            let head = Head { path: &name, owner: owner(0o600), attributes: &[] };
            head.write_file(&mut archive, (&file, metadata.len()))?;
        }
    }
    archive.into_inner()?.into_file().sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::unix::fs::symlink;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn an_archive_holds_documents_images_and_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("inventory.img"), b"inventory").unwrap();
        let log = dir.path().join("log");
        fs::write(&log, b"said").unwrap();
        let missing = dir.path().join("missing");
        let mut file = tempfile::tempfile().unwrap();
        let files = Files {
            documents: &[("config.dump", b"{}".to_vec())],
            copies: &[("container.log", &log), ("dump.log", &missing)],
            images: &images,
            made_at: 5,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        pack(&files, (file.try_clone().unwrap(), Limits { deadline })).unwrap();
        file.rewind().unwrap();
        let mut archive = tar::Archive::new(file);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        let entries: Vec<_> = entries.collect();
        let expected = [
            ("config.dump", "{}"),
            ("checkpoint/", ""),
            ("checkpoint/inventory.img", "inventory"),
            ("container.log", "said"),
        ];
        assert_eq!(entries, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn a_log_that_is_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/etc/passwd", &link).unwrap();
        let files = Files {
            documents: &[],
            copies: &[("container.log", &link)],
            images: dir.path(),
            made_at: 5,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let outcome = pack(&files, (tempfile::tempfile().unwrap(), Limits { deadline }));
        assert!(outcome.is_err());
    }
}
