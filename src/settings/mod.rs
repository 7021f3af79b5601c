//! What a node's configuration resolves to: flags over documents over defaults over the host.
//!
//! The crates receive finished values from here and never read the environment or a flag.

pub(crate) mod documents;
mod eviction;
mod kubelet;
mod shutdown;
mod verification;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::Value;

use crate::cli::{HostFlags, NodeFlags};
use documents::{Documents, Taint};
pub(crate) use eviction::share_disks;
pub(crate) use kubelet::Kubelet;

/// Where a node keeps its things.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Places {
    /// `/var/lib/berth`.
    pub(crate) state_dir: PathBuf,
    /// `/run/berth`.
    pub(crate) run_dir: PathBuf,
    /// `/var/log/pods`.
    pub(crate) log_dir: PathBuf,
    /// `/var/log/containers`: beside the log directory.
    pub(crate) log_links_dir: PathBuf,
}

/// A node's settings, resolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) places: Places,
    pub(crate) node_name: String,
    /// Primary first; empty lets the default route decide.
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) node_labels: Vec<(String, String)>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) external_cloud: bool,
    pub(crate) bind_address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) client_ca_file: Option<PathBuf>,
    pub(crate) tls_files: Option<(PathBuf, PathBuf)>,
    /// Whether the client certificate is renewed.
    pub(crate) rotate_certificates: bool,
    /// Whether the serving certificate is asked of the cluster.
    pub(crate) server_tls_bootstrap: bool,
    pub(crate) streaming_idle_timeout: Duration,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) max_pods: u32,
    pub(crate) pod_cidr: Option<IpNet>,
    pub(crate) static_pod_path: Option<PathBuf>,
    pub(crate) longest_restart_delay: Duration,
    pub(crate) log_max_bytes: u64,
    pub(crate) log_max_files: u32,
    pub(crate) bridge: String,
    pub(crate) mtu: Option<u32>,
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) service_cidr: IpNet,
    pub(crate) node_port_addresses: Vec<IpNet>,
    /// The handlers that RuntimeClasses may name.
    pub(crate) runtime_handlers: Vec<String>,
    pub(crate) kubelet: Kubelet,
    /// The configuration in force, as `/configz` tells it.
    pub(crate) in_force: serde_json::Value,
}

impl Places {
    /// Resolves the directories alone: all that the commands need which look at a node from outside.
    pub(crate) fn resolve(flags: &HostFlags) -> Result<Self> {
        Ok(Self::from_documents(flags, &read(flags)?))
    }

    fn from_documents(flags: &HostFlags, documents: &Documents) -> Self {
        let node = &documents.node;
        let pick = |flag: &Option<PathBuf>, document: &Option<PathBuf>, default: &str| {
            flag.clone().or_else(|| document.clone()).unwrap_or_else(|| PathBuf::from(default))
        };
        let log_dir = pick(&flags.log_dir, &node.log_dir, "/var/log/pods");
        Self {
            state_dir: pick(&flags.state_dir, &node.state_dir, "/var/lib/berth"),
            run_dir: pick(&flags.run_dir, &node.run_dir, "/run/berth"),
            log_links_dir: log_dir.with_file_name("containers"),
            log_dir,
        }
    }
}

impl Settings {
    /// Resolves what a command needs that looks at a node from outside.
    pub(crate) fn of_host(flags: &HostFlags) -> Result<Self> {
        Self::resolve(&NodeFlags {
            host: flags.clone(),
            node_name: None,
            node_ip: Vec::new(),
            node_label: Vec::new(),
        })
    }

    /// Resolves everything. Every fault found is in the error.
    pub(crate) fn resolve(flags: &NodeFlags) -> Result<Self> {
        let documents = read(&flags.host)?;
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        resolve(flags, &documents, host_name.trim()).map_err(|faults| {
            let source = flags.host.config.as_deref().unwrap_or(Path::new("the command line"));
            anyhow::anyhow!("{}: {}", source.display(), faults.join("; "))
        })
    }
}

/// The directories, and the fields of KubeletConfiguration as they are written, whatever they mean.
pub(crate) fn written(flags: &HostFlags) -> Result<(Places, serde_json::Map<String, Value>)> {
    let documents = read(flags)?;
    Ok((Places::from_documents(flags, &documents), documents.written))
}

