//! The directories of the cgroupfs driver: made down to the leaf with controllers on, and removed.
//!
//! kernel `Documentation/admin-guide/cgroup-v2.rst`, "Enabling and Disabling", "No Internal Process
//! Constraint", "Threads".

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;

use super::directory::Directory;
use crate::container::{Doing, Error, Result};

/// Directories made on the way, the outermost first.
pub(super) type Made = Vec<PathBuf>;

/// Makes the directories between `root` and `path`, each with all controllers on that it has.
///
/// A controller that cannot be turned on is found missing when a limit of it is written. On failure
/// nothing is left.
pub(super) fn make(root: &Path, path: &Path) -> Result<(Directory, Made)> {
    let mut made = Made::new();
    let result = descend(root, path, &mut made);
    if result.is_err() {
        unmake(&made);
    }
    result.map(|directory| (directory, made))
}

fn descend(root: &Path, path: &Path, made: &mut Made) -> Result<Directory> {
    let outside = || Error::invalid("linux.cgroupsPath", "is outside of the hierarchy");
    let relative = path.strip_prefix(root).map_err(|_| outside())?;
    let mut current = root.to_owned();
    let open =
        |path: &Path| Directory::open(path).doing(|| format!("open cgroup {}", path.display()));
    let mut directory = open(&current)?;
    for part in relative.components() {
        enable_controllers(&directory);
        current.push(part);
        match rustix::fs::mkdir(&current, Mode::from_raw_mode(0o755)) {
            Ok(()) => made.push(current.clone()),
            Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error).doing(|| format!("make cgroup {}", current.display()));
            }
        }
        directory = open(&current)?;
    }
    Ok(directory)
}

/// Removes what [`make`] made, as far as it is empty.
pub(super) fn unmake(made: &Made) {
    for path in made.iter().rev() {
        // A failure is on its way to the caller already.
        let _ = rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR);
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

/// Turns on for children what `available` has and `enabled` lacks.
fn missing_controllers(available: &str, enabled: &str) -> Vec<String> {
    let missing = words(available).filter(|one| !words(enabled).any(|other| other == *one));
    missing.map(|controller| format!("+{controller}")).collect()
}

fn enable_controllers(directory: &Directory) {
    const CONTROL: &str = "cgroup.subtree_control";
    let available = directory.read("cgroup.controllers").unwrap_or_default();
    let enabled = directory.read(CONTROL).unwrap_or_default();
    let missing = missing_controllers(&available, &enabled);
    // One with processes can only be made the root of threads, which is no service to them; the
    // hierarchy's root, which has no type, is free to have both.
    let populated = || directory.read("cgroup.procs").is_ok_and(|list| !list.is_empty());
    if directory.read("cgroup.type").is_ok() && !missing.is_empty() && populated() {
        return;
    }
    if missing.is_empty() || directory.write(CONTROL, &missing.join(" ")).is_ok() {
        return;
    }
    // All or nothing failed, so one after the other; see `make`.
    for controller in missing {
        let _ = directory.write(CONTROL, &controller);
    }
}

/// Says no to a leaf that cannot take a container: populated, frozen, threaded or a parent.
pub(super) fn inspect(directory: &Directory, path: &Path) -> Result<()> {
    let refuse = |reason: String| {
        let field = format!("linux.cgroupsPath: cgroup {}", path.display());
        Err(Error::invalid(field, reason))
    };
    let kind = directory.read("cgroup.type").unwrap_or_default();
    match kind.trim() {
        "" | "domain" => {}
        "domain invalid" | "threaded" | "domain threaded" => {
            return refuse(format!("is in threaded mode ({})", kind.trim()));
        }
        other => return refuse(format!("is of the unknown type {other:?}")),
    }
    let events = directory.read("cgroup.events").unwrap_or_default();
    if super::directory::find_key(&events, "populated") == Some(1) {
        let count = directory.read("cgroup.procs").unwrap_or_default().lines().count();
        return refuse(format!("container's cgroup is not empty: {count} process(es) found"));
    }
    if directory.read("cgroup.freeze").is_ok_and(|frozen| frozen.trim() == "1") {
        return refuse("container's cgroup unexpectedly frozen".to_owned());
    }
    if words(&directory.read("cgroup.subtree_control").unwrap_or_default()).next().is_some() {
        return refuse("is a parent: it has controllers on for cgroups below it".to_owned());
    }
    Ok(())
}

/// Removes a cgroup with those below it. Removing what is gone is done.
pub(super) fn remove(path: &Path) -> Result<(), Errno> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) => {}
        Err(error) => return Err(error),
    }
    // Busy with processes, or with cgroups below.
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_controllers_that_are_there_and_off_are_turned_on() {
        assert_eq!(missing_controllers("cpu io memory\n", "memory\n"), ["+cpu", "+io"]);
        assert!(missing_controllers("cpu\n", "cpu\n").is_empty());
        assert!(missing_controllers("", "").is_empty());
    }
}
