//! What containers are told and what they may: variables, commands, identities, termination messages,
//! hosts files, sysctls.

use serde_json::{Value, json};

use super::{Case, pod, run, said, says};
use crate::image;
use crate::node::{NODE_IP, Node, told};

/// Prints what it is told to: what is the image's own and what the pod says can be told apart.
const ECHO: &str = "berth.local/echo:1";

#[test]
fn pods_are_told_what_the_conformance_suite_asks() {
    let echo = image::echo(ECHO);
    let node = Node::start_with(&["--import", echo.to_str().unwrap()]);
    let data = json!({"data_1": "value-1", "data_2": "value-2"});
    let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data});
    let keys = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": data});
    super::apply(&node, vec![settings, keys]);
    let mut cases = variables();
    cases.extend(commands());
    cases.extend(facts(&node));
    cases.extend(expansions());
    cases.extend(identities());
    cases.extend(messages());
    cases.extend(hosts());
    run(&node, cases);
    sub_paths_that_lead_nowhere_keep_a_pod_waiting(&node);
    sysctls_without_a_name_are_refused(&node);
    logs_are_cut_as_asked(&node);
    node.finish();
}

fn variables() -> Vec<Case> {
    let of = |source: &str, object: &str| json!({"valueFrom": {source: {"name": object, "key": "data_1"}}});
    let mut map = of("configMapKeyRef", "settings");
    map["name"] = json!("MAP");
    let mut secret = of("secretKeyRef", "keys");
    secret["name"] = json!("SECRET");
    let (map_ref, secret_ref) = (json!({"name": "settings"}), json!({"name": "keys"}));
    let from = json!([
        {"configMapRef": map_ref}, {"prefix": "p_", "configMapRef": map_ref},
        {"prefix": "p-", "configMapRef": map_ref}, {"prefix": "1.", "configMapRef": map_ref},
        {"prefix": "s_", "secretRef": secret_ref}, {"prefix": "s-", "secretRef": secret_ref},
        {"prefix": "2.", "secretRef": secret_ref},
    ]);
    vec![
        Case {
            names: &[
                "ConfigMap should be consumable via environment variable",
                "Secrets should be consumable from pods in env vars",
            ],
            pod: pod("keys", "echo $MAP $SECRET", json!({"container": {"env": [map, secret]}})),
            check: says(&["value-1 value-1"]),
        },
        Case {
            names: &[
                "ConfigMap should be consumable via the environment",
                "ConfigMap should be consumable as environment variable names with various prefixes",
                "Secrets should be consumable via the environment",
                "Secrets should be consumable as environment variable names variable names with various prefixes",
            ],
            pod: pod("all", "", json!({"container": {"command": ["env"], "envFrom": from}})),
            check: says(&[
                "data_1=value-1",
                "data_2=value-2",
                "p_data_1=value-1",
                "p-data_2=value-2",
                "1.data_1=value-1",
                "s_data_1=value-1",
                "s-data_2=value-2",
                "2.data_1=value-1",
            ]),
        },
    ]
}

fn commands() -> Vec<Case> {
    let echo = |name, names, own: Value, line: &str| {
        let mut container = json!({"image": ECHO, "command": null});
        for (field, value) in own.as_object().into_iter().flatten() {
            container[field] = value.clone();
        }
        let pod = pod(name, "", json!({"container": container}));
        Case { names, pod, check: says(&[line]) }
    };
    vec![
        echo(
            "defaults",
            &["Containers should use the image defaults if command and args are blank"],
            json!({}),
            "entry default arguments",
        ),
        echo(
            "arguments",
            &[
                "Containers should be able to override the image's default arguments (container cmd)",
            ],
            json!({"args": ["override", "arguments"]}),
            "entry override arguments",
        ),
        echo(
            "command",
            &[
                "Containers should be able to override the image's default command (container entrypoint)",
            ],
            json!({"command": ["/bin/busybox", "echo", "mine"]}),
            "mine",
        ),
        echo(
            "both",
            &["Containers should be able to override the image's default command and arguments"],
            json!({"command": ["/bin/busybox", "echo", "mine"], "args": ["override", "arguments"]}),
            "mine override arguments",
        ),
    ]
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn amount(name: &str, resource: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}})
}

/// What of the node its pods may use, as `cpu` (whole ones) and `memory` (bytes).
pub(super) fn allocatable(node: &Node) -> (u64, u64) {
    let found = node.get("node", "node-1")["status"]["allocatable"].clone();
    let cpu = found["cpu"].as_str().unwrap();
    let cpu = match cpu.strip_suffix('m') {
        Some(millis) => millis.parse::<u64>().unwrap().div_ceil(1000),
        None => cpu.parse().unwrap(),
    };
    let memory = found["memory"].as_str().unwrap();
    let memory = match memory.strip_suffix("Ki") {
        Some(kibibytes) => kibibytes.parse::<u64>().unwrap() * 1024,
        None => memory.parse().unwrap(),
    };
    (cpu, memory)
}

