//! What an agent is told when it starts. Finished values: the binary resolves files, flags and the
//! host's facts; nothing here reads the environment.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::LogLimits;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Taint;

use crate::clock::{Clock, SystemClock};
use crate::qos::CgroupPolicy;
use crate::worker::memory::Pacing;
use crate::{image_access, image_gc};

/// The version that the node claims to be; tools parse it.
pub const KUBELET_VERSION: &str = "v1.36.2";

/// Everything an agent has to know.
#[derive(Clone)]
pub struct Config {
    /// The node's name.
    pub node_name: String,
    /// State that survives a reboot (`/var/lib/berth`, 0700).
    pub root_dir: PathBuf,
    /// Where checkpoints of containers go, where they are offered (`<root>/checkpoints`, 0700).
    pub checkpoints: Option<PathBuf>,
    /// The logs of pods (`/var/log/pods`).
    pub log_root: PathBuf,
    /// Links to the logs, by container (`/var/log/containers`).
    pub container_log_links: PathBuf,
    /// The node's addresses, primary first.
    pub node_ips: Vec<IpAddr>,
    /// The node's host name.
    pub hostname: String,
    /// Pod address ranges set by hand, where no controller gives the node any.
    pub pod_cidrs: Vec<IpNet>,
    /// How many pods the node takes.
    pub max_pods: u32,
    /// The cluster's DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// The resolver file that pods with the node's DNS get.
    pub resolv_conf: PathBuf,
    /// The node's HTTP API.
    pub server: Server,
    /// Labels of the node beyond the usual.
    pub labels: BTreeMap<String, String>,
    /// Taints that the node registers with.
    pub taints: Vec<Taint>,
    /// What the host cannot enforce, one sentence each; told by an event and in the log.
    pub not_enforced: Vec<String>,
    /// Whether the runtime gives pods user namespaces here; told on the node.
    pub user_namespaces: bool,
    /// The handlers that runtime classes may name, beside the one without a name.
    pub runtime_handlers: Vec<String>,
    /// Where the files of static pods are; without it there are none.
    pub static_pod_path: Option<PathBuf>,
    /// What decides cgroup limits.
    pub cgroups: CgroupPolicy,
    /// Log rotation.
    pub log_limits: LogLimits,
    /// Where Localhost seccomp profiles are (`<root>/seccomp`).
    pub seccomp_root: PathBuf,
    /// Whether pods without a profile run under the default one.
    pub seccomp_default: bool,
    /// Sysctls beyond the safe ones that pods may set; patterns.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The waits between tries.
    pub pacing: Pacing,
    /// Node status and lease.
    pub heartbeat: Heartbeat,
    /// When pods are evicted; what the hard thresholds keep is kept back from pods.
    pub eviction: crate::eviction::Config,
    /// How pods are ended when the host goes down.
    pub shutdown: crate::shutdown::Config,
    /// What else is kept back from pods.
    pub reserved: Reserved,
    /// How many images the node's status names; `None` is all.
    pub max_images: Option<usize>,
    /// How many images are pulled at a time; `None` is as many as are wanted.
    pub parallel_pulls: Option<NonZeroUsize>,
    /// When images are removed.
    pub image_gc: image_gc::Policy,
    /// When it is asked who may use images that are there.
    pub image_verification: image_access::Verification,
    /// How often the use of volumes is measured (`volumeStatsAggPeriod`); `None` is never. What else is
    /// measured of disks has the usual period then.
    pub volume_period: Option<Duration>,
    /// The node's identity at its cloud.
    pub provider_id: Option<String>,
    /// Whether a cloud's controller has the last word on the node's addresses.
    pub external_cloud: bool,
    /// Whether the operator gave the node's addresses.
    pub is_address_given: bool,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// The node's HTTP API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where the HTTPS API listens; `None` leaves it out.
    pub address: Option<SocketAddr>,
    /// Where `/healthz` answers without authentication; loopback only.
    pub healthz: Option<SocketAddr>,
    /// The serving certificate and key, PEM files; one is made and kept where absent.
    pub certificate: Option<CertificateFiles>,
    /// Whether that certificate is asked of the cluster: until it is there, one of our own is shown.
    pub certificate_is_requested: bool,
    /// The authority whose client certificates are believed; without it nobody is let in.
    pub client_ca: Option<PathBuf>,
    /// How long exec, attach and port-forward may carry nothing; zero is without end.
    pub streaming_idle_timeout: Duration,
    /// Whether `/debug/pprof/` is served.
    pub is_profiled: bool,
    /// How strict TLS is.
    pub tls: Tls,
    /// What is served of the host's logs.
    pub system_logs: SystemLogs,
    /// The flags that the agent was given, for whoever asks for `/flagz`.
    pub flags: BTreeMap<String, String>,
    /// The configuration in force, for whoever asks for `/configz`.
    pub configuration: serde_json::Value,
}

/// What is served of the host's logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SystemLogs {
    /// Nothing.
    Off,
    /// The files of `/var/log`.
    #[default]
    Files,
    /// These, and what services wrote to the journal.
    Query,
}

/// What of TLS is offered. The least is TLS 1.2 with forward secrecy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether TLS 1.2 is not.
    pub only_13: bool,
    /// The suites of TLS 1.2; all where empty.
    pub suites: Vec<rustls::CipherSuite>,
}

/// What is kept back from pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of processors.
    pub cpu_millis: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// Disk.
    pub storage_bytes: u64,
    /// Process ids.
    pub pids: u64,
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// How often the node tells that it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// How long a lease lasts.
    pub lease_duration: Duration,
    /// How often the status is looked at, and the lease renewed.
    pub status_check: Duration,
    /// How often the status is reported though nothing changed.
    pub status_report: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(40),
            status_check: Duration::from_secs(10),
            status_report: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// The defaults for a node of this name and these addresses.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>) -> Self {
        let node_name = node_name.into();
        Self {
            hostname: node_name.clone(),
            node_name,
            root_dir: "/var/lib/berth".into(),
            checkpoints: None,
            log_root: "/var/log/pods".into(),
            container_log_links: "/var/log/containers".into(),
            node_ips,
            pod_cidrs: Vec::new(),
            max_pods: 110,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            server: Server {
                address: Some(SocketAddr::from(([0, 0, 0, 0], 10250))),
                healthz: Some(SocketAddr::from(([127, 0, 0, 1], 10248))),
                certificate: None,
                certificate_is_requested: false,
                client_ca: None,
                streaming_idle_timeout: Duration::from_secs(4 * 3600),
                is_profiled: true,
                tls: Tls::default(),
                system_logs: SystemLogs::default(),
                flags: BTreeMap::new(),
                configuration: serde_json::Value::Null,
            },
            labels: BTreeMap::new(),
            taints: Vec::new(),
            not_enforced: Vec::new(),
            user_namespaces: false,
            runtime_handlers: Vec::new(),
            static_pod_path: None,
            cgroups: CgroupPolicy::default(),
            log_limits: LogLimits::default(),
            seccomp_root: "/var/lib/berth/seccomp".into(),
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            pacing: Pacing::default(),
            heartbeat: Heartbeat::default(),
            eviction: crate::eviction::Config::default(),
            shutdown: crate::shutdown::Config::default(),
            reserved: Reserved::default(),
            max_images: Some(50),
            parallel_pulls: None,
            image_gc: image_gc::Policy::default(),
            image_verification: image_access::Verification::default(),
            volume_period: Some(crate::disk::USUAL_PERIOD),
            provider_id: None,
            external_cloud: false,
            is_address_given: false,
            clock: Arc::new(SystemClock),
        }
    }
}
