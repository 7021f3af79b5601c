//! Imports an OCI image layout from a tar archive (OCI image specification, *Image Layout*).
//!
//! The archive is read once, front to back: `index.json` and `blobs/sha256/<hex>` go to a directory
//! of their own, each blob hashed against its name while it is written. Then the images are obtained
//! from there as if from a registry. Extended headers that would change an entry's name or size are
//! refused, so that this reader and any other see the same entries (RUSTSEC-2026-0067).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::EntryType;

use super::digest::{Digest, Hasher};
use super::manifest::{self, Document, Invalid, MAX_DOCUMENT_BYTES};
use super::pull::{self, Named, Origin};
use super::reference::Reference;
use super::source::{Source, Target};
use super::{Store, store_error};
use crate::disk;
use crate::interface::{Image, ImageError};

/// The most entries of an archive.
const MAX_ENTRIES: usize = 10_000;
/// The largest extended header.
const MAX_HEADER_BYTES: u64 = 64 << 10;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read the archive")]
    Read(#[from] io::Error),
    #[error("{0} is longer than {1} bytes")]
    TooLong(String, u64),
    #[error("the archive has more than {MAX_ENTRIES} entries")]
    Entries,
    #[error("blob {name} does not match its name: got {actual}")]
    Digest { name: Digest, actual: Digest },
    #[error("an extended header changes the {0} of an entry")]
    ExtendedHeader(&'static str),
    #[error("the archive holds no index.json")]
    NoIndex,
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("write the image layout")]
    Write(#[source] io::Error),
}

/// Removes the spooled layout.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = disk::remove_tree(&self.0) {
            tracing::warn!(%error, "an imported layout could not be removed");
        }
    }
}

pub(super) async fn run<R>(store: &Store, archive: R) -> Result<Vec<Image>, ImageError>
where
    R: Read + Send + 'static,
{
    let dir = store.config.dir.join("tmp").join(disk::unique_suffix());
    let limit = store.config.max_import_bytes;
    let spool = Arc::new(Spool(dir));
    let target = spool.clone();
    let spooled = tokio::task::spawn_blocking(move || spool_layout(archive, &target.0, limit));
    let index = match spooled.await {
        Ok(Ok(index)) => index,
        Ok(Err(Error::Write(source))) => return Err(store_error("import an archive", source)),
        Ok(Err(error)) => return Err(refused("archive", &error)),
        Err(panic) => return Err(store_error("import an archive", io::Error::other(panic))),
    };
    let source = Arc::new(Source::Layout(spool.0.join("blobs")));
    let mut images = Vec::new();
    for entry in &index.entries {
        let reference = name_of(entry.name.as_deref())?;
        let image = one(store, &source, entry, &reference).await;
        images.push(image.map_err(|error| error.about(&reference.to_string()))?);
    }
    Ok(images)
}

fn refused(reference: &str, error: &Error) -> ImageError {
    ImageError::Pull { reference: reference.to_owned(), message: super::chain(error) }
}

/// The reference an index entry is imported as. A bare tag, as some tools write it, names nothing.
fn name_of(name: Option<&str>) -> Result<Reference, ImageError> {
    let invalid = |reference: &str, message: &str| ImageError::InvalidName {
        reference: reference.chars().take(1024).collect(),
        message: message.to_owned(),
    };
    match name {
        None => Err(invalid("", "the archive's index gives the image no name")),
        Some(tag) if !tag.contains(['/', ':', '@']) => {
            Err(invalid(tag, "the archive's index names a tag without a repository"))
        }
        Some(name) => Reference::parse(name),
    }
}

async fn one(
    store: &Store,
    source: &Arc<Source>,
    entry: &manifest::IndexEntry,
    reference: &Reference,
) -> Result<Image, pull::Error> {
    let target = Target::Digest(&entry.descriptor.digest);
    let resolved = source.resolve(target, &store.config.platform).await?;
    let mut names = vec![reference.with_digest(&resolved.target)];
    names.extend(reference.tagged());
    let named = Named { resolved, names, origin: Origin::Archive };
    pull::obtain(store, source.clone(), named, None).await
}

