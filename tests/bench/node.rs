//! `make bench AREA=node`: what the node's API costs: commands in containers, their streams, logs, and
//! a scrape of 110 pods. One line a figure on standard output.
//!
//! Requests go to the node's own port with the API server's certificate, from a thread inside the
//! node's network namespace, where the figure does not say `kubectl`.

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../e2e/image.rs"]
mod image;
#[allow(dead_code, reason = "shared with other benches")]
#[path = "measure.rs"]
mod measure;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../e2e/node.rs"]
mod node;

use std::process::Stdio;
use std::time::Instant;

use axum::http::Request;
use futures::future::join_all;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use node::Node;

const RUNS: usize = 20;

/// So many commands are run, one after the other and then at once.
const COMMANDS: usize = 200;

/// What a stream carries, in bytes.
const BULK: usize = 256 << 20;

/// What the log holds: less than is kept in one file (`containerLogMaxSize`), in bytes.
const LOG: usize = 8 << 20;

/// What a node runs at most by default.
const PODS: usize = 110;

const RUN: &str = "/run/default/box/main?cmd=true";

fn main() {
    let node = Node::start();
    let agent = measure::agent(&node.path("state"));
    node.apply(&manifest("box", &format!("yes {} | head -c {LOG}; sleep 1000", "x".repeat(99))));
    node.wait_ready("box");
    kubectl(&node, agent);
    within(&node, |client| async move { requests(&client, agent).await });
    let many: String =
        (0..PODS - 1).map(|i| manifest(&format!("many-{i}"), "sleep 1000")).collect();
    node.apply(&many);
    node.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]);
    within(&node, |client| async move { scrapes(&client, agent).await });
    node.kubectl(&["delete", "pod", "--all", "--grace-period=1"]);
    node.finish();
}

/// Commands and streams as kubectl carries them.
fn kubectl(node: &Node, agent: u32) {
    let times = (0..RUNS).map(|_| {
        let began = Instant::now();
        node.kubectl(&["exec", "box", "--", "true"]);
        milliseconds(began)
    });
    measure::distribution("node", "kubectl_exec_true", times.collect());
    let peak = measure::peak_kib(agent);
    for (name, command) in [
        (
            "kubectl_exec_output",
            format!("head -c {BULK} /dev/zero | kubectl exec -i box -- cat > /dev/null"),
        ),
        (
            "kubectl_exec_input",
            format!("head -c {BULK} /dev/zero | kubectl exec -i box -- sh -c 'cat > /dev/null'"),
        ),
    ] {
        let command = command.replace("kubectl", &node::kubectl().display().to_string());
        let mut shell = node.namespace().command("sh");
        shell.args(["-c", &command]).env("KUBECONFIG", node.kubeconfig()).stdout(Stdio::null());
        let (began, cpu) = (Instant::now(), measure::cpu_seconds(agent));
        node::succeed(&mut shell);
        rate(name, BULK, began, measure::cpu_seconds(agent) - cpu);
    }
    tell("agent_growth_by_streams", measure::peak_kib(agent) - peak, "KiB", 1);
}

/// Runs `work` inside the node's namespace, with a client of the node's own port.
fn within<F: Future<Output = ()>>(node: &Node, work: impl FnOnce(Client) -> F + Send) {
    let pki = node.path("state/standalone/pki");
    node.namespace().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let kubeconfig: Kubeconfig = serde_json::from_value(json!({
                "clusters": [{"name": "node", "cluster": {
                    "server": "https://127.0.0.1:10250",
                    "certificate-authority": pki.join("ca.crt"),
                }}],
                "users": [{"name": "api", "user": {
                    "client-certificate": pki.join("apiserver-kubelet-client.crt"),
                    "client-key": pki.join("apiserver-kubelet-client.key"),
                }}],
                "contexts": [{"name": "api", "context": {"cluster": "node", "user": "api"}}],
                "current-context": "api",
            }))
            .expect("a kubeconfig");
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            let client = Client::try_from(config.expect("a configuration")).expect("a client");
            work(client).await;
        });
    });
}

async fn ask(client: &Client, method: &str, path: &str) -> String {
    let request = Request::builder().method(method).uri(path).body(Vec::new()).expect("a request");
    client.request_text(request).await.expect("the node answers")
}

async fn requests(client: &Client, agent: u32) {
    let mut times = Vec::new();
    for _ in 0..COMMANDS {
        let began = Instant::now();
        ask(client, "POST", RUN).await;
        times.push(milliseconds(began));
    }
    measure::distribution("node", "run_true", times);
    let began = Instant::now();
    join_all((0..COMMANDS).map(|_| ask(client, "POST", RUN))).await;
    tell("run_true_200_at_once", milliseconds(began), "ms", 1);

    let (began, cpu) = (Instant::now(), measure::cpu_seconds(agent));
    let mut carried = 0;
    for _ in 0..RUNS {
        carried += ask(client, "GET", "/containerLogs/default/box/main").await.len();
    }
    assert!(carried > RUNS * LOG / 2, "{carried}: the log is there");
    rate("logs", carried, began, measure::cpu_seconds(agent) - cpu);
}

async fn scrapes(client: &Client, agent: u32) {
    for (name, path) in [
        ("scrape_resource", "/metrics/resource"),
        ("scrape_cadvisor", "/metrics/cadvisor"),
        ("scrape_summary", "/stats/summary"),
    ] {
        let (mut times, mut size, cpu) = (Vec::new(), 0, measure::cpu_seconds(agent));
        for _ in 0..RUNS {
            let began = Instant::now();
            size = ask(client, "GET", path).await.len();
            times.push(milliseconds(began));
        }
        let each = (measure::cpu_seconds(agent) - cpu) / RUNS as f64;
        measure::distribution("node", &format!("{name}_110"), times);
        tell(&format!("{name}_110_cpu"), each * 1e3, "ms", RUNS);
        tell(&format!("{name}_110_size"), size as f64 / 1024.0, "KiB", 1);
    }
}

/// A pod of one container that runs a shell.
fn manifest(name: &str, script: &str) -> String {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": "berth.local/busybox:1",
                "command": ["sh", "-c", script],
            }],
        },
    });
    format!("---\n{pod}\n")
}

/// Prints how fast so many bytes went, and what the agent's processor time was for a gigabyte.
fn rate(name: &str, bytes: usize, began: Instant, cpu: f64) {
    let megabytes = bytes as f64 / 1e6;
    tell(&format!("{name}_rate"), megabytes / began.elapsed().as_secs_f64(), "MB/s", 1);
    tell(&format!("{name}_agent_cpu_per_gb"), cpu / megabytes * 1e3, "s", 1);
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn tell(name: &str, value: f64, unit: &str, runs: usize) {
    measure::figure("node", name, value, unit, runs);
}
