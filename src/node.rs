//! `berth agent`, and the node half of `berth up`: opens the host, learns the node's pod range,
//! builds the pod network, and runs proxy and kubelet until a signal.
//!
//! ```text
//! lock, images, runtime ─► pod range: API, or what the disk remembers ─► pod network
//!                                        └─► routes to peers, proxy, kubelet, local socket
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use berth_cni::Network;
use berth_kubelet::Parts;
use berth_kubelet::backoff::Limits;
use berth_kubelet::config::{CertificateFiles, Server};
use berth_kubelet::credentials::request::Purpose;
use berth_kubelet::credentials::{self, Serving, Session, Store};
use berth_kubelet::meters::Meters;
use berth_kubelet::node::peers::{self, Nodes};
use berth_kubelet::replace::{Lasting, replace};
use berth_proxy::{NodePortAddresses, ServiceRoute};
use berth_runtime::interface::{LogLimits, Runtime};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Taint;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::AgentFlags;
use crate::host::{Host, make_private};
use crate::join::{self, Files};
use crate::logind::Logind;
use crate::settings::{Places, Settings};
use crate::{check, control, cri, notify, signals, verbosity};

/// What an agent needs beyond its settings.
pub(crate) struct Identity {
    /// How to reach the API server, and as whom.
    pub(crate) kubeconfig: PathBuf,
    /// The client certificate that the kubeconfig names, where it is renewed here.
    pub(crate) renewal: Option<credentials::Node>,
    /// What the node's API shows; a self-signed one is made where absent.
    pub(crate) serving: Option<CertificateFiles>,
    /// Where the serving certificate is kept, where it is asked of the cluster.
    pub(crate) requested: Option<Store>,
    /// Whose client certificates the node's API believes; the cluster's authority where absent.
    pub(crate) client_ca: Option<PathBuf>,
    /// The flags that the agent was given, for whoever asks for them.
    pub(crate) flags: BTreeMap<String, String>,
}

/// `berth agent`.
pub(crate) async fn agent(flags: AgentFlags) -> Result<()> {
    let settings = Settings::resolve(&flags.node)?;
    let shutdown = signals::shutdown()?;
    let host = Arc::new(Host::open(&settings.places, &settings.resolv_conf).await?);
    notify::ready(&shutdown)?;
    let Some(identity) = identity(&settings, flags, &shutdown).await? else { return Ok(()) };
    run(settings, identity, host, shutdown).await
}

/// As whom the agent acts; asks the cluster for a certificate where it has none. `None` when the agent
/// ends before.
async fn identity(
    settings: &Settings,
    flags: AgentFlags,
    shutdown: &CancellationToken,
) -> Result<Option<Identity>> {
    let told = flags.told();
    let mut files = Files::of(&settings.places);
    files.pki = flags.cert_dir.unwrap_or(files.pki);
    let mut node = join::identity(settings, &files);
    node.kubeconfig = flags.kubeconfig.unwrap_or(files.kubeconfig);
    node.bootstrap = flags.bootstrap_kubeconfig.or(Some(files.bootstrap)).filter(|f| f.exists());
    // What is not there and cannot be asked for is named when it is read.
    if node.bootstrap.is_some() || node.is_renewed_here() {
        match credentials::join(&node, shutdown).await {
            Err(credentials::Trouble::Shutdown) => return Ok(None),
            joined => joined?,
        }
    }
    let requested = settings.server_tls_bootstrap.then(|| Store::serving(&files.pki));
    let serving = match &requested {
        Some(store) => Some((store.current_path(), store.current_path())),
        None => settings.tls_files.clone(),
    };
    let is_renewed = settings.rotate_certificates && node.is_renewed_here();
    Ok(Some(Identity {
        kubeconfig: node.kubeconfig.clone(),
        renewal: is_renewed.then_some(node),
        serving: serving.map(|(certificate, key)| CertificateFiles { certificate, key }),
        requested,
        client_ca: settings.client_ca_file.clone(),
        flags: told,
    }))
}

