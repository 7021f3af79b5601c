//! The shim's loop: polls what is open, acts on what is ready, answers what is done.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;

use oci_spec::runtime::LinuxSeccomp;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use super::connection::{Connection, Mode};
use super::container::{Container, Output, Stage};
use super::execution::Execution;
use super::requests::failure;
use super::sandbox::Sandbox;
use super::store;
use crate::cgroup::{Cgroup, Removal};
use crate::clock;
use crate::container::channel::{self, Message};
use crate::container::{Doing, Result};
use crate::log::Stream;
use crate::protocol::{
    Answer, ContainerPhase, Event, Failure, FailureKind, Reply, Request, ShimConfig,
};
use crate::seccomp::Program;
use crate::sys;

const RETRY_MS: u64 = 2;
const REMOVAL_LIMIT_MS: u64 = 10_000;
const MAX_CONNECTIONS: usize = 64;

/// What became ready.
#[derive(Debug, Clone, Copy)]
enum Token {
    Signal,
    Listener,
    Connection(u64),
    Channel(u64),
    Output(u64, usize),
    ExecutionChannel(usize),
    Capture(usize, usize),
}

/// A cgroup to be removed once it is empty.
#[derive(Debug)]
struct Leftover {
    cgroup: Cgroup,
    since_ms: u64,
    /// Whom to tell, and the container whose record goes with it.
    waiting: Option<(u64, String)>,
}

/// The shim's state.
#[derive(Debug)]
pub(super) struct Server {
    directory: PathBuf,
    pub(super) config: ShimConfig,
    sandbox: Option<Sandbox>,
    listener: UnixListener,
    signals: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    pub(super) containers: BTreeMap<u64, Container>,
    pub(super) executions: Vec<Execution>,
    pub(super) filters: Vec<(LinuxSeccomp, Rc<Program>)>,
    leftovers: Vec<Leftover>,
    next_key: u64,
    /// Connections that asked for the end.
    shutdown: Option<Vec<u64>>,
}

impl Server {
    pub(super) fn new(
        directory: PathBuf,
        config: ShimConfig,
        sandbox: Sandbox,
        listener: UnixListener,
    ) -> Result<Self> {
        let signals = sys::signal_descriptor(&[libc::SIGCHLD]).doing(|| "watch for children")?;
        Ok(Self {
            directory,
            config,
            sandbox: Some(sandbox),
            listener,
            signals,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            executions: Vec::new(),
            filters: Vec::new(),
            leftovers: Vec::new(),
            next_key: 0,
            shutdown: None,
        })
    }

    /// The sandbox, which is there until the shim ends.
    pub(super) fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("the sandbox is released only after the loop")
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    pub(super) fn insert(&mut self, container: Container) {
        let key = self.key();
        self.containers.insert(key, container);
    }

    pub(super) fn find(&mut self, id: &str) -> Option<&mut Container> {
        self.containers.values_mut().find(|container| container.record.id == id)
    }

    /// Serves until shut down.
    pub(super) fn serve(&mut self) -> Result<()> {
        loop {
            let ready = self.poll()?;
            for token in ready {
                self.act(token);
            }
            self.reap();
            self.settle();
            self.serve_requests();
            self.connections.retain(|_, connection| !connection.closed);
            if self.is_finished() {
                return self.finish();
            }
        }
    }

