//! Scopes and slices of systemd: asked for, changed and stopped over D-Bus, each call with a deadline.
//!
//! What becomes of limits is in [`properties`], of annotations in [`annotations`]. Limits that systemd
//! has no property for are written as files into the delegated cgroup, by the same code as under the
//! cgroupfs driver. systemd 244. org.freedesktop.systemd1(5), systemd "Control Group APIs and
//! Delegation".

pub(super) mod annotations;
mod properties;

use std::path::Path;

pub(crate) use self::properties::of_files;
use super::limits::Setting;
use super::place::Unit;
use crate::clock;
use crate::container::{Error, Result};
use crate::dbus::{self, Connection, Method, Signal, Value};

/// A unit's property.
pub(crate) type Property = (String, Value);

/// What systemd has to begin and end a job in; runc's.
const PATIENCE_MS: u64 = 30_000;

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(crate) const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// systemd's own socket, for root alone: no bus between, and none needed.
const PRIVATE_SOCKET: &str = "/run/systemd/private";
const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";

/// A connection to systemd.
#[derive(Debug)]
pub(crate) struct Manager {
    connection: Connection,
    /// systemd's unique name where a bus is between: on a bus anybody may send signals.
    owner: Option<String>,
}

type Answer<T> = std::result::Result<T, dbus::Error>;

fn doing<T>(result: Answer<T>, operation: impl FnOnce() -> String) -> Result<T> {
    result.map_err(|source| Error::Bus { operation: operation(), source })
}

fn deadline() -> u64 {
    clock::monotonic_ms() + PATIENCE_MS
}

impl Manager {
    pub(crate) fn connect() -> Result<Self> {
        let result = match Connection::open(Path::new(PRIVATE_SOCKET), deadline()) {
            Ok(connection) => Ok(Self { connection, owner: None }),
            // Over the bus it would not answer either.
            Err(error @ dbus::Error::Deadline(_)) => Err(error),
            Err(_) => Self::connect_to_bus(),
        };
        doing(result, || "connect to systemd".to_owned())
    }

    fn connect_to_bus() -> Answer<Self> {
        let deadline = deadline();
        let mut connection = Connection::open(Path::new(BUS_SOCKET), deadline)?;
        connection.hello(deadline)?;
        let rule = format!(
            "type='signal',sender='{NAME}',path='{PATH}',interface='{MANAGER}',member='JobRemoved'"
        );
        connection.add_match(&rule, deadline)?;
        let owner = connection.owner_of(NAME, deadline)?;
        let mut manager = Self { connection, owner: Some(owner) };
        manager.call("Subscribe", &[], deadline)?;
        Ok(manager)
    }

    fn call(&mut self, member: &str, arguments: &[Value], deadline: u64) -> Answer<Vec<Value>> {
        let method = Method { destination: NAME, path: PATH, interface: MANAGER, member };
        self.connection.call(&method, arguments, deadline)
    }

    /// Calls what starts a job and waits for the job's end.
    fn run_job(&mut self, member: &str, arguments: &[Value]) -> Answer<()> {
        let deadline = deadline();
        let reply = self.call(member, arguments, deadline)?;
        let [Value::Path(job)] = reply.as_slice() else {
            return Err(dbus::Error::Malformed("a job's path"));
        };
        let owner = self.owner.as_deref();
        let signal =
            self.connection.wait_signal(|signal| is_end_of(signal, job, owner), deadline)?;
        match signal.body.get(3) {
            Some(Value::Text(result)) if result == "done" => Ok(()),
            Some(Value::Text(result)) => Err(dbus::Error::Refused {
                name: format!("{member} ended"),
                text: format!("job result {result:?}"),
            }),
            _ => Err(dbus::Error::Malformed("a job's result")),
        }
    }

