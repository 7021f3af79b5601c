//! Joining by a bootstrap token, and what becomes of the certificates: issued, renewed while pods run,
//! got again after their end, and a serving certificate that a person approves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::thread;
use std::time::Duration;

use berth_kubelet::discovery::Pin;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::node::{Node, berth, condition, told};
use crate::nodes::linked;

const TOKEN: &str = "abcdef.0123456789abcdef";

/// What `kubeadm token create` makes.
const SECRET: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: abcdef
  token-secret: 0123456789abcdef
  usage-bootstrap-authentication: "true"
  usage-bootstrap-signing: "true"
  auth-extra-groups: system:bootstrappers:kubeadm:default-node-token
"#;

/// The public key of the first node's authority, as `kubeadm token create --print-join-command` prints it.
pub(crate) fn pin(first: &Node) -> String {
    let ca = CertificateDer::from_pem_file(first.path("state/standalone/pki/ca.crt")).unwrap();
    Pin::of_certificate(&ca).unwrap().to_string()
}

/// Makes the token, and waits until it signs the cluster's description.
pub(crate) fn make_token(first: &Node) {
    first.apply(SECRET);
    first.wait_for("the cluster's description to be signed", || {
        let info =
            first.try_kubectl(&["get", "cm", "cluster-info", "-n", "kube-public", "-o", "yaml"]);
        String::from_utf8_lossy(&info.stdout).contains("jws-kubeconfig-abcdef").then_some(())
    });
}

fn join(second: &Node, token: &str, hash: &str) -> Output {
    let mut command = second.namespace().command(berth());
    command.args(["join", "192.0.2.1:6443", "--token", token, "--timeout", "20"]);
    command.args(["--discovery-token-ca-cert-hash", hash]).args(second.dir_flags());
    command.args(["--node-name", "node-2", "--node-ip", "192.0.2.2"]).output().unwrap()
}

/// Two linked nodes, the second of which has joined the first and runs with these further flags.
fn joined(up: &[&str], agent: &[&str]) -> (Node, Node) {
    let (mut first, mut second) = linked();
    let flags = [&["--node-ip", "192.0.2.1", "--api", "192.0.2.1:6443"], up].concat();
    first.up(&flags);
    first.await_ready();
    make_token(&first);
    let joined = join(&second, TOKEN, &pin(&first));
    assert!(joined.status.success(), "{}", told(&joined));
    second.agent(&[&["--node-ip", "192.0.2.2"], agent].concat());
    first.wait_for("the second node to be Ready", || is_ready(&first).then_some(()));
    (first, second)
}

fn is_ready(first: &Node) -> bool {
    condition(&first.get("node", "node-2"), "Ready") == "True"
}

fn mode(path: PathBuf) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The certificate in force.
fn current(second: &Node) -> String {
    let link = fs::read_link(second.path("state/pki/kubelet-client-current.pem")).unwrap();
    link.display().to_string()
}

/// Waits until the certificate in force is another one.
fn renewed(second: &Node, former: &str) -> String {
    second.wait_for("another certificate", || {
        let now = current(second);
        (now != former).then_some(now)
    })
}

#[test]
fn nobody_joins_a_cluster_that_is_not_the_one_that_was_meant() {
    let (mut first, second) = linked();
    first.up(&["--node-ip", "192.0.2.1", "--api", "192.0.2.1:6443"]);
    first.await_ready();
    make_token(&first);
    let hash = pin(&first);
    let other = format!("sha256:{}", "0".repeat(64));
    let refused = told(&join(&second, TOKEN, &other));
    assert!(refused.contains("public key") && refused.contains(&hash), "{refused}");
    // The right public part with another secret: whoever made the description does not know it.
    let refused = told(&join(&second, "abcdef.ffffffffffffffff", &hash));
    assert!(refused.contains("not signed with token abcdef"), "{refused}");
    assert!(!second.path("state/kubelet.conf").exists());
    assert!(!second.path("state/bootstrap.conf").exists(), "nothing to ask with was kept");
    Node::finish_all([second, first]);
}

#[test]
fn a_node_joins_by_a_token_and_its_certificate_is_renewed_while_it_runs() {
    let (first, mut second) = joined(&["--cluster-signing-duration", "15"], &[]);
    for file in ["kubelet.conf", "bootstrap.conf", "pki/kubelet-client-current.pem"] {
        assert_eq!(mode(second.path("state").join(file)), 0o600, "{file}");
    }
    let again = told(&join(&second, TOKEN, &pin(&first)));
    assert!(again.contains("has joined a cluster"), "{again}");

    // The agent asked for each of these with the one before, and is still believed.
    let one = current(&second);
    let two = renewed(&second, &one);
    renewed(&second, &two);
    second.berth(&["images", "import", crate::image::busybox().to_str().unwrap()]);
    first.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: there}\nspec:\n  nodeName: node-2\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: \
         'berth.local/busybox:1', imagePullPolicy: Never, command: [sleep, '1000']}\n",
    );
    first.wait_ready("there");
    let requests = first.kubectl(&["get", "csr", "--no-headers"]);
    assert!(requests.lines().all(|line| line.ends_with("Approved,Issued")), "{requests}");
    assert!(
        requests.contains("system:bootstrap:abcdef") && requests.contains("system:node:node-2")
    );

    // While the agent is away its certificate ends; it gets another as it got the first.
    second.kill_agent();
    let former = current(&second);
    thread::sleep(Duration::from_secs(17));
    let asked = |requests: &str| requests.matches("system:bootstrap:abcdef").count();
    second.agent(&["--node-ip", "192.0.2.2"]);
    renewed(&second, &former);
    let requests = first.kubectl(&["get", "csr", "--no-headers"]);
    assert_eq!(asked(&requests), 2, "{requests}");
    assert_eq!(first.kubectl(&["exec", "there", "--", "echo", "hello"]), "hello\n");
    let pod = first.get("pod", "there");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);

    first.kubectl(&["delete", "pod", "there"]);
    Node::finish_all([second, first]);
}

#[test]
fn a_serving_certificate_is_shown_once_a_person_approves_it() {
    let configuration = std::env::temp_dir().join(format!("berth-{}.yaml", std::process::id()));
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                serverTLSBootstrap: true\n";
    fs::write(&configuration, text).unwrap();
    let (first, second) = joined(&[], &["--config", configuration.to_str().unwrap()]);
    fs::remove_file(&configuration).unwrap();
    // kubectl holds the node's certificate against the cluster's authority.
    let health = || {
        let args = ["--server", "https://192.0.2.2:10250", "get", "--raw", "/healthz"];
        told(&first.try_kubectl(&args))
    };
    assert!(health().contains("certificate"), "{}", health());
    let request = first.wait_for("the request", || {
        let all = first.kubectl(&["get", "csr", "--no-headers"]);
        let line = all.lines().find(|line| line.contains("kubernetes.io/kubelet-serving"))?;
        assert!(line.ends_with("Pending"), "{line}");
        line.split_whitespace().next().map(str::to_owned)
    });
    first.kubectl(&["certificate", "approve", &request]);
    first.wait_for("the certificate to be shown", || health().contains(": ok").then_some(()));
    assert_eq!(mode(second.path("state/pki/kubelet-server-current.pem")), 0o600);
    Node::finish_all([second, first]);
}
