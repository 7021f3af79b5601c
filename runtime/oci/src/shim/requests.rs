//! What each request does. Answers that need time are given by [`super::server`] when it has passed.

use std::os::fd::AsFd;
use std::rc::Rc;

use oci_spec::runtime::LinuxSeccomp;

use super::container::{Container, Stage};
use super::execution::{Capture, Execution};
use super::server::Server;
use super::store;
use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::join::{self, Target, Who};
use crate::container::launch::{self, Environment, Keeper, Launched, Stdio};
use crate::container::plan::{self, Plan};
use crate::container::{Doing, Error, Result};
use crate::log::LogFile;
use crate::protocol::{
    Answer, ContainerPhase, ContainerRecord, CreateContainer, ExecSync, Failure, FailureKind,
    Reply, Request, ResolvedUser, SignalTarget, VERSION,
};
use crate::seccomp::{self, Program};
use crate::sys;

/// Filters kept compiled.
const CACHED_FILTERS: usize = 16;

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
            Request::ExecSync(request) => self.exec(connection, &request),
            // Taken care of by the server itself.
            Request::Subscribe | Request::Shutdown => None,
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
        let plan = plan::plan(&self.config, request)?;
        let linux = request.spec.linux().as_ref();
        let filter = match linux.and_then(|linux| linux.seccomp().as_ref()) {
            Some(profile) => Some(self.filter(profile)?),
            None => None,
        };
        let stdio = &request.stdio;
        let log = LogFile::open(&stdio.log_path, stdio.log_max_bytes, stdio.log_max_files)
            .doing(|| format!("open log {}", stdio.log_path.display()))?;
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let (cgroup, mut warnings) =
            Cgroup::make(&self.config.cgroup_root, &request.cgroup_path, resources)?;
        let streams = match (stdio.tty, stdio.stdin) {
            (true, _) => Stdio::Terminal(None),
            (false, true) => Stdio::Pipes,
            (false, false) => Stdio::Output,
        };
        let launched = match self.launch(&plan, filter.as_deref(), &cgroup, streams, &mut warnings)
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
        };
        let mut container = Container {
            record,
            stage: Stage::Creating { waiting: connection, failure: None },
            pidfd: launched.pidfd,
            channel: Some(launched.channel),
            gate: launched.gate,
            stdin: launched.streams.stdin,
            outputs: Vec::new(),
            log,
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
        stdio: Stdio,
        warnings: &mut Vec<String>,
    ) -> Result<Launched> {
        let procfs = self.sandbox().procfs();
        let environment = Environment {
            keeper: Keeper::Shim,
            namespaces: self.sandbox().namespaces(),
            procfs,
            filter,
            listener: None,
        };
        let launched = launch::launch(plan, &environment, cgroup.as_fd(), stdio)?;
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
            SignalTarget::All if signal == libc::SIGKILL => container.cgroup.kill(),
            SignalTarget::All => {
                for pid in container.cgroup.processes() {
                    signal_member(pid, signal);
                }
                Ok(())
            }
        };
        result.map(|()| Reply::Done).map_err(|error| error.into_failure(FailureKind::Host))
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

    fn exec(&mut self, connection: u64, request: &ExecSync) -> Option<Answer> {
        match self.try_exec(connection, request) {
            Ok(execution) => {
                self.executions.push(execution);
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    fn try_exec(&mut self, connection: u64, request: &ExecSync) -> Result<Execution, Failure> {
        let Some(container) = self.find(&request.id) else { return Err(not_found(&request.id)) };
        if !matches!(container.stage, Stage::Running) {
            let message = format!("container {} is not running", request.id);
            return Err(failure(FailureKind::State, message));
        }
        if request.args.is_empty() || request.args.iter().any(|text| text.contains('\0')) {
            return Err(failure(FailureKind::Invalid, "the command is empty or holds a NUL byte"));
        }
        let mut process = container.process.clone();
        process.arguments.clone_from(&request.args);
        let score = process.oom_score_adj;
        let (init, cgroup) =
            (container.pidfd.try_clone(), container.cgroup.as_fd().try_clone_to_owned());
        let host = |error: std::io::Error| failure(FailureKind::Host, error.to_string());
        let (init, cgroup) = (init.map_err(host)?, cgroup.map_err(host)?);
        let user = container.record.user.clone();
        let (home, filter) = (container.home.clone(), container.filter.clone());
        let target = Target {
            init: init.as_fd(),
            cgroup: cgroup.as_fd(),
            own_pid_namespace: Some(self.sandbox().pid_namespace()),
            keeper: Keeper::Shim,
            stdio: Stdio::Output,
            identity: Who::Known { user: &user, home: home.as_deref() },
            filter: filter.as_deref(),
        };
        let joined = join::join(&process, &target);
        let joined = joined.map_err(|error: Error| error.into_failure(FailureKind::Host))?;
        if let Some(score) = score {
            // Refusals were told when the container was made.
            let _ = launch::adjust_oom_score(self.sandbox().procfs(), joined.pid, score);
        }
        Ok(Execution {
            waiting: connection,
            pid: joined.pid,
            pidfd: joined.pidfd,
            channel: Some(joined.channel),
            captures: [Capture::new(joined.streams.stdout), Capture::new(joined.streams.stderr)],
            limit: usize::try_from(request.output_limit_bytes).unwrap_or(usize::MAX),
            deadline_ms: request.timeout_ms.map(|ms| clock::monotonic_ms().saturating_add(ms)),
            timed_out: false,
            failure: None,
        })
    }
}

/// Signals a process of a cgroup by pidfd; one that is gone meanwhile needs none.
fn signal_member(pid: i32, signal: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        let _ = sys::signal_process(pidfd.as_fd(), signal);
    }
}
