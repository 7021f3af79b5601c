//! An unmodified kubectl against the server: what users type must work and read as usual.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use harness::{NODE, register_node, serve, set_running};

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: main
    image: web:1
    ports: [{name: http, containerPort: 8080}]
    resources: {limits: {cpu: 1, memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: http, nodePort: 30080}]
"#;

#[tokio::test]
async fn apply_get_describe_and_delete_read_as_on_any_cluster() {
    let running = serve().await;
    let agent = running.agent().await;
    register_node(&agent, 10250).await;
    let applied = running.kubectl_ok(&["apply", "-f", "-"], WEB).await;
    assert_eq!(applied, "pod/web created\nservice/web created\n");
    harness::eventually("the pod is bound", || async {
        let args = ["get", "pod", "web", "-o", "jsonpath={.spec.nodeName}"];
        running.kubectl_ok(&args, "").await == NODE
    })
    .await;
    set_running(&agent, "web", "10.244.0.7").await;

    let pods = running.kubectl_ok(&["get", "pods", "-o", "wide"], "").await;
    let row: Vec<&str> = pods.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1], row[2], row[3]), ("web", "1/1", "Running", "0"), "{pods}");
    assert_eq!((row[5], row[6]), ("10.244.0.7", NODE), "{pods}");

    harness::eventually("the endpoints follow", || async {
        running.kubectl_ok(&["get", "endpoints", "web"], "").await.contains("10.244.0.7:8080")
    })
    .await;
    let services = running.kubectl_ok(&["get", "svc", "web", "-o", "wide"], "").await;
    assert!(services.contains("80:30080/TCP") && services.contains("app=web"), "{services}");
    let nodes = running.kubectl_ok(&["get", "nodes", "-o", "wide"], "").await;
    assert!(nodes.contains("Ready") && nodes.contains("v1.36.0"), "{nodes}");

    let described = running.kubectl_ok(&["describe", "pod", "web"], "").await;
    for part in ["Successfully assigned default/web to node-1", "QoS Class:", "10.244.0.7"] {
        assert!(described.contains(part), "{part} is not in:\n{described}");
    }
    let described = running.kubectl_ok(&["describe", "svc", "web"], "").await;
    assert!(described.contains("Endpoints:                10.244.0.7:8080"), "{described}");
    let described = running.kubectl_ok(&["describe", "node", NODE], "").await;
    assert!(described.contains("Non-terminated Pods:          (1 in total)"), "{described}");

    let image = WEB.replace("web:1", "web:2");
    let applied = running.kubectl_ok(&["apply", "-f", "-"], &image).await;
    assert_eq!(applied, "pod/web configured\nservice/web unchanged\n");
    let refused = running.kubectl_fails(&["apply", "-f", "-"], &WEB.replace("main", "other")).await;
    assert!(refused.contains("The Pod \"web\" is invalid"), "{refused}");

    running.kubectl_ok(&["delete", "svc", "web"], "").await;
    running.kubectl_ok(&["delete", "pod", "web", "--wait=false"], "").await;
    let pods = running.kubectl_ok(&["get", "pods"], "").await;
    assert!(pods.contains("Terminating"), "{pods}");
    running.kubectl_ok(&["delete", "pod", "web", "--grace-period=0", "--force"], "").await;
    let gone = running.kubectl_fails(&["get", "pod", "web"], "").await;
    assert_eq!(gone, "Error from server (NotFound): pods \"web\" not found\n");
    running.stop().await;
}

#[tokio::test]
async fn explain_and_discovery_tell_what_is_served() {
    let running = serve().await;
    let explained = running.kubectl_ok(&["explain", "pod.spec.containers.env"], "").await;
    assert!(explained.contains("FIELD: env <[]EnvVar>"), "{explained}");
    let resources = running.kubectl_ok(&["api-resources", "-o", "name"], "").await;
    let names: Vec<&str> = resources.lines().collect();
    for name in
        ["pods", "services", "leases.coordination.k8s.io", "endpointslices.discovery.k8s.io"]
    {
        assert!(names.contains(&name), "{resources}");
    }
    assert!(!resources.contains("deployments"));
    let missing = running.kubectl_fails(&["get", "deployments"], "").await;
    assert!(missing.contains("the server doesn't have a resource type \"deployments\""));
    let version = running.kubectl_ok(&["version"], "").await;
    assert!(version.contains("Server Version: v1.36."), "{version}");
    running.stop().await;
}

#[tokio::test]
async fn mistakes_are_answered_in_the_usual_words() {
    let running = serve().await;
    let typo = WEB.replace("image:", "imag: x\n    image:");
    let refused = running.kubectl_fails(&["apply", "-f", "-"], &typo).await;
    assert!(
        refused.contains("strict decoding error: unknown field \"spec.containers[0].imag\""),
        "{refused}"
    );
    running
        .kubectl_ok(&["create", "service", "nodeport", "a", "--tcp=80", "--node-port=30001"], "")
        .await;
    let taken = running
        .kubectl_fails(&["create", "service", "nodeport", "b", "--tcp=80", "--node-port=30001"], "")
        .await;
    assert!(taken.contains("provided port is already allocated"), "{taken}");
    let address = running
        .kubectl_fails(
            &["create", "service", "clusterip", "b", "--tcp=80", "--clusterip=10.96.0.1"],
            "",
        )
        .await;
    assert!(address.contains("provided IP is already allocated"), "{address}");
    let server_side = running.kubectl_fails(&["apply", "--server-side", "-f", "-"], WEB).await;
    assert!(server_side.contains("server-side apply is not supported"), "{server_side}");
    let kept = running.kubectl_fails(&["delete", "ns", "default"], "").await;
    assert!(kept.contains("this namespace may not be deleted"), "{kept}");
    running.stop().await;
}

