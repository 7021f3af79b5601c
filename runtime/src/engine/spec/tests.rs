//! The specification as a table: configuration in, specification out.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::interface::{ImageId, LogLimits, PidMode, PodIdentity, Resources, Security};

const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(in crate::engine) fn container() -> ContainerConfig {
    ContainerConfig {
        name: "c".into(),
        attempt: 0,
        image: ImageId::try_from(HEX.to_owned()).unwrap(),
        image_reference: "r/a:1".into(),
        command: vec![],
        args: vec![],
        env: vec![],
        working_dir: None,
        mounts: vec![],
        log_path: "c/0.log".into(),
        log_limits: LogLimits::default(),
        resources: Resources::default(),
        oom_score_adj: 0,
        security: Security::default(),
        tty: false,
        stdin: false,
        stdin_once: false,
        pid_target: None,
        labels: BTreeMap::new(),
    }
}

fn sandbox() -> SandboxConfig {
    SandboxConfig {
        users: NamespaceMode::Host,
        pod: PodIdentity { namespace: "default".into(), name: "p".into(), uid: "u".into() },
        attempt: 0,
        hostname: "host-of-pod".into(),
        log_directory: "/var/log/pods/x".into(),
        cgroup_path: "kubepods/podu".into(),
        resources: Resources::default(),
        network: NamespaceMode::Pod,
        ipc: NamespaceMode::Pod,
        pid: PidMode::Container,
        sysctls: BTreeMap::new(),
        port_mappings: vec![],
        labels: BTreeMap::new(),
        runtime_handler: String::new(),
    }
}

