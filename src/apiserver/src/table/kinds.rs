//! The rows of services, nodes, endpoints and events.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{age, or};
use crate::object::ObjectExt;

/// How many endpoints a cell shows.
const SHOWN: usize = 3;

pub(super) fn service(service: &Value, age: String) -> Vec<Value> {
    let external = match service.text("/spec/type") {
        "LoadBalancer" => {
            let ingress: Vec<&str> = service
                .list("/status/loadBalancer/ingress")
                .iter()
                .map(|one| or(one.text("/ip"), one.text("/hostname")))
                .collect();
            or(&ingress.join(","), "<pending>").to_owned()
        }
        "ExternalName" => service.text("/spec/externalName").to_owned(),
        _ => {
            let all: Vec<&str> =
                service.list("/spec/externalIPs").iter().filter_map(Value::as_str).collect();
            or(&all.join(","), "<none>").to_owned()
        }
    };
    let ports: Vec<String> = service
        .list("/spec/ports")
        .iter()
        .map(|port| {
            let number = port.int("/port").unwrap_or(0);
            let protocol = port.text("/protocol");
            match port.int("/nodePort").filter(|node| *node > 0) {
                Some(node) => format!("{number}:{node}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    vec![
        service.name().into(),
        service.text("/spec/type").into(),
        or(service.text("/spec/clusterIP"), "<none>").into(),
        external.into(),
        or(&ports.join(","), "<none>").into(),
        age.into(),
        labels(service.map("/spec/selector")).into(),
    ]
}

fn labels(map: Option<&Map<String, Value>>) -> String {
    let pairs: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or(&pairs.join(","), "<none>").to_owned()
}

pub(super) fn pod_template(template: &Value) -> Vec<Value> {
    let of = |field: &str| {
        let containers = template.list("/template/spec/containers").iter();
        containers.map(|one| one.text(field)).collect::<Vec<_>>().join(",")
    };
    vec![
        template.name().into(),
        of("/name").into(),
        of("/image").into(),
        labels(template.map("/template/metadata/labels")).into(),
    ]
}

/// Access modes as people abbreviate them.
fn modes(object: &Value, pointer: &str) -> String {
    let modes = object.list(pointer).iter().map(|mode| match mode.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    });
    modes.collect::<Vec<_>>().join(",")
}

pub(super) fn volume(volume: &Value, age: String) -> Vec<Value> {
    let claim = match volume.has("/spec/claimRef") {
        true => {
            let part = |field: &str| volume.text(&format!("/spec/claimRef/{field}"));
            format!("{}/{}", part("namespace"), part("name"))
        }
        false => String::new(),
    };
    vec![
        volume.name().into(),
        volume.text("/spec/capacity/storage").into(),
        modes(volume, "/spec/accessModes").into(),
        volume.text("/spec/persistentVolumeReclaimPolicy").into(),
        volume.text("/status/phase").into(),
        claim.into(),
        volume.text("/spec/storageClassName").into(),
        volume.text("/status/reason").into(),
        age.into(),
        volume.text("/spec/volumeMode").into(),
    ]
}

pub(super) fn signing_request(request: &Value, age: String) -> Vec<Value> {
    let lasts = request.int("/spec/expirationSeconds").map(super::duration);
    let has = |wanted: &str| {
        request.list("/status/conditions").iter().any(|one| one.text("/type") == wanted)
    };
    let mut state: Vec<&str> =
        ["Denied", "Approved", "Failed"].into_iter().filter(|one| has(one)).collect();
    if state.is_empty() {
        state.push("Pending");
    }
    if !request.text("/status/certificate").is_empty() {
        state.push("Issued");
    }
    vec![
        request.name().into(),
        age.into(),
        request.text("/spec/signerName").into(),
        request.text("/spec/username").into(),
        lasts.unwrap_or_else(|| "<none>".to_owned()).into(),
        state.join(",").into(),
    ]
}

pub(super) fn claim(claim: &Value, age: String) -> Vec<Value> {
    vec![
        claim.name().into(),
        claim.text("/status/phase").into(),
        claim.text("/spec/volumeName").into(),
        claim.text("/status/capacity/storage").into(),
        modes(claim, "/status/accessModes").into(),
        claim.text("/spec/storageClassName").into(),
        age.into(),
        claim.text("/spec/volumeMode").into(),
    ]
}

pub(super) fn node(node: &Value, age: String) -> Vec<Value> {
    let ready = node.list("/status/conditions").iter().find(|one| one.text("/type") == "Ready");
    let mut status = match ready.map(|one| one.text("/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node.flag("/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in node.map("/metadata/labels").into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.push(role),
            _ if key == "kubernetes.io/role" => roles.extend(value.as_str()),
            _ => {}
        }
    }
    roles.sort_unstable();
    let address = |kind: &str| {
        let list = node.list("/status/addresses");
        let found = list.iter().find(|one| one.text("/type") == kind);
        found.map_or("<none>", |one| one.text("/address")).to_owned()
    };
    let info =
        |field: &str| or(node.text(&format!("/status/nodeInfo/{field}")), "<unknown>").to_owned();
    vec![
        node.name().into(),
        status.into(),
        or(&roles.join(","), "<none>").into(),
        age.into(),
        node.text("/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

fn shortened(all: &[String], none: &str, separator: &str) -> String {
    let shown = all[..all.len().min(SHOWN)].join(",");
    match all.len() {
        0 => none.to_owned(),
        count if count > SHOWN => format!("{shown}{separator}{} more...", count - SHOWN),
        _ => shown,
    }
}

pub(super) fn endpoints(endpoints: &Value, age: String) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in endpoints.list("/subsets") {
        let ports = subset.list("/ports");
        for address in subset.list("/addresses") {
            let ip = address.text("/ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| format!("{ip}:{}", p.int("/port").unwrap_or(0))));
        }
    }
    vec![endpoints.name().into(), shortened(&all, "<none>", " + ").into(), age.into()]
}

pub(super) fn slice(slice: &Value, age: String) -> Vec<Value> {
    let ports: Vec<String> = slice
        .list("/ports")
        .iter()
        .map(|port| port.int("/port").map_or_else(|| "*".to_owned(), |n| n.to_string()))
        .collect();
    let addresses: Vec<String> = slice
        .list("/endpoints")
        .iter()
        .flat_map(|endpoint| endpoint.list("/addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    vec![
        slice.name().into(),
        slice.text("/addressType").into(),
        shortened(&ports, "<unset>", " + ").into(),
        shortened(&addresses, "<unset>", " + ").into(),
        age.into(),
    ]
}

pub(super) fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let first = or(event.text("/firstTimestamp"), event.text("/eventTime"));
    let last = [event.text("/series/lastObservedTime"), event.text("/lastTimestamp"), first]
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_default();
    let count = event.int("/series/count").or(event.int("/count")).filter(|n| *n > 0).unwrap_or(1);
    let object = format!(
        "{}/{}",
        event.text("/involvedObject/kind").to_lowercase(),
        event.text("/involvedObject/name")
    );
    let component = or(event.text("/source/component"), event.text("/reportingComponent"));
    let source = match event.text("/source/host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    vec![
        age(last, now).into(),
        event.text("/type").into(),
        event.text("/reason").into(),
        object.into(),
        event.text("/involvedObject/fieldPath").into(),
        source.into(),
        event.text("/message").trim().into(),
        age(first, now).into(),
        count.into(),
        event.name().into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_port_service_shows_both_ports() {
        let row = service(
            &json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}],
                "selector": {"app": "x"}}}),
            "1s".into(),
        );
        assert_eq!(row[3], "<none>");
        assert_eq!(row[4], "80:30080/TCP");
        assert_eq!(row[6], "app=x");
    }

    #[test]
    fn a_pod_template_shows_containers_images_and_labels() {
        let row = pod_template(&json!({"metadata": {"name": "t"}, "template": {
            "metadata": {"labels": {"a": "b", "c": "d"}},
            "spec": {"containers": [{"name": "x", "image": "i"}, {"name": "y", "image": "j"}]}}}));
        assert_eq!(row, ["t", "x,y", "i,j", "a=b,c=d"]);
    }

    #[test]
    fn a_cordoned_node_says_so() {
        let row = node(
            &json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": ""}},
                "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            "1s".into(),
        );
        assert_eq!(row[1], "Ready,SchedulingDisabled");
        assert_eq!(row[2], "worker");
    }

    #[test]
    fn only_three_endpoints_are_shown() {
        let addresses: Vec<Value> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let row = endpoints(
            &json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}),
            "1s".into(),
        );
        assert_eq!(row[1], "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    }
}
