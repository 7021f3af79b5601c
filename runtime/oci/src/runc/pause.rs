//! `pause` and `resume`: all processes of a container stopped where they are, and let go on.

use lexopt::Parser;

use super::record::Status;
use super::{Context, Error, Result, arguments};
use crate::cgroup::Cgroup;
use crate::clock;

pub(super) const USAGE: &str = "pause ID";
pub(super) const RESUME_USAGE: &str = "resume ID";

/// What processes have to stop in; one in an uninterruptible sleep stops when it wakes. runc's.
const PATIENCE_MS: u64 = 10_000;

/// Stops a container's processes and waits until they have. On failure they go on.
pub(super) fn pause(context: &Context, parser: &mut Parser) -> Result<u8> {
    let (status, cgroup) = open(context, parser)?;
    match status {
        Status::Running | Status::Created => {
            cgroup()?.freeze(clock::monotonic_ms() + PATIENCE_MS)?;
            Ok(0)
        }
        other => {
            let name = other.name();
            Err(Error::State(format!("container not running or created: {name}")))
        }
    }
}

/// Lets a paused container's processes go on.
pub(super) fn resume(context: &Context, parser: &mut Parser) -> Result<u8> {
    match open(context, parser)? {
        (Status::Paused, cgroup) => {
            cgroup()?.thaw()?;
            Ok(0)
        }
        _ => Err(Error::State("container not paused".to_owned())),
    }
}

/// The status of the container that the arguments name, and a way to its cgroup.
fn open(
    context: &Context,
    parser: &mut Parser,
) -> Result<(Status, impl FnOnce() -> Result<Cgroup>)> {
    let values = arguments::collect(parser, |flag, _| Err(arguments::unknown(flag)))?;
    let held = context.store.entry(&arguments::only_id(&values)?).hold()?;
    let record = held.entry().load()?;
    let status = record.status(held.entry());
    // Held until the cgroup has been dealt with.
    Ok((status, move || {
        let cgroup = Cgroup::open(&record.cgroup);
        drop(held);
        Ok(cgroup?)
    }))
}
