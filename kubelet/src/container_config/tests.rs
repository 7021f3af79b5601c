//! Tests of sandbox and container descriptions.

use berth_runtime::interface::{
    ImageId, NamespaceMode, PidMode, Propagation, Protocol, SandboxConfig, Seccomp,
    SupplementalGroupsPolicy,
};
use serde_json::{Value, json};

use super::*;

fn node() -> NodeFacts {
    NodeFacts {
        cgroups: CgroupPolicy::default(),
        memory_capacity_bytes: 4 << 30,
        seccomp_root: "/var/lib/berth/seccomp".into(),
        seccomp_default: true,
        log_limits: LogLimits::default(),
        log_root: "/var/log/pods".into(),
        cluster_domain: "cluster.local".into(),
        hostname: "node-1".into(),
        allowed_unsafe_sysctls: Vec::new(),
    }
}

fn image(user: &str) -> Image {
    Image {
        id: ImageId::try_from(format!("sha256:{}", "a".repeat(64))).unwrap(),
        tags: vec![],
        digests: vec![],
        size_bytes: 1,
        user: user.into(),
        pinned: false,
    }
}

fn pod(spec: Value) -> Pod {
    let metadata = json!({"name": "web", "namespace": "ns", "uid": "u-1"});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn config_with(
    spec: Value,
    image_user: &str,
    mounts: Vec<Mount>,
) -> Result<ContainerConfig, String> {
    let pod = pod(spec);
    let demand = PodDemand::parse(&pod).unwrap();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let facts = crate::downward::Facts {
        pod: &pod,
        demand: &demand,
        host_ips: &[],
        pod_ips: &[],
        allocatable: &qos::ResourceAmounts::new(),
    };
    let environment =
        crate::environment::resolve(container, &facts, &crate::objects::Fetched::default(), &[])
            .unwrap();
    container_config(ContainerInputs {
        pod: &pod,
        container,
        demand: &demand,
        environment: &environment,
        image: &image(image_user),
        mounts,
        attempt: 2,
        node: &node(),
    })
    .map_err(|e| e.to_string())
}

fn config(spec: Value) -> Result<ContainerConfig, String> {
    config_with(spec, "", Vec::new())
}

fn secured(
    pod_level: Value,
    own: Value,
    image_user: &str,
) -> Result<berth_runtime::interface::Security, String> {
    let spec = json!({
        "securityContext": pod_level,
        "containers": [{"name": "c", "securityContext": own}],
    });
    config_with(spec, image_user, Vec::new()).map(|c| c.security)
}

#[test]
fn command_and_arguments_are_expanded() {
    let config = config(json!({"containers": [{
        "name": "c", "image": "busybox", "command": ["sh", "-c"], "args": ["echo $(A) $$(A) $(B)"],
        "workingDir": "/w", "tty": true, "stdin": true, "env": [{"name": "A", "value": "1"}],
    }]}))
    .unwrap();
    assert_eq!(config.command, ["sh", "-c"]);
    assert_eq!(config.args, ["echo 1 $(A) $(B)"]);
    assert_eq!(config.working_dir.as_deref(), Some("/w"));
    assert_eq!(config.log_path, PathBuf::from("c/2.log"));
    assert_eq!(config.labels[CONTAINER_NAME_LABEL], "c");
    assert!(config.tty && config.stdin && !config.stdin_once);
    assert_eq!(config.oom_score_adj, 1000);
}

#[test]
fn the_containers_security_context_wins() {
    let security = secured(
        json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4, 5],
               "supplementalGroupsPolicy": "Strict", "seccompProfile": {"type": "Unconfined"}}),
        json!({"runAsUser": 10, "capabilities": {"add": ["CAP_NET_ADMIN", "sys_time"], "drop": ["ALL"]},
               "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
               "seccompProfile": {"type": "RuntimeDefault"}, "procMount": "Unmasked"}),
        "",
    )
    .unwrap();
    assert_eq!(security.run_as_user, Some(10));
    assert_eq!(security.run_as_group, Some(2));
    assert_eq!(security.supplemental_groups, [3, 4, 5]);
    assert_eq!(security.supplemental_groups_policy, SupplementalGroupsPolicy::Strict);
    assert_eq!(security.add_capabilities, ["NET_ADMIN", "SYS_TIME"]);
    assert_eq!(security.drop_capabilities, ["ALL"]);
    assert!(security.no_new_privileges && security.read_only_rootfs && security.unmasked_proc);
    assert_eq!(security.seccomp, Seccomp::RuntimeDefault);
}

