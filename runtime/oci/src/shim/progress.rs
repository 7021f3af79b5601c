//! What happens to containers and executions over time: what children say, how they end, what waits.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::WaitOptions;

use super::connection::{Connection, Mode};
use super::container::{Container, Output, Stage};
use super::execution::{Ended, Execution};
use super::requests::failure;
use super::server::{Leftover, Server};
use super::store;
use crate::cgroup::{Cgroup, Removal};
use crate::clock;
use crate::container::channel::{self, Message};
use crate::log::Stream;
use crate::protocol::{Answer, ContainerPhase, Event, Failure, FailureKind, Reply};

const REMOVAL_LIMIT_MS: u64 = 10_000;
/// How often the loss of log records is told.
const LOSS_INTERVAL_MS: u64 = 1_000;
/// How long opening a log anew may take.
const REOPEN_LIMIT_MS: u64 = 10_000;

impl Server {
    /// A client is gone: what it was waiting for alone ends with it.
    pub(super) fn abandon(&mut self, key: u64) {
        let waiting = |execution: &&mut Execution| execution.waiting == key;
        for execution in self.executions.iter_mut().filter(waiting) {
            if execution.ends_with_client() {
                execution.process.kill();
            }
        }
        for container in self.containers.values_mut() {
            container.attachments.retain(|attachment| attachment.connection != key);
        }
    }

