//! Services: defaults, rules, and the allocation of cluster addresses and node ports.
//!
//! Allocation keeps no table of its own: inside the transaction the Services themselves say what
//! is taken, so nothing can leak or disagree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{names, objects, pod_rules};
use crate::api::Settings;
use crate::failure::{Cause, Failure};
use crate::object::ObjectExt;
use crate::resource::{Kind, of, prefix};
use crate::store::Tx;

/// Sets the defaults of a Service. Doing it twice changes nothing.
pub(crate) fn defaults(service: &mut Value) {
    let Some(spec) = service.get_mut("spec") else { return };
    spec.default_to("/type", "ClusterIP");
    spec.default_to("/sessionAffinity", "None");
    if spec.text("/sessionAffinity") == "ClientIP" {
        spec.default_to("/sessionAffinityConfig/clientIP/timeoutSeconds", 10_800);
    } else {
        spec.take_out("/sessionAffinityConfig");
    }
    for port in spec.list_mut("/ports") {
        port.default_to("/protocol", "TCP");
        let number = port["port"].clone();
        if !port.has("/targetPort") || port["targetPort"] == json!(0) || port["targetPort"] == "" {
            port.put("/targetPort", number);
        }
    }
    if spec.text("/type") == "ExternalName" {
        return;
    }
    spec.default_to("/internalTrafficPolicy", "Cluster");
    spec.default_to("/ipFamilies", json!(["IPv4"]));
    spec.default_to("/ipFamilyPolicy", "SingleStack");
    if matches!(spec.text("/type"), "NodePort" | "LoadBalancer") {
        spec.default_to("/externalTrafficPolicy", "Cluster");
    } else {
        spec.take_out("/externalTrafficPolicy");
    }
    if spec.text("/type") == "LoadBalancer" {
        spec.default_to("/allocateLoadBalancerNodePorts", true);
    }
}

/// What other Services have.
struct Taken {
    addresses: BTreeSet<String>,
    ports: BTreeMap<(u16, String), String>,
}

impl Taken {
    fn of(tx: &Tx<'_>, except: &str) -> Self {
        let mut taken = Self { addresses: BTreeSet::new(), ports: BTreeMap::new() };
        for (key, service) in tx.list(&prefix(Kind::Service, "")) {
            if key == except {
                continue;
            }
            taken.addresses.insert(service.text("/spec/clusterIP").to_owned());
            for port in service.list("/spec/ports") {
                if let Some(number) = node_port(port) {
                    let protocol = port.text("/protocol").to_owned();
                    taken.ports.insert((number, protocol), key.clone());
                }
            }
        }
        taken
    }
}

fn node_port(port: &Value) -> Option<u16> {
    port.int("/nodePort").and_then(|n| u16::try_from(n).ok()).filter(|number| *number != 0)
}

/// Gives a Service its cluster address and node ports, or checks those it asks for.
///
/// # Errors
/// 422 when one is taken or out of range, 500 when none is left (upstream's answers).
pub(crate) fn allocate(
    tx: &Tx<'_>,
    settings: &Settings,
    (service, current): (&mut Value, Option<&Value>),
) -> Result<(), Failure> {
    let key = of(Kind::Service).key(service.namespace(), service.name());
    let taken = Taken::of(tx, &key);
    if let Some(current) = current {
        keep_allocations(current, service);
    }
    if service.text("/spec/type") == "ExternalName" {
        for field in
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
        {
            service.take_out(&format!("/spec/{field}"));
        }
        return Ok(());
    }
    allocate_address(settings, &taken, service)?;
    if matches!(service.text("/spec/type"), "NodePort" | "LoadBalancer") {
        allocate_ports(settings, taken, service)?;
    }
    Ok(())
}

/// A client that updates without naming the allocations keeps them.
fn keep_allocations(current: &Value, service: &mut Value) {
    let was_headless = current.text("/spec/clusterIP") == "None";
    if service.text("/spec/clusterIP").is_empty()
        && service.text("/spec/type") != "ExternalName"
        && (current.text("/spec/type") != "ExternalName" || was_headless)
    {
        let address = current.text("/spec/clusterIP").to_owned();
        service.put("/spec/clusterIP", address);
    }
    let has_ports = matches!(service.text("/spec/type"), "NodePort" | "LoadBalancer");
    let mut free: Vec<&Value> = current.list("/spec/ports").iter().collect();
    for port in service.list_mut("/spec/ports") {
        let same = free.iter().position(|before| {
            before.int("/port") == port.int("/port")
                && before.text("/protocol") == port.text("/protocol")
        });
        let Some(at) = same else { continue };
        let before = free.remove(at);
        match (has_ports, node_port(port), node_port(before)) {
            (true, None, Some(number)) => port.put("/nodePort", number),
            // Going back to ClusterIP gives up the ports the client did not choose anew.
            (false, Some(now), Some(number)) if now == number => {
                port.take_out("/nodePort");
            }
            _ => {}
        }
    }
}

