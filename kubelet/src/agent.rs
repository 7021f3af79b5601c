//! Puts the parts together and runs them until shutdown.

mod wiring;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use berth_runtime::interface::{Images, Runtime};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::{AppArmorSupport, SysctlPolicy};
use crate::cache::Cache;
use crate::config::Config;
use crate::container_config::NodeFacts;
use crate::environment::{Service, ServiceObject};
use crate::events::recent::Recent;
use crate::events::{self, Recorder, Severity};
use crate::eviction::Conditions;
use crate::gate::Gate;
use crate::image_access::Access;
use crate::meters::{Metered, Meters};
use crate::node::facts::{self, Facts, Places};
use crate::node::heartbeat::Signs;
use crate::node::{self, Shared, heartbeat, object};
use crate::pod_resources::{Lister, Socket};
use crate::probe::counts::Counts;
use crate::qos;
use crate::server;
use crate::server::auth::{self, Guard};
use crate::shelf::Shelf;
use crate::shutdown::{Login, Standing};
use crate::source::{self, Event, Selection};
use crate::static_pods::{self, mirror::Mirrors};
use crate::status::writer::Writer;
use crate::worker::Context;
use crate::worker::provision::{Place, Provision};
use crate::worker::roster::Roster;
use wiring::Wiring;

/// Changes of the pod set that may wait for the roster.
const CHANGES: usize = 256;

