//! What the store knows of images: records, references and the documents they were made from.
//!
//! ```text
//! images/<config hex>.json   Record: layers, size, user
//! refs/<hex of name>.json    Name → record and manifest
//! blobs/sha256/<hex>         manifests, indexes and configurations, verified before written
//! ```
//! A record is written before a name that points at it; a name without its record is dropped at
//! start. All methods block.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{ChainId, Digest};
use super::manifest::MAX_DOCUMENT_BYTES;
use crate::disk;
use crate::interface::{Image, ImageId};

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: ImageId,
    /// Bottom first.
    pub(crate) layers: Vec<ChainId>,
    pub(crate) size_bytes: u64,
    pub(crate) user: String,
    /// Whether it was imported: no registry need have it, so it goes only when it is removed by name.
    #[serde(default)]
    pub(crate) pinned: bool,
}

/// A normalized reference that is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) name: String,
    pub(crate) image: ImageId,
    /// The manifest or index that the registry serves under the name.
    pub(crate) manifest: Digest,
}

/// All images and names, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Catalog {
    root: PathBuf,
    records: BTreeMap<ImageId, Record>,
    names: BTreeMap<String, Name>,
}

impl Catalog {
    /// Reads what is there; what is torn is set aside.
    pub(crate) fn open(root: &Path, quarantine: &Path) -> io::Result<Self> {
        let mut catalog =
            Self { root: root.to_owned(), records: BTreeMap::new(), names: BTreeMap::new() };
        for dir in ["images", "refs", "blobs/sha256"] {
            disk::make_private_dir(&root.join(dir))?;
        }
        for (_, path) in disk::entries(&root.join("images"))? {
            let record: Option<Record> = disk::read_json(&path, quarantine).value();
            if let Some(record) = record {
                catalog.records.insert(record.id.clone(), record);
            }
        }
        for (_, path) in disk::entries(&root.join("refs"))? {
            let name: Option<Name> = disk::read_json(&path, quarantine).value();
            match name {
                Some(name) if catalog.records.contains_key(&name.image) => {
                    catalog.names.insert(name.name.clone(), name);
                }
                Some(_) => disk::remove_tree(&path)?,
                None => {}
            }
        }
        Ok(catalog)
    }

    fn record_path(&self, id: &ImageId) -> PathBuf {
        let hex = id.as_str().trim_start_matches("sha256:");
        self.root.join("images").join(format!("{hex}.json"))
    }

    fn name_path(&self, name: &str) -> PathBuf {
        let hex = Digest::of(name.as_bytes());
        self.root.join("refs").join(format!("{}.json", hex.hex()))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Writes a document whose digest the caller has verified.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        let path = self.blob_path(digest);
        if path.exists() {
            return Ok(());
        }
        disk::write_bytes(&path, bytes)
    }

    /// Reads a document and verifies it again: disks rot.
    pub(crate) fn blob(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let bytes =
            disk::read_limited(&path, MAX_DOCUMENT_BYTES).map_err(|e| disk::at(&path, e))?;
        if Digest::of(&bytes) == *digest {
            Ok(bytes)
        } else {
            let message = format!("{}: the content does not match its digest", path.display());
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }

    /// Adds or replaces an image and its names. What was pinned stays so.
    pub(crate) fn commit(&mut self, mut record: Record, names: Vec<Name>) -> io::Result<()> {
        record.pinned |= self.records.get(&record.id).is_some_and(|known| known.pinned);
        if self.records.get(&record.id) != Some(&record) {
            disk::write_json(&self.record_path(&record.id), &record)?;
            self.records.insert(record.id.clone(), record);
        }
        for name in names {
            if self.names.get(&name.name) != Some(&name) {
                disk::write_json(&self.name_path(&name.name), &name)?;
                self.names.insert(name.name.clone(), name);
            }
        }
        Ok(())
    }

    /// The image of a normalized name.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Record> {
        self.records.get(&self.names.get(name)?.image)
    }

    /// The image with an id.
    pub(crate) fn by_id(&self, id: &ImageId) -> Option<&Record> {
        self.records.get(id)
    }

    /// All images.
    pub(crate) fn images(&self) -> Vec<Image> {
        self.records.values().map(|record| self.image(record)).collect()
    }

    /// An image with its names.
    pub(crate) fn image(&self, record: &Record) -> Image {
        let names = self.names.values().filter(|name| name.image == record.id);
        let (digests, tags) =
            names.map(|name| name.name.clone()).partition(|name| name.contains('@'));
        Image {
            id: record.id.clone(),
            tags,
            digests,
            size_bytes: record.size_bytes,
            user: record.user.clone(),
            pinned: record.pinned,
        }
    }

    /// Drops an image with its names.
    pub(crate) fn remove(&mut self, id: &ImageId) -> io::Result<()> {
        let names = self.names.values().filter(|name| name.image == *id);
        let names: Vec<String> = names.map(|name| name.name.clone()).collect();
        for name in names {
            disk::remove_tree(&self.name_path(&name))?;
            self.names.remove(&name);
        }
        disk::remove_tree(&self.record_path(id))?;
        self.records.remove(id);
        self.collect_blobs()
    }

