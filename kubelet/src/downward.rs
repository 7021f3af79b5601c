//! The downward API: what a pod may read about itself, in its environment or in files.
//!
//! Serves `fieldRef` and `resourceFieldRef`. Upstream lets an environment variable read fields that a
//! volume may not (addresses, node name): see [`Place`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectFieldSelector, Pod, PodSpec, ResourceFieldSelector};

use crate::qos::{ContainerDemand, PodDemand, ResourceAmounts};
use crate::quantity::{InvalidQuantity, Quantity};

/// What the values are taken from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its requests and limits.
    pub demand: &'a PodDemand,
    /// The node's addresses, primary first.
    pub host_ips: &'a [IpAddr],
    /// The pod's addresses, primary first.
    pub pod_ips: &'a [IpAddr],
    /// What the node offers to pods: stands for limits that are not set.
    pub allocatable: &'a ResourceAmounts,
}

/// Where a value is to appear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In an environment variable.
    Environment,
    /// In a file of a volume.
    Volume,
}

/// Why a reference has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    /// No such field, or not in this place.
    #[error("unsupported fieldPath: {0}")]
    UnknownField(String),
    /// Only version `v1` exists.
    #[error("unsupported pod version: {0}")]
    UnknownVersion(String),
    /// The node's address is not known yet.
    #[error("no host IP is known")]
    NoHostAddress,
    /// The container does not exist.
    #[error("container {0} not found")]
    UnknownContainer(String),
    /// Only CPU, memory, ephemeral storage and huge pages can be read.
    #[error("unsupported container resource : {0}")]
    UnknownResource(String),
    /// The divisor is no quantity.
    #[error("invalid divisor: {0}")]
    InvalidDivisor(#[from] InvalidQuantity),
}

/// The value of a `fieldRef`.
pub fn field(
    facts: &Facts<'_>,
    selector: &ObjectFieldSelector,
    place: Place,
) -> Result<String, DownwardError> {
    let version = selector.api_version.as_deref().unwrap_or("v1");
    if !matches!(version, "" | "v1") {
        return Err(DownwardError::UnknownVersion(version.to_owned()));
    }
    let path = selector.field_path.as_str();
    let unknown = || DownwardError::UnknownField(path.to_owned());
    let metadata = &facts.pod.metadata;
    let own = match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "metadata.labels" => Some(map_lines(metadata.labels.as_ref())),
        "metadata.annotations" => Some(map_lines(metadata.annotations.as_ref())),
        _ if path.starts_with("metadata.") => {
            let (map, key) = subscript(path).ok_or_else(unknown)?;
            let map = match map {
                "metadata.labels" => metadata.labels.as_ref(),
                "metadata.annotations" => metadata.annotations.as_ref(),
                _ => return Err(unknown()),
            };
            map.and_then(|map| map.get(key)).cloned()
        }
        _ if place == Place::Environment => return environment_field(facts, path),
        _ => return Err(unknown()),
    };
    Ok(own.unwrap_or_default())
}

fn environment_field(facts: &Facts<'_>, path: &str) -> Result<String, DownwardError> {
    let of_spec = |get: fn(&PodSpec) -> Option<&String>| {
        let value = facts.pod.spec.as_ref().and_then(get);
        Ok(value.cloned().unwrap_or_default())
    };
    let host_ips = || match facts.host_ips {
        [] => Err(DownwardError::NoHostAddress),
        addresses => Ok(addresses),
    };
    match path {
        "spec.nodeName" => of_spec(|spec| spec.node_name.as_ref()),
        "spec.serviceAccountName" => of_spec(|spec| spec.service_account_name.as_ref()),
        "status.hostIP" => Ok(host_ips()?.first().map(IpAddr::to_string).unwrap_or_default()),
        "status.hostIPs" => Ok(comma_separated(host_ips()?)),
        "status.podIP" => Ok(facts.pod_ips.first().map(IpAddr::to_string).unwrap_or_default()),
        "status.podIPs" => Ok(comma_separated(facts.pod_ips)),
        _ => Err(DownwardError::UnknownField(path.to_owned())),
    }
}

fn comma_separated(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(",")
}

/// Splits `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    Some((map, key))
}

/// Labels or annotations as a file: one `key="quoted value"` a line, sorted, without a final newline.
fn map_lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<_> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// A Go string literal, which is what tools that read these files expect.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for c in value.chars() {
        let short = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{7}' => "\\a",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{b}' => "\\v",
            _ => "",
        };
        let code = c as u32;
        let printable = c == ' ' || !(c.is_control() || c.is_whitespace() || is_invisible(c));
        // Writing to a string cannot fail.
        let _ = match (short, printable) {
            ("", true) => text.write_char(c),
            ("", false) if code < 0x80 => write!(text, "\\x{code:02x}"),
            ("", false) if code < 0x1_0000 => write!(text, "\\u{code:04x}"),
            ("", false) => write!(text, "\\U{code:08x}"),
            (short, _) => text.write_str(short),
        };
    }
    text.push('"');
    text
}

/// Format and private-use characters, which Go does not print as they are.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{e000}'..='\u{f8ff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
        | '\u{e0000}'..='\u{10ffff}')
}

