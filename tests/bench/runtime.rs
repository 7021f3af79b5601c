//! `make bench AREA=runtime`: one container, by the runc-compatible command line, beside crun and runc
//! on the same bundle. One line a figure on standard output.
//!
//! Runs are interleaved and apart from each other; a figure is the median of the ratios of neighbours.
//! All runs have a mount namespace in which `/sys/fs/cgroup` is cgroup v2, and keep their state on a
//! tmpfs of its own.

#[allow(unsafe_code)]
#[path = "sys.rs"]
mod sys;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_oci::protocol::{Request, ShimConfig};
use berth_oci::{default_seccomp, read_frame, write_frame};
use serde_json::{Value, json};
use sys::Usage;

/// Starts are this far apart: back-to-back loops hide the kernel's grace periods.
const GAP: Duration = Duration::from_millis(80);

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

fn main() {
    enter_private_mounts();
    let bench = Bench::new();
    let runs = std::env::var("BERTH_BENCH_RUNS").ok().and_then(|text| text.parse().ok());
    let runs = runs.unwrap_or(30);
    bench.compare("run_seccomp", [0.6, 0.15], runs, |one, id| one.run("seccomp", id));
    bench.compare("run_plain", [0.55, 0.55], runs, |one, id| one.run("plain", id));
    bench.compare("create_start_delete", [0.5, 0.5], runs, Runtime::create_start_delete);
    bench.exec(runs);
    bench.compare("hundred_runs_4_at_a_time", [0.55, 0.55], runs.div_ceil(10), |one, id| {
        one.many(id);
        Usage::default()
    });
    bench.memory_limit();
    bench.shim();
    bench.clean();
}

/// Executes this program again where cgroup v2 is at its usual place and mounts are its own.
fn enter_private_mounts() {
    const INSIDE: &str = "BERTH_BENCH_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let script =
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t tmpfs tmpfs /mnt && exec \"$@\"";
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().expect("this program"))
        .env(INSIDE, "1")
        .exec();
    panic!("unshare: {error}");
}

/// A runtime under measurement.
struct Runtime {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
    bundles: PathBuf,
}

impl Runtime {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn measure(&self, arguments: &[&str]) -> Usage {
        let usage = sys::run(&mut self.command(arguments));
        assert!(usage.success, "{} {arguments:?}", self.name);
        usage
    }

    /// The container to execute further processes in; runtimes would share a cgroup of one name.
    fn sleeper(&self) -> String {
        format!("sleeper-{}", self.name)
    }

    fn bundle(&self, name: &str) -> String {
        self.bundles.join(name).display().to_string()
    }

    fn run(&self, bundle: &str, id: &str) -> Usage {
        self.measure(&["run", "--bundle", &self.bundle(bundle), id])
    }

    fn create_start_delete(&self, id: &str) -> Usage {
        let create = self.measure(&["create", "--bundle", &self.bundle("seccomp"), id]);
        let start = self.measure(&["start", id]);
        // What `true` takes is not the runtime's time.
        while !self.status(id).contains("stopped") {
            std::thread::sleep(Duration::from_millis(1));
        }
        create.and(start).and(self.measure(&["delete", id]))
    }

    fn status(&self, id: &str) -> String {
        let output = self.command(&["state", id]).stdout(Stdio::piped()).output().expect("state");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn many(&self, id: &str) {
        std::thread::scope(|scope| {
            for worker in 0..4 {
                scope.spawn(move || {
                    for index in 0..25 {
                        self.run("seccomp", &format!("{id}-{worker}-{index}"));
                    }
                });
            }
        });
    }
}

struct Bench {
    ours: Runtime,
    peers: [Runtime; 2],
}

impl Bench {
    fn new() -> Self {
        let base = Path::new("/mnt");
        let bundles = base.join("bundles");
        for (name, seccomp, args) in [
            ("seccomp", true, ["true", ""]),
            ("plain", false, ["true", ""]),
            ("sleep", true, ["sleep", "1000"]),
        ] {
            let args = args.into_iter().filter(|arg| !arg.is_empty()).collect::<Vec<_>>();
            make_bundle(&bundles.join(name), &spec(&args, seccomp));
        }
        let runtime = |name, program| {
            let root = base.join("state").join(name);
            fs::create_dir_all(&root).expect("a state directory");
            Runtime { name, program, root, bundles: bundles.clone() }
        };
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/peers/bin");
        let peer = |name| runtime(name, peers.join(name));
        Self { ours: runtime("berth-oci", executable()), peers: [peer("crun"), peer("runc")] }
    }

