//! A container's cgroup: made, limited, watched, killed, removed. Control groups v2 only.
//!
//! The agent makes and delegates the parents; here only the leaf is made. Files are reached through
//! the leaf's descriptor. kernel `Documentation/admin-guide/cgroup-v2.rst`.

mod devices;
mod limits;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::container::{Doing, Error, Result};

/// A leaf cgroup and the place it was made in.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// How far a removal has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    Done,
    /// Processes are still dying in it.
    Busy,
}

impl Cgroup {
    /// Makes the leaf below `root` and writes its limits. Returns what cannot be enforced.
    ///
    /// On failure nothing is left.
    pub(crate) fn make(
        root: &Path,
        relative: &Path,
        resources: Option<&LinuxResources>,
    ) -> Result<(Self, Vec<String>)> {
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || relative.as_os_str().is_empty() {
            return Err(Error::invalid("cgroup_path", "is not a plain relative path"));
        }
        let path = root.join(relative);
        let operation = || format!("make cgroup {}", path.display());
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)).doing(operation)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).doing(operation)?;
        let cgroup = Self { path: path.clone(), directory };
        match cgroup.limit(resources) {
            Ok(warnings) => Ok((cgroup, warnings)),
            Err(error) => {
                // The limit's failure is what counts; the leaf is empty, so this succeeds.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    fn limit(&self, resources: Option<&LinuxResources>) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let settings = resources.map(limits::plan).transpose()?.unwrap_or_default();
        let controllers = self.read("cgroup.controllers").unwrap_or_default();
        let available = |name: &str| controllers.split_whitespace().any(|one| one == name);
        for setting in settings {
            let controller = setting.file.split('.').next().unwrap_or_default();
            match self.write(&setting.file, &setting.value) {
                Err(Errno::NOENT | Errno::ACCESS)
                    if controller != "cgroup" && !available(controller) =>
                {
                    warnings.push(format!(
                        "{}: the {controller} controller is not available, {} is not enforced",
                        setting.field, setting.file
                    ));
                }
                Err(Errno::NOENT) if setting.optional => {}
                result => result.doing(|| {
                    format!("{}: write {:?} to {}", setting.field, setting.value, setting.file)
                })?,
            }
        }
        let devices = resources.and_then(|resources| resources.devices().as_deref());
        warnings.extend(devices::restrict(self.as_fd(), devices.unwrap_or_default())?);
        Ok(warnings)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.directory, file, flags, Mode::empty())?;
        rustix::io::write(&file, value.as_bytes()).map(drop)
    }

    fn read(&self, file: &str) -> Result<String, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.directory, file, flags, Mode::empty())?;
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match rustix::io::read(&file, &mut chunk)? {
                0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
                count => text.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Whether the kernel killed a process of it for want of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let events = self.read("memory.events").unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|count| count.trim().parse::<u64>().ok()).is_some_and(|count| count > 0)
    }

    /// Kills every process in it. Linux 5.14.
    pub(crate) fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1").doing(|| format!("kill cgroup {}", self.path.display()))
    }

    /// The processes in it, in the caller's PID namespace.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let list = self.read("cgroup.procs").unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// Whether no live process is in it or below it.
    pub(crate) fn is_empty(&self) -> bool {
        self.read("cgroup.events")
            .is_ok_and(|events| events.lines().any(|line| line == "populated 0"))
    }

    /// Removes it with the cgroups that its processes made below. Removing what is gone is done.
    pub(crate) fn remove(&self) -> Result<Removal> {
        match remove_tree(&self.path) {
            Ok(()) => Ok(Removal::Done),
            Err(Errno::BUSY) => Ok(Removal::Busy),
            Err(error) => Err(error).doing(|| format!("remove cgroup {}", self.path.display())),
        }
    }
}

fn remove_tree(path: &Path) -> Result<(), Errno> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) => {}
        Err(error) => return Err(error),
    }
    // Busy with processes, or with cgroups below.
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
