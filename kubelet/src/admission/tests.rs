//! Tests of pod admission.

use serde_json::{Value, json};

use super::*;

fn node() -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"zone": "a"}},
        "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}, {"key": "s", "effect": "NoSchedule"}]},
    }))
    .unwrap()
}

fn pod(spec: Value, cpu: &str) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
    }
    if spec.get("tolerations").is_none() {
        spec["tolerations"] = json!([{"operator": "Exists"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
}

fn judge(candidate: &Pod, others: &[Pod]) -> Judgement {
    let demands: Vec<_> = others.iter().map(|p| PodDemand::parse(p).unwrap()).collect();
    let allocatable: ResourceAmounts = [("cpu", "1"), ("memory", "1Gi"), ("pods", "3")]
        .map(|(name, amount)| (name.to_owned(), amount.parse().unwrap()))
        .into();
    let others = others.iter().zip(&demands);
    admit(
        candidate,
        &PodDemand::parse(candidate).unwrap(),
        &AdmissionInputs {
            node: &node(),
            allocatable: &allocatable,
            others: others.map(|(pod, demand)| Admitted { pod, demand }).collect(),
            sysctls: &SysctlPolicy::default(),
            app_armor: AppArmorSupport::Absent,
        },
    )
}

fn decide(candidate: &Pod, others: &[Pod]) -> Result<(), Rejection> {
    match judge(candidate, others) {
        Judgement::Admit => Ok(()),
        Judgement::Reject(rejection) => Err(rejection),
        Judgement::Preempt(victims) => panic!("{victims:?} would end"),
    }
}

fn rejected(candidate: &Pod, others: &[Pod]) -> (String, String) {
    let rejection = decide(candidate, others).unwrap_err();
    (rejection.reason.clone(), rejection.status_message())
}

#[test]
fn a_profile_on_a_node_without_apparmor_is_refused_in_upstreams_words() {
    let by_field = json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}});
    let mut by_annotation = pod(json!({}), "1");
    let name = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
    by_annotation.metadata.annotations = Some([(name, "runtime/default".to_owned())].into());
    let message = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
    for pod in [pod(by_field, "1"), by_annotation] {
        assert_eq!(rejected(&pod, &[]), ("AppArmor".into(), message.into()));
    }
}

#[test]
fn resources_that_are_not_there_are_named_with_their_figures() {
    let greedy = pod(json!({}), "2");
    assert_eq!(
        rejected(&greedy, &[]),
        (
            "OutOfcpu".to_owned(),
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 0, capacity: 1000".to_owned()
        )
    );
    let half = || pod(json!({}), "500m");
    assert!(decide(&half(), &[half()]).is_ok());
    let message = rejected(&pod(json!({}), "501m"), &[half()]).1;
    assert!(message.ends_with("cpu, requested: 501, used: 500, capacity: 1000"), "{message}");
    let memory = pod(
        json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "2Gi"}}}]}),
        "",
    );
    assert_eq!(rejected(&memory, &[]).0, "OutOfmemory");
    let huge = pod(
        json!({"containers": [{"name": "c", "resources": {"limits": {"hugepages-2Mi": "2Mi"}}}]}),
        "",
    );
    assert_eq!(rejected(&huge, &[]).0, "OutOfhugepages-2Mi");
    let cluster_level = pod(
        json!({"containers": [{"name": "c", "resources": {"limits": {"example.org/x": "2"}}}]}),
        "",
    );
    assert!(decide(&cluster_level, &[]).is_ok());
}

#[test]
fn the_number_of_pods_is_a_resource() {
    let tiny = || pod(json!({}), "1m");
    assert!(decide(&tiny(), &[tiny(), tiny()]).is_ok());
    let (reason, message) = rejected(&tiny(), &[tiny(), tiny(), tiny()]);
    assert_eq!(reason, "OutOfpods");
    assert!(message.ends_with("pods, requested: 1, used: 3, capacity: 3"), "{message}");
}

#[test]
fn the_node_must_be_the_right_one() {
    let mismatch = pod(json!({"nodeSelector": {"zone": "b"}}), "1m");
    assert_eq!(
        rejected(&mismatch, &[]),
        (
            "NodeAffinity".to_owned(),
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_owned()
        )
    );
    assert_eq!(rejected(&pod(json!({"nodeName": "n2"}), "1m"), &[]).0, "NodeName");
    assert!(
        decide(&pod(json!({"nodeName": "n1", "nodeSelector": {"zone": "a"}}), "1m"), &[]).is_ok()
    );
}

