//! `kill`: a signal to a container's first process, or to all of its processes.

use std::os::fd::AsFd;

use lexopt::Parser;

use super::arguments::{self, switch};
use super::error::During;
use super::id::Id;
use super::record::Init;
use super::{Context, Error, Result, signal};
use crate::cgroup::Cgroup;
use crate::sys;

pub(super) const USAGE: &str = "kill [--all] ID [SIGNAL]";

/// Sends a signal, SIGTERM unless another is named.
pub(super) fn kill(context: &Context, parser: &mut Parser) -> Result<u8> {
    let mut all = false;
    let values = arguments::collect(parser, |flag, parser| {
        match flag {
            "a" | "all" => all = switch(parser)?,
            _ => return Err(arguments::unknown(flag)),
        }
        Ok(())
    })?;
    let (id, signal) = match values.as_slice() {
        [id] => (id, libc::SIGTERM),
        [id, signal] => (id, signal::parse(&signal.to_string_lossy())?),
        _ => return Err(Error::Usage("a container ID and at most a signal are needed".to_owned())),
    };
    let record = context.store.entry(&Id::parse(&id.to_string_lossy())?).load()?;
    if !record.cgroup_made {
        return Err(not_running());
    }
    let init = record.init.and_then(Init::open);
    // Without a PID namespace of its own its other processes outlive the first.
    let everybody = all || (signal == libc::SIGKILL && !record.own_pid_namespace);
    if everybody {
        let cgroup = Cgroup::open(&record.cgroup);
        return match cgroup {
            Ok(cgroup) => Ok(cgroup.signal(signal).map(|()| 0)?),
            // With its cgroup all of its processes are gone.
            Err(_) if all => Ok(0),
            Err(_) => Err(not_running()),
        };
    }
    let Some(init) = init else { return Err(not_running()) };
    match sys::signal_process(init.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(not_running()),
        result => result.during(|| format!("signal container {}", record.id)).map(|()| 0),
    }
}

fn not_running() -> Error {
    Error::State("container not running".to_owned())
}
