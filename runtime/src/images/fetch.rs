//! One layer from its source into the store: hashed and unpacked while it streams, resumed by range
//! where the connection breaks, and made part of the store only when both digests are right.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use super::digest::{ChainId, Digest, Hasher};
use super::layers::{Draft, Layer, Layers};
use super::manifest::Descriptor;
use super::registry::Failure;
use super::source::Source;
use super::unpack::{self, Budget, Unpacker};
use crate::disk;
use crate::executable::Executable;

/// How often a broken transfer is resumed.
const RESUMES: u32 = 6;
/// How much more is read, once the unpacker gave up, to tell a wrong digest from a bad layer.
const DIAGNOSIS_BYTES: u64 = 64 << 20;

/// Why a layer could not be had. Shared by all pulls that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error("layer {layer}: {failure}")]
    Transfer { layer: Digest, failure: Failure },
    #[error("layer {layer}: the content does not match its digest: got {actual}")]
    Digest { layer: Digest, actual: Digest },
    #[error("layer {layer}: the content is longer than the {size} bytes the manifest says")]
    TooLong { layer: Digest, size: u64 },
    #[error("layer {layer}: the diff id is {actual}, the image configuration says {expected}")]
    DiffId { layer: Digest, expected: Digest, actual: Digest },
    #[error("layer {layer}: failed to unpack: {message}")]
    Unpack { layer: Digest, message: String },
    #[error("layer {layer}: {message}")]
    Store { layer: Digest, message: String },
}

/// Told how many further bytes have arrived.
pub(crate) type Received = Arc<dyn Fn(u64) + Send + Sync>;

/// A layer to fetch.
pub(crate) struct Job {
    pub(crate) source: Arc<Source>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) executable: Arc<Executable>,
    pub(crate) budget: Budget,
    pub(crate) blob: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) chain_id: ChainId,
    pub(crate) received: Received,
}

impl Job {
    /// Does it. On failure the draft is gone before this returns; when dropped, soon after.
    pub(crate) async fn run(self) -> Result<Layer, Error> {
        let layers = self.layers.clone();
        let drafted = disk::blocking(move || layers.draft()).await;
        let draft = drafted.map_err(|error| self.store_failure(&error))?;
        let layer = match self.fill(&draft).await {
            Ok(layer) => layer,
            Err(error) => {
                // The unpacker has ended: nobody writes below the draft any more.
                if let Err(error) = disk::blocking(move || draft.discard()).await {
                    tracing::warn!(%error, "an unfinished layer could not be removed");
                }
                return Err(error);
            }
        };
        let (layers, id, copy) = (self.layers.clone(), self.chain_id.clone(), layer.clone());
        let published = disk::blocking(move || layers.publish(draft, &id, copy)).await;
        published.map_err(|error| self.store_failure(&error))?;
        Ok(layer)
    }

    /// Transfers and unpacks into the draft, and checks both digests. No unpacker is left running.
    async fn fill(&self, draft: &Draft) -> Result<Layer, Error> {
        let start = Unpacker::start(&self.executable, &draft.target(), self.budget);
        let mut unpacker = start.map_err(|error| self.unpack_failure(&error))?;
        match self.transfer(&mut unpacker).await {
            Ok(Transferred::Whole(actual)) if actual == self.blob.digest => {}
            Ok(Transferred::Whole(actual)) => {
                unpacker.abort().await;
                let layer = self.blob.digest.clone();
                return Err(Error::Digest { layer, actual });
            }
            Ok(Transferred::GivenUp) => return Err(self.verdict(unpacker).await),
            Err(error) => {
                unpacker.abort().await;
                return Err(error);
            }
        }
        let finished = unpacker.finish().await;
        let unpacked = finished.map_err(|error| self.unpack_failure(&error))?;
        if unpacked.diff_id != self.diff_id {
            return Err(Error::DiffId {
                layer: self.blob.digest.clone(),
                expected: self.diff_id.clone(),
                actual: unpacked.diff_id,
            });
        }
        Ok(Layer { diff_id: unpacked.diff_id, bytes: unpacked.bytes, entries: unpacked.entries })
    }

    async fn transfer(&self, unpacker: &mut Unpacker) -> Result<Transferred, Error> {
        let size = self.blob.size_bytes;
        let mut hasher = Hasher::default();
        let mut offset = 0;
        let mut delay = Duration::from_millis(200);
        for attempt in 0.. {
            let failure = match self.source.blob(&self.blob.digest, offset).await {
                Err(failure) => failure,
                Ok(mut stream) => loop {
                    match stream.next().await {
                        None if offset == size => return Ok(Transferred::Whole(hasher.finish())),
                        None => break Failure::Unavailable("the transfer ended early".into()),
                        Some(Err(failure)) => break failure,
                        Some(Ok(bytes)) => {
                            offset += bytes.len() as u64;
                            if offset > size {
                                let layer = self.blob.digest.clone();
                                return Err(Error::TooLong { layer, size });
                            }
                            hasher.update(&bytes);
                            (self.received)(bytes.len() as u64);
                            let fed = unpacker.feed(&bytes).await;
                            fed.map_err(|error| self.unpack_failure(&error))?;
                            if unpacker.has_given_up() && size - offset > DIAGNOSIS_BYTES {
                                return Ok(Transferred::GivenUp);
                            }
                        }
                    }
                },
            };
            if attempt == RESUMES || matches!(failure, Failure::Refused(_)) {
                let layer = self.blob.digest.clone();
                return Err(Error::Transfer { layer, failure });
            }
            tracing::debug!(layer = %self.blob.digest, offset, %failure, "transfer resumed");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(5));
        }
        Ok(Transferred::GivenUp)
    }

    /// What the unpacker has against the layer.
    async fn verdict(&self, unpacker: Unpacker) -> Error {
        match unpacker.finish().await {
            Err(error) => self.unpack_failure(&error),
            Ok(_) => Error::Unpack {
                layer: self.blob.digest.clone(),
                message: "the unpacker ended before the layer did".to_owned(),
            },
        }
    }

    fn unpack_failure(&self, error: &unpack::Error) -> Error {
        Error::Unpack { layer: self.blob.digest.clone(), message: super::chain(error) }
    }

    fn store_failure(&self, error: &std::io::Error) -> Error {
        Error::Store { layer: self.blob.digest.clone(), message: error.to_string() }
    }
}

enum Transferred {
    /// All bytes came; this is their digest.
    Whole(Digest),
    /// The unpacker stopped reading far from the end.
    GivenUp,
}
