//! EndpointSlices and Endpoints of Services with selectors, from the pods they select.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{differs, put};
use crate::api::Api;
use crate::failure::Failure;
use crate::object::ObjectExt;
use crate::resource::{Kind, of, prefix};
use crate::selector::label::Selector;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SLICE_MANAGER: &str = "endpointslice.kubernetes.io/managed-by";
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
const ENDPOINTS_MANAGER: &str = "endpoints.kubernetes.io/managed-by";
const ENDPOINTS_CONTROLLER: &str = "endpoint-controller";
/// Whose objects these are: kind, label, its value.
const MANAGERS: &[(Kind, &str, &str)] = &[
    (Kind::EndpointSlice, SLICE_MANAGER, SLICE_CONTROLLER),
    (Kind::Endpoints, ENDPOINTS_MANAGER, ENDPOINTS_CONTROLLER),
];
/// How many endpoints a slice has at most, as upstream.
const SLICE_SIZE: usize = 100;
/// How many addresses an Endpoints object has at most, as upstream.
const ENDPOINTS_SIZE: usize = 1000;

/// Makes slices and endpoints of all Services what they should be. The plan is made on what is
/// committed, outside the writer; only Services that need it are looked at again inside.
pub(super) async fn reconcile(api: &Api) -> Result<(), Failure> {
    let view = View::of(|prefix| api.store.list(prefix).items);
    let stale: Vec<String> = view
        .services
        .iter()
        .filter(|(_, service)| selector_of(service).is_some())
        .filter(|(_, service)| {
            wanted(service, &view.pods(service)).into_iter().any(|(kind, object)| {
                let found = api.store.get(&of(kind).key(object.namespace(), object.name()));
                found.is_none_or(|found| differs(kind, &found, &object))
            })
        })
        .map(|(key, _)| key.clone())
        .collect();
    let orphans = view.orphans();
    if stale.is_empty() && orphans.is_empty() {
        return Ok(());
    }
    api.store
        .write(move |tx| {
            let view = View::of(|prefix| tx.list(prefix));
            for (_, service) in view.services.iter().filter(|(key, _)| stale.contains(key)) {
                for (kind, object) in wanted(service, &view.pods(service)) {
                    put(tx, kind, object);
                }
            }
            for key in view.orphans() {
                tx.remove(&key);
            }
            Ok(())
        })
        .await
}

type Objects = Vec<(String, Arc<Value>)>;

/// What this loop looks at, at one moment.
struct View {
    services: Objects,
    pods: BTreeMap<String, Vec<Arc<Value>>>,
    made: Objects,
}

impl View {
    fn of(list: impl Fn(&str) -> Objects) -> Self {
        let mut pods: BTreeMap<String, Vec<Arc<Value>>> = BTreeMap::new();
        for (_, pod) in list(&prefix(Kind::Pod, "")) {
            if is_endpoint(&pod) {
                pods.entry(pod.namespace().to_owned()).or_default().push(pod);
            }
        }
        let mut made = Vec::new();
        for (kind, label, manager) in MANAGERS {
            let all = list(&prefix(*kind, "")).into_iter();
            made.extend(all.filter(|(_, object)| object.label(label) == Some(*manager)));
        }
        Self { services: list(&prefix(Kind::Service, "")), pods, made }
    }

    /// The pods that a Service selects.
    fn pods(&self, service: &Value) -> Vec<Arc<Value>> {
        let (Some(selector), Some(pods)) =
            (selector_of(service), self.pods.get(service.namespace()))
        else {
            return Vec::new();
        };
        pods.iter().filter(|pod| selector.matches(pod)).cloned().collect()
    }

    /// What this loop made and no Service wants any more.
    fn orphans(&self) -> Vec<String> {
        let kept: BTreeSet<String> = self
            .services
            .iter()
            .filter(|(_, service)| selector_of(service).is_some())
            .flat_map(|(_, service)| wanted(service, &self.pods(service)))
            .map(|(kind, object)| of(kind).key(object.namespace(), object.name()))
            .collect();
        let made = self.made.iter().map(|(key, _)| key);
        made.filter(|key| !kept.contains(*key)).cloned().collect()
    }
}

/// The slices and endpoints of a Service.
fn wanted(service: &Value, pods: &[Arc<Value>]) -> Vec<(Kind, Value)> {
    let groups = group(service, pods);
    let slices = slices(service, &groups).into_iter().map(|slice| (Kind::EndpointSlice, slice));
    slices.chain([(Kind::Endpoints, endpoints(service, &groups))]).collect()
}

fn selector_of(service: &Value) -> Option<Selector> {
    let map = service.map("/spec/selector").filter(|map| !map.is_empty())?;
    let led = service.text("/spec/type") != "ExternalName" && !service.is_terminating();
    led.then(|| Selector::from_map(map))
}

