//! Where a container's cgroup is: from `linux.cgroupsPath` to a directory, or to a unit of systemd.
//!
//! Pure but for [`Hierarchy::find`]. Meanings as in runc: a path for the cgroupfs driver, absolute from
//! the hierarchy's root or relative to the parent of the caller's own cgroup; `slice:prefix:name` for
//! the systemd driver. OCI runtime spec, `config-linux.md`, Cgroups path.

use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::container::{Doing, Error, Result};

const FIELD: &str = "linux.cgroupsPath";

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    /// Directories made here.
    Cgroupfs,
    /// Transient units, asked for over D-Bus.
    Systemd,
}

/// A unit of systemd and the slice it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) slice: String,
}

/// Where a cgroup is. Part of a container's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its directory, absolute.
    pub(crate) path: PathBuf,
    /// The unit whose cgroup it is, under the systemd driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<Unit>,
}

/// The cgroup v2 hierarchy as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) root: PathBuf,
    /// The caller's cgroup, from the root.
    pub(crate) own: PathBuf,
}

impl Hierarchy {
    /// Finds it where systemd mounts it: on `/sys/fs/cgroup`, or below on a hybrid host.
    pub(crate) fn find() -> Result<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let Some(root) = roots.into_iter().find(|root| is_hierarchy(root)) else {
            let reason = "is neither on /sys/fs/cgroup nor on /sys/fs/cgroup/unified";
            return Err(Error::invalid("the cgroup v2 hierarchy", reason));
        };
        let list = std::fs::read_to_string("/proc/self/cgroup").doing(|| "read own cgroup")?;
        let own = own_cgroup(&list).ok_or(Errno::NOENT).doing(|| "find own cgroup")?;
        Ok(Self { root, own })
    }
}