fn image(json: &str) -> ImageConfig {
    let body = format!(r#"{{"rootfs":{{"type":"layers"}},"config":{json}}}"#);
    ImageConfig::parse(body.as_bytes()).unwrap()
}

fn try_planned(
    config: &ContainerConfig,
    json: &str,
    mounts: &[PreparedMount],
) -> Result<Planned, RuntimeError> {
    planned_in(&sandbox(), None, (config, json, mounts))
}

fn planned_in(
    sandbox: &SandboxConfig,
    user_namespace: Option<UserNamespace>,
    (config, json, mounts): (&ContainerConfig, &str, &[PreparedMount]),
) -> Result<Planned, RuntimeError> {
    let names = ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"];
    let host = HostFacts {
        capabilities: names.iter().map(|n| capabilities::parse(n).unwrap()).collect(),
        devices: vec![LinuxDevice::default()],
        controllers: [Controller::Memory].into(),
    };
    plan(Input {
        config,
        sandbox,
        image: image(json),
        mounts,
        files: &SandboxFiles {
            shm: "/run/s/shm".into(),
            hostname: "/run/s/hostname".into(),
            resolv_conf: "/run/s/resolv.conf".into(),
        },
        host: &host,
        local_seccomp: None,
        app_armor: None,
        labels: None,
        user_namespace,
    })
}

fn planned(config: &ContainerConfig, json: &str) -> Planned {
    try_planned(config, json, &[]).unwrap()
}

fn arguments(command: &[&str], args: &[&str], json: &str) -> Vec<String> {
    let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
    let config = ContainerConfig { command: owned(command), args: owned(args), ..container() };
    let spec = planned(&config, json).spec;
    spec.process().clone().unwrap().args().clone().unwrap()
}

#[test]
fn command_and_args_replace_entrypoint_and_cmd_as_kubernetes_says() {
    let json = r#"{"Entrypoint":["e"],"Cmd":["c"]}"#;
    assert_eq!(arguments(&[], &[], json), ["e", "c"]);
    assert_eq!(arguments(&["x"], &[], json), ["x"]);
    assert_eq!(arguments(&[], &["y"], json), ["e", "y"]);
    assert_eq!(arguments(&["x"], &["y"], json), ["x", "y"]);
    let error = try_planned(&container(), "{}", &[]).unwrap_err();
    assert_eq!(error.to_string(), "no command specified");
}

#[test]
fn the_pods_environment_wins_over_the_images() {
    let config = ContainerConfig {
        env: vec![("A".into(), "pod".into()), ("B".into(), "x=y".into())],
        tty: true,
        ..container()
    };
    let json = r#"{"Cmd":["c"],"Env":["A=image","PATH=/p","bare","=x"]}"#;
    let spec = planned(&config, json).spec;
    let env = spec.process().clone().unwrap().env().clone().unwrap();
    assert_eq!(env, ["PATH=/p", "TERM=xterm", "HOSTNAME=host-of-pod", "A=pod", "B=x=y"]);
}

#[test]
fn an_images_bad_words_fail_the_container_not_the_host() {
    for json in [
        r#"{"Cmd":["c"],"WorkingDir":"relative"}"#,
        r#"{"Cmd":["a\u0000b"]}"#,
        r#"{"Cmd":["c"],"User":"a\nroot"}"#,
        r#"{"Cmd":["c"],"Env":["A=\u0000"]}"#,
    ] {
        let error = try_planned(&container(), json, &[]).unwrap_err();
        assert!(matches!(error, RuntimeError::Create(_)), "{json}");
    }
}

#[test]
fn an_ordinary_container_is_confined() {
    let spec = planned(&container(), r#"{"Cmd":["c"]}"#).spec;
    let linux = spec.linux().clone().unwrap();
    assert_eq!(linux.masked_paths().as_ref().unwrap().len(), MASKED.len());
    assert!(linux.seccomp().is_some() && linux.devices().is_none());
    let process = spec.process().clone().unwrap();
    let sets = process.capabilities().clone().unwrap();
    assert_eq!(sets.bounding().as_ref().unwrap().len(), 2);
    assert!(sets.inheritable().as_ref().unwrap().is_empty());
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    assert!(rules.len() == 1 && !rules[0].allow());
    let sys = spec.mounts().clone().unwrap();
    let sys = sys.iter().find(|m| m.destination() == Path::new("/sys")).unwrap();
    assert!(sys.options().as_ref().unwrap().contains(&"ro".to_owned()));
}

#[test]
fn a_privileged_container_has_everything() {
    let config = ContainerConfig {
        security: Security { privileged: true, ..Security::default() },
        ..container()
    };
    let spec = planned(&config, r#"{"Cmd":["c"]}"#).spec;
    let linux = spec.linux().clone().unwrap();
    assert!(linux.masked_paths().is_none() && linux.readonly_paths().is_none());
    assert!(linux.seccomp().is_none());
    assert_eq!(linux.devices().as_ref().unwrap().len(), 1);
    let process = spec.process().clone().unwrap();
    let sets = process.capabilities().clone().unwrap();
    assert_eq!(sets.effective().as_ref().unwrap().len(), 3);
}

#[test]
fn limits_are_named_only_where_the_controller_is_there() {
    let config = ContainerConfig {
        resources: Resources {
            memory_limit_bytes: Some(5),
            pids_limit: Some(6),
            ..Resources::default()
        },
        ..container()
    };
    let linux = planned(&config, r#"{"Cmd":["c"]}"#).spec.linux().clone().unwrap();
    let unified = linux.resources().clone().unwrap().unified().clone().unwrap();
    assert_eq!(unified, HashMap::from([("memory.max".into(), "5".into())]));
}

#[test]
fn a_volume_replaces_a_standard_mount_and_carries_its_options() {
    let volume = PreparedMount {
        source: "/v".into(),
        container_path: "/dev/shm/".into(),
        content: Content::Files,
        read_only: true,
        recursive_read_only: false,
        propagation: Propagation::HostToContainer,
    };
    let spec =
        try_planned(&container(), r#"{"Cmd":["c"]}"#, std::slice::from_ref(&volume)).unwrap().spec;
    let mounts = spec.mounts().clone().unwrap();
    let at_shm: Vec<_> =
        mounts.iter().filter(|m| m.destination() == Path::new("/dev/shm")).collect();
    assert_eq!(at_shm.len(), 1);
    assert_eq!(at_shm[0].options().as_ref().unwrap(), &["rbind", "rslave", "ro"]);
    assert_eq!(spec.linux().clone().unwrap().rootfs_propagation(), &Some("rslave".to_owned()));
    let root = PreparedMount { container_path: "/".into(), ..volume };
    assert!(try_planned(&container(), r#"{"Cmd":["c"]}"#, &[root]).is_err());
}

#[test]
fn the_pods_user_wins_over_the_images() {
    let json = r#"{"Cmd":["c"],"User":"www:web"}"#;
    assert_eq!(planned(&container(), json).user.user, "www:web");
    let config = ContainerConfig {
        security: Security { run_as_user: Some(0), run_as_group: Some(7), ..Security::default() },
        ..container()
    };
    let user = planned(&config, json).user;
    assert_eq!((user.user.as_str(), user.group), ("0", Some(7)));
}

#[test]
fn in_a_user_namespace_what_is_bound_is_mapped_and_ids_beyond_it_are_refused() {
    let sandbox = SandboxConfig { users: NamespaceMode::Pod, ..sandbox() };
    let user = || {
        let ids = UserIds { first: 131_072, count: 65_536 };
        Some(UserNamespace { path: "/run/s/ns/user".into(), ids })
    };
    let volume = PreparedMount {
        source: "/v".into(),
        container_path: "/v".into(),
        content: Content::Files,
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
    };
    let image = PreparedMount {
        source: "/i".into(),
        container_path: "/i".into(),
        content: Content::Image,
        read_only: true,
        ..volume.clone()
    };
    let json = r#"{"Cmd":["c"]}"#;
    let volumes = [volume, image];
    let spec = planned_in(&sandbox, user(), (&container(), json, &volumes)).unwrap().spec;
    let linux = spec.linux().clone().unwrap();
    let joined = linux.namespaces().clone().unwrap();
    let joined = joined.iter().find(|n| n.typ() == LinuxNamespaceType::User).unwrap();
    assert_eq!(joined.path().as_deref(), Some(Path::new("/run/s/ns/user")));
    let mapping = linux.gid_mappings().clone().unwrap();
    assert_eq!((mapping[0].host_id(), mapping[0].size()), (131_072, 65_536));
    let mapped: Vec<_> = spec
        .mounts()
        .iter()
        .flatten()
        .filter(|m| m.options().iter().flatten().any(|option| option == "idmap"))
        .map(|m| m.destination().display().to_string())
        .collect();
    assert_eq!(mapped, ["/etc/hostname", "/etc/resolv.conf", "/v"]);
    let config = ContainerConfig {
        security: Security { run_as_user: Some(65_536), ..Security::default() },
        ..container()
    };
    let error = planned_in(&sandbox, user(), (&config, json, &[])).unwrap_err();
    assert!(error.to_string().contains("runAsUser 65536 is not one of the 65536 ids"), "{error}");
}
