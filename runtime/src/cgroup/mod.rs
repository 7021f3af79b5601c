//! The cgroup v2 hierarchy: where it is, what it can enforce, and the pods' part of it.
//!
//! By direct file writes. The `cgroups-rs` crate is not used: it brings a second D-Bus stack, lacks
//! `memory.oom.group` and cannot be rooted anywhere but at `/sys/fs/cgroup`, while a hybrid host has
//! the hierarchy at `/sys/fs/cgroup/unified` and tests have it in a plain directory.
//!
//! A controller that the host has not given to v2 is not an error: what cannot be enforced is left
//! out and told by [`Hierarchy::missing`]. Containers' own cgroups are made by the shim, which clones
//! into them; [`limits`] says what it writes there. A pod's cgroup that is a slice is systemd's: [`units`].
//! Kernel: cgroup v2 with `cgroup.kill` (5.14).

pub mod limits;
mod mount;
pub mod observer;
pub mod open_files;
pub mod units;
pub mod usage;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use self::limits::{Controller, Limit};
use self::observer::{Observer, Operation};
use self::units::Unit;
use crate::interface::Resources;

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup v2 mount.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoHierarchy,
    /// A path that is absolute, empty, or climbs.
    #[error("invalid cgroup path {0:?}")]
    Path(PathBuf),
    /// Reading or writing a file of the hierarchy failed.
    #[error("cannot {action} {path:?}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Processes remain after all were killed.
    #[error("processes remain in the cgroup {0:?}")]
    Populated(PathBuf),
    /// systemd refused, or did not answer.
    #[error(transparent)]
    Systemd(#[from] berth_oci::units::Error),
    /// A unit runs, and its cgroup is not there.
    #[error("systemd has made no cgroup {0:?}")]
    NotThere(PathBuf),
}

/// A cgroup v2 hierarchy.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    root: PathBuf,
    available: BTreeSet<Controller>,
    observer: Arc<OnceLock<Arc<dyn Observer>>>,
}

/// A validated path below the hierarchy's root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupPath(PathBuf);

impl TryFrom<&Path> for GroupPath {
    type Error = Error;
    fn try_from(path: &Path) -> Result<Self, Error> {
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        if plain && path.components().next().is_some() {
            Ok(Self(path.components().collect()))
        } else {
            Err(Error::Path(path.to_owned()))
        }
    }
}

impl GroupPath {
    /// The path, relative to the root.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The cgroups from the outermost to this one.
    fn lineage(&self) -> Vec<&Path> {
        let mut lineage: Vec<&Path> = self.0.ancestors().collect();
        lineage.pop();
        lineage.reverse();
        lineage
    }
}

/// One step towards a cgroup with its controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Makes a directory, relative to the root.
    Make(PathBuf),
    /// Passes controllers on to the children of a cgroup.
    Enable(PathBuf, Vec<Controller>),
}

/// What is there of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Observed {
    exists: bool,
    enabled: BTreeSet<Controller>,
}

/// The steps to a cgroup whose children have all `wanted` controllers.
fn plan(
    lineage: &[&Path],
    wanted: &BTreeSet<Controller>,
    observe: impl Fn(&Path) -> Observed,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let root: &Path = Path::new("");
    for path in std::iter::once(&root).chain(lineage) {
        let observed = observe(path);
        if !observed.exists {
            steps.push(Step::Make(path.to_path_buf()));
        }
        let lacking: Vec<_> = wanted.difference(&observed.enabled).copied().collect();
        if !lacking.is_empty() {
            steps.push(Step::Enable(path.to_path_buf(), lacking));
        }
    }
    steps
}

