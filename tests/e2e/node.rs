//! A node for one test: a network namespace, directories and an agent of its own.
//!
//! [`Node::finish`] stops it, runs `berth reset`, and demands an empty leak census. A test that
//! panics prints the agent's log and still cleans up.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use berth_testkit::{Census, Scope};
use serde_json::Value;

use crate::image;

/// The node's address on its uplink.
pub(crate) const NODE_IP: &str = "192.0.2.10";

/// How long a test waits for something that happens at once on an idle machine: 90 s, or the seconds
/// in `BERTH_TEST_PATIENCE`, which a slow machine sets.
pub(crate) fn patience() -> Duration {
    let seconds = std::env::var("BERTH_TEST_PATIENCE")
        .map_or(90, |text| text.parse().expect("BERTH_TEST_PATIENCE is a number of seconds"));
    Duration::from_secs(seconds)
}

/// How often something is done again and again: seldom where every change is tested, as often as
/// `BERTH_RACE_ROUNDS` says elsewhere.
pub(crate) fn rounds(few: usize) -> usize {
    std::env::var("BERTH_RACE_ROUNDS")
        .map_or(few, |text| text.parse().expect("BERTH_RACE_ROUNDS is a number"))
}

/// A node of one test's own.
pub(crate) struct Node {
    pub(crate) name: String,
    /// Holds state, run and log directories and the agent's log.
    dir: PathBuf,
    namespace: Namespace,
    agent: Option<Child>,
    /// What was there before the agent was started first.
    before: Option<Census>,
    /// Its directories that are file systems of their own.
    mounted: Vec<&'static str>,
}

/// A network namespace, held open by a process that does nothing.
pub(crate) struct Namespace {
    holder: Child,
}