    /// Drops images that have no name left.
    pub(crate) fn drop_unnamed(&mut self) -> io::Result<()> {
        let named: HashSet<&ImageId> = self.names.values().map(|name| &name.image).collect();
        let unnamed = self.records.keys().filter(|id| !named.contains(id));
        let unnamed: Vec<ImageId> = unnamed.cloned().collect();
        for id in unnamed {
            disk::remove_tree(&self.record_path(&id))?;
            self.records.remove(&id);
        }
        self.collect_blobs()
    }

    fn collect_blobs(&self) -> io::Result<()> {
        let configs = self.records.keys().map(|id| id.as_str());
        let manifests = self.names.values().map(|name| name.manifest.as_str());
        let needed: HashSet<&str> = configs.chain(manifests).collect();
        for (hex, path) in disk::entries(&self.root.join("blobs/sha256"))? {
            if !needed.contains(format!("sha256:{hex}").as_str()) {
                disk::remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// The layers that images need.
    pub(crate) fn needed_layers(&self) -> HashSet<ChainId> {
        let layers = self.records.values().flat_map(|record| &record.layers);
        layers.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seed: &[u8]) -> Record {
        Record {
            id: ImageId::try_from(Digest::of(seed).to_string()).unwrap(),
            layers: vec![ChainId::from(Digest::of(b"layer"))],
            size_bytes: 7,
            user: String::new(),
            pinned: false,
        }
    }

    fn name(name: &str, record: &Record) -> Name {
        Name { name: name.to_owned(), image: record.id.clone(), manifest: Digest::of(b"manifest") }
    }

    #[test]
    fn a_moved_tag_leaves_the_old_image_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = dir.path().join("q");
        let mut catalog = Catalog::open(dir.path(), &quarantine).unwrap();
        let (old, new) = (record(b"old"), record(b"new"));
        let digest = format!("r/a@{}", Digest::of(b"manifest"));
        let names = vec![name("r/a:1", &old), name(&digest, &old)];
        catalog.commit(old.clone(), names).unwrap();
        catalog.commit(new.clone(), vec![name("r/a:1", &new)]).unwrap();

        let catalog = Catalog::open(dir.path(), &quarantine).unwrap();
        assert_eq!(catalog.by_name("r/a:1"), Some(&new));
        assert_eq!(catalog.image(&old).tags, Vec::<String>::new());
        assert_eq!(catalog.image(&old).digests, vec![digest]);
        assert_eq!(catalog.images().len(), 2);
    }

    #[test]
    fn an_imported_image_stays_pinned_though_it_is_pulled_later() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = dir.path().join("q");
        let mut catalog = Catalog::open(dir.path(), &quarantine).unwrap();
        for (pinned, expected) in [(false, false), (true, true), (false, true)] {
            let image = Record { pinned, ..record(b"image") };
            catalog.commit(image.clone(), vec![name("r/a:1", &image)]).unwrap();
            let catalog = Catalog::open(dir.path(), &quarantine).unwrap();
            assert_eq!(catalog.images()[0].pinned, expected);
        }
    }

    #[test]
    fn removing_an_image_takes_its_names_and_documents() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = dir.path().join("q");
        let mut catalog = Catalog::open(dir.path(), &quarantine).unwrap();
        let image = record(b"old");
        catalog.put_blob(&Digest::of(b"old"), b"old").unwrap();
        catalog.commit(image.clone(), vec![name("r/a:1", &image)]).unwrap();
        assert_eq!(catalog.blob(&Digest::of(b"old")).unwrap(), b"old");
        catalog.remove(&image.id).unwrap();
        let left = ["images", "refs", "blobs/sha256"]
            .map(|d| disk::entries(&dir.path().join(d)).unwrap().len());
        assert_eq!(left, [0, 0, 0]);
    }

    #[test]
    fn a_rotten_document_and_a_torn_name_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = dir.path().join("q");
        let mut catalog = Catalog::open(dir.path(), &quarantine).unwrap();
        let image = record(b"old");
        catalog.put_blob(&Digest::of(b"old"), b"old").unwrap();
        catalog.commit(image.clone(), vec![name("r/a:1", &image)]).unwrap();
        std::fs::write(dir.path().join("blobs/sha256").join(Digest::of(b"old").hex()), b"OLD")
            .unwrap();
        assert!(catalog.blob(&Digest::of(b"old")).is_err());
        let (_, torn) = disk::entries(&dir.path().join("refs")).unwrap().remove(0);
        std::fs::write(torn, b"{").unwrap();
        let catalog = Catalog::open(dir.path(), &quarantine).unwrap();
        assert!(catalog.by_name("r/a:1").is_none());
        assert_eq!(disk::entries(&quarantine).unwrap().len(), 1);
    }
}