/// Runs a node until `shutdown`. Pods go on without it.
pub(crate) async fn run(
    settings: Settings,
    identity: Identity,
    host: Arc<Host>,
    shutdown: CancellationToken,
) -> Result<()> {
    check::demands(&settings.kubelet)?;
    verbosity::configure(settings.kubelet.verbosity).map_err(anyhow::Error::msg)?;
    host.driver.get_or_init(|| settings.kubelet.cgroups.driver);
    let node_ips = node_ips(&settings)?;
    let session = Session::open(&identity.kubeconfig, Meters::default()).await?;
    let meters = session.meters().clone();
    host.hierarchy.tell(Arc::new(meters.clone()));
    let client = session.client();
    let client_ca = match (identity.client_ca.clone(), session.authorities()) {
        (None, []) => None,
        (None, all) => {
            Some(keep_authority(&settings, &all.iter().map(|der| pem(der)).collect::<String>())?)
        }
        (file, _) => file,
    };
    let mut config = kubelet_config(&settings, &node_ips, identity.serving, client_ca)?;
    config.server.flags = identity.flags;
    config.user_namespaces = host.engine.user_namespaces().is_ok();
    let mut tasks = JoinSet::new();
    let control = control::serve(settings.places.run_dir.clone(), host.clone(), shutdown.clone());
    tasks.spawn(async move { control.await.context("serving the local socket") });

    let cri = cri::beside_agent(settings.clone(), shutdown.clone());
    tasks.spawn(async move { cri.await.context("serving the CRI socket") });

    config.server.certificate_is_requested = identity.requested.is_some();
    let kept = (identity.renewal, identity.requested);
    keep_certificates(&config, kept, (session, &client), (&mut tasks, &shutdown));

    let (nodes, mut known) = watch::channel(Nodes::default());
    let name = settings.node_name.clone();
    let follow = peers::follow(client.clone(), name, nodes, shutdown.clone());
    tasks.spawn(async move {
        follow.await;
        Ok(())
    });
    let Some(pod_cidrs) = pod_range(&settings, &config, &client, &mut known, &shutdown).await?
    else {
        return finish(tasks, &host).await;
    };
    open_network(&settings, &host, pod_cidrs.clone()).await?;
    tasks.spawn(keep_peers(host.clone(), known, shutdown.clone()));
    let proxy = berth_proxy::run(
        client.clone(),
        proxy_config(&settings, node_ips, pod_cidrs),
        shutdown.clone(),
    );
    tasks.spawn(async move { proxy.await.context("running the service proxy") });
    let parts = Parts {
        client,
        runtime: host.engine.clone(),
        images: host.images.clone(),
        recent: host.events.clone(),
        services: None,
        login: Some(Arc::new(Logind::new(&settings.places.state_dir))),
        meters,
        set_verbosity: settings.kubelet.sets_verbosity.then_some(verbosity::set),
    };
    let kubelet = berth_kubelet::run(config, parts, shutdown.clone());
    tasks.spawn(async move { kubelet.await.context("running the kubelet") });

    // The first part to end ends the others: a node is whole, or it is not there.
    let first = tasks.join_next().await;
    shutdown.cancel();
    let outcome = first.transpose().context("a part of the node panicked")?.transpose();
    finish(tasks, &host).await?;
    outcome.map(drop)
}

/// Renews the certificates that the cluster issues to this node.
fn keep_certificates(
    config: &berth_kubelet::Config,
    (renewal, requested): (Option<credentials::Node>, Option<Store>),
    (session, client): (Session, &kube::Client),
    (tasks, shutdown): (&mut JoinSet<Result<()>>, &CancellationToken),
) {
    let meters = session.meters().clone();
    if let Some(node) = renewal {
        let keeping = credentials::keep_client(node, session, shutdown.clone());
        tasks.spawn(async move {
            keeping.await;
            Ok(())
        });
    }
    if let Some(store) = requested {
        let mut names = vec![config.hostname.clone(), config.node_name.clone()];
        names.dedup();
        let serving = Serving {
            node: config.node_name.clone(),
            purpose: Purpose::Serving { names, addresses: config.node_ips.clone() },
            store,
            clock: Arc::clone(&config.clock),
            meters,
        };
        let keeping = credentials::keep_serving(serving, client.clone(), shutdown.clone());
        tasks.spawn(async move {
            keeping.await;
            Ok(())
        });
    }
}

async fn finish(mut tasks: JoinSet<Result<()>>, host: &Host) -> Result<()> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(ended.context("a part of the node panicked").flatten());
    }
    host.network.flush().await;
    outcome
}

