//! Who a pod is to the API server: its service account's token, and what that may do.
//!
//! | Public test | Here |
//! |---|---|
//! | ServiceAccounts should mount an API token into pods | [`a_pod_reaches_the_api_with_its_own_token`] |
//! | ServiceAccounts should allow opting out of API token automount | [`a_pod_reaches_the_api_with_its_own_token`] |
//! | ServiceAccounts should mount projected service account token | [`a_pod_reaches_the_api_with_its_own_token`] |
//! | ServiceAccounts ServiceAccountIssuerDiscovery should support OIDC discovery of service account issuer | [`a_pod_reaches_the_api_with_its_own_token`] |

use std::process::{Command, Output};

use crate::node::{Node, kubectl, told};

const PODS: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: robot, namespace: default}]
---
apiVersion: v1
kind: Pod
metadata: {name: robot}
spec:
  serviceAccountName: robot
  hostPID: true
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000}
  volumes:
    - {name: vault, projected: {sources: [{serviceAccountToken: {audience: vault, expirationSeconds: 600, path: token}}]}}
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c]
      args:
        - |
          cd /var/run/secrets/kubernetes.io/serviceaccount
          read pid rest < /proc/self/stat
          echo "pid $pid"
          echo "namespace $(cat namespace)"
          echo "modes $(stat -L -c %a:%u token) $(stat -L -c %a:%u /vault/token)"
          echo "token $(cat token)"
          echo "vault $(cat /vault/token)"
          echo "$(cat ca.crt)" | grep -c BEGIN
          echo all
          while :; do usleep 100000; done
      volumeMounts: [{name: vault, mountPath: /vault}]
---
apiVersion: v1
kind: Pod
metadata: {name: anonymous}
spec:
  automountServiceAccountToken: false
  restartPolicy: Never
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sh, -c, "ls /var/run/secrets 2>&1 | wc -l"]}
"#;

#[test]
fn a_pod_reaches_the_api_with_its_own_token() {
    let node = Node::start();
    node.apply(PODS);
    node.wait_ready("robot");
    let log = node.wait_for("the container to tell", || {
        let log = node.kubectl(&["logs", "robot"]);
        log.ends_with("all\n").then_some(log)
    });
    let said = |what: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{what} is not in\n{log}")).to_owned()
    };
    assert_eq!(said("namespace"), "default");
    assert_eq!(said("modes"), "600:1000 600:1000");
    let (token, vault) = (said("token"), said("vault"));
    let ca = node.path("ca.crt");
    let root = node.get("configmap", "kube-root-ca.crt");
    std::fs::write(&ca, root["data"]["ca.crt"].as_str().unwrap()).unwrap();

    // From the pod's own network, by the Service that every client library finds.
    let inside = |token: &str, args: &[&str]| -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", said("pid"))).arg("--").arg(kubectl());
        command.env("KUBECONFIG", "/dev/null").env("KUBECACHEDIR", node.path("cache-inside"));
        command.args([
            "--server",
            "https://10.96.0.1",
            "--token",
            token,
            "--certificate-authority",
        ]);
        command.arg(&ca).args(args).output().expect("kubectl runs")
    };
    let pods = inside(&token, &["get", "pods", "-o", "name"]);
    assert!(String::from_utf8_lossy(&pods.stdout).contains("pod/robot"), "{}", told(&pods));
    let who = inside(&token, &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
    assert_eq!(who.stdout, b"system:serviceaccount:default:robot", "{}", told(&who));
    for refused in [&["get", "secrets"][..], &["get", "pods", "-A"], &["delete", "pod", "robot"]] {
        let answer = told(&inside(&token, refused));
        assert!(answer.contains("system:serviceaccount:default:robot\" cannot"), "{answer}");
    }
    let issuer = inside(&token, &["get", "--raw", "/.well-known/openid-configuration"]);
    assert!(told(&issuer).contains("https://kubernetes.default.svc"), "{}", told(&issuer));
    let keys = inside(&token, &["get", "--raw", "/openid/v1/jwks"]);
    assert!(told(&keys).contains("ES256"), "{}", told(&keys));
    let other = told(&inside(&vault, &["get", "pods"]));
    assert!(other.contains("logged in") || other.contains("Unauthorized"), "{other}");

    node.wait_phase("anonymous", "Succeeded");
    // The message of ls about what is not there.
    assert_eq!(node.kubectl(&["logs", "anonymous"]).trim(), "1");
    node.kubectl(&["delete", "pod", "--all"]);
    let ended = told(&inside_host(&node, &token, &ca));
    assert!(ended.contains("logged in") || ended.contains("Unauthorized"), "{ended}");
    node.finish();
}

/// Shows the token once more, from the node itself.
fn inside_host(node: &Node, token: &str, ca: &std::path::Path) -> Output {
    let mut command = node.namespace().command(kubectl());
    command.env("KUBECONFIG", "/dev/null").env("KUBECACHEDIR", node.path("cache-outside"));
    command.args([
        "--server",
        "https://127.0.0.1:6443",
        "--token",
        token,
        "--certificate-authority",
    ]);
    command.arg(ca).args(["get", "pods"]).output().expect("kubectl runs")
}