fn allocate_address(
    settings: &Settings,
    taken: &Taken,
    service: &mut Value,
) -> Result<(), Failure> {
    let wanted = match service.text("/spec/clusterIP") {
        "" => service.text("/spec/clusterIPs/0"),
        wanted => wanted,
    }
    .to_owned();
    let invalid = |detail: &str| {
        let cause = Cause::invalid("spec.clusterIPs", &json!([wanted]), detail);
        Failure::invalid(of(Kind::Service), service.name(), &[cause])
    };
    let address = match wanted.as_str() {
        "None" => "None".to_owned(),
        "" => free_address(settings, taken).ok_or_else(|| {
            let name = service.name();
            Failure::internal(format!(
                "failed to allocate IP for service {name:?}: range is full ({})",
                settings.service_cidr
            ))
        })?,
        text => {
            let parsed: Ipv4Addr = text
                .parse()
                .map_err(|_| invalid("must be empty, 'None', or a valid IP address"))?;
            if !settings.service_cidr.contains(&parsed) {
                return Err(invalid(&format!(
                    "failed to allocate IP {parsed}: the provided IP ({parsed}) is not in the \
                     valid range. The range of valid IPs is {}",
                    settings.service_cidr
                )));
            }
            if taken.addresses.contains(text) {
                return Err(invalid(&format!(
                    "failed to allocate IP {parsed}: provided IP is already allocated"
                )));
            }
            parsed.to_string()
        }
    };
    service.put("/spec/clusterIPs", json!([address]));
    service.put("/spec/clusterIP", address);
    Ok(())
}

/// The addresses a Service may have: not the network's, the broadcast's, or the API server's.
fn free_address(settings: &Settings, taken: &Taken) -> Option<String> {
    let hosts = settings.service_cidr.hosts();
    // Dynamic ones come from the upper part, so that users may choose in the lower one.
    let total = 1u64 << (32 - u32::from(settings.service_cidr.prefix_len()));
    let reserved = (total / 16).clamp(16.min(total / 4), 256);
    let skip = usize::try_from(reserved).unwrap_or(0);
    let free = |address: &Ipv4Addr| !taken.addresses.contains(&address.to_string());
    let first = settings.service_cidr.hosts().next();
    let lower = hosts.take(skip).filter(|address| Some(*address) != first);
    hosts.skip(skip.max(1)).chain(lower).find(free).map(|address| address.to_string())
}

fn allocate_ports(settings: &Settings, taken: Taken, service: &mut Value) -> Result<(), Failure> {
    let name = service.name().to_owned();
    let mut used: BTreeSet<(u16, String)> = taken.ports.into_keys().collect();
    let mut causes = Vec::new();
    let ports = service.list_mut("/spec/ports");
    let mut own: BTreeSet<(u16, String)> = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        let field = format!("spec.ports[{index}].nodePort");
        let id = (number, port.text("/protocol").to_owned());
        if !settings.node_ports.contains(&number) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                settings.node_ports.start(),
                settings.node_ports.end()
            );
            causes.push(Cause::invalid(field, &json!(number), &detail));
        } else if used.contains(&id) || !own.insert(id) {
            let detail = "provided port is already allocated";
            causes.push(Cause::invalid(field, &json!(number), detail));
        }
    }
    if !causes.is_empty() {
        return Err(Failure::invalid(of(Kind::Service), &name, &causes));
    }
    used.extend(own);
    for port in ports.iter_mut().filter(|port| node_port(port).is_none()) {
        let protocol = port.text("/protocol").to_owned();
        let number = free_port(settings, &used, &protocol)
            .ok_or_else(|| Failure::internal("failed to allocate a nodePort: range is full"))?;
        used.insert((number, protocol));
        port.put("/nodePort", number);
    }
    Ok(())
}

/// A free port, from a random place on, so that a port is not reused at once.
fn free_port(settings: &Settings, used: &BTreeSet<(u16, String)>, protocol: &str) -> Option<u16> {
    let ports: Vec<u16> = settings.node_ports.clone().collect();
    let start = rand::random_range(0..ports.len().max(1));
    let (later, first) = (ports.get(start..)?, ports.get(..start)?);
    later.iter().chain(first).copied().find(|port| !used.contains(&(*port, protocol.to_owned())))
}

/// Checks the spec of a Service.
pub(crate) fn check(service: &Value, causes: &mut Vec<Cause>) {
    let kind = service.text("/spec/type");
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&kind) {
        causes.push(Cause::unsupported("spec.type", &json!(kind), &kinds));
    }
    let headless = service.text("/spec/clusterIP") == "None";
    let ports = service.list("/spec/ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!("None"), &detail));
    }
    if kind == "ExternalName" && service.text("/spec/externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
    let affinity = service.text("/spec/sessionAffinity");
    if !matches!(affinity, "None" | "ClientIP") {
        let allowed = ["ClientIP", "None"];
        causes.push(Cause::unsupported("spec.sessionAffinity", &json!(affinity), &allowed));
    }
    if service.list("/spec/ipFamilies").iter().any(|family| family == "IPv6") {
        let detail = "not configured on this cluster";
        causes.push(Cause::invalid("spec.ipFamilies[0]", &json!("IPv6"), detail));
    }
    if service.text("/spec/ipFamilyPolicy") == "RequireDualStack" {
        let detail = "this cluster is not configured for dual-stack services";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", &json!("RequireDualStack"), detail));
    }
    check_ports(service, causes);
}

