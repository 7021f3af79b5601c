//! Starting and stopping: opens the store, makes the credentials, listens, runs the controllers.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use rustls::ClientConfig;
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Settings};
use crate::http::access::{MASTERS, NODE_PREFIX, NODES};
use crate::pki::{self, Authority, Live, Pair, Subject, kubeconfig};
use crate::store::{self, History, Recovery, Store};
use crate::tokens::Signer;
use crate::{control, http};

/// How often certificates are looked at.
const RENEWAL: Duration = Duration::from_secs(12 * 3600);
/// How many changes watches may go back.
const HISTORY: usize = 1000;
/// What these take at most.
const HISTORY_BYTES: usize = 16 << 20;

/// How the server is to run. All paths are the caller's choice.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the object database is (`objects.redb`).
    pub data_dir: PathBuf,
    /// Where keys and certificates are.
    pub pki_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The address clients are told; the bound one when none, which must then not be 0.0.0.0.
    pub advertise: Option<IpAddr>,
    /// Another address to listen at, on the same port, which pods can reach: what the `kubernetes`
    /// Service leads to. It may come to be later than the server. Pods cannot reach loopback.
    pub for_pods: Option<IpAddr>,
    /// The node's name, for the agent's credentials.
    pub node_name: String,
    /// The node's addresses, for the names in certificates.
    pub node_ips: Vec<IpAddr>,
    /// Addresses for Services.
    pub service_cidr: Ipv4Net,
    /// Addresses for the node's pods.
    pub pod_cidr: Ipv4Net,
    /// Ports for Services of type NodePort.
    pub node_ports: RangeInclusive<u16>,
    /// The longest life of certificates that are signed on request.
    pub signing_duration: Duration,
    /// How long events are kept after they were last seen.
    pub event_ttl: Duration,
    /// How many changes watches may go back before they get 410.
    pub history: usize,
    /// What to do with a damaged database.
    pub recovery: Recovery,
    /// Stops the server.
    pub shutdown: CancellationToken,
}

impl Config {
    /// The usual settings for a node: loopback, upstream's customary ranges.
    pub fn new(data_dir: &Path, node_name: &str) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            pki_dir: data_dir.join("pki"),
            bind: ([127, 0, 0, 1], 6443).into(),
            advertise: None,
            for_pods: None,
            node_name: node_name.to_owned(),
            node_ips: Vec::new(),
            service_cidr: Ipv4Net::new_assert([10, 96, 0, 0].into(), 12),
            pod_cidr: Ipv4Net::new_assert([10, 244, 0, 0].into(), 24),
            node_ports: 30_000..=32_767,
            signing_duration: Duration::from_secs(365 * 24 * 3600),
            event_ttl: Duration::from_secs(3600),
            history: HISTORY,
            recovery: Recovery::Refuse,
            shutdown: CancellationToken::new(),
        }
    }
}

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings contradict each other.
    #[error("{0}")]
    Config(String),
    /// The object database.
    #[error("open the object store")]
    Store(#[from] store::Error),
    /// Keys and certificates.
    #[error("prepare keys and certificates")]
    Pki(#[from] pki::Error),
    /// The address is taken or not this host's.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The objects that must be there cannot be made.
    #[error("make the initial objects: {0}")]
    Bootstrap(String),
    /// The blocking part of the start did not finish.
    #[error("the start was interrupted")]
    Interrupted,
}

/// A key and certificate on disk.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// The private key, PEM, 0600.
    pub key: PathBuf,
}

impl KeyFiles {
    fn of(pair: &Pair) -> Self {
        Self { cert: pair.cert_path.clone(), key: pair.key_path.clone() }
    }
}

/// What others need to talk to the server, or to be talked to by it.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The CA certificate, PEM text.
    pub ca_pem: String,
    /// The CA certificate's file.
    pub ca_file: PathBuf,
    /// Kubeconfig of the administrator, 0600.
    pub admin_kubeconfig: PathBuf,
    /// Kubeconfig of the node's agent (`system:node:<name>`), 0600.
    pub agent_kubeconfig: PathBuf,
    /// What the server shows to the kubelet's own API (`system:masters`).
    pub kubelet_client: KeyFiles,
    /// What the kubelet's own API should show; signed by the CA.
    pub kubelet_serving: KeyFiles,
}

