//! The agent killed after each of the calls by which it makes and ends a pod, and by which it starts
//! again beside one: the next one makes good.
//!
//! The agent that is killed has joined the node of another, which keeps the API server.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use berth_testkit::{Census, Tracer};
use serde_json::Value;

use crate::node::{Node, berth, patience, rounds, succeed, wait};
use crate::nodes::linked;

/// Each of its containers tells of each of its runs. One ends when it is asked to, and says so.
const POD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {word: hello}
---
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 30
  volumes:
    - {name: host, hostPath: {path: HOSTPATH}}
    - {name: shared, emptyDir: {}}
    - {name: words, configMap: {name: words}}
  initContainers:
    - name: first
      image: berth.local/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, 'echo first >> /host/runs; cp /words/word /shared/word']
      volumeMounts: [{name: host, mountPath: /host}, {name: shared, mountPath: /shared}, {name: words, mountPath: /words}]
  containers:
    - name: main
      image: berth.local/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, 'echo $(cat /shared/word); echo main >> /host/runs; trap "exit 0" TERM; until [ -e /host/end ]; do usleep 50000; done; touch /host/ended']
      ports: [{containerPort: 80, hostPort: 18081}]
      volumeMounts: [{name: host, mountPath: /host}, {name: shared, mountPath: /shared}]
"#;

/// The kinds of the census that are a network namespace's own.
const NETWORK: [&str; 6] = ["links", "addresses", "routes", "rules", "neighbours", "nft"];

/// What is done on the first node while the second's agent is followed.
type Begin<'a> = &'a dyn Fn(&Node);

/// An API server on one node, and an agent on another that is killed.
struct Pair {
    first: Node,
    second: Node,
    /// What stays on the second node between pods.
    census: Option<Census>,
}

impl Pair {
    fn start() -> Self {
        let (mut first, second) = linked();
        first.up(&["--node-ip", "192.0.2.1", "--api", "192.0.2.1:6443"]);
        first.await_ready();
        fs::copy(first.kubeconfig(), second.path("kubeconfig")).unwrap();
        let configuration = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                             podCIDR: 10.244.1.0/24\n";
        fs::write(second.path("node.yaml"), configuration).unwrap();
        fs::create_dir(second.path("host")).unwrap();
        let mut pair = Self { first, second, census: None };
        pair.start_agent();
        pair.second.berth(&["images", "import", crate::image::busybox().to_str().unwrap()]);
        pair
    }

    fn spawn_agent(&mut self, command: Command) {
        let configuration = self.second.path("node.yaml").display().to_string();
        let flags = ["--node-ip", "192.0.2.2", "--config", &configuration];
        self.second.join_by(command, &self.second.path("kubeconfig"), &flags);
    }

    /// Starts the agent, and waits until it is at work.
    fn start_agent(&mut self) {
        let command = self.second.namespace().command(berth());
        self.spawn_agent(command);
        self.second.wait_for("the agent to be well", || {
            let mut curl = self.second.namespace().command("curl");
            let answer = curl.args(["-s", "http://127.0.0.1:10248/healthz"]).output().unwrap();
            (answer.stdout == b"ok").then_some(())
        });
    }

    /// The sandboxes that have a shim, by its command line. What writes its logs has the same, and so have
    /// the processes of containers until they are executed.
    fn live(&self) -> BTreeSet<String> {
        let command = |shim: &String| fs::read_to_string(format!("/proc/{shim}/cmdline")).ok();
        let shims = self.second.shims();
        shims.iter().filter_map(command).filter(|line| line.contains("shim\0--dir")).collect()
    }

    fn runs(&self) -> PathBuf {
        self.second.path("host/runs")
    }