/// Whether a pod can be an endpoint: it has an address and has not ended.
fn is_endpoint(pod: &Value) -> bool {
    !pod.text("/status/podIP").is_empty()
        && !matches!(pod.text("/status/phase"), "Succeeded" | "Failed")
}

/// Pods with the same resolved ports. A named target port may differ from pod to pod.
type Groups<'a> = BTreeMap<String, (Vec<Value>, Vec<&'a Value>)>;

fn group<'a>(service: &Value, pods: &'a [Arc<Value>]) -> Groups<'a> {
    let mut groups = Groups::new();
    for pod in pods {
        let ports: Vec<Value> = service
            .list("/spec/ports")
            .iter()
            .filter_map(|port| {
                let mut resolved = json!({
                    "name": port.text("/name"),
                    "protocol": port.text("/protocol"),
                    "port": target_port(port, pod)?,
                });
                if let Some(hint) = port.get("appProtocol") {
                    resolved["appProtocol"] = hint.clone();
                }
                Some(resolved)
            })
            .collect();
        let headless = service.list("/spec/ports").is_empty();
        if ports.is_empty() && !headless {
            continue;
        }
        let id = Value::Array(ports.clone()).to_string();
        groups.entry(id).or_insert_with(|| (ports, Vec::new())).1.push(pod);
    }
    groups
}

fn target_port(port: &Value, pod: &Value) -> Option<i64> {
    match &port["targetPort"] {
        Value::String(name) => {
            let sidecars = pod
                .list("/spec/initContainers")
                .iter()
                .filter(|one| one.text("/restartPolicy") == "Always");
            pod.list("/spec/containers")
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.list("/ports"))
                .find(|one| {
                    one.text("/name") == name && one.text("/protocol") == port.text("/protocol")
                })
                .and_then(|one| one.int("/containerPort"))
        }
        number => number.as_i64(),
    }
}

fn is_ready(pod: &Value) -> bool {
    pod.list("/status/conditions")
        .iter()
        .any(|one| one.text("/type") == "Ready" && one.text("/status") == "True")
}

fn slices(service: &Value, groups: &Groups<'_>) -> Vec<Value> {
    let mut made = Vec::new();
    for (id, (ports, pods)) in groups {
        for (number, chunk) in pods.chunks(SLICE_SIZE).enumerate() {
            let endpoints = chunk.iter().map(|pod| endpoint(service, pod)).collect();
            made.push(slice(service, &format!("{id}{number}"), (endpoints, ports.clone())));
        }
    }
    if made.is_empty() {
        made.push(slice(service, "", (Vec::new(), Vec::new())));
    }
    made
}

fn slice(service: &Value, id: &str, (endpoints, ports): (Vec<Value>, Vec<Value>)) -> Value {
    let mut labels = service.map("/metadata/labels").cloned().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.name().into());
    labels.insert(SLICE_MANAGER.into(), SLICE_CONTROLLER.into());
    if service.text("/spec/clusterIP") == "None" {
        labels.insert("service.kubernetes.io/headless".into(), "".into());
    }
    json!({
        "metadata": {
            "name": slice_name(service, id),
            "namespace": service.namespace(),
            "labels": labels,
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service.name(),
                "uid": service.uid(), "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    })
}

/// A name that follows from what the slice is for, so that a restart finds it again.
fn slice_name(service: &Value, id: &str) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(format!("{}/{id}", service.uid()));
    let suffix: String = digest
        .iter()
        .take(5)
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect();
    format!("{}-{suffix}", service.name())
}

fn endpoint(service: &Value, pod: &Value) -> Value {
    let (ready, terminating) = (is_ready(pod), pod.is_terminating());
    let published = service.flag("/spec/publishNotReadyAddresses");
    let mut endpoint = json!({
        "addresses": [pod.text("/status/podIP")],
        "conditions": {
            "ready": published || (ready && !terminating),
            "serving": published || ready,
            "terminating": terminating,
        },
        "targetRef": target_ref(pod),
    });
    if !pod.text("/spec/nodeName").is_empty() {
        endpoint["nodeName"] = pod.text("/spec/nodeName").into();
    }
    if let Some(hostname) = hostname_in(service, pod) {
        endpoint["hostname"] = hostname.into();
    }
    endpoint
}

fn hostname_in<'a>(service: &Value, pod: &'a Value) -> Option<&'a str> {
    let hostname = pod.text("/spec/hostname");
    (!hostname.is_empty() && pod.text("/spec/subdomain") == service.name()).then_some(hostname)
}