impl Hierarchy {
    /// Finds the mounted hierarchy: `/sys/fs/cgroup` on a v2 host, `/sys/fs/cgroup/unified` on a
    /// hybrid one.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`].
    pub fn detect() -> Result<Self, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read(path).map_err(failed("read", path))?;
        // Somebody else's mount point need not be text.
        let root = mount::find(&String::from_utf8_lossy(&mountinfo)).ok_or(Error::NoHierarchy)?;
        Self::at(&root)
    }

    /// A hierarchy at a known place.
    ///
    /// # Errors
    /// When `cgroup.controllers` cannot be read there.
    pub fn at(root: &Path) -> Result<Self, Error> {
        let path = root.join("cgroup.controllers");
        let listed = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let available = limits::parse_controllers(&listed);
        Ok(Self { root: root.to_owned(), available, observer: Arc::default() })
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The controllers that pods are held by here.
    pub fn available(&self) -> &BTreeSet<Controller> {
        &self.available
    }

    /// The controllers that are not here, so that their limits are not enforced.
    pub fn missing(&self) -> BTreeSet<Controller> {
        let wanted = Controller::ALL.into_iter();
        wanted.filter(|c| !self.available.contains(c)).collect()
    }

    /// The directory of a cgroup.
    pub fn directory(&self, path: &GroupPath) -> PathBuf {
        self.root.join(path.as_path())
    }

    /// Makes a cgroup with its ancestors, or starts the slices that they are, passes the controllers on to
    /// its children and writes its limits. Idempotent. Blocking.
    ///
    /// # Errors
    /// [`Error::File`]; `EBUSY` on `cgroup.subtree_control` when an ancestor holds processes.
    /// [`Error::Systemd`] for slices.
    pub fn ensure(&self, path: &GroupPath, resources: &Resources) -> Result<(), Error> {
        self.told((Operation::Create, path), || self.make(path, resources))
    }

    fn make(&self, path: &GroupPath, resources: &Resources) -> Result<(), Error> {
        let mut limits = limits::plan(resources, &self.available);
        if path.unit().is_some() {
            limits = self.start_slices(path, limits)?;
        }
        self.pass_on(path)?;
        let dir = self.directory(path);
        for limit in limits {
            match write(&dir.join(&limit.file), &limit.value) {
                // A kernel without swap accounting has no swap to limit.
                Err(Error::File { source, .. })
                    if limit.file == "memory.swap.max" && is_gone(&source) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Makes what lacks of a cgroup and its ancestors, with all controllers on for their children.
    fn pass_on(&self, path: &GroupPath) -> Result<(), Error> {
        let observe = |path: &Path| {
            let dir = self.root.join(path);
            let control = fs::read_to_string(dir.join("cgroup.subtree_control"));
            Observed {
                exists: dir.is_dir(),
                enabled: limits::parse_controllers(&control.unwrap_or_default()),
            }
        };
        let steps = plan(&path.lineage(), &self.available, observe);
        steps.iter().try_for_each(|step| self.apply(step))
    }

    /// Holds a cgroup that is held by `old` to `new`: writes what differs. A cgroup that is gone needs
    /// none of it. Idempotent. Blocking.
    ///
    /// # Errors
    /// [`Error::File`]
    pub fn change(
        &self,
        path: &GroupPath,
        (old, new): (&Resources, &Resources),
    ) -> Result<(), Error> {
        self.told((Operation::Update, path), || self.write_changes(path, (old, new)))
    }

    fn write_changes(
        &self,
        path: &GroupPath,
        (old, new): (&Resources, &Resources),
    ) -> Result<(), Error> {
        let dir = self.directory(path);
        let mut changes = limits::changes(old, new, &self.available);
        if let Some(Unit::Slice(name)) = path.unit() {
            changes = self.limit_slice((path, name), changes)?;
        }
        for limit in changes {
            match write(&dir.join(&limit.file), &limit.value) {
                Err(Error::File { source, .. }) if is_gone(&source) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// What a cgroup has of memory now, in bytes; `None` where nobody counts it. Blocking.
    pub fn memory_in_use(&self, path: &GroupPath) -> Option<u64> {
        let file = self.directory(path).join("memory.current");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Sets `cpu.weight` of a cgroup, where it is there and has the controller. Blocking.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Systemd`] for a slice.
    pub fn weigh(&self, path: &GroupPath, cpu_weight: u64) -> Result<(), Error> {
        let file = self.directory(path).join("cpu.weight");
        let weight = cpu_weight.to_string();
        let now = fs::read_to_string(&file).unwrap_or_default();
        if !self.available.contains(&Controller::Cpu) || now.is_empty() || now.trim() == weight {
            return Ok(());
        }
        self.told((Operation::Update, path), || self.write_weight(path, weight))
    }

    fn write_weight(&self, path: &GroupPath, weight: String) -> Result<(), Error> {
        if let Some(Unit::Slice(name)) = path.unit() {
            let limit = Limit { file: "cpu.weight".to_owned(), value: weight };
            return self.limit_slice((path, name), vec![limit]).map(drop);
        }
        match write(&self.directory(path).join("cpu.weight"), &weight) {
            Err(Error::File { source, .. }) if is_gone(&source) => Ok(()),
            outcome => outcome,
        }
    }

    fn apply(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Make(path) => {
                let dir = self.root.join(path);
                match fs::create_dir(&dir) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    outcome => outcome.map_err(failed("create", &dir)),
                }
            }
            Step::Enable(path, controllers) => {
                let names = controllers.iter().map(|c| format!("+{}", c.name()));
                let line = names.collect::<Vec<_>>().join(" ");
                write(&self.root.join(path).join("cgroup.subtree_control"), &line)
            }
        }
    }

    /// Kills every process of a cgroup and below, and waits until none is left. A missing cgroup is
    /// an empty one. Blocking, a few milliseconds as a rule, at most `patience`.
    ///
    /// # Errors
    /// [`Error::Populated`] when processes remain.
    pub fn kill(&self, path: &GroupPath, patience: Duration) -> Result<(), Error> {
        let dir = self.directory(path);
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            match is_populated(&dir) {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(failed("read", &dir)(error)),
            }
            match berth_oci::kill_cgroup(&dir) {
                Err(error) if is_gone(&error) => return Ok(()),
                outcome => outcome.map_err(failed("kill", &dir))?,
            }
            if Instant::now() >= deadline {
                return Err(Error::Populated(dir));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Removes a cgroup and those below it, and stops the unit that it is of; waits a little for exiting
    /// processes to leave. Blocking.
    ///
    /// # Errors
    /// [`Error::File`], `EBUSY` when processes stay. [`Error::Systemd`] for a unit.
    pub fn remove(&self, path: &GroupPath) -> Result<(), Error> {
        self.told((Operation::Destroy, path), || self.clear(path))
    }

    fn clear(&self, path: &GroupPath) -> Result<(), Error> {
        match path.unit() {
            // Even where nothing is to be seen: it may be about to start.
            Some(Unit::Slice(name) | Unit::Scope { name, .. }) if berth_oci::units::is_booted() => {
                berth_oci::units::stop(name)?;
            }
            _ => {}
        }
        remove_below(&self.directory(path))
    }
}

fn remove_below(dir: &Path) -> Result<(), Error> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("list", dir)(error)),
    };
    for entry in listing.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path())?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                if Instant::now() >= deadline {
                    return Err(failed("remove", dir)(error));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(failed("remove", dir)(error)),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn is_populated(dir: &Path) -> io::Result<bool> {
    let events = fs::read_to_string(dir.join("cgroup.events"))?;
    Ok(events.lines().any(|line| line == "populated 1"))
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    let opened = fs::OpenOptions::new().write(true).open(path);
    let written = opened.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(failed("write", path))
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(path: &str) -> GroupPath {
        GroupPath::try_from(Path::new(path)).unwrap()
    }

    #[test]
    fn paths_that_climb_or_name_the_root_are_refused() {
        for bad in ["", "/", "/kubepods", "a/../b", ".."] {
            assert!(GroupPath::try_from(Path::new(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(group("kubepods//a/").as_path(), Path::new("kubepods/a"));
    }

    #[test]
    fn the_plan_makes_what_lacks_and_enables_from_the_root_down() {
        let wanted = BTreeSet::from([Controller::Memory]);
        let observe = |path: &Path| Observed {
            exists: path.as_os_str().is_empty() || path == Path::new("kubepods"),
            enabled: match path == Path::new("kubepods") {
                true => wanted.clone(),
                false => BTreeSet::new(),
            },
        };
        let path = group("kubepods/pod1");
        let steps = plan(&path.lineage(), &wanted, observe);
        assert_eq!(
            steps,
            vec![
                Step::Enable(PathBuf::new(), vec![Controller::Memory]),
                Step::Make("kubepods/pod1".into()),
                Step::Enable("kubepods/pod1".into(), vec![Controller::Memory]),
            ]
        );
    }

    #[test]
    fn nothing_is_planned_where_all_is_there() {
        let wanted = BTreeSet::from([Controller::Cpu, Controller::Pids]);
        let observe = |_: &Path| Observed { exists: true, enabled: wanted.clone() };
        assert!(plan(&group("a/b").lineage(), &wanted, observe).is_empty());
    }

    fn fake_root(controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        dir
    }

    #[test]
    fn a_host_without_controllers_gets_cgroups_and_says_what_is_missing() {
        let dir = fake_root("hugetlb\n");
        fs::write(dir.path().join("cgroup.subtree_control"), "hugetlb\n").unwrap();
        fs::create_dir(dir.path().join("kubepods")).unwrap();
        fs::write(dir.path().join("kubepods/cgroup.subtree_control"), "hugetlb\n").unwrap();
        let hierarchy = Hierarchy::at(dir.path()).unwrap();
        assert!(hierarchy.missing().contains(&Controller::Memory));
        let resources = Resources { memory_limit_bytes: Some(1 << 20), ..Resources::default() };
        hierarchy.ensure(&group("kubepods"), &resources).unwrap();
        assert!(!dir.path().join("kubepods/memory.max").exists());
    }

    #[test]
    fn limits_are_written_where_the_controller_is_there() {
        let dir = fake_root("memory pids\n");
        fs::write(dir.path().join("cgroup.subtree_control"), "memory pids\n").unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        for file in ["cgroup.subtree_control", "memory.max", "memory.oom.group", "pids.max"] {
            fs::write(dir.path().join("a").join(file), "").unwrap();
        }
        let resources = Resources {
            memory_limit_bytes: Some(4096),
            pids_limit: Some(9),
            cpu_weight: Some(3),
            ..Resources::default()
        };
        let hierarchy = Hierarchy::at(dir.path()).unwrap();
        hierarchy.ensure(&group("a"), &resources).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join("a").join(file)).unwrap();
        assert_eq!((read("memory.max"), read("pids.max")), ("4096".into(), "9".into()));
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids");
    }

    #[test]
    fn killing_and_removing_what_is_gone_succeeds() {
        let dir = fake_root("");
        let hierarchy = Hierarchy::at(dir.path()).unwrap();
        hierarchy.kill(&group("a"), Duration::ZERO).unwrap();
        hierarchy.remove(&group("a")).unwrap();
    }
}
