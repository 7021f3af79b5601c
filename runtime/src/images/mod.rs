//! The image store: pulls, imports, keeps and removes images.
//!
//! ```text
//! <dir>/blobs/sha256/<hex>   manifests and configurations
//!       images/<hex>.json    records          refs/<hex>.json   names
//!       layers/<hex>/fs      unpacked layers by chain id, with a marker `done`
//!       tmp/                 drafts; emptied at start          quarantine/  what was torn
//! ```
//! Compressed layers are not kept: they are unpacked while they are downloaded. What an image is
//! allowed to say about running it is in [`config`]; running it is the engine's.

mod auth;
mod catalog;
pub mod config;
pub mod digest;
mod fetch;
mod import;
mod layers;
pub mod manifest;
mod pull;
pub mod reference;
mod registry;
mod source;
mod unpack;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use self::catalog::Catalog;
use self::config::ImageConfig;
use self::digest::{ChainId, Digest};
use self::layers::Layers;
use self::manifest::Platform;
use self::reference::Reference;
use crate::disk;
use crate::executable::Executable;
use crate::interface::{Credentials, Image, ImageError, ImageId, Images, ProgressSink, Pulled};

pub use self::layers::Hold;
pub use self::unpack::Budget;

/// Where and within which bounds images are kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// The store's directory: `/var/lib/berth/images`.
    pub dir: PathBuf,
    /// `berth-oci`, for the unpacker.
    pub executable: Arc<Executable>,
    /// What one layer may become.
    pub layer_budget: Budget,
    /// The largest archive that is imported, in bytes.
    pub max_import_bytes: u64,
    /// Which images of an index are chosen.
    pub platform: Platform,
}

impl Config {
    /// The defaults for a directory.
    pub fn new(dir: PathBuf, executable: Arc<Executable>) -> Self {
        Self {
            dir,
            executable,
            layer_budget: Budget::default(),
            max_import_bytes: 32 << 30,
            platform: Platform::host(),
        }
    }
}

/// The image store. One process may open a directory at a time.
pub struct Store {
    config: Config,
    client: registry::Client,
    layers: Arc<Layers>,
    catalog: Arc<Mutex<Catalog>>,
    flights: Mutex<HashMap<ChainId, pull::WeakFlight>>,
}

/// What a container needs of its image.
#[derive(Debug)]
pub struct Prepared {
    /// What the image says about running it.
    pub config: ImageConfig,
    /// The layers, bottom first.
    pub layers: Vec<ChainId>,
    /// The layers' directories, topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Keeps the layers.
    pub hold: Hold,
}

impl Store {
    /// Opens a store; what a crash left unfinished is removed.
    ///
    /// # Errors
    /// [`ImageError::Store`], when the directory cannot be read or written. Torn files are none.
    pub async fn open(config: Config) -> Result<Arc<Self>, ImageError> {
        let client = registry::Client::new()
            .map_err(|error| store_error("set up the registry client", io::Error::other(error)))?;
        let root = config.dir.clone();
        let opened = disk::blocking(move || {
            disk::make_private_dir(&root.join("empty"))?;
            let quarantine = root.join("quarantine");
            let layers = Arc::new(Layers::open(&root, &quarantine)?);
            let mut catalog = Catalog::open(&root, &quarantine)?;
            drop_incomplete(&mut catalog, &layers)?;
            Ok((layers, catalog))
        });
        let (layers, catalog) =
            opened.await.map_err(|error| store_error("open the image store", error))?;
        Ok(Arc::new(Self {
            config,
            client,
            layers,
            catalog: Arc::new(Mutex::new(catalog)),
            flights: Mutex::default(),
        }))
    }

    /// Imports the images of an OCI layout in a tar archive, under the names that its index gives
    /// them. Layers and documents are verified as in a pull.
    ///
    /// # Errors
    /// [`ImageError::Pull`] for what is wrong with the archive, [`ImageError::Store`] for the store.
    pub async fn import<R>(&self, archive: R) -> Result<Vec<Image>, ImageError>
    where
        R: io::Read + Send + 'static,
    {
        import::run(self, archive).await
    }

