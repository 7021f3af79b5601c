//! Which system calls change something that outlives the process that makes them.
//!
//! A connection over TCP is no effect: what comes of it is the other end's.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use libc::{c_int, c_long, pid_t};
use rustix::net::AddressFamily;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Those that always do.
const ALWAYS: &[(c_long, &str)] = &[
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_fsconfig, "fsconfig"),
    (libc::SYS_mount_setattr, "mount_setattr"),
    (libc::SYS_pivot_root, "pivot_root"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_truncate, "truncate"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_fchownat, "fchownat"),
    (libc::SYS_utimensat, "utimensat"),
    (libc::SYS_setxattr, "setxattr"),
    (libc::SYS_fsetxattr, "fsetxattr"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_syncfs, "syncfs"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_unshare, "unshare"),
    (libc::SYS_kill, "kill"),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
    (libc::SYS_bind, "bind"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, "mknod"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_renameat, "renameat"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_link, "link"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, "symlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, "chown"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, "lchown"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, "fork"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork"),
];

/// Those that do by what they write to, with the place of its descriptor.
const WRITES: &[(c_long, usize, &str)] = &[
    (libc::SYS_write, 0, "write"),
    (libc::SYS_writev, 0, "writev"),
    (libc::SYS_pwrite64, 0, "pwrite64"),
    (libc::SYS_pwritev, 0, "pwritev"),
    (libc::SYS_pwritev2, 0, "pwritev2"),
    (libc::SYS_sendto, 0, "sendto"),
    (libc::SYS_sendmsg, 0, "sendmsg"),
    (libc::SYS_sendmmsg, 0, "sendmmsg"),
    (libc::SYS_sendfile, 0, "sendfile"),
    (libc::SYS_copy_file_range, 2, "copy_file_range"),
    (libc::SYS_splice, 2, "splice"),
    (libc::SYS_connect, 0, "connect"),
];

/// A process whose calls are looked at.
pub(super) struct Observed {
    process: pid_t,
    /// By the name that a link to it shows: whether it leads to the kernel or to a process.
    sockets: HashMap<PathBuf, bool>,
}

impl Observed {
    pub(super) fn new(process: pid_t) -> Self {
        Self { process, sockets: HashMap::new() }
    }

    /// What a call that begins will have changed once it has ended well.
    pub(super) fn effect(&mut self, number: c_long, args: &[u64; 6]) -> Option<String> {
        if let Some((_, name)) = ALWAYS.iter().find(|(call, _)| *call == number) {
            return Some((*name).to_owned());
        }
        if let Some((_, place, name)) = WRITES.iter().find(|(call, ..)| *call == number) {
            return self.written(args[*place] as c_int).map(|what| format!("{name} {what}"));
        }
        let told = |yes: bool, name: &str| yes.then(|| name.to_owned());
        match number {
            libc::SYS_openat => told(creates(args[2]), "openat"),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => told(creates(args[1]), "open"),
            libc::SYS_openat2 => told(creates(self.word(args[2])?), "openat2"),
            libc::SYS_open_tree => {
                told(args[2] & u64::from(libc::OPEN_TREE_CLONE) != 0, "open_tree")
            }
            libc::SYS_clone => told(makes_process(args[0]), "clone"),
            libc::SYS_clone3 => told(makes_process(self.word(args[0])?), "clone3"),
            _ => None,
        }
    }

    /// The first word of a structure in its memory.
    fn word(&self, address: u64) -> Option<u64> {
        let memory = File::open(format!("/proc/{}/mem", self.process)).ok()?;
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, address).ok()?;
        Some(u64::from_ne_bytes(word))
    }

    /// What is written to, if that outlives the process. Its log and what it tells itself do not count.
    fn written(&mut self, descriptor: c_int) -> Option<String> {
        if descriptor <= libc::STDERR_FILENO {
            return None;
        }
        let path = format!("/proc/{}/fd/{descriptor}", self.process);
        let link = fs::read_link(&path).ok()?;
        let text = link.to_str()?.to_owned();
        let counts = if text.starts_with('/') {
            // What has no name is its own.
            fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.nlink() > 0)
        } else if text.starts_with("socket:") {
            let process = self.process;
            *self.sockets.entry(link).or_insert_with(|| is_local(process, descriptor))
        } else {
            text.starts_with("pipe:")
        };
        counts.then_some(text)
    }
}

fn creates(flags: u64) -> bool {
    let makes = libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    flags & makes as u64 != 0
}

fn makes_process(flags: u64) -> bool {
    flags & libc::CLONE_THREAD as u64 == 0
}

/// Whether a socket leads to the kernel or to a process of this machine. One that cannot be looked at does.
fn is_local(process: pid_t, descriptor: c_int) -> bool {
    let family = || {
        let process = pidfd_open(Pid::from_raw(process)?, PidfdFlags::empty()).ok()?;
        let socket = pidfd_getfd(process, descriptor, PidfdGetfdFlags::empty()).ok()?;
        rustix::net::sockopt::socket_domain(socket).ok()
    };
    family().is_none_or(|family| family != AddressFamily::INET && family != AddressFamily::INET6)
}
