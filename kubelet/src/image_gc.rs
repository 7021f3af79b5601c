//! Image garbage collection: images that nothing uses go when the disk fills up, or when they get too
//! old.
//!
//! Every five minutes, and when somebody asks ([`Reclaim::free_unused`], before pods are evicted). What
//! is in use, by containers that run or are not removed yet, or by pods that are here, never goes; nor does
//! what is pinned. When images were used is kept in `image-uses.json` below the node's directory, so that a
//! restart forgets nothing. Upstream's `image_gc_manager.go`.
//!
//! Differs: what is freed is counted by layers, each once, where upstream adds up sizes of images that
//! share layers, and so stops too early.

mod plan;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_runtime::interface::{Image, ImageError, ImageId, Images, Runtime, RuntimeError};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::disk::FileSystem;
use crate::events::{Recorder, Severity};
use crate::eviction::Reclaim;
use crate::meters::{IMAGES_REMOVED, Meters};
use crate::replace::{Lasting, replace};
use crate::shelf::Shelf;
use plan::{Record, Records};

/// How often is looked; upstream's.
const PERIOD: Duration = Duration::from_secs(300);
/// The file of records.
const FILE: &str = "image-uses.json";
/// It is not larger than this.
const MOST_BYTES: u64 = 16 << 20;

/// When images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A file system that is so full has images removed…
    pub high_percent: u8,
    /// …until it is so full; less than the other.
    pub low_percent: u8,
    /// How long an image is spared after it was seen first.
    pub least_age: Duration,
    /// How long an image may be unused, however empty the disk is; `None` is for ever.
    pub longest_unused: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            least_age: Duration::from_secs(120),
            longest_unused: None,
        }
    }
}

impl Policy {
    /// Whether it never removes anything by itself.
    fn is_off(&self) -> bool {
        self.high_percent >= 100 && self.longest_unused.is_none()
    }
}

/// Why images were not collected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not list its images, or does not count what it holds.
    #[error("list images: {}", crate::worker::chain(.0))]
    List(#[source] ImageError),
    /// The runtime does not list its containers.
    #[error("list containers: {}", crate::worker::chain(.0))]
    Containers(#[source] RuntimeError),
    /// The file system does not tell how full it is.
    #[error("get image filesystem stats: {0}")]
    FileSystem(#[source] io::Error),
    /// It tells nonsense.
    #[error("invalid capacity 0 on image filesystem")]
    NoCapacity,
    /// Images could not be removed.
    #[error(
        "wanted to free {wanted} bytes, but freed {freed} bytes space with errors in image deletion: {why}"
    )]
    Removal {
        /// How much was to go.
        wanted: u64,
        /// How much went.
        freed: u64,
        /// What went wrong, image by image.
        why: String,
    },
    /// There was not enough to remove.
    #[error(
        "Insufficient free disk space on the node's image filesystem ({percent}% of {capacity} used). \
         Failed to free sufficient space by deleting unused images (freed {freed} bytes). \
         Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
    )]
    TooLittle {
        /// How full it was.
        percent: u64,
        /// How much it holds.
        capacity: String,
        /// How much went.
        freed: u64,
    },
}

/// What a collector works with.
pub struct Parts {
    /// The store.
    pub images: Arc<dyn Images>,
    /// Says what is in use.
    pub runtime: Arc<dyn Runtime>,
    /// Says what is wanted.
    pub shelf: Shelf,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Takes events.
    pub events: Recorder,
    /// The node's name.
    pub node: String,
    /// How full the file system of images is. Blocks.
    pub image_fs: Box<dyn Fn() -> io::Result<FileSystem> + Send + Sync>,
    /// The node's directory.
    pub root: PathBuf,
    /// Counts what is removed.
    pub meters: Meters,
}

/// Removes images.
pub struct Collector {
    parts: Arc<Parts>,
    policy: Policy,
    /// One collection at a time; `None` until the records are read.
    records: Mutex<Option<Records>>,
}

/// What there is at a moment.
struct Seen {
    images: Vec<Image>,
    used: BTreeSet<ImageId>,
    at_ms: i64,
}

