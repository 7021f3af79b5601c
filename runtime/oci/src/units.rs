//! Units of systemd for pods: slices that hold limits, and one scope a pod, whose inside is the agent's.
//!
//! ```text
//! kubepods.slice / kubepods-burstable.slice / kubepods-burstable-pod<uid>.slice    limits: properties
//!                                               └─ <scope>, Delegate=yes            no limits
//!                                                    ├─ shim                        the pod's shim
//!                                                    └─ <container>                 files, as ever
//! ```
//! What systemd has started it writes anew whenever it likes (`daemon-reload`), so limits of slices are
//! its own properties; below a delegated scope it writes nothing. The same client as of the runtime's
//! scopes, over systemd's own socket as a rule: it needs no bus. A connection is made for each operation,
//! so that one that was lost (`daemon-reexec`) is lost once.
//!
//! All operations block: for milliseconds as a rule, for half a minute where systemd does not answer.
//! systemd 244. systemd "Control Group APIs and Delegation", systemd.resource-control(5).

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::place::{self, Unit};
use crate::cgroup::systemd::{self, Manager, Property};
use crate::clock;
use crate::container;
use crate::dbus::{self, Value};

/// How long systemd may be away while it executes itself anew.
const AWAY_MS: u64 = 5_000;
/// How often it is looked for then.
const PAUSE: Duration = Duration::from_millis(50);
/// What whoever stops a scope by hand waits for: the shim ends by SIGKILL alone.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Why systemd did not do something.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(container::Error);

/// A file of a cgroup, and what it is to hold.
pub type File = (String, String);

/// Whether systemd runs this host (`sd_booted(3)`).
pub fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The cgroup of a slice, relative to the hierarchy's root; `None` where the name is none of a slice.
pub fn directory(slice: &str) -> Option<PathBuf> {
    place::expand(slice).ok().filter(|path| path.file_name().is_some())
}

/// Starts a slice with limits; one that runs is held to them. Returns the files that systemd has no
/// property for: those the caller writes. Idempotent.
///
/// # Errors
/// When systemd refuses or does not answer, or a value is none.
pub fn start_slice(name: &str, limits: &[File]) -> Result<Vec<String>, Error> {
    let (properties, rest) = systemd::of_files(limits).map_err(Error)?;
    ask(|manager| manager.start_slice(name, &properties))?;
    Ok(rest)
}

/// Changes limits of a slice that runs. Returns the files that systemd has no property for.
///
/// # Errors
/// As [`start_slice`]; a slice that does not run is refused.
pub fn limit_slice(name: &str, limits: &[File]) -> Result<Vec<String>, Error> {
    let (properties, rest) = systemd::of_files(limits).map_err(Error)?;
    if !properties.is_empty() {
        ask(|manager| manager.set_properties(name, &properties))?;
    }
    Ok(rest)
}

/// Starts a delegated scope in a slice that runs, and moves process `pid` into it. A unit of this name
/// that is left from before is stopped first, unless it has the process. Idempotent.
///
/// # Errors
/// As [`start_slice`].
pub fn start_scope(name: &str, slice: &str, pid: i32) -> Result<(), Error> {
    let unit = Unit { name: name.to_owned(), slice: slice.to_owned() };
    let properties = scope_properties(name);
    ask(|manager| {
        if holds(name, pid) {
            return Ok(());
        }
        match manager.start_scope(&unit, pid, &properties) {
            Err(error) if exists(&error) => {
                manager.stop(name)?;
                manager.start_scope(&unit, pid, &properties)
            }
            outcome => outcome,
        }
    })
}

/// Stops a unit, of a slice with all that is in it; one that is gone is stopped.
///
/// # Errors
/// As [`start_slice`].
pub fn stop(name: &str) -> Result<(), Error> {
    ask(|manager| manager.stop(name))
}

