//! `exec`: a further process in a running container.
//!
//! The process is described by a file, or is the container's own with what the flags change. It is
//! cloned into the container's cgroup and joins the namespaces of its first process by pidfd.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use lexopt::Parser;
use oci_spec::runtime::{Capability, Process, Spec};
use rustix::process::{WaitId, WaitIdOptions};

use super::arguments::{self, Argument, number, path, switch, text};
use super::creation::{self, conceal, host_procfs};
use super::foreground::{self, Foreground};
use super::id::Id;
use super::journal::Level;
use super::record::Status;
use super::start::hear;
use super::{Context, Error, Result, bundle, console, inherited, sealed};
use crate::cgroup::Cgroup;
use crate::container::channel::Message;
use crate::container::hooks::Subject;
use crate::container::join::{self, Joined, Target, Who};
use crate::container::launch::{self, Keeper, Keyring, Manner, RootChange, Stdio};
use crate::container::{self, plan};
use crate::{seccomp, spec, sys};

pub(super) const USAGE: &str = "exec [options] ID COMMAND [ARGUMENTS] | exec --process FILE ID
  --process, -p FILE          describes the process
  --cwd DIR                   its working directory
  --env, -e NAME=VALUE        sets a variable
  --tty, -t                   gives it a terminal
  --user, -u UID[:GID]        its user
  --additional-gids, -g GID   a further group
  --cap, -c CAPABILITY        adds a capability
  --no-new-privs              it can gain no privileges
  --apparmor PROFILE          its AppArmor profile
  --process-label LABEL       its SELinux label
  --cgroup PATH               runs it in a cgroup below the container's
  --ignore-paused             runs it in a paused container
  --preserve-fds N            passes N descriptors from 3 on
  --detach, -d                return once it runs
  --pid-file FILE             write its process id there
  --console-socket PATH       send its terminal there
  --pidfd-socket PATH         send a pidfd of it there";

/// What the flags say.
#[derive(Default)]
struct Options {
    process_file: Option<PathBuf>,
    cwd: Option<PathBuf>,
    environment: Vec<String>,
    terminal: Option<bool>,
    user: Option<String>,
    groups: Vec<u32>,
    capabilities: Vec<String>,
    no_new_privileges: bool,
    apparmor: Option<String>,
    label: Option<String>,
    cgroup: Option<String>,
    ignore_paused: bool,
    preserved: u32,
    detach: bool,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
}

impl Options {
    /// Parses up to the container's id; what follows is the command's.
    fn parse(parser: &mut Parser) -> Result<(Self, Id, Vec<String>)> {
        let mut options = Self::default();
        let id = loop {
            match arguments::next(parser)? {
                Some(Argument::Flag(flag)) => options.flag(&flag, parser)?,
                Some(Argument::Value(id)) => break Id::parse(&id.to_string_lossy())?,
                None => return Err(Error::Usage("a container ID is needed".to_owned())),
            }
        };
        let mut command = Vec::new();
        for argument in parser.raw_args()? {
            let Ok(argument) = argument.into_string() else {
                return Err(Error::Usage("an argument is not UTF-8".to_owned()));
            };
            command.push(argument);
        }
        if command.first().is_some_and(|first| first == "--") {
            command.remove(0);
        }
        if command.is_empty() && options.process_file.is_none() {
            return Err(Error::Usage("process args cannot be empty".to_owned()));
        }
        Ok((options, id, command))
    }

    fn flag(&mut self, flag: &str, parser: &mut Parser) -> Result<()> {
        match flag {
            "p" | "process" => self.process_file = Some(path(parser)?),
            "cwd" => self.cwd = Some(path(parser)?),
            "e" | "env" => self.environment.push(text(parser)?),
            "t" | "tty" => self.terminal = Some(switch(parser)?),
            "u" | "user" => self.user = Some(text(parser)?),
            "g" | "additional-gids" => self.groups.push(number(parser, flag)?),
            "c" | "cap" => self.capabilities.push(text(parser)?),
            "no-new-privs" => self.no_new_privileges = switch(parser)?,
            "apparmor" => self.apparmor = Some(text(parser)?),
            "process-label" => self.label = Some(text(parser)?),
            "cgroup" => self.cgroup = Some(text(parser)?),
            "ignore-paused" => self.ignore_paused = switch(parser)?,
            "preserve-fds" => self.preserved = number(parser, flag)?,
            "d" | "detach" => self.detach = switch(parser)?,
            "pid-file" => self.pid_file = Some(path(parser)?),
            "console-socket" => self.console_socket = Some(path(parser)?),
            "pidfd-socket" => self.pidfd_socket = Some(path(parser)?),
            _ => return Err(arguments::unknown(flag)),
        }
        Ok(())
    }