    /// Times an operation of ours and of each peer in turn.
    fn compare(
        &self,
        figure: &str,
        goals: [f64; 2],
        runs: usize,
        operation: impl Fn(&Runtime, &str) -> Usage,
    ) {
        for (peer, goal) in self.peers.iter().zip(goals) {
            let mut samples = Samples::default();
            for index in 0..=runs {
                let mut pair = [&self.ours, peer].map(|runtime| {
                    std::thread::sleep(GAP);
                    let began = Instant::now();
                    let mut usage = operation(runtime, &format!("bench-{index}"));
                    usage.wall.get_or_insert(began.elapsed());
                    usage
                });
                // The first run warms caches.
                if index > 0 {
                    samples.push(&mut pair);
                }
            }
            samples.print(figure, peer.name, goal);
        }
    }

    fn exec(&self, runs: usize) {
        for runtime in self.peers.iter().chain([&self.ours]) {
            let id = runtime.sleeper();
            let pid_file = runtime.root.join("pid");
            let pid_file = pid_file.display().to_string();
            let bundle = runtime.bundle("sleep");
            runtime.measure(&["run", "-d", "--pid-file", &pid_file, "--bundle", &bundle, &id]);
        }
        self.compare("exec", [0.5, 0.5], runs, |one, _| {
            one.measure(&["exec", &one.sleeper(), "true"])
        });
        for runtime in self.peers.iter().chain([&self.ours]) {
            runtime.measure(&["delete", "--force", &runtime.sleeper()]);
        }
    }

    /// The smallest power of two that a container starts with, where the kernel limits memory.
    fn memory_limit(&self) {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
        if !controllers.unwrap_or_default().contains("memory") {
            return;
        }
        for runtime in self.peers.iter().chain([&self.ours]) {
            let starts = |kib: &u64| {
                let mut spec = spec(&["true"], true);
                spec["linux"]["resources"] = json!({"memory": {"limit": kib * 1024}});
                make_bundle(&runtime.bundles.join("limit"), &spec);
                let bundle = runtime.bundle("limit");
                let usage = sys::run(
                    runtime.command(&["run", "--bundle", &bundle, "limit"]).stderr(Stdio::null()),
                );
                let _ = runtime.command(&["delete", "--force", "limit"]).output();
                usage.success
            };
            let smallest = (7..16).map(|power| 1 << power).find(starts);
            line(
                "smallest_memory_limit",
                &Figure::alone(smallest.unwrap_or(0) as f64, "KiB", runtime.name),
            );
        }
    }

    /// What a shim weighs where there is another: what is mapped of their executable is both's.
    fn shim(&self) {
        let other = Shim::start(&self.ours.program, Path::new("/mnt/other"));
        let shim = Shim::start(&self.ours.program, Path::new("/mnt/shim"));
        let rollup = shim.status("smaps_rollup");
        let private = field(&rollup, "Private_Clean:") + field(&rollup, "Private_Dirty:");
        line("shim_private", &Figure::alone(private, "KiB", "none"));
        for (figure, name) in [("shim_rss", "Rss:"), ("shim_pss", "Pss:")] {
            line(figure, &Figure::alone(field(&rollup, name), "KiB", "none"));
        }
        let threads = field(&shim.status("status"), "Threads:");
        line("shim_threads", &Figure::alone(threads, "", "none"));
        shim.end();
        other.end();
    }

    fn clean(&self) {
        for runtime in self.peers.iter().chain([&self.ours]) {
            let left = fs::read_dir(&runtime.root).into_iter().flatten().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
            let stray = left.iter().filter(|name| name.to_string_lossy().contains("bench")).count();
            assert_eq!(stray, 0, "{}: {left:?}", runtime.name);
        }
    }
}

/// A running shim.
struct Shim {
    child: Child,
    socket: PathBuf,
}

impl Shim {
    fn start(program: &Path, directory: &Path) -> Self {
        fs::create_dir(directory).expect("a sandbox directory");
        let config = ShimConfig {
            user_ids: None,
            sandbox_id: "bench".to_owned(),
            cgroup_root: "/sys/fs/cgroup".into(),
            hostname: Some("bench".to_owned()),
            new_network: true,
            new_ipc: true,
            pid: berth_oci::protocol::PidNamespace::Container,
            sysctls: Default::default(),
        };
        let text = serde_json::to_vec(&config).expect("a configuration");
        fs::write(directory.join("sandbox.json"), text).expect("a configuration");
        let child = Command::new(program)
            .args(["shim", "--dir"])
            .arg(directory)
            .stdin(Stdio::null())
            .spawn()
            .expect("a shim");
        let shim = Self { child, socket: directory.join("shim.sock") };
        while !shim.socket.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _: Value = shim.ask(&Request::Hello);
        shim
    }

