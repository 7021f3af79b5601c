//! What each request does. Answers that need time are given by [`super::server`] when it has passed.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use oci_spec::runtime::LinuxSeccomp;
use rustix::termios::Winsize;

use super::attachment::Attachment;
use super::container::{Container, Stage, Stdin};
use super::execution::{Capture, Execution, Once, Process, Purpose};
use super::server::Server;
use super::{sandbox, store};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::birth;
use crate::container::hooks::{Hooks, Subject};
use crate::container::join::{self, Joined, Target, Who};
use crate::container::launch::{self, Environment, Keeper, Launched, Stdio};
use crate::container::plan::{self, Plan};
use crate::container::{Doing, Error, Result};
use crate::log;
use crate::protocol::{
    Answer, Attach, ContainerPhase, ContainerRecord, CreateContainer, Descriptor, Exec, ExecSync,
    Failure, FailureKind, PidNamespace, Reply, Request, ResolvedUser, SignalTarget, TerminalSize,
    VERSION,
};
use crate::seccomp::{self, Program};
use crate::sys;

/// Filters kept compiled.
const CACHED_FILTERS: usize = 16;

/// What an execution that may have been asked for before comes to.
enum Wish {
    CarryOut(Option<Once>),
    Answer(Box<Answer>),
    /// It runs: the answer comes when it has ended.
    Wait,
}

pub(super) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into(), exit_code: None }
}

fn not_found(id: &str) -> Failure {
    failure(FailureKind::NotFound, format!("container {id} not found"))
}

impl Server {
    /// Carries a request out; `None` when the answer comes later.
    pub(super) fn carry_out(&mut self, connection: u64, request: Request) -> Option<Answer> {
        match request {
            Request::Hello => Some(Ok(self.hello())),
            Request::Create(request) => self.create(connection, &request),
            Request::Start { id } => self.start(connection, &id),
            Request::Signal { id, signal, target } => Some(self.signal(&id, signal, target)),
            Request::Delete { id } => self.delete(connection, &id),
            Request::ExecSync(request) => self.exec_sync(connection, &request),
            Request::Exec(request) => self.exec(connection, &request),
            Request::Attach(request) => self.attach(connection, &request),
            Request::ReopenLog { id } => self.reopen_log(connection, &id),
            Request::LimitLog { id, max_bytes, max_files } => {
                Some(self.limit_log(&id, max_bytes, max_files))
            }
            // Taken care of by the server itself.
            Request::Subscribe { .. } | Request::Shutdown => None,
        }
    }

    fn hello(&self) -> Reply {
        Reply::Shim {
            version: VERSION,
            pid: rustix::process::getpid().as_raw_pid(),
            containers: self.containers.values().map(|c| c.record.clone()).collect(),
        }
    }

    fn create(&mut self, connection: u64, request: &CreateContainer) -> Option<Answer> {
        if !store::is_valid_id(&request.id) {
            let message = format!("container id {:?} is malformed", request.id);
            return Some(Err(failure(FailureKind::Invalid, message)));
        }
        if self.find(&request.id).is_some() {
            let message = format!("container {} exists already", request.id);
            return Some(Err(failure(FailureKind::State, message)));
        }
        match self.try_create(connection, request) {
            Ok(container) => {
                self.insert(container);
                None
            }
            Err(error) => Some(Err(error.into_failure(FailureKind::Create))),
        }
    }