impl Collector {
    /// A collector; it removes nothing yet.
    pub fn new(policy: Policy, parts: Parts) -> Self {
        Self { parts: Arc::new(parts), policy, records: Mutex::default() }
    }

    /// Collects by the policy until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut failed_before = false;
        while !self.policy.is_off() {
            match self.collect().await {
                Ok(()) => failed_before = false,
                Err(error) => {
                    tracing::warn!(%error, "image garbage collection");
                    let (events, node) = (&self.parts.events, &self.parts.node);
                    let tell =
                        |reason| events.node(node, Severity::Warning, reason, error.to_string());
                    match error {
                        Error::TooLittle { .. } => tell("FreeDiskSpaceFailed"),
                        Error::NoCapacity => tell("InvalidDiskCapacity"),
                        _ => {}
                    }
                    // As upstream: once may be bad luck.
                    if failed_before {
                        tell("ImageGCFailed");
                    }
                    failed_before = true;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Removes what is too old, and what has to go for the disk's sake; layers that nothing needs go in
    /// any case.
    ///
    /// # Errors
    /// What failed; the rest has been done.
    pub async fn collect(&self) -> Result<(), Error> {
        let mut records = self.records.lock().await;
        let (seen, records) = self.look(&mut records).await?;
        self.parts.images.sweep().await.map_err(Error::List)?;
        let old = candidates(records, &seen)
            .filter(|(_, record)| plan::is_too_old(*record, &self.policy, seen.at_ms))
            .map(|(id, _)| id)
            .collect();
        self.remove(old, (u64::MAX, "age"), records).await?;
        let parts = Arc::clone(&self.parts);
        let fs = tokio::task::spawn_blocking(move || (parts.image_fs)()).await;
        let fs =
            fs.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(Error::FileSystem)?;
        if fs.capacity_bytes == 0 {
            return Err(Error::NoCapacity);
        }
        let Some(wanted) = plan::bytes_to_free(&fs, &self.policy) else { return Ok(()) };
        let freed = self.free(wanted, &seen, records).await?;
        match freed < wanted {
            true => Err(Error::TooLittle {
                percent: plan::percent(&fs),
                capacity: plan::size(fs.capacity_bytes),
                freed,
            }),
            false => Ok(()),
        }
    }

    async fn free(&self, wanted: u64, seen: &Seen, records: &mut Records) -> Result<u64, Error> {
        let doomed = candidates(records, seen)
            .filter(|(_, record)| plan::is_old_enough(*record, &self.policy, seen.at_ms))
            .map(|(id, _)| id)
            .collect();
        self.remove(doomed, (wanted, "space"), records).await
    }

    /// Removes images in this order until so many bytes are freed; goes on past failures.
    async fn remove(
        &self,
        doomed: Vec<ImageId>,
        (wanted, reason): (u64, &str),
        records: &mut Records,
    ) -> Result<u64, Error> {
        let (mut freed, mut failures) = (0_u64, Vec::new());
        let is_any = !doomed.is_empty();
        for id in doomed {
            if freed >= wanted {
                break;
            }
            let before = self.stored().await?;
            match self.parts.images.remove(id.as_str()).await {
                Ok(()) => {
                    let bytes = before.saturating_sub(self.stored().await?);
                    tracing::info!(image = %id, bytes, "image removed");
                    freed = freed.saturating_add(bytes);
                    self.parts.meters.count(&IMAGES_REMOVED, &[reason]);
                    records.remove(&id);
                }
                Err(error) => failures.push(crate::worker::chain(&error)),
            }
        }
        if is_any {
            self.keep(records).await;
        }
        match failures.is_empty() {
            true => Ok(freed),
            false => Err(Error::Removal { wanted, freed, why: failures.join("; ") }),
        }
    }

    async fn stored(&self) -> Result<u64, Error> {
        let stored = self.parts.images.stored().await.map_err(Error::List)?;
        Ok(stored.map_or(0, |(bytes, _)| bytes))
    }

    /// Looks what there is, and remembers it.
    async fn look<'a>(
        &self,
        kept: &'a mut Option<Records>,
    ) -> Result<(Seen, &'a mut Records), Error> {
        if kept.is_none() {
            let file = self.parts.root.join(FILE);
            let read = tokio::task::spawn_blocking(move || read(&file)).await;
            *kept = Some(read.unwrap_or_default());
        }
        let records = kept.get_or_insert_default();
        // Images before containers: one that is pulled meanwhile is not seen, and not removed.
        let images = self.parts.images.list().await.map_err(Error::List)?;
        let used = self.used().await?;
        let at_ms = self.parts.clock.now().as_millisecond();
        let before = records.clone();
        plan::detect(records, (&images, &used), at_ms);
        if *records != before {
            self.keep(records).await;
        }
        Ok((Seen { images, used, at_ms }, records))
    }

    /// The images that containers have, and those that pods ask for.
    async fn used(&self) -> Result<BTreeSet<ImageId>, Error> {
        let mut references = BTreeSet::new();
        for shown in self.parts.shelf.shown().into_iter().filter(|shown| !shown.is_over()) {
            let Some(spec) = &shown.pod.spec else { continue };
            let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            references.extend(containers.filter_map(|container| container.image.clone()));
            let ephemeral = spec.ephemeral_containers.iter().flatten();
            references.extend(ephemeral.filter_map(|container| container.image.clone()));
            let volumes = spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref());
            references.extend(volumes.filter_map(|image| image.reference.clone()));
        }
        let mut used = BTreeSet::new();
        for reference in references {
            // What is no reference names no image.
            if let Ok(Some(image)) = self.parts.images.status(&reference).await {
                used.insert(image.id);
            }
        }
        // Containers last: one that was made meanwhile has its pod's image.
        let sandboxes = self.parts.runtime.list().await.map_err(Error::Containers)?;
        for container in sandboxes.into_iter().flat_map(|sandbox| sandbox.containers) {
            used.insert(container.config.image);
            used.extend(container.config.mounts.into_iter().filter_map(|mount| mount.image));
        }
        Ok(used)
    }

    /// Writes the records; what cannot be written is known until the agent ends.
    async fn keep(&self, records: &Records) {
        let (file, records) = (self.parts.root.join(FILE), records.clone());
        let write = move || replace(&file, &serde_json::to_vec(&records)?, 0o600, Lasting::Whole);
        let written = tokio::task::spawn_blocking(write).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(%error, "when images were used cannot be kept");
        }
    }
}

