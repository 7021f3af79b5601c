//! A pull: documents resolved, missing layers fetched side by side, the image committed.
//!
//! ```text
//! resolve ─► hold the chain ─► fetch layers (one flight a layer, shared by all pulls) ─► commit
//!                 └─ any failure: the hold is dropped and what it kept is collected
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use futures::{StreamExt, TryStreamExt};

use super::catalog::{Name, Record};
use super::config::{ImageConfig, printable_user};
use super::digest::{ChainId, Digest};
use super::layers::Layer;
use super::manifest::{Descriptor, Invalid};
use super::reference::Reference;
use super::registry::{Failure, Session};
use super::source::{self, Resolved, Source, Target};
use super::{Store, chain, fetch, lock, store_error};
use crate::interface::{
    Credentials, Image, ImageError, ImageId, ProgressSink, PullProgress, Pulled,
};

/// How many layers of one pull are fetched at once.
const PARALLEL_LAYERS: usize = 4;

/// A layer on its way, shared by the pulls that wait for it.
type Flight = Shared<BoxFuture<'static, Result<Layer, fetch::Error>>>;
/// A flight that ends with its last waiter.
pub(super) type WeakFlight = WeakShared<BoxFuture<'static, Result<Layer, fetch::Error>>>;

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Layer(#[from] fetch::Error),
    #[error("commit the image")]
    Store(#[source] io::Error),
}

impl Error {
    /// As the caller is told it.
    pub(super) fn about(self, reference: &str) -> ImageError {
        let reference = reference.to_owned();
        let unavailable = matches!(
            &self,
            Self::Source(source::Error::Registry(Failure::Unavailable(_)))
                | Self::Layer(fetch::Error::Transfer { failure: Failure::Unavailable(_), .. })
        );
        match self {
            Self::Store(source) => {
                store_error(format!("commit image {reference:?} to the store"), source)
            }
            error if unavailable => {
                ImageError::RegistryUnavailable { reference, message: chain(&error) }
            }
            error => ImageError::Pull { reference, message: chain(&error) },
        }
    }
}

/// Pulls with each of the credentials in turn, or without any.
pub(super) async fn run(
    store: &Store,
    reference: &Reference,
    credentials: Vec<Credentials>,
    progress: Option<ProgressSink>,
) -> Result<Pulled, ImageError> {
    let mut candidates: Vec<_> =
        credentials.into_iter().enumerate().map(|(place, one)| (Some(place), Some(one))).collect();
    if candidates.is_empty() {
        candidates.push((None, None));
    }
    let mut last = None;
    for (opened_by, credentials) in candidates {
        let session = Session::new(store.client.clone(), reference, credentials);
        let source = Arc::new(Source::Registry(session));
        match from_registry(store, reference, source, progress.clone()).await {
            Ok(image) => return Ok(Pulled { image, opened_by }),
            // Other credentials do not mend a bad image or a full disk.
            Err(error @ Error::Source(source::Error::Registry(_))) => last = Some(error),
            Err(error) => return Err(error.about(&reference.to_string())),
        }
    }
    let nothing = || Error::Invalid(Invalid::Shape("no way to pull was left to try".into()));
    Err(last.unwrap_or_else(nothing).about(&reference.to_string()))
}

async fn from_registry(
    store: &Store,
    reference: &Reference,
    source: Arc<Source>,
    progress: Option<ProgressSink>,
) -> Result<Image, Error> {
    let target = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => Target::Digest(digest),
        (None, Some(tag)) => Target::Tag(tag.as_str()),
        (None, None) => Target::Tag("latest"),
    };
    let resolved = source.resolve(target, &store.config.platform).await?;
    let mut names = vec![reference.with_digest(&resolved.target)];
    if reference.digest.is_none() {
        names.extend(reference.tagged());
    }
    let named = Named { resolved, names, origin: Origin::Registry };
    obtain(store, source, named, progress).await
}

/// An image's documents and the normalized names it gets.
pub(super) struct Named {
    pub(super) resolved: Resolved,
    pub(super) names: Vec<String>,
    pub(super) origin: Origin,
}

/// Where an image comes from.
pub(super) enum Origin {
    /// It can be pulled again.
    Registry,
    /// Perhaps nobody else has it.
    Archive,
}

