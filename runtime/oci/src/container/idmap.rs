//! User namespaces' mappings: written by the parent through its procfs, and held as descriptors for
//! mounts whose ids are mapped.
//!
//! user_namespaces(7), mount_setattr(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use super::namespaces::{Mappings, Range, lines};
use super::{Doing, Error, Result, sysctl};
use crate::sys::{self, CloneFlags, Cloned};

/// Where the programs that map subordinate ids for ordinary users are.
const DIRECTORIES: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// Writes the mappings of a process that has just got a user namespace. `pid` is as `procfs` shows it.
pub(super) fn write(procfs: BorrowedFd<'_>, pid: i32, mappings: &Mappings) -> Result<()> {
    let put = |file: &str, text: &str| {
        sysctl::write_proc(procfs, Path::new(&format!("{pid}/{file}")), text.as_bytes())
    };
    match put("uid_map", &lines(&mappings.uids)) {
        Err(Errno::PERM) => map_by_program("newuidmap", pid, &mappings.uids)?,
        result => result.doing(|| "linux.uidMappings: write the mapping")?,
    }
    match put("gid_map", &lines(&mappings.gids)) {
        Err(Errno::PERM) => {}
        result => return result.doing(|| "linux.gidMappings: write the mapping"),
    }
    // An ordinary user may map its own group alone, where groups are not set any more.
    let own = rustix::process::getegid().as_raw();
    if let [Range { outside, size: 1, .. }] = mappings.gids.as_slice()
        && *outside == own
    {
        put("setgroups", "deny").doing(|| "linux.gidMappings: give up setting groups")?;
        return put("gid_map", &lines(&mappings.gids))
            .doing(|| "linux.gidMappings: write the mapping");
    }
    map_by_program("newgidmap", pid, &mappings.gids)
}

/// What an ordinary user has been given in `/etc/subuid` and `/etc/subgid` is mapped by a program with
/// the privilege for it. The process is our unreaped child, so its number stays its own.
fn map_by_program(name: &str, pid: i32, ranges: &[Range]) -> Result<()> {
    let field = || format!("linux.{}Mappings", &name[3..6]);
    let program = DIRECTORIES.iter().map(|place| PathBuf::from(place).join(name));
    let Some(program) = program.into_iter().find(|path| path.exists()) else {
        return Err(Error::invalid(field(), format!("not permitted, and there is no {name}")));
    };
    let mut command = std::process::Command::new(program);
    command.arg(pid.to_string()).env_clear();
    for range in ranges {
        command.args([range.inside, range.outside, range.size].map(|number| number.to_string()));
    }
    let output = command.output().doing(|| format!("{}: run {name}", field()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::invalid(field(), format!("{name} refuses: {}", said.trim())))
}

/// Whether a process' user namespace has the mappings expected of it.
pub(super) fn check(procfs: BorrowedFd<'_>, pid: i32, expected: &Mappings) -> Result<()> {
    for (file, field, ranges) in [
        ("uid_map", "linux.uidMappings", &expected.uids),
        ("gid_map", "linux.gidMappings", &expected.gids),
    ] {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let text = rustix::fs::openat(procfs, format!("{pid}/{file}"), flags, Mode::empty())
            .and_then(|file| {
                let mut bytes = vec![0; 64 << 10];
                let count = rustix::io::read(&file, &mut bytes)?;
                bytes.truncate(count);
                Ok(bytes)
            })
            .doing(|| format!("{field}: read the mapping of the user namespace"))?;
        if parse(&String::from_utf8_lossy(&text)) != sorted(ranges.clone()) {
            return Err(Error::invalid(field, "is not what the user namespace of the path has"));
        }
    }
    Ok(())
}

fn parse(text: &str) -> Vec<Range> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Range { inside: next()?, outside: next()?, size: next()? })
    };
    sorted(text.lines().filter_map(line).collect())
}

fn sorted(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|range| range.inside);
    ranges
}

/// A user namespace that nobody is in, to map a mount's ids by.
pub(super) fn namespace(procfs: BorrowedFd<'_>, mappings: &Mappings) -> Result<OwnedFd> {
    let operation = || "make a user namespace for a mapped mount";
    let flags = CloneFlags { namespaces: libc::CLONE_NEWUSER as u64, cgroup: None };
    match sys::clone3(&flags).doing(operation)? {
        Cloned::Child => loop {
            // Until it is killed: everything is blocked but that.
            sys::wait_signal();
        },
        Cloned::Parent { pidfd, .. } => {
            let made = pid_of(procfs, pidfd.as_fd()).and_then(|pid| {
                write(procfs, pid, mappings)?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                rustix::fs::openat(procfs, format!("{pid}/ns/user"), flags, Mode::empty())
                    .doing(operation)
            });
            // Our own unreaped child.
            let _ = sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
            reap(pidfd.as_fd());
            made
        }
    }
}

/// Waits for the end of a child.
pub(super) fn reap(pidfd: BorrowedFd<'_>) {
    let wait = || rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
    // Whoever else has reaped it has done what is to be done.
    let _ = rustix::io::retry_on_intr(wait);
}

/// The number of a pidfd's process as `procfs` shows it, which may be of another PID namespace than
/// the one that cloned it.
pub(super) fn pid_of(procfs: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> Result<i32> {
    use std::os::fd::AsRawFd;
    let operation = || "find a process' number";
    let own = own_pid(procfs)?;
    let path = format!("{own}/fdinfo/{}", pidfd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(procfs, path, flags, Mode::empty()).doing(operation)?;
    let mut bytes = [0; 512];
    let count = rustix::io::read(&file, &mut bytes).doing(operation)?;
    let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or(Errno::SRCH).doing(operation)
}

/// The number of this process as `procfs` shows it.
pub(super) fn own_pid(procfs: BorrowedFd<'_>) -> Result<i32> {
    let operation = || "find the own process' number";
    let target = rustix::fs::readlinkat(procfs, "self", Vec::new()).doing(operation)?;
    let number = target.to_str().ok().and_then(|text| text.parse().ok());
    number.ok_or(Errno::SRCH).doing(operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_read_from_procfs_equals_what_was_written_in_any_order() {
        let range = |inside, outside, size| Range { inside, outside, size };
        let ranges = vec![range(10, 200, 5), range(0, 100, 10)];
        let shown = "         0        100         10\n        10        200          5\n";
        assert_eq!(parse(shown), sorted(ranges));
    }
}