fn is_hierarchy(root: &Path) -> bool {
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs(root).is_ok_and(|found| found.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

/// Where a process' cgroup is mounted, by its `/proc/<pid>/cgroup`; none for one that is outside of the
/// caller's cgroup namespace.
pub(crate) fn of_process(root: &Path, list: &str) -> Option<PathBuf> {
    let path = own_cgroup(list)?;
    let inside = !path.components().any(|part| part == Component::ParentDir);
    inside.then(|| root.join(plain(&path)))
}

/// The path of the unified hierarchy in a `/proc/<pid>/cgroup`.
pub(super) fn own_cgroup(list: &str) -> Option<PathBuf> {
    list.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// What a container asks for.
pub(crate) struct Wish<'a> {
    pub(crate) driver: Driver,
    /// The container's id.
    pub(crate) id: &'a str,
    /// `linux.cgroupsPath`.
    pub(crate) cgroups_path: Option<&'a Path>,
}

impl Place {
    /// Where the wish is to be fulfilled.
    pub(crate) fn resolve(hierarchy: &Hierarchy, wish: &Wish<'_>) -> Result<Self> {
        let path = wish.cgroups_path.filter(|path| !path.as_os_str().is_empty());
        match wish.driver {
            Driver::Cgroupfs => {
                let path = path.unwrap_or(Path::new(wish.id));
                Ok(Self { path: directory(hierarchy, path)?, unit: None })
            }
            Driver::Systemd => {
                let unit = unit(path, wish.id)?;
                let relative = expand(&unit.slice)?.join(&unit.name);
                Ok(Self { path: hierarchy.root.join(relative), unit: Some(unit) })
            }
        }
    }
}

fn directory(hierarchy: &Hierarchy, path: &Path) -> Result<PathBuf> {
    let mut result = hierarchy.root.clone();
    if path.is_relative() {
        // The caller's own cgroup holds processes, hence can have no controllers for children.
        result.push(plain(hierarchy.own.parent().unwrap_or(&hierarchy.own)));
    }
    let inner = plain(path);
    if inner.as_os_str().is_empty() {
        return Err(Error::invalid(FIELD, "is the hierarchy's root"));
    }
    Ok(result.join(inner))
}

/// A path without its root, `.` and `..`; nothing leads above where it starts.
fn plain(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

const SLICE: &str = ".slice";
const DEFAULT_SLICE: &str = "system.slice";
const DEFAULT_PREFIX: &str = "berth";

fn unit(path: Option<&Path>, id: &str) -> Result<Unit> {
    let Some(path) = path else {
        return named(DEFAULT_SLICE, DEFAULT_PREFIX, id);
    };
    let text = path.to_str().unwrap_or_default();
    match text.split(':').collect::<Vec<_>>().as_slice() {
        ["", prefix, name] => named(DEFAULT_SLICE, prefix, name),
        [slice, prefix, name] => named(slice, prefix, name),
        _ => {
            let reason = format!("{path:?} is not of the form slice:prefix:name");
            Err(Error::invalid(FIELD, reason))
        }
    }
}

fn named(slice: &str, prefix: &str, name: &str) -> Result<Unit> {
    if name.ends_with(SLICE) {
        // Slices hold units and no processes.
        return Err(Error::invalid(FIELD, format!("{name:?} is a slice, not a container's scope")));
    }
    let unit = format!("{prefix}-{name}.scope");
    // What systemd takes in a unit's name.
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if unit.len() > 255 || name.is_empty() || !unit.bytes().all(valid) {
        return Err(Error::invalid(FIELD, format!("{unit:?} is no name for a unit")));
    }
    Ok(Unit { name: unit, slice: slice.to_owned() })
}

/// The directory of a slice: `a-b.slice` is inside of `a.slice`.
pub(crate) fn expand(slice: &str) -> Result<PathBuf> {
    let refuse = || Error::invalid(FIELD, format!("{slice:?} is no name for a slice"));
    let stem = slice.strip_suffix(SLICE).ok_or_else(refuse)?;
    let mut path = PathBuf::new();
    if stem == "-" {
        return Ok(path);
    }
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\@".contains(&byte);
    let mut name = String::new();
    for part in stem.split('-') {
        if part.is_empty() || slice.len() > 255 || !part.bytes().all(valid) {
            return Err(refuse());
        }
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        path.push(format!("{name}{SLICE}"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(driver: Driver, path: &str) -> Result<Place> {
        let hierarchy = Hierarchy {
            root: PathBuf::from("/sys/fs/cgroup"),
            own: PathBuf::from("/user.slice/session-1.scope"),
        };
        let cgroups_path = (!path.is_empty()).then(|| Path::new(path));
        Place::resolve(&hierarchy, &Wish { driver, id: "c1", cgroups_path })
    }

    #[test]
    fn a_path_is_taken_from_the_root_or_from_beside_the_caller() {
        for (path, expected) in [
            ("/machine/c1", "/sys/fs/cgroup/machine/c1"),
            ("machine/c1", "/sys/fs/cgroup/user.slice/machine/c1"),
            ("", "/sys/fs/cgroup/user.slice/c1"),
            ("/../../etc/./c1", "/sys/fs/cgroup/etc/c1"),
            ("../../../x", "/sys/fs/cgroup/user.slice/x"),
        ] {
            let place = resolve(Driver::Cgroupfs, path).unwrap();
            assert_eq!((place.path.to_str().unwrap(), place.unit), (expected, None), "{path}");
        }
        assert!(resolve(Driver::Cgroupfs, "/..").is_err());
    }

    #[test]
    fn slice_prefix_and_name_become_a_scope_in_nested_slices() {
        for (path, unit, directory) in [
            ("", "berth-c1.scope", "system.slice/berth-c1.scope"),
            (":libpod:7", "libpod-7.scope", "system.slice/libpod-7.scope"),
            (
                "kubepods-besteffort-pod1_2.slice:cri:x",
                "cri-x.scope",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-x.scope",
            ),
            ("-.slice:p:x", "p-x.scope", "p-x.scope"),
            ("a.slice::x", "-x.scope", "a.slice/-x.scope"),
        ] {
            let place = resolve(Driver::Systemd, path).unwrap();
            assert_eq!(place.path, Path::new("/sys/fs/cgroup").join(directory), "{path}");
            assert_eq!(place.unit.unwrap().name, unit);
        }
    }

    #[test]
    fn names_that_systemd_would_refuse_are_refused_here() {
        for path in [
            "/a/b",
            "a.slice:b",
            "a.slice:b:c:d",
            "a:b:c",
            "a--b.slice:p:x",
            "-a.slice:p:x",
            ".slice:p:x",
            "../a.slice:p:x",
            "a/b.slice:p:x",
            "a.slice:p:",
            "a.slice:p:b.slice",
            "a.slice:p:x/y",
            "a.slice:p:x\n",
        ] {
            assert!(resolve(Driver::Systemd, path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn the_unified_line_of_a_hybrid_list_is_the_own_cgroup() {
        let list = "12:cpu:/x\n1:name=systemd:/y\n0::/z/a\n";
        assert_eq!(own_cgroup(list), Some(PathBuf::from("/z/a")));
        assert_eq!(own_cgroup("1:name=systemd:/y\n"), None);
        let root = Path::new("/c");
        assert_eq!(of_process(root, list), Some(PathBuf::from("/c/z/a")));
        assert_eq!(of_process(root, "0::/../../z\n"), None);
    }
}
