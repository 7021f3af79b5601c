//! From a set-up place to the command: working directory, identity, privileges, filter, execve.
//! Shared by a container's first process and further ones.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::CapabilitySet;

use super::birth::Birth;
use super::channel::{self, Message};
use super::command;
use super::credentials;
use super::hooks::{self, Hook, State};
use super::identity::{self, Identity};
use super::labels::Label;
use super::notify::Listener;
use super::placement;
use super::plan::ProcessPlan;
use super::rootfd::RootFd;
use super::{Doing, Error, Result};
use crate::protocol::{Failure, FailureKind, ResolvedUser, UserSelector};
use crate::seccomp::{Moment, Program};
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
    /// What holds the command back; absent runs it at once.
    pub(super) gate: Option<Gate<'a>>,
    pub(super) keeper: Keeper,
    /// Told to the kernel before there is a wait; the command's execution takes them on.
    pub(super) labels: Vec<Label>,
    /// Gets the notifications of the filter.
    pub(super) listener: Option<Listener>,
    pub(super) start_hooks: Option<StartHooks<'a>>,
    pub(super) warnings: Vec<String>,
    /// Absent where this process itself executes the command. Comes before a wait.
    pub(super) birth: Option<Birth<'a>>,
}

/// Hooks that run when the command may.
pub(super) struct StartHooks<'a> {
    pub(super) hooks: &'a [Hook],
    pub(super) state: State<'a>,
}

/// Who makes a process, and what becomes of it afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// The shim: the process dies with it, and a command that is not there fails the start.
    Shim,
    /// The command line, which ends before the process does; a command that is not there fails the
    /// creation, as runc's callers expect.
    CommandLine(Manner),
}

/// What the command line's options say of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    /// So many descriptors from 3 on are the command's.
    pub(crate) preserved: u32,
    pub(crate) keyring: Keyring,
    pub(crate) root: RootChange,
}

/// Which session keyring a process has: keyrings(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyring {
    New,
    /// The caller's.
    Kept,
}

/// How the root file system becomes the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RootChange {
    /// By pivot_root(2), which lets go of the host's.
    Pivot,
    /// By chroot(2), where the host's root is an initramfs that nothing can be pivoted from. The
    /// host's mounts stay below.
    Chroot,
}

impl Keeper {
    fn first_closed(self) -> i32 {
        match self {
            Self::Shim => FIRST_DESCRIPTOR,
            Self::CommandLine(Manner { preserved, .. }) => {
                i32::try_from(preserved).map_or(i32::MAX, |count| FIRST_DESCRIPTOR + count)
            }
        }
    }

    pub(super) fn root_change(self) -> RootChange {
        match self {
            Self::Shim => RootChange::Pivot,
            Self::CommandLine(manner) => manner.root,
        }
    }

    /// Keys of the caller's session are not the container's. Differs: runc joins a keyring named after
    /// the container, so that its processes share one; here each has one of its own.
    fn leave_keyring(self) -> Result<()> {
        let Self::CommandLine(Manner { keyring: Keyring::New, .. }) = self else { return Ok(()) };
        match sys::new_session_keyring() {
            // A kernel without keys has nothing to leave.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            result => result.doing(|| "make a session keyring"),
        }
    }
}

/// The first after the standard streams.
const FIRST_DESCRIPTOR: i32 = 3;

/// What holds a command back until it is started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gate<'a> {
    /// A byte that is read from it starts.
    Pipe(BorrowedFd<'a>),
    /// The first connection starts, and is the channel from then on.
    Listener(BorrowedFd<'a>),
}

impl<'a> Gate<'a> {
    fn descriptor(self) -> BorrowedFd<'a> {
        match self {
            Self::Pipe(fd) | Self::Listener(fd) => fd,
        }
    }
}

/// First acts of every child: nobody may look into it (CVE-2016-9962), and it dies with the shim.
pub(super) fn harden(keeper: Keeper) -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "become undumpable")?;
    match keeper {
        Keeper::Shim => rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .doing(|| "set the parent death signal"),
        Keeper::CommandLine(_) => Ok(()),
    }
}