#[test]
fn non_root_is_verified_with_upstreams_texts() {
    let place = "(pod: \"web_ns(u-1)\", container: c)";
    let required = json!({"runAsNonRoot": true});
    for (pod_level, own, user, expected) in [
        (
            json!({}),
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            "",
            Some("container's runAsUser breaks non-root policy"),
        ),
        (
            required.clone(),
            json!({}),
            "",
            Some("container has runAsNonRoot and image will run as root"),
        ),
        (
            required.clone(),
            json!({}),
            "0:5",
            Some("container has runAsNonRoot and image will run as root"),
        ),
        (
            required.clone(),
            json!({}),
            "app",
            Some(
                "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root",
            ),
        ),
        (
            required.clone(),
            json!({}),
            "-1",
            Some("container has runAsNonRoot and image has an invalid user id (-1)"),
        ),
        (required.clone(), json!({}), "1000:0", None),
        (required.clone(), json!({"runAsUser": 7}), "0", None),
        (required, json!({"runAsNonRoot": false}), "0", None),
    ] {
        let outcome = secured(pod_level, own, user).err();
        assert_eq!(outcome, expected.map(|text| format!("{text} {place}")));
    }
}

#[test]
fn ids_out_of_range_are_refused() {
    for id in [-1i64, 1 << 31, i64::MAX] {
        let error = secured(json!({"fsGroup": id}), json!({}), "").unwrap_err();
        assert!(error.starts_with("invalid fsGroup"), "{error}");
    }
}

#[test]
fn seccomp_never_falls_back_to_less() {
    let with = |profile: Value| {
        secured(json!({}), json!({"seccompProfile": profile}), "").map(|s| s.seccomp)
    };
    let localhost = |name: Value| with(json!({"type": "Localhost", "localhostProfile": name}));
    assert_eq!(secured(json!({}), json!({}), "").unwrap().seccomp, Seccomp::RuntimeDefault);
    assert_eq!(
        localhost(json!("a/b.json")),
        Ok(Seccomp::Localhost("/var/lib/berth/seccomp/a/b.json".into()))
    );
    for name in
        [json!(null), json!(""), json!("../x"), json!("/x"), json!("a/../../x"), json!("./x")]
    {
        assert!(localhost(name.clone()).is_err(), "{name}");
    }
    assert!(with(json!({"type": "localhost"})).is_err());
}

#[test]
fn a_missing_profile_stops_the_container() {
    let spec = json!({"containers": [{"name": "c", "securityContext":
        {"seccompProfile": {"type": "Localhost", "localhostProfile": "none.json"}}}]});
    let config = config(spec).unwrap();
    let error = check_seccomp_profile(&config).unwrap_err().to_string();
    assert!(error.contains("cannot load seccomp profile"), "{error}");
}

#[test]
fn names_that_leave_their_directory_are_refused() {
    for name in ["../x", "a/b", "", ".", "..", "a\0b", ".hidden"] {
        assert!(config(json!({"containers": [{"name": name}]})).is_err(), "{name:?}");
    }
    let mut pod = pod(json!({"containers": []}));
    pod.metadata.uid = Some("../../etc".into());
    assert_eq!(pod_identity(&pod).unwrap_err().to_string(), "invalid pod UID \"../../etc\"");
}

fn sandbox(spec: Value) -> Result<SandboxConfig, String> {
    let pod = pod(spec);
    let demand = PodDemand::parse(&pod).unwrap();
    sandbox_config(&pod, &demand, 1, &node()).map_err(|e| e.to_string())
}

#[test]
fn a_plain_pod_has_its_own_namespaces() {
    let sandbox = sandbox(json!({"containers": [{"name": "c"}]})).unwrap();
    assert_eq!(sandbox.hostname, "web");
    assert_eq!(sandbox.log_directory, PathBuf::from("/var/log/pods/ns_web_u-1"));
    assert_eq!(sandbox.cgroup_path, PathBuf::from("kubepods/besteffort/podu-1"));
    assert_eq!(sandbox.network, NamespaceMode::Pod);
    assert_eq!(sandbox.pid, PidMode::Container);
    assert_eq!(sandbox.attempt, 1);
}

#[test]
fn host_namespaces_are_passed_on() {
    let host = sandbox(json!({
        "hostNetwork": true, "hostIPC": true, "hostPID": true, "shareProcessNamespace": true,
        "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}],
    }))
    .unwrap();
    assert_eq!(host.hostname, "node-1");
    assert_eq!((host.network, host.ipc), (NamespaceMode::Host, NamespaceMode::Host));
    assert_eq!(host.pid, PidMode::Host);
    assert!(host.port_mappings.is_empty());
    let shared = sandbox(json!({"shareProcessNamespace": true, "containers": []})).unwrap();
    assert_eq!(shared.pid, PidMode::Pod);
}

