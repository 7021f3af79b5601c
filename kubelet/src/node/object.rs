//! From the host's facts to the Node object: labels, capacity, addresses, conditions. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::facts::Facts;
use crate::clock;
use crate::config::{Config, KUBELET_VERSION};
use crate::eviction::threshold::Condition;
use crate::eviction::{Conditions, Signal};

/// What API servers and schedulers of 1.36 ask before they rely on it, and what is so here: API servers
/// pass WebSockets on to nodes that declare it, else they translate; pods with such restart rules come
/// to no node that does not; on others no pod's own resources change. Sorted.
const DECLARED: [&str; 3] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "RestartAllContainersOnContainerExits",
];

/// Where a cloud's controller reads the addresses that the operator gave.
const PROVIDED: &str = "alpha.kubernetes.io/provided-node-ip";

/// What of the node is short at the moment, or keeps it from being ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Memory.
    pub memory: bool,
    /// Disk space.
    pub disk: bool,
    /// Process ids.
    pub pids: bool,
    /// The pod network is not there yet.
    pub starting: bool,
    /// The node is about to go down.
    pub ending: bool,
}

impl From<&Conditions> for Pressure {
    fn from(conditions: &Conditions) -> Self {
        let holds = |condition| conditions.contains(&condition);
        Self {
            memory: holds(Condition::Memory),
            disk: holds(Condition::Disk),
            pids: holds(Condition::Pid),
            starting: false,
            ending: false,
        }
    }
}

/// The Node object as it is registered.
pub fn node(config: &Config, facts: &Facts, pressure: Pressure, now: Timestamp) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config, facts)),
            annotations: provided(config).map(|ips| BTreeMap::from([(PROVIDED.to_owned(), ips)])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
            provider_id: config.provider_id.clone(),
            ..NodeSpec::default()
        }),
        status: Some(status(config, facts, pressure, (now, None))),
    }
}

/// As upstream, a name that the operator gave stands for the host's in the API: several nodes on one host
/// differ, and volumes and topology rules go by the label.
fn labels(config: &Config, facts: &Facts) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (name, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", facts.architecture.as_str()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", facts.architecture.as_str()),
    ] {
        labels.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    labels
}

/// The Node's status.
pub fn status(
    config: &Config,
    facts: &Facts,
    pressure: Pressure,
    (now, previous): (Timestamp, Option<&NodeStatus>),
) -> NodeStatus {
    NodeStatus {
        capacity: Some(capacity(config, facts)),
        allocatable: Some(allocatable(config, facts)),
        addresses: Some(addresses(config)),
        conditions: Some(conditions(pressure, now, previous)),
        daemon_endpoints: config.server.address.map(|address| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(address.port()) }),
        }),
        node_info: Some(system_info(facts)),
        declared_features: Some(DECLARED.map(str::to_owned).into()),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        runtime_handlers: Some(runtime_handlers(config)),
        ..NodeStatus::default()
    }
}

/// The one that pods without a runtime class get, and those that classes may name. All have the same
/// features, as all are berth-oci.
fn runtime_handlers(config: &Config) -> Vec<NodeRuntimeHandler> {
    let mut names: Vec<&str> = config.runtime_handlers.iter().map(String::as_str).collect();
    names.push("");
    names.sort_unstable();
    let handler = |name: &str| NodeRuntimeHandler {
        name: Some(name.to_owned()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(true),
            user_namespaces: Some(config.user_namespaces),
        }),
    };
    names.into_iter().map(handler).collect()
}

fn quantity(text: impl Into<String>) -> Quantity {
    Quantity(text.into())
}

fn kibibytes(bytes: u64) -> Quantity {
    quantity(format!("{}Ki", bytes / 1024))
}

fn hugepages_name(size: u64) -> String {
    let text = match size {
        s if s >= 1 << 30 && s % (1 << 30) == 0 => format!("{}Gi", s >> 30),
        s if s >= 1 << 20 && s % (1 << 20) == 0 => format!("{}Mi", s >> 20),
        s => format!("{}Ki", s >> 10),
    };
    format!("hugepages-{text}")
}

