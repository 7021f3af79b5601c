//! The census of file systems: mounts, cgroups, state directories, loop devices, shared memory.
//!
//! Owns reading them from the kernel's files (proc(5), cgroups(7)); changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Scope, proc};

/// One line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) root: String,
    pub(super) target: String,
    pub(super) kind: String,
    pub(super) source: String,
}

/// The mounts of this mount namespace.
pub(super) fn mounts(_: &Scope) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").context("read mountinfo")?;
    Ok(numbered(parse(&text).iter().map(describe)))
}

/// The mounts that only our processes hold, in mount namespaces of their own.
pub(super) fn shim_mounts(scope: &Scope) -> Result<BTreeSet<String>> {
    let own = fs::read_link("/proc/thread-self/ns/mnt").context("read the mount namespace")?;
    let mut seen = BTreeSet::from([own]);
    seen.extend(fs::read_link("/proc/1/ns/mnt"));
    let mut found = BTreeSet::new();
    for process in proc::ours(scope)? {
        let Ok(namespace) = fs::read_link(process.file("ns/mnt")) else { continue };
        if !seen.insert(namespace.clone()) {
            continue;
        }
        let text = fs::read_to_string(process.file("mountinfo")).unwrap_or_default();
        for mount in parse(&text) {
            found.insert(format!("{} {}", namespace.display(), describe(&mount)));
        }
    }
    Ok(found)
}

pub(super) fn parse(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let mut after = after.split(' ');
        Some(Mount {
            root: (*before.get(3)?).to_owned(),
            target: (*before.get(4)?).to_owned(),
            kind: after.next()?.to_owned(),
            source: after.next()?.to_owned(),
        })
    };
    text.lines().filter_map(mount).collect()
}

fn describe(mount: &Mount) -> String {
    format!("{} ({} {} of {})", mount.target, mount.kind, mount.root, mount.source)
}

/// Equal entries are told apart, since one thing mounted twice over itself is two mounts.
fn numbered(entries: impl Iterator<Item = String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in entries {
        let mut name = entry.clone();
        let mut count = 1;
        while !found.insert(name.clone()) {
            count += 1;
            name = format!("{entry} #{count}");
        }
    }
    found
}

/// Our cgroups in every hierarchy that is mounted.
pub(super) fn cgroups(scope: &Scope) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").context("read mountinfo")?;
    let mut found = BTreeSet::new();
    for mount in parse(&text).iter().filter(|mount| mount.kind.starts_with("cgroup")) {
        walk(Path::new(&unescape(&mount.target)), &mut |path, meta| {
            let ours = is_our_cgroup(path, scope);
            if ours && meta.is_dir() {
                found.insert(path.display().to_string());
            }
            meta.is_dir()
        })?;
    }
    Ok(found)
}

/// Whether one of the names in a path begins as our cgroups do.
pub(super) fn is_our_cgroup(path: &Path, scope: &Scope) -> bool {
    path.iter().filter_map(|name| name.to_str()).any(|name| {
        scope.cgroups.iter().any(|prefix| {
            // A session's scope may hold "berth" anywhere else: only the beginning counts.
            name.starts_with(prefix.as_str())
        })
    })
}

/// Everything in the state directories. Leases are files in there.
pub(super) fn state(scope: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for root in &scope.roots {
        let device = match fs::symlink_metadata(root) {
            Ok(meta) => meta.dev(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("look at {}", root.display())),
        };
        found.insert(format!("{} directory", root.display()));
        walk(root, &mut |path, meta| {
            found.insert(format!("{} {}", path.display(), file_kind(meta)));
            // What is mounted below counts as a mount.
            meta.is_dir() && meta.dev() == device
        })?;
    }
    Ok(found)
}

fn file_kind(meta: &fs::Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "link",
        () if kind.is_socket() => "socket",
        () if kind.is_fifo() => "fifo",
        () => "device",
    }
}

/// Calls `visit` with everything below `dir`; it says whether to go deeper. What vanishes
/// meanwhile is passed over.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> bool) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", dir.display())),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if visit(&path, &meta) {
            walk(&path, visit)?;
        }
    }
    Ok(())
}

/// Loop devices that have a file.
pub(super) fn loop_devices(_: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/sys/block").context("list /sys/block")?.flatten() {
        let backing = entry.path().join("loop/backing_file");
        if let Ok(file) = fs::read_to_string(backing) {
            found.insert(format!("{} {}", entry.file_name().to_string_lossy(), file.trim()));
        }
    }
    Ok(found)
}

/// POSIX and System V shared memory and semaphores.
pub(super) fn shared_memory(_: &Scope) -> Result<BTreeSet<String>> {
    let mut found = names_in("/dev/shm")?;
    for kind in ["shm", "sem", "msg"] {
        let text = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut columns = line.split_whitespace();
            let (key, id) = (columns.next().unwrap_or(""), columns.next().unwrap_or(""));
            found.insert(format!("System V {kind} {id} key {key}"));
        }
    }
    Ok(found)
}

/// POSIX message queues, where their file system is mounted.
pub(super) fn message_queues(_: &Scope) -> Result<BTreeSet<String>> {
    names_in("/dev/mqueue")
}

fn names_in(dir: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    walk(Path::new(dir), &mut |path, meta| {
        found.insert(path.display().to_string());
        meta.is_dir()
    })?;
    Ok(found)
}

/// mountinfo writes blanks and backslashes in octal.
pub(super) fn unescape(text: &str) -> PathBuf {
    let plain = text
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
40 36 0:4 net:[4026532008] /run/netns/a\\040b rw shared:7 - nsfs nsfs rw
";

    #[test]
    fn mountinfo_is_read_with_and_without_optional_fields() {
        let mounts = parse(INFO);
        assert_eq!(describe(&mounts[0]), "/mnt2 (ext3 /mnt1 of /dev/root)");
        assert_eq!(mounts[1].root, "net:[4026532008]");
        assert_eq!(unescape(&mounts[1].target), Path::new("/run/netns/a b"));
    }

    #[test]
    fn the_same_mount_twice_is_two() {
        let entries = ["/a", "/a", "/b"].into_iter().map(str::to_owned);
        assert_eq!(numbered(entries).into_iter().collect::<Vec<_>>(), ["/a", "/a #2", "/b"]);
    }

    #[test]
    fn all_below_one_of_our_cgroups_is_ours() {
        let scope = Scope::default();
        for path in ["/sys/fs/cgroup/kubepods.slice", "/sys/fs/cgroup/x/kubepods/burstable/pod1"] {
            assert!(is_our_cgroup(Path::new(path), &scope), "{path}");
        }
        assert!(!is_our_cgroup(Path::new("/sys/fs/cgroup/system.slice/not-berth"), &scope));
    }

    #[test]
    fn state_lists_every_entry_and_a_missing_root_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ipam")).unwrap();
        fs::write(dir.path().join("ipam/10.0.0.2"), "").unwrap();
        std::os::unix::fs::symlink("x", dir.path().join("link")).unwrap();
        let roots = vec![dir.path().to_owned(), dir.path().join("absent")];
        let found = state(&Scope { roots, ..Scope::default() }).unwrap();
        let kinds: Vec<_> = found.iter().filter_map(|entry| entry.rsplit(' ').next()).collect();
        assert_eq!(kinds, ["directory", "directory", "file", "link"]);
    }
}