/// What an agent works with.
pub struct Parts {
    /// The API server.
    pub client: kube::Client,
    /// Runs sandboxes and containers; its network is open.
    pub runtime: Arc<dyn Runtime>,
    /// Keeps images.
    pub images: Arc<dyn Images>,
    /// Where what is recorded is kept for whoever asks on the node.
    pub recent: Recent,
    /// The cluster's Services, where somebody follows them already; `None` inside means not yet
    /// known. Without it they are followed here.
    pub services: Option<watch::Receiver<Option<Vec<Service>>>>,
    /// Reaches what keeps the host up until its pods have ended, where they are to.
    pub login: Option<Arc<dyn Login>>,
    /// Counts what is done.
    pub meters: Meters,
    /// Sets the level of the log; `None` where `/debug/flags/v` is not offered.
    pub set_verbosity: Option<server::SetVerbosity>,
}

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be made.
    #[error("cannot make directory {path:?}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP API cannot be served.
    #[error("cannot serve the node's HTTP API")]
    Server(#[from] server::Error),
    /// More is kept back from pods than there is.
    #[error(transparent)]
    Reserved(#[from] qos::TooMuch),
    /// The node is not registered.
    #[error(transparent)]
    Node(#[from] node::Error),
}

/// Registers the node before the agent runs, so that its pod address ranges can be waited for
/// ([`crate::node::peers`]). A new node is not ready until [`run`] reports that it is.
///
/// # Errors
/// When the API server refuses, or `shutdown` comes first; else it is asked until it answers.
pub async fn register_node(
    config: &Config,
    client: &kube::Client,
    shutdown: &CancellationToken,
) -> Result<Node, Error> {
    let facts = facts::read(&Places::host(&config.root_dir));
    Ok(node::register(config, client, &facts, shutdown).await?)
}

/// Runs the agent until `shutdown`; pods go on without it.
///
/// Looks after the pods that the disk remembers at once; the API server may come later.
///
/// # Errors
/// What keeps it from starting: directories, addresses, certificates. Later troubles are lived with.
pub async fn run(config: Config, parts: Parts, shutdown: CancellationToken) -> Result<(), Error> {
    make_directories(&config)?;
    let parts = metered(parts);
    let facts = facts::read(&Places::host(&config.root_dir));
    let ceiling = qos::limits_of_all(&config, &facts)?;
    let listeners = Listeners::bind(&config).await?;
    let (recorder, occurrences) = Recorder::new();
    let recorder = recorder.keeping(parts.recent.clone(), Arc::clone(&config.clock));
    let now = config.clock.now();
    let pressure = object::Pressure::default();
    let node: Shared = Arc::new(RwLock::new(object::node(&config, &facts, pressure, now)));
    let mut tasks = JoinSet::new();
    tasks.spawn(events::run(
        parts.client.clone(),
        events::Source { component: "kubelet".to_owned(), host: config.node_name.clone() },
        Arc::clone(&config.clock),
        occurrences,
        shutdown.clone(),
    ));
    let services = services(&parts, &mut tasks, &shutdown);
    let (pressure, conditions) = watch::channel(Conditions::new());
    let standing = Standing::default();
    let signs = Signs { conditions, standing: standing.clone() };
    let (context, gate) =
        context(&config, &parts, (&node, &facts, &signs), (services, recorder.clone()), &shutdown);
    let mut wiring = Wiring { config: &config, parts: &parts, tasks: &mut tasks, token: &shutdown };
    wiring.keep_cgroups(&context.shelf, ceiling, &recorder);
    let disk = wiring.measure_disks(&context.shelf);
    wiring.forget_images(&context.access);
    let collector = wiring.collect_images((&context.shelf, &disk), recorder.clone());
    let (changes, receiver) = mpsc::channel(CHANGES);
    let state = wiring.state(&context, (&disk, now), changes.downgrade());
    let reviewer = Arc::new(auth::ApiServer(parts.client.clone()));
    let guard = Guard::new(config.node_name.clone(), reviewer);
    listeners.serve((state, guard), &mut tasks, &shutdown);
    announce(&config, &recorder);
    tasks.spawn(keep_node(
        config.clone(),
        parts.client.clone(),
        (Arc::clone(&node), facts, Arc::clone(&parts.images), signs),
        recorder.clone(),
        shutdown.clone(),
    ));
    follow_node(&config, &parts.client, (&node, &recorder), (&mut tasks, &shutdown));
    let selection =
        Selection { fields: Some(format!("spec.nodeName={}", config.node_name)), labels: None };
    let pods: Api<Pod> = Api::all(parts.client.clone());
    tasks.spawn(source::follow(pods, selection, changes, shutdown.clone()));
    let mirrors = context.mirrors.clone();
    let client = parts.client.clone();
    tasks.spawn(mirrors.run(client, Arc::clone(&node), shutdown.clone()));
    let (orders, evictions) = mpsc::channel(CHANGES);
    let mut wiring = Wiring { config: &config, parts: &parts, tasks: &mut tasks, token: &shutdown };
    wiring.wait_for_pods((&context, &recorder), (orders.clone(), standing.clone()));
    wiring.evict(&context, (disk, collector), (orders, pressure), recorder.clone());
    let mut roster = Roster::new(Arc::new(context), Arc::new(gate), shutdown.clone())
        .with_evictions(evictions, standing);
    if let Some(directory) = config.static_pod_path.clone() {
        let (files, receiver) = mpsc::channel(1);
        let name = config.node_name.clone();
        let tells = (files, recorder.clone());
        tasks.spawn(static_pods::follow(directory, name, tells, shutdown.clone()));
        roster = roster.with_files(receiver);
    }
    roster.run(receiver).await;
    shutdown.cancel();
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// The same, and every call of the runtime and of the image store is counted.
fn metered(parts: Parts) -> Parts {
    let Parts { runtime, images, meters, .. } = parts;
    let runtime = Arc::new(Metered::<dyn Runtime>::new(runtime, meters.clone()));
    let images = Arc::new(Metered::<dyn Images>::new(images, meters.clone()));
    Parts { runtime, images, meters, ..parts }
}

fn make_directories(config: &Config) -> Result<(), Error> {
    let make = |path: &Path, mode: u32| {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|source| Error::Directory { path: path.to_owned(), source })
    };
    make(&config.root_dir, 0o700)?;
    config.checkpoints.as_deref().map_or(Ok(()), |path| make(path, 0o700))?;
    make(&config.log_root, 0o755)?;
    make(&config.container_log_links, 0o755)
}

/// What listens, bound before anything else begins.
struct Listeners {
    api: Option<(TcpListener, server::tls::Live)>,
    health: Option<TcpListener>,
    pod_resources: Option<Socket>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, Error> {
        let api = match config.server.address {
            Some(address) => {
                let tls = server::tls::Live::new(config).map_err(server::Error::from)?;
                Some((server::bind(address).await?, tls))
            }
            None => None,
        };
        let health = match config.server.healthz {
            Some(address) => Some(server::bind(address).await?),
            None => None,
        };
        // A node that cannot serve it goes on, as upstream.
        let pod_resources = Socket::bind(&config.root_dir);
        if let Err(error) = &pod_resources {
            tracing::warn!(%error, root = %config.root_dir.display(), "podresources is not served");
        }
        Ok(Self { api, health, pod_resources: pod_resources.ok() })
    }

    fn serve(
        self,
        (state, guard): (server::State, Guard),
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        let lister = Lister::new(state.shelf.clone(), state.meters.clone());
        let budget = state.streaming.budget.clone();
        if let Some(socket) = self.pod_resources {
            tasks.spawn(socket.serve(lister, shutdown.clone()));
        }
        if let Some((listener, tls)) = self.api {
            let identities = server::Identities { tls, guard };
            tasks.spawn(server::serve(listener, identities, state, shutdown.clone()));
        }
        if let Some(listener) = self.health {
            tasks.spawn(server::serve_health(listener, budget, shutdown.clone()));
        }
    }
}

fn context(
    config: &Config,
    parts: &Parts,
    (node, facts, signs): (&Shared, &Facts, &Signs),
    (services, recorder): (watch::Receiver<Option<Vec<Service>>>, Recorder),
    shutdown: &CancellationToken,
) -> (Context, Gate) {
    let cache = Cache::new(&config.root_dir);
    let place = Place {
        root: config.root_dir.clone(),
        links: config.container_log_links.clone(),
        resolv_conf: config.resolv_conf.clone(),
        cluster_dns: config.cluster_dns.clone(),
        node_ips: config.node_ips.clone(),
        facts: NodeFacts {
            cgroups: config.cgroups.clone(),
            memory_capacity_bytes: facts.memory_bytes,
            seccomp_root: config.seccomp_root.clone(),
            seccomp_default: config.seccomp_default,
            log_limits: config.log_limits,
            log_root: config.log_root.clone(),
            cluster_domain: config.cluster_domain.clone(),
            hostname: config.hostname.clone(),
            allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
        },
        node: Arc::clone(node),
        meters: parts.meters.clone(),
        runtime_handlers: config.runtime_handlers.clone(),
    };
    let around = (cache.clone(), recorder.clone());
    let provision = Provision::new(place, parts.client.clone(), services, around);
    let gate = Gate {
        node: Arc::clone(node),
        sysctls: SysctlPolicy::new(&config.allowed_unsafe_sysctls),
        app_armor: AppArmorSupport::of_host(),
        signs: signs.clone(),
        events: recorder.clone(),
        meters: parts.meters.clone(),
    };
    let (client, meters) = (parts.client.clone(), parts.meters.clone());
    let statuses = Writer::metered(client, shutdown.clone(), meters);
    let access =
        Access::new(config.image_verification.clone(), Arc::clone(&parts.images), &config.root_dir);
    let context = Context {
        runtime: Arc::clone(&parts.runtime),
        images: Arc::clone(&parts.images),
        access: Arc::new(access),
        pulls: crate::worker::pull_permits(config.parallel_pulls),
        materials: Arc::new(provision),
        events: recorder,
        mirrors: Mirrors::new(statuses.clone()),
        statuses,
        cache,
        clock: Arc::clone(&config.clock),
        node_ips: config.node_ips.clone(),
        pacing: config.pacing,
        shelf: Shelf::default(),
        probes: Counts::default(),
        meters: parts.meters.clone(),
    };
    (context, gate)
}

/// The Services that somebody follows already, or those followed from here.
fn services(
    parts: &Parts,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) -> watch::Receiver<Option<Vec<Service>>> {
    if let Some(services) = &parts.services {
        return services.clone();
    }
    let (sender, receiver) = watch::channel(None);
    let (changes, mut inbox) = mpsc::channel(CHANGES);
    let api: Api<ServiceObject> = Api::all(parts.client.clone());
    tasks.spawn(source::follow(api, Selection::default(), changes, shutdown.clone()));
    tasks.spawn(async move {
        let mut known = std::collections::BTreeMap::new();
        let key = |service: &ServiceObject| {
            (service.metadata.namespace.clone(), service.metadata.name.clone())
        };
        while let Some(change) = inbox.recv().await {
            match change {
                Event::Synced(all) => {
                    known = all.iter().map(|s| (key(s), Service::from(s))).collect();
                }
                Event::Applied(service) => {
                    known.insert(key(&service), Service::from(&service));
                }
                Event::Deleted(service) => {
                    known.remove(&key(&service));
                }
            }
            sender.send_replace(Some(known.values().cloned().collect()));
        }
    });
    receiver
}

/// Says that the agent starts, and what the host cannot enforce.
fn announce(config: &Config, recorder: &Recorder) {
    let node = &config.node_name;
    recorder.node(node, Severity::Normal, "Starting", "Starting kubelet.");
    for fact in &config.not_enforced {
        tracing::warn!(node, "not enforced: {fact}");
        recorder.node(node, Severity::Warning, "NotEnforced", fact.clone());
    }
}

/// Keeps `node` as the API server has it: labels and taints decide who is let in.
fn follow_node(
    config: &Config,
    client: &kube::Client,
    (node, recorder): (&Shared, &Recorder),
    (tasks, shutdown): (&mut JoinSet<()>, &CancellationToken),
) {
    let (changes, mut inbox) = mpsc::channel(8);
    let selection =
        Selection { fields: Some(format!("metadata.name={}", config.node_name)), labels: None };
    let api: Api<Node> = Api::all(client.clone());
    tasks.spawn(source::follow(api, selection, changes, shutdown.clone()));
    let (node, recorder, name) = (Arc::clone(node), recorder.clone(), config.node_name.clone());
    tasks.spawn(async move {
        while let Some(change) = inbox.recv().await {
            let newest = match change {
                Event::Synced(nodes) => nodes.into_iter().next(),
                Event::Applied(node) => Some(node),
                Event::Deleted(_) => None,
            };
            if let Some(newest) = newest {
                node::take(&node, newest, (&recorder, &name));
            }
        }
    });
}

/// Registers the node where that has not been done, then keeps it alive.
async fn keep_node(
    config: Config,
    client: kube::Client,
    (node, facts, images, signs): (Shared, Facts, Arc<dyn Images>, Signs),
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    loop {
        match node::register(&config, &client, &facts, &shutdown).await {
            Ok(registered) => {
                *node.write().unwrap_or_else(PoisonError::into_inner) = registered;
                break;
            }
            Err(node::Error::Shutdown { .. }) => return,
            Err(error @ node::Error::Refused { .. }) => {
                // Rights may come later; the pods that are here do not suffer.
                tracing::error!(error = %crate::worker::chain(&error), "node not registered");
                tokio::select! {
                    () = tokio::time::sleep(std::time::Duration::from_secs(30)) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }
    let lease =
        heartbeat::keep_lease(config.clone(), client.clone(), Arc::clone(&node), shutdown.clone());
    let status = heartbeat::keep_status(config, client, (node, images, signs), recorder, shutdown);
    tokio::join!(lease, status);
}