fn facts(node: &Node) -> Vec<Case> {
    let (cpu, memory) = allocatable(node);
    let limits = json!([
        amount("CPU_LIMIT", "limits.cpu"),
        amount("MEMORY_LIMIT", "limits.memory"),
        amount("CPU_REQUEST", "requests.cpu"),
        amount("MEMORY_REQUEST", "requests.memory"),
    ]);
    let resources = json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}});
    let identity = json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
        field("POD_IP", "status.podIP"),
        field("HOST_IP", "status.hostIP"),
        field("HOST_IPS", "status.hostIPs"),
    ]);
    let env = |env: Value, resources: Value| json!({"container": {"command": ["env"], "env": env, "resources": resources}});
    vec![
        Case {
            names: &[
                "Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars",
            ],
            pod: pod("amounts", "", env(limits.clone(), resources)),
            check: says(&[
                "CPU_LIMIT=2",
                "MEMORY_LIMIT=67108864",
                "CPU_REQUEST=1",
                "MEMORY_REQUEST=33554432",
            ]),
        },
        Case {
            names: &["Downward API should provide default limits.cpu/memory from node allocatable"],
            pod: pod("unlimited", "", env(limits, json!({}))),
            check: says(&[&format!("CPU_LIMIT={cpu}"), &format!("MEMORY_LIMIT={memory}")]),
        },
        Case {
            names: &[
                "Downward API should provide host IP as an env var",
                "Downward API should provide hostIPs as an env var",
                "Downward API should provide pod UID as env vars",
                "Downward API should provide pod name, namespace and IP address as env vars",
                "Pods should get a host IP",
            ],
            pod: pod("who", "", env(identity, json!({}))),
            check: Box::new(|pod, log| {
                let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap();
                let lines = [
                    "POD_NAME=who".to_owned(),
                    "POD_NAMESPACE=default".to_owned(),
                    format!("POD_UID={}", text("/metadata/uid")),
                    format!("POD_IP={}", text("/status/podIP")),
                    format!("HOST_IP={NODE_IP}"),
                    format!("HOST_IPS={}", text("/status/hostIPs/0/ip")),
                ];
                said(pod, log, &lines)
            }),
        },
    ]
}

fn expansions() -> Vec<Case> {
    let env = json!([
        {"name": "FOO", "value": "foo-value"}, {"name": "BAR", "value": "bar-value"},
        {"name": "FOOBAR", "value": "$(FOO);;$(BAR)"},
    ]);
    let work = json!([{"name": "work", "emptyDir": {}}]);
    let mounts = json!([
        {"name": "work", "mountPath": "/part", "subPathExpr": "$(POD_NAME)/deep"},
        {"name": "work", "mountPath": "/whole"},
    ]);
    let name = json!([field("POD_NAME", "metadata.name")]);
    vec![
        Case {
            names: &[
                "Variable Expansion should allow composing env vars into new env vars",
                "Variable Expansion should allow substituting values in a container's args",
                "Variable Expansion should allow substituting values in a container's command",
            ],
            pod: pod(
                "composed",
                "",
                json!({"container": {"command": ["sh", "-c", "echo $(FOO) $FOOBAR \"$0\""], "args": ["$(BAR)"], "env": env}}),
            ),
            check: says(&["foo-value foo-value;;bar-value bar-value"]),
        },
        Case {
            names: &[
                "Variable Expansion should allow substituting values in a volume subpath",
                "Variable Expansion should succeed in writing subpaths in container",
            ],
            pod: pod(
                "below",
                "echo written > /part/file; cat /whole/below/deep/file",
                json!({"volumes": work, "container": {"volumeMounts": mounts, "env": name}}),
            ),
            check: says(&["written"]),
        },
    ]
}