    /// The process: as its file says, or the container's own with the flags' changes.
    fn process(&self, context: &Context, spec: &Spec, command: Vec<String>) -> Result<Process> {
        if let Some(path) = &self.process_file {
            let (process, unknown) = bundle::parse_process(path, &bundle::read(path)?)?;
            context.journal.warn_of_capabilities(&unknown);
            return Ok(process);
        }
        let own = spec.process().clone();
        let mut process = own.ok_or_else(|| container::Error::invalid("process", "is missing"))?;
        process.set_args(Some(command));
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        let mut environment = process.env().clone().unwrap_or_default();
        environment.extend(self.environment.iter().cloned());
        process.set_env(Some(environment));
        process.set_terminal(Some(self.terminal.unwrap_or(false)));
        if self.no_new_privileges {
            process.set_no_new_privileges(Some(true));
        }
        if self.apparmor.is_some() {
            process.set_apparmor_profile(self.apparmor.clone());
        }
        if self.label.is_some() {
            process.set_selinux_label(self.label.clone());
        }
        self.change_user(&mut process)?;
        self.add_capabilities(&mut process)?;
        Ok(process)
    }

    fn change_user(&self, process: &mut Process) -> Result<()> {
        let mut user = process.user().clone();
        if let Some(text) = &self.user {
            let invalid = || Error::Usage(format!("--user: {text:?} is not of the form UID[:GID]"));
            let (uid, gid) = match text.split_once(':') {
                Some((uid, gid)) => (uid, Some(gid)),
                None => (text.as_str(), None),
            };
            user.set_uid(uid.parse().map_err(|_| invalid())?);
            if let Some(gid) = gid {
                user.set_gid(gid.parse().map_err(|_| invalid())?);
            }
        }
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&self.groups);
        user.set_additional_gids(Some(groups));
        process.set_user(user);
        Ok(())
    }

    fn add_capabilities(&self, process: &mut Process) -> Result<()> {
        if self.capabilities.is_empty() {
            return Ok(());
        }
        let mut sets = process.capabilities().clone().unwrap_or_default();
        for name in &self.capabilities {
            let unknown = || Error::Usage(format!("--cap: {name:?} is no capability"));
            let capability = spec::capability(&name.to_ascii_uppercase()).ok_or_else(unknown)?;
            let with = |set: &Option<std::collections::HashSet<Capability>>| {
                let mut set = set.clone().unwrap_or_default();
                set.insert(capability);
                Some(set)
            };
            // As with runc: where nothing can be inherited, nothing is raised.
            if sets.inheritable().as_ref().is_some_and(|set| !set.is_empty()) {
                sets.set_ambient(with(sets.ambient()));
            }
            sets.set_bounding(with(sets.bounding()));
            sets.set_effective(with(sets.effective()));
            sets.set_permitted(with(sets.permitted()));
        }
        process.set_capabilities(Some(sets));
        Ok(())
    }

    fn stdio(&self, process: &Process) -> Result<Stdio> {
        let terminal = self.terminal.unwrap_or(process.terminal().unwrap_or(false));
        match (terminal, &self.console_socket) {
            (false, Some(_)) => {
                Err(Error::Usage("--console-socket is for processes with a tty".to_owned()))
            }
            (true, None) if self.detach => Err(Error::Usage(
                "cannot allocate tty if the process is detached without --console-socket"
                    .to_owned(),
            )),
            (true, Some(_)) if !self.detach => {
                Err(Error::Usage("--console-socket is for processes that are detached".to_owned()))
            }
            (false, None) => Ok(Stdio::Inherited),
            (true, _) => Ok(Stdio::Terminal(creation::size(process))),
        }
    }
}

