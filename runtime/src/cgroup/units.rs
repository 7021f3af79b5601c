//! The systemd driver: which cgroups are units, and pods' slices and scopes, started and stopped.
//!
//! A path says by itself who makes it: one that is a slice's (`kubepods.slice/kubepods-pod1.slice`) is
//! systemd's, any other a plain directory. So a pod stays where its record says it is, whatever the
//! agent's configuration says by now. What the units are is in [`berth_oci::units`], how their insides
//! are used here: a pod's scope has its shim in one cgroup and each container in another, as processes
//! and controllers for children do not go together.
//!
//! Differs: containerd has a scope for each container, which costs every start a job of systemd's.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use berth_oci::units::is_booted;
use berth_oci::units::{self, File};

use super::limits::Limit;
use super::{Error, GroupPath, Hierarchy, failed, is_gone, is_populated, write};
use crate::interface::SandboxId;

/// The cgroup in a pod's scope that its shim is in. Containers' have longer names.
const SHIM: &str = "shim";
/// The `oom_score_adj` of who is the last to be killed when the pod is over its limit.
const SPARED: &str = "-999";

/// In which cgroup those of a sandbox's containers are: the pod's, or the sandbox's scope in it where the
/// pod's is a slice. Pure.
pub fn home(pod: &Path, sandbox: &SandboxId) -> PathBuf {
    match slice(pod) {
        Some(_) => pod.join(format!("berth-{sandbox}.scope")),
        None => pod.to_owned(),
    }
}

/// The slice that has its cgroup at `path`.
fn slice(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    (units::directory(name)? == path).then_some(name)
}

/// A unit that a cgroup is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit<'a> {
    Slice(&'a str),
    Scope { name: &'a str, slice: &'a str },
}

impl GroupPath {
    /// The unit whose cgroup this is; `None` for a directory that is nobody's but ours.
    pub(super) fn unit(&self) -> Option<Unit<'_>> {
        if let Some(name) = slice(&self.0) {
            return Some(Unit::Slice(name));
        }
        let name = self.0.file_name()?.to_str().filter(|name| name.ends_with(".scope"))?;
        Some(Unit::Scope { name, slice: slice(self.0.parent()?)? })
    }
}

fn files(limits: &[Limit]) -> Vec<File> {
    limits.iter().map(|limit| (limit.file.clone(), limit.value.clone())).collect()
}

/// The limits that systemd has no property for.
fn rest(limits: Vec<Limit>, files: &[String]) -> Vec<Limit> {
    limits.into_iter().filter(|limit| files.contains(&limit.file)).collect()
}

impl Hierarchy {
    /// Starts a pod's or a class's slice under `limits`, with those around it. Returns the limits that
    /// are left to be written. Blocking.
    pub(super) fn start_slices(
        &self,
        path: &GroupPath,
        limits: Vec<Limit>,
    ) -> Result<Vec<Limit>, Error> {
        let mut left = Vec::new();
        for group in path.lineage() {
            let Some(name) = slice(group) else { return Err(Error::Path(group.to_owned())) };
            let directory = self.root.join(group);
            if group == path.as_path() {
                left = units::start_slice(name, &files(&limits))?;
            } else if !directory.is_dir() {
                units::start_slice(name, &[])?;
            }
            if !directory.is_dir() {
                return Err(Error::NotThere(directory));
            }
        }
        Ok(rest(limits, &left))
    }

    /// Changes limits of a slice; one that is gone needs none. Returns those left to be written.
    pub(super) fn limit_slice(
        &self,
        (path, name): (&GroupPath, &str),
        limits: Vec<Limit>,
    ) -> Result<Vec<Limit>, Error> {
        match self.directory(path).is_dir() {
            true => Ok(rest(limits.clone(), &units::limit_slice(name, &files(&limits))?)),
            false => Ok(Vec::new()),
        }
    }

