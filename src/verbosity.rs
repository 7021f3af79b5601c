//! How much the agent says: a filter that can be replaced while it runs, and upstream's numbers for it.

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    /// Whether the command line says what is logged.
    is_said: bool,
}

/// Logs to standard error what a filter lets through: the one that was given, or the usual one.
///
/// # Errors
/// When the filter is not understood.
pub(crate) fn begin(given: Option<&str>, usual: &str) -> Result<()> {
    let filter = EnvFilter::try_new(given.unwrap_or(usual)).context("--log")?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
    // There is one process, and it begins once.
    let _ = LOG.set(Log { filter: handle, is_said: given.is_some() });
    Ok(())
}

/// The filter of one of klog's levels: changes of state, from 4 on what is decided, from 8 on everything.
pub(crate) fn filter(level: u32) -> &'static str {
    match level {
        0..=3 => "info",
        4..=7 => "debug",
        _ => "trace",
    }
}

/// Replaces the filter by that of a level.
///
/// # Errors
/// When nothing is logged.
pub(crate) fn set(level: u32) -> Result<(), String> {
    let log = LOG.get().ok_or("nothing is logged")?;
    log.filter.reload(EnvFilter::new(filter(level))).map_err(|error| error.to_string())
}

/// Takes the level of a configuration, which gives way to the command line.
///
/// # Errors
/// When nothing is logged.
pub(crate) fn configure(level: u32) -> Result<(), String> {
    match level == 0 || LOG.get().is_some_and(|log| log.is_said) {
        true => Ok(()),
        false => set(level),
    }
}
