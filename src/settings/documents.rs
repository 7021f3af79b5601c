//! The configuration documents as they are written: KubeletConfiguration and KubeProxyConfiguration
//! (the fields berth honours) and NodeConfiguration (berth's own), in one YAML stream.
//!
//! A field that upstream knows and berth does not honour is refused, like one that nobody knows: each
//! error names the file, the line and the field. What the fields mean together is
//! [`super::Settings`]'s job.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

/// Every document of a stream, each at most once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Documents {
    pub(crate) kubelet: KubeletConfiguration,
    pub(crate) proxy: KubeProxyConfiguration,
    pub(crate) node: NodeConfiguration,
}

/// `kubelet.config.k8s.io/v1beta1`, kind `KubeletConfiguration`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct KubeletConfiguration {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    /// Where the node's API listens; all addresses when absent.
    pub(crate) address: Option<IpAddr>,
    /// The node's API port, 10250 when absent.
    pub(crate) port: Option<u16>,
    /// The loopback health port, 10248 when absent, 0 is off.
    pub(crate) healthz_port: Option<u16>,
    pub(crate) authentication: KubeletAuthentication,
    pub(crate) authorization: KubeletAuthorization,
    pub(crate) tls_cert_file: Option<PathBuf>,
    pub(crate) tls_private_key_file: Option<PathBuf>,
    /// Whether the client certificate is renewed; it is when absent.
    pub(crate) rotate_certificates: Option<bool>,
    /// Whether the serving certificate is asked of the cluster.
    #[serde(rename = "serverTLSBootstrap")]
    pub(crate) server_tls_bootstrap: Option<bool>,
    pub(crate) streaming_connection_idle_timeout: Option<String>,
    #[serde(rename = "clusterDNS")]
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: Option<String>,
    pub(crate) resolv_conf: Option<PathBuf>,
    pub(crate) max_pods: Option<u32>,
    pub(crate) pod_pids_limit: Option<i64>,
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<IpNet>,
    /// Where the files of static pods are.
    pub(crate) static_pod_path: Option<PathBuf>,
    pub(crate) crash_loop_back_off: CrashLoopBackOff,
    pub(crate) container_log_max_size: Option<String>,
    pub(crate) container_log_max_files: Option<u32>,
    pub(crate) register_with_taints: Vec<Taint>,
}

/// `authentication` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct KubeletAuthentication {
    pub(crate) x509: X509Authentication,
    pub(crate) anonymous: Switch,
    pub(crate) webhook: TokenWebhook,
}

/// Something that is on or off.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Switch {
    pub(crate) enabled: Option<bool>,
}

/// `authentication.webhook` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct TokenWebhook {
    pub(crate) enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    pub(crate) cache_ttl: Option<String>,
}

/// `authorization` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct KubeletAuthorization {
    pub(crate) mode: Option<String>,
    pub(crate) webhook: AccessWebhook,
}

/// `authorization.webhook` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AccessWebhook {
    #[serde(rename = "cacheAuthorizedTTL")]
    pub(crate) cache_authorized_ttl: Option<String>,
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub(crate) cache_unauthorized_ttl: Option<String>,
}

/// `crashLoopBackOff` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct CrashLoopBackOff {
    /// The longest wait between restarts of a container, 1s to 300s; 300s when absent.
    pub(crate) max_container_restart_period: Option<String>,
}

/// `authentication.x509` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct X509Authentication {
    #[serde(rename = "clientCAFile")]
    pub(crate) client_ca_file: Option<PathBuf>,
}

/// A taint that the node registers with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Taint {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) value: Option<String>,
    pub(crate) effect: String,
}

/// `kubeproxy.config.k8s.io/v1alpha1`, kind `KubeProxyConfiguration`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct KubeProxyConfiguration {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    /// Only `nftables`, or absent.
    pub(crate) mode: Option<String>,
    #[serde(rename = "clusterCIDR")]
    pub(crate) cluster_cidr: Option<String>,
    pub(crate) node_port_addresses: Vec<String>,
}

/// `berth/v1alpha1`, kind `NodeConfiguration`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct NodeConfiguration {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) run_dir: Option<PathBuf>,
    pub(crate) log_dir: Option<PathBuf>,
    /// The bridge's name, `berth0` when absent.
    pub(crate) bridge: Option<String>,
    /// The pods' MTU; that of the default route's link when absent.
    pub(crate) mtu: Option<u32>,
    /// The addresses of all pods of the cluster: towards them nothing is masqueraded.
    #[serde(rename = "clusterCIDRs")]
    pub(crate) cluster_cidrs: Vec<IpNet>,
    /// The addresses of Services.
    #[serde(rename = "serviceCIDR")]
    pub(crate) service_cidr: Option<IpNet>,
}

