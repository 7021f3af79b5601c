//! The default profile: what an ordinary container may call.
//!
//! The verdicts are those of Docker's default profile, so that images behave as they do there: an
//! allow list, `EPERM` for the rest, `ENOSYS` for what is newer than the list. Capabilities a
//! container holds open the calls that need them. Privileged containers run without a filter.

use std::collections::HashSet;

use oci_spec::runtime::{
    Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::platform;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// New namespaces: mount, cgroup, uts, ipc, user, pid, net.
const CLONE_NEW_NAMESPACES: u64 = 0x7E02_0000;
const AF_VSOCK: u64 = 40;

/// Calls every container may make, by family.
const ALWAYS: &[&str] = &[
    // Files and directories.
    "access chdir chmod chown chown32 close close_range copy_file_range creat dup",
    "dup2 dup3 faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat",
    "fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64",
    "fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 lchown",
    "lchown32 link linkat lseek _llseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at",
    "newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2",
    "read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64",
    "splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee",
    "truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice",
    "write writev cachestat",
    // Extended attributes.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr",
    "lremovexattr lsetxattr removexattr setxattr getxattrat listxattrat removexattrat setxattrat",
    // Notification and readiness.
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait",
    "epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1",
    "inotify_rm_watch poll ppoll ppoll_time64 pselect6 pselect6_time64 select _newselect signalfd",
    "signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    // Asynchronous and other input and output.
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl",
    "ioprio_get ioprio_set memfd_create memfd_secret pipe pipe2",
    // Memory.
    "brk madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap",
    "mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect",
    "process_mrelease remap_file_pages",
    // Processes and threads.
    "alarm arch_prctl capget capset execve execveat exit exit_group fork futex futex_time64",
    "futex_requeue futex_wait futex_wake futex_waitv get_robust_list get_thread_area getcpu",
    "getpgid getpgrp getpid getpriority getppid getrandom getrlimit getrusage getsid gettid kill",
    "modify_ldt pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq",
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend",
    "rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max",
    "sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler",
    "sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr",
    "sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area",
    "set_tid_address setpgid setpriority setrlimit setsid sigaltstack sigprocmask",
    "sigreturn tgkill tkill ugetrlimit vfork wait4 waitid waitpid",
    // Identity.
    "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid",
    "getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32",
    "setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid",
    "setresuid32 setreuid setreuid32 setuid setuid32",
    // Network.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg",
    "recvmmsg_time64 recvmsg sendmmsg sendmsg sendto setsockopt shutdown socketcall",
    "socketpair",
    // System V and POSIX communication.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend",
    "mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop",
    "semtimedop_time64 shmat shmctl shmdt shmget",
    // Clocks and timers.
    "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime",
    "clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep",
    "setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64",
    "timer_settime timer_settime64 times",
    // The host's description, and confinement of oneself.
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr",
    "lsm_list_modules lsm_set_self_attr sysinfo uname",
    // Debugging of own processes: safe under a filter since Linux 4.8.
    "process_vm_readv process_vm_writev ptrace uretprobe",
];

/// Calls that a capability opens.
const BY_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         mount mount_setattr move_mount open_tree open_tree_attr perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare statmount \
         listmount",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module init_module finit_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTime, "settimeofday stime clock_settime clock_settime64"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// The default profile for a container that holds `capabilities`.
///
/// Pure. Names a kernel or an ABI lacks are skipped when it is compiled.
pub fn default_seccomp(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let mut syscalls = vec![allow(&ALWAYS.join(" "))];
    for (capability, names) in BY_CAPABILITY {
        if capabilities.contains(capability) {
            syscalls.push(allow(names));
        }
    }
    // personality: the plain Linux ones, and asking for the present one.
    for persona in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        let equal = argument(0, LinuxSeccompOperator::ScmpCmpEq, persona, None);
        syscalls.push(allow_if("personality", equal));
    }
    // Virtual machine sockets reach the hypervisor past every network namespace.
    let other_family = argument(0, LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK, None);
    syscalls.push(allow_if("socket", other_family));
    if !capabilities.contains(&Capability::SysAdmin) {
        let threads = LinuxSeccompOperator::ScmpCmpMaskedEq;
        let no_namespace = argument(0, threads, CLONE_NEW_NAMESPACES, Some(0));
        syscalls.push(allow_if("clone", no_namespace));
        // Its flags are behind a pointer: C libraries fall back to clone on ENOSYS.
        syscalls.push(errno("clone3", ENOSYS));
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(EPERM));
    let abis = platform::host().abis.iter();
    profile.set_architectures(Some(abis.map(|abi| abi.architecture).collect()));
    profile.set_syscalls(Some(syscalls));
    profile
}

fn rule(action: LinuxSeccompAction, names: &str) -> LinuxSyscall {
    let mut syscall = LinuxSyscall::default();
    syscall.set_names(names.split_whitespace().map(str::to_owned).collect());
    syscall.set_action(action);
    syscall
}

fn allow(names: &str) -> LinuxSyscall {
    rule(LinuxSeccompAction::ScmpActAllow, names)
}

fn allow_if(name: &str, condition: LinuxSeccompArg) -> LinuxSyscall {
    let mut syscall = allow(name);
    syscall.set_args(Some(vec![condition]));
    syscall
}

fn errno(name: &str, value: u32) -> LinuxSyscall {
    let mut syscall = rule(LinuxSeccompAction::ScmpActErrno, name);
    syscall.set_errno_ret(Some(value));
    syscall
}

fn argument(
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    second: Option<u64>,
) -> LinuxSeccompArg {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    if let Some(second) = second {
        argument = argument.value_two(second);
    }
    // Every field has a default: building cannot fail.
    argument.build().unwrap_or_default()
}
