//! A container's cgroup: made, limited, watched, frozen, killed, removed. Control groups v2 only.
//!
//! [`place`] says where it is, for both drivers; limits are in force before anything is born into it by
//! CLONE_INTO_CGROUP. Files are reached through the leaf's descriptor. For the shim the agent makes the
//! parents, and what a host cannot enforce is a warning ([`Cgroup::make`]); the command line makes them
//! itself and refuses ([`Cgroup::create`]). kernel `Documentation/admin-guide/cgroup-v2.rst`.

mod devices;
mod directory;
mod limits;
pub(crate) mod place;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use oci_spec::runtime::LinuxResources;
use rustix::fs::Mode;
use rustix::io::Errno;

use self::directory::Directory;
use self::limits::{Setting, Tolerance};
use self::place::{Hierarchy, Place};
use crate::clock;
use crate::container::{Doing, Error, Result};

/// A leaf cgroup and the place it was made in.
#[derive(Debug)]
pub(crate) struct Cgroup {
    place: Place,
    directory: Directory,
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

/// What becomes of a limit whose controller the host lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// A warning.
    Told,
    /// A failure.
    Refused,
}

/// What the command line makes a cgroup from.
pub(crate) struct Request<'a> {
    pub(crate) hierarchy: &'a Hierarchy,
    pub(crate) place: &'a Place,
    pub(crate) resources: Option<&'a LinuxResources>,
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
        let directory = Directory::open(&path).doing(operation)?;
        let cgroup = Self { place: Place { path: path.clone(), unit: None }, directory };
        match cgroup.limit(resources, Missing::Told) {
            Ok(warnings) => Ok((cgroup, warnings)),
            Err(error) => {
                // The limit's failure is what counts; the leaf is empty, so this succeeds.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// Makes the cgroup of a container and its parents, with limits in force. A limit that the host
    /// cannot enforce is an error naming its field.
    ///
    /// The container's first process is then cloned into its descriptor, and [`Cgroup::settle`] called.
    /// On failure nothing is left.
    pub(crate) fn create(request: &Request<'_>) -> Result<Self> {
        let place = request.place;
        if let Some(unit) = &place.unit {
            let reason = format!(
                "unit {} asks for the systemd cgroup driver, which is not there",
                unit.name
            );
            return Err(Error::invalid("linux.cgroupsPath", reason));
        }
        let (directory, made) = tree::make(&request.hierarchy.root, &place.path)?;
        let cgroup = Self { place: place.clone(), directory };
        let inspected = tree::inspect(&cgroup.directory, &place.path);
        match inspected.and_then(|()| cgroup.limit(request.resources, Missing::Refused)) {
            Ok(_) => Ok(cgroup),
            Err(error) => {
                tree::unmake(&made);
                Err(error)
            }
        }
    }

    /// To be called once the first process is born and before it may run the container's command.
    pub(crate) fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// The cgroup of a container that was made before.
    pub(crate) fn open(place: &Place) -> Result<Self> {
        let operation = || format!("open cgroup {}", place.path.display());
        let directory = Directory::open(&place.path).doing(operation)?;
        Ok(Self { place: place.clone(), directory })
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// A cgroup below this one, for a process that is to run there. `relative` is plain.
    pub(crate) fn below(&self, relative: &Path) -> Result<OwnedFd> {
        let field = "cgroup";
        let mut path = self.place.path.clone();
        for part in relative.components() {
            match part {
                Component::Normal(name) => path.push(name),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Error::invalid(field, format!("{relative:?} leads outside")));
                }
            }
        }
        let directory = Directory::open(&path);
        Ok(directory.doing(|| format!("open cgroup {}", path.display()))?.into())
    }

    /// Puts it under `resources`. Returns what cannot be enforced.
    fn limit(&self, resources: Option<&LinuxResources>, missing: Missing) -> Result<Vec<String>> {
        let settings = resources.map(limits::plan).transpose()?.unwrap_or_default();
        let mut warnings = self.write(&settings, missing)?;
        let devices = resources.and_then(|resources| resources.devices().as_deref());
        let field = "linux.resources.devices";
        if let Some(reason) = devices::restrict(self.as_fd(), devices.unwrap_or_default())? {
            if missing == Missing::Refused && devices.is_some_and(|list| !list.is_empty()) {
                return Err(Error::invalid(field, reason));
            }
            warnings.push(format!("{field}: {reason}"));
        }
        Ok(warnings)
    }

    /// Changes the limits of a running container to `resources`, all of which are written; files of
    /// what they do not speak of stay as they are.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<()> {
        let settings = limits::plan(resources)?;
        if let Ok(usage) = self.directory.read("memory.current") {
            // Without the controller the write says so.
            limits::check_usage(resources, usage.trim().parse().unwrap_or(0))?;
        }
        self.write(&settings, Missing::Refused)?;
        if let Some(devices) = resources.devices()
            && let Some(reason) = devices::restrict(self.as_fd(), devices)?
        {
            return Err(Error::invalid("linux.resources.devices", reason));
        }
        Ok(())
    }

    fn write(&self, settings: &[Setting], missing: Missing) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for setting in settings {
            let (field, file) = (&setting.field, &setting.file);
            let controller = setting.controller();
            match self.write_one(setting) {
                Err(Errno::NOENT | Errno::ACCESS)
                    if controller != "cgroup" && !self.has(controller) =>
                {
                    let absence = format!("controller {controller:?} is not available");
                    let reason = match field.contains("unified[") {
                        true => format!("unified resource {file:?} can't be set: {absence}"),
                        false => absence,
                    };
                    if missing == Missing::Refused {
                        return Err(Error::invalid(field, reason));
                    }
                    warnings.push(format!("{field}: {reason}, {file} is not enforced"));
                }
                result => {
                    result.doing(|| format!("{field}: write {:?} to {file}", setting.value))?;
                }
            }
        }
        Ok(warnings)
    }

    fn write_one(&self, setting: &Setting) -> Result<(), Errno> {
        let mut result = self.directory.write(&setting.file, &setting.value);
        if let (Err(Errno::NOENT), Some((file, value))) = (result, &setting.instead) {
            result = self.directory.write(file, value);
        }
        match (result, setting.tolerance) {
            (Err(Errno::INVAL), Tolerance::Early) => Ok(()),
            (Err(Errno::NOENT), Tolerance::Absent) if self.has(setting.controller()) => Ok(()),
            (result, _) => result,
        }
    }

    fn has(&self, controller: &str) -> bool {
        let controllers = self.directory.read("cgroup.controllers").unwrap_or_default();
        controllers.split_whitespace().any(|one| one == controller)
    }

    /// Whether the kernel killed a process of it for want of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let kills = self.directory.read_key("memory.events", "oom_kill");
        kills.is_ok_and(|count| count.is_some_and(|count| count > 0))
    }

    /// Kills every process in it and below. Linux 5.14.
    pub(crate) fn kill(&self) -> Result<()> {
        let path = &self.place.path;
        self.directory.write("cgroup.kill", "1").doing(|| format!("kill cgroup {}", path.display()))
    }

    /// Freezes it and waits until every process in it and below has stopped. Linux 5.2.
    ///
    /// When that has not come about at `deadline_ms` of the monotonic clock it is thawed again.
    pub(crate) fn freeze(&self, deadline_ms: u64) -> Result<()> {
        let operation = || format!("freeze cgroup {}", self.place.path.display());
        self.directory.write("cgroup.freeze", "1").doing(operation)?;
        let frozen = self.directory.wait_event("frozen", 1, deadline_ms);
        if !matches!(frozen, Ok(true)) {
            let _ = self.directory.write("cgroup.freeze", "0");
        }
        match frozen.doing(operation)? {
            true => Ok(()),
            false => Err(Errno::TIMEDOUT).doing(operation),
        }
    }

    /// Lets what is frozen run.
    pub(crate) fn thaw(&self) -> Result<()> {
        let path = &self.place.path;
        self.directory
            .write("cgroup.freeze", "0")
            .doing(|| format!("thaw cgroup {}", path.display()))
    }

    /// Whether it has been asked to freeze.
    pub(crate) fn is_frozen(&self) -> bool {
        self.directory.read("cgroup.freeze").is_ok_and(|state| state.trim() == "1")
    }

    /// The processes in it and below, in the caller's PID namespace.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut list = Vec::new();
        collect(&self.directory, &mut list);
        list
    }

    /// Whether no live process is in it or below it.
    pub(crate) fn is_empty(&self) -> bool {
        self.directory.read_key("cgroup.events", "populated").is_ok_and(|value| value == Some(0))
    }

    /// Removes it with the cgroups that its processes made below. Removing what is gone is done.
    pub(crate) fn remove(&self) -> Result<Removal> {
        let path = &self.place.path;
        match tree::remove(path) {
            Ok(()) => Ok(Removal::Done),
            Err(Errno::BUSY) => Ok(Removal::Busy),
            Err(error) => Err(error).doing(|| format!("remove cgroup {}", path.display())),
        }
    }

    /// Kills what is in it, waits for its end and removes it, and its unit.
    ///
    /// Fails when processes are still dying at `deadline_ms` of the monotonic clock.
    pub(crate) fn destroy(&self, deadline_ms: u64) -> Result<()> {
        let operation = || format!("remove cgroup {}", self.place.path.display());
        loop {
            match self.kill() {
                // Removed meanwhile.
                Err(Error::System { source: Errno::NODEV | Errno::NOENT, .. }) => {}
                result => result?,
            }
            match self.directory.wait_event("populated", 0, deadline_ms) {
                // Removed meanwhile.
                Ok(true) | Err(Errno::NODEV | Errno::NOENT) => {}
                Ok(false) => return Err(Errno::BUSY).doing(operation),
                Err(error) => return Err(error).doing(operation),
            }
            match self.remove()? {
                Removal::Done => return Ok(()),
                // An empty cgroup is busy for a moment, or for good when it is mounted over.
                Removal::Busy if clock::monotonic_ms() < deadline_ms => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                Removal::Busy => return Err(Errno::BUSY).doing(operation),
            }
        }
    }
}

fn collect(directory: &Directory, list: &mut Vec<i32>) {
    let processes = directory.read("cgroup.procs").unwrap_or_default();
    let numbers = processes.lines().filter_map(|line| line.parse::<i32>().ok());
    list.extend(numbers.filter(|pid| *pid > 0));
    for name in directory.children().unwrap_or_default() {
        if let Ok(child) = directory.below(&name) {
            collect(&child, list);
        }
    }
}