    /// The properties for `settings`, which may be rounded to what systemd can express.
    pub(super) fn plan(&mut self, settings: &mut [Setting]) -> Result<Vec<Property>> {
        // Asked for only where it matters: it is a round trip.
        let version = if properties::depend_on_version(settings) { self.version()? } else { 0 };
        properties::plan(settings, version)
    }

    /// systemd's version, its first number.
    fn version(&mut self) -> Result<u32> {
        let method = Method {
            destination: NAME,
            path: PATH,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
        };
        let arguments = [MANAGER.into(), "Version".into()];
        let reply = doing(self.connection.call(&method, &arguments, deadline()), || {
            "ask for systemd's version".to_owned()
        })?;
        let text = match reply.as_slice() {
            [Value::Variant(inner)] => match inner.as_ref() {
                Value::Text(text) => text.as_str(),
                _ => "",
            },
            _ => "",
        };
        Ok(parse_version(text))
    }

    /// Starts a scope that holds process `pid`, and waits until the process is in it. `properties` go
    /// over those that every scope has.
    pub(crate) fn start_scope(
        &mut self,
        unit: &Unit,
        pid: i32,
        properties: &[Property],
    ) -> Result<()> {
        let all = over(scope_properties(unit, pid), properties);
        let mut result = self.start_transient(&unit.name, &all);
        if result.as_ref().is_err_and(|error| error.is(UNIT_EXISTS)) {
            // Perhaps what is left of one that failed.
            self.reset_failed(&unit.name);
            result = self.start_transient(&unit.name, &all);
        }
        if result.is_err() {
            self.reset_failed(&unit.name);
        }
        doing(result, || format!("start unit {}", unit.name))
    }

    /// Starts a slice, or has one that is there hold `properties`. Idempotent.
    pub(crate) fn start_slice(&mut self, name: &str, properties: &[Property]) -> Result<()> {
        let all = over(slice_properties(name), properties);
        let result = match self.start_transient(name, &all) {
            // It runs, or is what is left of one, or is configured by the administrator.
            Err(error) if error.is(UNIT_EXISTS) => {
                self.reset_failed(name);
                self.run_job("StartUnit", &[name.into(), "replace".into()])
            }
            result => return doing(result, || format!("start unit {name}")),
        };
        doing(result, || format!("start unit {name}"))?;
        self.set_properties(name, properties)
    }

    fn start_transient(&mut self, name: &str, properties: &[Property]) -> Answer<()> {
        let auxiliary = Value::Array("(sa(sv))".to_owned(), Vec::new());
        let arguments = [name.into(), "replace".into(), encode(properties), auxiliary];
        self.run_job("StartTransientUnit", &arguments)
    }

    /// Changes a running unit's properties, until the unit ends.
    pub(crate) fn set_properties(&mut self, name: &str, properties: &[Property]) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let arguments = [name.into(), Value::Boolean(true), encode(properties)];
        let result = self.call("SetUnitProperties", &arguments, deadline());
        doing(result, || format!("set properties of unit {name}")).map(drop)
    }

    /// Stops a unit, of a slice with what is in it; one that is gone is stopped.
    pub(crate) fn stop(&mut self, name: &str) -> Result<()> {
        let arguments = [name.into(), "replace".into()];
        let result = match self.run_job("StopUnit", &arguments) {
            Err(error) if error.is("org.freedesktop.systemd1.NoSuchUnit") => return Ok(()),
            result => result,
        };
        self.reset_failed(name);
        doing(result, || format!("stop unit {name}"))
    }

    fn reset_failed(&mut self, unit: &str) {
        // It is an error for a unit that has not failed.
        let _ = self.call("ResetFailedUnit", &[unit.into()], deadline());
    }
}

fn encode(properties: &[Property]) -> Value {
    let pairs = properties.iter().map(|(name, value)| {
        Value::Structure(vec![name.as_str().into(), Value::variant(value.clone())])
    });
    Value::Array("(sv)".to_owned(), pairs.collect())
}