fn identities() -> Vec<Case> {
    let context = |security: Value| json!({"container": {"securityContext": security}});
    vec![
        Case {
            names: &[
                "Security Context When creating a container with runAsUser should run the container with uid 65534",
            ],
            pod: pod("nobody", "id -u", context(json!({"runAsUser": 65534}))),
            check: says(&["65534"]),
        },
        Case {
            names: &[
                "Security Context should support container.SecurityContext.RunAsUser And container.SecurityContext.RunAsGroup",
            ],
            pod: pod(
                "container-ids",
                "id -u; id -g",
                context(json!({"runAsUser": 1001, "runAsGroup": 2002})),
            ),
            check: says(&["1001", "2002"]),
        },
        Case {
            names: &[
                "Security Context should support pod.Spec.SecurityContext.RunAsUser And pod.Spec.SecurityContext.RunAsGroup",
            ],
            pod: pod(
                "pod-ids",
                "id -u; id -g",
                json!({"securityContext": {"runAsUser": 1001, "runAsGroup": 2002}}),
            ),
            check: says(&["1001", "2002"]),
        },
        Case {
            names: &[
                "Security Context When creating a pod with privileged should run the container as unprivileged when false",
            ],
            pod: pod(
                "unprivileged",
                "ip link add dummy0 type dummy || echo refused",
                context(json!({"privileged": false})),
            ),
            check: says(&["refused"]),
        },
        Case {
            names: &[
                "Security Context When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false",
            ],
            pod: pod(
                "writable",
                "touch /file && echo written",
                context(json!({"readOnlyRootFilesystem": false})),
            ),
            check: says(&["written"]),
        },
        Case {
            names: &[
                "Kubelet when scheduling a read only busybox container should not write to root filesystem",
            ],
            pod: pod(
                "read-only",
                "echo test > /file || echo refused",
                context(json!({"readOnlyRootFilesystem": true})),
            ),
            check: says(&["refused"]),
        },
        Case {
            names: &[
                "Security Context when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false",
            ],
            pod: pod(
                "no-escalation",
                "grep NoNewPrivs /proc/self/status",
                context(json!({"runAsUser": 1000, "allowPrivilegeEscalation": false})),
            ),
            check: says(&["NoNewPrivs:\t1"]),
        },
        Case {
            names: &["Sysctls should support sysctls [Environment:NotInUserNS]"],
            pod: pod(
                "sysctl",
                "cat /proc/sys/kernel/shm_rmid_forced",
                json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}}),
            ),
            check: says(&["1"]),
        },
    ]
}

fn messages() -> Vec<Case> {
    let fallback = || json!({"container": {"terminationMessagePolicy": "FallbackToLogsOnError"}});
    let message = |wanted: &'static str| -> super::Check {
        Box::new(move |pod, _| {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            match ended["message"].as_str().unwrap_or_default() == wanted {
                true => Vec::new(),
                false => vec![format!("the message is not {wanted:?}: {ended}")],
            }
        })
    };
    vec![
        Case {
            names: &[
                "Container Runtime blackbox test on terminated container should report termination message as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set",
            ],
            pod: pod("said-well", "echo DONE", fallback()),
            check: message(""),
        },
        Case {
            names: &[
                "Container Runtime blackbox test on terminated container should report termination message from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set",
            ],
            pod: pod("wrote-well", "echo -n OK > /dev/termination-log", fallback()),
            check: message("OK"),
        },
        Case {
            names: &[
                "Container Runtime blackbox test on terminated container should report termination message from log output if TerminationMessagePolicy FallbackToLogsOnError is set",
            ],
            pod: pod("said-badly", "echo -n DONE; exit 1", fallback()),
            check: message("DONE"),
        },
        Case {
            names: &[
                "Container Runtime blackbox test on terminated container should report termination message if TerminationMessagePath is set as non-root user and at a non-default path",
            ],
            pod: pod(
                "wrote-elsewhere",
                "echo -n DONE > /dev/termination-custom-log",
                json!({"container": {"terminationMessagePath": "/dev/termination-custom-log",
                    "securityContext": {"runAsUser": 1000}}}),
            ),
            check: message("DONE"),
        },
        Case {
            names: &[
                "Kubelet when scheduling a busybox command that always fails in a pod should have an terminated reason",
            ],
            pod: pod("false", "", json!({"container": {"command": ["/bin/false"]}})),
            check: Box::new(|pod, _| {
                let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
                match ended["reason"] == "Error" && ended["exitCode"] == 1 {
                    true => Vec::new(),
                    false => vec![ended.to_string()],
                }
            }),
        },
        Case {
            names: &[
                "Kubelet when scheduling a busybox command in a pod should print the output to logs",
            ],
            pod: pod("hello", "echo Hello World; sleep 0", json!({})),
            check: says(&["Hello World"]),
        },
    ]
}

