//! Variables that tell a container where Services are (`NAME_SERVICE_HOST`, and Docker's link form).

use std::net::IpAddr;

use berth_runtime::interface::Protocol;
use k8s_openapi::api::core::v1::{Service as ApiService, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// What of a Service its variables are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its first cluster address; headless Services have none and add no variables.
    pub cluster_ip: Option<IpAddr>,
    /// Its ports in order.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty where there is none.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// Its transport.
    pub protocol: Protocol,
}

/// A Service of the API, without its status: nothing of that is asked here, and API servers take
/// conditions there that the API's own type cannot read (a `lastTransitionTime` of null).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServiceObject {
    pub(crate) metadata: ObjectMeta,
    spec: Option<ServiceSpec>,
}

impl k8s_openapi::Resource for ServiceObject {
    const API_VERSION: &'static str = ApiService::API_VERSION;
    const GROUP: &'static str = ApiService::GROUP;
    const KIND: &'static str = ApiService::KIND;
    const VERSION: &'static str = ApiService::VERSION;
    const URL_PATH_SEGMENT: &'static str = ApiService::URL_PATH_SEGMENT;
    type Scope = <ApiService as k8s_openapi::Resource>::Scope;
}

impl k8s_openapi::Metadata for ServiceObject {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl From<&ServiceObject> for Service {
    fn from(service: &ServiceObject) -> Self {
        let spec = service.spec.as_ref();
        let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
            Some(ServicePort {
                name: port.name.clone().unwrap_or_default(),
                port: u16::try_from(port.port).ok()?,
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
            })
        };
        let ports = spec.and_then(|spec| spec.ports.as_ref());
        Self {
            namespace: service.metadata.namespace.clone().unwrap_or_default(),
            name: service.metadata.name.clone().unwrap_or_default(),
            cluster_ip: spec
                .and_then(|spec| spec.cluster_ip.as_ref())
                .and_then(|ip| ip.parse().ok()),
            ports: ports.into_iter().flatten().filter_map(port).collect(),
        }
    }
}

/// The Services that a pod of `namespace` learns of: `default/kubernetes` always, those of its own
/// namespace when links are on. One of its namespace called `kubernetes` takes that name over.
pub(super) fn visible_to<'s>(
    namespace: &str,
    services: &'s [Service],
    links: bool,
) -> impl Iterator<Item = &'s Service> {
    let is_master = |s: &Service| s.namespace == "default" && s.name == "kubernetes";
    let is_own = |s: &Service| links && s.namespace == namespace;
    let addressed = || services.iter().filter(|s| s.cluster_ip.is_some());
    let overridden = addressed().any(|s| is_own(s) && !is_master(s) && s.name == "kubernetes");
    let mut visible: Vec<_> =
        addressed().filter(|s| if is_master(s) { !overridden } else { is_own(s) }).collect();
    visible.sort_by(|a, b| a.name.cmp(&b.name));
    visible.into_iter()
}

