//! `make bench AREA=pods`: how long a pod takes from the wish to Ready and from deletion to gone, and
//! what the agent and a shim weigh. One line a figure on standard output.
//!
//! Times are taken by a watch on the API, on a thread inside the node's network namespace, so that
//! they hold no start of a client program but where the figure says `kubectl`.

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../e2e/image.rs"]
mod image;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../e2e/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use node::{Node, berth, succeed};

/// Starts are this far apart: back-to-back loops hide the kernel's grace periods.
const GAP: Duration = Duration::from_millis(100);

const RUNS: usize = 20;

/// The demo image's reference.
const DEMO: &str = "berth.local/demo:1";

fn main() {
    let node = Node::start();
    let agents =
        succeed(Command::new("pgrep").args(["-f", &node.path("state").display().to_string()]));
    let agents = agents.lines().filter_map(|line| line.parse().ok());
    let agent: u32 = agents.filter(|pid| is_agent(*pid)).max().expect("the agent runs");
    let idle = pss_kib(agent);
    let kubeconfig = node.kubeconfig();
    let measured = node.namespace().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(measure(kubeconfig, agent))
    });
    for (name, milliseconds) in kubectl_times(&node) {
        figure(&name, milliseconds, "ms", 1);
    }
    for (name, mut samples) in measured.times {
        let (p50, p90) = (percentile(&mut samples, 50), percentile(&mut samples, 90));
        figure(&format!("{name}_p50"), p50, "ms", samples.len());
        figure(&format!("{name}_p90"), p90, "ms", samples.len());
    }
    figure("agent_pss_0_pods", idle, "KiB", 1);
    figure("agent_pss_30_pods", measured.agent_pss, "KiB", 1);
    figure("shim_pss", measured.shim_pss, "KiB", 30);
    figure("shim_private", measured.shim_private, "KiB", 30);
    figure("agent_cpu_30_idle_pods", measured.idle_cpu, "core", 1);
    figure("binary_berth", size_kib(&berth()), "KiB", 1);
    node.finish();
}

/// Whether a process is `berth` and not the tool that started it.
fn is_agent(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "berth")
}

/// What the thread inside the namespace brings back.
struct Measured {
    times: BTreeMap<&'static str, Vec<f64>>,
    agent_pss: f64,
    shim_pss: f64,
    shim_private: f64,
    idle_cpu: f64,
}

async fn measure(kubeconfig: PathBuf, agent: u32) -> Measured {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a configuration");
    let pods: Api<Pod> = Api::default_namespaced(Client::try_from(config).expect("a client"));
    let mut times: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for run in 0..RUNS {
        let names = [format!("one-{run}")];
        let ready = create(&pods, &names).await;
        times.entry("created_to_ready_1").or_default().push(ready);
        let gone = delete(&pods, &names).await;
        times.entry("deleted_to_gone_1").or_default().push(gone);
        tokio::time::sleep(GAP).await;
    }
    let names: Vec<_> = (0..30).map(|index| format!("many-{index}")).collect();
    let mut weights = (0.0, 0.0, 0.0, 0.0);
    for run in 0..3 {
        times.entry("created_to_ready_30").or_default().push(create(&pods, &names).await);
        if run == 0 {
            weights = weigh(agent).await;
        }
        times.entry("deleted_to_gone_30").or_default().push(delete(&pods, &names).await);
    }
    let (agent_pss, shim_pss, shim_private, idle_cpu) = weights;
    Measured { times, agent_pss, shim_pss, shim_private, idle_cpu }
}

/// Creates pods at once; milliseconds until a watch has seen the last of them Ready.
async fn create(pods: &Api<Pod>, names: &[String]) -> f64 {
    let mut watch = pods.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    let began = Instant::now();
    let all = names.iter().map(|name| async move {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "main", "image": DEMO }],
            },
        }))
        .expect("a pod");
        pods.create(&PostParams::default(), &pod).await.expect("the pod is accepted");
    });
    let ready = async {
        let mut waiting: std::collections::BTreeSet<&str> =
            names.iter().map(String::as_str).collect();
        while let Some(event) = watch.try_next().await.expect("the watch goes on") {
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                && is_ready(&pod)
            {
                waiting.remove(pod.metadata.name.as_deref().unwrap_or_default());
            }
            if waiting.is_empty() {
                break;
            }
        }
        began.elapsed()
    };
    let (_, elapsed) = tokio::join!(futures::future::join_all(all), ready);
    elapsed.as_secs_f64() * 1e3
}

