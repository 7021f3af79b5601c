//! `make bench AREA=pods`: how long a pod takes from the wish to Ready and from deletion to gone, and
//! what the agent and a shim weigh. One line a figure on standard output.
//!
//! Times are taken by a watch on the API, on a thread inside the node's network namespace, so that
//! they hold no start of a client program but where the figure says `kubectl`.

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../e2e/image.rs"]
mod image;
#[allow(dead_code, reason = "shared with other benches")]
#[path = "measure.rs"]
mod measure;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../e2e/node.rs"]
mod node;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use measure::percentile;
use node::{Node, berth, succeed};

/// Starts are this far apart: back-to-back loops hide the kernel's grace periods.
const GAP: Duration = Duration::from_millis(100);

const RUNS: usize = 20;

/// The demo image's reference.
const DEMO: &str = "berth.local/demo:1";

const BUSYBOX: &str = "berth.local/busybox:1";

/// What a start leaves to be done, such as events that are sent a few a second, is over by then.
const REST: Duration = Duration::from_secs(30);

/// Nothing that is measured takes so long.
const LONG: Duration = Duration::from_secs(30);

/// So many pods are started at once.
const CROWDS: [usize; 4] = [10, 30, 50, 110];

/// How often each crowd is started.
const CROWD_RUNS: usize = 3;

fn main() {
    let node = Node::start();
    let agent = measure::agent(&node.path("state"));
    tell("agent_pss_0_pods", measure::pss_kib(agent), "KiB", 1);
    for count in [1, 30] {
        tell(&format!("kubectl_apply_to_ready_{count}"), kubectl_time(&node, count), "ms", 1);
    }
    let bench = Bench { agent, volumes: node.path("state").join("pods") };
    let kubeconfig = node.kubeconfig();
    node.namespace().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(bench.measure(kubeconfig));
    });
    tell("binary_berth", size_kib(&berth()), "KiB", 1);
    node.finish();
}

/// The agent that is measured, and where it keeps pods' volumes.
struct Bench {
    agent: u32,
    volumes: PathBuf,
}

impl Bench {
    async fn measure(&self, kubeconfig: PathBuf) {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a configuration");
        let client = Client::try_from(config).expect("a client");
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        self.one_by_one(&pods).await;
        for count in CROWDS {
            self.crowd(&pods, count).await;
        }
        exit_to_status(&pods).await;
        self.change_to_file(&pods, &Api::default_namespaced(client)).await;
        self.probes(&pods).await;
    }

    async fn one_by_one(&self, pods: &Api<Pod>) {
        let (mut ready, mut gone) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            let one = [demo(format!("one-{run}"))];
            ready.push(create(pods, &one).await);
            gone.push(delete(pods, &one).await);
            tokio::time::sleep(GAP).await;
        }
        measure::distribution("pods", "created_to_ready_1", ready);
        measure::distribution("pods", "deleted_to_gone_1", gone);
    }

    /// Starts and removes so many pods at once; weighs the agent and the shims while they run.
    async fn crowd(&self, pods: &Api<Pod>, count: usize) {
        let all: Vec<_> = (0..count).map(|index| demo(format!("many-{index}"))).collect();
        let (mut ready, mut gone) = (Vec::new(), Vec::new());
        for run in 0..CROWD_RUNS {
            ready.push(create(pods, &all).await);
            if run == 0 {
                self.weigh(count).await;
            }
            gone.push(delete(pods, &all).await);
        }
        measure::distribution("pods", &format!("created_to_ready_{count}"), ready);
        measure::distribution("pods", &format!("deleted_to_gone_{count}"), gone);
    }

    async fn weigh(&self, count: usize) {
        tokio::time::sleep(REST).await;
        tell(&format!("agent_cpu_{count}_idle_pods"), self.cpu(&[self.agent]).await, "core", 1);
        tell(&format!("agent_pss_{count}_pods"), measure::pss_kib(self.agent), "KiB", 1);
        let shims = measure::shims();
        let mut pss: Vec<_> = shims.iter().map(|pid| measure::pss_kib(*pid)).collect();
        tell(&format!("shim_pss_{count}_pods"), percentile(&mut pss, 50), "KiB", count);
        let mut private: Vec<_> = shims.iter().map(|pid| measure::private_kib(*pid)).collect();
        tell(&format!("shim_private_{count}_pods"), percentile(&mut private, 50), "KiB", count);
    }

    /// What these processes and their children use of a processor, over ten seconds.
    async fn cpu(&self, pids: &[u32]) -> f64 {
        let used = || pids.iter().map(|pid| measure::cpu_seconds(*pid)).sum::<f64>();
        let (before, began) = (used(), Instant::now());
        tokio::time::sleep(Duration::from_secs(10)).await;
        (used() - before) / began.elapsed().as_secs_f64()
    }

    /// From a config map's change on the API server to the file in the pod.
    async fn change_to_file(&self, pods: &Api<Pod>, maps: &Api<ConfigMap>) {
        let map = |text: &str| -> ConfigMap {
            let map = json!({"metadata": {"name": "bench"}, "data": {"file": text}});
            serde_json::from_value(map).expect("a config map")
        };
        maps.create(&PostParams::default(), &map("-")).await.expect("it is accepted");
        let mut pod = demo("reader".to_owned());
        let volumes = json!([{"name": "map", "configMap": {"name": "bench"}}]);
        let spec = pod.spec.as_mut().expect("a spec");
        spec.volumes = serde_json::from_value(volumes).expect("volumes");
        let pod = [pod];
        create(pods, &pod).await;
        let uid = pods.get("reader").await.expect("the pod").metadata.uid.expect("a uid");
        let file = self.volumes.join(uid).join("volumes/kubernetes.io~configmap/map/file");
        let mut samples = Vec::new();
        for run in 0..RUNS {
            let text = format!("change {run}");
            let began = Instant::now();
            maps.replace("bench", &PostParams::default(), &map(&text)).await.expect("a change");
            while fs::read_to_string(&file).expect("the file of the map") != text {
                assert!(began.elapsed() < LONG, "the change does not arrive");
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            samples.push(milliseconds(began));
        }
        measure::distribution("pods", "config_map_change_to_file", samples);
        delete(pods, &pod).await;
        maps.delete("bench", &DeleteParams::default()).await.expect("it is deleted");
    }

    /// What a hundred exec probes a second cost: agent, shims and the commands themselves.
    async fn probes(&self, pods: &Api<Pod>) {
        let probed = |index: usize| {
            let mut pod = demo(format!("probed-{index}"));
            let probe = json!({"exec": {"command": ["/bin/true"]}, "periodSeconds": 1});
            let container = &mut pod.spec.as_mut().expect("a spec").containers[0];
            container.image = Some(BUSYBOX.to_owned());
            container.command = Some(vec!["sleep".to_owned(), "1000".to_owned()]);
            container.liveness_probe = serde_json::from_value(probe.clone()).expect("a probe");
            container.readiness_probe = serde_json::from_value(probe).expect("a probe");
            pod
        };
        let all: Vec<_> = (0..50).map(probed).collect();
        create(pods, &all).await;
        let mut processes = measure::shims();
        let whole = processes.len();
        tell("exec_probes_100_per_s_agent", self.cpu(&[self.agent]).await, "core", 1);
        processes.push(self.agent);
        tell("exec_probes_100_per_s_all", self.cpu(&processes).await, "core", whole);
        delete(pods, &all).await;
    }
}