/// The documents in the files, and the flags that are fields of them, in the order of their weight.
fn read(flags: &HostFlags) -> Result<Documents> {
    let mut documents = match &flags.config {
        None => Documents::default(),
        Some(file) => {
            let text = text(file)?;
            documents::parse(&text).map_err(|errors| all(file, &errors))?
        }
    };
    let files = flags.config_dir.as_deref().map(drop_ins).transpose()?.unwrap_or_default();
    for file in files {
        documents.put_over(&text(&file)?).map_err(|errors| all(&file, &errors))?;
    }
    if !flags.overlay.is_empty() {
        let fields = documents.put_fields_over(&flags.overlay);
        fields.map_err(|error| all(Path::new("the command line"), &[error]))?;
    }
    Ok(documents)
}

fn text(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// The files of a drop-in directory, by their names' order.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>> {
    let name = || format!("reading {}", directory.display());
    let entries = fs::read_dir(directory).with_context(name)?;
    let entries = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>();
    let mut files = entries.with_context(name)?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "conf") && file.is_file());
    files.sort();
    Ok(files)
}

fn all(file: &Path, errors: &[documents::DocumentError]) -> anyhow::Error {
    let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("{}: {}", file.display(), all.join("; "))
}

fn resolve(
    flags: &NodeFlags,
    documents: &Documents,
    host_name: &str,
) -> Result<Settings, Vec<String>> {
    let Documents { kubelet, written, proxy, node } = documents;
    let mut faults = Vec::new();
    let of_node = Kubelet::resolve(kubelet).map_err(|found| faults.extend(found)).ok();
    if let Some(mode) = proxy.mode.as_deref().filter(|mode| !matches!(*mode, "" | "nftables")) {
        faults
            .push(format!("mode: {mode:?} is not supported: services are programmed as nftables"));
    }
    let name = node_name(flags.node_name.as_deref().unwrap_or(host_name));
    let node_name = keep(&mut faults, name);
    let streaming_idle_timeout = keep(
        &mut faults,
        match kubelet.streaming_connection_idle_timeout.as_deref() {
            None => Ok(Duration::from_secs(4 * 3600)),
            // Zero stands for the usual, as for upstream.
            Some(text) => duration(text)
                .map(|given| if given.is_zero() { Duration::from_secs(4 * 3600) } else { given })
                .ok_or_else(|| format!("streamingConnectionIdleTimeout: {text:?} is no duration")),
        },
    );
    let longest_restart_delay = keep(&mut faults, longest_restart_delay(kubelet));
    let log_max_bytes = keep(
        &mut faults,
        match &kubelet.container_log_max_size {
            None => Ok(10 << 20),
            Some(text) => bytes(text).ok_or(format!("containerLogMaxSize: {text:?} is not a size")),
        },
    );
    let mut networks = |field: &str, texts: &[String]| -> Vec<IpNet> {
        let parsed = texts.iter().map(|text| {
            let network = text.trim().parse();
            keep(&mut faults, network.map_err(|_| format!("{field}: {text:?} is not a CIDR")))
        });
        parsed.flatten().collect()
    };
    let node_port_addresses = match &proxy.node_port_addresses[..] {
        [primary] if primary == "primary" => Vec::new(),
        texts => networks("nodePortAddresses", texts),
    };
    let cluster_texts: Vec<String> =
        proxy.cluster_cidr.iter().flat_map(|text| text.split(',')).map(str::to_owned).collect();
    let cluster_cidr = networks("clusterCIDR", &cluster_texts);
    let node_labels: Vec<_> = flags
        .node_label
        .iter()
        .filter_map(|label| {
            let pair = label.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
            keep(&mut faults, pair.ok_or(format!("--node-label: {label:?} is not key=value")))
        })
        .collect();
    let tls_files = keep(
        &mut faults,
        match (&kubelet.tls_cert_file, &kubelet.tls_private_key_file) {
            (Some(certificate), Some(key)) => Ok(Some((certificate.clone(), key.clone()))),
            (None, None) => Ok(None),
            _ => Err("tlsCertFile and tlsPrivateKeyFile go together".to_owned()),
        },
    );
    if kubelet.server_tls_bootstrap == Some(true) && kubelet.tls_cert_file.is_some() {
        faults.push("serverTLSBootstrap: tlsCertFile says which certificate is shown".to_owned());
    }
    faults.extend(access_faults(kubelet));
    faults.extend(handler_faults(&node.runtime_handlers));
    if kubelet.container_log_max_files.is_some_and(|files| files < 2) {
        faults.push("containerLogMaxFiles: must be at least 2".to_owned());
    }
    let (Some(node_name), Some(log_max_bytes), Some(tls_files), Some(streaming_idle_timeout), true) =
        (node_name, log_max_bytes, tls_files, streaming_idle_timeout, faults.is_empty())
    else {
        return Err(faults);
    };
    let (Some(longest_restart_delay), Some(of_node)) = (longest_restart_delay, of_node) else {
        return Err(faults);
    };
    let mut settings = Settings {
        places: Places::from_documents(&flags.host, documents),
        node_name,
        node_ips: flags.node_ip.clone(),
        node_labels,
        external_cloud: flags.host.external_cloud,
        taints: taints(&kubelet.register_with_taints, flags.host.external_cloud),
        bind_address: kubelet.address,
        port: kubelet.port.unwrap_or(10250),
        client_ca_file: kubelet.authentication.x509.client_ca_file.clone(),
        tls_files,
        rotate_certificates: kubelet.rotate_certificates.unwrap_or(true),
        server_tls_bootstrap: kubelet.server_tls_bootstrap.unwrap_or(false),
        streaming_idle_timeout,
        cluster_dns: kubelet.cluster_dns.clone(),
        cluster_domain: kubelet.cluster_domain.clone().unwrap_or("cluster.local".to_owned()),
        resolv_conf: kubelet.resolv_conf.clone().unwrap_or("/etc/resolv.conf".into()),
        max_pods: max_pods(kubelet),
        pod_cidr: kubelet.pod_cidr,
        static_pod_path: kubelet.static_pod_path.clone().filter(|p| !p.as_os_str().is_empty()),
        longest_restart_delay,
        log_max_bytes,
        log_max_files: kubelet.container_log_max_files.unwrap_or(5),
        bridge: node.bridge.clone().unwrap_or("berth0".to_owned()),
        mtu: node.mtu,
        cluster_cidrs: if node.cluster_cidrs.is_empty() {
            cluster_cidr
        } else {
            node.cluster_cidrs.clone()
        },
        service_cidr: node.service_cidr.unwrap_or(DEFAULT_SERVICE_CIDR),
        node_port_addresses,
        runtime_handlers: node.runtime_handlers.clone(),
        kubelet: of_node,
        in_force: serde_json::Value::Null,
    };
    settings.in_force = kubelet::in_force(&settings, written);
    eviction::in_force(kubelet, &mut settings);
    shutdown::in_force(kubelet, &mut settings);
    Ok(settings)
}

