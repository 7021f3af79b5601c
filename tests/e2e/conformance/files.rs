//! What volumes hold: configuration in all its forms, facts about the pod, and scratch space. How they
//! follow changes is in `volumes`.

use serde_json::{Value, json};

use super::environment::allocatable;
use super::{Case, pod, run, says};
use crate::node::Node;

#[test]
fn volumes_hold_what_the_conformance_suite_asks() {
    let node = Node::start();
    let data = json!({"data-1": "value-1", "data-2": "value-2"});
    let object = |kind: &str, name: &str, namespace: &str, field: &str, data: &Value| {
        json!({"apiVersion": "v1", "kind": kind, field: data,
            "metadata": {"name": name, "namespace": namespace}})
    };
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}}),
        object("ConfigMap", "settings", "default", "data", &data),
        object("Secret", "keys", "default", "stringData", &data),
        object("Secret", "keys", "elsewhere", "stringData", &json!({"data-1": "elsewhere"})),
    ];
    let many = (0..WRAPPED).map(|n| {
        object(
            "ConfigMap",
            &format!("many-{n}"),
            "default",
            "data",
            &json!({"data-1": n.to_string()}),
        )
    });
    objects.extend(many);
    super::apply(&node, objects);
    let mut cases = configuration();
    cases.extend(facts(&node));
    cases.extend(scratch());
    cases.extend(wrappers());
    run(&node, cases);
    what_is_optional_comes_changes_and_goes(&node);
    node.kubectl(&["delete", "namespace", "elsewhere"]);
    node.finish();
}

/// The ways in which objects become volumes: what each is called, and its source with these fields.
const KINDS: [&str; 4] = ["configmap", "secret", "projected-configmap", "projected-secret"];

/// A volume `name` of a kind; `items` where not all is wanted, `mode` where it has a default.
fn volume(name: &str, kind: &str, items: Option<Value>, mode: Option<u32>) -> Value {
    let (map, projected) = match kind.strip_prefix("projected-") {
        Some(kind) => (kind == "configmap", true),
        None => (kind == "configmap", false),
    };
    let named = match (map, projected) {
        (true, _) => json!({"name": "settings"}),
        (false, true) => json!({"name": "keys"}),
        (false, false) => json!({"secretName": "keys"}),
    };
    let mut source = named;
    if let Some(items) = items {
        source["items"] = items;
    }
    let field = if map { "configMap" } else { "secret" };
    let (field, mut source) = match projected {
        true => ("projected", json!({"sources": [{field: source}]})),
        false => (field, source),
    };
    if let Some(mode) = mode {
        source["defaultMode"] = json!(mode);
    }
    json!({"name": name, field: source})
}