fn target_ref(pod: &Value) -> Value {
    json!({"kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid()})
}

fn endpoints(service: &Value, groups: &Groups<'_>) -> Value {
    let mut labels = service.map("/metadata/labels").cloned().unwrap_or_default();
    labels.insert(ENDPOINTS_MANAGER.into(), ENDPOINTS_CONTROLLER.into());
    if service.text("/spec/clusterIP") == "None" {
        labels.insert("service.kubernetes.io/headless".into(), "".into());
    }
    let published = service.flag("/spec/publishNotReadyAddresses");
    let mut left = ENDPOINTS_SIZE;
    let mut subsets = Vec::new();
    for (ports, pods) in groups.values() {
        let shown = &pods[..pods.len().min(left)];
        left -= shown.len();
        let (ready, rest): (Vec<&Value>, Vec<&Value>) =
            shown.iter().partition(|pod| published || (is_ready(pod) && !pod.is_terminating()));
        // A pod that ends is no endpoint here, ready or not.
        let waiting = rest.into_iter().filter(|pod| !pod.is_terminating());
        let mut subset = json!({});
        for (field, list) in [
            ("addresses", ready.into_iter().map(|pod| address(service, pod)).collect()),
            ("notReadyAddresses", waiting.map(|pod| address(service, pod)).collect::<Vec<_>>()),
        ] {
            if !list.is_empty() {
                subset[field] = Value::Array(list);
            }
        }
        if subset.as_object().is_some_and(|map| map.is_empty()) {
            continue;
        }
        if !ports.is_empty() {
            subset["ports"] = ports.iter().map(without_empty_name).collect();
        }
        subsets.push(subset);
    }
    json!({
        "metadata": {
            "name": service.name(), "namespace": service.namespace(), "labels": labels,
        },
        "subsets": subsets,
    })
}

fn without_empty_name(port: &Value) -> Value {
    let mut port = port.clone();
    if port.text("/name").is_empty() {
        port.take_out("/name");
    }
    port
}

fn address(service: &Value, pod: &Value) -> Value {
    let mut address = json!({"ip": pod.text("/status/podIP"), "targetRef": target_ref(pod)});
    if !pod.text("/spec/nodeName").is_empty() {
        address["nodeName"] = pod.text("/spec/nodeName").into();
    }
    if let Some(hostname) = hostname_in(service, pod) {
        address["hostname"] = hostname.into();
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "d", "uid": "u"}, "spec": spec})
    }

    fn pod(name: &str, ready: &str, extra: Value) -> Arc<Value> {
        let mut pod = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"nodeName": "n", "containers": [{"ports": [
                {"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {"podIP": format!("10.0.0.{}", name.len()),
                "conditions": [{"type": "Ready", "status": ready}]}});
        if let (Some(into), Some(from)) = (pod["metadata"].as_object_mut(), extra.as_object()) {
            into.extend(from.clone());
        }
        Arc::new(pod)
    }

    fn web() -> Value {
        service(json!({"clusterIP": "10.96.0.9", "selector": {"a": "b"}, "ports": [
            {"port": 80, "protocol": "TCP", "targetPort": "http"}]}))
    }

    #[test]
    fn conditions_follow_readiness_and_deletion() {
        let gone = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let pods =
            [pod("a", "True", json!({})), pod("bb", "False", json!({})), pod("ccc", "True", gone)];
        let made = slices(&web(), &group(&web(), &pods));
        assert_eq!(made.len(), 1);
        let conditions: Vec<String> =
            made[0].list("/endpoints").iter().map(|e| e["conditions"].to_string()).collect();
        assert_eq!(
            conditions,
            [
                r#"{"ready":true,"serving":true,"terminating":false}"#,
                r#"{"ready":false,"serving":false,"terminating":false}"#,
                r#"{"ready":false,"serving":true,"terminating":true}"#,
            ]
        );
        assert_eq!(made[0].int("/ports/0/port"), Some(8080));
        let plain = endpoints(&web(), &group(&web(), &pods));
        assert_eq!(plain.list("/subsets/0/addresses").len(), 1);
        assert_eq!(plain.list("/subsets/0/notReadyAddresses").len(), 1);
    }

    #[test]
    fn a_named_port_that_differs_makes_two_slices() {
        let mut other = Value::clone(&pod("bb", "True", json!({})));
        other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
        let pods = [pod("a", "True", json!({})), Arc::new(other)];
        let made = slices(&web(), &group(&web(), &pods));
        assert_eq!(made.len(), 2);
        assert_ne!(made[0].name(), made[1].name());
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let made = slices(&web(), &group(&web(), &[]));
        assert_eq!(made.len(), 1);
        assert!(made[0].list("/endpoints").is_empty());
    }

    #[test]
    fn slices_hold_a_hundred_endpoints() {
        let pods: Vec<Arc<Value>> = (0..250).map(|_| pod("a", "True", json!({}))).collect();
        let sizes: Vec<usize> = slices(&web(), &group(&web(), &pods))
            .iter()
            .map(|slice| slice.list("/endpoints").len())
            .collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