/// How many pods the node takes: 110 where nothing else is said, and at most so many a processor.
fn max_pods(kubelet: &documents::KubeletConfiguration) -> u32 {
    let most = kubelet.max_pods.filter(|count| *count > 0).unwrap_or(110);
    let cores = std::thread::available_parallelism().map_or(1, |count| count.get());
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    match kubelet.pods_per_core.filter(|count| *count > 0) {
        Some(each) => most.min(each.saturating_mul(cores)),
        None => most,
    }
}

/// What is said of authentication and authorization that is not so. There is one way: certificates and
/// TokenReview, then SubjectAccessReview, with upstream's times.
fn access_faults(kubelet: &documents::KubeletConfiguration) -> Vec<String> {
    let (authentication, authorization) = (&kubelet.authentication, &kubelet.authorization);
    let mut faults = Vec::new();
    if authentication.anonymous.enabled == Some(true) {
        faults.push("authentication.anonymous.enabled: nobody is let in anonymously".to_owned());
    }
    if authentication.webhook.enabled == Some(false) {
        faults.push("authentication.webhook.enabled: tokens are always reviewed".to_owned());
    }
    if authorization.mode.as_deref().is_some_and(|mode| mode != "Webhook") {
        faults.push("authorization.mode: only Webhook is there".to_owned());
    }
    let webhook = &authorization.webhook;
    for (field, value, usual_s) in [
        ("authentication.webhook.cacheTTL", &authentication.webhook.cache_ttl, 120),
        ("authorization.webhook.cacheAuthorizedTTL", &webhook.cache_authorized_ttl, 300),
        ("authorization.webhook.cacheUnauthorizedTTL", &webhook.cache_unauthorized_ttl, 30),
    ] {
        let Some(text) = value else { continue };
        // Zero stands for the default.
        let is_usual = duration(text).is_some_and(|d| d.is_zero() || d.as_secs() == usual_s);
        if !is_usual {
            faults.push(format!("{field}: {text}: only {usual_s}s is there"));
        }
    }
    faults
}