    /// What a container needs of an image. The hold keeps the layers, whatever happens to the image.
    ///
    /// # Errors
    /// [`ImageError::Pull`] when there is no such image.
    pub async fn prepare(&self, id: &ImageId) -> Result<Prepared, ImageError> {
        let (catalog, layers) = (self.catalog.clone(), self.layers.clone());
        let (wanted, empty) = (id.clone(), self.config.dir.join("empty"));
        let prepared = disk::blocking(move || {
            let catalog = lock(&catalog);
            let Some(record) = catalog.by_id(&wanted) else {
                return Ok(None);
            };
            let chain = record.layers.clone();
            let hold = layers.hold(&chain);
            let digest = Digest::try_from(wanted.as_str()).map_err(io::Error::other)?;
            let config = ImageConfig::parse(&catalog.blob(&digest)?).map_err(io::Error::other)?;
            let mut lower: Vec<_> = chain.iter().rev().map(|id| layers.files(id)).collect();
            if lower.is_empty() {
                lower.push(empty);
            }
            Ok(Some(Prepared { config, layers: chain, lower, hold }))
        });
        let prepared =
            prepared.await.map_err(|error| store_error(format!("prepare image {id}"), error))?;
        prepared.ok_or_else(|| ImageError::Pull {
            reference: id.to_string(),
            message: "no such image in the store".to_owned(),
        })
    }

    /// Keeps layers that a container of an earlier run of the agent stands on.
    pub fn hold(&self, layers: &[ChainId]) -> Hold {
        self.layers.hold(layers)
    }

    /// Removes images without a name, and layers that neither an image nor a [`Hold`] needs. To be
    /// called once the holds of running containers are taken again.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn collect(&self) -> Result<(), ImageError> {
        self.collect_after("collect unused layers", Catalog::drop_unnamed).await
    }

    /// Does something to the catalog, and removes the layers that are not needed then. Their files go
    /// while others can use the store.
    async fn collect_after(
        &self,
        operation: impl Into<String>,
        work: impl FnOnce(&mut Catalog) -> io::Result<()> + Send + 'static,
    ) -> Result<(), ImageError> {
        let (catalog, layers) = (self.catalog.clone(), self.layers.clone());
        let done = disk::blocking(move || {
            let doomed = {
                let mut catalog = lock(&catalog);
                work(&mut catalog)?;
                layers.discard(&catalog.needed_layers())?
            };
            doomed.iter().try_for_each(|path| disk::remove_tree(path))
        });
        done.await.map_err(|error| store_error(operation, error))
    }
}

/// An image whose layers are not all there is dropped, so that it is pulled again.
fn drop_incomplete(catalog: &mut Catalog, layers: &Layers) -> io::Result<()> {
    for image in catalog.images() {
        let whole = catalog
            .by_id(&image.id)
            .is_some_and(|record| record.layers.iter().all(|id| layers.get(id).is_some()));
        if !whole {
            tracing::warn!(image = %image.id, "an image with missing layers is dropped");
            catalog.remove(&image.id)?;
        }
    }
    Ok(())
}

/// How an image in the store is named by a request.
enum Wanted {
    Id(ImageId),
    Name(String),
}

impl Wanted {
    fn parse(reference: &str) -> Result<Self, ImageError> {
        let with_prefix = match reference.len() {
            64 => format!("sha256:{reference}"),
            _ => reference.to_owned(),
        };
        if let Ok(id) = ImageId::try_from(with_prefix) {
            return Ok(Self::Id(id));
        }
        let parsed = Reference::parse(reference)?;
        let name = match (&parsed.digest, parsed.tagged()) {
            (Some(digest), _) => parsed.with_digest(digest),
            (None, Some(tagged)) => tagged,
            (None, None) => parsed.name(),
        };
        Ok(Self::Name(name))
    }

    fn find<'a>(&self, catalog: &'a Catalog) -> Option<&'a catalog::Record> {
        match self {
            Self::Id(id) => catalog.by_id(id),
            Self::Name(name) => catalog.by_name(name),
        }
    }
}

#[async_trait]
impl Images for Store {
    async fn status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let wanted = Wanted::parse(reference)?;
        let catalog = lock(&self.catalog);
        Ok(wanted.find(&catalog).map(|record| catalog.image(record)))
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Vec<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Pulled, ImageError> {
        let reference = Reference::parse(reference)?;
        pull::run(self, &reference, credentials, progress).await
    }

    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        Ok(lock(&self.catalog).images())
    }

    async fn stored(&self) -> Result<Option<(u64, u64)>, ImageError> {
        Ok(Some(self.layers.total()))
    }

    /// As containerd does it: every name of the image goes; layers that containers stand on stay
    /// until those are removed.
    async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let wanted = Wanted::parse(reference)?;
        let operation = format!("remove image {reference}");
        self.collect_after(operation, move |catalog| {
            let id = wanted.find(catalog).map(|record| record.id.clone());
            id.map_or(Ok(()), |id| catalog.remove(&id))
        })
        .await
    }

    async fn sweep(&self) -> Result<(), ImageError> {
        self.collect_after("remove unused layers", |_| Ok(())).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn store_error(operation: impl Into<String>, source: io::Error) -> ImageError {
    ImageError::Store { operation: operation.into(), source: Box::new(source) }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
