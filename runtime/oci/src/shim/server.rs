//! The shim's loop: polls what is open, acts on what is ready, answers what is done.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;

use oci_spec::runtime::LinuxSeccomp;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::attachment::Tap;
use super::connection::{Connection, Mode};
use super::container::{Container, Stage};
use super::execution::Execution;
use super::requests::failure;
use super::sandbox::Sandbox;
use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::{Doing, Result};
use crate::log;
use crate::protocol::{
    Answer, ContainerPhase, Event, Failure, FailureKind, Reply, Request, ShimConfig,
};
use crate::seccomp::Program;
use crate::sys;

const RETRY_MS: u64 = 2;
const REOPEN_CHECK_MS: u64 = 100;
/// Each session holds one.
const MAX_CONNECTIONS: usize = 400;

/// What became ready.
#[derive(Debug, Clone, Copy)]
pub(super) enum Token {
    Signal,
    Listener,
    Connection(u64),
    Channel(u64),
    Output(u64, usize),
    Taps(u64),
    Logs,
    ExecutionChannel(usize),
    Capture(usize, usize),
}

/// A cgroup to be removed once it is empty.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) cgroup: Cgroup,
    pub(super) since_ms: u64,
    /// Whom to tell, and the container whose record goes with it.
    pub(super) waiting: Option<(u64, String)>,
}

/// The shim's state.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) directory: PathBuf,
    pub(super) config: ShimConfig,
    sandbox: Option<Sandbox>,
    listener: UnixListener,
    signals: OwnedFd,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) containers: BTreeMap<u64, Container>,
    pub(super) executions: Vec<Execution>,
    pub(super) filters: Vec<(LinuxSeccomp, Rc<Program>)>,
    pub(super) leftovers: Vec<Leftover>,
    pub(super) logs: log::Link,
    /// Who waits for a log to be opened anew: connection, log, since when.
    pub(super) reopening: Vec<(u64, log::Key, u64)>,
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
        let logs = log::Link::new(sandbox.birthplace()?);
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
            logs,
            reopening: Vec::new(),
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
        if let Some((socket, has_backlog)) = self.logs.polled() {
            let flags = if has_backlog { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            tokens.push(Token::Logs);
            fds.push(PollFd::from_borrowed_fd(socket, flags));
        }
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
            let readable = container.readable_outputs().filter(|_| !self.logs.is_holding());
            for (index, output) in readable {
                tokens.push(Token::Output(*key, index));
                fds.push(PollFd::from_borrowed_fd(output.fd.as_fd(), PollFlags::IN));
            }
            let taps = container.attachments.iter().flat_map(|attachment| &attachment.taps);
            for tap in taps.filter(|tap| tap.is_holding()) {
                tokens.push(Token::Taps(*key));
                fds.push(PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::OUT));
            }
        }
        for (index, execution) in self.executions.iter().enumerate() {
            if let Some(channel) = &execution.channel {
                tokens.push(Token::ExecutionChannel(index));
                fds.push(PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN));
            }
            for (stream, fd) in execution.open_captures() {
                tokens.push(Token::Capture(index, stream));
                fds.push(PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
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
        let retry = retry.or((!self.reopening.is_empty()).then_some(REOPEN_CHECK_MS));
        let deadlines =
            self.executions.iter().filter(|e| !e.timed_out).filter_map(|e| e.deadline_ms);
        let taps = self.containers.values().flat_map(|container| &container.attachments);
        let taps = taps.flat_map(|attachment| &attachment.taps).filter_map(Tap::deadline_ms);
        let until = deadlines
            .chain(taps)
            .chain(self.logs.deadline_ms())
            .map(|deadline| deadline.saturating_sub(now))
            .chain(retry)
            .min()?;
        Some(Timespec {
            tv_sec: i64::try_from(until / 1000).unwrap_or(i64::MAX),
            tv_nsec: (until % 1000 * 1_000_000) as i64,
        })
    }

    pub(super) fn act(&mut self, token: Token) {
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
                    container.read_output(index, &mut self.logs);
                }
            }
            Token::Taps(key) => {
                let now = clock::monotonic_ms();
                if let Some(container) = self.containers.get_mut(&key) {
                    container.advance_taps(now);
                }
            }
            Token::Logs => self.logs.advance(clock::monotonic_ms()),
            Token::ExecutionChannel(index) => self.hear_execution(index),
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

    pub(super) fn answer(&mut self, connection: u64, answer: Answer) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.answer(&answer);
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

    fn serve_request(&mut self, key: u64, request: Result<Request, Failure>) {
        let mode = match request {
            Ok(Request::Subscribe { log_losses }) => Mode::Subscribed { log_losses },
            _ => Mode::Busy,
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.mode = mode;
        }
        match request {
            Ok(Request::Subscribe { .. }) => self.subscribe(key),
            Ok(Request::Shutdown) => self.shut_down(key),
            Err(failure) => self.answer(key, Err(failure)),
            _ if self.shutdown.is_some() => {
                self.answer(key, Err(failure(FailureKind::State, "the shim is shutting down")));
            }
            Ok(request) => {
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
        let logs = std::mem::replace(&mut self.logs, log::Link::new(None));
        logs.finish();
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