/// The value, or its fault kept.
fn keep<T>(faults: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}

/// kubeadm's default for Services.
const DEFAULT_SERVICE_CIDR: IpNet =
    IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 12));

/// A node's name is a DNS-1123 subdomain; upstream lowers the host name's case.
fn node_name(text: &str) -> Result<String, String> {
    let name = text.to_lowercase();
    if name.len() <= 253 && name.split('.').all(is_label) {
        Ok(name)
    } else {
        Err(format!("node name: {text:?} is not a DNS-1123 subdomain (set --node-name)"))
    }
}

/// Whether it is a DNS-1123 label, its length aside.
fn is_label(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('-')
        && !part.ends_with('-')
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What is wrong with handlers: each is named once, as a RuntimeClass can name it.
fn handler_faults(handlers: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, name) in handlers.iter().enumerate() {
        if name.len() > 63 || !is_label(name) {
            faults.push(format!("runtimeHandlers: {name:?} is not a DNS-1123 label"));
        }
        if handlers[..at].contains(name) {
            faults.push(format!("runtimeHandlers: {name:?} is there twice"));
        }
    }
    faults
}

/// A whole number of bytes with Kubernetes' binary or decimal suffix.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// A duration as Go writes it: `4h0m0s`, `1.5h`, `300ms`; none is negative.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[length..];
    }
    (!text.is_empty()).then_some(total)
}

/// `crashLoopBackOff.maxContainerRestartPeriod`, 1s to 300s.
fn longest_restart_delay(kubelet: &documents::KubeletConfiguration) -> Result<Duration, String> {
    let field = "crashLoopBackOff.maxContainerRestartPeriod";
    let Some(text) = kubelet.crash_loop_back_off.max_container_restart_period.as_deref() else {
        return Ok(Duration::from_secs(300));
    };
    let period = duration(text).ok_or_else(|| format!("{field}: {text:?} is no duration"))?;
    match (1..=300).contains(&period.as_secs()) && period <= Duration::from_secs(300) {
        true => Ok(period),
        false => Err(format!("{field}: must be between 1s and 300s")),
    }
}

