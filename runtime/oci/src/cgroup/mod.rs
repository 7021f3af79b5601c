//! A container's cgroup: made, limited, watched, frozen, killed, removed. Control groups v2 only.
//!
//! [`place`] says where it is, for both drivers; limits are in force before anything is born into it by
//! CLONE_INTO_CGROUP. Files are reached through the leaf's descriptor. For the shim the agent makes the
//! parents, and what a host cannot enforce is a warning ([`Cgroup::make`]); the command line makes them
//! itself and refuses ([`Cgroup::create`]). kernel `Documentation/admin-guide/cgroup-v2.rst`.

mod devices;
mod directory;
mod limits;
pub(crate) mod merge;
pub(crate) mod place;
mod placeholder;
pub(crate) mod stats;
pub(crate) mod systemd;
mod tree;
mod watch;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use self::directory::Directory;
use self::limits::{Setting, Tolerance};
use self::place::{Hierarchy, Place, Unit};
use self::placeholder::Placeholder;
pub(crate) use self::stats::Stats;
use self::systemd::Manager;
pub(crate) use self::watch::{Happening, Watch};
use crate::container::{Doing, Error, Result};
use crate::{clock, sys};

/// A leaf cgroup and the place it was made in.
#[derive(Debug)]
pub(crate) struct Cgroup {
    place: Place,
    directory: Directory,
    unsettled: Option<Unsettled>,
}

