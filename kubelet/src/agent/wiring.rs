//! Makes what the parts of an agent work with, and starts those that need no more than that.

use std::sync::Arc;

use berth_runtime::cgroup::{Controller, Hierarchy};
use berth_runtime::descriptors;
use berth_runtime::interface::Resources;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Parts;
use crate::config::Config;
use crate::disk::{self, Disk};
use crate::events::Recorder;
use crate::eviction::{self, Conditions, Order};
use crate::image_access::Access;
use crate::image_gc::{self, Collector};
use crate::qos;
use crate::server;
use crate::shelf::Shelf;
use crate::shutdown::{self, Standing};
use crate::slack;
use crate::source::Event;
use crate::worker::Context;

/// What parts are made from, and where their tasks go.
pub(super) struct Wiring<'a> {
    pub(super) config: &'a Config,
    pub(super) parts: &'a Parts,
    pub(super) tasks: &'a mut JoinSet<()>,
    /// Ends the agent.
    pub(super) token: &'a CancellationToken,
}

impl Wiring<'_> {
    /// Keeps the cgroups of QoS classes as their pods want them, all pods within `ceiling`, and the agent's
    /// memory small.
    pub(super) fn keep_cgroups(&mut self, shelf: &Shelf, ceiling: Resources, recorder: &Recorder) {
        let runtime = Arc::clone(&self.parts.runtime);
        let node = (self.config.cgroups.driver, self.config.node_name.clone());
        let means = (Arc::clone(&runtime), recorder.clone());
        self.tasks.spawn(qos::hold_all(ceiling, node, means, self.token.clone()));
        let classes = (shelf.clone(), self.config.cgroups.driver);
        self.tasks.spawn(qos::keep_classes(classes, runtime, self.token.clone()));
        self.tasks.spawn(slack::keep_small(shelf.clone(), self.token.clone()));
    }

    /// Measures what pods use of disks.
    pub(super) fn measure_disks(&mut self, shelf: &Shelf) -> Disk {
        let disk = Disk::new(self.config.root_dir.clone());
        let sources = disk::Sources {
            shelf: shelf.clone(),
            runtime: Arc::clone(&self.parts.runtime),
            clock: Arc::clone(&self.config.clock),
            period: self.config.volume_period,
        };
        self.tasks.spawn(disk::keep(disk.clone(), sources, self.token.clone()));
        disk
    }

    /// Forgets who may use images that are gone.
    pub(super) fn forget_images(&mut self, access: &Arc<Access>) {
        self.tasks.spawn(Arc::clone(access).run(self.token.clone()));
    }

    /// Removes images that nobody needs.
    pub(super) fn collect_images(
        &mut self,
        (shelf, disk): (&Shelf, &Disk),
        events: Recorder,
    ) -> Arc<Collector> {
        let disk = disk.clone();
        let parts = image_gc::Parts {
            images: Arc::clone(&self.parts.images),
            runtime: Arc::clone(&self.parts.runtime),
            shelf: shelf.clone(),
            clock: Arc::clone(&self.config.clock),
            events,
            node: self.config.node_name.clone(),
            image_fs: Box::new(move || disk.image_fs()),
            root: self.config.root_dir.clone(),
            meters: self.parts.meters.clone(),
        };
        let collector = Arc::new(Collector::new(self.config.image_gc, parts));
        self.tasks.spawn(Arc::clone(&collector).run(self.token.clone()));
        collector
    }

    /// What the handlers of the HTTP API read; the node is well while `changes` are taken.
    pub(super) fn state(
        &self,
        context: &Context,
        (disk, started): (&Disk, Timestamp),
        changes: mpsc::WeakSender<Event<Pod>>,
    ) -> server::State {
        let (config, parts) = (self.config, self.parts);
        server::State {
            shelf: context.shelf.clone(),
            runtime: Arc::clone(&parts.runtime),
            images: Arc::clone(&parts.images),
            log_root: config.log_root.clone(),
            clock: Arc::clone(&config.clock),
            streaming: server::Streaming {
                idle_timeout: config.server.streaming_idle_timeout,
                shutdown: self.token.clone(),
                budget: server::Budget::of(descriptors::limit()),
            },
            node: server::Measured::new(config.node_name.clone(), disk.clone()).with_parts(
                server::Parts::of_host(&config.cgroups.driver.class_path(qos::Class::Guaranteed)),
            ),
            configuration: Arc::new(config.server.configuration.clone()),
            system_logs: server::SystemLogs::of_host(config.server.system_logs),
            probes: context.probes.clone(),
            meters: parts.meters.clone(),
            health: server::Health::new(takes(changes)),
            process: server::Process { started, flags: Arc::new(config.server.flags.clone()) },
            set_verbosity: parts.set_verbosity,
            is_profiled: config.server.is_profiled,
            checkpoints: config.checkpoints.clone(),
        }
    }

    /// Has a shutdown of the host wait for its pods, where that is asked.
    pub(super) fn wait_for_pods(
        &mut self,
        (context, events): (&Context, &Recorder),
        (orders, standing): (mpsc::Sender<Order>, Standing),
    ) {
        let Some(login) = self.parts.login.clone().filter(|_| !self.config.shutdown.is_off())
        else {
            return;
        };
        let parts = shutdown::Parts {
            config: self.config.shutdown.clone(),
            node: self.config.node_name.clone(),
            root: self.config.root_dir.clone(),
            shelf: context.shelf.clone(),
            statuses: context.statuses.clone(),
            orders,
            standing,
            clock: Arc::clone(&self.config.clock),
            events: events.clone(),
            meters: self.parts.meters.clone(),
        };
        self.tasks.spawn(shutdown::run(parts, login, self.token.clone()));
    }

    /// Ends pods when the node is short of something.
    pub(super) fn evict(
        &mut self,
        context: &Context,
        (disk, images): (Disk, Arc<Collector>),
        (orders, conditions): (mpsc::Sender<Order>, watch::Sender<Conditions>),
        events: Recorder,
    ) {
        let evictor = eviction::Parts {
            config: self.config.eviction.clone(),
            node: self.config.node_name.clone(),
            places: places(self.config, &disk),
            shelf: context.shelf.clone(),
            runtime: Arc::clone(&self.parts.runtime),
            disk,
            images,
            events,
            orders,
            conditions,
            meters: self.parts.meters.clone(),
        };
        self.tasks.spawn(eviction::run(evictor, self.token.clone()));
    }
}

/// Where the node's resources are seen.
fn places(config: &Config, disk: &Disk) -> eviction::Places {
    let hierarchy = Hierarchy::detect().ok();
    let hierarchy = hierarchy.filter(|h| h.available().contains(&Controller::Memory));
    eviction::Places {
        root: "/".into(),
        disk: disk.clone(),
        pods: hierarchy
            .map(|h| h.root().join(config.cgroups.driver.class_path(qos::Class::Guaranteed))),
        reserved_bytes: config.reserved.memory_bytes,
    }
}

/// Whether what is sent is taken: the receiver is there, and not hopelessly behind.
fn takes<T: Send + 'static>(sender: mpsc::WeakSender<T>) -> impl Fn() -> bool + Send + Sync {
    move || sender.upgrade().is_some_and(|sender| !sender.is_closed() && sender.capacity() > 0)
}