/// The node's pod range: what the disk remembers, else what the API gives once the node is
/// registered. `None` when the agent ends before.
async fn pod_range(
    settings: &Settings,
    config: &berth_kubelet::Config,
    client: &kube::Client,
    known: &mut watch::Receiver<Nodes>,
    shutdown: &CancellationToken,
) -> Result<Option<Vec<IpNet>>> {
    let file = pod_range_file(&settings.places);
    if let Some(remembered) = remembered(&settings.places) {
        info!(?remembered, "pod range as remembered");
        return Ok(Some(remembered));
    }
    berth_kubelet::register_node(config, client, shutdown).await?;
    let Some(cidrs) = peers::wait_for_pod_cidrs(known, shutdown).await else {
        return Ok(None);
    };
    replace(&file, &serde_json::to_vec(&cidrs)?, 0o600, Lasting::PowerCut)
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(Some(cidrs))
}

fn pod_range_file(places: &Places) -> PathBuf {
    places.state_dir.join("pod-cidrs.json")
}

/// The pod range that an earlier agent was given. A torn or missing file is no memory.
pub(crate) fn remembered(places: &Places) -> Option<Vec<IpNet>> {
    let cidrs: Vec<IpNet> = serde_json::from_slice(&fs::read(pod_range_file(places)).ok()?).ok()?;
    (!cidrs.is_empty()).then_some(cidrs)
}

/// Builds the pod network, and frees what sandboxes that are gone have left in it.
pub(crate) async fn open_network(
    settings: &Settings,
    host: &Host,
    pod_cidrs: Vec<IpNet>,
) -> Result<()> {
    let network = Network::open(network_config(settings, pod_cidrs)).await;
    host.network.set(network.context("building the pod network")?);
    let sandboxes = host.engine.list().await?;
    let live: Vec<_> = sandboxes.into_iter().map(|sandbox| sandbox.id).collect();
    host.network.free_all_but(&live).await;
    Ok(())
}

/// How the pod network of these settings is built; also used to remove it.
pub(crate) fn network_config(settings: &Settings, pod_cidrs: Vec<IpNet>) -> berth_cni::Config {
    let state_dir = settings.places.state_dir.join("ipam");
    let mut config = berth_cni::Config::new(pod_cidrs, state_dir);
    config.bridge = settings.bridge.clone();
    config.mtu = settings.mtu;
    if !settings.cluster_cidrs.is_empty() {
        config.cluster_cidrs = settings.cluster_cidrs.clone();
    }
    config
}