/// The variables of one Service in upstream's order.
pub fn service_variables(service: &Service) -> Vec<(String, String)> {
    let (Some(address), Some(first)) = (service.cluster_ip, service.ports.first()) else {
        return Vec::new();
    };
    let prefix = variable_name(&service.name);
    let mut variables = vec![
        (format!("{prefix}_SERVICE_HOST"), address.to_string()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        let name = format!("{prefix}_SERVICE_PORT_{}", variable_name(&port.name));
        variables.push((name, port.port.to_string()));
    }
    let host = match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    for (position, port) in service.ports.iter().enumerate() {
        let (upper, lower) = match port.protocol {
            Protocol::Tcp => ("TCP", "tcp"),
            Protocol::Udp => ("UDP", "udp"),
            Protocol::Sctp => ("SCTP", "sctp"),
        };
        let url = format!("{lower}://{host}:{}", port.port);
        if position == 0 {
            variables.push((format!("{prefix}_PORT"), url.clone()));
        }
        let port_prefix = format!("{prefix}_PORT_{}_{upper}", port.port);
        variables.extend([
            (port_prefix.clone(), url),
            (format!("{port_prefix}_PROTO"), lower.to_owned()),
            (format!("{port_prefix}_PORT"), port.port.to_string()),
            (format!("{port_prefix}_ADDR"), address.to_string()),
        ]);
    }
    variables
}

/// Upper case with underscores; a leading digit gets an underscore before it.
fn variable_name(name: &str) -> String {
    let name = name.replace(['.', '-'], "_").to_uppercase();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        Service {
            namespace: namespace.into(),
            name: name.into(),
            cluster_ip: ip.parse().ok(),
            ports: vec![
                ServicePort { name: "http".into(), port: 80, protocol: Protocol::Tcp },
                ServicePort { name: "dns-udp".into(), port: 53, protocol: Protocol::Udp },
            ],
        }
    }

    #[test]
    fn a_service_announces_host_ports_and_links() {
        let variables = service_variables(&service("a", "my-db.x", "10.96.0.7"));
        let expected = [
            ("MY_DB_X_SERVICE_HOST", "10.96.0.7"),
            ("MY_DB_X_SERVICE_PORT", "80"),
            ("MY_DB_X_SERVICE_PORT_HTTP", "80"),
            ("MY_DB_X_SERVICE_PORT_DNS_UDP", "53"),
            ("MY_DB_X_PORT", "tcp://10.96.0.7:80"),
            ("MY_DB_X_PORT_80_TCP", "tcp://10.96.0.7:80"),
            ("MY_DB_X_PORT_80_TCP_PROTO", "tcp"),
            ("MY_DB_X_PORT_80_TCP_PORT", "80"),
            ("MY_DB_X_PORT_80_TCP_ADDR", "10.96.0.7"),
            ("MY_DB_X_PORT_53_UDP", "udp://10.96.0.7:53"),
            ("MY_DB_X_PORT_53_UDP_PROTO", "udp"),
            ("MY_DB_X_PORT_53_UDP_PORT", "53"),
            ("MY_DB_X_PORT_53_UDP_ADDR", "10.96.0.7"),
        ];
        let variables: Vec<_> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(variables, expected);
    }

    #[test]
    fn a_service_is_read_whatever_its_conditions_lack() {
        let condition = serde_json::json!({
            "type": "Told", "status": "True", "reason": "E2E", "message": "",
            "lastTransitionTime": null,
        });
        let object = serde_json::json!({
            "metadata": {"name": "db", "namespace": "a"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80, "protocol": "UDP"}]},
            "status": {"loadBalancer": {}, "conditions": [condition]},
        });
        let object: ServiceObject = serde_json::from_value(object).unwrap();
        let port = ServicePort { name: String::new(), port: 80, protocol: Protocol::Udp };
        let expected = Service { ports: vec![port], ..service("a", "db", "10.96.0.7") };
        assert_eq!(Service::from(&object), expected);
    }

    #[test]
    fn names_that_start_with_a_digit_and_six_byte_addresses_are_readable() {
        let variables = service_variables(&service("a", "3scale", "fd00::1"));
        assert_eq!(variables[0], ("_3SCALE_SERVICE_HOST".into(), "fd00::1".into()));
        assert_eq!(variables[4], ("_3SCALE_PORT".into(), "tcp://[fd00::1]:80".into()));
    }

    #[test]
    fn visibility_follows_namespace_and_links() {
        let services = [
            service("default", "kubernetes", "10.96.0.1"),
            service("default", "other", "10.96.0.2"),
            service("a", "db", "10.96.0.3"),
            service("a", "headless", "None"),
        ];
        let names = |namespace: &str, links| -> Vec<_> {
            visible_to(namespace, &services, links).map(|s| s.name.as_str()).collect()
        };
        assert_eq!(names("a", true), ["db", "kubernetes"]);
        assert_eq!(names("a", false), ["kubernetes"]);
        assert_eq!(names("default", true), ["kubernetes", "other"]);
    }
}
