//! berth as a drop-in for the kubelet: started under its name, with the flags and files that kubeadm
//! writes, and what kubeadm then looks at.

use std::fs;
use std::os::unix::fs::symlink;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::cri::{Client, Server};
use crate::joining::make_token;
use crate::node::{Node, berth, condition, kubectl, succeed, told};
use crate::nodes::linked;

/// What kubeadm writes, but for what is this node's own place and, as nothing on the host depends on
/// systemd here, the cgroup driver.
const CONFIG: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: PKI/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: ''
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
enableSystemLogQuery: true
logging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}, text: {infoBufferSize: '0'}}, verbosity: 0}
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: MANIFESTS
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
---
apiVersion: berth/v1alpha1
kind: NodeConfiguration
runDir: RUN
logDir: LOG
";

/// A kubeconfig that shows a bootstrap token, as kubeadm writes it.
fn bootstrap(ca: &str) -> String {
    let ca = STANDARD.encode(ca);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: tls-bootstrap-token-user@kubernetes\n\
         clusters:\n- name: kubernetes\n  cluster: {{server: 'https://192.0.2.1:6443', \
         certificate-authority-data: {ca}}}\ncontexts:\n- name: \
         tls-bootstrap-token-user@kubernetes\n  context: {{cluster: kubernetes, user: \
         tls-bootstrap-token-user}}\nusers:\n- name: tls-bootstrap-token-user\n  user: {{token: \
         abcdef.0123456789abcdef}}\n"
    )
}