    fn try_create(&mut self, connection: u64, request: &CreateContainer) -> Result<Container> {
        let mut plan = plan::plan(&self.config, request)?;
        if plan.hooks != Hooks::default() {
            return Err(Error::invalid("hooks", "a container of a pod has none"));
        }
        if !plan.interfaces.is_empty() {
            return Err(Error::invalid("linux.netDevices", "a container of a pod has none"));
        }
        if request.pid_target.is_some() && self.has_pid_targets() {
            plan.namespaces.create &= !(libc::CLONE_NEWPID as u64);
        }
        let linux = request.spec.linux().as_ref();
        let filter = match linux.and_then(|linux| linux.seccomp().as_ref()) {
            Some(profile) => Some(self.filter(profile)?),
            None => None,
        };
        let stdio = &request.stdio;
        log::probe(&stdio.log_path).doing(|| format!("open log {}", stdio.log_path.display()))?;
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let (cgroup, mut warnings) =
            Cgroup::make(&self.config.cgroup_root, &request.cgroup_path, resources)?;
        let launched = match self.launch(&plan, filter.as_deref(), &cgroup, request, &mut warnings)
        {
            Ok(launched) => launched,
            Err(error) => {
                self.discard(cgroup);
                return Err(error);
            }
        };
        let record = ContainerRecord {
            id: request.id.clone(),
            pid: launched.pid,
            cgroup_path: request.cgroup_path.clone(),
            state: ContainerPhase::Created,
            user: ResolvedUser::default(),
            warnings,
            lost_log_records: 0,
        };
        let mut container = Container {
            record,
            stage: Stage::Creating { waiting: connection, failure: None },
            pidfd: launched.pidfd,
            cradle: launched.cradle,
            channel: Some(launched.channel),
            gate: launched.gate,
            is_terminal: stdio.tty,
            stdin: match launched.streams.stdin {
                Some(pipe) if stdio.stdin_once => Stdin::Once(pipe),
                Some(pipe) => Stdin::Held(pipe),
                None if stdio.stdin && stdio.tty => Stdin::Terminal,
                None => Stdin::None,
            },
            attachments: Vec::new(),
            outputs: Vec::new(),
            log: self.logs.register(&stdio.log_path, stdio.log_max_bytes, stdio.log_max_files),
            log_sync_asked: false,
            log_loss_told_ms: 0,
            cgroup,
            process: plan.process,
            home: None,
            filter,
        };
        container.add_outputs(launched.streams.stdout, launched.streams.stderr);
        Ok(container)
    }

    fn launch(
        &self,
        plan: &Plan,
        filter: Option<&Program>,
        cgroup: &Cgroup,
        request: &CreateContainer,
        warnings: &mut Vec<String>,
    ) -> Result<Launched> {
        let procfs = self.sandbox().procfs();
        let subject = Subject { id: request.id.clone(), ..Subject::default() };
        let stdio = match (request.stdio.tty, request.stdio.stdin) {
            (true, _) => Stdio::Terminal(None),
            (false, true) => Stdio::Pipes,
            (false, false) => Stdio::Output,
        };
        let target = request.pid_target.as_deref().filter(|_| self.has_pid_targets());
        let of_target = target.map(|target| self.pid_namespace_of(target)).transpose()?;
        if let Some(namespace) = &of_target {
            birth::enter_pid_namespace(namespace.as_fd())
                .doing(|| "enter the PID namespace of another container")?;
        }
        let environment = Environment {
            subject: &subject,
            keeper: Keeper::Shim,
            namespaces: self.sandbox().namespaces(),
            birthplace: self.sandbox().foreign_birthplace(of_target.as_ref()),
            procfs,
            filter,
            listener: None,
        };
        let launched = launch::launch(plan, &environment, cgroup.as_fd(), stdio);
        if target.is_some() {
            self.sandbox().return_to_pid_namespace()?;
        }
        let launched = launched?;
        if let Some(score) = plan.process.oom_score_adj {
            match launch::adjust_oom_score(procfs, launched.pid, score) {
                Ok(warning) => warnings.extend(warning),
                Err(error) => {
                    // The child is ours and unreaped: the signal reaches it, the loop reaps it.
                    let _ = sys::signal_process(launched.pidfd.as_fd(), libc::SIGKILL);
                    return Err(error);
                }
            }
        }
        Ok(launched)
    }

    /// Whether containers have PID namespaces of their own, which others could join.
    fn has_pid_targets(&self) -> bool {
        self.config.pid == PidNamespace::Container
    }

    /// The PID namespace of a running container.
    fn pid_namespace_of(&self, target: &str) -> Result<OwnedFd> {
        let running = |c: &&Container| c.record.id == target && matches!(c.stage, Stage::Running);
        let container = self.containers.values().find(running).ok_or_else(|| {
            Error::invalid("pid_target", format!("container {target} is not running"))
        })?;
        // Its number is its own until it is reaped.
        sandbox::open_namespace(self.sandbox().procfs(), container.record.pid, "pid")
    }

    fn filter(&mut self, profile: &LinuxSeccomp) -> Result<Rc<Program>> {
        if let Some((_, program)) = self.filters.iter().find(|(known, _)| known == profile) {
            return Ok(program.clone());
        }
        let program = Rc::new(seccomp::compile(profile)?);
        if self.filters.len() >= CACHED_FILTERS {
            self.filters.remove(0);
        }
        self.filters.push((profile.clone(), program.clone()));
        Ok(program)
    }

