//! From a set-up place to the command: working directory, identity, privileges, filter, execve.
//! Shared by a container's first process and further ones.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::CapabilitySet;

use super::channel::{self, Message};
use super::command;
use super::credentials;
use super::identity::{self, Identity};
use super::plan::ProcessPlan;
use super::rootfd::RootFd;
use super::{Doing, Error, Result};
use crate::protocol::{Failure, FailureKind, ResolvedUser, UserSelector};
use crate::seccomp::Program;
use crate::sys;

/// Larger than any real passwd file (CVE-2025-4437).
const MAX_DATABASE_BYTES: usize = 10 << 20;

/// What a process is executed with.
pub(super) struct Execution<'a> {
    pub(super) plan: &'a ProcessPlan,
    pub(super) user: &'a ResolvedUser,
    pub(super) home: Option<&'a str>,
    pub(super) filter: Option<&'a Program>,
    pub(super) channel: BorrowedFd<'a>,
    /// Read until the shim lets the command run; absent runs it at once.
    pub(super) gate: Option<BorrowedFd<'a>>,
    pub(super) warnings: Vec<String>,
}

/// First acts of every child: it dies with the shim, and nobody may look into it (CVE-2016-9962).
pub(super) fn harden() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "become undumpable")?;
    die_with_shim()
}

fn die_with_shim() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing(|| "set the parent death signal")
}

/// Resolves a user against the root file system's own databases.
pub(super) fn resolve_user(root: &RootFd, selector: &UserSelector) -> Result<Identity> {
    let passwd = read_database(root, Path::new("/etc/passwd"))?;
    let group = read_database(root, Path::new("/etc/group"))?;
    identity::resolve(selector, &passwd, &group)
}

/// The text of a database; empty when there is none. Only a regular file of bounded size is read.
fn read_database(root: &RootFd, path: &Path) -> Result<String> {
    let operation = || format!("read {} of the image", path.display());
    let refuse = |reason: &str| Err(Error::invalid(path.display().to_string(), reason));
    match root.find(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        found => {
            let stat = rustix::fs::fstat(found.doing(operation)?).doing(operation)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return refuse("is not a regular file");
            }
            if stat.st_size > MAX_DATABASE_BYTES as i64 {
                return refuse("exceeds 10 MiB");
            }
        }
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open(path, flags).doing(operation)?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let count = rustix::io::read(&file, &mut chunk).doing(operation)?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        bytes.extend_from_slice(&chunk[..count]);
        if bytes.len() > MAX_DATABASE_BYTES {
            return refuse("exceeds 10 MiB");
        }
    }
}

/// Enters the working directory, making it where it is missing, and checks that it is inside the root
/// (CVE-2024-21626): the kernel reports another place as `(unreachable)`.
fn enter_directory(path: &Path) -> Result<()> {
    let operation = || format!("chdir to cwd ({:?}) set in config.json failed", path.display());
    let root = rustix::fs::open("/", command::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = RootFd::from(root.doing(operation)?);
    let directory = match root.open(path, command::DIRECTORY) {
        Err(Errno::NOENT) => root.ensure_directory(path),
        found => found,
    };
    rustix::process::fchdir(directory.doing(operation)?).doing(operation)?;
    let now = rustix::process::getcwd(Vec::new()).doing(operation)?;
    if now.as_bytes().starts_with(b"/") { Ok(()) } else { Err(Errno::NOENT).doing(operation) }
}

/// Gives the standard streams to the user, so that `/dev/stdout` can be opened by it.
fn own_streams(user: &ResolvedUser) -> Result<()> {
    if user.uid == 0 {
        return Ok(());
    }
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let stat = rustix::fs::fstat(stream).doing(|| "look at a standard stream")?;
        let is_null = stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
            continue;
        }
        match rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(user.uid)), None) {
            Ok(()) | Err(Errno::ROFS | Errno::PERM | Errno::INVAL) => {}
            Err(error) => return Err(error).doing(|| "give a standard stream to the user"),
        }
    }
    Ok(())
}

/// Makes the process what the plan says and executes the command. Never returns, on failure either:
/// descriptors that callers own have been closed under them.
pub(super) fn execute(execution: Execution<'_>) -> ! {
    let channel = execution.channel;
    match try_execute(execution) {
        Err(error) => fail(channel, error),
    }
}

fn try_execute(mut execution: Execution<'_>) -> Result<std::convert::Infallible> {
    let plan = execution.plan;
    let mut environment = plan.environment.clone();
    if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
        environment.push(format!("HOME={}", execution.home.unwrap_or("/")));
    }
    enter_directory(&plan.working_directory)?;
    own_streams(execution.user)?;
    credentials::set_limits(&plan.limits)?;
    let early_filter = execution.filter.filter(|_| !plan.no_new_privileges);
    let keep = match early_filter {
        // Loading a filter while privileges can still be gained takes this one.
        Some(_) => CapabilitySet::SYS_ADMIN,
        None => CapabilitySet::empty(),
    };
    let remaining = credentials::become_user(
        execution.user,
        &plan.capabilities,
        keep,
        &mut execution.warnings,
    )?;
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs")?;
    }
    // Changing the user has cleared both.
    harden()?;
    let umask = Mode::from_raw_mode(plan.umask & 0o777);
    rustix::process::umask(umask);
    let kept: Vec<BorrowedFd<'_>> =
        [Some(execution.channel), execution.gate].into_iter().flatten().collect();
    sys::close_all_above(&kept).doing(|| "close descriptors")?;
    let ready = Message::Ready {
        user: execution.user.clone(),
        home: execution.home.map(str::to_owned),
        warnings: std::mem::take(&mut execution.warnings),
    };
    channel::send(execution.channel, &ready, None)?;
    if let Some(gate) = execution.gate {
        pass(gate)?;
    }
    let path = command::find(&plan.arguments[0], &environment)?;
    let arguments = command::c_strings(&plan.arguments);
    let environment = command::c_strings(&environment);
    sys::release_signals().doing(|| "unblock signals")?;
    if let Some(filter) = early_filter {
        sys::load_filter(filter).doing(|| "load the seccomp filter")?;
    }
    credentials::finish(remaining)?;
    if let (None, Some(filter)) = (early_filter, execution.filter) {
        sys::load_filter(filter).doing(|| "load the seccomp filter")?;
    }
    Err(command::execute(&path, &arguments, &environment))
}

/// Waits until the shim lets the command run; exits when the shim is gone.
fn pass(gate: BorrowedFd<'_>) -> Result<()> {
    let mut byte = [0; 1];
    loop {
        match rustix::io::read(gate, &mut byte) {
            Ok(1..) => return Ok(()),
            Ok(0) => sys::exit_now(1),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).doing(|| "wait for the start"),
        }
    }
}

/// Reports a failure and ends the child.
pub(super) fn fail(channel: BorrowedFd<'_>, error: Error) -> ! {
    let failure: Failure = error.into_failure(FailureKind::Create);
    let exit_code = failure.exit_code.unwrap_or(128);
    // With nobody to report to, the exit code is all that is left.
    let _ = channel::send(channel, &Message::Failed(failure), None);
    sys::exit_now(exit_code)
}