#[test]
fn other_operating_systems_are_refused() {
    assert_eq!(
        rejected(&pod(json!({"os": {"name": "windows"}}), "1m"), &[]).0,
        "PodOSNotSupported"
    );
    let mut labelled = pod(json!({}), "1m");
    labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
    assert_eq!(rejected(&labelled, &[]).0, "PodOSSelectorNodeLabelDoesNotMatch");
}

#[test]
fn evicting_taints_must_be_tolerated_but_by_static_pods() {
    for (tolerations, admitted) in [
        (json!([]), false),
        (json!([{"key": "k", "value": "v"}]), true),
        (json!([{"key": "k", "operator": "Equal", "value": "w"}]), false),
        (json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), false),
        (json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}]), true),
        (json!([{"operator": "Exists"}]), true),
        (json!([{"value": "v"}]), false),
    ] {
        let candidate = pod(json!({"tolerations": tolerations}), "1m");
        assert_eq!(decide(&candidate, &[]).is_ok(), admitted, "{tolerations}");
    }
    let mut fixed = pod(json!({"tolerations": []}), "1m");
    fixed.metadata.annotations =
        Some([("kubernetes.io/config.source".to_owned(), "file".to_owned())].into());
    assert!(decide(&fixed, &[]).is_ok());
}

#[test]
fn host_ports_are_given_once() {
    let with_port = |port: Value| pod(json!({"containers": [{"name": "c", "ports": [port]}]}), "");
    let taken = [with_port(json!({"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"}))];
    for (port, admitted) in [
        (json!({"containerPort": 1, "hostPort": 8080}), false),
        (json!({"containerPort": 1, "hostPort": 8080, "hostIP": "0.0.0.0"}), false),
        (json!({"containerPort": 1, "hostPort": 8080, "hostIP": "127.0.0.2"}), true),
        (json!({"containerPort": 1, "hostPort": 8080, "protocol": "UDP"}), true),
        (json!({"containerPort": 8080}), true),
    ] {
        assert_eq!(decide(&with_port(port.clone()), &taken).is_ok(), admitted, "{port}");
    }
    let host = pod(
        json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]}),
        "",
    );
    assert_eq!(rejected(&host, &taken).0, "NodePorts");
}

#[test]
fn forbidden_sysctls_are_refused() {
    let candidate = pod(
        json!({"securityContext": {"sysctls": [{"name": "vm.swappiness", "value": "1"}]}}),
        "1m",
    );
    assert_eq!(rejected(&candidate, &[]).0, "SysctlForbidden");
}

#[test]
fn a_critical_pod_that_lacks_only_resources_makes_room() {
    let critical = |spec: Value, cpu: &str| {
        let mut pod = pod(spec, cpu);
        pod.spec.as_mut().unwrap().priority = Some(2_000_000_000);
        pod
    };
    let others = [pod(json!({}), "300m"), pod(json!({}), "600m")];
    assert_eq!(judge(&critical(json!({}), "100m"), &others), Judgement::Admit);
    assert_eq!(judge(&critical(json!({}), "500m"), &others), Judgement::Preempt(vec![1]));
    assert_eq!(judge(&critical(json!({}), "800m"), &others), Judgement::Preempt(vec![0, 1]));
    let full = [pod(json!({}), "1m"), pod(json!({}), "2m"), pod(json!({}), "3m")];
    assert_eq!(judge(&critical(json!({}), "1m"), &full), Judgement::Preempt(vec![0]));
    // What cannot be mended refuses it, and nobody ends in vain.
    let elsewhere = critical(json!({"nodeSelector": {"zone": "b"}}), "500m");
    assert_eq!(decide(&elsewhere, &others).unwrap_err().reason, "NodeAffinity");
    let greedy = decide(&critical(json!({}), "2"), &others).unwrap_err();
    assert_eq!(greedy.reason, "UnexpectedAdmissionError");
    assert!(greedy.message.contains("(res: cpu, q: 1000)"), "{}", greedy.message);
    assert_eq!(decide(&pod(json!({}), "500m"), &others).unwrap_err().reason, "OutOfcpu");
}