/// What is left to do once a scope's first process is born.
#[derive(Debug)]
struct Unsettled {
    /// Held for its end.
    _placeholder: Placeholder,
    /// Written last, the placeholder having counted as well.
    pids_max: Option<Setting>,
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
    /// The specification's: some are properties of the unit, under the systemd driver.
    pub(crate) annotations: Option<&'a HashMap<String, String>>,
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
        let place = Place { path: path.clone(), unit: None };
        let cgroup = Self { place, directory, unsettled: None };
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
            return Self::create_scope(request, unit);
        }
        let (directory, made) = tree::make(&request.hierarchy.root, &place.path)?;
        let cgroup = Self { place: place.clone(), directory, unsettled: None };
        let inspected = tree::inspect(&cgroup.directory, &place.path);
        match inspected.and_then(|()| cgroup.limit(request.resources, Missing::Refused)) {
            Ok(_) => Ok(cgroup),
            Err(error) => {
                tree::unmake(&made);
                Err(error)
            }
        }
    }

    fn create_scope(request: &Request<'_>, unit: &Unit) -> Result<Self> {
        let mut settings = request.resources.map(limits::plan).transpose()?.unwrap_or_default();
        let annotations = request.annotations.map(systemd::annotations::properties);
        let annotations = annotations.transpose()?.unwrap_or_default();
        Self::inspect_scope(&request.place.path)?;
        let mut manager = Manager::connect()?;
        let mut properties = manager.plan(&mut settings)?;
        properties.extend(annotations);
        let placeholder = Placeholder::start()?;
        manager.start_scope(unit, placeholder.pid(), &properties)?;
        let made = Self::take_scope(request, unit, placeholder, settings);
        if made.is_err() {
            // The placeholder is gone, so the scope is about to be.
            let _ = manager.stop(&unit.name);
        }
        made
    }

    /// Says no to a scope whose cgroup is there and cannot take a container: in a frozen one not even
    /// the first process would run.
    fn inspect_scope(path: &Path) -> Result<()> {
        match Directory::open(path) {
            Ok(found) => tree::inspect(&found, path),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).doing(|| format!("open cgroup {}", path.display())),
        }
    }

    /// Makes the cgroup of a running scope fit for a container's first process.
    fn take_scope(
        request: &Request<'_>,
        unit: &Unit,
        placeholder: Placeholder,
        mut settings: Vec<Setting>,
    ) -> Result<Self> {
        let root = &request.hierarchy.root;
        let path = placed(root, placeholder.pid(), unit)?;
        // systemd turns on the controllers that it knows, and not all.
        let (directory, _) = tree::make(root, &path)?;
        let place = Place { path, unit: Some(unit.clone()) };
        let mut cgroup = Self { place, directory, unsettled: None };
        let mut pids_max = None;
        for setting in settings.iter_mut().filter(|setting| setting.file == "pids.max") {
            if setting.value.parse().is_ok_and(|limit: u64| limit < 2) {
                pids_max = Some(setting.clone());
                setting.value = "2".to_owned();
            }
        }
        cgroup.write(&settings, Missing::Refused)?;
        let devices = request.resources.and_then(|resources| resources.devices().as_deref());
        cgroup.restrict(devices.unwrap_or_default(), Missing::Refused)?;
        cgroup.unsettled = Some(Unsettled { _placeholder: placeholder, pids_max });
        Ok(cgroup)
    }

    /// To be called once the first process is born and before it may run the container's command.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let Some(unsettled) = self.unsettled.take() else { return Ok(()) };
        let pids_max = unsettled.pids_max.clone();
        // The placeholder ends.
        drop(unsettled);
        self.write(pids_max.as_slice(), Missing::Refused).map(drop)
    }

    /// The cgroup of a container that was made before.
    pub(crate) fn open(place: &Place) -> Result<Self> {
        let operation = || format!("open cgroup {}", place.path.display());
        let directory = Directory::open(&place.path).doing(operation)?;
        Ok(Self { place: place.clone(), directory, unsettled: None })
    }

    /// The same, `None` where it is gone.
    pub(crate) fn find(place: &Place) -> Result<Option<Self>> {
        match Self::open(place) {
            Err(Error::System { source: Errno::NOENT, .. }) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Where a further process of a running container goes: into its cgroup, or, where that is gone or
    /// has been made a parent, to where its first process `pid` has moved.
    pub(crate) fn open_for(place: &Place, pid: i32) -> Result<Self> {
        if let Some(cgroup) = Self::find(place)? {
            let enabled = cgroup.directory.read("cgroup.subtree_control").unwrap_or_default();
            if enabled.trim().is_empty() {
                return Ok(cgroup);
            }
        }
        let operation = || format!("find the cgroup of process {pid}");
        let list = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).doing(operation)?;
        let root = Hierarchy::find()?.root;
        let path = place::of_process(&root, &list).ok_or(Errno::NOENT).doing(operation)?;
        Self::open(&Place { path, unit: place.unit.clone() })
    }

    /// Gives it to a user, who may then make cgroups below; its limits stay the host's.
    pub(crate) fn give_to(&self, uid: u32) -> Result<()> {
        let files = std::fs::read_to_string("/sys/kernel/cgroup/delegate");
        let files = files.as_deref().unwrap_or(
            // What the first kernels with delegation had, before they told.
            "cgroup.procs cgroup.subtree_control cgroup.threads",
        );
        let path = &self.place.path;
        self.directory
            .give_to(uid, files)
            .doing(|| format!("give cgroup {} to user {uid}", path.display()))
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// A cgroup below this one, for a process that is to run there. `relative` is plain.
    pub(crate) fn below(&self, relative: &Path) -> Result<OwnedFd> {
        let mut path = self.place.path.clone();
        for part in relative.components() {
            match part {
                Component::Normal(name) => path.push(name),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Error::invalid("bad sub cgroup path", format!("{relative:?}")));
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
        warnings.extend(self.restrict(devices.unwrap_or_default(), missing)?);
        Ok(warnings)
    }

    fn restrict(&self, list: &[LinuxDeviceCgroup], missing: Missing) -> Result<Option<String>> {
        let field = "linux.resources.devices";
        match devices::restrict(self.as_fd(), list)? {
            Some(reason) if missing == Missing::Refused && !list.is_empty() => {
                Err(Error::invalid(field, reason))
            }
            unenforced => Ok(unenforced.map(|reason| format!("{field}: {reason}"))),
        }
    }

    /// Changes the limits of a running container to `resources`, all of which are written; files of
    /// what they do not speak of stay as they are.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<()> {
        let mut settings = limits::plan(resources)?;
        if let Ok(usage) = self.directory.read("memory.current") {
            // Without the controller the write says so.
            limits::check_usage(resources, usage.trim().parse().unwrap_or(0))?;
        }
        if let Some(unit) = &self.place.unit {
            let mut manager = Manager::connect()?;
            let properties = manager.plan(&mut settings)?;
            manager.set_properties(&unit.name, &properties)?;
        }
        self.write(&settings, Missing::Refused)?;
        if let Some(devices) = resources.devices() {
            self.restrict(devices, Missing::Refused)?;
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
                    if setting.is_default() {
                        // Where nothing can be limited, nothing is.
                        continue;
                    }
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

    /// Its counters.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let path = &self.place.path;
        Stats::read(&self.directory)
            .doing(|| format!("read the counters of cgroup {}", path.display()))
    }

    /// Watches it from now on.
    pub(crate) fn watch(&self) -> Result<Watch> {
        let path = &self.place.path;
        Watch::new(&self.directory).doing(|| format!("watch cgroup {}", path.display()))
    }

    /// Kills every process in it and below; does not wait for their ends. Linux 5.14.
    pub(crate) fn kill(&self) -> Result<()> {
        let path = &self.place.path;
        kill_all(&self.directory).doing(|| format!("kill cgroup {}", path.display()))
    }

    /// Sends every process in it and below a signal, by number; SIGKILL reaches those that are born meanwhile
    /// too. Linux 5.3, for SIGKILL 5.14.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        let path = &self.place.path;
        signal_each(&self.directory, signal)
            .doing(|| format!("send signal {signal} to cgroup {}", path.display()))
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
        if let Some(unit) = &self.place.unit {
            self.end(deadline_ms)?;
            // Empty, it is about to be stopped by systemd itself.
            Manager::connect()?.stop(&unit.name)?;
        }
        let operation = || format!("remove cgroup {}", self.place.path.display());
        loop {
            self.end(deadline_ms)?;
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

    /// Kills what is in it and waits for its end.
    fn end(&self, deadline_ms: u64) -> Result<()> {
        let operation = || format!("end the processes of cgroup {}", self.place.path.display());
        match self.kill() {
            // Removed meanwhile.
            Err(Error::System { source: Errno::NODEV | Errno::NOENT, .. }) => return Ok(()),
            result => result?,
        }
        match self.directory.wait_event("populated", 0, deadline_ms) {
            Ok(true) | Err(Errno::NODEV | Errno::NOENT) => Ok(()),
            Ok(false) => Err(Errno::BUSY).doing(operation),
            Err(error) => Err(error).doing(operation),
        }
    }
}

/// Where systemd has put a process, which must be in the unit's cgroup.
fn placed(root: &Path, pid: i32, unit: &Unit) -> Result<PathBuf> {
    let operation = || format!("find the cgroup of unit {}", unit.name);
    let list = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).doing(operation)?;
    let path = place::of_process(root, &list).ok_or(Errno::NOENT).doing(operation)?;
    if path.file_name() != Some(unit.name.as_ref()) {
        let reason = format!("systemd has put its process into {}", path.display());
        return Err(Error::invalid(format!("unit {}", unit.name), reason));
    }
    Ok(path)
}

/// Kills every process of the cgroup at `path` and below, and does not wait for their ends. Blocking. Linux 5.14.
///
/// # Errors
/// What the system refuses; `ENOENT` or `ENODEV` where the cgroup is gone.
pub fn kill(path: &Path) -> std::io::Result<()> {
    Ok(kill_all(&Directory::open(path)?)?)
}

/// How many processes are held open at a time.
const HELD: usize = 64;

/// The kernel (seen on 6.18) signals first threads alone: a process whose first thread has ended goes on.
/// So each that is still there is signalled as a whole.
fn kill_all(directory: &Directory) -> std::result::Result<(), Errno> {
    directory.write("cgroup.kill", "1")?;
    match directory.read_key("cgroup.events", "populated") {
        // Removed meanwhile, it has none either.
        Ok(Some(0)) | Err(Errno::NODEV | Errno::NOENT) => Ok(()),
        Ok(_) => signal_each(directory, libc::SIGKILL),
        Err(error) => Err(error),
    }
}

/// Signals every process that is there now, as a whole. One that ends meanwhile needs no signal.
fn signal_each(directory: &Directory, signal: i32) -> std::result::Result<(), Errno> {
    let mut listed = Vec::new();
    collect(directory, &mut listed);
    for some in listed.chunks(HELD) {
        let opened: Vec<_> = some.iter().filter_map(|pid| Some((pid, open(*pid)?))).collect();
        // Looked at again now that it is held: before, the number may have become another's.
        let mut still = Vec::new();
        collect(directory, &mut still);
        for (_, process) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
            match sys::signal_process(process.as_fd(), signal).map_err(|error| errno(&error)) {
                Err(Errno::SRCH) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn open(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
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
