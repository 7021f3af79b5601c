//! berth under the name `kubelet`: the flags that kubeadm and its unit write, with the kubelet's
//! defaults, become the agent's. Pure but for what clap prints.
//!
//! Flags that are fields of KubeletConfiguration go over the files' values; the rest of the kubelet's
//! many flags are refused by clap.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_kubelet::config::KUBELET_VERSION;
use clap::Parser;
use serde_json::{Map, Value, json};

use crate::cli::{AgentFlags, Cli, Command, HostFlags, LogFlags, NodeFlags};
use crate::verbosity;

/// Where the kubelet keeps its things.
const ROOT: &str = "/var/lib/kubelet";

/// Whether a program was started under the kubelet's name.
pub(crate) fn is_meant(name: Option<&OsStr>) -> bool {
    name.is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new("kubelet")))
}

/// The kubelet's flags.
#[derive(Debug, Parser)]
#[command(name = "kubelet", about = "A Kubernetes node (berth)", disable_version_flag = true)]
pub(crate) struct Flags {
    /// Print the version and end
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    version: Option<String>,
    /// A KubeletConfiguration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Files (*.conf) whose fields go over the configuration's, in the order of their names
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// How to reach the API server and as whom; written where it is not there yet
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How to ask for the certificate that --kubeconfig is to name
    #[arg(long, value_name = "FILE")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Volumes, images and records
    #[arg(long, value_name = "DIR", default_value = ROOT)]
    root_dir: PathBuf,
    /// Certificates [default: pki in the root directory]
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// The node's name
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// The node's addresses
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// Labels for the node
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    node_labels: Vec<String>,
    /// Taints to register with, as key=value:effect
    #[arg(long, value_name = "TAINT", value_delimiter = ',')]
    register_with_taints: Vec<String>,
    /// Accepted and told: berth runs containers itself
    #[arg(long, value_name = "SOCKET")]
    container_runtime_endpoint: Option<String>,
    /// Accepted and told: berth pulls images itself
    #[arg(long, value_name = "SOCKET")]
    image_service_endpoint: Option<String>,
    /// Accepted: pods have no pause container
    #[arg(long, value_name = "IMAGE")]
    pod_infra_container_image: Option<String>,
    /// `external`: pods wait until a cloud's controller knows the node, which then says its addresses
    #[arg(long, value_name = "NAME", value_parser = ["", "external"])]
    cloud_provider: Option<String>,
    /// The node's identity at its cloud
    #[arg(long, value_name = "ID")]
    provider_id: Option<String>,
    /// Features by name
    #[arg(long, value_name = "NAME=BOOL", value_delimiter = ',')]
    feature_gates: Vec<String>,
    /// cgroupfs or systemd
    #[arg(long, value_name = "DRIVER")]
    cgroup_driver: Option<String>,
    /// The cluster's DNS servers
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// How many pods the node takes
    #[arg(long, value_name = "COUNT")]
    max_pods: Option<u32>,
    /// The resolver file that pods with the node's DNS get
    #[arg(long, value_name = "FILE")]
    resolv_conf: Option<PathBuf>,
    /// Where the files of static pods are
    #[arg(long, value_name = "DIR")]
    pod_manifest_path: Option<PathBuf>,
    /// Whether a host with swap is refused
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fail_swap_on: Option<bool>,
    /// Whether the client certificate is renewed
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rotate_certificates: Option<bool>,
    /// How much to say; from 4 on, what is decided, from 8 on, everything
    #[arg(long, short = 'v', value_name = "LEVEL", default_value_t = 0)]
    v: u32,
}

/// What the kubelet's flags ask for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The version, as kubeadm reads it.
    Version(String),
    /// An agent.
    Agent(Box<Cli>),
}

impl Flags {
    /// The same in berth's own words; what is wrong with them, all at once.
    pub(crate) fn resolve(self) -> Result<Asked, Vec<String>> {
        match self.version.as_deref() {
            None | Some("false") => {}
            Some(_) => return Ok(Asked::Version(format!("Kubernetes {KUBELET_VERSION}"))),
        }
        let (overlay, faults) = self.overlay();
        if !faults.is_empty() {
            return Err(faults);
        }
        let host = HostFlags {
            config: self.config,
            config_dir: self.config_dir,
            state_dir: Some(self.root_dir),
            run_dir: None,
            log_dir: None,
            overlay,
            external_cloud: self.cloud_provider.as_deref() == Some("external"),
        };
        let node = NodeFlags {
            host,
            node_name: self.hostname_override,
            node_ip: self.node_ip,
            node_label: self.node_labels,
        };
        let agent = AgentFlags {
            node,
            kubeconfig: self.kubeconfig,
            bootstrap_kubeconfig: self.bootstrap_kubeconfig,
            cert_dir: self.cert_dir,
        };
        let log = LogFlags { log: (self.v > 0).then(|| verbosity::filter(self.v).to_owned()) };
        Ok(Asked::Agent(Box::new(Cli { log, command: Command::Agent(agent) })))
    }

