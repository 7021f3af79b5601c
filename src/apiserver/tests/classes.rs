//! What pods name and others say: an unmodified kubectl makes the classes and sees what pods get of them;
//! templates of pods, and limit ranges.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use harness::serve;
use serde_json::{Value, json};

const RUNTIME: &str = r#"
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: vm}
handler: kata
overhead: {podFixed: {cpu: 250m, memory: 120Mi}}
scheduling:
  nodeSelector: {kind: vm}
  tolerations: [{key: vm, operator: Exists, effect: NoSchedule}]
"#;

fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n\
         spec: {{containers: [{{name: a, image: 'web:1'}}], {spec}}}\n"
    )
}

async fn read(running: &harness::Running, what: &[&str]) -> Value {
    let args = [&["get", "-o", "json"], what].concat();
    serde_json::from_str(&running.kubectl_ok(&args, "").await).unwrap()
}

#[tokio::test]
async fn a_pod_gets_from_its_runtime_class_what_it_costs_and_where_it_runs() {
    let running = serve().await;
    let applied = running.kubectl_ok(&["apply", "-f", "-"], RUNTIME).await;
    assert_eq!(applied, "runtimeclass.node.k8s.io/vm created\n");
    let table = running.kubectl_ok(&["get", "runtimeclasses"], "").await;
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(words[..5], ["NAME", "HANDLER", "AGE", "vm", "kata"], "{table}");
    let explained = running.kubectl_ok(&["explain", "runtimeclass.overhead.podFixed"], "").await;
    assert!(explained.contains("FIELD: podFixed <map[string]Quantity>"), "{explained}");

    running.kubectl_ok(&["apply", "-f", "-"], &pod("p", "runtimeClassName: vm")).await;
    let spec = read(&running, &["pod", "p"]).await["spec"].clone();
    assert_eq!(spec["overhead"], json!({"cpu": "250m", "memory": "120Mi"}));
    assert_eq!(spec["nodeSelector"], json!({"kind": "vm"}));
    let last = spec["tolerations"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last, json!({"key": "vm", "operator": "Exists", "effect": "NoSchedule"}));
    let again = running.kubectl_ok(&["apply", "-f", "-"], &pod("p", "runtimeClassName: vm")).await;
    assert_eq!(again, "pod/p unchanged\n");

    for (spec, why) in [
        ("runtimeClassName: none", "pod rejected: RuntimeClass \"none\" not found"),
        ("runtimeClassName: vm, nodeSelector: {kind: bare}", "conflict: runtimeClass.scheduling"),
        ("runtimeClassName: vm, overhead: {cpu: 1}", "doesn't match RuntimeClass's defined"),
        ("overhead: {cpu: 1}", "Overhead set without corresponding RuntimeClass"),
    ] {
        let refused = running.kubectl_fails(&["apply", "-f", "-"], &pod("q", spec)).await;
        assert!(refused.contains("pods \"q\" is forbidden") && refused.contains(why), "{refused}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_runtime_class_is_changed_but_for_its_handler() {
    let running = serve().await;
    running.kubectl_ok(&["create", "-f", "-"], RUNTIME).await;
    let patch = r#"{"scheduling": {"nodeSelector": {"kind": "vm2"}}}"#;
    for kind in ["merge", "strategic"] {
        running.kubectl_ok(&["patch", "runtimeclass", "vm", "--type", kind, "-p", patch], "").await;
    }
    running.kubectl_ok(&["label", "runtimeclass", "vm", "a=b"], "").await;
    let class = read(&running, &["runtimeclass", "-l", "a=b"]).await["items"][0].clone();
    assert_eq!(class["scheduling"]["nodeSelector"], json!({"kind": "vm2"}), "{class}");
    let refused =
        running.kubectl_fails(&["replace", "-f", "-"], &RUNTIME.replace("kata", "gvisor")).await;
    let why = "The RuntimeClass \"vm\" is invalid: handler: Invalid value: \"gvisor\": field is immutable";
    assert!(refused.contains(why), "{refused}");
    let bad = RUNTIME.replace("name: vm", "name: bad").replace("kata", "a/b");
    let refused = running.kubectl_fails(&["create", "-f", "-"], &bad).await;
    assert!(refused.contains("handler: Invalid value: \"a/b\""), "{refused}");
    running.kubectl_ok(&["delete", "runtimeclass", "--all"], "").await;
    let refused =
        running.kubectl_fails(&["create", "-f", "-"], &pod("p", "runtimeClassName: vm")).await;
    assert!(refused.contains("RuntimeClass \"vm\" not found"), "{refused}");
    running.stop().await;
}

#[tokio::test]
async fn a_pod_has_the_priority_of_its_class_or_of_the_default_one() {
    let running = serve().await;
    let create = ["create", "priorityclass", "high", "--value=1000", "--preemption-policy=Never"];
    running.kubectl_ok(&create, "").await;
    let create =
        ["create", "priorityclass", "usual", "--value=7", "--global-default", "--description=x"];
    running.kubectl_ok(&create, "").await;
    let table = running.kubectl_ok(&["get", "pc", "high"], "").await;
    let words: Vec<&str> = table.split_whitespace().collect();
    let head = ["NAME", "VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY"];
    assert_eq!(words[..5], head, "{table}");
    assert_eq!((words[6], words[7], words[9]), ("1000", "false", "Never"), "{table}");

    for (name, spec, wanted) in [
        ("a", "priorityClassName: high", ("high", 1000, "Never")),
        ("b", "", ("usual", 7, "PreemptLowerPriority")),
        (
            "c",
            "priorityClassName: system-node-critical",
            ("system-node-critical", 2_000_001_000, "PreemptLowerPriority"),
        ),
    ] {
        running.kubectl_ok(&["apply", "-f", "-"], &pod(name, spec)).await;
        let spec = read(&running, &["pod", name]).await["spec"].clone();
        let (class, priority, policy) = wanted;
        assert_eq!(spec["priorityClassName"], class);
        assert_eq!(spec["priority"], priority);
        assert_eq!(spec["preemptionPolicy"], policy);
    }
    for (spec, why) in [
        ("priorityClassName: none", "no PriorityClass with name none was found"),
        ("priority: 1", "computed 7 from the given PriorityClass name"),
        (
            "priorityClassName: high, preemptionPolicy: PreemptLowerPriority",
            "computed Never from the given PriorityClass name",
        ),
    ] {
        let refused = running.kubectl_fails(&["apply", "-f", "-"], &pod("q", spec)).await;
        assert!(refused.contains("pods \"q\" is forbidden") && refused.contains(why), "{refused}");
    }
    running.kubectl_ok(&["delete", "pc", "usual"], "").await;
    running.kubectl_ok(&["apply", "-f", "-"], &pod("d", "")).await;
    assert_eq!(read(&running, &["pod", "d"]).await["spec"]["priority"], 0);
    running.stop().await;
}

#[tokio::test]
async fn the_rules_of_priority_classes_hold_and_those_of_the_system_stay() {
    let running = serve().await;
    running.kubectl_ok(&["create", "pc", "usual", "--value=7", "--global-default"], "").await;
    for (args, why) in [
        (
            &["create", "pc", "other", "--value=8", "--global-default"][..],
            "PriorityClass usual is already marked as default. Only one default can exist",
        ),
        (&["create", "pc", "system-x", "--value=8"], "system-x is not a known system priority"),
        (&["create", "pc", "big", "--value=1000000001"], "maximum allowed value of a user defined"),
        (
            &["patch", "pc", "usual", "-p", r#"{"value": 8}"#],
            "value: Forbidden: may not be changed in an update.",
        ),
        (&["delete", "pc", "system-node-critical"], "this is a system priority class and cannot"),
    ] {
        let refused = running.kubectl_fails(args, "").await;
        assert!(refused.contains(why), "{refused}");
    }
    let patch = r#"{"description": "new"}"#;
    running.kubectl_ok(&["patch", "pc", "usual", "-p", patch], "").await;
    let classes = read(&running, &["pc"]).await;
    let names: Vec<&str> = classes["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|class| class["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["system-cluster-critical", "system-node-critical", "usual"]);
    assert_eq!(classes["items"][2]["description"], "new");
    running.stop().await;
}

const TEMPLATE: &str = r#"
apiVersion: v1
kind: PodTemplate
metadata: {name: t}
template:
  metadata: {labels: {app: web}}
  spec:
    containers:
    - {name: a, image: 'web:1', resources: {limits: {cpu: '1'}}}
    - {name: b, image: 'log:1'}
"#;

#[tokio::test]
async fn a_pod_template_is_checked_as_a_pod_is_and_counts_its_changes() {
    let running = serve().await;
    let applied = running.kubectl_ok(&["apply", "-f", "-"], TEMPLATE).await;
    assert_eq!(applied, "podtemplate/t created\n");
    let again = running.kubectl_ok(&["apply", "-f", "-"], TEMPLATE).await;
    assert_eq!(again, "podtemplate/t unchanged\n");
    let table = running.kubectl_ok(&["get", "podtemplates"], "").await;
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "CONTAINERS", "IMAGES", "POD", "LABELS"], "{table}");
    assert_eq!(lines[1], ["t", "a,b", "web:1,log:1", "app=web"], "{table}");

    let patch = r#"{"template": {"spec": {"containers": [{"name": "b", "image": "log:2"}]}}}"#;
    running.kubectl_ok(&["patch", "podtemplate", "t", "-p", patch], "").await;
    running.kubectl_ok(&["annotate", "podtemplate", "t", "a=b"], "").await;
    let template = read(&running, &["podtemplate", "t"]).await;
    assert_eq!(template["metadata"]["generation"], 2, "{template}");
    let containers = template["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 2, "lists merge by name");
    assert_eq!(containers[1]["image"], "log:2");
    assert!(containers[0]["resources"].get("requests").is_none(), "{template}");

    let bad = TEMPLATE.replace("name: t", "name: bad").replace("{name: b,", "{name: a,");
    let refused = running.kubectl_fails(&["create", "-f", "-"], &bad).await;
    let why = "template.spec.containers[1].name: Duplicate value: \"a\"";
    assert!(
        refused.contains("The PodTemplate \"bad\" is invalid") && refused.contains(why),
        "{refused}"
    );
    let empty = "{apiVersion: v1, kind: PodTemplate, metadata: {name: e}}";
    let refused = running.kubectl_fails(&["create", "-f", "-"], empty).await;
    assert!(refused.ends_with("template.spec.containers: Required value\n"), "{refused}");
    running.kubectl_ok(&["delete", "podtemplates", "--all"], "").await;
    running.stop().await;
}

const LIMITS: &str = r#"
apiVersion: v1
kind: LimitRange
metadata: {name: limits}
spec:
  limits:
  - type: Container
    default: {cpu: 500m, memory: 64Mi}
    max: {cpu: 1}
  - type: PersistentVolumeClaim
    max: {storage: 1Gi}
"#;

const CLAIM: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: c}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 2Gi}}}
"#;