    fn poll(&self) -> Result<Vec<Token>> {
        let mut tokens = vec![Token::Signal, Token::Listener];
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        for (key, connection) in &self.connections {
            let mut flags = PollFlags::empty();
            if connection.mode != Mode::Busy {
                flags |= PollFlags::IN;
            }
            if connection.wants_to_write() {
                flags |= PollFlags::OUT;
            }
            tokens.push(Token::Connection(*key));
            fds.push(PollFd::from_borrowed_fd(connection.as_fd(), flags));
        }
        for (key, container) in &self.containers {
            if let Some(channel) = &container.channel {
                tokens.push(Token::Channel(*key));
                fds.push(PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN));
            }
            for (index, output) in container.outputs.iter().enumerate() {
                tokens.push(Token::Output(*key, index));
                fds.push(PollFd::from_borrowed_fd(output.fd.as_fd(), PollFlags::IN));
            }
        }
        for (index, execution) in self.executions.iter().enumerate() {
            if let Some(channel) = &execution.channel {
                tokens.push(Token::ExecutionChannel(index));
                fds.push(PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN));
            }
            for (stream, capture) in execution.captures.iter().enumerate() {
                if let Some(fd) = &capture.fd {
                    tokens.push(Token::Capture(index, stream));
                    fds.push(PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
                }
            }
        }
        match rustix::event::poll(&mut fds, self.timeout().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error).doing(|| "poll"),
        }
        let ready = fds.iter().zip(tokens).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map(|(_, token)| token).collect())
    }

    fn timeout(&self) -> Option<Timespec> {
        let now = clock::monotonic_ms();
        let draining = self.containers.values().any(|c| matches!(c.stage, Stage::Draining { .. }));
        let retry = (draining || !self.leftovers.is_empty()).then_some(RETRY_MS);
        let deadlines =
            self.executions.iter().filter(|e| !e.timed_out).filter_map(|e| e.deadline_ms);
        let until = deadlines.map(|deadline| deadline.saturating_sub(now)).chain(retry).min()?;
        Some(Timespec {
            tv_sec: i64::try_from(until / 1000).unwrap_or(i64::MAX),
            tv_nsec: (until % 1000 * 1_000_000) as i64,
        })
    }

    fn act(&mut self, token: Token) {
        match token {
            Token::Signal => {
                let mut buffer = [0; 1024];
                // Children are asked after in any case; this only empties the queue.
                while rustix::io::read(&self.signals, &mut buffer).is_ok_and(|count| count > 0) {}
            }
            Token::Listener => self.accept(),
            Token::Connection(key) => {
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.flush();
                    connection.read();
                    if connection.closed {
                        self.abandon(key);
                    }
                }
            }
            Token::Channel(key) => self.hear(key),
            // Closing an output moves the last one into its place: at worst one is read a turn later.
            Token::Output(key, index) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.read_output(index);
                }
            }
            Token::ExecutionChannel(index) => {
                let Some(execution) = self.executions.get_mut(index) else { return };
                let Some(channel) = &execution.channel else { return };
                match channel::receive(channel.as_fd()) {
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Ok(Some(received)) => {
                        if let Message::Failed(failure) = received.message {
                            execution.failure = Some(failure);
                        }
                    }
                    Ok(None) | Err(_) => execution.channel = None,
                }
            }
            Token::Capture(index, stream) => {
                if let Some(execution) = self.executions.get_mut(index) {
                    execution.read(stream);
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let room = self.connections.len() < MAX_CONNECTIONS;
            if let Some(connection) = Connection::accept(stream).filter(|_| room) {
                let key = self.key();
                self.connections.insert(key, connection);
            }
        }
    }

    /// A client is gone: what it was waiting for alone ends with it.
    fn abandon(&mut self, key: u64) {
        for execution in self.executions.iter().filter(|execution| execution.waiting == key) {
            // Our unreaped child: the signal cannot reach anybody else.
            let _ = sys::signal_process(execution.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Listens to a container's child.
    fn hear(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(channel) = &container.channel else { return };
        let received = match channel::receive(channel.as_fd()) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(Some(received)) => received,
            Ok(None) | Err(_) => {
                container.channel = None;
                self.channel_ended(key);
                return;
            }
        };
        match received.message {
            Message::Console => {
                if let Some(master) = received.descriptor
                    && rustix::io::ioctl_fionbio(&master, true).is_ok()
                {
                    container.outputs.push(Output::new(master, Stream::Stdout));
                }
            }
            Message::Ready { user, home, warnings } => {
                container.record.user = user;
                container.home = home;
                container.record.warnings.extend(warnings);
                if let Stage::Creating { waiting, .. } = container.stage {
                    container.stage = Stage::Created;
                    let record = container.record.clone();
                    self.save(key);
                    self.answer(waiting, Ok(Reply::Created(record)));
                }
            }
            Message::Failed(told) => match &mut container.stage {
                Stage::Creating { failure, .. } | Stage::Starting { failure, .. } => {
                    *failure = Some(told);
                }
                _ => {}
            },
        }
    }

    /// The channel closes when the command is executed, and when the child dies.
    fn channel_ended(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Stage::Starting { waiting, failure: None } = container.stage {
            container.stage = Stage::Running;
            self.save(key);
            self.answer(waiting, Ok(Reply::Done));
        }
    }

    pub(super) fn answer(&mut self, connection: u64, answer: Answer) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.answer(&answer);
        }
    }

    /// Writes a container's record. A disk that fails loses the copy; the shim still knows.
    fn save(&mut self, key: u64) {
        if let Some(container) = self.containers.get_mut(&key)
            && let Err(error) = store::write(&self.directory, &container.record)
        {
            let warning = format!("write the container's record: {error}");
            if !container.record.warnings.contains(&warning) {
                container.record.warnings.push(warning);
            }
        }
    }

    /// Takes the exit status of every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let exit_code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            self.reaped(pid.as_raw_pid(), exit_code);
        }
    }

    fn reaped(&mut self, pid: i32, exit_code: i32) {
        if let Some(index) = self.executions.iter().position(|execution| execution.pid == pid) {
            self.act(Token::ExecutionChannel(index));
            let execution = self.executions.swap_remove(index);
            self.answer(execution.waiting, execution.answer(exit_code));
            return;
        }
        let of_pid = |container: &Container| container.is_alive() && container.record.pid == pid;
        let Some(key) = self.containers.iter().find(|(_, c)| of_pid(c)).map(|(key, _)| *key) else {
            return; // An orphan that came to the subreaper.
        };
        // What it said last may still be in the channel.
        while self.containers.get(&key).is_some_and(|c| c.channel.is_some()) {
            let before = self.heard(key);
            self.hear(key);
            if self.heard(key) == before {
                break;
            }
        }
        let creating =
            matches!(self.containers.get(&key).map(|c| &c.stage), Some(Stage::Creating { .. }));
        if creating {
            self.creation_failed(key);
        } else if let Some(container) = self.containers.get_mut(&key) {
            container.reaped(exit_code);
        }
    }

    /// A summary that changes with each message heard.
    fn heard(&self, key: u64) -> (bool, bool, usize) {
        self.containers.get(&key).map_or((false, false, 0), |container| {
            let failed = matches!(
                container.stage,
                Stage::Creating { failure: Some(_), .. } | Stage::Starting { failure: Some(_), .. }
            );
            (container.channel.is_some(), failed, container.outputs.len())
        })
    }

    fn creation_failed(&mut self, key: u64) {
        let Some(container) = self.containers.remove(&key) else { return };
        let Stage::Creating { waiting, failure: told } = container.stage else { return };
        let unknown = "the process ended while the container was made";
        let failure = told.unwrap_or_else(|| failure(FailureKind::Create, unknown));
        self.discard(container.cgroup);
        self.answer(waiting, Err(failure));
    }

    /// Kills and removes a cgroup, later if need be.
    pub(super) fn discard(&mut self, cgroup: Cgroup) {
        // An empty cgroup has nothing to kill.
        let _ = cgroup.kill();
        if !matches!(cgroup.remove(), Ok(Removal::Done)) {
            self.leftovers.push(Leftover {
                cgroup,
                since_ms: clock::monotonic_ms(),
                waiting: None,
            });
        }
    }

    /// Forgets an exited container, answering once its cgroup is gone.
    pub(super) fn retire(&mut self, connection: u64, id: &str) {
        let key = self.containers.iter().find(|(_, c)| c.record.id == id).map(|(key, _)| *key);
        if let Some(container) = key.and_then(|key| self.containers.remove(&key)) {
            let waiting = Some((connection, container.record.id));
            let since_ms = clock::monotonic_ms();
            self.clear(Leftover { cgroup: container.cgroup, since_ms, waiting }, since_ms);
        }
    }

    /// Advances what waits for time to pass.
    fn settle(&mut self) {
        let now = clock::monotonic_ms();
        for execution in &mut self.executions {
            if !execution.timed_out && execution.deadline_ms.is_some_and(|deadline| deadline <= now)
            {
                execution.timed_out = true;
                // Our unreaped child: the signal cannot reach anybody else.
                let _ = sys::signal_process(execution.pidfd.as_fd(), libc::SIGKILL);
            }
        }
        let keys: Vec<u64> = self.containers.keys().copied().collect();
        for key in keys {
            if self.containers.get_mut(&key).is_some_and(Container::is_drained) {
                self.exited(key);
            }
        }
        for leftover in std::mem::take(&mut self.leftovers) {
            self.clear(leftover, now);
        }
    }

    fn clear(&mut self, leftover: Leftover, now: u64) {
        let overdue = now.saturating_sub(leftover.since_ms) > REMOVAL_LIMIT_MS;
        let result = leftover.cgroup.remove();
        let answer: Answer = match result {
            Ok(Removal::Done) => Ok(Reply::Done),
            Ok(Removal::Busy) if !overdue => {
                self.leftovers.push(leftover);
                return;
            }
            Ok(Removal::Busy) => {
                Err(failure(FailureKind::Host, "the container's cgroup stays busy"))
            }
            Err(error) => Err(error.into_failure(FailureKind::Host)),
        };
        if let Some((connection, id)) = leftover.waiting {
            let forgotten = store::remove(&self.directory, &id);
            let answer = answer.and_then(|reply| match forgotten {
                Ok(()) => Ok(reply),
                Err(error) => {
                    Err(failure(FailureKind::Host, format!("forget container {id}: {error}")))
                }
            });
            self.answer(connection, answer);
        }
    }

    /// A container's end is complete: records it and tells everybody.
    fn exited(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Stage::Draining { exit, start_failure, .. } =
            std::mem::replace(&mut container.stage, Stage::Exited)
        else {
            return;
        };
        if container.log.dropped() > 0 {
            let warning =
                format!("{} log records were lost to a failing disk", container.log.dropped());
            container.record.warnings.push(warning);
        }
        container.record.state = ContainerPhase::Exited(exit.clone());
        let event = Event::Exited { id: container.record.id.clone(), exit };
        self.save(key);
        if let Some((waiting, told)) = start_failure {
            let exit_code = told.exit_code.or(Some(128));
            self.answer(waiting, Err(Failure { kind: FailureKind::Start, exit_code, ..told }));
        }
        let subscribed = |c: &&mut Connection| c.mode == Mode::Subscribed;
        for connection in self.connections.values_mut().filter(subscribed) {
            connection.send(&event);
        }
    }

    fn serve_requests(&mut self) {
        let keys: Vec<u64> = self.connections.keys().copied().collect();
        for key in keys {
            while let Some(request) =
                self.connections.get_mut(&key).and_then(Connection::next_request)
            {
                self.serve_request(key, request);
            }
        }
    }

    fn serve_request(&mut self, key: u64, request: Request) {
        let mode = match request {
            Request::Subscribe => Mode::Subscribed,
            _ => Mode::Busy,
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.mode = mode;
        }
        match request {
            Request::Subscribe => self.subscribe(key),
            Request::Shutdown => self.shut_down(key),
            _ if self.shutdown.is_some() => {
                self.answer(key, Err(failure(FailureKind::State, "the shim is shutting down")));
            }
            request => {
                if let Some(answer) = self.carry_out(key, request) {
                    self.answer(key, answer);
                }
            }
        }
    }

    fn subscribe(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        for container in self.containers.values() {
            if let ContainerPhase::Exited(exit) = &container.record.state {
                let id = container.record.id.clone();
                connection.send(&Event::Exited { id, exit: exit.clone() });
            }
        }
    }

    fn shut_down(&mut self, key: u64) {
        self.shutdown.get_or_insert_default().push(key);
        for container in self.containers.values().filter(|container| container.is_alive()) {
            // The first process is our unreaped child; the rest of the cgroup follows when it ends.
            let _ = sys::signal_process(container.pidfd.as_fd(), libc::SIGKILL);
            let _ = container.cgroup.kill();
        }
    }

    /// Whether a shutdown has nothing left to wait for.
    fn is_finished(&mut self) -> bool {
        if self.shutdown.is_none() {
            return false;
        }
        let ended = self.containers.values().all(|c| matches!(c.stage, Stage::Exited));
        if ended && !self.containers.is_empty() {
            let since_ms = clock::monotonic_ms();
            for (_, container) in std::mem::take(&mut self.containers) {
                self.leftovers.push(Leftover { cgroup: container.cgroup, since_ms, waiting: None });
            }
            self.settle();
        }
        ended && self.leftovers.is_empty() && self.executions.is_empty()
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(sandbox) = self.sandbox.take() {
            sandbox.release();
        }
        // A socket that is gone already is what is wanted.
        let _ = std::fs::remove_file(self.directory.join("shim.sock"));
        for key in self.shutdown.take().unwrap_or_default() {
            self.answer(key, Ok(Reply::Done));
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.flush_finally();
            }
        }
        Ok(())
    }
}