#[test]
fn under_the_kubelets_name_berth_is_what_kubeadm_starts_and_waits_for() {
    let (mut first, mut second) = linked();
    first.up(&["--node-ip", "192.0.2.1", "--api", "192.0.2.1:6443"]);
    first.await_ready();
    make_token(&first);

    let path = |name: &str| second.path(name);
    let text = |name: &str| second.path(name).display().to_string();
    let kubelet = path("kubelet");
    symlink(berth(), &kubelet).unwrap();
    let version = succeed(second.namespace().command(&kubelet).arg("--version"));
    assert!(version.starts_with("Kubernetes v1.36."), "{version}");
    let strange = second.namespace().command(&kubelet).arg("--no-such-flag").output().unwrap();
    assert!(told(&strange).contains("--no-such-flag"), "{}", told(&strange));

    for directory in ["etc/pki", "etc/manifests", "drop-ins"] {
        fs::create_dir_all(path(directory)).unwrap();
    }
    let ca = fs::read_to_string(first.path("state/standalone/pki/ca.crt")).unwrap();
    fs::write(path("etc/pki/ca.crt"), &ca).unwrap();
    fs::write(path("etc/bootstrap-kubelet.conf"), bootstrap(&ca)).unwrap();
    let config = CONFIG
        .replace("PKI", &text("etc/pki"))
        .replace("MANIFESTS", &text("etc/manifests"))
        .replace("RUN", &text("run"))
        .replace("LOG", &text("log/pods"));
    fs::write(path("etc/config.yaml"), config).unwrap();
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    fs::write(path("drop-ins/10-pods.conf"), format!("{head}maxPods: 42\nevictionHard: {{}}\n"))
        .unwrap();

    // kubeadm asks the CRI before there is a kubelet.
    let server = Server::start(&second);
    let cri = Client::connect(&second.path("run/berth.sock"));
    let early = [("RuntimeReady".to_owned(), true), ("NetworkReady".to_owned(), false)];
    assert_eq!(cri.conditions(), early);

    let mut command = second.namespace().command(&kubelet);
    for (flag, value) in [
        ("bootstrap-kubeconfig", text("etc/bootstrap-kubelet.conf")),
        ("kubeconfig", text("etc/kubelet.conf")),
        ("config", text("etc/config.yaml")),
        ("config-dir", text("drop-ins")),
        ("root-dir", text("state")),
        ("container-runtime-endpoint", "unix:///var/run/containerd/containerd.sock".to_owned()),
        ("pod-infra-container-image", "registry.k8s.io/pause:3.10".to_owned()),
        ("hostname-override", "node-2".to_owned()),
        ("node-ip", "192.0.2.2".to_owned()),
        ("node-labels", "tier=front".to_owned()),
        ("register-with-taints", "dedicated=tests:NoSchedule".to_owned()),
    ] {
        command.arg(format!("--{flag}={value}"));
    }
    second.spawn(command);
    first.wait_for("the joined node to be Ready", || {
        (condition(&first.get("node", "node-2"), "Ready") == "True").then_some(())
    });

    // What kubeadm waits for: health on loopback, then the kubeconfig.
    let health =
        "exec 3<>/dev/tcp/127.0.0.1/10248; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let health = second.namespace().run("bash", &["-c", health]);
    assert!(health.contains("200 OK") && health.ends_with("ok"), "{health}");
    assert!(second.path("etc/kubelet.conf").is_file());
    assert!(second.path("state/pki/kubelet-client-current.pem").is_file());

    let node = first.get("node", "node-2");
    assert_eq!(node["metadata"]["labels"]["tier"], "front");
    assert_eq!(node["spec"]["taints"][0]["key"], "dedicated");
    assert_eq!(node["status"]["capacity"]["pods"], "42");
    let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap();
    assert!(version.starts_with("v1.36."), "{version}");
    // What berth does in another way is told.
    let events = first.wait_event("node-2", "NotEnforced");
    assert!(!events.is_empty());

    let mut ask = first.namespace().command(kubectl());
    ask.env("KUBECONFIG", "/dev/null").args(["--server", "https://192.0.2.2:10250"]);
    for (flag, file) in [("client-certificate", "admin.crt"), ("client-key", "admin.key")] {
        ask.arg(format!("--{flag}")).arg(first.path("state/standalone/pki").join(file));
    }
    let configz = succeed(ask.args(["--insecure-skip-tls-verify", "get", "--raw", "/configz"]));
    assert!(
        configz.contains("\"kubeletconfig\"") && configz.contains("\"maxPods\":42"),
        "{configz}"
    );
    let archive = crate::image::busybox();
    second.berth(&["images", "import", archive.to_str().unwrap()]);
    first.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: there}\nspec:\n  nodeName: node-2\n  \
         tolerations: [{operator: Exists}]\n  containers:\n  - {name: main, image: \
         'berth.local/busybox:1', imagePullPolicy: Never, command: [sleep, '1000']}\n",
    );
    first.wait_ready("there");

    // The host's logs, as cluster administrators ask for them.
    let logs = "/api/v1/nodes/node-2/proxy/logs/";
    let listed = first.kubectl(&["get", "--raw", logs]);
    assert!(listed.starts_with("<!doctype html>"), "{listed}");
    let nothing = first.kubectl(&["get", "--raw", &format!("{logs}?query=no-such-service")]);
    assert_eq!(nothing, "\nlog not found for no-such-service\n");

    // What the agent says of itself.
    let flags = first.kubectl(&["get", "--raw", "/api/v1/nodes/node-2/proxy/flagz"]);
    assert!(flags.contains("\nnode-name=node-2\n"), "{flags}");
    let slis = first.kubectl(&["get", "--raw", "/api/v1/nodes/node-2/proxy/metrics/slis"]);
    assert!(slis.contains("process_start_time_seconds"), "{slis}");
    let pprof = "/api/v1/nodes/node-2/proxy/debug/pprof";
    let line = first.kubectl(&["get", "--raw", &format!("{pprof}/cmdline")]);
    assert!(line.split('\0').any(|word| word == "--node-ip=192.0.2.2"), "{line}");
    let profile = format!("{pprof}/profile?seconds=1");
    let profile = first.kubectl_command().args(["get", "--raw", &profile]).output().unwrap();
    assert!(profile.stdout.starts_with(b"\x1f\x8b"), "{profile:?}");

    // What happened is told on the node by the agent itself.
    let events = second.berth(&["events"]);
    assert!(events.contains("NotEnforced") && events.contains("node/node-2"), "{events}");

    // `kubeadm reset` stops the kubelet first, and then has the CRI end what runs.
    second.stop_agent();
    assert_eq!(cri.end_all(), 1);
    assert_eq!(second.berth(&["pods", "--json"]).trim(), "[]");
    drop((cri, server));
    Node::finish_all([second, first]);
}