    /// Follows the agent from before `begin` until kubectl, run with these arguments, has seen the end of
    /// it. The agent is killed after the effect of this number, and another one started. Returns the
    /// effects.
    fn follow(&mut self, fatal: Option<usize>, begin: Begin<'_>, args: &[&str]) -> Vec<String> {
        let tracer =
            Tracer::attach(self.second.agent_id(), fatal).expect("the agent can be traced");
        begin(&self.first);
        let timeout = format!("--timeout={}s", patience().as_secs());
        let mut command = self.first.kubectl_command();
        let mut command = command.args(args).arg(timeout).stdout(Stdio::null()).spawn().unwrap();
        while !tracer.is_dead() && command.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(2));
        }
        let followed = tracer.end().expect("the agent was followed");
        if followed.is_dead {
            self.second.forget_agent();
            self.start_agent();
        }
        self.succeeds(&mut command);
        followed.effects
    }

    /// Awaits kubectl, and never sees two sandboxes live at once meanwhile.
    fn succeeds(&self, command: &mut Child) {
        let status = loop {
            if let Some(status) = command.try_wait().unwrap() {
                break status;
            }
            let live = self.live();
            assert!(live.len() < 2, "two sandboxes at once: {live:?}");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "kubectl: {status}\n{}", self.second.agent_log());
    }

    /// Makes the pod. Returns the agent's effects.
    fn make(&mut self, fatal: Option<usize>) -> Vec<String> {
        let _ = fs::remove_file(self.runs());
        let manifest = POD.replace("HOSTPATH", self.second.path("host").to_str().unwrap());
        let ready = ["wait", "pod", "box", "--for=condition=Ready"];
        let effects = self.follow(fatal, &|first| first.apply(&manifest), &ready);
        self.runs_again(0);
        effects
    }

    /// Starts the agent again, which was away when the container ended. Returns its effects.
    fn restart(&mut self, fatal: Option<usize>) -> Vec<String> {
        let [gate, end, ended] = ["gate", "host/end", "host/ended"].map(|it| self.second.path(it));
        self.second.kill_agent();
        fs::write(&end, "").unwrap();
        wait("the container to end", || ended.exists().then_some(()));
        fs::remove_file(&end).unwrap();
        fs::remove_file(&ended).unwrap();
        // It is followed from its first call on.
        succeed(Command::new("mkfifo").arg(&gate));
        let mut command = self.second.namespace().command("sh");
        command.args(["-c", r#"read -r _ < "$0"; exec "$@""#]).arg(&gate).arg(berth());
        self.spawn_agent(command);
        // The shell is at the gate, and nothing before it is followed.
        let gatekeeper = File::options().write(true).open(&gate).unwrap();
        let count = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1";
        let open = |_: &Node| (&gatekeeper).write_all(b"\n").unwrap();
        let effects = self.follow(fatal, &open, &["wait", "pod", "box", count]);
        fs::remove_file(&gate).unwrap();
        self.runs_again(1);
        effects
    }

    /// The pod's container runs and was started again so often, and its other one ran once.
    fn runs_again(&self, restarts: usize) {
        let pod = self.first.wait_ready("box");
        for (kind, count) in [("initContainerStatuses", 0), ("containerStatuses", restarts)] {
            let container: &Value = &pod["status"][kind][0];
            assert_eq!(container["restartCount"], count, "{container}");
        }
        self.second.wait_for("what the container says", || {
            (self.first.kubectl(&["logs", "box"]) == "hello\n").then_some(())
        });
        let expected = format!("first\n{}", "main\n".repeat(1 + restarts));
        let runs = || fs::read_to_string(self.runs()).unwrap();
        self.second
            .wait_for("its run to be told", || (runs().len() >= expected.len()).then_some(()));
        assert_eq!(runs(), expected);
        assert_eq!(self.live().len(), 1);
        let known: Value = serde_json::from_str(&self.second.berth(&["pods", "--json"])).unwrap();
        let containers = known[0]["containers"].as_array().map_or(0, Vec::len);
        assert_eq!((known.as_array().unwrap().len(), containers), (1, 2 + restarts));
    }

    /// Deletes the pod. Returns the agent's effects.
    fn delete(&mut self, fatal: Option<usize>) -> Vec<String> {
        let pod = self.first.get("pod", "box");
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let effects = self.follow(fatal, &|_| (), &["delete", "pod", "box"]);
        // What the API has no more is torn down still.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let census = self.second.census();
            let left = self.left(&census, uid);
            if left.is_empty() && self.live().is_empty() {
                self.census.get_or_insert(census);
                return effects;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?} {:?}", self.live());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a pod has left on the second node, whose agent may be another one than before. Other tests
    /// have network namespaces and directories of their own, and come and go.
    fn left(&self, census: &Census, uid: &str) -> Vec<(String, String)> {
        let before = self.census.as_ref().unwrap_or(census);
        let new = before.difference(census).left;
        let directory = self.second.path("").display().to_string();
        let is_own = |(kind, entry): &(String, String)| {
            NETWORK.contains(&kind.as_str()) || kind != "processes" && entry.contains(&directory)
        };
        let mut left = Census::default().difference(census).left;
        left.retain(|found| found.1.contains(uid) || new.contains(found) && is_own(found));
        left
    }
}

#[test]
fn agents_killed_after_any_side_effect_are_made_good_by_the_next() {
    let mut pair = Pair::start();
    // The first pod and the first restart leave what all others find.
    pair.make(None);
    pair.second.kill_agent();
    pair.start_agent();
    pair.second.wait_for("the bridge to have its address for good", || {
        let tentative = ["-6", "address", "show", "dev", "berth0", "tentative"];
        pair.second.namespace().run("ip", &tentative).is_empty().then_some(())
    });
    pair.delete(None);
    let making = pair.make(None).len();
    let starting = pair.restart(None).len();
    let ending = pair.delete(None).len();
    eprintln!(
        "{making} side effects make a pod, {starting} start an agent and {ending} end the pod"
    );
    assert!(making > 40 && starting > 20 && ending > 20, "{making} {starting} {ending}");
    let count = rounds(6).min(making.max(starting).max(ending)).max(2);
    for round in 0..count {
        let nth = |of: usize| 1 + round * (of - 1) / (count - 1);
        let made = pair.make(Some(nth(making)));
        let started = pair.restart(Some(nth(starting)));
        let ended = pair.delete(Some(nth(ending)));
        let last = |effects: &[String]| format!("{} {:?}", effects.len(), effects.last());
        eprintln!("round {round}: {}, {}, {}", last(&made), last(&started), last(&ended));
    }
    pair.first.kubectl(&["delete", "configmap", "words"]);
    Node::finish_all([pair.second, pair.first]);
}
