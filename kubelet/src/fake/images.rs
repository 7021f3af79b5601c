//! An image store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use berth_runtime::interface::{
    Credentials, Image, ImageError, ImageId, Images, ProgressSink, Pulled,
};

use super::lock;
use crate::image_policy::{Key, SecretName};

/// An image store in memory: knows every image but those that are told to be missing.
#[derive(Default)]
pub(crate) struct FakeImages {
    /// References whose pull fails, with the registry's message.
    pub(crate) broken: Mutex<BTreeMap<String, String>>,
    /// References whose registry cannot be reached.
    pub(crate) unreachable: Mutex<BTreeSet<String>>,
    /// References that the store fails at.
    pub(crate) unreadable: Mutex<BTreeSet<String>>,
    /// References that are in the store.
    pub(crate) present: Mutex<BTreeSet<String>>,
    /// References that cannot be removed.
    pub(crate) kept: Mutex<BTreeSet<String>>,
    /// References whose pull brings them and fails all the same.
    pub(crate) torn: Mutex<BTreeSet<String>>,
    /// References that only the key of this secret opens.
    pub(crate) closed: Mutex<BTreeMap<String, String>>,
    /// How long a pull takes.
    pub(crate) takes: Mutex<Duration>,
}

/// The key of the secret of this name.
pub(crate) fn key(name: &str) -> Key {
    let credentials = Credentials::Bearer(format!("token of {name}"));
    let namespace = "default".to_owned();
    Key {
        credentials,
        secret: SecretName { uid: format!("uid-of-{name}"), namespace, name: name.into() },
    }
}

pub(crate) fn image(reference: &str) -> Image {
    let digit = format!("{:x}", reference.len() % 16);
    let id = ImageId::try_from(format!("sha256:{}", digit.repeat(64))).unwrap();
    Image {
        digests: vec![format!("registry.test/{reference}@{id}")],
        id,
        tags: vec![reference.to_owned()],
        size_bytes: 42,
        user: String::new(),
        pinned: false,
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        if reference.contains(' ') {
            return Err(ImageError::InvalidName {
                reference: reference.to_owned(),
                message: "invalid reference format".to_owned(),
            });
        }
        if lock(&self.unreadable).contains(reference) {
            let operation = format!("read image {reference}");
            return Err(ImageError::Store { operation, source: "input/output error".into() });
        }
        let present = lock(&self.present).contains(reference);
        Ok(present.then(|| image(reference)))
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Vec<Credentials>,
        _progress: Option<ProgressSink>,
    ) -> Result<Pulled, ImageError> {
        let takes = *lock(&self.takes);
        tokio::time::sleep(takes).await;
        if let Some(message) = lock(&self.broken).get(reference) {
            return Err(ImageError::Pull {
                reference: reference.to_owned(),
                message: message.clone(),
            });
        }
        if lock(&self.unreachable).contains(reference) {
            let message = "connection refused".to_owned();
            return Err(ImageError::RegistryUnavailable {
                reference: reference.to_owned(),
                message,
            });
        }
        let mut opened_by = (!credentials.is_empty()).then_some(0);
        if let Some(name) = lock(&self.closed).get(reference) {
            let right = key(name).credentials;
            opened_by = credentials.iter().position(|shown| *shown == right);
            if opened_by.is_none() {
                let message = "denied".to_owned();
                return Err(ImageError::Pull { reference: reference.to_owned(), message });
            }
        }
        lock(&self.present).insert(reference.to_owned());
        if lock(&self.torn).contains(reference) {
            let operation = format!("commit image {reference}");
            return Err(ImageError::Store { operation, source: "input/output error".into() });
        }
        Ok(Pulled { image: image(reference), opened_by })
    }

    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let present = lock(&self.present);
        Ok(present.iter().map(|r| image(r)).collect())
    }

    async fn stored(&self) -> Result<Option<(u64, u64)>, ImageError> {
        let count = u64::try_from(lock(&self.present).len()).unwrap_or(0);
        Ok(Some((count * 42, count)))
    }

    async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let is_meant = |known: &String| known == reference || image(known).id.as_str() == reference;
        if lock(&self.kept).iter().any(is_meant) {
            let operation = format!("remove image {reference}");
            return Err(ImageError::Store { operation, source: "read-only".into() });
        }
        lock(&self.present).retain(|known| !is_meant(known));
        Ok(())
    }
}