/// The value of a `resourceFieldRef`; `container` is the one it stands in, used when it names none.
pub fn resource_field(
    facts: &Facts<'_>,
    selector: &ResourceFieldSelector,
    container: &str,
) -> Result<String, DownwardError> {
    let name = match selector.container_name.as_deref() {
        None | Some("") => container,
        Some(name) => name,
    };
    let demand = facts
        .demand
        .container(name)
        .ok_or_else(|| DownwardError::UnknownContainer(name.to_owned()))?;
    let unknown = || DownwardError::UnknownResource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let known = matches!(resource, "cpu" | "memory" | "ephemeral-storage");
    if !known && !resource.starts_with("hugepages-") {
        return Err(unknown());
    }
    let amount = match list {
        "requests" => demand.request(resource),
        "limits" => effective_limit(facts, demand, resource),
        _ => return Err(unknown()),
    };
    let divisor = match &selector.divisor {
        Some(divisor) => Quantity::try_from(divisor)?,
        None => Quantity::ZERO,
    };
    Ok(amount.in_multiples_of(&divisor).to_string())
}

fn effective_limit(facts: &Facts<'_>, demand: &ContainerDemand, resource: &str) -> Quantity {
    let own = demand.limit(resource);
    let of_pod = || facts.demand.pod.as_ref().and_then(|pod| pod.limit(resource));
    let of_node = || {
        let offered = matches!(resource, "cpu" | "memory" | "ephemeral-storage");
        let amount = facts.allocatable.get(resource);
        amount.copied().filter(|_| offered)
    };
    own.or_else(of_pod).or_else(of_node).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "prod", "uid": "u-1",
                "labels": {"b": "2", "a": "x\"y\\z"},
                "annotations": {"note": "line1\nline2\u{1}ü\u{200b}", "example.org/k": "v"},
            },
            "spec": {
                "nodeName": "n1", "serviceAccountName": "sa",
                "containers": [
                    {"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}},
                    {"name": "d"},
                ],
            },
        }))
        .unwrap()
    }

    fn with_facts<T>(check: impl FnOnce(&Facts<'_>) -> T) -> T {
        let pod = pod();
        let demand = PodDemand::parse(&pod).unwrap();
        let allocatable = ResourceAmounts::from([
            ("cpu".to_owned(), "4".parse().unwrap()),
            ("memory".to_owned(), "8Gi".parse().unwrap()),
        ]);
        check(&Facts {
            pod: &pod,
            demand: &demand,
            host_ips: &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            pod_ips: &["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            allocatable: &allocatable,
        })
    }

    fn read(path: &str, place: Place) -> Result<String, String> {
        let selector = ObjectFieldSelector { api_version: None, field_path: path.to_owned() };
        with_facts(|facts| field(facts, &selector, place)).map_err(|e| e.to_string())
    }

    #[test]
    fn fields_of_the_environment_follow_the_table() {
        for (path, expected) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "prod"),
            ("metadata.uid", "u-1"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['example.org/k']", "v"),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.0.2.1"),
            ("status.hostIPs", "192.0.2.1,2001:db8::1"),
            ("status.podIP", "10.0.0.2"),
            ("status.podIPs", "10.0.0.2,fd00::2"),
        ] {
            assert_eq!(read(path, Place::Environment).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn volumes_read_metadata_alone() {
        assert_eq!(read("metadata.name", Place::Volume).as_deref(), Ok("web"));
        for path in
            ["status.podIP", "spec.nodeName", "metadata.name['x']", "metadata.labels['x", "x"]
        {
            let error = read(path, Place::Volume).unwrap_err();
            assert_eq!(error, format!("unsupported fieldPath: {path}"));
        }
    }

    #[test]
    fn maps_are_sorted_and_quoted() {
        let labels = read("metadata.labels", Place::Volume).unwrap();
        assert_eq!(labels, "a=\"x\\\"y\\\\z\"\nb=\"2\"");
        let annotations = read("metadata.annotations", Place::Volume).unwrap();
        assert_eq!(annotations, "example.org/k=\"v\"\nnote=\"line1\\nline2\\x01ü\\u200b\"");
    }

    #[test]
    fn resources_are_divided_and_default_to_what_the_node_offers() {
        let read = |container: &str, resource: &str, divisor: Option<&str>| {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": resource, "divisor": divisor})).unwrap();
            with_facts(|facts| resource_field(facts, &selector, container))
                .map_err(|e| e.to_string())
        };
        for (container, resource, divisor, expected) in [
            ("c", "requests.cpu", None, "1"),
            ("c", "requests.cpu", Some("1m"), "250"),
            ("c", "requests.memory", Some("1Mi"), "32"),
            ("c", "limits.memory", None, "67108864"),
            ("c", "limits.cpu", None, "4"),
            ("d", "limits.memory", Some("1Gi"), "8"),
            ("d", "requests.memory", None, "0"),
            ("d", "limits.ephemeral-storage", None, "0"),
            ("d", "limits.hugepages-2Mi", None, "0"),
        ] {
            assert_eq!(read(container, resource, divisor).as_deref(), Ok(expected), "{resource}");
        }
        for (container, resource, error) in [
            ("x", "limits.cpu", "container x not found"),
            ("c", "limits.gpu", "unsupported container resource : limits.gpu"),
            ("c", "cpu", "unsupported container resource : cpu"),
        ] {
            assert_eq!(read(container, resource, None).unwrap_err(), error);
        }
    }
}