/// Runs a process in a container and, unless it is detached, waits for its end.
pub(super) fn exec(context: &Context, parser: &mut Parser) -> Result<u8> {
    sealed::ensure()?;
    let (options, id, command) = Options::parse(parser)?;
    let entry = context.store.entry(&id);
    let record = entry.load()?;
    match record.status(&entry) {
        Status::Creating | Status::Stopped => {
            return Err(Error::State("cannot exec in a stopped container".to_owned()));
        }
        Status::Paused if !options.ignore_paused => {
            let reason = "cannot exec in a paused container (use --ignore-paused to override)";
            return Err(Error::State(reason.to_owned()));
        }
        Status::Paused | Status::Created | Status::Running => {}
    }
    let opened = record.init.and_then(|init| Some((init.pid, init.open()?)));
    let Some((pid, init)) = opened else {
        return Err(Error::State("cannot exec in a stopped container".to_owned()));
    };
    // What is unknown in it has been warned of.
    let (spec, _) = bundle::parse(Path::new("config.json"), &entry.config()?)?;
    let process = options.process(context, &spec, command)?;
    let stdio = options.stdio(&process)?;
    let foreground = if options.detach { None } else { Some(Foreground::prepare()?) };
    let cgroup = match options.cgroup {
        Some(_) => Cgroup::open(&record.cgroup)?,
        None => Cgroup::open_for(&record.cgroup, pid)?,
    };
    let at = At { init, cgroup, stdio, subject: record.subject() };
    let mut joined = join_container(context, (&options, &spec, &process), &at)?;
    joined.await_birth()?;
    context.journal.trace(|| format!("cloned process {} into container {id}", joined.pid));
    let told = attend_start(context, &options, &process, &joined);
    let terminal = match told {
        Ok(terminal) => terminal,
        Err(error) => {
            let child = joined.pidfd.as_fd();
            let _ = sys::signal_process(child, libc::SIGKILL);
            // Left to the host's init it would be a zombie for as long as that likes.
            let _ = rustix::io::retry_on_intr(|| {
                rustix::process::waitid(WaitId::PidFd(child), WaitIdOptions::EXITED)
            });
            return Err(error);
        }
    };
    match foreground {
        None => Ok(0),
        Some(foreground) => {
            let (pid, pidfd) = (joined.pid, &joined.pidfd);
            foreground.attend(foreground::Process { pid, pidfd, terminal, proxy: None })
        }
    }
}

/// Where a process goes.
struct At {
    init: OwnedFd,
    cgroup: Cgroup,
    stdio: Stdio,
    subject: Subject,
}

fn join_container(
    context: &Context,
    (options, spec, process): (&Options, &Spec, &Process),
    at: &At,
) -> Result<Joined> {
    let mut plan = plan::plan_process(process, spec.linux().as_ref())?;
    if let Some(mask) = plan.placement.first_mask() {
        context.journal.trace(|| format!("initial CPU affinity: 0x{mask}"));
    }
    plan.environment.extend(inherited::variables());
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = profile.map(seccomp::compile).transpose().map_err(container::Error::from)?;
    let below = options.cgroup.as_deref().map(|cgroup| {
        // A list of v1 controllers may stand before the path; on v2 there is one hierarchy.
        let path = cgroup.split_once(':').map_or(cgroup, |(_, path)| path);
        at.cgroup.below(Path::new(path))
    });
    let below = below.transpose()?;
    let preserved = inherited::checked_count(options.preserved)?;
    let user = creation::user(process);
    conceal()?;
    let target = Target {
        init: at.init.as_fd(),
        cgroup: below.as_ref().map_or(at.cgroup.as_fd(), AsFd::as_fd),
        birthplace: None,
        keeper: Keeper::CommandLine(Manner {
            preserved,
            keyring: Keyring::New,
            root: RootChange::Pivot,
        }),
        stdio: at.stdio,
        identity: Who::Selected(&user),
        filter: filter.as_ref(),
        subject: &at.subject,
    };
    Ok(join::join(&plan, &target)?)
}

/// Waits until the command is executed. Returns the terminal where it is kept here.
fn attend_start(
    context: &Context,
    options: &Options,
    process: &Process,
    joined: &Joined,
) -> Result<Option<OwnedFd>> {
    if let Some(score) = process.oom_score_adj() {
        let refused = launch::adjust_oom_score(host_procfs()?.as_fd(), joined.pid, score)?;
        if let Some(reason) = refused {
            return Err(Error::State(reason));
        }
    }
    let mut terminal = None;
    while let Some(received) = hear(joined.channel.as_fd())? {
        match received.message {
            Message::Console => match (&options.console_socket, received.descriptor) {
                (Some(path), Some(master)) => {
                    console::hand_over(path, "/dev/ptmx", master.as_fd())?;
                }
                (_, master) => terminal = master.inspect(console::plain_lines),
            },
            Message::Ready { warnings, .. } => {
                for warning in warnings {
                    context.journal.say(Level::Warning, &warning);
                }
            }
            // Answered while it was cloned.
            Message::Mappings
            | Message::Child
            | Message::Hooks
            | Message::Interfaces
            | Message::Ids { .. } => {}
            Message::Failed(failure) => return Err(Error::Process(failure)),
        }
    }
    if let Some(path) = &options.pidfd_socket {
        console::hand_over(path, "pidfd", joined.pidfd.as_fd())?;
    }
    if let Some(path) = &options.pid_file {
        console::write_pid(path, joined.pid)?;
    }
    Ok(terminal)
}