fn capacity(config: &Config, facts: &Facts) -> BTreeMap<String, Quantity> {
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), quantity(facts.cpus.to_string())),
        ("memory".to_owned(), kibibytes(facts.memory_bytes)),
        ("ephemeral-storage".to_owned(), kibibytes(facts.storage_bytes)),
        ("pods".to_owned(), quantity(config.max_pods.to_string())),
    ]);
    for (size, bytes) in &facts.hugepages {
        capacity.insert(hugepages_name(*size), huge(*bytes));
    }
    capacity
}

fn huge(bytes: u64) -> Quantity {
    match bytes {
        0 => quantity("0"),
        bytes => kibibytes(bytes),
    }
}

fn allocatable(config: &Config, facts: &Facts) -> BTreeMap<String, Quantity> {
    let mut allocatable = capacity(config, facts);
    let huge: u64 = facts.hugepages.values().sum();
    let reserved = config.reserved;
    let kept = config.eviction.kept_bytes(Signal::MemoryAvailable, facts.memory_bytes);
    let kept = kept.saturating_add(reserved.memory_bytes);
    let memory = facts.memory_bytes.saturating_sub(kept).saturating_sub(huge);
    if reserved.cpu_millis > 0 {
        let millis = u64::from(facts.cpus) * 1000;
        let left = millis.saturating_sub(reserved.cpu_millis);
        allocatable.insert("cpu".to_owned(), quantity(format!("{left}m")));
    }
    allocatable.insert("memory".to_owned(), kibibytes(memory));
    let kept = config.eviction.kept_bytes(Signal::NodeFsAvailable, facts.storage_bytes);
    let storage = facts.storage_bytes.saturating_sub(kept).saturating_sub(reserved.storage_bytes);
    allocatable.insert("ephemeral-storage".to_owned(), quantity(storage.to_string()));
    allocatable
}

/// A cloud's controller is not told an address that was found out here: it finds out better.
fn addresses(config: &Config) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let told = !config.external_cloud || config.is_address_given;
    let ips = config.node_ips.iter().filter(|_| told);
    let ips = ips.map(|ip: &IpAddr| address("InternalIP", ip.to_string()));
    ips.chain([address("Hostname", config.node_name.clone())]).collect()
}

/// Whether a cloud's controller has the last word on the addresses that the node has in the API.
pub fn has_addresses_of_cloud(config: &Config, known: Option<&NodeStatus>) -> bool {
    let known = known.and_then(|known| known.addresses.as_ref());
    config.external_cloud && known.is_some_and(|addresses| !addresses.is_empty())
}

/// The addresses that the operator gave, for a cloud's controller to choose by.
fn provided(config: &Config) -> Option<String> {
    let ips: Vec<String> = config.node_ips.iter().map(IpAddr::to_string).collect();
    (config.external_cloud && config.is_address_given).then(|| ips.join(","))
}

fn system_info(facts: &Facts) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: facts.architecture.clone(),
        boot_id: facts.boot_id.clone(),
        container_runtime_version: format!("berth://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: facts.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: facts.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: facts.os_image.clone(),
        swap: (facts.swap_bytes > 0)
            .then(|| NodeSwapStatus { capacity: i64::try_from(facts.swap_bytes).ok() }),
        system_uuid: facts.system_uuid.clone(),
    }
}

struct Judgement {
    type_: &'static str,
    holds: bool,
    reason: &'static str,
    message: &'static str,
}

