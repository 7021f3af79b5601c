//! Podman and containerd with `berth-oci` in the place of their runtime: Debian 12's and current ones.
//!
//! Each scenario is a script in a mount namespace of its own, where cgroup v2 is at its usual place;
//! storage, state and sockets are below one temporary directory. What it prints is what is asserted.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PODMAN: &str = r#"
mkdir "$dir/helpers"
ln -s /bin/true "$dir/helpers/netavark"
printf '[engine]\nevents_logger="file"\nhelper_binaries_dir=["%s"]\nconmon_path=["%s"]\n' \
    "$dir/helpers" "$(command -v conmon)" > "$dir/containers.conf"
printf '[storage]\ndriver="vfs"\nrunroot="%s"\ngraphroot="%s"\n' "$dir/run" "$dir/graph" > "$dir/storage.conf"
printf '{"default":[{"type":"insecureAcceptAnything"}]}' > "$dir/policy.json"
: > "$dir/registries.conf"
export CONTAINERS_CONF="$dir/containers.conf" CONTAINERS_STORAGE_CONF="$dir/storage.conf"
export CONTAINERS_REGISTRIES_CONF="$dir/registries.conf"
p() {
    command podman --root "$dir/graph" --runroot "$dir/run" --tmpdir "$dir/tmp" --runtime "$runtime" \
        --cgroup-manager cgroupfs "$@"
}
new="--network none --pids-limit -1 --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --cgroup-parent /$group"
tar -C "$dir/rootfs" -c . | p import --signature-policy "$dir/policy.json" - local/box:1 > /dev/null 2>&1
p run --rm $new local/box:1 echo 'hello from run'
p run --rm $new local/box:1 sh -c 'exit 7' || echo "exit $?"
p run --rm $new local/box:1 /no/such/command 2> /dev/null || echo "missing $?"
p run --rm $new --user 33:34 --read-only --cap-drop all local/box:1 \
    sh -c 'id -u; touch /x || echo read-only; grep CapEff /proc/self/status'
p run --rm $new -t local/box:1 tty | tr -d '\r'
p run -d --name c $new local/box:1 sh -c 'trap "exit 3" TERM; echo up; while :; do sleep 0.1; done' > /dev/null
p exec c sh -c 'echo hello from exec; exit 5' || echo "exit $?"
echo typed | p exec -i c cat
p inspect -f '{{.State.Status}} {{.OCIRuntime}}' c
p top c args | tail -n +2 | grep -c 'sleep 0.1\|trap'
p stop -t 10 c > /dev/null
p logs c
p inspect -f '{{.State.Status}} {{.State.ExitCode}}' c
p start c > /dev/null
p kill -s KILL c > /dev/null
p wait c
p rm c > /dev/null
p rm -f -t 0 -a
p ps -aq
"#;

const CONTAINERD: &str = r#"
cat > "$dir/config.toml" << END
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images", "io.containerd.internal.v1.opt"]
[grpc]
address = "$dir/sock"
END
containerd -c "$dir/config.toml" > "$dir/log" 2>&1 &
trap 'kill $!; wait $!' EXIT
for i in $(seq 200); do [ -S "$dir/sock" ] && break; sleep 0.1; done
c() { ctr -a "$dir/sock" "$@"; }
new="--rootfs --runc-binary $runtime --runc-root $dir/runc --cgroup $group"
c run --rm $new "$dir/rootfs" one echo 'hello from run'
c run --rm $new "$dir/rootfs" two sh -c 'exit 7' 2> /dev/null || echo "exit $?"
c run -d $new "$dir/rootfs" c sh -c 'trap "exit 3" TERM; while :; do sleep 0.1; done'
c task exec --exec-id e c sh -c 'echo hello from exec; exit 5' 2> /dev/null || echo "exit $?"
status() { c task ls | awk '$1 == "c" { print $3 }'; }
status
c task ps c | tail -n +2 | wc -l | tr 1-9 +
c task pause c
status
c task resume c
status
c task kill -s TERM c
for i in $(seq 100); do [ "$(status)" = STOPPED ] && break; sleep 0.1; done
status
c task rm c 2>&1 | grep -o 'exit code 3'
c containers rm c
c containers ls -q
"#;