/// The taints that the node is registered with: those that are asked for, and the one that a cloud's
/// controller takes away.
fn taints(asked: &[Taint], external_cloud: bool) -> Vec<Taint> {
    let own = external_cloud.then(|| Taint {
        key: "node.cloudprovider.kubernetes.io/uninitialized".to_owned(),
        value: Some("true".to_owned()),
        effect: "NoSchedule".to_owned(),
    });
    asked.iter().cloned().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubeadm_says_of_access_is_so_and_what_is_laxer_is_refused() {
        let kubeadm = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
            authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}}\n\
            authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, \
            cacheUnauthorizedTTL: 30s}}\n";
        let documents = documents::parse(kubeadm).unwrap();
        assert_eq!(access_faults(&documents.kubelet), Vec::<String>::new());
        let lax = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
            authentication: {anonymous: {enabled: true}, webhook: {enabled: false, cacheTTL: 9h}}\n\
            authorization: {mode: AlwaysAllow}\n";
        assert_eq!(access_faults(&documents::parse(lax).unwrap().kubelet).len(), 4);
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        assert_eq!(duration("4h0m0s"), Some(Duration::from_secs(14_400)));
        assert_eq!(duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(
            (duration("300ms"), duration("0")),
            (Some(Duration::from_millis(300)), Some(Duration::ZERO))
        );
        for bad in ["", "5", "-1s", "1d", "h", "1.2.3s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    fn flags() -> NodeFlags {
        NodeFlags {
            host: HostFlags {
                config: None,
                config_dir: None,
                state_dir: None,
                run_dir: None,
                log_dir: None,
                overlay: serde_json::Map::new(),
                external_cloud: false,
            },
            node_name: None,
            node_ip: Vec::new(),
            node_label: Vec::new(),
        }
    }

    #[test]
    fn defaults_are_upstreams() {
        let settings = resolve(&flags(), &Documents::default(), "Host-1").unwrap();
        assert_eq!(settings.node_name, "host-1");
        assert_eq!((settings.port, settings.max_pods), (10250, 110));
        assert_eq!((settings.log_max_bytes, settings.log_max_files), (10 << 20, 5));
        assert_eq!(settings.service_cidr.to_string(), "10.96.0.0/12");
        assert_eq!(settings.places.log_links_dir, Path::new("/var/log/containers"));
    }

    #[test]
    fn a_clouds_taint_comes_to_those_that_are_asked_for() {
        let mut flags = flags();
        let asked: Taint = serde_json::from_str(r#"{"key": "a", "effect": "NoExecute"}"#).unwrap();
        let mut documents = Documents::default();
        documents.kubelet.register_with_taints = vec![asked];
        assert_eq!(
            resolve(&flags, &documents, "n").unwrap().taints,
            documents.kubelet.register_with_taints
        );
        flags.host.external_cloud = true;
        let taints = resolve(&flags, &documents, "n").unwrap().taints;
        assert_eq!((taints.len(), taints[0].key.as_str()), (2, "a"));
        assert_eq!(taints[1].key, "node.cloudprovider.kubernetes.io/uninitialized");
    }

    #[test]
    fn flags_go_over_drop_ins_and_drop_ins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let file = |name: &str, fields: &str| {
            let path = dir.path().join(name);
            fs::write(&path, format!("{head}{fields}")).unwrap();
            path
        };
        let mut flags = flags().host;
        flags.config = Some(file("config.yaml", "maxPods: 1\nport: 1\nclusterDomain: one\n"));
        file("20-last.conf", "maxPods: 3\n");
        file("10-first.conf", "maxPods: 2\nport: 2\n");
        file("README", "no document");
        flags.config_dir = Some(dir.path().to_owned());
        flags.overlay.insert("clusterDomain".to_owned(), "flag".into());
        let kubelet = read(&flags).unwrap().kubelet;
        assert_eq!((kubelet.max_pods, kubelet.port), (Some(3), Some(2)));
        assert_eq!(kubelet.cluster_domain.as_deref(), Some("flag"));
        file("30-bad.conf", "maxPodz: 3\n");
        let error = read(&flags).unwrap_err().to_string();
        assert!(error.contains("30-bad.conf: line 3"), "{error}");
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let mut flags = flags();
        flags.node_label = vec!["novalue".to_owned()];
        let mut documents = Documents::default();
        documents.proxy.mode = Some("ipvs".to_owned());
        documents.proxy.node_port_addresses = vec!["10.0.0.0".to_owned()];
        documents.kubelet.container_log_max_size = Some("10 pebbles".to_owned());
        documents.kubelet.tls_cert_file = Some("/x".into());
        documents.node.runtime_handlers = ["a", "A", "", "a"].map(str::to_owned).into();
        let faults = resolve(&flags, &documents, "bad_name").unwrap_err();
        assert_eq!(faults.len(), 9, "{faults:?}");
    }

    #[test]
    fn a_flag_wins_over_a_document() {
        let mut flags = flags();
        flags.host.state_dir = Some("/a".into());
        let mut documents = Documents::default();
        documents.node.state_dir = Some("/b".into());
        documents.node.run_dir = Some("/c".into());
        let places = resolve(&flags, &documents, "n").unwrap().places;
        assert_eq!((places.state_dir, places.run_dir), ("/a".into(), "/c".into()));
    }

    #[test]
    fn sizes_take_kubernetes_suffixes() {
        assert_eq!(bytes("10Mi"), Some(10 << 20));
        assert_eq!(bytes("5M"), Some(5_000_000));
        assert_eq!(bytes("Mi"), None);
        assert_eq!(bytes("1.5Mi"), None);
    }
}