fn hosts() -> Vec<Case> {
    vec![
        Case {
            names: &[
                "Kubelet when scheduling an agnhost Pod with hostAliases should write entries to /etc/hosts",
            ],
            pod: pod(
                "aliases",
                "cat /etc/hosts",
                json!({"hostAliases": [{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}]}),
            ),
            check: says(&["# Kubernetes-managed hosts file.", "123.45.67.89\tfoo\tbar"]),
        },
        Case {
            names: &["KubeletManagedEtcHosts should test kubelet managed /etc/hosts file"],
            pod: pod(
                "own-hosts",
                "head -n 1 /etc/hosts",
                json!({"volumes": [{"name": "own", "configMap": {"name": "settings"}}],
                    "container": {"volumeMounts": [{"name": "own", "mountPath": "/etc/hosts", "subPath": "data_1"}]}}),
            ),
            check: says(&["value-1"]),
        },
        Case {
            names: &["KubeletManagedEtcHosts should test kubelet managed /etc/hosts file"],
            pod: pod(
                "host-hosts",
                "grep -c 'Kubernetes-managed hosts file\\.' /etc/hosts; echo end",
                json!({"hostNetwork": true}),
            ),
            check: says(&["0", "end"]),
        },
    ]
}

/// The reason for which the pod's container waits.
fn waits_for(pod: &Value) -> &str {
    let status = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
    status.as_str().unwrap_or_default()
}

/// "Variable Expansion should fail substituting values in a volume subpath with absolute path", "…
/// with backticks", "… should verify that a failing subpath expansion can be modified during the
/// lifecycle of a container".
fn sub_paths_that_lead_nowhere_keep_a_pod_waiting(node: &Node) {
    let with = |name: &str, env: Value| {
        pod(
            name,
            "echo up",
            json!({"volumes": [{"name": "work", "emptyDir": {}}],
                "container": {"env": env, "volumeMounts": [{"name": "work", "mountPath": "/work", "subPathExpr": "$(PART)"}]}}),
        )
    };
    let value = |text: &str| json!([{"name": "PART", "value": text}]);
    let mended = with("mended", json!([field("PART", "metadata.annotations['part']")]));
    let mut mended = mended;
    mended["metadata"]["annotations"] = json!({"part": "/absolute"});
    super::apply(node, vec![with("absolute", value("/tmp")), with("upwards", value("..")), mended]);
    for name in ["absolute", "upwards", "mended"] {
        let reason = "CreateContainerConfigError";
        node.wait_pod(name, "refused its sub-path", |pod| waits_for(pod) == reason);
    }
    node.kubectl(&["annotate", "--overwrite", "pod", "mended", "part=relative"]);
    node.wait_phase("mended", "Succeeded");
    node.kubectl(&["delete", "pod", "--all"]);
}

/// "Sysctls should reject invalid sysctls".
fn sysctls_without_a_name_are_refused(node: &Node) {
    let names = ["foo-", "kernel.shmmax", "safe-and-unsafe", "bar.."];
    let sysctls: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
    let pod = pod("sysctl", "true", json!({"securityContext": {"sysctls": sysctls}}));
    let refused = told(&node.try_apply(&pod.to_string()));
    for (index, name) in [(0, "foo-"), (3, "bar..")] {
        let cause = format!("spec.securityContext.sysctls[{index}].name: Invalid value: {name:?}");
        assert!(refused.contains(&cause), "{cause}: {refused}");
    }
    assert!(!refused.contains("kernel.shmmax"), "{refused}");
}

/// The options of the log API; none has a name in the suite.
fn logs_are_cut_as_asked(node: &Node) {
    let script = "echo one; sleep 1.1; echo two; echo three; echo bad >&2; echo -n four";
    super::apply(node, vec![pod("spoken", script, json!({}))]);
    node.wait_phase("spoken", "Succeeded");
    let log = |query: &str| {
        let path = format!("/api/v1/namespaces/default/pods/spoken/log?{query}");
        node.kubectl(&["get", "--raw", &path])
    };
    assert_eq!(log("stream=Stdout"), "one\ntwo\nthree\nfour");
    assert_eq!(log("stream=Stderr"), "bad\n");
    assert_eq!(log("stream=Stdout&tailLines=2"), "three\nfour");
    assert_eq!(log("tailLines=0"), "");
    assert_eq!(log("limitBytes=6"), "one\ntw");
    let stamped = log("timestamps=true&tailLines=9");
    let stamps: Vec<&str> = stamped.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(stamps.len(), 5, "{stamped}");
    let since = stamps[1];
    let later = log(&format!("stream=Stdout&sinceTime={since}"));
    assert_eq!(later, "two\nthree\nfour", "since {since}");
    for wrong in
        ["tailLines=-1", "sinceSeconds=0", "limitBytes=0", "sinceTime=yesterday", "stream=Both"]
    {
        let path = format!("/api/v1/namespaces/default/pods/spoken/log?{wrong}");
        assert!(!node.try_kubectl(&["get", "--raw", &path]).status.success(), "{wrong}");
    }
    node.kubectl(&["delete", "pod", "spoken"]);
}
