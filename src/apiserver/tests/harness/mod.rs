//! A server in a directory of its own on a free loopback port, and clients for it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use berth_apiserver::{Config, Server, start};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;

pub(crate) const NODE: &str = "node-1";

pub(crate) struct Running {
    pub server: Server,
    pub dir: tempfile::TempDir,
}

/// Starts a server; `adjust` changes its settings.
pub(crate) async fn serve_with(adjust: impl FnOnce(&mut Config)) -> Running {
    serve_in(tempfile::tempdir().unwrap(), adjust).await
}

pub(crate) async fn serve() -> Running {
    serve_with(|_| {}).await
}

/// Starts a server on a directory that may have been used before.
pub(crate) async fn serve_in(dir: tempfile::TempDir, adjust: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::new(dir.path(), NODE);
    config.bind = ([127, 0, 0, 1], 0).into();
    adjust(&mut config);
    let server = start(config).await.unwrap();
    Running { server, dir }
}

impl Running {
    pub(crate) async fn admin(&self) -> Client {
        client(&self.server.credentials.admin_kubeconfig).await
    }

    pub(crate) async fn agent(&self) -> Client {
        client(&self.server.credentials.agent_kubeconfig).await
    }

    /// Stops the server and gives its directory back.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.server.stop().await;
        self.dir
    }

    /// Runs kubectl as the administrator. Blocking work on a thread of its own, so that the
    /// server in this process goes on.
    pub(crate) async fn kubectl(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(kubectl_path());
        command
            .arg("--kubeconfig")
            .arg(&self.server.credentials.admin_kubeconfig)
            .arg("--cache-dir")
            .arg(self.dir.path().join("kubectl-cache"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    /// Runs kubectl, which must succeed, and returns what it printed.
    pub(crate) async fn kubectl_ok(&self, args: &[&str], input: &str) -> String {
        let output = self.kubectl(args, input).await;
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "kubectl {args:?} failed:\n{stdout}\n{stderr}");
        stdout
    }

    /// Runs kubectl, which must fail, and returns its complaint.
    pub(crate) async fn kubectl_fails(&self, args: &[&str], input: &str) -> String {
        let output = self.kubectl(args, input).await;
        let (stdout, stderr) = texts(&output);
        assert!(!output.status.success(), "kubectl {args:?} succeeded:\n{stdout}");
        stderr
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The kubectl to test with: `BERTH_KUBECTL`, else the first on the PATH.
fn kubectl_path() -> PathBuf {
    if let Some(path) = std::env::var_os("BERTH_KUBECTL") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find(|candidate| candidate.is_file())
        .expect(
            "these tests need kubectl 1.30 or newer: put it on the PATH or name it in BERTH_KUBECTL",
        )
}

pub(crate) async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

pub(crate) fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"value": value}})).unwrap()
}

pub(crate) fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "web:1",
            "ports": [{"name": "http", "containerPort": 8080}]}]},
    }))
    .unwrap()
}

/// Registers the node as its agent does, with its own API at `port`.
pub(crate) async fn register_node(agent: &Client, port: u16) {
    let nodes: Api<Node> = Api::all(agent.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": NODE}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": null, "lastTransitionTime": null}],
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"},
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Test", "kernelVersion": "6",
            "containerRuntimeVersion": "test://1", "architecture": "amd64", "bootID": "",
            "kubeProxyVersion": "", "machineID": "", "operatingSystem": "linux", "systemUUID": ""},
    }});
    nodes.patch_status(NODE, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
}

/// Says, as the node's agent, that a pod runs at an address.
pub(crate) async fn set_running(agent: &Client, name: &str, ip: &str) {
    let pods: Api<Pod> = Api::namespaced(agent.clone(), "default");
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "main", "image": "web:1", "imageID": "", "ready": true,
            "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
    }});
    pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
}

/// Waits until a condition holds; panics with `what` when it does not in time.
pub(crate) async fn eventually<F, R>(what: &str, mut holds: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