impl Namespace {
    /// A namespace with loopback up.
    pub(crate) fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "--", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare runs");
        let namespace = Self { holder };
        let own = fs::read_link("/proc/self/ns/net").expect("own namespace");
        wait("a namespace of its own", || {
            fs::read_link(namespace.path()).ok().filter(|link| *link != own)
        });
        namespace.run("ip", &["link", "set", "lo", "up"]);
        namespace
    }

    /// Its path below `/proc`.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// The process that holds it.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Calls `work` on a thread inside, which ends there: no other thread is moved.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let file = File::open(self.path()).expect("the namespace");
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering it");
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a command inside; it must succeed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        succeed(self.command(program).args(args))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Node {
    /// A node behind an uplink with a default route, running `berth up` with the test images.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further flags for `berth up`.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let mut node = Self::prepare("node-1");
        node.uplink();
        node.up(flags);
        node.await_ready();
        node
    }

    /// Directories and a namespace; nothing runs.
    pub(crate) fn prepare(name: &str) -> Self {
        let dir = PathBuf::from(
            succeed(Command::new("mktemp").args(["-d", "/tmp/berth-e2e.XXXXXX"])).trim(),
        );
        // How full the disks of the machine are on which tests run is not the node's matter.
        fs::create_dir(dir.join("disks")).expect("a directory of drop-ins");
        let full = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    evictionHard: {nodefs.available: 0%, imagefs.available: 0%}\n";
        fs::write(dir.join("disks/disks.conf"), full).expect("a drop-in");
        let namespace = Namespace::new();
        let name = name.to_owned();
        let mut node =
            Self { name, dir, namespace, agent: None, before: None, mounted: Vec::new() };
        node.mount_tmpfs("run", "mode=0700");
        node
    }

    /// Gives a directory of the node a file system of its own, before there is anything in it.
    pub(crate) fn mount_tmpfs(&mut self, name: &'static str, options: &str) {
        let path = self.path(name);
        fs::create_dir(&path).expect("a new directory");
        let mut mount = Command::new("mount");
        succeed(mount.args(["-t", "tmpfs", "-o", options, "berth-e2e"]).arg(path));
        self.mounted.push(name);
    }

    /// Gives the node the address [`NODE_IP`] and a default route, as any host has.
    pub(crate) fn uplink(&self) {
        let ip = |line: &str| {
            self.namespace.run("ip", &line.split(' ').collect::<Vec<_>>());
        };
        ip("link add uplink type veth peer name outside");
        for end in ["uplink", "outside"] {
            // Link-local addresses would come late, into the middle of the census.
            ip(&format!("link set {end} addrgenmode none"));
            ip(&format!("link set {end} up"));
        }
        ip(&format!("address add {NODE_IP}/24 dev uplink"));
        ip("route add default via 192.0.2.1");
    }

    /// The namespace the node is in.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A path in the node's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory flags that every command of this node needs.
    pub(crate) fn dir_flags(&self) -> Vec<String> {
        let flag = |name: &str, dir: &str| [name.to_owned(), self.path(dir).display().to_string()];
        [flag("--state-dir", "state"), flag("--run-dir", "run"), flag("--log-dir", "log/pods")]
            .concat()
    }

    /// Those that an agent needs besides.
    fn agent_flags(&self) -> Vec<String> {
        let disks = self.path("disks").display().to_string();
        [self.dir_flags(), vec!["--config-dir".to_owned(), disks]].concat()
    }

    /// Starts `berth up` with the test images and these flags.
    pub(crate) fn up(&mut self, flags: &[&str]) {
        let command = self.namespace.command(berth());
        self.up_by(command, flags);
    }

    /// The same where it may have only so many descriptors open.
    pub(crate) fn up_with_descriptors(&mut self, most: u32, flags: &[&str]) {
        self.up_through(&["prlimit", &format!("--nofile={most}:{most}"), "--"], flags);
    }

    /// The same by a program that executes it.
    pub(crate) fn up_through(&mut self, by: &[&str], flags: &[&str]) {
        let mut command = self.namespace.command(by[0]);
        command.args(&by[1..]).arg(berth());
        self.up_by(command, flags);
    }

    fn up_by(&mut self, mut command: Command, flags: &[&str]) {
        command.arg("up").args(self.agent_flags()).args(["--node-name", &self.name]);
        if !flags.contains(&"--node-ip") {
            command.args(["--node-ip", NODE_IP]);
        }
        command
            .arg("--import")
            .arg(image::busybox())
            .arg("--import")
            .arg(image::demo())
            .args(flags);
        self.spawn(command);
    }

    /// Starts `berth agent` against another node's API server.
    pub(crate) fn join(&mut self, kubeconfig: &Path, flags: &[&str]) {
        self.join_by(self.namespace.command(berth()), kubeconfig, flags);
    }

    /// The same by a command that executes it.
    pub(crate) fn join_by(&mut self, mut command: Command, kubeconfig: &Path, flags: &[&str]) {
        command.arg("agent").args(self.agent_flags()).args(["--node-name", &self.name]);
        command.arg("--kubeconfig").arg(kubeconfig).args(flags);
        self.spawn(command);
    }

    /// Starts `berth agent` as what it became by `berth join`.
    pub(crate) fn agent(&mut self, flags: &[&str]) {
        let mut command = self.namespace.command(berth());
        command.arg("agent").args(self.agent_flags()).args(["--node-name", &self.name]).args(flags);
        self.spawn(command);
    }

    /// Starts an agent.
    pub(crate) fn spawn(&mut self, mut command: Command) {
        assert!(self.agent.is_none(), "the agent runs already");
        if self.before.is_none() {
            self.before = Some(self.census());
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))
            .expect("agent.log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.agent = Some(command.spawn().expect("the agent starts"));
    }

    /// Waits until the node is Ready and pods can be made.
    pub(crate) fn await_ready(&self) {
        let name = self.name.clone();
        self.wait_for("the node to be Ready", || {
            let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let answer = self.try_kubectl(&["get", "node", &name, "-o", ready]);
            (answer.status.success() && answer.stdout == b"True").then_some(())
        });
        self.wait_for("the default service account", || {
            self.try_kubectl(&["get", "serviceaccount", "default"]).status.success().then_some(())
        });
    }

    /// Ends the agent as an operator would, and waits for it.
    pub(crate) fn stop_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            succeed(Command::new("kill").args(["-TERM", &agent.id().to_string()]));
            let deadline = Instant::now() + Duration::from_secs(20);
            while agent.try_wait().expect("the agent can be waited for").is_none() {
                if Instant::now() > deadline {
                    let _ = agent.kill();
                    let _ = agent.wait();
                    panic!("the agent did not end within 20 s of SIGTERM\n{}", self.agent_log());
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// SIGKILLs the agent.
    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("an agent runs");
        agent.kill().expect("the agent can be killed");
        agent.wait().expect("the agent can be waited for");
    }

    /// The process id of the agent.
    pub(crate) fn agent_id(&self) -> u32 {
        self.agent.as_ref().expect("an agent runs").id()
    }

    /// Takes note that the agent is dead, and that somebody has waited for it.
    pub(crate) fn forget_agent(&mut self) {
        self.agent = None;
    }

    /// The process ids of its pods' shims.
    pub(crate) fn shims(&self) -> Vec<String> {
        let pattern = format!("berth-oci shim.*{}", self.path("run").display());
        let found = Command::new("pgrep").args(["-f", &pattern]).output().expect("pgrep runs");
        String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
    }

    /// What the agent has logged.
    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Runs kubectl as the administrator; it must succeed.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args);
        assert!(output.status.success(), "kubectl {args:?}: {}", told(&output));
        String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
    }

    /// Runs kubectl as the administrator.
    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_command().args(args).output().expect("kubectl runs")
    }

    /// kubectl as the administrator, to be run.
    pub(crate) fn kubectl_command(&self) -> Command {
        let mut command = self.namespace.command(kubectl());
        let cache = self.path("kubectl-cache");
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", cache)
            .stdin(Stdio::null());
        command
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("state/standalone/admin.kubeconfig")
    }

    /// Runs `berth` with this node's directories; it must succeed.
    pub(crate) fn berth(&self, args: &[&str]) -> String {
        succeed(self.namespace.command(berth()).args(args).args(self.dir_flags()))
    }

    /// Applies a manifest; it must succeed.
    pub(crate) fn apply(&self, manifest: &str) {
        let output = self.try_apply(manifest);
        assert!(output.status.success(), "kubectl apply: {}\n{manifest}", told(&output));
    }

    /// Applies a manifest.
    pub(crate) fn try_apply(&self, manifest: &str) -> Output {
        let file = self.path("manifest.yaml");
        fs::write(&file, manifest).expect("a manifest can be written");
        self.try_kubectl(&["apply", "-f", file.to_str().expect("UTF-8")])
    }

    /// An object as JSON, or `Null` when it is not there.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        let output = self.try_kubectl(&["get", kind, name, "-o", "json"]);
        if output.status.success() {
            serde_json::from_slice(&output.stdout).expect("kubectl prints JSON")
        } else {
            let text = told(&output);
            assert!(text.contains("NotFound"), "{text}");
            Value::Null
        }
    }

    /// Waits until a pod satisfies `condition`, and returns it.
    pub(crate) fn wait_pod(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + patience();
        loop {
            let pod = self.get("pod", name);
            if condition(&pod) {
                return pod;
            }
            if Instant::now() > deadline {
                let describe = self.try_kubectl(&["describe", "pod", name]);
                panic!("pod {name} is not {what}:\n{}\n{}", told(&describe), self.log_tail());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a pod is Ready.
    pub(crate) fn wait_ready(&self, name: &str) -> Value {
        self.wait_pod(name, "Ready", |pod| condition(pod, "Ready") == "True")
    }

    /// Waits until a pod is in this phase.
    pub(crate) fn wait_phase(&self, name: &str, phase: &str) -> Value {
        self.wait_pod(name, phase, |pod| pod["status"]["phase"] == phase)
    }

    /// Waits until a pod has an event of this reason, and returns its message.
    pub(crate) fn wait_event(&self, object: &str, reason: &str) -> String {
        self.wait_for(&format!("event {reason} of {object}"), || {
            let selector = format!("involvedObject.name={object},reason={reason}");
            let events =
                self.try_kubectl(&["get", "events", "--field-selector", &selector, "-o", "json"]);
            let events: Value = serde_json::from_slice(&events.stdout).ok()?;
            Some(events["items"].as_array()?.last()?["message"].as_str()?.to_owned())
        })
    }

    /// Polls until `probe` gives something; panics with the agent's log when it never does.
    pub(crate) fn wait_for<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + patience();
        loop {
            if let Some(value) = probe() {
                return value;
            }
            assert!(Instant::now() < deadline, "gave up waiting for {what}\n{}", self.log_tail());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_tail(&self) -> String {
        let log = self.agent_log();
        let lines: Vec<_> = log.lines().collect();
        let mut text = String::from("the agent said:\n");
        for line in &lines[lines.len().saturating_sub(60)..] {
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    /// Stops the node, resets it, and demands that nothing of it is left.
    pub(crate) fn finish(self) {
        Self::finish_all([self]);
    }

    /// The same for nodes that have something in common, as a link: all end before any of it goes.
    pub(crate) fn finish_all<const N: usize>(mut nodes: [Self; N]) {
        nodes.iter_mut().for_each(Self::leave);
        for node in nodes {
            for name in &node.mounted {
                succeed(Command::new("umount").arg(node.path(name)));
            }
            fs::remove_dir_all(&node.dir).expect("the node's directory can be removed");
        }
    }

    fn leave(&mut self) {
        self.stop_agent();
        succeed(self.namespace.command(berth()).arg("reset").args(self.dir_flags()));
        if let Some(before) = self.before.take() {
            let scope = self.scope();
            self.namespace.within(|| nothing_is_left(&before, &scope));
        }
    }

    /// Counts what is there of it, and what of the host it can see.
    pub(crate) fn census(&self) -> Census {
        let scope = self.scope();
        self.namespace.within(|| Census::take(&scope).expect("the census can be taken"))
    }

    /// Where this node's things are.
    fn scope(&self) -> Scope {
        let roots =
            ["state", "run", "log/pods", "log/containers"].map(|name| self.path(name)).to_vec();
        Scope { roots, ..Scope::default() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if self.dir.exists() {
            let _ = self.namespace.command(berth()).arg("reset").args(self.dir_flags()).output();
            for name in &self.mounted {
                let _ = Command::new("umount").arg(self.path(name)).output();
            }
            if thread::panicking() {
                eprintln!("{}", self.log_tail());
            }
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// What the end of a node must not take from the host. Namespaces and processes that others leave go
/// by themselves.
const KEPT: [&str; 6] = ["mounts", "links", "addresses", "routes", "rules", "nft"];

/// Demands that nothing is there which was not there before, and that what was there of the host still
/// is; what is torn down in the background gets some seconds.
fn nothing_is_left(before: &Census, scope: &Scope) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let after = Census::take(scope).expect("the census can be taken");
        let difference = before.difference(&after);
        let taken = difference.gone.iter().any(|(kind, _)| KEPT.contains(&kind.as_str()));
        if difference.left.is_empty() && !taken {
            return;
        }
        assert!(Instant::now() < deadline, "left behind, or taken away:\n{difference}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The status of a pod's condition, or the empty string.
pub(crate) fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == kind));
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

/// A pod that sleeps and ends at once when it is to, with these resources. Manifests can be joined.
pub(crate) fn sleeper(name: &str, resources: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sleep, '100000']
      resources: {resources}
---"
    )
}

/// The executable under test: `BERTH`, or the one built with this test.
pub(crate) fn berth() -> PathBuf {
    std::env::var_os("BERTH")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_berth")), PathBuf::from)
}

/// A current kubectl: `KUBECTL`, or the one that the set-up unpacked.
pub(crate) fn kubectl() -> PathBuf {
    let path = std::env::var_os("KUBECTL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/peers/bin/kubectl"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is missing: run tests/setup/peers.sh, or set KUBECTL",
        path.display()
    );
    path
}

/// Runs a command that must succeed, and returns what it printed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", told(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command's outcome in words.
pub(crate) fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!("{}: {} {}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Polls until `probe` gives something.
pub(crate) fn wait<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A directory for files that all tests of one build share.
pub(crate) fn shared_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(&dir).expect("a shared directory");
        dir
    })
}