/// For each kind: all of it, with a mode, with other names, with other names and a mode; and parts of
/// it over files that are there already.
fn configuration() -> Vec<Case> {
    let (mut volumes, mut mounts, mut script) = (Vec::new(), Vec::new(), String::new());
    let mut lines = Vec::new();
    let (mut plain_volumes, mut plain_mounts) = (Vec::new(), Vec::new());
    let (mut plain_script, mut plain_lines) = (String::new(), Vec::new());
    for kind in KINDS {
        let mapped = json!([{"key": "data-2", "path": "path/to/data-2"}]);
        let moded = json!([{"key": "data-2", "path": "path/to/data-2", "mode": 0o400}]);
        for (variant, items, mode, file, shown) in [
            ("all", None, None, "data-1", "644 value-1"),
            ("mode", None, Some(0o400), "data-1", "400 value-1"),
            ("mapped", Some(mapped.clone()), None, "path/to/data-2", "644 value-2"),
            ("item", Some(moded), None, "path/to/data-2", "400 value-2"),
            ("again", None, None, "data-1", "644 value-1"),
        ] {
            let name = format!("{kind}-{variant}");
            volumes.push(volume(&name, kind, items, mode));
            mounts.push(json!({"name": name, "mountPath": format!("/{name}")}));
            script +=
                &format!("echo {name} $(stat -L -c %a /{name}/{file}) $(cat /{name}/{file})\n");
            lines.push(format!("{name} {shown}"));
        }
        // One file of the volume, in a directory that is made and over a file that is there.
        mounts.push(json!({"name": format!("{kind}-all"), "mountPath": format!("/sub/{kind}"), "subPath": "data-1"}));
        script += &format!("echo {kind} part $(cat /sub/{kind})\n");
        lines.push(format!("{kind} part value-1"));

        let own = format!("{kind}-own");
        for (name, items, mode) in [
            (format!("{kind}-all"), None, None),
            (format!("{kind}-mapped"), Some(mapped), None),
            (own, None, Some(0o440)),
        ] {
            let file = if items.is_some() { "path/to/data-2" } else { "data-1" };
            let value = if items.is_some() { "value-2" } else { "value-1" };
            plain_volumes.push(volume(&name, kind, items, mode));
            plain_mounts.push(json!({"name": name, "mountPath": format!("/{name}")}));
            plain_script +=
                &format!("echo {name} $(stat -L -c %a:%g /{name}/{file}) $(cat /{name}/{file})\n");
            let shown = if mode.is_some() { "440" } else { "644" };
            plain_lines.push(format!("{name} {shown}:1001 {value}"));
        }
    }
    mounts.push(json!({"name": "configmap-all", "mountPath": "/etc/group", "subPath": "data-2"}));
    script += "echo over a file $(cat /etc/group)\n";
    lines.push("over a file value-2".to_owned());
    let text = |lines: &[String]| says(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    vec![
        Case {
            names: &[
                "ConfigMap should be consumable from pods in volume",
                "ConfigMap should be consumable from pods in volume with defaultMode set",
                "ConfigMap should be consumable from pods in volume with mappings",
                "ConfigMap should be consumable from pods in volume with mappings and Item mode set",
                "ConfigMap should be consumable in multiple volumes in the same pod",
                "Secrets should be consumable from pods in volume",
                "Secrets should be consumable from pods in volume with defaultMode set",
                "Secrets should be consumable from pods in volume with mappings",
                "Secrets should be consumable from pods in volume with mappings and Item Mode set",
                "Secrets should be consumable in multiple volumes in a pod",
                "Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace",
                "Projected configMap should be consumable from pods in volume",
                "Projected configMap should be consumable from pods in volume with defaultMode set",
                "Projected configMap should be consumable from pods in volume with mappings",
                "Projected configMap should be consumable from pods in volume with mappings and Item mode set",
                "Projected configMap should be consumable in multiple volumes in the same pod",
                "Projected secret should be consumable from pods in volume",
                "Projected secret should be consumable from pods in volume with defaultMode set",
                "Projected secret should be consumable from pods in volume with mappings",
                "Projected secret should be consumable from pods in volume with mappings and Item Mode set",
                "Projected secret should be consumable in multiple volumes in a pod",
                "Subpath Atomic writer volumes should support subpaths with configmap pod",
                "Subpath Atomic writer volumes should support subpaths with configmap pod with mountPath of existing file",
                "Subpath Atomic writer volumes should support subpaths with secret pod",
                "Subpath Atomic writer volumes should support subpaths with projected pod",
            ],
            pod: pod(
                "configuration",
                &script,
                json!({"volumes": volumes, "container": {"volumeMounts": mounts}}),
            ),
            check: text(&lines),
        },
        Case {
            names: &[
                "ConfigMap should be consumable from pods in volume as non-root",
                "ConfigMap should be consumable from pods in volume with mappings as non-root",
                "Projected configMap should be consumable from pods in volume as non-root",
                "Projected configMap should be consumable from pods in volume with mappings as non-root",
                "Secrets should be consumable from pods in volume as non-root with defaultMode and fsGroup set",
                "Projected secret should be consumable from pods in volume as non-root with defaultMode and fsGroup set",
            ],
            pod: pod(
                "ordinary",
                &plain_script,
                json!({"volumes": plain_volumes, "container": {"volumeMounts": plain_mounts},
                    "securityContext": {"runAsUser": 1000, "fsGroup": 1001}}),
            ),
            check: text(&plain_lines),
        },
    ]
}

/// The files of a downward API volume, with amounts of the container `main`.
fn items() -> Value {
    let amount = |path: &str, resource: &str, divisor: &str| json!({"path": path, "resourceFieldRef": {"containerName": "main", "resource": resource, "divisor": divisor}});
    json!([
        {"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "item", "mode": 0o400, "fieldRef": {"fieldPath": "metadata.name"}},
        amount("cpu_limit", "limits.cpu", "1m"),
        amount("cpu_request", "requests.cpu", "1m"),
        amount("memory_limit", "limits.memory", "1Mi"),
        amount("memory_request", "requests.memory", "1Mi"),
        amount("cpu", "limits.cpu", "1"),
        amount("memory", "limits.memory", "1"),
    ])
}

fn facts(node: &Node) -> Vec<Case> {
    let (cpu, memory) = allocatable(node);
    let volumes = json!([
        {"name": "own", "downwardAPI": {"defaultMode": 0o440, "items": items()}},
        {"name": "projected", "projected": {"defaultMode": 0o440, "sources": [{"downwardAPI": {"items": items()}}]}},
        {"name": "combined", "projected": {"sources": [
            {"downwardAPI": {"items": [{"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"secret": {"name": "keys", "items": [{"key": "data-1", "path": "secret/one"}]}},
            {"configMap": {"name": "settings", "items": [{"key": "data-2", "path": "map/two"}]}},
        ]}},
    ]);
    let mounts = json!([
        {"name": "own", "mountPath": "/own"}, {"name": "projected", "mountPath": "/projected"},
        {"name": "combined", "mountPath": "/combined"},
        {"name": "own", "mountPath": "/sub/podname", "subPath": "podname"},
    ]);
    let script = "for v in own projected; do cd /$v; \
         for f in podname cpu_limit cpu_request memory_limit memory_request cpu memory; \
         do echo $v $f $(cat $f); done; echo $v modes $(stat -L -c %a podname item); done; \
         cd /combined; echo combined $(cat podname secret/one map/two); echo part $(cat /sub/podname)";
    let resources = json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}});
    let with = |resources: Value| json!({"volumes": volumes, "container": {"volumeMounts": mounts, "resources": resources}});
    let mut limited = vec!["combined factsvalue-1value-2".to_owned(), "part facts".to_owned()];
    let mut unlimited = Vec::new();
    for volume in ["own", "projected"] {
        for fact in [
            "podname facts",
            "cpu_limit 1250",
            "cpu_request 250",
            "memory_limit 64",
            "memory_request 32",
            "modes 440 400",
        ] {
            limited.push(format!("{volume} {fact}"));
        }
        unlimited.extend([format!("{volume} cpu {cpu}"), format!("{volume} memory {memory}")]);
    }
    let text = |lines: &[String]| says(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    vec![
        Case {
            names: &[
                "Downward API volume should provide podname only",
                "Downward API volume should set DefaultMode on files",
                "Downward API volume should set mode on item file",
                "Downward API volume should provide container's cpu limit",
                "Downward API volume should provide container's cpu request",
                "Downward API volume should provide container's memory limit",
                "Downward API volume should provide container's memory request",
                "Projected downwardAPI should provide podname only",
                "Projected downwardAPI should set DefaultMode on files",
                "Projected downwardAPI should set mode on item file",
                "Projected downwardAPI should provide container's cpu limit",
                "Projected downwardAPI should provide container's cpu request",
                "Projected downwardAPI should provide container's memory limit",
                "Projected downwardAPI should provide container's memory request",
                "Projected combined should project all components that make up the projection API [Projection]",
                "Subpath Atomic writer volumes should support subpaths with downward pod",
            ],
            pod: pod("facts", script, with(resources)),
            check: text(&limited),
        },
        Case {
            names: &[
                "Downward API volume should provide node allocatable (cpu) as default cpu limit if the limit is not set",
                "Downward API volume should provide node allocatable (memory) as default memory limit if the limit is not set",
                "Projected downwardAPI should provide node allocatable (cpu) as default cpu limit if the limit is not set",
                "Projected downwardAPI should provide node allocatable (memory) as default memory limit if the limit is not set",
            ],
            pod: pod("free", script, with(json!({}))),
            check: text(&unlimited),
        },
    ]
}

/// Scratch space on disk and in memory, of root and of another user, with files of three modes.
fn scratch() -> Vec<Case> {
    let volumes = json!([
        {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]);
    let mounts = json!([
        {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
    ]);
    let script = "for v in disk memory; do echo $v $(stat -c %a /$v); \
         for m in 644 666 777; do f=/$v/$m; echo content > $f && chmod $m $f; \
         echo $v $(stat -c %a:%u $f) $(cat $f); done; done; echo memory is $(stat -f -c %T /memory)";
    let case = |name, names, user: u32| {
        let mut lines =
            vec!["disk 777".to_owned(), "memory 1777".to_owned(), "memory is tmpfs".to_owned()];
        for volume in ["disk", "memory"] {
            let modes = ["644", "666", "777"];
            lines.extend(modes.map(|mode| format!("{volume} {mode}:{user} content")));
        }
        let more = json!({"volumes": volumes, "securityContext": {"runAsUser": user},
            "container": {"volumeMounts": mounts}});
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        Case { names, pod: pod(name, script, more), check: says(&lines) }
    };
    let mut shared = pod(
        "shared",
        "until grep -q hello /work/file; do usleep 20000; done; cat /work/file",
        json!({"volumes": [{"name": "work", "emptyDir": {}}],
            "container": {"volumeMounts": [{"name": "work", "mountPath": "/work"}]}}),
    );
    let mut writer = shared["spec"]["containers"][0].clone();
    writer["name"] = json!("writer");
    writer["command"][2] = json!("echo hello > /work/file");
    shared["spec"]["containers"].as_array_mut().unwrap().push(writer);
    shared["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "main"});
    vec![
        case(
            "scratch-root",
            &[
                "EmptyDir volumes should support (root,0644,default)",
                "EmptyDir volumes should support (root,0644,tmpfs)",
                "EmptyDir volumes should support (root,0666,default)",
                "EmptyDir volumes should support (root,0666,tmpfs)",
                "EmptyDir volumes should support (root,0777,default)",
                "EmptyDir volumes should support (root,0777,tmpfs)",
                "EmptyDir volumes volume on default medium should have the correct mode",
                "EmptyDir volumes volume on tmpfs should have the correct mode",
            ],
            0,
        ),
        case(
            "scratch-user",
            &[
                "EmptyDir volumes should support (non-root,0644,default)",
                "EmptyDir volumes should support (non-root,0644,tmpfs)",
                "EmptyDir volumes should support (non-root,0666,default)",
                "EmptyDir volumes should support (non-root,0666,tmpfs)",
                "EmptyDir volumes should support (non-root,0777,default)",
                "EmptyDir volumes should support (non-root,0777,tmpfs)",
            ],
            1001,
        ),
        Case {
            names: &["EmptyDir volumes pod should support shared volumes between containers"],
            pod: shared,
            check: says(&["hello"]),
        },
    ]
}

/// How many config maps one pod has as volumes, and how many such pods there are.
const WRAPPED: usize = 50;
const WRAPPING: [&str; 3] = ["many-a", "many-b", "many-c"];

fn wrappers() -> Vec<Case> {
    let volumes: Vec<Value> = (0..WRAPPED)
        .map(|n| json!({"name": format!("v{n}"), "configMap": {"name": format!("many-{n}")}}))
        .collect();
    let mounts: Vec<Value> = (0..WRAPPED)
        .map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/many/{n}")}))
        .collect();
    let sum: usize = (0..WRAPPED).sum();
    let script = "s=0; for f in /many/*/data-1; do s=$((s + $(cat $f))); done; echo sum $s";
    let more = json!({"volumes": volumes, "container": {"volumeMounts": mounts}});
    let mut cases: Vec<Case> = WRAPPING
        .iter()
        .map(|name| Case {
            names: &[
                "EmptyDir wrapper volumes should not cause race condition when used for configmaps",
            ],
            pod: pod(name, script, more.clone()),
            check: says(&[&format!("sum {sum}")]),
        })
        .collect();
    let both = json!({"volumes": [volume("s", "secret", None, None), volume("c", "configmap", None, None)],
        "container": {"volumeMounts": [{"name": "s", "mountPath": "/s"}, {"name": "c", "mountPath": "/c"}]}});
    cases.push(Case {
        names: &["EmptyDir wrapper volumes should not conflict"],
        pod: pod("both", "echo $(ls /s /c)", both),
        check: says(&["/c: data-1 data-2 /s: data-1 data-2"]),
    });
    cases
}

/// "ConfigMap (Secrets, Projected configMap, Projected secret) optional updates should be reflected in
/// volume", "… updates should be reflected in volume", "Downward API volume (Projected downwardAPI)
/// should update labels (annotations) on modification", as the container sees them.
fn what_is_optional_comes_changes_and_goes(node: &Node) {
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    let mut conditions = Vec::new();
    let mut mount =
        |name: &str| mounts.push(json!({"name": name, "mountPath": format!("/{name}")}));
    for kind in KINDS {
        for (object, condition) in
            [("gone", "! -e"), ("changed", "$(cat FILE)_ = after_ -a -e"), ("later", "-e")]
        {
            let name = format!("{kind}-{object}");
            volumes.push(optional(&name, kind, object));
            mount(&name);
            let file = format!("/{name}/data");
            conditions.push(format!("[ {} {file} ]", condition.replace("FILE", &file)));
        }
    }
    let fields = json!([
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
    ]);
    volumes.push(json!({"name": "own", "downwardAPI": {"items": fields}}));
    volumes.push(json!({"name": "projected", "projected": {"sources": [{"downwardAPI": {"items": fields}}]}}));
    for name in ["own", "projected"] {
        mount(name);
        conditions.push(format!("grep -q 'tier=\"after\"' /{name}/labels"));
        conditions.push(format!("grep -q 'note=\"after\"' /{name}/annotations"));
    }
    let objects = |name: &str, data: &str| {
        ["ConfigMap", "Secret"].map(|kind| {
            let field = if kind == "Secret" { "stringData" } else { "data" };
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, field: {"data": data}})
        })
    };
    super::apply(node, [objects("gone", "x"), objects("changed", "before")].concat());
    let script = format!(
        "cat /*-gone/data /*-changed/data; echo; until {}; do usleep 20000; done 2> /dev/null; echo followed",
        conditions.join(" && ")
    );
    let more = json!({"volumes": volumes, "container": {"volumeMounts": mounts},
        "metadata": {"labels": {"tier": "before"}, "annotations": {"note": "before"}}});
    super::apply(node, vec![pod("follower", &script, more)]);
    node.wait_ready("follower");
    node.wait_for("the container to see the beginning", || {
        node.kubectl(&["logs", "follower"]).contains("xxxxbefore").then_some(())
    });
    node.kubectl(&["delete", "configmap/gone", "secret/gone"]);
    super::apply(node, [objects("changed", "after"), objects("later", "x")].concat());
    node.kubectl(&["label", "--overwrite", "pod", "follower", "tier=after"]);
    node.kubectl(&["annotate", "--overwrite", "pod", "follower", "note=after"]);
    node.wait_phase("follower", "Succeeded");
    node.kubectl(&["delete", "pod", "follower"]);
}

/// A volume of the optional object `of`.
fn optional(name: &str, kind: &str, of: &str) -> Value {
    let reference = json!({"name": of, "optional": true});
    match kind {
        "configmap" => json!({"name": name, "configMap": reference}),
        "secret" => json!({"name": name, "secret": {"secretName": of, "optional": true}}),
        "projected-configmap" => {
            json!({"name": name, "projected": {"sources": [{"configMap": reference}]}})
        }
        _ => json!({"name": name, "projected": {"sources": [{"secret": reference}]}}),
    }
}