/// Keeps the routes to other nodes' pods.
async fn keep_peers(
    host: Arc<Host>,
    mut nodes: watch::Receiver<Nodes>,
    shutdown: CancellationToken,
) -> Result<()> {
    loop {
        let peers = routes(&nodes.borrow_and_update());
        if let Err(error) = host.network.set_peers(peers).await {
            warn!(error = &error as &dyn std::error::Error, "routes to other nodes' pods");
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            changed = nodes.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// One peer a node and family.
fn routes(nodes: &Nodes) -> Vec<berth_cni::Peer> {
    let mut peers = Vec::new();
    for node in &nodes.peers {
        for is_ipv4 in [true, false] {
            let via = node.addresses.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
            let of_family = |cidr: &&IpNet| cidr.addr().is_ipv4() == is_ipv4;
            let pod_cidrs: Vec<_> = node.pod_cidrs.iter().filter(of_family).copied().collect();
            if let (Some(via), false) = (via, pod_cidrs.is_empty()) {
                peers.push(berth_cni::Peer { pod_cidrs, via });
            }
        }
    }
    peers
}

fn proxy_config(
    settings: &Settings,
    node_ips: Vec<IpAddr>,
    pod_cidrs: Vec<IpNet>,
) -> berth_proxy::Config {
    let mut config = berth_proxy::Config::new(settings.node_name.clone());
    config.pod_cidrs =
        if settings.cluster_cidrs.is_empty() { pod_cidrs } else { settings.cluster_cidrs.clone() };
    config.service_cidrs = vec![settings.service_cidr];
    config.node_port_addresses = if settings.node_port_addresses.is_empty() {
        NodePortAddresses::Primary(node_ips)
    } else {
        NodePortAddresses::Networks(settings.node_port_addresses.clone())
    };
    config.service_route = ServiceRoute::Device(settings.bridge.clone());
    config
}

fn kubelet_config(
    settings: &Settings,
    node_ips: &[IpAddr],
    serving: Option<CertificateFiles>,
    client_ca: Option<PathBuf>,
) -> Result<berth_kubelet::Config> {
    let places = &settings.places;
    let mut config = berth_kubelet::Config::new(settings.node_name.clone(), node_ips.to_vec());
    config.root_dir = places.state_dir.clone();
    let checkpoints = places.state_dir.join("checkpoints");
    config.checkpoints = settings.kubelet.has_checkpoints.then_some(checkpoints);
    config.log_root = places.log_dir.clone();
    config.container_log_links = places.log_links_dir.clone();
    config.hostname = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    config.pod_cidrs = settings.pod_cidr.into_iter().collect();
    config.max_pods = settings.max_pods;
    config.static_pod_path.clone_from(&settings.static_pod_path);
    config.pacing.restart = Limits::of_restarts(settings.longest_restart_delay);
    config.cluster_dns = settings.cluster_dns.clone();
    config.cluster_domain = settings.cluster_domain.clone();
    config.resolv_conf = settings.resolv_conf.clone();
    let address = settings.bind_address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    config.server = Server {
        address: Some(SocketAddr::new(address, settings.port)),
        healthz: settings.kubelet.healthz,
        certificate_is_requested: false,
        certificate: serving,
        client_ca,
        streaming_idle_timeout: settings.streaming_idle_timeout,
        is_profiled: settings.kubelet.is_profiled,
        tls: settings.kubelet.tls.clone(),
        system_logs: settings.kubelet.system_logs,
        flags: BTreeMap::new(),
        configuration: settings.in_force.clone(),
    };
    config.labels = settings.node_labels.iter().cloned().collect();
    config.taints = settings.taints.iter().map(taint).collect();
    config.not_enforced = check::limits(&places.run_dir, settings.kubelet.cgroups.driver)?;
    config.not_enforced.extend(settings.kubelet.told.iter().cloned());
    config.cgroups = settings.kubelet.cgroups.clone();
    config.parallel_pulls = settings.kubelet.parallel_pulls;
    config.image_gc = settings.kubelet.image_gc;
    config.image_verification = settings.kubelet.image_verification.clone();
    config.volume_period = settings.kubelet.volume_period;
    let (max_bytes, max_files) = (settings.log_max_bytes, settings.log_max_files);
    config.log_limits = LogLimits { max_bytes, max_files };
    config.seccomp_root = places.state_dir.join("seccomp");
    config.seccomp_default = settings.kubelet.seccomp_default;
    config.heartbeat = settings.kubelet.heartbeat;
    config.allowed_unsafe_sysctls.clone_from(&settings.kubelet.allowed_unsafe_sysctls);
    config.reserved = settings.kubelet.reserved;
    config.eviction = settings.kubelet.eviction.clone();
    config.shutdown = settings.kubelet.shutdown.clone();
    config.max_images = settings.kubelet.max_images;
    config.runtime_handlers.clone_from(&settings.runtime_handlers);
    config.provider_id.clone_from(&settings.kubelet.provider_id);
    config.external_cloud = settings.external_cloud;
    config.is_address_given = !settings.node_ips.is_empty();
    Ok(config)
}

fn taint(taint: &crate::settings::documents::Taint) -> Taint {
    Taint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: taint.effect.clone(),
        time_added: None,
    }
}

/// A certificate in PEM (RFC 7468).
fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Keeps the cluster's authority where the node's API reads it.
fn keep_authority(settings: &Settings, pem: &str) -> Result<PathBuf> {
    let directory = settings.places.state_dir.join("pki");
    make_private(&directory)?;
    let file = directory.join("cluster-ca.crt");
    replace(&file, pem.as_bytes(), 0o644, Lasting::PowerCut)
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// The configured addresses, or those that the default routes lead out with.
pub(crate) fn node_ips(settings: &Settings) -> Result<Vec<IpAddr>> {
    if !settings.node_ips.is_empty() {
        return Ok(settings.node_ips.clone());
    }
    let outside: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let found: Vec<_> = outside.into_iter().filter_map(|to| source_address(to).ok()).collect();
    if found.is_empty() {
        bail!("this host has no default route to tell the node's address: set --node-ip");
    }
    Ok(found)
}

/// The address that packets to `destination` would leave with; nothing is sent.
fn source_address(destination: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((destination, 9))?;
    Ok(socket.local_addr()?.ip())
}