/// Writes the archive's blobs below `dir` and returns its index. Blocking.
fn spool_layout(archive: impl Read, dir: &Path, limit: u64) -> Result<manifest::Index, Error> {
    let blobs = dir.join("blobs");
    disk::make_private_dir(&blobs).map_err(Error::Write)?;
    let mut archive = tar::Archive::new(archive.take(limit.saturating_add(1)));
    let mut budget = limit;
    let mut index = None;
    for (count, entry) in archive.entries()?.raw(true).enumerate() {
        let mut entry = entry?;
        if count == MAX_ENTRIES {
            return Err(Error::Entries);
        }
        let size = entry.header().entry_size()?;
        budget = budget
            .checked_sub(size)
            .ok_or_else(|| Error::TooLong("the archive".to_owned(), limit))?;
        match entry.header().entry_type() {
            EntryType::Regular => {}
            EntryType::XHeader | EntryType::XGlobalHeader => {
                check_extended(&mut entry, size)?;
                continue;
            }
            EntryType::GNULongName | EntryType::GNULongLink => {
                return Err(Error::ExtendedHeader("name"));
            }
            _ => continue,
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        match path.trim_start_matches("./") {
            "index.json" => index = Some(read_index(&mut entry, size)?),
            name => {
                let hex = name.strip_prefix("blobs/sha256/").unwrap_or_default();
                if let Ok(digest) = Digest::try_from(format!("sha256:{hex}")) {
                    spool_blob(&mut entry, &blobs, digest)?;
                }
            }
        }
    }
    match manifest::parse(&index.ok_or(Error::NoIndex)?, None)? {
        Document::Index(index) => Ok(index),
        Document::Manifest(_) => Err(Error::NoIndex),
    }
}

fn read_index(entry: &mut impl Read, size: u64) -> Result<Vec<u8>, Error> {
    if size > MAX_DOCUMENT_BYTES {
        return Err(Error::TooLong("index.json".to_owned(), MAX_DOCUMENT_BYTES));
    }
    let mut bytes = Vec::new();
    entry.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// PAX records are `<length> <key>=<value>\n`.
fn check_extended(entry: &mut impl Read, size: u64) -> Result<(), Error> {
    if size > MAX_HEADER_BYTES {
        return Err(Error::TooLong("an extended header".to_owned(), MAX_HEADER_BYTES));
    }
    let mut bytes = Vec::new();
    entry.take(MAX_HEADER_BYTES).read_to_end(&mut bytes)?;
    for line in bytes.split(|b| *b == b'\n') {
        let record = line.splitn(2, |b| *b == b' ').nth(1).unwrap_or_default();
        let key = record.split(|b| *b == b'=').next().unwrap_or_default();
        match key {
            b"path" | b"linkpath" => return Err(Error::ExtendedHeader("name")),
            b"size" => return Err(Error::ExtendedHeader("size")),
            key if key.starts_with(b"GNU.sparse") => return Err(Error::ExtendedHeader("size")),
            _ => {}
        }
    }
    Ok(())
}

fn spool_blob(entry: &mut impl Read, blobs: &Path, name: Digest) -> Result<(), Error> {
    let path = blobs.join(name.hex());
    let opened = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file: File = match opened {
        Ok(file) => file,
        // The same name twice is the same content twice, or one of them does not match its name.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(&path).map_err(Error::Write)?;
            File::create_new(&path).map_err(Error::Write)?
        }
        Err(error) => return Err(Error::Write(error)),
    };
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let length = entry.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        file.write_all(&buffer[..length]).map_err(Error::Write)?;
    }
    let actual = hasher.finish();
    if actual == name { Ok(()) } else { Err(Error::Digest { name, actual }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_entry_type(EntryType::Regular);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn spool(bytes: &[u8], limit: u64) -> Result<manifest::Index, Error> {
        let dir = tempfile::tempdir().unwrap();
        spool_layout(bytes, dir.path(), limit)
    }

    const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;

    #[test]
    fn a_layout_needs_an_index() {
        assert!(matches!(spool(&archive(&[]), 1 << 20), Err(Error::NoIndex)));
        let index = spool(&archive(&[("index.json", INDEX)]), 1 << 20).unwrap();
        assert!(index.entries.is_empty());
    }

    #[test]
    fn a_blob_that_is_not_what_its_name_says_is_refused() {
        let name = format!("blobs/sha256/{}", Digest::of(b"a").hex());
        let bytes = archive(&[("index.json", INDEX), (&name, b"b")]);
        assert!(matches!(spool(&bytes, 1 << 20), Err(Error::Digest { .. })));
    }

    #[test]
    fn the_budget_bounds_the_archive_and_the_index() {
        let bytes = archive(&[("index.json", INDEX)]);
        assert!(matches!(spool(&bytes, 10), Err(Error::TooLong(..)) | Err(Error::Read(_))));
        let huge = vec![b' '; (MAX_DOCUMENT_BYTES + 1) as usize];
        let bytes = archive(&[("index.json", &huge)]);
        assert!(matches!(spool(&bytes, 1 << 30), Err(Error::TooLong(..))));
    }

    #[test]
    fn an_extended_header_may_not_rename_or_resize() {
        for (record, refused) in
            [("17 path=../../x\n\n", true), ("12 size=99\n", true), ("20 mtime=1.5\n", false)]
        {
            let outcome = check_extended(&mut record.as_bytes(), record.len() as u64);
            assert_eq!(outcome.is_err(), refused, "{record}");
        }
    }

    #[test]
    fn an_image_without_a_whole_name_is_refused() {
        assert!(name_of(None).is_err());
        assert!(name_of(Some("latest")).is_err());
        let name = name_of(Some("demo:1")).unwrap().to_string();
        assert_eq!(name, "docker.io/library/demo:1");
    }
}