/// Resolves a user against the root file system's own databases.
pub(super) fn resolve_user(
    root: &RootFd,
    selector: &UserSelector,
    keeper: Keeper,
) -> Result<Identity> {
    let passwd = read_database(root, Path::new("/etc/passwd"))?;
    let group = read_database(root, Path::new("/etc/group"))?;
    let mut identity = identity::resolve(selector, &passwd, &group)?;
    if let Keeper::CommandLine(_) = keeper {
        // A specification names all there are; the primary group is not one of them by itself.
        identity.user.supplemental_groups.clone_from(&selector.supplemental_groups);
    }
    Ok(identity)
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
    let mut chunk = [0; 4 << 10];
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

/// The environment with the last value of each variable, and a home: an empty one counts as none.
fn complete(given: &[String], home: Option<&str>) -> Vec<String> {
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let mut seen = std::collections::HashSet::new();
    let last = given.iter().rev().filter(|variable| seen.insert(name(variable)));
    let mut environment: Vec<String> = last.filter(|one| *one != "HOME=").cloned().collect();
    environment.reverse();
    if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
        environment.push(format!("HOME={}", home.unwrap_or("/")));
    }
    environment
}

/// Makes the process what the plan says and executes the command. Never returns, on failure either:
/// descriptors that callers own have been closed under them.
pub(super) fn execute(mut execution: Execution<'_>) -> ! {
    let channel = execution.channel;
    let prepared = match prepare(&mut execution) {
        Ok(prepared) => prepared,
        Err(error) => fail(channel, error),
    };
    let signals = prepared.signals.as_ref().map(AsFd::as_fd);
    let starter = match execution.gate.map(|gate| pass(gate, signals)).transpose() {
        Ok(starter) => starter.flatten(),
        Err(error) => fail(channel, error),
    };
    let Err(error) = finish(&execution, prepared);
    fail(starter.as_ref().map_or(channel, AsFd::as_fd), error)
}

/// What remains to be done once the command may run.
struct Prepared<'a> {
    environment: Vec<String>,
    /// Looked for already, where the keeper or the filter wants it early.
    command: Option<Result<PathBuf>>,
    /// What ends the wait; all signals are blocked then.
    signals: Option<OwnedFd>,
    /// Absent where they have been given up already.
    privileges: Option<Privileges<'a>>,
}

/// What a process still has and its command does not get.
struct Privileges<'a> {
    remaining: credentials::Remaining,
    /// The filter, where loading it takes a privilege.
    early_filter: Option<&'a Program>,
}

fn prepare<'a>(execution: &mut Execution<'a>) -> Result<Prepared<'a>> {
    let plan = execution.plan;
    let environment = complete(&plan.environment, execution.home);
    execution.keeper.leave_keyring()?;
    enter_directory(&plan.working_directory)?;
    own_streams(execution.user)?;
    credentials::set_limits(&plan.limits)?;
    placement::apply(&plan.placement)?;
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
    harden(execution.keeper)?;
    std::mem::take(&mut execution.labels).iter().try_for_each(Label::write)?;
    let umask = Mode::from_raw_mode(plan.umask & 0o777);
    rustix::process::umask(umask);
    let kept: Vec<BorrowedFd<'_>> = [Some(execution.channel), execution.gate.map(Gate::descriptor)]
        .into_iter()
        .flatten()
        .chain(execution.listener.as_ref().map(Listener::as_fd))
        .collect();
    sys::close_all_from(execution.keeper.first_closed(), &kept).doing(|| "close descriptors")?;
    let birth = execution.birth.take_if(|_| execution.gate.is_some());
    let early = |listener: &Listener| listener.moment == Moment::Creation;
    let early = execution.listener.as_ref().is_some_and(early) || birth.is_some();
    let find = || command::find(&plan.arguments[0], &environment);
    let command = match execution.keeper {
        Keeper::CommandLine(_) => Some(Ok(find()?)),
        // Under the filter it might not be found.
        Keeper::Shim if early => Some(find()),
        Keeper::Shim => None,
    };
    let signals = match (execution.keeper, execution.gate) {
        (Keeper::CommandLine(_), Some(_)) => Some(watch_signals()?),
        (Keeper::Shim, _) | (_, None) => None,
    };
    let mut privileges = Some(Privileges { remaining, early_filter });
    if early {
        // Whoever listens hears of the container as soon as it is there, and not once it runs. Whoever
        // traces finds nothing on one that waits.
        privileges.take().map_or(Ok(()), |privileges| confine(execution, privileges))?;
        execution.listener = None;
    }
    birth.map_or(Ok(()), |birth| birth.go_on(execution.keeper))?;
    let ready = Message::Ready {
        user: execution.user.clone(),
        home: execution.home.map(str::to_owned),
        warnings: std::mem::take(&mut execution.warnings),
    };
    channel::send(execution.channel, &ready, None)?;
    Ok(Prepared { environment, command, signals, privileges })
}

