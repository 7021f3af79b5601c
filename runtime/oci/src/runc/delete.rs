//! `delete`: removes what is left of a container: its processes, its cgroup, its directory.

use std::os::fd::AsFd;

use lexopt::Parser;

use super::arguments::{self, switch};
use super::record::{Init, Record, Status};
use super::store::Held;
use super::{Context, Error, Result};
use crate::cgroup::Cgroup;
use crate::{clock, sys};

pub(super) const USAGE: &str = "delete [--force] ID";

/// How long killed processes may take to end.
const END_LIMIT_MS: u64 = 10_000;

/// Deletes a container that has stopped or was never started; with `--force`, any.
pub(super) fn delete(context: &Context, parser: &mut Parser) -> Result<u8> {
    let mut force = false;
    let values = arguments::collect(parser, |flag, parser| {
        match flag {
            "f" | "force" => force = switch(parser)?,
            _ => return Err(arguments::unknown(flag)),
        }
        Ok(())
    })?;
    let id = arguments::only_id(&values)?;
    let entry = context.store.entry(&id);
    match entry.load() {
        // A command that hangs while it makes the container holds it until that is dead.
        Ok(record) if force => end(&record),
        Ok(_) | Err(_) => {}
    }
    let held = match entry.hold() {
        Err(Error::NotFound) if force => return Ok(0),
        held => held?,
    };
    let record = match held.entry().load() {
        Ok(record) => record,
        // Its making was interrupted before anything else was made.
        Err(Error::NotFound) => {
            held.remove()?;
            return if force { Ok(0) } else { Err(Error::NotFound) };
        }
        Err(error) if !force => return Err(error),
        Err(error) => {
            context.journal.say(super::Level::Warning, &error.chain());
            held.remove()?;
            return Ok(0);
        }
    };
    match record.status(held.entry()) {
        Status::Stopped | Status::Created => {}
        _ if force => {}
        status => {
            let reason =
                format!("cannot delete container {id} that is not stopped: {}", status.name());
            return Err(Error::State(reason));
        }
    }
    destroy(held, &record)?;
    context.journal.trace(|| format!("removed container {id}"));
    record.run_poststop(&context.journal);
    Ok(0)
}

/// Kills a container's processes without waiting for their end.
fn end(record: &Record) {
    if let Some(init) = record.init.and_then(Init::open) {
        // It may have ended meanwhile.
        let _ = sys::signal_process(init.as_fd(), libc::SIGKILL);
    }
    if record.cgroup_made
        && let Ok(cgroup) = Cgroup::open(&record.cgroup)
    {
        // Whatever remains is found when the cgroup is removed.
        let _ = cgroup.kill();
    }
}

/// Removes all that a container is made of. When that fails its directory stays, for another try.
pub(super) fn destroy(held: Held, record: &Record) -> Result<()> {
    let deadline = clock::monotonic_ms() + END_LIMIT_MS;
    end(record);
    if record.cgroup_made
        && let Some(cgroup) = Cgroup::find(&record.cgroup)?
    {
        cgroup.destroy(deadline)?;
    }
    held.remove()
}
