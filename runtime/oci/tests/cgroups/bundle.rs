//! A bundle with a busybox root, and runtimes that run it. What was made is gone when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::fixture;

/// Ours, or one to compare with.
pub fn ours() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_berth-oci"))
}

pub fn peer(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable} must name an executable to compare with")).into()
}

/// A container of a bundle of its own.
pub struct Container {
    directory: tempfile::TempDir,
    runtime: PathBuf,
    systemd: bool,
    pub id: String,
}

/// Names that nobody else has.
fn unique(name: &str) -> String {
    format!("berth-{name}-{}", std::process::id())
}

/// A parent cgroup that no other test process uses.
pub fn parent() -> String {
    format!("/{}", unique("cgroups"))
}

impl Container {
    /// A bundle whose container runs `script`, below [`parent`] in a cgroup of its id.
    pub fn new(name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Self {
        let id = unique(name);
        let directory = tempfile::tempdir().unwrap();
        fixture::make_image(&directory.path().join("rootfs"));
        let mut spec = fixture::spec_json(&["sh", "-c", script]);
        spec["root"] = json!({"path": "rootfs"});
        spec["linux"]["cgroupsPath"] = json!(format!("{}/{id}", parent()));
        spec["linux"].as_object_mut().unwrap().remove("seccomp");
        change(&mut spec);
        fs::write(directory.path().join("config.json"), spec.to_string()).unwrap();
        Self { directory, runtime: ours(), systemd: false, id }
    }

    /// The same under another runtime.
    pub fn by(mut self, runtime: PathBuf) -> Self {
        self.runtime = runtime;
        self
    }

    /// The same with cgroups made by systemd.
    pub fn by_systemd(mut self) -> Self {
        self.systemd = true;
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of the container's root.
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path("rootfs").join(name)).unwrap_or_default()
    }

    /// The directory of its cgroup.
    pub fn cgroup(&self) -> PathBuf {
        let config: Value =
            serde_json::from_slice(&fs::read(self.path("config.json")).unwrap()).unwrap();
        let path = config["linux"]["cgroupsPath"].as_str().unwrap();
        fixture::cgroup_root().join(path.trim_start_matches('/'))
    }

    pub fn file(&self, name: &str) -> String {
        read(&self.cgroup(), name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.path("state")).stdin(Stdio::null());
        if self.systemd {
            command.arg("--systemd-cgroup");
        }
        command.args(arguments);
        command
    }

    /// Runs a command to its end.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The same, which must succeed; returns what it printed.
    pub fn tell(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts it in the background. Returns the runtime's errors when it could not.
    pub fn try_start(&self) -> Result<(), String> {
        let (log, output) = (self.path("log"), fs::File::create(self.path("output")).unwrap());
        let bundle = self.directory.path().to_str().unwrap();
        let status = self
            .command(&["run", "-d", "--bundle", bundle, &self.id])
            .stdout(output.try_clone().unwrap())
            .stderr(fs::File::create(&log).unwrap())
            .status()
            .unwrap();
        if status.success() { Ok(()) } else { Err(fs::read_to_string(&log).unwrap()) }
    }

    pub fn start(self) -> Self {
        self.try_start().unwrap_or_else(|errors| panic!("{}: {errors}", self.runtime.display()));
        self
    }

    pub fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.tell(&["state", &self.id])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.ask(&["delete", "--force", &self.id]);
        // Empty once the last of this process's containers is gone.
        let _ = fs::remove_dir(fixture::cgroup_root().join(parent().trim_start_matches('/')));
    }
}

/// A cgroup's file without its last line end; nothing where it is absent.
pub fn read(cgroup: &Path, name: &str) -> String {
    fs::read_to_string(cgroup.join(name)).unwrap_or_default().trim_end().to_owned()
}

/// Waits until `what` is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "no {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Whether a limit's file is there at all.
pub fn first_disk() -> (u64, u64) {
    let disks = fs::read_dir("/sys/block").unwrap().flatten();
    let mut numbers: Vec<(u64, u64)> = disks
        .filter_map(|disk| {
            let text = fs::read_to_string(disk.path().join("dev")).ok()?;
            let (major, minor) = text.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .collect();
    numbers.sort_unstable();
    // Not a loop device: those come and go.
    numbers.into_iter().find(|(major, _)| *major != 7).expect("a block device")
}
