//! Making a container, up to the point where its first process waits for its start.
//!
//! ```text
//! read the bundle ─ plan ─ directory and record ─ cgroup ─ clone ─ … the child sets itself up … ─ ready
//! ```
//! From the directory on, whatever fails takes all that was made away again; what a crash leaves is what
//! `delete --force` finds by the record.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, WaitOptions};
use rustix::termios::Winsize;

use super::bundle::Bundle;
use super::error::During;
use super::features::SPEC_VERSION;
use super::id::Id;
use super::journal::Level;
use super::readiness::Manager;
use super::record::{Init, Record};
use super::start::hear;
use super::store::Held;
use super::{Context, Error, Result, console, delete, inherited};
use crate::cgroup::place::{Hierarchy, Place, Wish as CgroupWish};
use crate::cgroup::{self, Cgroup};
use crate::clock;
use crate::container::channel::{self, Message};
use crate::container::hooks;
use crate::container::interfaces;
use crate::container::launch::{
    self, Environment, Keeper, Keyring, Launched, Manner, RootChange, Stdio,
};
use crate::container::mounts;
use crate::container::plan::{self, Plan};
use crate::container::{self, sysctl};
use crate::protocol::{
    CreateContainer, Failure, FailureKind, PidNamespace, Rootfs, ShimConfig, Stdio as LoggedStdio,
    UserSelector,
};
use crate::seccomp::{self, Program};

/// What `create` and `run` are asked for.
pub(super) struct Wish {
    pub(super) id: Id,
    pub(super) bundle: PathBuf,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) pidfd_socket: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) preserved: u32,
    pub(super) keyring: Keyring,
    pub(super) root: RootChange,
    /// Who waits to hear that the container is ready.
    pub(super) manager: Option<Manager>,
    pub(super) command: Command,
}

/// Who waits for the container, and hence what its streams are and who starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// The caller; another command starts it.
    Create,
    /// The caller.
    RunDetached,
    /// This process.
    RunForeground,
}

/// A container whose first process waits for its start.
pub(super) struct Created {
    pub(super) held: Held,
    pub(super) record: Record,
    pub(super) process: Launched,
    /// The terminal's master side, where this process keeps it.
    pub(super) terminal: Option<OwnedFd>,
}

/// Everything that is known before anything is made.
struct Prepared {
    bundle: Bundle,
    spec: Spec,
    plan: Plan,
    filter: Option<Program>,
    hierarchy: Hierarchy,
    place: Place,
    stdio: Stdio,
}

/// Makes a container. On failure nothing of it is left.
pub(super) fn make(context: &Context, wish: &Wish) -> Result<Created> {
    let prepared = prepare(context, wish)?;
    let held = context.store.create(&wish.id)?;
    let mut record = new_record(wish, &prepared);
    match try_make(context, wish, &prepared, &held, &mut record) {
        Ok((process, terminal)) => {
            // The process waits to be started, and this one ends soon: nothing is freed piece by piece.
            std::mem::forget(prepared);
            Ok(Created { held, record, process, terminal })
        }
        Err(error) => {
            undo(context, held, &record);
            Err(error)
        }
    }
}

/// Takes a half-made container away.
pub(super) fn undo(context: &Context, held: Held, record: &Record) {
    if let Err(error) = delete::destroy(held, record) {
        let message = format!("container {} is left to be deleted: {}", record.id, error.chain());
        context.journal.say(Level::Warning, &message);
    }
    record.run_poststop(&context.journal);
    // Its first process, which is our child, is dead by now.
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

fn prepare(context: &Context, wish: &Wish) -> Result<Prepared> {
    let (bundle, mut spec) = Bundle::open(&wish.bundle)?;
    if wish.manager.is_some() {
        Manager::show(&mut spec, context.store.entry(&wish.id).notify_path());
    }
    context.journal.warn_of_capabilities(&bundle.unknown_capabilities);
    context.journal.trace(|| format!("read the bundle {}", bundle.directory.display()));
    let Some(process) = spec.process() else {
        return Err(container::Error::invalid("process", "is missing").into());
    };
    let stdio = stdio(process, wish)?;
    let user = user(process);
    let request = request(&bundle, (spec, user), wish);
    let mut plan = plan::plan(&sandbox(&request.spec, wish), &request)?;
    plan.process.environment.extend(inherited::variables());
    plan.process.environment.extend(wish.manager.as_ref().map(|_| Manager::variable()));
    let spec = request.spec;
    let linux = spec.linux().as_ref();
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    let filter = profile.map(seccomp::compile).transpose().map_err(container::Error::from)?;
    let hierarchy = Hierarchy::find()?;
    let cgroups_path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let cgroup = CgroupWish { driver: context.driver, id: wish.id.as_str(), cgroups_path };
    let place = Place::resolve(&hierarchy, &cgroup)?;
    if let Some(filter) = &filter {
        let count = filter.instructions.len();
        context.journal.trace(|| format!("seccomp filter of {count} instructions"));
        context.journal.trace(|| format!("seccomp filter flags: {}", filter.flags));
    }
    Ok(Prepared { bundle, spec, plan, filter, hierarchy, place, stdio })
}

fn stdio(process: &Process, wish: &Wish) -> Result<Stdio> {
    let wrong = |reason: &str| Err(container::Error::invalid("process.terminal", reason).into());
    let detached = wish.command != Command::RunForeground;
    match (process.terminal().unwrap_or(false), &wish.console_socket) {
        (true, None) if detached => wrong(
            "cannot allocate tty if the container is detached without setting --console-socket",
        ),
        (true, Some(_)) if !detached => {
            wrong("--console-socket is for containers that are detached")
        }
        (false, Some(_)) => wrong("--console-socket is for containers with a tty"),
        (false, None) => Ok(Stdio::Inherited),
        (true, _) => Ok(Stdio::Terminal(size(process))),
    }
}

/// The terminal's size that a process asks for.
pub(super) fn size(process: &Process) -> Option<Winsize> {
    let size = process.console_size()?;
    let clamp = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let (ws_row, ws_col) = (clamp(size.height()), clamp(size.width()));
    (ws_row != 0 && ws_col != 0).then_some(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })
}