#[test]
fn host_ports_are_collected() {
    let ports = json!([
        {"containerPort": 80},
        {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "127.0.0.1"},
        {"containerPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"},
    ]);
    let sandbox = sandbox(json!({"containers": [{"name": "c", "ports": ports}]})).unwrap();
    let mapped: Vec<_> = sandbox
        .port_mappings
        .iter()
        .map(|m| (m.host_ip.map(|ip| ip.to_string()), m.host_port, m.container_port, m.protocol))
        .collect();
    assert_eq!(
        mapped,
        [(Some("127.0.0.1".to_owned()), 5353, 53, Protocol::Udp), (None, 8080, 80, Protocol::Tcp),]
    );
}

#[test]
fn bad_ports_are_refused() {
    for port in [
        json!({"containerPort": 80, "hostPort": 70000}),
        json!({"containerPort": 0, "hostPort": 80}),
        json!({"containerPort": 80, "hostPort": 80, "protocol": "ICMP"}),
        json!({"containerPort": 80, "hostPort": 80, "hostIP": "x"}),
    ] {
        assert!(sandbox(json!({"containers": [{"name": "c", "ports": [port]}]})).is_err());
    }
}

fn mounts(container: Value) -> Result<Vec<Mount>, String> {
    let pod = pod(json!({"containers": [container]}));
    let demand = PodDemand::parse(&pod).unwrap();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let facts = crate::downward::Facts {
        pod: &pod,
        demand: &demand,
        host_ips: &[],
        pod_ips: &[],
        allocatable: &qos::ResourceAmounts::new(),
    };
    let fetched = crate::objects::Fetched::default();
    let environment = crate::environment::resolve(container, &facts, &fetched, &[]).unwrap();
    let volume = |path: &str, read_only| MountedVolume::path(path.into(), read_only);
    let volumes = BTreeMap::from([
        ("data".to_owned(), volume("/pods/data", false)),
        ("conf".to_owned(), volume("/pods/conf", true)),
    ]);
    container_mounts(MountInputs {
        container,
        volumes: &volumes,
        environment: &environment,
        files: &PodFilePaths {
            hosts: Some("/pods/etc-hosts".into()),
            termination_log: Some("/pods/term".into()),
            ..PodFilePaths::default()
        },
    })
    .map_err(|e| e.to_string())
}

#[test]
fn mounts_come_parents_first_with_the_kubelets_files() {
    let mounts = mounts(json!({"name": "c",
        "env": [{"name": "POD", "value": "p1"}],
        "terminationMessagePath": "/tmp/last",
        "volumeMounts": [
            {"name": "data", "mountPath": "/a/b/c", "subPathExpr": "$(POD)/x", "mountPropagation": "HostToContainer"},
            {"name": "conf", "mountPath": "/a"},
            {"name": "data", "mountPath": "rel", "readOnly": true, "recursiveReadOnly": "IfPossible"},
        ]}))
    .unwrap();
    let paths: Vec<_> = mounts.iter().map(|m| m.container_path.to_str().unwrap()).collect();
    assert_eq!(paths, ["/a", "/rel", "/etc/hosts", "/tmp/last", "/a/b/c"]);
    assert!(mounts[0].read_only, "a config map is read-only whatever the mount says");
    assert!(mounts[1].read_only && mounts[1].recursive_read_only);
    assert_eq!(mounts[4].sub_path, Some("p1/x".into()));
    assert_eq!(mounts[4].propagation, Propagation::HostToContainer);
}

#[test]
fn a_volume_over_etc_hosts_replaces_the_kubelets_file() {
    let mounts = mounts(json!({"name": "c", "volumeMounts": [
        {"name": "data", "mountPath": "/etc/hosts", "subPath": "./hosts/"},
    ]}))
    .unwrap();
    let hosts: Vec<_> = mounts.iter().filter(|m| m.container_path.ends_with("hosts")).collect();
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].sub_path, Some("hosts".into()));
}

#[test]
fn bad_mounts_are_refused_with_upstreams_texts() {
    let with = |mount: Value| mounts(json!({"name": "c", "volumeMounts": [mount]})).unwrap_err();
    for (mount, expected) in [
        (
            json!({"name": "none", "mountPath": "/a"}),
            "cannot find volume \"none\" to mount into container \"c\"",
        ),
        (
            json!({"name": "data", "mountPath": "/a", "subPath": "/etc"}),
            "error SubPath `/etc` must not be an absolute path",
        ),
        (
            json!({"name": "data", "mountPath": "/a", "subPath": "a/../../b"}),
            "unable to provision SubPath `a/../../b`: must not contain '..'",
        ),
        (
            json!({"name": "data", "mountPath": "/a", "subPathExpr": "$(NO)"}),
            "missing value for \"NO\"",
        ),
        (
            json!({"name": "data", "mountPath": "/a", "mountPropagation": "Shared"}),
            "invalid MountPropagation mode: \"Shared\"",
        ),
    ] {
        assert_eq!(with(mount), expected);
    }
    let not_read_only = json!({"name": "data", "mountPath": "/a", "recursiveReadOnly": "Enabled"});
    assert!(with(not_read_only).contains("it is not read-only"));
}