    fn start(&mut self, connection: u64, id: &str) -> Option<Answer> {
        let Some(container) = self.find(id) else { return Some(Err(not_found(id))) };
        let Stage::Created = container.stage else {
            let message = format!("container {id} is not in the state created");
            return Some(Err(failure(FailureKind::State, message)));
        };
        container.stage = Stage::Starting { waiting: connection, failure: None };
        container.record.state = ContainerPhase::Running { started_at: clock::now() };
        if let Some(gate) = container.gate.take() {
            // A child that is dead already is about to be reaped, which answers as well.
            let _ = rustix::io::write(&gate, b"s");
        }
        None
    }

    fn signal(&mut self, id: &str, signal: i32, target: SignalTarget) -> Answer {
        let Some(container) = self.find(id) else { return Err(not_found(id)) };
        if !(1..=64).contains(&signal) {
            return Err(failure(FailureKind::Invalid, format!("{signal} is no signal")));
        }
        if !container.is_alive() {
            return Ok(Reply::Done);
        }
        let result = match target {
            SignalTarget::Init => match sys::signal_process(container.pidfd.as_fd(), signal) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                result => result.doing(|| format!("send signal {signal} to container {id}")),
            },
            SignalTarget::All => container.cgroup.signal(signal),
        };
        result.map(|()| Reply::Done).map_err(|error| error.into_failure(FailureKind::Host))
    }

    fn reopen_log(&mut self, connection: u64, id: &str) -> Option<Answer> {
        let Some(container) = self.find(id) else { return Some(Err(not_found(id))) };
        if !container.has_log() {
            let message = format!("container {id} has ended, and its log with it");
            return Some(Err(failure(FailureKind::State, message)));
        }
        let (log, now) = (container.log, clock::monotonic_ms());
        self.logs.reopen(log, now);
        self.reopening.push((connection, log, now));
        None
    }

    fn limit_log(&mut self, id: &str, max_bytes: u64, max_files: u32) -> Answer {
        let container = self.find(id).ok_or_else(|| not_found(id))?;
        let log = container.log;
        self.logs.limit(log, max_bytes, max_files, clock::monotonic_ms());
        Ok(Reply::Done)
    }

    fn delete(&mut self, connection: u64, id: &str) -> Option<Answer> {
        let Some(container) = self.find(id) else { return Some(Ok(Reply::Done)) };
        if !matches!(container.stage, Stage::Exited) {
            let message = format!("container {id} has not exited");
            return Some(Err(failure(FailureKind::State, message)));
        }
        self.retire(connection, id);
        None
    }

    fn exec_sync(&mut self, connection: u64, request: &ExecSync) -> Option<Answer> {
        let once = match self.once(connection, request) {
            Wish::CarryOut(once) => once,
            Wish::Answer(answer) => return Some(*answer),
            Wish::Wait => return None,
        };
        let joined = match self.join(&request.id, &request.args, Stdio::Output) {
            Ok(joined) => joined,
            Err(failure) => return Some(Err(failure)),
        };
        let captures = [Capture::new(joined.streams.stdout), Capture::new(joined.streams.stderr)];
        let limit = usize::try_from(request.output_limit_bytes).unwrap_or(usize::MAX);
        self.executions.push(Execution {
            waiting: connection,
            process: Process::new(joined.pid, joined.pidfd, joined.cradle),
            channel: Some(joined.channel),
            purpose: Purpose::Collect { captures, limit, once },
            deadline_ms: request.timeout_ms.map(|ms| clock::monotonic_ms().saturating_add(ms)),
            timed_out: false,
            failure: None,
        });
        None
    }

    /// What is to be done for an execution that may have been asked for before.
    fn once(&mut self, connection: u64, request: &ExecSync) -> Wish {
        let Some(name) = &request.once else { return Wish::CarryOut(None) };
        if !store::is_valid_id(name) {
            let message = format!("the execution's name {name:?} is malformed");
            return Wish::Answer(Box::new(Err(failure(FailureKind::Invalid, message))));
        }
        if self.find(&request.id).is_none() {
            return Wish::Answer(Box::new(Err(not_found(&request.id))));
        }
        let once = Once { container: request.id.clone(), name: name.clone() };
        if let Some(answer) = store::kept_result(&self.directory, &once) {
            return Wish::Answer(Box::new(answer));
        }
        let same = |execution: &&mut Execution| execution.once() == Some(&once);
        let Some(running) = self.executions.iter_mut().find(same) else {
            return Wish::CarryOut(Some(once));
        };
        let earlier = std::mem::replace(&mut running.waiting, connection);
        if self.connections.contains_key(&earlier) {
            let message = format!("execution {} is asked for by somebody else now", once.name);
            self.answer(earlier, Err(failure(FailureKind::State, message)));
        }
        Wish::Wait
    }

    fn exec(&mut self, connection: u64, request: &Exec) -> Option<Answer> {
        let stdio = match request.tty {
            true => Stdio::Terminal(request.size.map(window)),
            false => Stdio::Wanted(request.streams),
        };
        let joined = match self.join(&request.id, &request.args, stdio) {
            Ok(joined) => joined,
            Err(failure) => return Some(Err(failure)),
        };
        let streams = joined.streams;
        let wanted = [
            (Descriptor::Stdin, request.streams.stdin, streams.stdin),
            (Descriptor::Stdout, request.streams.stdout, streams.stdout),
            (Descriptor::Stderr, request.streams.stderr, streams.stderr),
        ];
        let mut descriptors = Vec::new();
        let mut of_terminal = Vec::new();
        for (kind, wanted, pipe) in wanted {
            match pipe {
                Some(fd) => descriptors.push((kind, fd)),
                None if wanted && request.tty && kind != Descriptor::Stderr => {
                    of_terminal.push(kind);
                }
                None => {}
            }
        }
        if request.tty {
            of_terminal.push(Descriptor::Terminal);
        }
        self.executions.push(Execution {
            waiting: connection,
            process: Process::new(joined.pid, joined.pidfd, joined.cradle),
            channel: Some(joined.channel),
            purpose: Purpose::Session { descriptors, of_terminal, opened: false },
            deadline_ms: None,
            timed_out: false,
            failure: None,
        });
        None
    }

    fn attach(&mut self, connection: u64, request: &Attach) -> Option<Answer> {
        match self.try_attach(connection, request) {
            Ok((answer, descriptors)) => {
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.open(&answer, &descriptors);
                }
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    fn try_attach(
        &mut self,
        connection: u64,
        request: &Attach,
    ) -> Result<(Answer, Vec<OwnedFd>), Failure> {
        let container = self.running(&request.id)?;
        let opened = container
            .open_streams(request.streams)
            .map_err(|error| failure(FailureKind::Host, format!("open streams: {error}")))?;
        container.attachments.push(Attachment { connection, taps: opened.taps });
        Ok((Ok(Reply::Opened { descriptors: opened.kinds }), opened.descriptors))
    }

    /// A container that must be running.
    fn running(&mut self, id: &str) -> Result<&mut Container, Failure> {
        let Some(container) = self.find(id) else { return Err(not_found(id)) };
        match container.stage {
            Stage::Running => Ok(container),
            _ => Err(failure(FailureKind::State, format!("container {id} is not running"))),
        }
    }

    /// Clones a further process into a running container.
    fn join(&mut self, id: &str, arguments: &[String], stdio: Stdio) -> Result<Joined, Failure> {
        let container = self.running(id)?;
        if arguments.is_empty() || arguments.iter().any(|text| text.contains('\0')) {
            return Err(failure(FailureKind::Invalid, "the command is empty or holds a NUL byte"));
        }
        let mut process = container.process.clone();
        process.arguments = arguments.to_owned();
        let has_type = process.environment.iter().any(|variable| variable.starts_with("TERM="));
        if matches!(stdio, Stdio::Terminal(_)) && !has_type {
            process.environment.push("TERM=xterm".to_owned());
        }
        let score = process.oom_score_adj;
        let (init, cgroup) =
            (container.pidfd.try_clone(), container.cgroup.as_fd().try_clone_to_owned());
        let host = |error: std::io::Error| failure(FailureKind::Host, error.to_string());
        let (init, cgroup) = (init.map_err(host)?, cgroup.map_err(host)?);
        let user = container.record.user.clone();
        let (home, filter) = (container.home.clone(), container.filter.clone());
        let subject = Subject { id: id.to_owned(), ..Subject::default() };
        let target = Target {
            subject: &subject,
            init: init.as_fd(),
            cgroup: cgroup.as_fd(),
            birthplace: Some(self.sandbox().pid_namespaces()),
            keeper: Keeper::Shim,
            stdio,
            identity: Who::Known { user: &user, home: home.as_deref() },
            filter: filter.as_deref(),
        };
        let joined = join::join(&process, &target);
        let joined = joined.map_err(|error: Error| error.into_failure(FailureKind::Host))?;
        if let Some(score) = score {
            // Refusals were told when the container was made.
            let _ = launch::adjust_oom_score(self.sandbox().procfs(), joined.pid, score);
        }
        Ok(joined)
    }
}

fn window(size: TerminalSize) -> Winsize {
    Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 }
}