/// From the death of a container's process to its pod's `Failed` on a watch.
async fn exit_to_status(pods: &Api<Pod>) {
    let mut samples = Vec::new();
    for run in 0..RUNS {
        // An argument that no other process has.
        let mark = format!("{}", 7_700_000 + run);
        let mut pod = demo(format!("ending-{run}"));
        let spec = pod.spec.as_mut().expect("a spec");
        spec.restart_policy = Some("Never".to_owned());
        spec.containers[0].image = Some(BUSYBOX.to_owned());
        spec.containers[0].command = Some(vec!["sleep".to_owned(), mark.clone()]);
        let pod = [pod];
        create(pods, &pod).await;
        let process = succeed(Command::new("pgrep").args(["-fx", &format!("sleep {mark}")]));
        let watch = watch(pods).await;
        let began = Instant::now();
        succeed(Command::new("kill").args(["-KILL", process.trim()]));
        let has_failed = |event: &WatchEvent<Pod>| match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed")
            }
            _ => false,
        };
        samples.push(read_until(watch, &pod, began, has_failed).await);
        delete(pods, &pod).await;
    }
    measure::distribution("pods", "exit_to_status", samples);
}

/// A pod of the demo image.
fn demo(name: String) -> Pod {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": DEMO}],
        },
    });
    serde_json::from_value(pod).expect("a pod")
}

fn names(pods: &[Pod]) -> BTreeSet<&str> {
    pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
}

type Watch = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Pod>>> + Send>>;

async fn watch(api: &Api<Pod>) -> Watch {
    api.watch(&WatchParams::default(), "0").await.expect("a watch").boxed()
}

/// Reads until each of the pods has been in an event that `is_it`; milliseconds since `began`.
async fn read_until(
    mut watch: Watch,
    pods: &[Pod],
    began: Instant,
    is_it: impl Fn(&WatchEvent<Pod>) -> bool,
) -> f64 {
    let mut waiting = names(pods);
    while !waiting.is_empty() {
        let event = watch.try_next().await.expect("the watch goes on").expect("the watch lasts");
        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) =
            &event
            && is_it(&event)
        {
            waiting.remove(pod.metadata.name.as_deref().unwrap_or_default());
        }
    }
    milliseconds(began)
}

/// Creates pods at once; milliseconds until a watch has seen the last of them Ready.
async fn create(api: &Api<Pod>, pods: &[Pod]) -> f64 {
    let watch = watch(api).await;
    let began = Instant::now();
    let all = pods.iter().map(|pod| async move {
        api.create(&PostParams::default(), pod).await.expect("the pod is accepted");
    });
    let ready = read_until(
        watch,
        pods,
        began,
        |event| matches!(event, WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_ready(pod)),
    );
    tokio::join!(futures::future::join_all(all), ready).1
}

/// Deletes pods at once; milliseconds until a watch has seen the last of them go.
async fn delete(api: &Api<Pod>, pods: &[Pod]) -> f64 {
    let watch = watch(api).await;
    let began = Instant::now();
    let all = names(pods).into_iter().map(|name| async move {
        let params = DeleteParams::default().grace_period(1);
        api.delete(name, &params).await.expect("the pod is deleted");
    });
    let gone = read_until(watch, pods, began, |event| matches!(event, WatchEvent::Deleted(_)));
    tokio::join!(futures::future::join_all(all), gone).1
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// From the start of `kubectl apply` to a `kubectl wait` that has seen so many pods Ready.
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
    let elapsed = milliseconds(began);
    node.kubectl(&["delete", "pod", "--all"]);
    elapsed
}

fn size_kib(file: &std::path::Path) -> f64 {
    fs::metadata(file).expect("an executable").size() as f64 / 1024.0
}

fn tell(name: &str, value: f64, unit: &str, runs: usize) {
    measure::figure("pods", name, value, unit, runs);
}