/// The plan is made as for a pod that gives its containers nothing of its own.
fn sandbox(spec: &Spec, wish: &Wish) -> ShimConfig {
    ShimConfig {
        user_ids: None,
        sandbox_id: wish.id.as_str().to_owned(),
        cgroup_root: PathBuf::new(),
        hostname: None,
        new_network: false,
        new_ipc: false,
        pid: if own_pid_namespace(spec) { PidNamespace::Container } else { PidNamespace::Host },
        sysctls: Default::default(),
    }
}

fn own_pid_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}

fn request(bundle: &Bundle, (spec, user): (Spec, UserSelector), wish: &Wish) -> CreateContainer {
    CreateContainer {
        id: wish.id.as_str().to_owned(),
        spec,
        rootfs: Rootfs::Directory(bundle.rootfs.clone()),
        user,
        cgroup_path: PathBuf::new(),
        pid_target: None,
        stdio: LoggedStdio {
            log_path: PathBuf::new(),
            log_max_bytes: 0,
            log_max_files: 0,
            tty: false,
            stdin: false,
            stdin_once: false,
        },
    }
}

/// The user of a specification, which names ids only.
pub(super) fn user(process: &Process) -> UserSelector {
    let user = process.user();
    UserSelector {
        user: user.uid().to_string(),
        group: Some(user.gid()),
        supplemental_groups: user.additional_gids().clone().unwrap_or_default(),
        strict_groups: true,
    }
}

fn new_record(wish: &Wish, prepared: &Prepared) -> Record {
    let spec = &prepared.spec;
    Record {
        // That of the states that are told, whatever the bundle's.
        oci_version: SPEC_VERSION.to_owned(),
        id: wish.id.as_str().to_owned(),
        bundle: prepared.bundle.directory.clone(),
        rootfs: prepared.bundle.rootfs.clone(),
        created: clock::rfc3339_nano(clock::now()),
        annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        init: None,
        cgroup: prepared.place.clone(),
        cgroup_made: false,
        own_pid_namespace: own_pid_namespace(spec),
        poststart: prepared.plan.hooks.poststart.clone(),
        poststop: prepared.plan.hooks.poststop.clone(),
    }
}

