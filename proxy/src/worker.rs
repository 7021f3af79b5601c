//! The thread that owns the proxy's rules: takes changes, applies them, repairs.
//!
//! A network namespace belongs to a thread, so everything that touches the kernel happens on
//! this one, which never returns to a pool.
//! ```text
//! Listing ──both lists complete──► Stale ──full sync──► Steady ──change──► sync of the change
//!                                    ▲                     │
//!                                    └─failure, new facts, ┘
//!                                      somebody else wrote
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::Config;
use crate::Error;
use crate::address;
use crate::cluster::{Cluster, SliceName, Update};
use crate::dataplane::Dataplane;
use crate::model::{Facts, ServiceName};

/// How often addresses and foreign changes are looked at.
const REFRESH: Duration = Duration::from_secs(30);
/// First and longest pause after a failed sync.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the watches tell the worker.
#[derive(Debug)]
pub(crate) enum Message {
    /// A change.
    Update(Update),
    /// All Services there are, after their updates.
    ServicesListed(BTreeSet<ServiceName>),
    /// All slices there are, after their updates.
    SlicesListed(BTreeSet<SliceName>),
}

/// How far the worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not all objects are known; ends with both lists.
    Listing { services: bool, slices: bool },
    /// The kernel must be compared with what is wanted; ends with a full sync.
    Stale { not_before: Instant, pause: Duration },
    /// Only changes are written.
    Steady,
}

impl State {
    fn stale() -> Self {
        Self::Stale { not_before: Instant::now(), pause: RETRY.0 }
    }
}

/// Runs `work` on a new thread, inside a network namespace if one is given.
pub(crate) fn in_namespace<T: Send + 'static>(
    netns: Option<&Path>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<std::thread::JoinHandle<Result<T, Error>>, Error> {
    let netns = netns.map(Path::to_path_buf);
    std::thread::Builder::new()
        .name("berth-proxy".into())
        .spawn(move || {
            if let Some(path) = netns {
                let enter = |path: &Path| {
                    let file = File::open(path)?;
                    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
                        .map_err(std::io::Error::from)
                };
                enter(&path).map_err(|source| Error::Namespace { path, source })?;
            }
            work()
        })
        .map_err(Error::Thread)
}

/// The worker's whole life. Ends when the watches are gone.
pub(crate) fn run(
    config: Config,
    messages: Receiver<Message>,
    opened: oneshot::Sender<()>,
) -> Result<(), Error> {
    let facts = address::facts(&config);
    let mut worker = Worker {
        dataplane: Dataplane::open(&facts)?,
        cluster: Cluster::default(),
        state: State::Listing { services: false, slices: false },
        synced: config.synced.clone(),
        facts,
        config,
    };
    crate::route::ensure(&worker.config);
    // The receiver only goes when nobody waits any more.
    let _ = opened.send(());
    worker.serve(&messages);
    Ok(())
}

struct Worker {
    dataplane: Dataplane,
    cluster: Cluster,
    state: State,
    facts: Facts,
    synced: Option<watch::Sender<bool>>,
    config: Config,
}

impl Worker {
    fn serve(&mut self, messages: &Receiver<Message>) {
        let mut refresh_at = Instant::now() + REFRESH;
        loop {
            let until = match self.state {
                State::Stale { not_before, .. } => not_before,
                State::Listing { .. } | State::Steady => refresh_at,
            };
            match messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Whatever arrived during the last transaction goes into one.
            messages.try_iter().for_each(|message| self.take(message));
            if Instant::now() >= refresh_at {
                self.refresh();
                refresh_at = Instant::now() + REFRESH;
            }
            self.step();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Update(update) => self.cluster.update(update),
            Message::ServicesListed(names) => {
                self.cluster.retain_services(&names);
                self.listed(|services, _| *services = true);
            }
            Message::SlicesListed(names) => {
                self.cluster.retain_slices(&names);
                self.listed(|_, slices| *slices = true);
            }
        }
    }

    fn listed(&mut self, note: impl FnOnce(&mut bool, &mut bool)) {
        if let State::Listing { services, slices } = &mut self.state {
            note(services, slices);
            if *services && *slices {
                self.state = State::stale();
            }
        }
    }

    /// Looks at what no watch tells: the node's addresses, and other writers.
    fn refresh(&mut self) {
        let facts = address::facts(&self.config);
        if facts != self.facts {
            tracing::info!(addresses = ?facts.node_addresses, "node port addresses changed");
            self.facts = facts;
            self.cluster.touch_all();
            self.compare();
        } else if self.state == State::Steady && self.dataplane.disturbed() {
            self.compare();
        }
    }

    fn compare(&mut self) {
        if self.state == State::Steady {
            self.state = State::stale();
        }
    }

    fn step(&mut self) {
        match self.state {
            State::Listing { .. } => {}
            State::Stale { not_before, pause } if Instant::now() >= not_before => {
                self.sync_full(pause);
            }
            State::Stale { .. } => {}
            State::Steady if self.cluster.is_dirty() => self.sync(),
            State::Steady => {}
        }
    }

    fn sync_full(&mut self, pause: Duration) {
        let started = Instant::now();
        self.cluster.changes(&self.facts);
        match self.dataplane.sync_full(self.cluster.all(), &self.facts) {
            Ok(report) => {
                let took = started.elapsed();
                tracing::info!(?took, writes = report.writes, rebuilt = report.rebuilt, "synced");
                self.state = State::Steady;
                if let Some(synced) = &self.synced {
                    synced.send_replace(true);
                }
            }
            Err(error) => {
                tracing::warn!(error = ?error, retry_in = ?pause, "cannot program Services");
                let not_before = Instant::now() + pause;
                self.state = State::Stale { not_before, pause: (pause * 2).min(RETRY.1) };
            }
        }
    }

    fn sync(&mut self) {
        let changes = self.cluster.changes(&self.facts);
        match self.dataplane.sync(changes) {
            Ok(report) => {
                tracing::debug!(writes = report.writes, flows = report.stale_flows, "changed");
            }
            Err(error) => {
                tracing::warn!(error = ?error, "cannot change Services; comparing all");
                self.state = State::stale();
                self.step();
            }
        }
    }
}
