//! From Kubernetes objects to the proxy's values, refusing what is not well-formed.
//!
//! Owns: which Services are ours, and the list of what a Service asks for that is not honoured,
//! so that nothing is ignored in silence. An API server is trusted to validate, not relied upon:
//! an address or port that does not parse is left out and said.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use crate::cluster::{SliceName, Update};
use crate::model::{
    Affinity, Condition, Endpoint, Place, Protocol, Service, ServiceName, ServicePort, Slice,
    SlicePort, TrafficPolicy, may_be_endpoint,
};

/// Set on Services that another proxy serves.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Set on headless Services and their slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The API's default for client affinity.
const AFFINITY_DEFAULT: u64 = 10_800;

/// What an object asks for that is not honoured, in words for the operator.
pub(crate) type Notices = Vec<String>;

/// Whether externalIPs of Services are served (CVE-2020-8554: whoever may create Services can
/// take over any address that nodes talk to).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExternalIps {
    /// As the API says, but for addresses of the node, of pods and of Services.
    #[default]
    Serve,
    /// Not at all.
    Refuse,
}

/// The name of a Service; `None` for an object without a name, which no API server sends.
pub(crate) fn service_name(service: &core::Service) -> Option<ServiceName> {
    let meta = &service.metadata;
    Some(ServiceName { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

/// The name of a slice.
pub(crate) fn slice_name(slice: &discovery::EndpointSlice) -> Option<SliceName> {
    let meta = &slice.metadata;
    Some(SliceName { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

/// Reads a Service. One that is not ours is as good as none.
pub(crate) fn service(
    object: &core::Service,
    external_ips: ExternalIps,
) -> Option<(Update, Notices)> {
    let name = service_name(object)?;
    let none = || Some((Update::NoService(name.clone()), Notices::new()));
    let Some(spec) = &object.spec else { return none() };
    let labels = object.metadata.labels.as_ref();
    let labelled = |label| labels.is_some_and(|labels| labels.contains_key(label));
    if labelled(PROXY_NAME) || labelled(HEADLESS) || spec.type_.as_deref() == Some("ExternalName") {
        return none();
    }
    let mut notices = Notices::new();
    let cluster_ips = cluster_ips(spec, &mut notices);
    if cluster_ips.is_empty() {
        return Some((Update::NoService(name), notices));
    }
    if let Some(distribution) = &spec.traffic_distribution {
        notices.push(format!("trafficDistribution {distribution}: any endpoint may be chosen"));
    }
    if spec.health_check_node_port.is_some_and(|port| port != 0) {
        notices.push("healthCheckNodePort: no health checks are answered".into());
    }
    let service = Service {
        cluster_ips,
        external_ips: external(object, spec, external_ips, &mut notices),
        ports: ports(spec, &mut notices),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        affinity: affinity(spec),
        name,
    };
    Some((Update::Service(service), notices))
}

fn cluster_ips(spec: &core::ServiceSpec, notices: &mut Notices) -> Vec<IpAddr> {
    let many = spec.cluster_ips.iter().flatten();
    let texts: Vec<&String> = match spec.cluster_ips.as_deref() {
        Some([_, ..]) => many.collect(),
        _ => spec.cluster_ip.iter().collect(),
    };
    texts
        .into_iter()
        .filter(|text| !text.is_empty() && *text != "None")
        .filter_map(|text| address(text, "cluster IP", notices))
        .collect()
}

/// Parses an address that may be dialled.
fn address(text: &str, what: &str, notices: &mut Notices) -> Option<IpAddr> {
    match text.parse() {
        Ok(address) if may_be_endpoint(address) => Some(address),
        Ok(_) => {
            notices.push(format!("{what} {text} is loopback, link-local or multicast"));
            None
        }
        Err(_) => {
            notices.push(format!("{what} {text:?} is no address"));
            None
        }
    }
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn affinity(spec: &core::ServiceSpec) -> Affinity {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Affinity::None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).and_then(|s| u64::try_from(s).ok());
    Affinity::ClientIp(Duration::from_secs(seconds.unwrap_or(AFFINITY_DEFAULT)))
}

fn external(
    object: &core::Service,
    spec: &core::ServiceSpec,
    external_ips: ExternalIps,
    notices: &mut Notices,
) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let asked = spec.external_ips.iter().flatten();
    match external_ips {
        ExternalIps::Serve => {
            found.extend(asked.filter_map(|text| address(text, "external IP", notices)));
        }
        ExternalIps::Refuse if spec.external_ips.iter().flatten().next().is_some() => {
            notices.push("externalIPs are refused by configuration".into());
        }
        ExternalIps::Refuse => {}
    }
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return found;
    }
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let restricted = spec.load_balancer_source_ranges.iter().flatten().next().is_some();
    if restricted && !ingress.is_empty() {
        notices.push("loadBalancerSourceRanges: its addresses are not served on this node".into());
        return found;
    }
    let captured = ingress.iter().filter(|point| point.ip_mode.as_deref() != Some("Proxy"));
    let addresses = captured.filter_map(|point| point.ip.as_deref());
    found.extend(addresses.filter_map(|text| address(text, "load balancer IP", notices)));
    found
}

fn ports(spec: &core::ServiceSpec, notices: &mut Notices) -> Vec<ServicePort> {
    let mut out = Vec::new();
    for port in spec.ports.iter().flatten() {
        let number = u16::try_from(port.port).ok().filter(|number| *number != 0);
        match (protocol(port.protocol.as_deref()), number) {
            (Some(protocol), Some(number)) => out.push(ServicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol,
                port: number,
                node_port: node_port(port.node_port, notices),
            }),
            _ => notices.push(format!("port {} {:?} is unknown", port.port, port.protocol)),
        }
    }
    out
}

fn node_port(number: Option<i32>, notices: &mut Notices) -> Option<u16> {
    let number = number.filter(|number| *number != 0)?;
    let port = u16::try_from(number).ok();
    if port.is_none() {
        notices.push(format!("node port {number} is out of range"));
    }
    port
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Reads a slice. One without a Service, or of a headless one, is as good as none.
pub(crate) fn slice(object: &discovery::EndpointSlice, node: &str) -> Option<(Update, Notices)> {
    let name = slice_name(object)?;
    let labels = object.metadata.labels.as_ref();
    let owner = labels.and_then(|labels| labels.get(SERVICE_NAME)).filter(|name| !name.is_empty());
    let headless = labels.is_some_and(|labels| labels.contains_key(HEADLESS));
    let families = ["IPv4", "IPv6"];
    let (Some(owner), false, true) =
        (owner, headless, families.contains(&object.address_type.as_str()))
    else {
        return Some((Update::NoSlice(name), Notices::new()));
    };
    let mut notices = Notices::new();
    let ports = object.ports.iter().flatten().filter_map(slice_port).collect();
    let all = object.endpoints.iter().flatten();
    let endpoints = all.filter_map(|one| endpoint(one, node, &mut notices)).collect();
    let service = ServiceName { namespace: name.namespace, name: owner.clone() };
    Some((Update::Slice(Slice { name: name.name, service, ports, endpoints }), notices))
}

fn slice_port(port: &discovery::EndpointPort) -> Option<SlicePort> {
    Some(SlicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol(port.protocol.as_deref())?,
        port: u16::try_from(port.port?).ok().filter(|number| *number != 0)?,
    })
}

fn endpoint(endpoint: &discovery::Endpoint, node: &str, notices: &mut Notices) -> Option<Endpoint> {
    let address = address(endpoint.addresses.first()?, "endpoint", notices)?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let here = endpoint.node_name.as_deref() == Some(node);
    Some(Endpoint {
        address,
        condition: Condition::from_flags(
            conditions.ready,
            conditions.serving,
            conditions.terminating,
        ),
        place: if here { Place::Here } else { Place::Elsewhere },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: &str) -> core::Service {
        serde_json::from_str(&format!(
            r#"{{"metadata":{{"name":"web","namespace":"default"}},"spec":{spec}}}"#
        ))
        .unwrap()
    }

    fn read(spec: &str) -> (Update, Notices) {
        service(&object(spec), ExternalIps::Serve).unwrap()
    }

    #[test]
    fn headless_and_external_name_services_are_not_ours() {
        for spec in [
            r#"{"clusterIP":"None","clusterIPs":["None"],"ports":[{"port":80}]}"#,
            r#"{"type":"ExternalName","externalName":"example.org","clusterIP":"10.96.0.1"}"#,
            r#"{"clusterIP":""}"#,
        ] {
            assert!(matches!(read(spec).0, Update::NoService(_)), "{spec}");
        }
        let mut other = object(r#"{"clusterIP":"10.96.0.1","ports":[{"port":80}]}"#);
        other.metadata.labels = Some([(PROXY_NAME.to_owned(), "mine".to_owned())].into());
        assert!(matches!(service(&other, ExternalIps::Serve).unwrap().0, Update::NoService(_)));
    }

    #[test]
    fn a_service_without_cluster_ips_in_the_list_uses_the_single_one() {
        let (update, notices) =
            read(r#"{"clusterIP":"10.96.0.1","ports":[{"port":80,"nodePort":30080}]}"#);
        let Update::Service(service) = update else { panic!("{update:?}") };
        assert_eq!(service.cluster_ips, ["10.96.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(service.ports[0].node_port, Some(30080));
        assert_eq!(notices, Notices::new());
    }

    #[test]
    fn what_is_not_honoured_is_said() {
        let (_, notices) = read(
            r#"{"type":"LoadBalancer","clusterIP":"10.96.0.1","trafficDistribution":"PreferClose",
                "externalIPs":["127.0.0.1"],
                "ports":[{"port":80,"protocol":"QUIC"},{"port":70000},{"port":1,"nodePort":70000}]}"#,
        );
        assert_eq!(notices.len(), 5, "{notices:?}");
    }

    #[test]
    fn endpoints_in_loopback_or_link_local_are_dropped_and_said() {
        let slice_object: discovery::EndpointSlice = serde_json::from_str(
            r#"{"metadata":{"name":"s","namespace":"default",
                "labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
                "ports":[{"name":"","port":80,"protocol":"TCP"}],
                "endpoints":[{"addresses":["127.0.0.1"]},{"addresses":["169.254.169.254"]},
                  {"addresses":[]},{"addresses":["no"]},
                  {"addresses":["10.244.0.5","10.244.0.6"],"nodeName":"here"}]}"#,
        )
        .unwrap();
        let (update, notices) = slice(&slice_object, "here").unwrap();
        let Update::Slice(slice) = update else { panic!("{update:?}") };
        assert_eq!(slice.endpoints.len(), 1);
        assert_eq!(slice.endpoints[0].place, Place::Here);
        assert_eq!(notices.len(), 3);
    }
}