fn try_make(
    context: &Context,
    wish: &Wish,
    prepared: &Prepared,
    held: &Held,
    record: &mut Record,
) -> Result<(Launched, Option<OwnedFd>)> {
    held.save(record)?;
    held.keep_config(&prepared.bundle.text)?;
    if wish.manager.is_some() {
        held.make_notify()?;
    }
    let linux = prepared.spec.linux().as_ref();
    let mut cgroup = Cgroup::create(&cgroup::Request {
        hierarchy: &prepared.hierarchy,
        place: &prepared.place,
        resources: linux.and_then(|linux| linux.resources().as_ref()),
        annotations: prepared.spec.annotations().as_ref(),
    })?;
    record.cgroup = cgroup.place().clone();
    context.journal.trace(|| format!("made the cgroup {}", record.cgroup.path.display()));
    record.cgroup_made = true;
    held.save(record)?;
    if let Some(uid) = prepared.plan.cgroup_owner() {
        cgroup.give_to(uid)?;
    }
    let listener = match wish.command {
        Command::Create => Some(held.listen()?),
        Command::RunDetached | Command::RunForeground => None,
    };
    let procfs = host_procfs()?;
    let subject = record.subject();
    let environment = Environment {
        keeper: Keeper::CommandLine(Manner {
            preserved: inherited::checked_count(wish.preserved)?,
            keyring: wish.keyring,
            root: wish.root,
        }),
        namespaces: Vec::new(),
        birthplace: None,
        procfs: procfs.as_fd(),
        filter: prepared.filter.as_ref(),
        subject: &subject,
        listener: listener.as_ref().map(AsFd::as_fd),
    };
    conceal()?;
    let mut process = launch::launch(&prepared.plan, &environment, cgroup.as_fd(), prepared.stdio)?;
    context.journal.trace(|| format!("cloned the first process, {}", process.pid));
    if let Some(score) = prepared.plan.process.oom_score_adj {
        let refused = launch::adjust_oom_score(procfs.as_fd(), process.pid, score)?;
        if let Some(reason) = refused {
            return Err(Error::State(reason));
        }
    }
    let terminal = await_ready(context, wish, &process, |need| match need {
        Need::Hooks => {
            let state = subject.state("creating", Some(process.pid));
            hooks::run_in_bundle(&prepared.plan.hooks.create_runtime, &state)
        }
        Need::Interfaces(socket) => interfaces::bring(&prepared.plan.interfaces, socket),
        Need::Ids { mount, tree } => {
            mounts::map_for_child(&prepared.plan, mount, tree.as_fd(), procfs.as_fd())
        }
    })?;
    process.await_birth()?;
    context.journal.trace(|| "the first process is set up and waits for its start".to_owned());
    cgroup.settle()?;
    record.init = Init::of(process.pid);
    held.save(record)?;
    Ok((process, terminal))
}

/// Nobody may look into this process, nor into those cloned from it: a process that joins a container
/// is seen by others in it at once (CVE-2016-9962).
pub(super) fn conceal() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .during(|| "become undumpable")
}

/// The host's procfs: its root, or one of our own where something else is mounted on `/proc`.
/// What is below it is reached without crossing mounts (CVE-2025-52881).
pub(super) fn host_procfs() -> Result<OwnedFd> {
    const ROOT_INODE: u64 = 1;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(procfs) = rustix::fs::open(Path::new("/proc"), flags, Mode::empty())
        && rustix::fs::fstatfs(&procfs).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
        && rustix::fs::fstat(&procfs).is_ok_and(|stat| stat.st_ino == ROOT_INODE)
    {
        return Ok(procfs);
    }
    Ok(sysctl::detached_procfs()?)
}

/// What a child waits for while it sets itself up.
enum Need {
    /// The hooks of the runtime.
    Hooks,
    /// Network devices, where a route socket was made.
    Interfaces(OwnedFd),
    /// Mapped ids of a mount's tree.
    Ids { mount: usize, tree: OwnedFd },
}

/// Listens to the child until it waits for its start, and gives it what it asks for. Returns the
/// terminal where it is kept here.
fn await_ready(
    context: &Context,
    wish: &Wish,
    process: &Launched,
    provide: impl Fn(Need) -> container::Result<()>,
) -> Result<Option<OwnedFd>> {
    let mut terminal = None;
    loop {
        let Some(received) = hear(process.channel.as_fd())? else {
            return Err(Error::Process(Failure {
                kind: FailureKind::Create,
                message: "the process ended while the container was made".to_owned(),
                exit_code: None,
            }));
        };
        match received.message {
            Message::Console => match (&wish.console_socket, received.descriptor) {
                (Some(path), Some(master)) => {
                    console::hand_over(path, "/dev/ptmx", master.as_fd())?;
                }
                (None, master) => terminal = master.inspect(console::plain_lines),
                (Some(_), None) => {}
            },
            Message::Ready { warnings, .. } => {
                for warning in warnings {
                    context.journal.say(Level::Warning, &warning);
                }
                return Ok(terminal);
            }
            Message::Hooks => {
                provide(Need::Hooks)?;
                channel::release(process.channel.as_fd())?;
            }
            Message::Interfaces => {
                if let Some(socket) = received.descriptor {
                    provide(Need::Interfaces(socket))?;
                }
                channel::release(process.channel.as_fd())?;
            }
            Message::Ids { mount } => {
                if let Some(tree) = received.descriptor {
                    provide(Need::Ids { mount, tree })?;
                }
                channel::release(process.channel.as_fd())?;
            }
            // Answered while it was cloned.
            Message::Mappings | Message::Child => {}
            Message::Failed(failure) => return Err(Error::Process(failure)),
        }
    }
}

/// Tells the caller the process: by its socket and its file.
pub(super) fn announce(wish: &Wish, process: &Launched) -> Result<()> {
    if let Some(path) = &wish.pidfd_socket {
        console::hand_over(path, "pidfd", process.pidfd.as_fd())?;
    }
    match &wish.pid_file {
        Some(path) => console::write_pid(path, process.pid),
        None => Ok(()),
    }
}