#[tokio::test]
async fn the_limits_of_a_namespace_fill_in_and_refuse() {
    let running = serve().await;
    running.kubectl_ok(&["apply", "-f", "-"], LIMITS).await;
    let described = running.kubectl_ok(&["describe", "limits", "limits"], "").await;
    let row = described.lines().find(|line| line.contains("memory")).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words, ["Container", "memory", "-", "-", "64Mi", "64Mi", "-"], "{described}");

    running.kubectl_ok(&["run", "p", "--image=web:1"], "").await;
    let pod = read(&running, &["pod", "p"]).await;
    let amounts = json!({"cpu": "500m", "memory": "64Mi"});
    let resources = json!({"limits": amounts, "requests": amounts});
    assert_eq!(pod["spec"]["containers"][0]["resources"], resources, "{pod}");
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    let note = &pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"];
    assert!(note.as_str().unwrap().starts_with("LimitRanger plugin set: "), "{pod}");

    let large = WEB.replace("CPU", "2");
    let refused = running.kubectl_fails(&["create", "-f", "-"], &large).await;
    let why = "pods \"large\" is forbidden: maximum cpu usage per Container is 1, but limit is 2";
    assert!(refused.contains(why), "{refused}");
    running.kubectl_ok(&["create", "-f", "-"], &WEB.replace("CPU", "1")).await;
    let patch = r#"{"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}}]}}"#;
    let resize = ["patch", "pod", "large", "--subresource=resize", "-p", patch];
    let refused = running.kubectl_fails(&resize, "").await;
    assert!(refused.contains("maximum cpu usage per Container is 1, but limit is 2"), "{refused}");
    let refused = running.kubectl_fails(&["create", "-f", "-"], CLAIM).await;
    let why = "maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi";
    assert!(refused.contains(why), "{refused}");
    running.kubectl_ok(&["delete", "limits", "--all"], "").await;
    running.kubectl_ok(&["create", "-f", "-"], CLAIM).await;
    running.stop().await;
}

const WEB: &str = "{apiVersion: v1, kind: Pod, metadata: {name: large}, spec: {containers: [
  {name: a, image: 'web:1', resources: {limits: {cpu: CPU}}}]}}";
