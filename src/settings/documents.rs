//! The configuration documents as they are written: KubeletConfiguration ([`kubelet`]),
//! KubeProxyConfiguration and NodeConfiguration (berth's own), in one YAML stream. Further files can go
//! over a KubeletConfiguration: maps are merged, all else is replaced, as by upstream's `--config-dir`.
//!
//! A field that upstream knows and berth does not honour is refused, like one that nobody knows: each
//! error names the file, the line and the field. What the fields mean together is
//! [`super::Settings`]'s job.

#[cfg(test)]
mod fuzz;
pub(crate) mod gates;
mod kubelet;

use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) use kubelet::KubeletConfiguration;

/// Every document of a stream, each at most once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Documents {
    pub(crate) kubelet: KubeletConfiguration,
    /// The same as it was written, with what went over it.
    pub(crate) written: Map<String, Value>,
    pub(crate) proxy: KubeProxyConfiguration,
    pub(crate) node: NodeConfiguration,
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

/// `logging` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Logging {
    /// `text`, and nothing else.
    pub(crate) format: String,
    /// A number of nanoseconds or a duration; nothing is held back.
    pub(crate) flush_frequency: Option<Value>,
    /// How much is said, as by the kubelet's `--v`.
    pub(crate) verbosity: u32,
    /// Levels of files, which there are none of.
    pub(crate) vmodule: Vec<Value>,
    /// Of formats.
    pub(crate) options: Option<Value>,
}

/// One of `shutdownGracePeriodByPodPriority` of KubeletConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ShutdownBucket {
    /// The least priority of its pods.
    pub(crate) priority: i32,
    pub(crate) shutdown_grace_period_seconds: i64,
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
    /// The handlers that RuntimeClasses may name; whichever it is, berth-oci runs the pod.
    pub(crate) runtime_handlers: Vec<String>,
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
    #[error("only a KubeletConfiguration can go over another")]
    NotKubelet,
    #[error("what is merged is no KubeletConfiguration: {0}")]
    Merged(String),
}

impl Documents {
    /// Puts the fields of one more file over the KubeletConfiguration.
    pub(crate) fn put_over(&mut self, text: &str) -> Result<(), Vec<DocumentError>> {
        let other = parse(text)?;
        let only_kubelet = other.proxy == KubeProxyConfiguration::default()
            && other.node == NodeConfiguration::default();
        match only_kubelet && !other.written.is_empty() {
            true => self.put_fields_over(&other.written).map_err(|error| vec![error]),
            false => Err(vec![DocumentError::NotKubelet]),
        }
    }

    /// Puts fields over the KubeletConfiguration.
    pub(crate) fn put_fields_over(
        &mut self,
        fields: &Map<String, Value>,
    ) -> Result<(), DocumentError> {
        merge(&mut self.written, fields);
        let merged = serde_json::from_value(Value::Object(self.written.clone()));
        self.kubelet = merged.map_err(|error| DocumentError::Merged(error.to_string()))?;
        Ok(())
    }
}

/// Maps are merged, everything else is replaced.
fn merge(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (name, value) in over {
        match (base.get_mut(name), value) {
            (Some(Value::Object(base)), Value::Object(over)) => merge(base, over),
            _ => {
                base.insert(name.clone(), value.clone());
            }
        }
    }
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
            documents.written = written(line, text)?;
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

/// The fields of a KubeletConfiguration, such that they can be put over another's: one that is null is
/// not set, and what only YAML takes for a field's type (a number for text) is refused as upstream does.
fn written(line: usize, text: &str) -> Result<Map<String, Value>, DocumentError> {
    let mut fields = Value::Object(typed(line, text)?);
    drop_nulls(&mut fields);
    let Value::Object(fields) = fields else {
        return Err(DocumentError::Syntax { line, message: "not a map".to_owned() });
    };
    for (name, value) in &fields {
        let alone = Value::Object([(name.clone(), value.clone())].into_iter().collect());
        KubeletConfiguration::deserialize(alone).map_err(|error| {
            let offset = text.lines().position(|line| line.starts_with(&format!("{name}:")));
            let message = format!("{name}: {error}");
            DocumentError::Syntax { line: line + offset.unwrap_or(0), message }
        })?;
    }
    Ok(fields)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn first(line: usize, kind: &'static str, present: &str) -> Result<(), DocumentError> {
    if present.is_empty() { Ok(()) } else { Err(DocumentError::Repeated { line, kind }) }
}

fn typed<T: for<'de> Deserialize<'de>>(line: usize, text: &str) -> Result<T, DocumentError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let offset = error.location().map_or(0, |at| at.line().saturating_sub(1));
        let line = line + usize::try_from(offset).unwrap_or(0);
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default();
        // Its own place counts from the document's beginning.
        let placed = message.strip_prefix("error: line ").and_then(|rest| rest.split_once(": "));
        let message = placed.map_or(message, |(_, message)| message).to_owned();
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
runtimeHandlers: [runc]
";
        let documents = parse(stream).unwrap();
        assert_eq!(documents.kubelet.max_pods, Some(20));
        assert_eq!(documents.proxy.node_port_addresses, ["10.0.0.0/8"]);
        assert_eq!(documents.node.bridge.as_deref(), Some("pods0"));
        assert_eq!(documents.node.runtime_handlers, ["runc"]);
    }

    #[test]
    fn a_field_that_is_null_is_not_set() {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let set = "systemReserved: {cpu: 100m}\nmaxPods: 20\nauthentication: {x509: {}}\n";
        let mut documents = parse(&format!("{head}{set}")).unwrap();
        let null = "systemReserved:\nmaxPods: ~\nauthentication: {x509: {clientCAFile: }}\n";
        documents.put_over(&format!("{head}{null}")).unwrap();
        assert_eq!(documents, parse(&format!("{head}{set}")).unwrap());
        let error = parse(&format!("{head}systemReserved: {{cpu: 1}}\n")).unwrap_err();
        let text = "line 3: systemReserved: invalid type: integer `1`, expected a string";
        assert_eq!(error[0].to_string(), text);
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
        assert!(text.starts_with("line 5: unknown field"), "{text}");
        assert!(text.contains("brigde"), "{text}");
    }

    #[test]
    fn a_file_goes_over_another_map_by_map() {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let reserved =
            "maxPods: 20\nclusterDNS: [10.0.0.1]\nkubeReserved: {cpu: '1', memory: 1Gi}\n";
        let mut documents = parse(&format!("{head}{reserved}")).unwrap();
        let over = "clusterDNS: [10.0.0.2]\nkubeReserved: {cpu: '2'}\n";
        documents.put_over(&format!("{head}{over}")).unwrap();
        assert_eq!(documents.kubelet.max_pods, Some(20));
        assert_eq!(
            documents.kubelet.cluster_dns,
            ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!(documents.kubelet.kube_reserved["cpu"], "2");
        assert_eq!(documents.kubelet.kube_reserved["memory"], "1Gi");
        let errors = documents.put_over(&format!("{head}maxPodz: 1\n")).unwrap_err();
        assert!(errors[0].to_string().starts_with("line 3"), "{errors:?}");
        let other = "apiVersion: berth/v1alpha1\nkind: NodeConfiguration\nmtu: 1400\n";
        assert!(documents.put_over(other).is_err());
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