/// Deletes pods at once; milliseconds until a watch has seen the last of them go.
async fn delete(pods: &Api<Pod>, names: &[String]) -> f64 {
    let mut watch = pods.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    let began = Instant::now();
    let all = names.iter().map(|name| async move {
        pods.delete(name, &DeleteParams::default().grace_period(1))
            .await
            .expect("the pod is deleted");
    });
    let gone = async {
        let mut waiting: std::collections::BTreeSet<&str> =
            names.iter().map(String::as_str).collect();
        while !waiting.is_empty() {
            let Some(event) = watch.try_next().await.expect("the watch goes on") else { break };
            if let WatchEvent::Deleted(pod) = event {
                waiting.remove(pod.metadata.name.as_deref().unwrap_or_default());
            }
        }
        began.elapsed()
    };
    let (_, elapsed) = tokio::join!(futures::future::join_all(all), gone);
    elapsed.as_secs_f64() * 1e3
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// The agent's PSS, a shim's PSS and private memory (KiB, medians), and the agent's idle CPU.
async fn weigh(agent: u32) -> (f64, f64, f64, f64) {
    let before = cpu_seconds(agent);
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle_cpu = (cpu_seconds(agent) - before) / began.elapsed().as_secs_f64();
    let shims = succeed(Command::new("pgrep").args(["-f", "^berth-oci shim"]));
    let shims: Vec<u32> = shims.lines().filter_map(|line| line.parse().ok()).collect();
    let mut pss: Vec<f64> = shims.iter().map(|pid| pss_kib(*pid)).collect();
    let mut private: Vec<f64> = shims.iter().map(|pid| private_kib(*pid)).collect();
    (pss_kib(agent), percentile(&mut pss, 50), percentile(&mut private, 50), idle_cpu)
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().filter_map(|text| text.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn rollup_kib(pid: u32, fields: &[&str]) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process");
    let of = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        fields.contains(&name).then(|| rest.trim().trim_end_matches(" kB").parse::<f64>().ok())?
    };
    text.lines().filter_map(of).sum()
}

fn pss_kib(pid: u32) -> f64 {
    rollup_kib(pid, &["Pss"])
}

fn private_kib(pid: u32) -> f64 {
    rollup_kib(pid, &["Private_Clean", "Private_Dirty"])
}

/// From the start of `kubectl apply` to a `kubectl wait` that has seen Ready, for 1 and 30 pods.
fn kubectl_times(node: &Node) -> Vec<(String, f64)> {
    [1, 30]
        .map(|count| (format!("kubectl_apply_to_ready_{count}"), kubectl_time(node, count)))
        .into()
}

fn kubectl_time(node: &Node, count: usize) -> f64 {
    let one = |index: usize| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: applied-{index}}}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  containers: [{{name: main, image: '{DEMO}'}}]\n"
        )
    };
    let manifest: String = (0..count).map(one).collect();
    let began = Instant::now();
    node.apply(&manifest);
    node.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    let elapsed = began.elapsed().as_secs_f64() * 1e3;
    node.kubectl(&["delete", "pod", "--all"]);
    elapsed
}

fn size_kib(file: &std::path::Path) -> f64 {
    fs::metadata(file).expect("an executable").size() as f64 / 1024.0
}

fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    let index = (samples.len() * percent).div_ceil(100).saturating_sub(1);
    samples.get(index).copied().unwrap_or(f64::NAN)
}

/// Prints one figure. This area's peer, a kubelet with a runtime and a control plane, is not on the
/// machine, so there is no ratio.
fn figure(name: &str, value: f64, unit: &str, runs: usize) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    println!("bench area=pods figure={name} ours={value:.3}{unit} peer=none n={runs} load={load}");
}