/// Every image that may go, and the layers that nothing needs.
#[async_trait]
impl Reclaim for Collector {
    async fn free_unused(&self) -> Result<u64, Error> {
        let mut records = self.records.lock().await;
        let (seen, records) = self.look(&mut records).await?;
        let before = self.stored().await?;
        self.parts.images.sweep().await.map_err(Error::List)?;
        let swept = before.saturating_sub(self.stored().await?);
        Ok(swept + self.free(u64::MAX, &seen, records).await?)
    }
}

fn candidates<'a>(
    records: &'a Records,
    seen: &'a Seen,
) -> impl Iterator<Item = (ImageId, Record)> + 'a {
    let order = plan::in_order(records, (&seen.images, &seen.used));
    order.into_iter().map(|(id, record)| (id.clone(), record))
}

/// What was kept; a file that is torn or not there is no memory.
fn read(file: &Path) -> Records {
    let found = fs::metadata(file).and_then(|facts| match facts.len() > MOST_BYTES {
        true => Err(io::Error::other("the file is too large")),
        false => fs::read(file),
    });
    match found.map(|bytes| serde_json::from_slice(&bytes)) {
        Ok(Ok(records)) => records,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Records::new(),
        Ok(Err(error)) => unreadable(file, &error),
        Err(error) => unreadable(file, &error),
    }
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> Records {
    tracing::warn!(?file, %error, "when images were used is forgotten");
    Records::new()
}

#[cfg(test)]
mod tests;