    fn ask(&self, request: &Request) -> Value {
        let mut stream =
            std::os::unix::net::UnixStream::connect(&self.socket).expect("the shim listens");
        write_frame(&mut stream, request).expect("the shim hears");
        read_frame(&mut stream).expect("the shim answers").expect("an answer")
    }

    fn status(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("the shim runs")
    }

    fn end(mut self) {
        let _ = self.ask(&Request::Shutdown);
        self.child.wait().expect("the shim ends");
    }
}

/// Figures of one comparison, run by run.
#[derive(Default)]
struct Samples {
    wall: Vec<(f64, f64)>,
    cpu: Vec<(f64, f64)>,
    peak: Vec<(f64, f64)>,
}

impl Samples {
    fn push(&mut self, pair: &mut [Usage; 2]) {
        let [ours, theirs] = pair;
        let ms = |usage: &Usage| usage.wall.unwrap_or_default().as_secs_f64() * 1e3;
        self.wall.push((ms(ours), ms(theirs)));
        let cpu = |usage: &Usage| usage.cpu.as_secs_f64() * 1e3;
        self.cpu.push((cpu(ours), cpu(theirs)));
        self.peak.push((ours.peak_kib as f64, theirs.peak_kib as f64));
    }

    fn print(&self, figure: &str, peer: &'static str, goal: f64) {
        let show = |suffix: &str, unit, samples: &[(f64, f64)], goal| {
            if samples.iter().any(|(_, theirs)| *theirs == 0.0) {
                return;
            }
            let median = |of: fn(&(f64, f64)) -> f64| {
                let mut values: Vec<f64> = samples.iter().map(of).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let ratio = median(|(ours, theirs)| ours / theirs);
            let theirs = Some((median(|pair| pair.1), ratio, goal));
            let ours = median(|pair| pair.0);
            line(
                &format!("{figure}{suffix}"),
                &Figure { ours, unit, peer, theirs, runs: samples.len() },
            );
        };
        show("", "ms", &self.wall, Some(goal));
        show("_cpu", "ms", &self.cpu, None);
        show("_peak_rss", "KiB", &self.peak, None);
    }
}

/// One line of output.
struct Figure {
    ours: f64,
    unit: &'static str,
    peer: &'static str,
    /// Value, ratio, goal.
    theirs: Option<(f64, f64, Option<f64>)>,
    runs: usize,
}

impl Figure {
    fn alone(ours: f64, unit: &'static str, peer: &'static str) -> Self {
        Self { ours, unit, peer, theirs: None, runs: 1 }
    }
}

fn line(name: &str, figure: &Figure) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let Figure { ours, unit, peer, theirs, runs } = figure;
    let mut text = format!("bench area=runtime figure={name} ours={ours:.2}{unit} peer={peer}");
    if let Some((value, ratio, goal)) = theirs {
        text += &format!(" theirs={value:.2}{unit} ratio={ratio:.3}");
        if let Some(goal) = goal {
            text += &format!(" goal={goal}");
        }
    }
    println!("{text} n={runs} load={load}");
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// The static executable that was built into `berth`, or the one that `BERTH_OCI` names.
fn executable() -> PathBuf {
    if let Some(path) = std::env::var_os("BERTH_OCI") {
        return path.into();
    }
    let this = std::env::current_exe().expect("this program");
    let target = this.ancestors().nth(3).expect("a target directory").to_owned();
    target
        .join("oci")
        .join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .join("oci/berth-oci")
}

fn make_bundle(bundle: &Path, spec: &Value) {
    let root = bundle.join("rootfs");
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
    for applet in ["true", "sleep"] {
        let _ = fs::remove_file(root.join("bin").join(applet));
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    fs::write(bundle.join("config.json"), spec.to_string()).expect("a specification");
}

fn spec(args: &[&str], seccomp: bool) -> Value {
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/bin:/usr/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES}
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                            "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    });
    if seccomp {
        let profile = default_seccomp(&Default::default());
        spec["linux"]["seccomp"] = serde_json::to_value(profile).expect("a profile");
    }
    spec
}