    /// Listens to a container's child.
    pub(super) fn hear(&mut self, key: u64) {
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
                container.adopt();
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
            // Answered while the child was made, or asked of the command line alone.
            Message::Mappings
            | Message::Child
            | Message::Hooks
            | Message::Interfaces
            | Message::Ids { .. } => {}
            Message::Failed(told) => match &mut container.stage {
                Stage::Creating { failure, .. } | Stage::Starting { failure, .. } => {
                    *failure = Some(told);
                }
                _ => {}
            },
        }
    }

    /// The channel closes when the command is executed, and when the child dies.
    pub(super) fn channel_ended(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Stage::Starting { waiting, failure: None } = container.stage {
            container.stage = Stage::Running;
            let reply = match container.record.state {
                ContainerPhase::Running { started_at } => Reply::Started { started_at },
                _ => Reply::Done,
            };
            self.save(key);
            self.answer(waiting, Ok(reply));
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
    pub(super) fn reap(&mut self) {
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
        if self.logs.reaped(pid) {
            return;
        }
        let mut ends = self.executions.iter_mut().map(|execution| execution.process.ended(pid));
        let found = ends.by_ref().enumerate().find(|(_, ended)| *ended != Ended::Other);
        if let Some((_, Ended::Stage)) = found {
            return;
        }
        if let Some((index, _)) = found {
            // What it said last may still be in the channel: a terminal, a failure, the end.
            for _ in 0..4 {
                self.hear_execution(index);
            }
            self.open_session(index);
            let execution = self.executions.swap_remove(index);
            let (waiting, once) = (execution.waiting, execution.once().cloned());
            let answer = execution.answer(exit_code);
            if let Some(once) = once
                && let Err(error) = store::keep_result(&self.directory, &once, &answer)
                && let Some(container) = self.find(&once.container)
            {
                let warning = format!("keep the result of execution {}: {error}", once.name);
                container.record.warnings.push(warning);
            }
            self.answer(waiting, answer);
            return;
        }
        // Siblings of a stage end as they like, before it is heard of them too.
        self.containers.values_mut().for_each(Container::adopt);
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

    /// Listens to an execution's child.
    pub(super) fn hear_execution(&mut self, index: usize) {
        let Some(execution) = self.executions.get_mut(index) else { return };
        let Some(channel) = &execution.channel else { return };
        let received = match channel::receive(channel.as_fd()) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(Some(received)) => received,
            Ok(None) | Err(_) => {
                execution.channel = None;
                self.open_session(index);
                return;
            }
        };
        match (received.message, received.descriptor) {
            (Message::Failed(failure), _) => execution.failure = Some(failure),
            (Message::Console, Some(master)) => execution.take_terminal(&master),
            (Message::Console, None)
            | (
                Message::Ready { .. }
                | Message::Mappings
                | Message::Child
                | Message::Hooks
                | Message::Interfaces
                | Message::Ids { .. },
                _,
            ) => {}
        }
    }

    /// Gives a session's streams away once its command was executed.
    fn open_session(&mut self, index: usize) {
        let Some(execution) = self.executions.get_mut(index) else { return };
        if let Some((answer, descriptors)) = execution.opening()
            && let Some(connection) = self.connections.get_mut(&execution.waiting)
        {
            connection.open(&answer, &descriptors);
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
        self.logs.close(container.log, clock::monotonic_ms());
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
    pub(super) fn settle(&mut self) {
        let now = clock::monotonic_ms();
        self.logs.advance(now);
        for execution in &mut self.executions {
            if !execution.timed_out && execution.deadline_ms.is_some_and(|deadline| deadline <= now)
            {
                execution.timed_out = true;
                execution.process.kill();
            }
        }
        let keys: Vec<u64> = self.containers.keys().copied().collect();
        for key in keys {
            if let Some(container) = self.containers.get_mut(&key) {
                container.advance_taps(now);
            }
            let Some(container) = self.containers.get_mut(&key) else { continue };
            if container.is_drained(&mut self.logs) {
                self.exited(key);
            } else {
                self.tell_log_loss(key, now);
            }
        }
        self.answer_reopened(now);
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

    /// Tells that a log lacks records, at most once a second.
    fn tell_log_loss(&mut self, key: u64, now: u64) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let records = self.logs.lost(container.log);
        let due = now.saturating_sub(container.log_loss_told_ms) >= LOSS_INTERVAL_MS;
        if !due || records <= container.record.lost_log_records {
            return;
        }
        container.record.lost_log_records = records;
        container.log_loss_told_ms = now;
        let event = Event::LogLost { id: container.record.id.clone(), records };
        for connection in self.connections.values_mut() {
            if connection.mode == (Mode::Subscribed { log_losses: true }) {
                connection.send(&event);
            }
        }
    }

    /// Answers those whose log has been opened anew.
    fn answer_reopened(&mut self, now: u64) {
        for (connection, log, since) in std::mem::take(&mut self.reopening) {
            if self.logs.is_synced(log) {
                self.answer(connection, Ok(Reply::Done));
            } else if now.saturating_sub(since) > REOPEN_LIMIT_MS {
                let message = "the log's disk does not answer";
                self.answer(connection, Err(failure(FailureKind::Host, message)));
            } else {
                self.reopening.push((connection, log, since));
            }
        }
    }

    /// A container's end is complete: records it and tells everybody.
    fn exited(&mut self, key: u64) {
        self.tell_log_loss(key, u64::MAX);
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Stage::Draining { exit, start_failure, .. } =
            std::mem::replace(&mut container.stage, Stage::Exited)
        else {
            return;
        };
        if container.record.lost_log_records > 0 {
            let lost = container.record.lost_log_records;
            container.record.warnings.push(format!("{lost} log records were lost to the disk"));
        }
        if !self.logs.is_synced(container.log) {
            let warning = "the log was not wholly on disk when the container ended";
            container.record.warnings.push(warning.to_owned());
        }
        self.logs.close(container.log, clock::monotonic_ms());
        container.record.state = ContainerPhase::Exited(exit.clone());
        let attachments = std::mem::take(&mut container.attachments);
        let exit_code = exit.exit_code;
        let event = Event::Exited { id: container.record.id.clone(), exit };
        self.save(key);
        for attachment in attachments {
            let dropped_bytes = attachment.dropped_bytes();
            self.answer(attachment.connection, Ok(Reply::Ended { exit_code, dropped_bytes }));
        }
        if let Some((waiting, told)) = start_failure {
            let exit_code = told.exit_code.or(Some(128));
            self.answer(waiting, Err(Failure { kind: FailureKind::Start, exit_code, ..told }));
        }
        let subscribed = |c: &&mut Connection| matches!(c.mode, Mode::Subscribed { .. });
        for connection in self.connections.values_mut().filter(subscribed) {
            connection.send(&event);
        }
    }
}
