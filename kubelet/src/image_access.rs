//! Who may use images that are there (KEP-2535): one that a pod's secret opened is not everybody's.
//!
//! It is kept which secrets opened which image from which repository, below the node's directory, so that
//! a restart forgets nothing: a pull is noted before it begins, so that an agent that is killed before it
//! knows the outcome does not take the image for one that was brought by hand. What cannot be told is for
//! the registry to answer: the image is pulled again, with what the pod has, which fetches a manifest and
//! no layer.
//!
//! Differs: upstream asks the registry again, too, when a container that has run restarts and its pod's
//! secrets cannot be had; here it goes on with the image that it had. An image that was imported stays
//! everybody's when a pod pulls the same from a registry.

mod policy;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::{Credentials, Image, ImageError, ImageId, Images};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

pub use policy::{Allowed, Verification};

use crate::image_policy::{Key, SecretName, repository_of};
use crate::replace::{Lasting, replace};

/// The file of what is known.
const FILE: &str = "image-access.json";
/// It is not larger than this.
const MOST_BYTES: u64 = 16 << 20;
/// So many secrets of an image are remembered that were only seen to fit; upstream's.
const MOST_SEEN: usize = 100;
/// How often images are forgotten that are gone.
const PERIOD: Duration = Duration::from_secs(300);

/// Why it is not known who may use an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The store does not list its images.
    #[error("list images: {}", crate::worker::chain(.0))]
    List(#[source] ImageError),
}

/// What a pod needs to use an image that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing.
    Nothing,
    /// A secret that opened it before.
    Key,
    /// The registry's leave: nobody's secret is known to have opened it.
    Registry,
}

/// A secret that opened an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Opener {
    secret: SecretName,
    /// SHA-256 of what was in it for the registry.
    hash: String,
}

impl Opener {
    fn of(key: &Key) -> Self {
        Self { secret: key.secret.clone(), hash: hash(&key.credentials) }
    }

    /// Whether this has the same content, or is the same secret with another.
    fn fits(&self, other: &Self) -> bool {
        self.hash == other.hash || self.secret == other.secret
    }
}

/// Who may use an image that came from one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Users {
    /// It was pulled without credentials.
    everyone: bool,
    openers: Vec<Opener>,
}

/// What is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Known {
    /// References that are being pulled, or whose pull was given up, and how often.
    pulling: BTreeMap<String, u32>,
    /// What was pulled for pods, by the repositories that it came from.
    pulled: BTreeMap<ImageId, BTreeMap<String, Users>>,
}

impl Known {
    fn users(&self, image: &ImageId, reference: &str) -> Option<&Users> {
        self.pulled.get(image)?.get(&repository_of(reference))
    }

    fn users_mut(&mut self, image: &ImageId, reference: &str) -> &mut Users {
        let repositories = self.pulled.entry(image.clone()).or_default();
        repositories.entry(repository_of(reference)).or_default()
    }

    fn end_pull(&mut self, reference: &str) {
        if let Some(count) = self.pulling.get_mut(reference) {
            *count = count.saturating_sub(1);
        }
        self.pulling.retain(|_, count| *count > 0);
    }
}

/// Knows who may use which image.
pub struct Access {
    verification: Verification,
    images: Arc<dyn Images>,
    file: PathBuf,
    /// `None` until the file is read.
    known: Mutex<Option<Known>>,
}

impl Access {
    /// Who may use the images of a store, kept below the node's directory `root`.
    pub fn new(verification: Verification, images: Arc<dyn Images>, root: &Path) -> Self {
        Self { verification, images, file: root.join(FILE), known: Mutex::default() }
    }

    /// Forgets images that are gone, until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.forget_gone().await {
                tracing::warn!(%error, "who may use images that are gone is not forgotten");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    async fn forget_gone(&self) -> Result<(), Error> {
        let mut known = self.known().await?;
        // Listed meanwhile: what is noted after this was there before it was noted.
        let images = self.images.list().await.map_err(Error::List)?;
        let before = known.pulled.len();
        known.pulled.retain(|id, _| images.iter().any(|image| image.id == *id));
        if known.pulled.len() != before {
            self.keep(&known).await;
        }
        Ok(())
    }

    /// What a pod needs to use an image that is there under `reference`. Where that cannot be told it is
    /// the registry's leave.
    pub(crate) async fn need(&self, image: &Image, reference: &str) -> Need {
        if matches!(self.verification, Verification::Never) {
            return Need::Nothing;
        }
        match self.known().await {
            Ok(known) => {
                let is_ours = !image.pinned
                    && (known.pulled.contains_key(&image.id)
                        || self.is_being_pulled(&known, image).await);
                match known.users(&image.id, reference) {
                    _ if !self.verification.is_due(reference, is_ours) => Need::Nothing,
                    Some(users) if users.everyone => Need::Nothing,
                    Some(users) if !users.openers.is_empty() => Need::Key,
                    _ => Need::Registry,
                }
            }
            Err(error) => {
                tracing::warn!(reference, %error, "it is not known who may use an image");
                Need::Registry
            }
        }
    }

    /// Whether some pull may have brought it that has not been noted yet.
    async fn is_being_pulled(&self, known: &Known, image: &Image) -> bool {
        for reference in known.pulling.keys() {
            if let Ok(Some(found)) = self.images.status(reference).await
                && found.id == image.id
            {
                return true;
            }
        }
        false
    }