fn judgements(pressure: Pressure) -> [Judgement; 4] {
    let judgement = |type_, holds, reason, message| Judgement { type_, holds, reason, message };
    [
        match pressure.memory {
            false => judgement(
                "MemoryPressure",
                false,
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            true => judgement(
                "MemoryPressure",
                true,
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
        },
        match pressure.disk {
            false => judgement(
                "DiskPressure",
                false,
                "KubeletHasNoDiskPressure",
                "kubelet has no disk pressure",
            ),
            true => judgement(
                "DiskPressure",
                true,
                "KubeletHasDiskPressure",
                "kubelet has disk pressure",
            ),
        },
        match pressure.pids {
            false => judgement(
                "PIDPressure",
                false,
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
            true => judgement(
                "PIDPressure",
                true,
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
        },
        match (pressure.ending, pressure.starting) {
            (false, false) => {
                judgement("Ready", true, "KubeletReady", "kubelet is posting ready status")
            }
            (true, _) => judgement("Ready", false, "KubeletNotReady", "node is shutting down"),
            (false, true) => judgement(
                "Ready",
                false,
                "KubeletNotReady",
                "the pod network is not ready: the node has just been registered",
            ),
        },
    ]
}

fn conditions(
    pressure: Pressure,
    now: Timestamp,
    previous: Option<&NodeStatus>,
) -> Vec<NodeCondition> {
    let now = Time(clock::whole_seconds(now));
    let known = |type_: &str, status: &str| {
        let conditions = previous.and_then(|p| p.conditions.as_ref());
        let mut same =
            conditions.into_iter().flatten().filter(|c| c.type_ == type_ && c.status == status);
        same.next().and_then(|c| c.last_transition_time.clone())
    };
    judgements(pressure)
        .into_iter()
        .map(|judgement| {
            let status = if judgement.holds { "True" } else { "False" };
            NodeCondition {
                type_: judgement.type_.to_owned(),
                status: status.to_owned(),
                reason: Some(judgement.reason.to_owned()),
                message: Some(judgement.message.to_owned()),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: known(judgement.type_, status).or(Some(now.clone())),
            }
        })
        .collect()
}

/// Whether two statuses say the same, heartbeats aside.
pub fn says_the_same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let quiet = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    quiet(a) == quiet(b)
}

/// Whether somebody has changed a condition that was reported, as a node controller does once it hears
/// nothing of a node.
pub fn contradicts(known: &NodeStatus, reported: &NodeStatus) -> bool {
    let conditions = |status: &NodeStatus| status.conditions.clone().unwrap_or_default();
    let told = conditions(reported);
    let differs = |condition: &NodeCondition| {
        told.iter().any(|own| own.type_ == condition.type_ && own.status != condition.status)
    };
    conditions(known).iter().any(differs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Reserved;

    #[test]
    fn a_condition_that_another_has_changed_is_seen() {
        let status = |ready: &str| -> NodeStatus {
            let other = serde_json::json!({"type": "NetworkUnavailable", "status": "False"});
            let ready = serde_json::json!({"type": "Ready", "status": ready});
            serde_json::from_value(serde_json::json!({"conditions": [other, ready]})).unwrap()
        };
        let mut own = status("True");
        assert!(!contradicts(&own, &own));
        assert!(contradicts(&status("Unknown"), &own));
        own.conditions.as_mut().unwrap().remove(0);
        assert!(!contradicts(&status("True"), &own), "conditions of others are theirs");
        assert!(!contradicts(&NodeStatus::default(), &own), "nothing is known yet");
    }

    fn facts() -> Facts {
        Facts {
            cpus: 4,
            memory_bytes: 1 << 30,
            storage_bytes: 100 << 20,
            hugepages: BTreeMap::from([(2 << 20, 4 << 20), (1 << 30, 0)]),
            architecture: "amd64".to_owned(),
            ..Facts::default()
        }
    }

    #[test]
    fn capacity_and_allocatable_keep_the_default_thresholds_back() {
        let config = Config::new("n", vec!["10.0.0.1".parse().unwrap()]);
        let status = status(&config, &facts(), Pressure::default(), (Timestamp::UNIX_EPOCH, None));
        let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
        assert_eq!(capacity["memory"].0, "1048576Ki");
        assert_eq!(allocatable["memory"].0, "942080Ki");
        assert_eq!(capacity["ephemeral-storage"].0, "102400Ki");
        assert_eq!(allocatable["ephemeral-storage"].0, "94371840");
        assert_eq!(capacity["hugepages-2Mi"].0, "4096Ki");
        assert_eq!(capacity["hugepages-1Gi"].0, "0");
        assert_eq!(capacity["pods"].0, "110");
    }

    #[test]
    fn what_is_reserved_is_in_the_capacity_and_not_allocatable() {
        let mut config = Config::new("n", vec!["10.0.0.1".parse().unwrap()]);
        config.reserved =
            Reserved { cpu_millis: 1500, memory_bytes: 1 << 20, storage_bytes: u64::MAX, pids: 0 };
        let status = status(&config, &facts(), Pressure::default(), (Timestamp::UNIX_EPOCH, None));
        let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
        assert_eq!((&*capacity["cpu"].0, &*allocatable["cpu"].0), ("4", "2500m"));
        assert_eq!(allocatable["memory"].0, "941056Ki");
        assert_eq!(allocatable["ephemeral-storage"].0, "0");
    }

    #[test]
    fn what_schedulers_ask_for_is_told_as_it_is() {
        let mut config = Config::new("n", Vec::new());
        config.runtime_handlers = vec!["runc".to_owned(), "fast".to_owned()];
        for users in [false, true] {
            config.user_namespaces = users;
            let now = (Timestamp::UNIX_EPOCH, None);
            let status = status(&config, &facts(), Pressure::default(), now);
            let handlers = status.runtime_handlers.unwrap();
            let names: Vec<_> = handlers.iter().filter_map(|h| h.name.as_deref()).collect();
            assert_eq!(names, ["", "fast", "runc"]);
            for features in handlers.into_iter().filter_map(|handler| handler.features) {
                assert_eq!(features.user_namespaces, Some(users));
                assert_eq!(features.recursive_read_only_mounts, Some(true));
            }
            assert_eq!(status.features.unwrap().supplemental_groups_policy, Some(true));
            let declared = status.declared_features.unwrap();
            assert!(declared.is_sorted(), "the API takes them sorted only");
            assert!(declared.contains(&"RestartAllContainersOnContainerExits".to_owned()));
        }
    }

    #[test]
    fn given_labels_win_over_the_usual_ones() {
        let mut config = Config::new("n", Vec::new());
        let own = ("kubernetes.io/hostname".to_owned(), "other".to_owned());
        config.labels.extend([own]);
        let labels = labels(&config, &facts());
        assert_eq!(labels["kubernetes.io/hostname"], "other");
        assert_eq!(labels["beta.kubernetes.io/arch"], "amd64");
    }

    #[test]
    fn a_node_with_a_name_of_its_own_is_told_from_others_on_its_host() {
        let mut config = Config::new("node-2", Vec::new());
        config.hostname = "host".to_owned();
        assert_eq!(labels(&config, &facts())["kubernetes.io/hostname"], "node-2");
        let hostname = addresses(&config).pop().unwrap();
        assert_eq!((hostname.type_.as_str(), hostname.address.as_str()), ("Hostname", "node-2"));
    }

    #[test]
    fn a_clouds_controller_is_told_the_addresses_that_the_operator_gave() {
        let mut config = Config::new("n", vec!["192.0.2.1".parse().unwrap()]);
        let annotations = |config: &Config| {
            let now = Timestamp::from_second(10).unwrap();
            node(config, &facts(), Pressure::default(), now).metadata.annotations
        };
        assert_eq!((addresses(&config).len(), annotations(&config)), (2, None));
        config.external_cloud = true;
        assert_eq!((addresses(&config).len(), annotations(&config)), (1, None));
        config.is_address_given = true;
        let given = BTreeMap::from([(PROVIDED.to_owned(), "192.0.2.1".to_owned())]);
        assert_eq!((addresses(&config).len(), annotations(&config)), (2, Some(given)));
    }

    #[test]
    fn a_condition_keeps_its_transition_time_until_it_changes() {
        let config = Config::new("n", Vec::new());
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = status(&config, &facts(), Pressure::default(), (at(10), None));
        let pressed = Pressure { memory: true, ..Pressure::default() };
        let second = status(&config, &facts(), pressed, (at(20), Some(&first)));
        let times: Vec<_> = second.conditions.unwrap();
        let time = |type_: &str| {
            let condition = times.iter().find(|c| c.type_ == type_).unwrap();
            condition.last_transition_time.clone().unwrap().0
        };
        assert_eq!(time("MemoryPressure"), at(20));
        assert_eq!(time("Ready"), at(10));
    }
}