#[tokio::test]
async fn typed_creations_and_namespaces_work() {
    let running = serve().await;
    running.kubectl_ok(&["create", "namespace", "team"], "").await;
    let create = ["create", "configmap", "c", "-n", "team", "--from-literal=a=b"];
    running.kubectl_ok(&create, "").await;
    let create = ["create", "secret", "generic", "s", "-n", "team", "--from-literal=a=b"];
    running.kubectl_ok(&create, "").await;
    let value = running
        .kubectl_ok(&["get", "secret", "s", "-n", "team", "-o", "jsonpath={.data.a}"], "")
        .await;
    assert_eq!(value, "Yg==");
    harness::eventually("the namespace is filled", || async {
        let output = running.kubectl(&["get", "sa", "default", "-n", "team"], "").await;
        output.status.success()
    })
    .await;
    running.kubectl_ok(&["delete", "namespace", "team", "--timeout=20s"], "").await;
    running.kubectl_fails(&["get", "configmap", "c", "-n", "team"], "").await;
    running.kubectl_ok(&["label", "ns", "default", "a=b"], "").await;
    running.kubectl_ok(&["annotate", "ns", "default", "a=b"], "").await;
    running.kubectl_ok(&["run", "one", "--image=web:1"], "").await;
    running.kubectl_ok(&["set", "image", "pod/one", "one=web:2"], "").await;
    let waited = running
        .kubectl_fails(&["wait", "--for=condition=Ready", "pod/one", "--timeout=1s"], "")
        .await;
    assert!(waited.contains("timed out waiting for the condition"), "{waited}");
    running.stop().await;
}

#[tokio::test]
async fn who_may_do_what_is_told_as_a_list() {
    let running = serve().await;
    let mine = running.kubectl_ok(&["auth", "can-i", "--list"], "").await;
    assert!(mine.lines().any(|line| line.starts_with("*.*")), "{mine}");
    running.kubectl_ok(&["create", "sa", "robot"], "").await;
    running
        .kubectl_ok(&["create", "role", "r", "--verb=get,list", "--resource=pods,pods/log"], "")
        .await;
    let bind = ["create", "rolebinding", "b", "--role=r", "--serviceaccount=default:robot"];
    running.kubectl_ok(&bind, "").await;
    let token = running.kubectl_ok(&["create", "token", "robot"], "").await;
    let robot = robot_kubeconfig(&running, token.trim());
    for (namespace, has) in [("default", true), ("kube-system", false)] {
        let args = ["--kubeconfig", &robot, "auth", "can-i", "--list", "-n", namespace];
        let told = running.kubectl_ok(&args, "").await;
        let pods = told.lines().find(|line| line.starts_with("pods ")).map(str::to_owned);
        assert_eq!(pods.is_some(), has, "{told}");
        assert!(pods.is_none_or(|line| line.ends_with("[get list]")), "{told}");
        assert!(told.contains("selfsubjectrulesreviews.authorization.k8s.io"), "{told}");
    }
    running.stop().await;
}

#[tokio::test]
async fn who_acts_as_somebody_else_has_their_rights_and_needs_the_right_to() {
    let running = serve().await;
    let as_eve = ["get", "pods", "--as=eve"];
    let refused = running.kubectl_fails(&as_eve, "").await;
    assert!(refused.contains("User \"eve\" cannot list resource \"pods\""), "{refused}");
    let answer = running.kubectl(&["auth", "can-i", "list", "pods", "--as=eve"], "").await;
    assert!(answer.stdout.starts_with(b"no"), "{answer:?}");
    running.kubectl_ok(&["create", "role", "r", "--verb=list", "--resource=pods"], "").await;
    running.kubectl_ok(&["create", "rolebinding", "b", "--role=r", "--group=team"], "").await;
    running.kubectl_ok(&[&as_eve[..], &["--as-group=team"]].concat(), "").await;
    running.kubectl_ok(&["get", "nodes", "--as=eve", "--as-group=system:masters"], "").await;
    let refused = running.kubectl_fails(&[&as_eve[..], &["--as-uid=1"]].concat(), "").await;
    assert!(refused.contains("impersonate-uid is not supported"), "{refused}");

    running.kubectl_ok(&["create", "sa", "robot"], "").await;
    let token = running.kubectl_ok(&["create", "token", "robot"], "").await;
    let robot = robot_kubeconfig(&running, token.trim());
    let refused =
        running.kubectl_fails(&[&["--kubeconfig", &robot], &as_eve[..]].concat(), "").await;
    let why = "users \"eve\" is forbidden: User \"system:serviceaccount:default:robot\" cannot impersonate";
    assert!(refused.contains(why), "{refused}");
    running.stop().await;
}

/// A kubeconfig that shows a token and nothing else.
fn robot_kubeconfig(running: &harness::Running, token: &str) -> String {
    let admin = &running.server.credentials.admin_kubeconfig;
    let mut config = kube::config::Kubeconfig::read_from(admin).unwrap();
    let shown = serde_json::json!({"token": token});
    config.auth_infos[0].auth_info = Some(serde_json::from_value(shown).unwrap());
    let path = running.dir.path().join("robot.kubeconfig");
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}
