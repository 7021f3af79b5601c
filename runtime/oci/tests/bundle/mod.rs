//! A bundle of its own with a busybox image, run by the command line. All that was made is gone when it
//! is dropped.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test file uses its own part.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::fixture;

/// A bundle, and a directory for the state of its containers.
pub struct Bundle {
    pub directory: tempfile::TempDir,
    pub spec: Value,
    ids: std::cell::Cell<u32>,
}

impl Bundle {
    /// One that runs a shell script.
    pub fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mode = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        fixture::make_image(&directory.path().join("rootfs"));
        let busybox = directory.path().join("rootfs/bin/busybox");
        std::fs::set_permissions(busybox, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut spec = fixture::spec_json(&["/bin/sh", "-c", script]);
        spec["root"] = json!({"path": "rootfs"});
        spec["linux"].as_object_mut().unwrap().remove("seccomp");
        Self { directory, spec, ids: std::cell::Cell::new(0) }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn image(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The program with the state's directory given.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-oci"));
        command.arg("--root").arg(self.path().join("state")).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Writes the specification.
    pub fn write(&self) {
        let text = serde_json::to_vec(&self.spec).unwrap();
        std::fs::write(self.path().join("config.json"), text).unwrap();
    }

    /// An id that no other container of the machine has.
    pub fn id(&self) -> String {
        self.ids.set(self.ids.get() + 1);
        let name = self.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.');
        format!("berth-{name}-{}", self.ids.get())
    }

    /// Runs the container to its end.
    pub fn run(&self) -> Output {
        self.write();
        let id = self.id();
        self.command(&["run", "--bundle", self.path().to_str().unwrap(), &id]).output().unwrap()
    }

    /// What it prints when it ends well.
    pub fn text(&self) -> String {
        let output = self.run();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says when it cannot be made; nothing of it is left.
    pub fn refusal(&self) -> String {
        let output = self.run();
        assert!(!output.status.success());
        let left = std::fs::read_dir(self.path().join("state")).into_iter().flatten().count();
        assert_eq!(left, 0, "a container is left");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let left = std::fs::read_dir(self.path().join("state")).into_iter().flatten().flatten();
        for entry in left {
            let id = entry.file_name();
            let _ = self.command(&["delete", "--force"]).arg(id).output();
        }
    }
}