struct Scene {
    dir: tempfile::TempDir,
    group: String,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("berth-engine-").tempdir().unwrap();
        let group = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let root = dir.path().join("rootfs");
        for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in "sh echo id touch grep tty cat sleep".split(' ') {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        Self { dir, group }
    }

    /// Runs a script with the programs of `peers` before the system's, or of the system alone.
    fn run(&self, script: &str, peers: Option<&Path>) -> String {
        let mut path = "/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        if let Some(peers) = peers {
            path = format!("{}:{path}", peers.display());
        }
        let prelude = "mount -t cgroup2 cgroup2 /sys/fs/cgroup\n";
        let output = Command::new("timeout")
            .args(["-s", "KILL", "120", "unshare", "--mount", "--propagation", "private"])
            .args(["bash", "-c", &format!("set -u\n{prelude}{script}")])
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.dir.path())
            .env("dir", self.dir.path())
            .env("group", &self.group)
            .env("runtime", env!("CARGO_BIN_EXE_berth-oci"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        eprintln!("{error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Asserts that no process, no mount and no cgroup of it is left.
    fn finish(self) {
        let path = self.dir.path().to_str().unwrap().to_owned();
        let deadline = Instant::now() + Duration::from_secs(10);
        // What an engine starts to clean up may still be at it.
        while !processes(&path).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(processes(&path), Vec::<String>::new());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&path), "{mounts}");
        let hybrid = Path::new("/sys/fs/cgroup/unified");
        let root = if hybrid.is_dir() { hybrid } else { Path::new("/sys/fs/cgroup") };
        // The group is the engine's to make and nobody's to remove; those of containers are gone.
        let parent = root.join(&self.group);
        let below = fs::read_dir(&parent).into_iter().flatten().flatten();
        let below = below.map(|entry| entry.path()).filter(|path| path.is_dir());
        for group in below.collect::<Vec<_>>() {
            let name = group.display().to_string();
            assert!(name.ends_with("/conmon"), "{name} is left");
            fs::remove_dir(group).unwrap();
        }
        if parent.exists() {
            fs::remove_dir(parent).unwrap();
        }
    }
}

/// Command lines that name a directory.
fn processes(path: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let lines = entries.filter_map(|entry| fs::read(entry.join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(path)).collect()
}

fn current() -> PathBuf {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/peers/bin");
    assert!(peers.join("podman").exists(), "run tests/setup/peers.sh runtimes podman");
    peers.canonicalize().unwrap()
}

fn podman_works(peers: Option<&Path>) {
    let scene = Scene::new();
    let seen = scene.run(PODMAN, peers);
    let expected = format!(
        "hello from run\nexit 7\nmissing 127\n33\nread-only\nCapEff:\t0000000000000000\n/dev/pts/0\n\
         hello from exec\nexit 5\ntyped\nrunning {}\n2\nup\nexited 3\n137\n",
        env!("CARGO_BIN_EXE_berth-oci")
    );
    assert_eq!(seen, expected);
    scene.finish();
}

fn containerd_works(peers: Option<&Path>) {
    let scene = Scene::new();
    let seen = scene.run(CONTAINERD, peers);
    let expected = "hello from run\nexit 7\nhello from exec\nexit 5\nRUNNING\n+\nPAUSED\nRUNNING\n\
                    STOPPED\nexit code 3\n";
    assert_eq!(seen, expected);
    scene.finish();
}

#[test]
fn podman_of_today_runs_containers_with_it() {
    podman_works(Some(&current()));
}

#[test]
fn podman_of_debian_12_runs_containers_with_it() {
    podman_works(None);
}

#[test]
fn containerd_of_today_runs_containers_with_it() {
    containerd_works(Some(&current()));
}

#[test]
fn containerd_of_debian_12_runs_containers_with_it() {
    containerd_works(None);
}
