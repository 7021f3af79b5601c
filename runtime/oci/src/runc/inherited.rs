//! Descriptors that the caller passes on to the container: those of `LISTEN_FDS`, then those of
//! `--preserve-fds`. They keep their numbers, from 3 on. sd_listen_fds(3).

use std::env;

use super::{Error, Result};
use crate::sys;

const FIRST: i32 = 3;
/// More than any process may have open.
const LIMIT: u32 = 1 << 20;

/// How many sockets a service manager passes to this very process.
fn listening() -> u32 {
    let for_us = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let count = env::var("LISTEN_FDS").ok().filter(|_| for_us);
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// What the container's process is told of them.
pub(super) fn variables() -> Vec<String> {
    let count = listening();
    if count == 0 {
        return Vec::new();
    }
    let mut variables = vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()];
    variables
        .extend(env::var("LISTEN_FDNAMES").ok().map(|names| format!("LISTEN_FDNAMES={names}")));
    variables
}

/// How many are passed on in all; each must be open, and be the caller's and not our own.
pub(super) fn checked_count(preserved: u32) -> Result<u32> {
    let count = preserved.saturating_add(listening());
    let limit = |count: &u32| *count <= LIMIT;
    let last = Some(count).filter(limit).and_then(|count| i32::try_from(count).ok());
    let Some(last) = last else {
        return Err(Error::Usage(format!("--preserve-fds: {preserved} is too large")));
    };
    match (FIRST..FIRST + last).find(|number| !sys::is_inherited(*number)) {
        Some(number) => {
            Err(Error::Usage(format!("--preserve-fds: descriptor {number} is not open")))
        }
        None => Ok(count),
    }
}