    /// The flags that are fields of KubeletConfiguration, and what is wrong with them.
    fn overlay(&self) -> (Map<String, Value>, Vec<String>) {
        let mut fields = Map::new();
        let mut faults = Vec::new();
        let mut set = |name: &str, value: Option<Value>| {
            fields.extend(value.map(|value| (name.to_owned(), value)));
        };
        let many = |all: &[IpAddr]| (!all.is_empty()).then(|| json!(all));
        set("containerRuntimeEndpoint", self.container_runtime_endpoint.clone().map(Into::into));
        set("imageServiceEndpoint", self.image_service_endpoint.clone().map(Into::into));
        set("providerID", self.provider_id.clone().map(Into::into));
        set("cgroupDriver", self.cgroup_driver.clone().map(Into::into));
        set("clusterDNS", many(&self.cluster_dns));
        set("clusterDomain", self.cluster_domain.clone().map(Into::into));
        set("maxPods", self.max_pods.map(Into::into));
        set("resolvConf", self.resolv_conf.as_ref().map(|path| json!(path)));
        set("staticPodPath", self.pod_manifest_path.as_ref().map(|path| json!(path)));
        set("failSwapOn", self.fail_swap_on.map(Into::into));
        set("rotateCertificates", self.rotate_certificates.map(Into::into));
        let mut taints = Vec::new();
        for text in self.register_with_taints.iter().filter(|text| !text.is_empty()) {
            match taint(text) {
                Some(taint) => taints.push(taint),
                None => faults.push(format!("--register-with-taints: {text:?} is no taint")),
            }
        }
        set("registerWithTaints", (!taints.is_empty()).then(|| taints.into()));
        let mut gates = Map::new();
        for text in &self.feature_gates {
            match text.split_once('=').map(|(name, on)| (name, on.parse::<bool>())) {
                Some((name, Ok(on))) => {
                    gates.insert(name.to_owned(), on.into());
                }
                _ => {
                    faults.push(format!("--feature-gates: {text:?} is not NAME=true or NAME=false"))
                }
            }
        }
        set("featureGates", (!gates.is_empty()).then(|| gates.into()));
        (fields, faults)
    }
}

/// `key=value:effect` or `key:effect`.
fn taint(text: &str) -> Option<Value> {
    let (key, effect) = text.rsplit_once(':')?;
    let (key, value) = match key.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (key, None),
    };
    let known = matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
    (known && !key.is_empty()).then(|| match value {
        Some(value) => json!({"key": key, "value": value, "effect": effect}),
        None => json!({"key": key, "effect": effect}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(line: &str) -> AgentFlags {
        let flags = Flags::try_parse_from(["kubelet"].into_iter().chain(line.split(' '))).unwrap();
        match flags.resolve().unwrap() {
            Asked::Agent(cli) => match cli.command {
                Command::Agent(flags) => flags,
                other => panic!("{other:?}"),
            },
            Asked::Version(text) => panic!("{text}"),
        }
    }

    #[test]
    fn the_name_decides() {
        for (name, meant) in [
            ("kubelet", true),
            ("/usr/bin/kubelet", true),
            ("berth", false),
            ("/kubelet/berth", false),
        ] {
            assert_eq!(is_meant(Some(OsStr::new(name))), meant, "{name}");
        }
    }

    #[test]
    fn the_version_is_as_kubeadm_reads_it() {
        let flags = Flags::try_parse_from(["kubelet", "--version"]).unwrap();
        let Ok(Asked::Version(text)) = flags.resolve() else { panic!("no version") };
        let number = text.strip_prefix("Kubernetes v1.36.").unwrap();
        assert!(number.bytes().all(|digit| digit.is_ascii_digit()), "{text}");
    }

    #[test]
    fn the_line_of_kubeadms_unit_is_understood() {
        let line = "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
                    --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml \
                    --container-runtime-endpoint=unix:///var/run/containerd/containerd.sock \
                    --pod-infra-container-image=registry.k8s.io/pause:3.10 --node-ip=192.0.2.7 \
                    --hostname-override=n7 --node-labels=a=b,c=d \
                    --register-with-taints=node-role.kubernetes.io/control-plane:NoSchedule,x=y:NoExecute";
        let words: Vec<_> = line.split_whitespace().collect();
        let flags = agent(&words.join(" "));
        assert_eq!(flags.kubeconfig.as_deref(), Some(Path::new("/etc/kubernetes/kubelet.conf")));
        assert_eq!(flags.node.host.state_dir.as_deref(), Some(Path::new("/var/lib/kubelet")));
        assert_eq!(flags.node.node_name.as_deref(), Some("n7"));
        assert_eq!(flags.node.node_label, ["a=b", "c=d"]);
        let overlay = &flags.node.host.overlay;
        let expected = json!([
            {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
            {"key": "x", "value": "y", "effect": "NoExecute"},
        ]);
        assert_eq!(overlay["registerWithTaints"], expected);
        assert_eq!(
            overlay["containerRuntimeEndpoint"],
            "unix:///var/run/containerd/containerd.sock"
        );
    }

    #[test]
    fn flags_and_values_that_are_not_understood_are_refused() {
        for line in ["--no-such-flag", "--cloud-provider=aws", "--node-ip=nowhere"] {
            assert!(Flags::try_parse_from(["kubelet", line]).is_err(), "{line}");
        }
        let line = ["kubelet", "--register-with-taints=x", "--feature-gates=A=maybe"];
        let faults = Flags::try_parse_from(line).unwrap().resolve().unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