/// `properties` over those of `fixed` that have the same names.
fn over(mut fixed: Vec<Property>, properties: &[Property]) -> Vec<Property> {
    fixed.retain(|(name, _)| properties.iter().all(|(other, _)| other != name));
    fixed.extend_from_slice(properties);
    fixed
}

fn flag(name: &str, value: bool) -> Property {
    (name.to_owned(), Value::Boolean(value))
}

/// What every unit has. Accounting is on so that counters start with it, as under the cgroupfs driver.
/// Without the usual dependencies it is not stopped before the agent of its pods when the host goes down;
/// one whose processes were killed for want of memory would stay as failed for ever.
fn unit_properties(description: String) -> Vec<Property> {
    vec![
        ("Description".to_owned(), Value::Text(description)),
        flag("MemoryAccounting", true),
        flag("CPUAccounting", true),
        flag("IOAccounting", true),
        flag("TasksAccounting", true),
        flag("DefaultDependencies", false),
        ("CollectMode".to_owned(), "inactive-or-failed".into()),
    ]
}

fn slice_properties(name: &str) -> Vec<Property> {
    unit_properties(format!("berth slice {name}"))
}

/// What every scope has.
fn scope_properties(unit: &Unit, pid: i32) -> Vec<Property> {
    let pids = Value::Array("u".to_owned(), vec![Value::Uint32(pid.unsigned_abs())]);
    let mut properties = unit_properties(format!("berth container {}", unit.name));
    properties.extend([
        ("Slice".to_owned(), unit.slice.as_str().into()),
        flag("Delegate", true),
        ("PIDs".to_owned(), pids),
        // Which devices may be used is decided by our own program; systemd's would only add to it,
        // and has no word for most lists of rules. Differs: runc sets these from the rules.
        ("DevicePolicy".to_owned(), "auto".into()),
    ]);
    properties
}

fn is_end_of(signal: &Signal, job: &str, owner: Option<&str>) -> bool {
    let from_systemd = owner.is_none_or(|owner| signal.sender == owner);
    let ended = signal.interface == MANAGER && signal.member == "JobRemoved";
    from_systemd && ended && matches!(signal.body.get(1), Some(Value::Path(path)) if path == job)
}

/// The first number of `252.39-1~deb12u1` or `v252`; 0 where there is none.
fn parse_version(text: &str) -> u32 {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_is_given_stands_in_the_place_of_the_usual_one() {
        let given = [flag("MemoryAccounting", false), ("X".to_owned(), "y".into())];
        let all = over(slice_properties("a.slice"), &given);
        let accounting = all.iter().filter(|(name, _)| name == "MemoryAccounting");
        assert_eq!(accounting.collect::<Vec<_>>(), [&given[0]]);
        assert_eq!(all.last(), Some(&given[1]));
    }

    #[test]
    fn versions_of_distributions_begin_with_systemds() {
        for (text, version) in
            [("252.39-1~deb12u1", 252), ("v245", 245), ("\"v260~rc1\"", 260), ("", 0), ("x", 0)]
        {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }

    #[test]
    fn only_systemd_itself_ends_a_job() {
        let signal = |sender: &str, job: &str| Signal {
            sender: sender.to_owned(),
            interface: MANAGER.to_owned(),
            member: "JobRemoved".to_owned(),
            body: vec![
                Value::Uint32(1),
                Value::Path(job.to_owned()),
                "x.scope".into(),
                "done".into(),
            ],
        };
        assert!(is_end_of(&signal(":1.0", "/j/1"), "/j/1", Some(":1.0")));
        assert!(is_end_of(&signal("", "/j/1"), "/j/1", None));
        assert!(!is_end_of(&signal(":1.99", "/j/1"), "/j/1", Some(":1.0")), "a forger's");
        assert!(!is_end_of(&signal(":1.0", "/j/2"), "/j/1", Some(":1.0")));
    }
}
