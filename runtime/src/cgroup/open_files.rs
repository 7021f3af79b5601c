//! What the processes of a cgroup have open, counted in procfs: a directory a process, a link a descriptor.
//! Blocking. proc_pid_fd(5).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::usage::processes;
use crate::interface::OpenFiles;

/// How deep processes of a cgroup may stand below it.
const DEPTH: u32 = 4;

/// Counts what is open. A process that ends meanwhile has nothing open; a cgroup without processes tells
/// nothing.
pub fn read(directory: &Path) -> Option<OpenFiles> {
    let pids = processes(directory, DEPTH);
    let mut sum = OpenFiles { soft_limit: soft_limit(*pids.first()?), ..OpenFiles::default() };
    for pid in pids {
        let Ok(links) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for link in links.flatten() {
            sum.descriptors += 1;
            let target = fs::read_link(link.path());
            let is_socket = |target: &Path| target.as_os_str().as_bytes().starts_with(b"socket:");
            sum.sockets += u64::from(target.is_ok_and(|target| is_socket(&target)));
        }
    }
    Some(sum)
}

/// How many descriptors a process may have; `None` without a bound.
fn soft_limit(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_has_open_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), None);
        fs::write(directory.path().join("cgroup.procs"), format!("{}\n", std::process::id()))
            .unwrap();
        let before = read(directory.path()).unwrap();
        let sockets: Vec<_> =
            (0..20).map(|_| std::os::unix::net::UnixDatagram::unbound().unwrap()).collect();
        let after = read(directory.path()).unwrap();
        // Other tests of this process open and close meanwhile, far fewer.
        assert!(after.descriptors > before.descriptors && after.sockets > before.sockets);
        assert!(after.soft_limit.is_some_and(|limit| limit >= after.descriptors));
        drop(sockets);
    }
}
