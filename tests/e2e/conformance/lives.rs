//! Pods that live on: probes, hooks, init containers, restarts, updates and deletions, as the
//! conformance suite watches them. Delays between restarts are cut to a second.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{apply, pod};
use crate::node::{NODE_IP, Node, condition};

/// A node that restarts containers after a second at most.
fn node() -> Node {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let config = node.path("config.yaml");
    let document = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    crashLoopBackOff: {maxContainerRestartPeriod: 1s}\n";
    std::fs::write(&config, document).unwrap();
    node.up(&["--config", config.to_str().unwrap()]);
    node.await_ready();
    node
}

/// A server on the node's addresses that remembers what it was asked, and answers gRPC health checks:
/// the service `failing` is not well. What it is asked below `/to/` it sends elsewhere.
struct Listener {
    port: u16,
    paths: Arc<Mutex<Vec<String>>>,
    /// Ends with the value.
    _runtime: tokio::runtime::Runtime,
}

impl Listener {
    fn start(node: &Node) -> Self {
        let bind = || std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let listener = node.namespace().within(bind);
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let paths = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&paths);
        let answer = move |request: axum::extract::Request| {
            let seen = Arc::clone(&seen);
            async move {
                let path = request.uri().path().to_owned();
                seen.lock().unwrap().push(path.clone());
                let place = path.strip_prefix("/to/").map(|place| match place {
                    "ill" => "/ill".to_owned(),
                    host => format!("http://{host}/ill"),
                });
                let status = match (&place, path.as_str()) {
                    (Some(_), _) => 302,
                    (None, "/ill") => 500,
                    (None, _) => 200,
                };
                let body = axum::body::to_bytes(request.into_body(), 1000).await.unwrap();
                let health = if body.ends_with(b"failing") { 2 } else { 1 };
                let answer = axum::http::Response::builder().status(status);
                let answer = match place {
                    Some(place) => answer.header("location", place),
                    None => {
                        answer.header("grpc-status", "0").header("content-type", "application/grpc")
                    }
                };
                answer.body(axum::body::Body::from(vec![0, 0, 0, 0, 2, 8, health])).unwrap()
            }
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        let router = axum::Router::new().fallback(answer);
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { port, paths, _runtime: runtime }
    }

    fn was_asked(&self, path: &str) -> bool {
        self.paths.lock().unwrap().iter().any(|seen| seen == path)
    }
}

/// How often a pod's first container was restarted, or its sidecar if it has one.
fn restarts(pod: &Value) -> i64 {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let mut statuses = lists.iter().map(|list| &pod["status"][*list][0]);
    let first = statuses.find(|status| status.is_object());
    first.and_then(|status| status["restartCount"].as_i64()).unwrap_or(-1)
}

/// The same pod with its container as a sidecar of another.
fn beside(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["name"] =
        json!(format!("{}-beside", pod["metadata"]["name"].as_str().unwrap()));
    let mut sidecar = pod["spec"]["containers"][0].take();
    sidecar["restartPolicy"] = json!("Always");
    pod["spec"]["initContainers"] = json!([sidecar]);
    pod["spec"]["containers"] =
        json!([{"name": "app", "image": crate::image::BUSYBOX, "command": ["sleep", "1000"]}]);
    pod
}

/// A pod that is restarted always, with this probe of its container.
fn probed(name: &str, script: &str, (kind, probe): (&str, Value), more: Value) -> Value {
    let mut probe = probe;
    for (field, value) in [("periodSeconds", 1), ("failureThreshold", 1)] {
        if probe[field].is_null() {
            probe[field] = json!(value);
        }
    }
    let mut pod = pod(name, script, json!({"restartPolicy": "Always", "container": {kind: probe}}));
    for (field, value) in more.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    pod
}

