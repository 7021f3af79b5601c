//! `start`: lets a created container's first process run its command.

use std::os::fd::{AsFd, BorrowedFd};

use lexopt::Parser;
use rustix::io::Errno;

use super::error::During;
use super::readiness::{Manager, Proxy};
use super::record::Status;
use super::{Context, Error, Result, arguments};
use crate::container::channel::{self, Message, Received};

pub(super) const USAGE: &str = "start ID";

/// Starts a container. Fails when its command cannot be executed.
pub(super) fn start(context: &Context, parser: &mut Parser) -> Result<u8> {
    let values = arguments::collect(parser, |flag, _| Err(arguments::unknown(flag)))?;
    let entry = context.store.entry(&arguments::only_id(&values)?);
    // Unknown and half-made containers are told from those that another command holds.
    entry.load()?;
    let held = entry.hold()?;
    let entry = held.entry();
    let record = entry.load()?;
    match record.status(entry) {
        Status::Created => {}
        Status::Stopped | Status::Creating => {
            return Err(Error::State("cannot start a container that has stopped".to_owned()));
        }
        Status::Running | Status::Paused => {
            return Err(Error::State("cannot start an already running container".to_owned()));
        }
    }
    let proxy = Manager::named()?.map(|manager| Proxy::make(manager, entry)).transpose()?;
    let connection = entry.connect();
    held.started();
    let connection = match connection {
        // Nobody listens: it has been started by a command that could not say so any more.
        Err(Errno::CONNREFUSED) => {
            return Err(Error::State("cannot start an already running container".to_owned()));
        }
        connection => connection.during(|| "reach the container's first process")?,
    };
    if let Err(error) = executed(&connection) {
        record.await_end();
        return Err(error);
    }
    context.journal.trace(|| "the first process executes its command".to_owned());
    record.run_poststart()?;
    // Others may change it from now on.
    drop(held);
    if let (Some(proxy), Some(init)) = (proxy, record.init)
        && let Some(pidfd) = init.open()
    {
        proxy.attend(init.pid, pidfd.as_fd(), &context.journal)?;
    }
    Ok(0)
}

/// Waits until the process has executed its command, or says why it cannot.
pub(super) fn executed(connection: &impl AsFd) -> Result<()> {
    while let Some(received) = hear(connection.as_fd())? {
        if let Message::Failed(failure) = received.message {
            return Err(Error::Process(failure));
        }
    }
    Ok(())
}

/// The next message of a container's process; nothing once it has closed its end.
pub(super) fn hear(connection: BorrowedFd<'_>) -> Result<Option<Received>> {
    match channel::wait(connection) {
        // It ended with something unread.
        Err(Errno::CONNRESET) => Ok(None),
        received => received.during(|| "hear from the container's process"),
    }
}
