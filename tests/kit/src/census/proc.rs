//! The census of processes and what they hold: namespaces, keyrings.
//!
//! Owns reading `/proc` (proc(5), namespaces(7), keyrings(7)); signals nothing. Processes come and
//! go while it reads; one that is gone half-way was no leak.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Scope;
use super::files::{is_our_cgroup, parse, unescape};

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// A process that is seen in `/proc`.
#[derive(Debug)]
pub(super) struct Process {
    dir: PathBuf,
    pid: u32,
    name: String,
    state: char,
    program: String,
    command: String,
    cgroup: String,
}

impl Process {
    /// A file of its directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(dir: PathBuf) -> Option<Process> {
        let pid = dir.file_name()?.to_str()?.parse().ok()?;
        let (name, state) = name_and_state(&fs::read_to_string(dir.join("stat")).ok()?)?;
        let program = fs::read_link(dir.join("exe")).unwrap_or_default();
        let command = fs::read(dir.join("cmdline")).unwrap_or_default();
        let cgroup = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        Some(Process {
            pid,
            name,
            state,
            program: program_name(&program),
            command: String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned(),
            cgroup,
            dir,
        })
    }

    /// PID 1 or a thread of the kernel, which has no command line.
    fn is_the_machines(&self) -> bool {
        self.pid == 1 || (self.command.is_empty() && self.state != 'Z')
    }

    fn is_ours(&self, scope: &Scope) -> bool {
        let named = |name: &str| scope.programs.iter().any(|prefix| name.starts_with(prefix));
        let in_our_cgroup = self.cgroup.lines().any(|line| {
            let path = line.splitn(3, ':').nth(2).unwrap_or_default();
            is_our_cgroup(Path::new(path), scope)
        });
        // A zombie has no program any more, only its name.
        named(&self.program) || (self.state == 'Z' && named(&self.name)) || in_our_cgroup
    }
}

/// The name of an executable, also of one that runs from a memory file or was replaced.
fn program_name(exe: &Path) -> String {
    let text = exe.to_string_lossy();
    let text = text.trim_end_matches(" (deleted)");
    let text = text.strip_prefix("/memfd:").unwrap_or(text);
    text.rsplit('/').next().unwrap_or(text).to_owned()
}

/// The name in a stat line is in brackets and may hold any character, brackets too.
fn name_and_state(stat: &str) -> Option<(String, char)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let state = stat.get(close + 1..)?.trim_start().chars().next()?;
    Some((stat.get(open + 1..close)?.to_owned(), state))
}

fn all() -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").context("list /proc")?;
    Ok(entries.flatten().filter_map(|entry| Process::read(entry.path())).collect())
}

/// Our processes: by executable or by cgroup, without the census itself.
pub(super) fn ours(scope: &Scope) -> Result<Vec<Process>> {
    let own = std::process::id();
    let ours = |process: &Process| process.pid != own && process.is_ours(scope);
    Ok(all()?.into_iter().filter(ours).collect())
}

/// Our processes, zombies too.
pub(super) fn processes(scope: &Scope) -> Result<BTreeSet<String>> {
    let describe = |process: &Process| {
        let zombie = if process.state == 'Z' { " (zombie)" } else { "" };
        format!("{} {}{zombie}: {}", process.pid, process.name, process.command)
    };
    Ok(ours(scope)?.iter().map(describe).collect())
}

