//! Where an image's documents and layers come from: a registry, or an OCI layout on disk.
//!
//! Documents are verified here; layers are verified by [`super::fetch`], as they stream.

use std::path::PathBuf;

use futures::StreamExt;
use tokio_util::io::ReaderStream;

use super::digest::Digest;
use super::manifest::{self, Descriptor, Document, Invalid, Manifest, Platform};
use super::registry::{ByteStream, Failure, Session};
use crate::disk;

/// How many indexes may stand between a name and its manifest.
const MAX_DEPTH: usize = 3;

/// Why an image cannot be had from a source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Registry(#[from] Failure),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("{what} does not match its digest: want {expected}, got {actual}")]
    Digest { what: &'static str, expected: Digest, actual: Digest },
    #[error("{what} {digest} is longer than {limit} bytes")]
    TooLong { what: &'static str, digest: Digest, limit: u64 },
    #[error("read the image layout")]
    Layout(#[source] std::io::Error),
}

/// A source of images.
pub(crate) enum Source {
    /// A repository of a registry.
    Registry(Session),
    /// `blobs/sha256` of an OCI layout, its files already verified against their names.
    Layout(PathBuf),
}

/// An image's documents.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The digest that the name stands for: of the index, where there is one.
    pub(crate) target: Digest,
    /// That document.
    pub(crate) target_bytes: Vec<u8>,
    /// The manifest for this platform.
    pub(crate) manifest: Manifest,
    /// Its configuration.
    pub(crate) config_bytes: Vec<u8>,
}

/// What a name stands for at a source.
pub(crate) enum Target<'a> {
    /// Whatever the registry says the tag is.
    Tag(&'a str),
    /// This content.
    Digest(&'a Digest),
}

impl Source {
    /// Fetches and verifies an image's documents.
    pub(crate) async fn resolve(
        &self,
        target: Target<'_>,
        platform: &Platform,
    ) -> Result<Resolved, Error> {
        let (name, expected) = match target {
            Target::Tag(tag) => (tag, None),
            Target::Digest(digest) => (digest.as_str(), Some(digest)),
        };
        let (target_bytes, declared) = self.document(name).await?;
        let target = Digest::of(&target_bytes);
        if let Some(expected) = expected {
            verify("the manifest", expected, &target_bytes)?;
        }
        let mut document = manifest::parse(&target_bytes, declared.as_deref())?;
        for _ in 0..MAX_DEPTH {
            let next = match document {
                Document::Manifest(manifest) => {
                    let config_bytes = self.config(&manifest.config).await?;
                    return Ok(Resolved { target, target_bytes, manifest, config_bytes });
                }
                Document::Index(index) => index.choose(platform)?.clone(),
            };
            let (bytes, declared) = self.document(next.digest.as_str()).await?;
            verify("the manifest", &next.digest, &bytes)?;
            // The index's word for what it lists must hold as well as the registry's.
            manifest::parse(&bytes, declared.as_deref())?;
            document = manifest::parse(&bytes, Some(&next.media_type))?;
        }
        Err(Invalid::Shape(format!("more than {MAX_DEPTH} nested indexes")).into())
    }

    async fn document(&self, name: &str) -> Result<(Vec<u8>, Option<String>), Error> {
        match self {
            Self::Registry(session) => {
                let raw = session.manifest(name, manifest::ACCEPT).await?;
                Ok((raw.bytes, raw.content_type))
            }
            Self::Layout(blobs) => {
                let digest = Digest::try_from(name).map_err(Invalid::from)?;
                let path = blobs.join(digest.hex());
                let limit = manifest::MAX_DOCUMENT_BYTES;
                let read = move || disk::read_limited(&path, limit).map_err(|e| disk::at(&path, e));
                let bytes = disk::blocking(read).await.map_err(Error::Layout)?;
                Ok((bytes, None))
            }
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let limit = manifest::MAX_DOCUMENT_BYTES.min(descriptor.size_bytes);
        let what = "the image configuration";
        let too_long = || Error::TooLong { what, digest: descriptor.digest.clone(), limit };
        let mut bytes = Vec::new();
        let mut stream = self.blob(&descriptor.digest, 0).await?;
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() as u64 > limit {
                return Err(too_long());
            }
        }
        verify(what, &descriptor.digest, &bytes)?;
        Ok(bytes)
    }

    /// A blob's bytes from `offset` on, unverified.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<ByteStream, Failure> {
        match self {
            Self::Registry(session) => session.blob(digest, offset).await,
            Self::Layout(blobs) => {
                let path = blobs.join(digest.hex());
                let refused = |error: std::io::Error| {
                    Failure::Refused(format!("read {digest} of the image layout: {error}"))
                };
                let mut file = tokio::fs::File::open(&path).await.map_err(refused)?;
                if offset > 0 {
                    use tokio::io::AsyncSeekExt;
                    let position = std::io::SeekFrom::Start(offset);
                    file.seek(position).await.map_err(refused)?;
                }
                let stream = ReaderStream::with_capacity(file, 128 << 10);
                let failed = |e: std::io::Error| Failure::Refused(e.to_string());
                Ok(stream.map(move |chunk| chunk.map_err(failed)).boxed())
            }
        }
    }
}

fn verify(what: &'static str, expected: &Digest, bytes: &[u8]) -> Result<(), Error> {
    let actual = Digest::of(bytes);
    if actual == *expected {
        Ok(())
    } else {
        Err(Error::Digest { what, expected: expected.clone(), actual })
    }
}