/// What a pod's scope has of its own. It holds nothing: the slice around it does. Without
/// accounting of its memory systemd does not watch it for processes that were killed for want of memory,
/// which would be its reason to end all containers for one; the controller is on, being delegated.
fn scope_properties(name: &str) -> Vec<Property> {
    let patience = u64::try_from(STOP_PATIENCE.as_micros()).unwrap_or(u64::MAX);
    vec![
        ("Description".to_owned(), Value::Text(format!("berth pod {name}"))),
        ("MemoryAccounting".to_owned(), Value::Boolean(false)),
        ("TasksMax".to_owned(), Value::Uint64(u64::MAX)),
        ("TimeoutStopUSec".to_owned(), Value::Uint64(patience)),
    ]
}

/// Whether a process is in the cgroup of a unit, or below it.
fn holds(unit: &str, pid: i32) -> bool {
    let list = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = place::of_process(Path::new("/"), &list).unwrap_or_default();
    path.components().any(|part| part.as_os_str() == unit)
}

/// Does something over a new connection, and over another while systemd comes back.
fn ask<T>(operation: impl Fn(&mut Manager) -> container::Result<T>) -> Result<T, Error> {
    let last_ms = clock::monotonic_ms() + AWAY_MS;
    loop {
        let outcome = Manager::connect().and_then(|mut manager| operation(&mut manager));
        match outcome {
            Err(error) if is_away(&error) && clock::monotonic_ms() < last_ms => {
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome.map_err(Error),
        }
    }
}

/// Whether systemd was gone, as it is for a moment while it executes itself anew.
fn is_away(error: &container::Error) -> bool {
    const GONE: [&str; 4] = [
        "org.freedesktop.DBus.Error.Disconnected",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
        "org.freedesktop.DBus.Error.NoReply",
        "org.freedesktop.DBus.Error.ServiceUnknown",
    ];
    match error {
        container::Error::Bus { source, .. } => match source {
            dbus::Error::Closed | dbus::Error::Socket { .. } => true,
            refused => GONE.iter().any(|name| refused.is(name)),
        },
        _ => false,
    }
}

fn exists(error: &container::Error) -> bool {
    let name = systemd::UNIT_EXISTS;
    matches!(error, container::Error::Bus { source, .. } if source.is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus(source: dbus::Error) -> container::Error {
        container::Error::Bus { operation: "x".to_owned(), source }
    }

    fn refused(name: &str) -> container::Error {
        bus(dbus::Error::Refused { name: name.to_owned(), text: String::new() })
    }

    #[test]
    fn a_slices_directory_is_inside_of_those_that_its_name_begins_with() {
        for (slice, expected) in [
            ("kubepods.slice", Some("kubepods.slice")),
            ("kubepods-a_b.slice", Some("kubepods.slice/kubepods-a_b.slice")),
            ("kubepods", None),
            ("a/b.slice", None),
            ("-.slice", None),
        ] {
            assert_eq!(directory(slice), expected.map(PathBuf::from), "{slice}");
        }
    }

    #[test]
    fn a_lost_connection_is_made_again_and_silence_is_an_error() {
        assert!(is_away(&bus(dbus::Error::Closed)));
        assert!(is_away(&refused("org.freedesktop.DBus.Error.NameHasNoOwner")));
        assert!(!is_away(&bus(dbus::Error::Deadline("receive"))));
        assert!(!is_away(&refused("org.freedesktop.DBus.Error.InvalidArgs")));
        assert!(exists(&refused("org.freedesktop.systemd1.UnitExists")));
        assert!(!exists(&bus(dbus::Error::Closed)));
    }

    #[test]
    fn a_pods_scope_limits_nothing_itself() {
        let properties = scope_properties("berth-1.scope");
        let value = |name: &str| properties.iter().find(|(one, _)| one == name).map(|(_, v)| v);
        assert_eq!(value("TasksMax"), Some(&Value::Uint64(u64::MAX)));
        assert_eq!(value("MemoryAccounting"), Some(&Value::Boolean(false)));
        assert_eq!(value("TimeoutStopUSec"), Some(&Value::Uint64(20_000_000)));
    }
}