fn finish(execution: &Execution<'_>, prepared: Prepared<'_>) -> Result<std::convert::Infallible> {
    let plan = execution.plan;
    let path = match prepared.command {
        Some(found) => found?,
        None => command::find(&plan.arguments[0], &prepared.environment)?,
    };
    let arguments = command::c_strings(&plan.arguments);
    let environment = command::c_strings(&prepared.environment);
    sys::reset_signals();
    sys::release_signals().doing(|| "unblock signals")?;
    prepared.privileges.map_or(Ok(()), |privileges| confine(execution, privileges))?;
    execution.birth.map_or(Ok(()), |birth| birth.go_on(execution.keeper))?;
    if let Some(start) = &execution.start_hooks {
        // Programs of the image: they may do what its command may, and nothing more.
        hooks::run_with(start.hooks, &start.state, &prepared.environment)?;
    }
    Err(command::execute(&path, &arguments, &environment))
}

/// Loads the filter and gives up the last privileges.
fn confine(execution: &Execution<'_>, privileges: Privileges<'_>) -> Result<()> {
    let Privileges { remaining, early_filter } = privileges;
    let listener = execution.listener.as_ref();
    early_filter.map_or(Ok(()), |filter| load_filter(filter, listener))?;
    credentials::finish(remaining)?;
    match (early_filter, execution.filter) {
        (None, Some(filter)) => load_filter(filter, listener),
        (Some(_), _) | (None, None) => Ok(()),
    }
}

fn load_filter(filter: &Program, listener: Option<&Listener>) -> Result<()> {
    let notifications = sys::load_filter(filter).doing(|| "load the seccomp filter")?;
    match (notifications, listener) {
        (Some(notifications), Some(listener)) => listener.hand_over(notifications),
        (None, _) | (Some(_), None) => Ok(()),
    }
}

/// What ends a process that waits for its start; the rest stays blocked until it runs.
const ENDING: [i32; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGABRT, libc::SIGTERM];

/// Blocks all signals and watches for those: to the first process of a PID namespace the kernel passes
/// only what it blocks or handles.
fn watch_signals() -> Result<OwnedFd> {
    let operation = || "watch for signals";
    sys::block_signals().doing(operation)?;
    sys::signal_descriptor(&ENDING).doing(operation)
}

/// Waits until there is something to read at the gate, or a signal ends the process.
fn await_gate(gate: BorrowedFd<'_>, signals: BorrowedFd<'_>) -> Result<()> {
    let mut waiting = [
        PollFd::from_borrowed_fd(gate, PollFlags::IN),
        PollFd::from_borrowed_fd(signals, PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| poll(&mut waiting, None)).doing(|| "wait for the start")?;
    match waiting[1].revents().is_empty() {
        true => Ok(()),
        false => sys::exit_now(ENDED_BY_SIGNAL),
    }
}

/// As with runc, whose first process handles signals itself until it executes the command.
const ENDED_BY_SIGNAL: i32 = 2;

/// Waits until the command may run; exits when nobody is left to say so, or by one of `signals`. Returns
/// the connection of whoever says it, where there is one.
fn pass(gate: Gate<'_>, signals: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
    let operation = || "wait for the start";
    signals.map_or(Ok(()), |signals| await_gate(gate.descriptor(), signals))?;
    match gate {
        Gate::Pipe(pipe) => {
            let mut byte = [0; 1];
            match rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut byte)) {
                Ok(0) => sys::exit_now(1),
                result => result.map(|_| None).doing(operation),
            }
        }
        Gate::Listener(listener) => {
            let accept = || rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
            rustix::io::retry_on_intr(accept).map(Some).doing(operation)
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

#[cfg(test)]
mod tests {
    use super::complete;

    fn completed(given: &[&str]) -> Vec<String> {
        let given: Vec<String> = given.iter().map(|one| (*one).to_owned()).collect();
        complete(&given, Some("/root"))
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        assert_eq!(completed(&["A=1", "HOME=/x", "B=2", "A=3"]), ["HOME=/x", "B=2", "A=3"]);
    }

    #[test]
    fn an_empty_home_is_none() {
        assert_eq!(completed(&["A=1"]), ["A=1", "HOME=/root"]);
        assert_eq!(completed(&["HOME=/x", "HOME=", "A=1"]), ["A=1", "HOME=/root"]);
    }
}