/// A document that cannot be used as it stands.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("line {line}: {message}")]
    Syntax { line: usize, message: String },
    #[error(
        "line {line}: unknown kind {kind:?} of {api_version:?}: expected KubeletConfiguration, \
         KubeProxyConfiguration or NodeConfiguration"
    )]
    UnknownKind { line: usize, api_version: String, kind: String },
    #[error("line {line}: a second {kind}")]
    Repeated { line: usize, kind: &'static str },
}

/// Says which document this is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: String,
    kind: String,
}

/// Reads a stream of documents. All errors of all documents are reported at once.
pub(crate) fn parse(stream: &str) -> Result<Documents, Vec<DocumentError>> {
    let mut documents = Documents::default();
    let mut errors = Vec::new();
    for (line, text) in split(stream) {
        if let Err(error) = read_one(&mut documents, line, &text) {
            errors.push(error);
        }
    }
    if errors.is_empty() { Ok(documents) } else { Err(errors) }
}

fn read_one(documents: &mut Documents, line: usize, text: &str) -> Result<(), DocumentError> {
    let head: Head = typed(line, text)?;
    match (head.api_version.as_str(), head.kind.as_str()) {
        ("kubelet.config.k8s.io/v1beta1", "KubeletConfiguration") => {
            first(line, "KubeletConfiguration", &documents.kubelet.kind)?;
            documents.kubelet = typed(line, text)?;
        }
        ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration") => {
            first(line, "KubeProxyConfiguration", &documents.proxy.kind)?;
            documents.proxy = typed(line, text)?;
        }
        ("berth/v1alpha1", "NodeConfiguration") => {
            first(line, "NodeConfiguration", &documents.node.kind)?;
            documents.node = typed(line, text)?;
        }
        _ => {
            let Head { api_version, kind } = head;
            return Err(DocumentError::UnknownKind { line, api_version, kind });
        }
    }
    Ok(())
}

fn first(line: usize, kind: &'static str, present: &str) -> Result<(), DocumentError> {
    if present.is_empty() { Ok(()) } else { Err(DocumentError::Repeated { line, kind }) }
}

fn typed<T: for<'de> Deserialize<'de>>(line: usize, text: &str) -> Result<T, DocumentError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let offset = error.location().map_or(0, |at| at.line().saturating_sub(1));
        let line = line + usize::try_from(offset).unwrap_or(0);
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().to_owned();
        DocumentError::Syntax { line, message }
    })
}

/// The non-empty documents of a stream, each with the number of its first line.
fn split(stream: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(1, String::new())];
    for (index, line) in stream.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            documents.push((index + 2, String::new()));
        } else if let Some((_, text)) = documents.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    documents.retain(|(_, text)| !text.lines().all(blank));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_documents_are_read_from_one_stream() {
        let stream = "\
# a node
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 20
authentication:
  x509:
    clientCAFile: /etc/ca.crt
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
nodePortAddresses: [10.0.0.0/8]
---
apiVersion: berth/v1alpha1
kind: NodeConfiguration
bridge: pods0
";
        let documents = parse(stream).unwrap();
        assert_eq!(documents.kubelet.max_pods, Some(20));
        assert_eq!(documents.proxy.node_port_addresses, ["10.0.0.0/8"]);
        assert_eq!(documents.node.bridge.as_deref(), Some("pods0"));
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_line() {
        let stream = "\
---
apiVersion: berth/v1alpha1
kind: NodeConfiguration
bridge: pods0
brigde: pods1
";
        let errors = parse(stream).unwrap_err();
        let text = errors[0].to_string();
        assert!(text.starts_with("line 5:"), "{text}");
        assert!(text.contains("brigde"), "{text}");
    }

    #[test]
    fn errors_of_all_documents_are_reported_at_once() {
        let stream =
            "kind: Pod\n---\napiVersion: berth/v1alpha1\nkind: NodeConfiguration\nmtu: x\n";
        let errors = parse(stream).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
    }

    #[test]
    fn a_document_given_twice_is_refused() {
        let one = "apiVersion: berth/v1alpha1\nkind: NodeConfiguration\n";
        let errors = parse(&format!("{one}---\n{one}")).unwrap_err();
        assert!(matches!(errors[..], [DocumentError::Repeated { line: 4, .. }]), "{errors:?}");
    }

    #[test]
    fn an_empty_stream_is_all_defaults() {
        assert_eq!(parse("# nothing\n---\n").unwrap(), Documents::default());
    }
}