#[test]
fn probes_restart_what_fails_and_nothing_else() {
    let node = node();
    let listener = Listener::start(&node);
    let alive = |probe: Value| ("livenessProbe", probe);
    let health = || json!({"exec": {"command": ["cat", "/tmp/health"]}});
    let page = || json!({"httpGet": {"path": "/healthz", "port": 8080}});
    let grpc = |service: &str| json!({"grpc": {"port": listener.port, "service": service}});
    let host = json!({"hostNetwork": true});
    let web = "mkdir /www; echo ok > /www/healthz; httpd -p 8080 -h /www; ";
    let well = "echo ok > /tmp/health; exec sleep 1000";
    let ill = "echo ok > /tmp/health; sleep 1; rm /tmp/health; exec sleep 1000";
    let late = json!({"exec": {"command": ["true"]}, "initialDelaySeconds": 3});
    let serves = |rest: &str| format!("{web}{rest}");
    // It is well for as long as a server needs to be asked once.
    let fails = serves("sleep 2; rm /www/healthz; exec sleep 1000");
    let stays = serves("exec sleep 1000");
    let patient = |mut probe: Value| {
        probe["failureThreshold"] = json!(3);
        alive(probe)
    };
    // The first probe may come before the server listens.
    let tcp = json!({"tcpSocket": {"port": 8080}});
    let called = |path: &str| alive(json!({"httpGet": {"path": path, "port": listener.port}}));
    let of_both_kinds = [
        probed("well-http", &stays, patient(page()), json!({})),
        probed("well-tcp", &stays, patient(tcp), json!({})),
        probed("well-grpc", well, alive(grpc("")), host.clone()),
        probed("well-moved", well, called("/to/192.0.2.77"), host.clone()),
        probed("ill-http", &fails, alive(page()), json!({})),
        probed("ill-grpc", well, alive(grpc("failing")), host.clone()),
        probed("ill-moved", well, called("/to/ill"), host),
    ];
    let mut pods: Vec<Value> = of_both_kinds.iter().map(beside).collect();
    pods.extend(of_both_kinds);
    let ready = |probe: Value| ("readinessProbe", probe);
    let never = json!({"exec": {"command": ["false"]}});
    pods.extend([
        probed("well-exec", well, alive(health()), json!({})),
        probed("ill-exec", ill, alive(health()), json!({})),
        probed("late", well, ready(late), json!({})),
        probed("never", well, ready(never), json!({})),
    ]);
    apply(&node, pods);
    // "should be restarted with a … liveness probe".
    for name in ["ill-http", "ill-grpc", "ill-moved"] {
        for name in [name.to_owned(), format!("{name}-beside")] {
            node.wait_pod(&name, "restarted", |pod| restarts(pod) >= 1);
            assert!(node.wait_event(&name, "Unhealthy").starts_with("Liveness probe failed"));
        }
    }
    // "should have monotonically increasing restart count".
    let highest = std::cell::Cell::new(0);
    node.wait_pod("ill-exec", "restarted three times", |pod| {
        assert!(restarts(pod) >= highest.get(), "{} after {}", restarts(pod), highest.get());
        highest.set(restarts(pod));
        highest.get() >= 3
    });
    // "with readiness probe should not be ready before initial delay and never restart".
    let ready = node.wait_ready("late");
    let at = |pointer: &str| -> i64 {
        let text = ready.pointer(pointer).and_then(Value::as_str).unwrap();
        text.parse::<k8s_openapi::jiff::Timestamp>().unwrap().as_second()
    };
    let started = at("/status/containerStatuses/0/state/running/startedAt");
    let conditions = ready["status"]["conditions"].as_array().unwrap();
    let place = conditions.iter().position(|c| c["type"] == "Ready").unwrap();
    let became = at(&format!("/status/conditions/{place}/lastTransitionTime"));
    assert!(became - started >= 2, "ready {} s after the start", became - started);
    the_rest_is_left_alone(&node);
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

/// "should *not* be restarted with a … liveness probe", "that fails should never be ready".
fn the_rest_is_left_alone(node: &Node) {
    let both = ["http", "tcp", "grpc", "moved"];
    let mut names: Vec<String> = both.iter().map(|kind| format!("well-{kind}")).collect();
    names.extend(both.iter().map(|kind| format!("well-{kind}-beside")));
    names.extend(["well-exec", "late", "never"].map(str::to_owned));
    for name in &names {
        let pod = node.get("pod", name);
        assert_eq!(restarts(&pod), 0, "{name}: {}", pod["status"]);
        let expected = if name == "never" { "False" } else { "True" };
        assert_eq!(condition(&pod, "Ready"), expected, "{name}");
        // "… with a non-local redirect …": told, and not followed.
        if name.starts_with("well-moved") {
            let told = node.wait_event(name, "ProbeWarning");
            assert!(told.contains("Probe terminated redirects"), "{told}");
        }
    }
}

/// Containers that run before the others.
fn inits(scripts: [&str; 2]) -> Value {
    let one = |(n, script): (usize, &str)| json!({"name": format!("init{n}"), "image": crate::image::BUSYBOX, "command": ["sh", "-c", script]});
    scripts.into_iter().enumerate().map(one).collect()
}

#[test]
fn hooks_init_containers_and_restarts_are_those_of_the_conformance_suite() {
    let node = node();
    let listener = Listener::start(&node);
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    let volume = json!([{"name": "host", "hostPath": {"path": host}}]);
    let call =
        |path: &str| json!({"httpGet": {"host": NODE_IP, "port": listener.port, "path": path}});
    let leave = |file: &str| json!({"exec": {"command": ["touch", format!("/host/{file}")]}});
    let hooked = |name: &str, post: Value, pre: Value| {
        let hooks = json!({"lifecycle": {"postStart": post, "preStop": pre},
            "volumeMounts": [{"name": "host", "mountPath": "/host"}]});
        pod(
            name,
            "exec sleep 1000",
            json!({"volumes": volume, "terminationGracePeriodSeconds": 15, "container": hooks}),
        )
    };
    let with = |name: &str, script: &str, policy: &str, scripts: [&str; 2]| {
        pod(name, script, json!({"restartPolicy": policy, "initContainers": inits(scripts)}))
    };
    let counted = |name: &str, policy: &str, script: &str| {
        let script = format!("n=$(ls /work | wc -l); touch /work/$n; {script}");
        pod(
            name,
            &script,
            json!({"restartPolicy": policy, "volumes": [{"name": "work", "emptyDir": {}}],
            "container": {"volumeMounts": [{"name": "work", "mountPath": "/work"}]}}),
        )
    };
    apply(
        &node,
        vec![
            hooked("commands", leave("begun"), leave("ended")),
            hooked("calls", call("/begun"), call("/ended")),
            with("init-always", "exec sleep 1000", "Always", ["true", "true"]),
            with("init-never", "true", "Never", ["true", "true"]),
            with("init-fails", "true", "Never", ["true", "false"]),
            with("init-tries", "true", "Always", ["false", "true"]),
            counted(
                "status-always",
                "Always",
                "[ $n = 0 ] && exit 1; [ $n = 1 ] && exit 0; exec sleep 1000",
            ),
            counted("status-failure", "OnFailure", "[ $n = 0 ] && exit 1; exit 0"),
            counted("status-never", "Never", "exit 1"),
            pod(
                "always-false",
                "",
                json!({"restartPolicy": "Always", "container": {"command": ["/bin/false"]}}),
            ),
        ],
    );
    init_containers_go_first(&node);
    exits_are_counted(&node);
    // "Container Lifecycle Hook … should execute poststart (prestop) exec (http) hook properly",
    // "PreStop should call prestop when killing a pod".
    for name in ["commands", "calls"] {
        node.wait_ready(name);
    }
    assert!(host.join("begun").exists() && listener.was_asked("/begun"));
    assert!(!host.join("ended").exists() && !listener.was_asked("/ended"));
    node.kubectl(&["delete", "pod", "commands", "calls", "--grace-period=5"]);
    assert!(host.join("ended").exists() && listener.was_asked("/ended"));
    // "a busybox command that always fails in a pod should be possible to delete".
    node.wait_pod("always-false", "restarted", |pod| restarts(pod) >= 1);
    node.kubectl(&["delete", "pod", "always-false"]);
    assert!(node.get("pod", "always-false").is_null());
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

/// "InitContainer should invoke init containers on a RestartAlways (RestartNever) pod", "should not
/// start app containers if init containers fail on a RestartAlways pod (and fail the pod … on a
/// RestartNever pod)".
fn init_containers_go_first(node: &Node) {
    let init = |pod: &Value, n: usize| pod["status"]["initContainerStatuses"][n].clone();
    let app =
        |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    for pod in [node.wait_ready("init-always"), node.wait_phase("init-never", "Succeeded")] {
        assert_eq!(condition(&pod, "Initialized"), "True");
        for n in [0, 1] {
            assert_eq!(init(&pod, n)["state"]["terminated"]["exitCode"], 0, "{pod}");
        }
    }
    let failed = node.wait_phase("init-fails", "Failed");
    assert_eq!(init(&failed, 0)["state"]["terminated"]["exitCode"], 0);
    assert_ne!(init(&failed, 1)["state"]["terminated"]["exitCode"], 0);
    assert_eq!(
        (condition(&failed, "Initialized"), app(&failed)),
        ("False", json!("PodInitializing"))
    );
    let trying = node.wait_pod("init-tries", "tried three times", |pod| {
        init(pod, 0)["restartCount"].as_i64() >= Some(3)
    });
    assert_eq!(
        (&trying["status"]["phase"], app(&trying)),
        (&json!("Pending"), json!("PodInitializing"))
    );
    assert_eq!(condition(&trying, "Initialized"), "False");
    assert!(init(&trying, 1)["state"]["waiting"].is_object(), "{trying}");
}

/// "Container Runtime blackbox test when starting a container that exits should run with the expected
/// status".
fn exits_are_counted(node: &Node) {
    let running = node.wait_pod("status-always", "running after two ends", |pod| {
        restarts(pod) == 2 && condition(pod, "Ready") == "True"
    });
    assert_eq!(running["status"]["phase"], "Running");
    let succeeded = node.wait_phase("status-failure", "Succeeded");
    let failed = node.wait_phase("status-never", "Failed");
    for (pod, count, code) in [(&succeeded, 1, 0), (&failed, 0, 1)] {
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(restarts(pod), count, "{status}");
        assert_eq!(
            (&status["ready"], &status["state"]["terminated"]["exitCode"]),
            (&json!(false), &json!(code))
        );
    }
}

/// Ends with the test.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn pods_are_changed_counted_and_taken_away() {
    let node = node();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "fooservice"},
        "spec": {"selector": {"app": "none"}, "ports": [{"port": 8765, "targetPort": 8080}]}});
    apply(&node, vec![service]);
    let mut watch = node.kubectl_command();
    let words = [
        "get",
        "pods",
        "--watch",
        "--output-watch-events",
        "--field-selector=metadata.name=submitted",
    ];
    watch.args(words).args(["-o", "jsonpath={.type}{\"\\n\"}"]).stdout(Stdio::piped());
    let mut watch = Helper(watch.spawn().unwrap());
    let sleeper =
        |name: &str| pod(name, "exec sleep 1000", json!({"metadata": {"labels": {"of": name}}}));
    let mut custom = sleeper("counted");
    custom["metadata"]["generation"] = json!(100);
    custom["spec"]["terminationGracePeriodSeconds"] = json!(600);
    custom["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
    let mut all = vec![sleeper("submitted"), sleeper("overdue"), sleeper("many"), custom];
    for name in ["collected-1", "collected-2", "collected-3"] {
        let mut pod = sleeper(name);
        pod["metadata"]["labels"] = json!({"type": "collected"});
        all.push(pod);
    }
    all.push(pod("linked", "env", json!({})));
    apply(&node, all);

    // "Pods should contain environment variables for services".
    node.wait_phase("linked", "Succeeded");
    let env = node.kubectl(&["logs", "linked"]);
    let address = node.get("service", "fooservice")["spec"]["clusterIP"].clone();
    let address = address.as_str().unwrap();
    for line in [
        format!("FOOSERVICE_SERVICE_HOST={address}"),
        "FOOSERVICE_SERVICE_PORT=8765".to_owned(),
        format!("FOOSERVICE_PORT=tcp://{address}:8765"),
        format!("FOOSERVICE_PORT_8765_TCP_ADDR={address}"),
        "FOOSERVICE_PORT_8765_TCP_PROTO=tcp".to_owned(),
    ] {
        assert!(env.lines().any(|said| said == line), "{line} is not in\n{env}");
    }
    one_host_port_serves_many_pods(&node);
    let (_proxy, server) = proxy(&node);
    generations_are_counted(&node, &server);
    logs_come_over_websockets(&node, &server);
    submitted_changed_and_removed(&node, &mut watch);

    // "Pods should allow activeDeadlineSeconds to be updated".
    node.wait_ready("overdue");
    node.kubectl(&["patch", "pod", "overdue", "-p", r#"{"spec":{"activeDeadlineSeconds":1}}"#]);
    assert_eq!(node.wait_phase("overdue", "Failed")["status"]["reason"], "DeadlineExceeded");
    // "Pods should delete a collection of pods".
    for name in ["collected-1", "collected-2", "collected-3"] {
        node.wait_ready(name);
    }
    let path = "/api/v1/namespaces/default/pods?labelSelector=type%3Dcollected";
    node.kubectl(&["delete", "--raw", path]);
    node.wait_for("the collection to be gone", || {
        let left = node.kubectl(&["get", "pods", "-l", "type=collected", "-o", "name"]);
        left.is_empty().then_some(())
    });
    node.kubectl(&["delete", "service", "fooservice"]);
    node.kubectl(&["delete", "pod", "--all", "--force", "--grace-period=0"]);
    node.finish();
}

/// "HostPort validates that there is no conflict between pods with same hostPort but different hostIP and
/// protocol". The one on loopback is reached from there and, as the suite does it, from another address
/// of the node.
fn one_host_port_serves_many_pods(node: &Node) {
    let served = |name: &str, address: &str, protocol: &str| {
        let port = json!({"containerPort": 8080, "hostPort": 54323, "hostIP": address, "protocol": protocol});
        let container = json!({"image": "berth.local/demo:1", "command": null, "ports": [port]});
        pod(name, "", json!({"container": container}))
    };
    let pods = [
        ("port-loopback", "127.0.0.1", "TCP"),
        ("port-address", NODE_IP, "TCP"),
        ("port-datagrams", NODE_IP, "UDP"),
    ];
    apply(node, pods.map(|(name, address, protocol)| served(name, address, protocol)).into());
    for (name, address, protocol) in pods {
        node.wait_ready(name);
        let asks = match protocol {
            "TCP" => ["", &format!("--interface {NODE_IP}")]
                .map(|from| format!("curl -sS --max-time 2 {from} http://{address}:54323/"))
                .to_vec(),
            _ => vec![format!("echo hi | timeout 3 socat -t 1 - UDP:{address}:54323")],
        };
        for ask in asks {
            node.wait_for(&format!("{name} to answer"), || {
                let output = node.namespace().command("sh").args(["-c", &ask]).output().ok()?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                said.starts_with(&format!("{name} ")).then_some(())
            });
        }
    }
}

/// The API without TLS, at the address returned, as long as the value lives.
fn proxy(node: &Node) -> (Helper, String) {
    let mut proxy = node.kubectl_command();
    proxy.args(["proxy", "--port=0"]).stdout(Stdio::piped());
    let mut proxy = Helper(proxy.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(proxy.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let server = line.trim().rsplit(' ').next().unwrap().to_owned();
    (proxy, server)
}

/// "Pods should support retrieving logs from the container over websockets": `linked` has printed its
/// variables.
fn logs_come_over_websockets(node: &Node, server: &str) {
    let request = "GET /api/v1/namespaces/default/pods/linked/log?container=main HTTP/1.1\r\n\
                   Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: binary.k8s.io\r\n\r\n";
    let answer = node.namespace().within(|| {
        let mut stream = std::net::TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    });
    let text = String::from_utf8_lossy(&answer);
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{text}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{text}");
    assert!(head.contains("sec-websocket-protocol: binary.k8s.io"), "{text}");
    assert!(text.contains("FOOSERVICE_SERVICE_PORT=8765\n"), "{text}");
    assert!(answer.ends_with(&[0x88, 2, 0x03, 0xe8]), "closed as it should be: {text}");
}

fn generation(pod: &Value) -> (i64, i64) {
    let number = |value: &Value| value.as_i64().unwrap_or(-1);
    (number(&pod["metadata"]["generation"]), number(&pod["status"]["observedGeneration"]))
}

/// "Pod Generation pod generation should start at 1 and increment per update", "custom-set generation
/// on new pods and graceful delete", "issue 500 podspec updates and verify generation and
/// observedGeneration eventually converge".
fn generations_are_counted(node: &Node, server: &str) {
    assert_eq!(generation(&node.wait_ready("counted")), (1, 1), "whatever the client says");
    for (change, expected) in [
        (r#"{"metadata":{"labels":{"changed":"yes"}}}"#, 1),
        (r#"{"spec":{"activeDeadlineSeconds":5000}}"#, 2),
        (r#"{"spec":{"containers":[{"name":"main","image":"berth.local/busybox:1"}]}}"#, 2),
        (r#"{"spec":{"tolerations":[{"key":"a","operator":"Exists"}]}}"#, 3),
    ] {
        node.kubectl(&["patch", "pod", "counted", "-p", change]);
        node.wait_pod("counted", "seen", |pod| generation(pod) == (expected, expected));
    }
    node.kubectl(&["delete", "pod", "counted", "--wait=false"]);
    let ending =
        node.wait_pod("counted", "ending", |pod| pod["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(generation(&ending).0, 4);

    node.wait_ready("many");
    let requests: Vec<String> = (0..500)
        .map(|n| {
            let body = format!(r#"{{\"spec\":{{\"activeDeadlineSeconds\":{}}}}}"#, 10_000 - n);
            format!(
                "url = \"http://{server}/api/v1/namespaces/default/pods/many\"\nrequest = PATCH\n\
                 header = \"Content-Type: application/merge-patch+json\"\nfail\nsilent\n\
                 output = /dev/null\ndata = \"{body}\"\n"
            )
        })
        .collect();
    let config = node.path("requests");
    std::fs::write(&config, requests.join("next\n")).unwrap();
    node.namespace().run("curl", &["--config", config.to_str().unwrap()]);
    node.wait_pod("many", "seen to the last change", |pod| generation(pod) == (501, 501));
}

/// "Pods should be submitted and removed", "Pods should be updated", "Pods should run through the
/// lifecycle of Pods and PodStatus".
fn submitted_changed_and_removed(node: &Node, watch: &mut Helper) {
    let pod = node.wait_ready("submitted");
    node.kubectl(&["label", "pod", "submitted", "time=later"]);
    let later = node.kubectl(&["get", "pods", "-l", "time=later", "-o", "name"]);
    assert_eq!(later.trim(), "pod/submitted");
    let status = r#"{"status":{"conditions":[{"type":"example.com/seen","status":"True"}]}}"#;
    node.kubectl(&["patch", "pod", "submitted", "--subresource=status", "-p", status]);
    let patched =
        node.wait_pod("submitted", "patched", |pod| condition(pod, "example.com/seen") == "True");
    assert_eq!(patched["metadata"]["uid"], pod["metadata"]["uid"]);
    let mut whole = patched;
    let conditions = whole["status"]["conditions"].as_array_mut().unwrap();
    conditions
        .iter_mut()
        .filter(|c| c["type"] == "example.com/seen")
        .for_each(|c| c["status"] = json!("False"));
    whole["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let file = node.path("status.json");
    std::fs::write(&file, whole.to_string()).unwrap();
    node.kubectl(&["replace", "--subresource=status", "-f", file.to_str().unwrap()]);
    node.wait_pod("submitted", "replaced", |pod| condition(pod, "example.com/seen") == "False");
    assert_eq!(condition(&node.get("pod", "submitted"), "Ready"), "True");
    node.kubectl(&["delete", "pod", "submitted"]);
    assert!(node.get("pod", "submitted").is_null());
    let mut events = Vec::new();
    for line in BufReader::new(watch.0.stdout.take().unwrap()).lines() {
        events.push(line.unwrap());
        if events.last().is_some_and(|last| last == "DELETED") {
            break;
        }
    }
    assert_eq!(events.first().map(String::as_str), Some("ADDED"));
    assert!(events[1..events.len() - 1].iter().all(|event| event == "MODIFIED"), "{events:?}");
}