/// A running server. Dropping it stops nothing; [`Server::stop`] does.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// `https://…`.
    pub url: String,
    /// Keys, certificates and kubeconfigs.
    pub credentials: Credentials,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    store: Store,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Waits until the configured token stops the server, then for its tasks.
    pub async fn wait(mut self) {
        while self.tasks.join_next().await.is_some() {}
        drop(self.store);
        if let Some(writer) = self.writer.take() {
            // The thread ends with the last handle on the store; it may be a moment late.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }

    /// Stops the server. What was answered is on disk.
    pub async fn stop(self) {
        self.stop.cancel();
        self.wait().await;
    }
}

/// Starts the server; when this returns, it answers.
///
/// # Errors
/// When the database is damaged or in use, the address is taken, or a file cannot be written.
pub async fn start(config: Config) -> Result<Server, Error> {
    check(&config)?;
    let listener = TcpListener::bind(config.bind)
        .await
        .map_err(|source| Error::Listen { address: config.bind, source })?;
    let bound =
        listener.local_addr().map_err(|source| Error::Listen { address: config.bind, source })?;
    let advertise = SocketAddr::new(config.advertise.unwrap_or(bound.ip()), bound.port());

    let for_pods = config.for_pods.map(|address| SocketAddr::new(address, bound.port()));
    let inner = for_pods.map(listen_early).transpose()?;

    let prepare = config.clone();
    let (keys, signer, (store, writer)) = tokio::task::spawn_blocking(move || {
        let keys = Keys::prepare(&prepare, advertise)?;
        let signer = Signer::open(&prepare.pki_dir)?;
        let store = Store::open(&store::Config {
            path: prepare.data_dir.join("objects.redb"),
            recovery: prepare.recovery,
            history: History { changes: prepare.history, bytes: HISTORY_BYTES },
            packed: "events/",
        })?;
        Ok::<_, Error>((keys, signer, store))
    })
    .await
    .map_err(|_| Error::Interrupted)??;

    let stop = config.shutdown.child_token();
    let Keys { credentials, serving, kubelet, authority } = keys;
    let live =
        Keyring { serving: Arc::new(Live::new(serving)), kubelet: Arc::new(Live::new(kubelet)) };
    let tls = pki::server_tls(&credentials.ca_pem, Arc::clone(&live.serving))?;
    let api = Arc::new(Api {
        store: store.clone(),
        settings: Arc::new(Settings {
            advertise,
            for_pods: for_pods.unwrap_or(advertise),
            service_cidr: config.service_cidr,
            pod_cidr: config.pod_cidr,
            node_ports: config.node_ports.clone(),
            event_ttl: config.event_ttl,
            ca_pem: credentials.ca_pem.clone(),
        }),
        kubelet: Arc::clone(&live.kubelet),
        authority: Arc::new(authority),
        signer: Arc::new(signer),
        stop: stop.clone(),
    });
    control::bootstrap(&api).await.map_err(|failure| Error::Bootstrap(failure.to_string()))?;
    let mut tasks = JoinSet::new();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    if let Some(inner) = inner {
        tasks.spawn(http::serve(inner, acceptor.clone(), Arc::clone(&api), stop.clone()));
    }
    tasks.spawn(http::serve(listener, acceptor, Arc::clone(&api), stop.clone()));
    tasks.spawn(renew(config, advertise, (live, stop.clone())));
    control::spawn(&api, &mut tasks);
    tracing::info!(%bound, "API server listens");
    Ok(Server {
        address: bound,
        url: format!("https://{advertise}"),
        credentials,
        stop,
        tasks,
        store,
        writer: Some(writer),
    })
}

/// Listens at an address that the host may not have yet.
fn listen_early(address: SocketAddr) -> Result<TcpListener, Error> {
    let listen = || -> std::io::Result<TcpListener> {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        rustix::net::sockopt::set_ip_freebind(&socket, true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    listen().map_err(|source| Error::Listen { address, source })
}

fn check(config: &Config) -> Result<(), Error> {
    let wrong = |why: String| Err(Error::Config(why));
    if config.advertise.unwrap_or(config.bind.ip()).is_unspecified() {
        return wrong(format!(
            "an address to advertise is needed when listening on {}",
            config.bind
        ));
    }
    if config.service_cidr.prefix_len() > 29 {
        return wrong(format!("the service range {} is too small", config.service_cidr));
    }
    let overlap = config.service_cidr.contains(&config.pod_cidr.addr())
        || config.pod_cidr.contains(&config.service_cidr.addr());
    if overlap {
        return wrong(format!(
            "the service range {} and the pod range {} overlap",
            config.service_cidr, config.pod_cidr
        ));
    }
    if config.node_ports.is_empty() {
        return wrong("the range of node ports is empty".into());
    }
    Ok(())
}

/// Keys and certificates in use.
struct Keys {
    credentials: Credentials,
    serving: CertifiedKey,
    kubelet: ClientConfig,
    authority: Authority,
}

impl Keys {
    /// Reads or makes everything. Blocking, idempotent.
    fn prepare(config: &Config, advertise: SocketAddr) -> Result<Self, Error> {
        let authority = Authority::open(&config.pki_dir)?.signing_for(config.signing_duration);
        let ca_pem = authority.cert_pem().to_owned();
        let serving = authority.pair(&serving_subject(config, advertise))?;
        let kubelet_client = authority.pair(&client(
            "apiserver-kubelet-client",
            "kube-apiserver-kubelet-client",
            MASTERS,
        ))?;
        let kubelet_serving = authority.pair(&kubelet_subject(config))?;
        let url = format!("https://{advertise}");
        let admin = authority.pair(&client("admin", "kubernetes-admin", MASTERS))?;
        let node_user = format!("{NODE_PREFIX}{}", config.node_name);
        let agent = authority.pair(&client("agent", &node_user, NODES))?;
        let write = |name: &str, user: &str, pair: &Pair| -> Result<PathBuf, Error> {
            let path = config.data_dir.join(name);
            pki::write_private(&path, &kubeconfig::render(&url, &ca_pem, (user, pair)))?;
            Ok(path)
        };
        let credentials = Credentials {
            ca_file: authority.cert_path().to_owned(),
            admin_kubeconfig: write("admin.kubeconfig", "kubernetes-admin", &admin)?,
            agent_kubeconfig: write("agent.kubeconfig", &node_user, &agent)?,
            kubelet_client: KeyFiles::of(&kubelet_client),
            kubelet_serving: KeyFiles::of(&kubelet_serving),
            ca_pem: ca_pem.clone(),
        };
        Ok(Self {
            serving: pki::certified(&serving)?,
            kubelet: pki::client_tls(&ca_pem, &kubelet_client)?,
            credentials,
            authority,
        })
    }
}

fn client(file: &'static str, name: &str, group: &'static str) -> Subject {
    Subject { file, name: name.to_owned(), organization: Some(group), server: None }
}

fn serving_subject(config: &Config, advertise: SocketAddr) -> Subject {
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), advertise.ip()];
    addresses.extend(control::first_service_ip(config.service_cidr).map(IpAddr::V4));
    addresses.extend(&config.node_ips);
    addresses.sort_unstable();
    addresses.dedup();
    Subject {
        file: "apiserver",
        name: "kube-apiserver".into(),
        organization: None,
        server: Some((names.map(str::to_owned).to_vec(), addresses)),
    }
}

fn kubelet_subject(config: &Config) -> Subject {
    let mut addresses = config.node_ips.clone();
    addresses.push(IpAddr::from([127, 0, 0, 1]));
    addresses.sort_unstable();
    addresses.dedup();
    let names = vec![config.node_name.clone(), "localhost".to_owned()];
    Subject {
        file: "kubelet",
        name: format!("{NODE_PREFIX}{}", config.node_name),
        organization: Some(NODES),
        server: Some((names, addresses)),
    }
}

/// What connections use, replaced when certificates are renewed.
struct Keyring {
    serving: Arc<Live<CertifiedKey>>,
    kubelet: Arc<Live<ClientConfig>>,
}

/// Makes certificates again before they end, and uses the new ones.
async fn renew(config: Config, advertise: SocketAddr, (live, stop): (Keyring, CancellationToken)) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RENEWAL) => {}
        }
        let config = config.clone();
        let prepared = tokio::task::spawn_blocking(move || Keys::prepare(&config, advertise)).await;
        match prepared {
            Ok(Ok(fresh)) => {
                live.serving.replace(fresh.serving);
                live.kubelet.replace(fresh.kubelet);
            }
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "renew certificates");
            }
            Err(_) => return,
        }
    }
}
