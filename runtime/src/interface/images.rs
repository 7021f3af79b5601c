//! Images and the store that keeps them.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::ImageId;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The configuration's digest.
    pub id: ImageId,
    /// Normalized references with a tag: `docker.io/library/busybox:1.36`.
    pub tags: Vec<String>,
    /// Normalized references with the manifest's digest: `docker.io/library/busybox@sha256:…`.
    pub digests: Vec<String>,
    /// Bytes of the layers as stored, unpacked.
    pub size_bytes: u64,
    /// The `USER` of the configuration, unresolved.
    pub user: String,
    /// Whether garbage collection must keep it: it was imported, and perhaps no registry has it.
    pub pinned: bool,
}

/// A user name and password, or an identity token, for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Basic authentication, also used to ask for bearer tokens.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A bearer token used as it is.
    Bearer(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Which of the credentials opened it, by their place in the list; `None` where there were none.
    pub opened_by: Option<usize>,
}

/// How far a pull has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    /// Compressed bytes received.
    pub received_bytes: u64,
    /// Compressed bytes in all; 0 until the manifest is known.
    pub total_bytes: u64,
}

/// Receives progress; must not block.
pub type ProgressSink = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// Why an image operation failed, in the classes that decide a pod's reason strings.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a reference (upstream's `InvalidImageName`).
    #[error("couldn't parse image name {reference:?}: {message}")]
    InvalidName {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        message: String,
    },
    /// The registry has no such image, or denies it (`ErrImagePull`).
    #[error("failed to pull image {reference:?}: {message}")]
    Pull {
        /// What was asked for.
        reference: String,
        /// What the registry, the network or the verification said, without credentials.
        message: String,
    },
    /// The registry cannot be reached (`RegistryUnavailable`).
    #[error("failed to pull image {reference:?}: registry unavailable: {message}")]
    RegistryUnavailable {
        /// What was asked for.
        reference: String,
        /// What the network said.
        message: String,
    },
    /// The store failed.
    #[error("{operation}")]
    Store {
        /// What was being done, with its facts.
        operation: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Keeps images.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The image a reference (tag, digest or image id) names in the store, without any network.
    async fn status(&self, reference: &str) -> Result<Option<Image>, ImageError>;

    /// Pulls, verifies and unpacks, with each of the credentials in turn; the registry is asked also when
    /// all is there. Concurrent pulls of one layer share it.
    async fn pull(
        &self,
        reference: &str,
        credentials: Vec<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Pulled, ImageError>;

    /// All images.
    async fn list(&self) -> Result<Vec<Image>, ImageError>;

    /// What all layers take: bytes and inodes. A store that does not know says `None`.
    async fn stored(&self) -> Result<Option<(u64, u64)>, ImageError> {
        Ok(None)
    }

    /// Removes layers that neither an image nor a container needs.
    async fn sweep(&self) -> Result<(), ImageError> {
        Ok(())
    }

    /// Drops an image's references and, where no other image needs them, its layers.
    async fn remove(&self, reference: &str) -> Result<(), ImageError>;
}
