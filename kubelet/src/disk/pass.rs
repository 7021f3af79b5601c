//! Measuring all pods, again and again: what there is to measure is asked of the shelf and the runtime, and
//! measured on a thread that may block.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_runtime::interface::{ContainerId, Runtime, RuntimeError};
use berth_runtime::mount_table;
use tokio_util::sync::CancellationToken;

use super::mounts::Mounts;
use super::targets::{self, Member, Place, Target};
use super::walk::{self, Bounds, Measured};
use super::{ContainerUse, Disk, PodUse, USUAL_PERIOD, Used, VolumeUse};
use crate::clock::Clock;
use crate::shelf::Shelf;
use crate::volumes::PodDirectory;

/// How long the walker works before it rests.
const STINT: Duration = Duration::from_millis(10);
/// It rests so many times as long as it worked: it takes a fifth of one processor, and of one disk.
const REST: u32 = 4;
/// And no longer than this at once, however slow the disk is.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Where is read what there is to measure.
pub(crate) struct Sources {
    pub(crate) shelf: Shelf,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) clock: Arc<dyn Clock>,
    /// How often volumes are measured; `None` is never. Layers and logs are measured in any case.
    pub(crate) period: Option<Duration>,
}

/// What of a pod is measured.
struct Work {
    uid: String,
    volumes: Vec<Target>,
    members: Vec<(Member, Option<PathBuf>)>,
}

/// Measures until `shutdown`.
pub(crate) async fn keep(disk: Disk, sources: Sources, shutdown: CancellationToken) {
    let mounts = Arc::new(Mounts::default());
    loop {
        match sources.work(&disk).await {
            Ok(work) => {
                disk.keep_only(|uid| work.iter().any(|pod| pod.uid == uid));
                let (disk, clock) = (disk.clone(), Arc::clone(&sources.clock));
                let (mounts, ended) = (Arc::clone(&mounts), shutdown.clone());
                let passed = tokio::task::spawn_blocking(move || {
                    let mut walker = Walker { clock, mounts, stint: Instant::now(), ended };
                    walker.pass(&disk, &work);
                });
                if let Err(error) = passed.await {
                    tracing::error!(%error, "a measurement of the disks ended early");
                }
            }
            Err(error) => tracing::warn!(%error, "what pods use of disks is not measured"),
        }
        let wait = sources.period.unwrap_or(USUAL_PERIOD);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Sources {
    async fn work(&self, disk: &Disk) -> Result<Vec<Work>, RuntimeError> {
        let sandboxes = self.runtime.list().await?;
        let layer = |id: &ContainerId| self.runtime.writable_layer(id);
        let pods = self.shelf.shown().into_iter().filter(|shown| !shown.is_over());
        let work = pods.filter_map(|shown| {
            let uid = shown.pod.metadata.uid.clone()?;
            let directory = PodDirectory::new(&disk.root, &uid).ok()?;
            let own = sandboxes.iter().filter(|sandbox| sandbox.config.pod.uid == uid);
            let own: Vec<_> = own.cloned().collect();
            let volumes = match self.period {
                Some(_) => targets::volumes(&shown.pod, &directory, &own),
                None => Vec::new(),
            };
            let members = targets::members(&own).into_iter();
            let members = members.map(|member| (layer(&member.id), member));
            let members = members.map(|(layer, member)| (member, layer)).collect();
            Some(Work { uid, volumes, members })
        });
        Ok(work.collect())
    }
}

/// Walks and rests.
struct Walker {
    clock: Arc<dyn Clock>,
    mounts: Arc<Mounts>,
    stint: Instant,
    ended: CancellationToken,
}

impl Walker {
    /// Measures pods, one after the other.
    fn pass(&mut self, disk: &Disk, work: &[Work]) {
        let Ok(node_fs) = disk.node_fs() else { return };
        let pods = disk.root.join("pods");
        let mounted: BTreeSet<PathBuf> = match mount_table::places_below(&pods) {
            Ok(places) => places.into_iter().collect(),
            Err(error) => {
                tracing::warn!(%error, "what is mounted cannot be read");
                return;
            }
        };
        let targets = work.iter().flat_map(|pod| &pod.volumes);
        let full: Vec<PathBuf> =
            targets.filter_map(|target| is_asked(&target.place, &mounted)).collect();
        let full = self.mounts.ask(&full);
        for pod in work {
            let volumes = pod.volumes.iter().filter_map(|target| {
                let (used, file_system) = match is_asked(&target.place, &mounted) {
                    Some(place) => full.get(&place).map(|found| (found.used(), *found))?,
                    None => match &target.place {
                        Place::Own(path) => (self.walk(path)?, node_fs),
                        Place::Mounted(_) | Place::Host(_) => return None,
                    },
                };
                let Target { name, claim, is_ephemeral, .. } = target.clone();
                let at_ms = self.clock.now().as_millisecond();
                Some((name, VolumeUse { at_ms, claim, is_ephemeral, used, file_system }))
            });
            let volumes = volumes.collect();
            let containers = pod.members.iter().filter_map(|(member, layer)| {
                let rootfs = self.walk(layer.as_deref()?)?;
                let logs = self.walk(&member.log_directory).unwrap_or_default();
                let at_ms = self.clock.now().as_millisecond();
                Some((member.name.clone(), ContainerUse { at_ms, rootfs, logs }))
            });
            let containers: BTreeMap<_, _> = containers.collect();
            if self.ended.is_cancelled() {
                return;
            }
            disk.put(&pod.uid, PodUse { containers, volumes });
        }
    }

    fn walk(&mut self, path: &Path) -> Option<Used> {
        let Self { stint, ended, .. } = self;
        // Of many small directories none is reason enough to rest.
        if rest(stint, ended).is_break() {
            return None;
        }
        let mut pace = || rest(stint, ended);
        match walk::measure(path, Bounds::default(), &mut pace) {
            Ok(Measured::Whole(used)) => Some(used),
            Ok(Measured::Least(used)) => {
                tracing::warn!(?path, ?used, "too large or too restless to be measured: at least");
                Some(used)
            }
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Interrupted) {
                    tracing::warn!(?path, %error, "cannot be measured");
                }
                None
            }
        }
    }
}

/// The path whose file system is asked how full it is, where that says what is used.
fn is_asked(place: &Place, mounted: &BTreeSet<PathBuf>) -> Option<PathBuf> {
    match place {
        Place::Own(path) | Place::Mounted(path) => mounted.get(path).cloned(),
        Place::Host(path) => Some(path.clone()),
    }
}

/// Rests when it is time, and says whether to go on.
fn rest(stint: &mut Instant, ended: &CancellationToken) -> ControlFlow<()> {
    let worked = stint.elapsed();
    if worked >= STINT {
        if ended.is_cancelled() {
            return ControlFlow::Break(());
        }
        std::thread::sleep((worked * REST).min(LONGEST_REST));
        *stint = Instant::now();
    }
    ControlFlow::Continue(())
}