fn check_ports(service: &Value, causes: &mut Vec<Cause>) {
    let ports = service.list("/spec/ports");
    let (mut port_names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = port.text("/name");
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(Cause::required(format!("{field}.name"), ""));
            }
        } else {
            names::check_label(&format!("{field}.name"), name, causes);
            if !port_names.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), &json!(name)));
            }
        }
        objects::check_port(format!("{field}.port"), port.int("/port"), causes);
        if !numbers.insert((port.int("/port"), port.text("/protocol"))) {
            causes.push(Cause::duplicate(field.clone(), port));
        }
        pod_rules::check_protocol(format!("{field}.protocol"), port.text("/protocol"), causes);
        match &port["targetPort"] {
            Value::Number(number) => {
                objects::check_port(format!("{field}.targetPort"), number.as_i64(), causes);
            }
            Value::String(name) if !names::is_port_name(name) => {
                let detail = "must be a port number or a valid port name";
                causes.push(Cause::invalid(format!("{field}.targetPort"), &json!(name), detail));
            }
            _ => {}
        }
        if service.text("/spec/type") == "ClusterIP" && node_port(port).is_some() {
            causes.push(Cause::forbidden(
                format!("{field}.nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
    }
}

/// Checks what changed of an existing Service.
pub(crate) fn check_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let before = current.text("/spec/clusterIP");
    let now = wanted.text("/spec/clusterIP");
    let keeps = !matches!(wanted.text("/spec/type"), "ExternalName")
        && !matches!(current.text("/spec/type"), "ExternalName");
    if keeps && !before.is_empty() && before != now {
        let value = json!([now]);
        causes.push(Cause::invalid("spec.clusterIPs[0]", &value, "may not change once set"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec});
        defaults(&mut service);
        service
    }

    fn settings(range: &str) -> Settings {
        Settings {
            advertise: ([127, 0, 0, 1], 6443).into(),
            for_pods: ([127, 0, 0, 1], 6443).into(),
            service_cidr: range.parse().unwrap(),
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            node_ports: 30_000..=30_001,
            event_ttl: std::time::Duration::from_secs(1),
            ca_pem: String::new(),
        }
    }

    fn nothing_taken() -> Taken {
        Taken { addresses: BTreeSet::new(), ports: BTreeMap::new() }
    }

    #[test]
    fn defaults_fill_ports_and_policies() {
        let made = service(json!({"ports": [{"port": 80}]}));
        assert_eq!(made.text("/spec/type"), "ClusterIP");
        assert_eq!(made.int("/spec/ports/0/targetPort"), Some(80));
        assert_eq!(made.text("/spec/internalTrafficPolicy"), "Cluster");
        let mut again = made.clone();
        defaults(&mut again);
        assert_eq!(again, made);
    }

    #[test]
    fn addresses_are_unique_in_range_and_run_out() {
        let settings = settings("10.96.0.0/29");
        let mut taken = nothing_taken();
        let mut seen = BTreeSet::new();
        for _ in 0..5 {
            let mut one = service(json!({"ports": [{"port": 80}]}));
            allocate_address(&settings, &taken, &mut one).unwrap();
            let address = one.text("/spec/clusterIP").to_owned();
            assert_ne!(address, "10.96.0.1", "the API server's own");
            assert!(seen.insert(address.clone()));
            taken.addresses.insert(address);
        }
        let mut one = service(json!({"ports": [{"port": 80}]}));
        let full = allocate_address(&settings, &taken, &mut one).unwrap_err();
        assert!(full.to_string().contains("range is full"), "{full}");
        let mut same = service(json!({"clusterIP": seen.first(), "ports": [{"port": 80}]}));
        let error = allocate_address(&settings, &taken, &mut same).unwrap_err();
        assert!(error.to_string().contains("provided IP is already allocated"), "{error}");
    }

    #[test]
    fn node_ports_are_unique_a_protocol_and_run_out() {
        let settings = settings("10.96.0.0/29");
        let spec = json!({"type": "NodePort", "ports": [
            {"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30_001},
            {"name": "c", "port": 80, "protocol": "UDP", "nodePort": 30_000}]});
        let mut one = service(spec);
        allocate_ports(&settings, nothing_taken(), &mut one).unwrap();
        assert_eq!(one.int("/spec/ports/0/nodePort"), Some(30_000));
        let mut taken = nothing_taken();
        taken.ports.insert((30_000, "TCP".into()), "k".into());
        let asks = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_000}]});
        let error = allocate_ports(&settings, taken, &mut service(asks)).unwrap_err();
        assert!(error.to_string().contains("provided port is already allocated"), "{error}");
        let outside = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
        assert!(allocate_ports(&settings, nothing_taken(), &mut service(outside)).is_err());
    }

    #[test]
    fn bad_ports_are_named_by_their_place() {
        let mut causes = Vec::new();
        check(&service(json!({"ports": [{"port": 80}, {"port": 80}]})), &mut causes);
        assert_eq!(causes.len(), 3, "{causes:?}");
    }
}