/// Every namespace that a process, an open file or a bind mount keeps alive, but for our own and
/// the machine's. Where it is mounted is told; which processes hold it changes while it lives.
pub(super) fn namespaces(_: &Scope) -> Result<BTreeSet<String>> {
    let own = Path::new("/proc/thread-self/ns");
    let device = fs::metadata(own.join("net")).context("look at the network namespace")?.dev();
    // By inode: the name, which tells the kind, and where it is mounted.
    let mut names = BTreeMap::new();
    let mut mounted: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let mut machine = BTreeSet::new();
    for process in all()? {
        for kind in NAMESPACES {
            if let Some((inode, name)) = namespace(&process.file(&format!("ns/{kind}"))) {
                names.insert(inode, name);
                mounted.entry(inode).or_default();
                if process.is_the_machines() {
                    machine.insert(inode);
                }
            }
        }
        for entry in fs::read_dir(process.file("fd")).into_iter().flatten().flatten() {
            // Its link names the path that it was opened by, so only the device tells.
            if let Ok(meta) = fs::metadata(entry.path())
                && meta.dev() == device
            {
                mounted.entry(meta.ino()).or_default();
            }
        }
    }
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").context("read mountinfo")?;
    for mount in parse(&mounts).into_iter().filter(|mount| mount.kind == "nsfs") {
        if let Some(inode) = inode_of(&mount.root) {
            let target = format!(" mounted on {}", unescape(&mount.target).display());
            mounted.entry(inode).or_default().insert(target);
            names.insert(inode, mount.root);
        }
    }
    machine.extend(
        NAMESPACES.iter().filter_map(|kind| namespace(&own.join(kind))).map(|(inode, _)| inode),
    );
    mounted.retain(|inode, _| !machine.contains(inode));
    let describe = |(inode, targets): (u64, BTreeSet<String>)| {
        let name = names.get(&inode).cloned().unwrap_or_else(|| format!("namespace:[{inode}]"));
        format!("{name}{}", targets.into_iter().collect::<Vec<_>>().join(","))
    };
    Ok(mounted.into_iter().map(describe).collect())
}

/// Inode and name of a namespace, from a link of `/proc/PID/ns`.
fn namespace(link: &Path) -> Option<(u64, String)> {
    let target = fs::read_link(link).ok()?;
    let name = target.to_str()?;
    Some((inode_of(name)?, name.to_owned()))
}

/// The number in `net:[4026531840]`.
fn inode_of(name: &str) -> Option<u64> {
    name.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// Keyrings and keys that can be seen.
pub(super) fn keyrings(_: &Scope) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/keys").context("read /proc/keys")?;
    Ok(text.lines().filter_map(key).collect())
}

/// Serial, kind and description. Usage and the remaining time change by themselves, as does the
/// number of members that a keyring's description ends with.
fn key(line: &str) -> Option<String> {
    let mut columns = line.split_whitespace();
    let serial = columns.next()?;
    let rest: Vec<&str> = columns.skip(6).collect();
    let (kind, description) = rest.split_first()?;
    let description = description.join(" ");
    let (name, _members) = description.rsplit_once(": ").unwrap_or((&description, ""));
    // The kernel makes and drops these for whoever logs in.
    if name.starts_with("_uid") || name.starts_with("_tid") || name.starts_with("_pid") {
        return None;
    }
    Some(format!("{serial} {kind} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_is_read_whole() {
        assert_eq!(name_and_state("12 (a) b (c) Z 1 2").unwrap(), ("a) b (c".to_owned(), 'Z'));
        assert_eq!(name_and_state("12 (sh"), None);
    }

    #[test]
    fn a_program_in_a_memory_file_or_replaced_on_disk_has_its_name() {
        for exe in ["/memfd:berth-oci (deleted)", "/usr/bin/berth-oci", "/x/berth-oci (deleted)"] {
            assert_eq!(program_name(Path::new(exe)), "berth-oci", "{exe}");
        }
    }

    #[test]
    fn a_key_is_its_serial_kind_and_name() {
        let line = "1ccd80f9 I--Q---     1 perm 1f3f0000     0     0 keyring   _ses.abc: 2";
        assert_eq!(key(line).unwrap(), "1ccd80f9 keyring _ses.abc");
        let line = "1ccd80f9 I--Q---     1 perm 1f3f0000     0 65534 keyring   _uid_ses.0: 1";
        assert_eq!(key(line), None);
    }
}