    /// Makes the cgroup that those of a sandbox's containers are made in, from [`home`]: where it is a
    /// scope it holds the shim, process `shim`. Else there is nothing to do. Idempotent. Blocking.
    ///
    /// # Errors
    /// [`Error::Systemd`], [`Error::File`]
    pub fn settle(&self, home: &GroupPath, shim: u32) -> Result<(), Error> {
        let Some(Unit::Scope { name, slice }) = home.unit() else { return Ok(()) };
        let pid = i32::try_from(shim).map_err(|_| Error::Path(home.as_path().to_owned()))?;
        units::start_scope(name, slice, pid)?;
        let directory = self.directory(home);
        if !directory.is_dir() {
            return Err(Error::NotThere(directory));
        }
        let leaf = directory.join(SHIM);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            outcome => outcome.map_err(failed("create", &leaf))?,
        }
        write(&leaf.join("cgroup.procs"), &shim.to_string())?;
        // The pod's limit is over it now, too. Who may not lower the score has been told so.
        let _ = write(&Path::new("/proc").join(shim.to_string()).join("oom_score_adj"), SPARED);
        self.pass_on(home)
    }

    /// Removes the cgroup around containers that nobody knows of: a scope with what is in it, and the
    /// pod's where it is then in no use. Blocking.
    ///
    /// # Errors
    /// As [`Hierarchy::remove`].
    pub fn sweep(&self, home: &GroupPath) -> Result<(), Error> {
        let Some(Unit::Scope { .. }) = home.unit() else { return self.remove_unused(home) };
        self.remove(home)?;
        let pod = home.as_path().parent().map(GroupPath::try_from).transpose()?;
        pod.map_or(Ok(()), |pod| self.remove_unused(&pod))
    }

    /// Removes a cgroup, and stops the slice that it is of, if nothing is in it. Blocking.
    ///
    /// # Errors
    /// As [`Hierarchy::remove`]; not when something is in it.
    pub fn remove_unused(&self, path: &GroupPath) -> Result<(), Error> {
        let directory = self.directory(path);
        if path.unit().is_some() {
            return match is_unused(&directory) {
                true => self.remove(path),
                false => Ok(()),
            };
        }
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy || is_gone(&error) => Ok(()),
            outcome => outcome.map_err(failed("remove", &directory)),
        }
    }
}

/// Whether a cgroup is there with neither processes nor cgroups in it.
fn is_unused(directory: &Path) -> bool {
    let has_below = |entry: fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    fs::read_dir(directory).is_ok_and(|mut all| !all.any(|entry| entry.is_ok_and(has_below)))
        && is_populated(directory).is_ok_and(|populated| !populated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(path: &str) -> GroupPath {
        GroupPath::try_from(Path::new(path)).unwrap()
    }

    #[test]
    fn a_path_says_whether_systemd_makes_it() {
        let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice";
        let name = "kubepods-burstable-poda_b.slice";
        assert_eq!(group(pod).unit(), Some(Unit::Slice(name)));
        assert_eq!(group("kubepods.slice").unit(), Some(Unit::Slice("kubepods.slice")));
        let scope = group(&format!("{pod}/berth-1.scope"));
        assert_eq!(scope.unit(), Some(Unit::Scope { name: "berth-1.scope", slice: name }));
        for plain in [
            "kubepods",
            "kubepods/burstable/pod1",
            "kubepods/podx.slice",
            "kubepods.slice/pod1.slice",
            "kubepods/pod1/x.scope",
            &format!("{pod}/berth-1.scope/0123"),
            &format!("{pod}/0123"),
        ] {
            assert_eq!(group(plain).unit(), None, "{plain}");
        }
    }

    #[test]
    fn containers_are_in_the_pods_cgroup_or_in_the_sandboxs_scope_in_it() {
        let sandbox = SandboxId::try_from("0123456789abcdef".repeat(2)).unwrap();
        let home = |pod: &str| home(Path::new(pod), &sandbox).display().to_string();
        assert_eq!(home("kubepods/burstable/pod1"), "kubepods/burstable/pod1");
        let slice = "kubepods.slice/kubepods-pod1.slice";
        assert_eq!(home(slice), format!("{slice}/berth-{sandbox}.scope"));
    }

    #[test]
    fn only_what_systemd_has_no_property_for_is_left_to_be_written() {
        let limit = |file: &str| Limit { file: file.to_owned(), value: "1".to_owned() };
        let limits = vec![limit("memory.max"), limit("hugetlb.2MB.max")];
        let files = ["hugetlb.2MB.max".to_owned()];
        assert_eq!(rest(limits, &files), [limit("hugetlb.2MB.max")]);
    }

    #[test]
    fn a_cgroup_is_unused_when_neither_processes_nor_cgroups_are_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("cgroup.events");
        assert!(!is_unused(dir.path()), "what cannot be read is left alone");
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        assert!(!is_unused(dir.path()));
        fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
        assert!(is_unused(dir.path()));
        fs::create_dir(dir.path().join("pod.slice")).unwrap();
        assert!(!is_unused(dir.path()));
    }

    #[test]
    fn without_a_scope_there_is_nothing_to_settle_and_a_slice_that_is_gone_needs_no_limits() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "memory\n").unwrap();
        let hierarchy = Hierarchy::at(dir.path()).unwrap();
        hierarchy.settle(&group("kubepods/pod1"), std::process::id()).unwrap();
        let slice = group("kubepods.slice");
        let limits = vec![Limit { file: "memory.max".into(), value: "1".into() }];
        assert_eq!(hierarchy.limit_slice((&slice, "kubepods.slice"), limits).unwrap(), []);
        hierarchy.weigh(&slice, 7).unwrap();
    }
}