/// Fetches what is missing and commits the image.
pub(super) async fn obtain(
    store: &Store,
    source: Arc<Source>,
    named: Named,
    progress: Option<ProgressSink>,
) -> Result<Image, Error> {
    let config = ImageConfig::parse(&named.resolved.config_bytes)?;
    let blobs = &named.resolved.manifest.layers;
    if config.diff_ids.len() != blobs.len() {
        let message = format!(
            "the manifest has {} layers, the image configuration {}",
            blobs.len(),
            config.diff_ids.len()
        );
        return Err(Invalid::Shape(message).into());
    }
    let chain_ids = ChainId::of_layers(&config.diff_ids);
    let hold = store.layers.hold(&chain_ids);
    let meter = Arc::new(Meter::new(blobs, progress));
    let wanted = blobs.iter().zip(&config.diff_ids).zip(&chain_ids);
    let wanted: Vec<Wanted> = wanted
        .map(|((blob, diff_id), chain_id)| Wanted {
            source: source.clone(),
            blob: blob.clone(),
            diff_id: diff_id.clone(),
            chain_id: chain_id.clone(),
        })
        .collect();
    let fetched: Result<Vec<Layer>, fetch::Error> = futures::stream::iter(wanted)
        .map(|wanted| layer(store, wanted, meter.clone()))
        .buffered(PARALLEL_LAYERS)
        .try_collect()
        .await;
    let outcome = match fetched {
        Ok(layers) => commit(store, named, config, (chain_ids, layers)).await,
        Err(error) => Err(error.into()),
    };
    drop(hold);
    if outcome.is_err()
        && let Err(error) = store.collect().await
    {
        tracing::warn!(error = chain(&error), "layers of a failed pull are left");
    }
    outcome
}

struct Wanted {
    source: Arc<Source>,
    blob: Descriptor,
    diff_id: Digest,
    chain_id: ChainId,
}

/// One layer: from the store, from a flight that is under way, or fetched.
async fn layer(store: &Store, wanted: Wanted, meter: Arc<Meter>) -> Result<Layer, fetch::Error> {
    let size_bytes = wanted.blob.size_bytes;
    loop {
        if let Some(layer) = store.layers.get(&wanted.chain_id) {
            meter.add(size_bytes);
            return Ok(layer);
        }
        let (flight, joined) = board(store, &wanted, &meter);
        let outcome = flight.await;
        if let (true, Err(error)) = (joined, &outcome) {
            // It was another pull's; its credentials or its luck need not be ours.
            tracing::debug!(%error, "a shared layer failed and is fetched again");
            continue;
        }
        if joined {
            meter.add(size_bytes);
        }
        return outcome;
    }
}

/// The flight of a layer, and whether somebody else had started it.
fn board(store: &Store, wanted: &Wanted, meter: &Arc<Meter>) -> (Flight, bool) {
    let mut flights = lock(&store.flights);
    flights.retain(|_, flight| flight.upgrade().is_some_and(|f| f.peek().is_none()));
    if let Some(flight) = flights.get(&wanted.chain_id).and_then(WeakShared::upgrade) {
        return (flight, true);
    }
    let meter = meter.clone();
    let job = fetch::Job {
        source: wanted.source.clone(),
        layers: store.layers.clone(),
        executable: store.config.executable.clone(),
        budget: store.config.layer_budget,
        blob: wanted.blob.clone(),
        diff_id: wanted.diff_id.clone(),
        chain_id: wanted.chain_id.clone(),
        received: Arc::new(move |bytes| meter.add(bytes)),
    };
    let flight = job.run().boxed().shared();
    if let Some(weak) = flight.downgrade() {
        flights.insert(wanted.chain_id.clone(), weak);
    }
    (flight, false)
}

async fn commit(
    store: &Store,
    named: Named,
    config: ImageConfig,
    (chain_ids, layers): (Vec<ChainId>, Vec<Layer>),
) -> Result<Image, Error> {
    let Named { resolved, names, origin } = named;
    let config_digest = resolved.manifest.config.digest;
    let id = ImageId::try_from(config_digest.to_string())
        .map_err(|error| Invalid::Shape(error.to_string()))?;
    let user = config.user.validate(printable_user).map_err(Invalid::Shape)?;
    let record = Record {
        id: id.clone(),
        layers: chain_ids,
        size_bytes: layers.iter().map(|layer| layer.bytes).sum(),
        user,
        pinned: matches!(origin, Origin::Archive),
    };
    let name = |name: String| Name { name, image: id.clone(), manifest: resolved.target.clone() };
    let names = names.into_iter().map(name).collect();
    let (catalog, layers) = (store.catalog.clone(), store.layers.clone());
    let (target, target_bytes) = (resolved.target.clone(), resolved.target_bytes);
    let committed = crate::disk::blocking(move || {
        layers.mark(&record.layers)?;
        let mut catalog = lock(&catalog);
        catalog.put_blob(&target, &target_bytes)?;
        catalog.put_blob(&config_digest, &resolved.config_bytes)?;
        catalog.commit(record.clone(), names)?;
        Ok(catalog.image(&record))
    });
    committed.await.map_err(Error::Store)
}

/// Adds up what the layers of one pull receive.
struct Meter {
    received_bytes: AtomicU64,
    total_bytes: u64,
    sink: Option<ProgressSink>,
}

impl Meter {
    fn new(blobs: &[Descriptor], sink: Option<ProgressSink>) -> Self {
        let sizes = blobs.iter().map(|blob| blob.size_bytes);
        Self {
            received_bytes: AtomicU64::new(0),
            total_bytes: sizes.fold(0, u64::saturating_add),
            sink,
        }
    }

    fn add(&self, bytes: u64) {
        let before = self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(sink) = &self.sink {
            sink(PullProgress {
                received_bytes: before.saturating_add(bytes).min(self.total_bytes),
                total_bytes: self.total_bytes,
            });
        }
    }
}