    /// Whether one of the keys opened the image before, or is of a secret that did. Remembers those that
    /// fit and are new.
    pub(crate) async fn opens(&self, image: &Image, reference: &str, keys: &[Key]) -> bool {
        let result = self.try_opens(&image.id, reference, keys).await;
        result.unwrap_or_else(|error| {
            tracing::warn!(reference, %error, "it is not known who may use an image");
            false
        })
    }

    async fn try_opens(
        &self,
        image: &ImageId,
        reference: &str,
        keys: &[Key],
    ) -> Result<bool, Error> {
        let mut known = self.known().await?;
        let Some(users) = known.users(image, reference) else { return Ok(false) };
        let shown = keys.iter().map(Opener::of);
        let mut fitting = shown.filter(|shown| users.openers.iter().any(|old| old.fits(shown)));
        let Some(opener) = fitting.next() else { return Ok(false) };
        if users.openers.contains(&opener) || users.openers.len() >= MOST_SEEN {
            return Ok(true);
        }
        note(known.users_mut(image, reference), opener);
        self.keep(&known).await;
        Ok(true)
    }

    /// Notes that a pod's image is about to be pulled. Each of these is ended by [`Self::pulled`] or
    /// [`Self::failed`]; a pull that was given up stays, as it may have brought the image yet.
    ///
    /// # Errors
    /// When it cannot be kept, so that the image must not be pulled.
    pub(crate) async fn begin(&self, reference: &str) -> Result<(), Error> {
        let mut known = self.known().await?;
        let mut more = known.clone();
        let count = more.pulling.entry(reference.to_owned()).or_default();
        *count = count.saturating_add(1);
        if *count == 1 {
            self.write(more.clone(), Lasting::PowerCut).await?;
        }
        *known = more;
        Ok(())
    }

    /// Notes what a pull brought, and by whose key; `None` is without any. A failure to keep it is logged:
    /// after a restart the registry is asked again.
    pub(crate) async fn pulled(&self, reference: &str, image: &ImageId, key: Option<&Key>) {
        // Read by `begin`.
        let Ok(mut known) = self.known().await else { return };
        known.end_pull(reference);
        let users = known.users_mut(image, reference);
        match key {
            Some(key) => note(users, Opener::of(key)),
            None => users.everyone = true,
        }
        self.keep(&known).await;
    }

    /// Notes that a pull brought nothing, for certain.
    pub(crate) async fn failed(&self, reference: &str) {
        let Ok(mut known) = self.known().await else { return };
        known.end_pull(reference);
        self.keep(&known).await;
    }

    /// Writes what only makes it easier to use images: after a power cut, or where it cannot be written, the
    /// registry is asked again.
    async fn keep(&self, known: &Known) {
        if let Err(error) = self.write(known.clone(), Lasting::Process).await {
            tracing::warn!(%error, "who may use images is not kept on disk");
        }
    }

    async fn write(&self, known: Known, lasting: Lasting) -> Result<(), Error> {
        let file = self.file.clone();
        // Hashes of passwords are for root alone.
        let write = move || replace(&file, &serde_json::to_vec(&known)?, 0o600, lasting);
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|source| Error::File { path: self.file.clone(), source })
    }

    /// What is known; read first where it was not yet.
    async fn known(&self) -> Result<MappedMutexGuard<'_, Known>, Error> {
        let mut known = self.known.lock().await;
        if known.is_none() {
            let read = self.read().await?;
            // Those of an earlier agent have ended: what they brought is nobody's yet.
            let mut settled = Known { pulling: BTreeMap::new(), ..read.clone() };
            for reference in read.pulling.keys() {
                if let Ok(Some(image)) = self.images.status(reference).await {
                    settled.pulled.entry(image.id).or_default();
                }
            }
            if settled != read {
                self.write(settled.clone(), Lasting::PowerCut).await?;
            }
            *known = Some(settled);
        }
        Ok(MutexGuard::map(known, |known| known.get_or_insert_default()))
    }

    async fn read(&self) -> Result<Known, Error> {
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || read(&file)).await;
        let failed = |source| Error::File { path: self.file.clone(), source };
        match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(Some(known)) => Ok(known),
            Err(source) => Err(failed(source)),
            // What was known is lost: all that can be pulled has to be, once.
            Ok(None) => {
                let images = self.images.list().await.map_err(Error::List)?;
                let nobodys = images.into_iter().filter(|image| !image.pinned);
                let pulled = nobodys.map(|image| (image.id, BTreeMap::new())).collect();
                let known = Known { pulled, ..Known::default() };
                self.write(known.clone(), Lasting::PowerCut).await?;
                Ok(known)
            }
        }
    }
}

/// Remembers an opener in place of what is known of the same secret.
fn note(users: &mut Users, opener: Opener) {
    users.openers.retain(|old| old.secret != opener.secret);
    users.openers.push(opener);
}

fn hash(credentials: &Credentials) -> String {
    let text = match credentials {
        Credentials::Basic { username, password } => serde_json::json!([username, password]),
        Credentials::Bearer(token) => serde_json::json!(token),
    };
    let hash = digest(&SHA256, text.to_string().as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was kept; `None` where it makes no sense. A file that is not there says that nothing was pulled.
fn read(file: &Path) -> io::Result<Option<Known>> {
    let bytes = match fs::metadata(file) {
        Ok(facts) if facts.len() > MOST_BYTES => None,
        Ok(_) => Some(fs::read(file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Known::default())),
        Err(error) => return Err(error),
    };
    let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if known.is_none() {
        tracing::warn!(path = %file.display(), "who may use images cannot be read, put aside");
        fs::rename(file, file.with_extension("json.bad"))?;
    }
    Ok(known)
}

#[cfg(test)]
mod tests;
