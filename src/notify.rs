//! What a service manager is told: that the agent is ready, lives, and stops (sd_notify(3),
//! `Type=notify`, `WatchdogSec=`). Where none listens, nothing is said.
//!
//! The variables are read here and go no further: shims and containers begin with an empty environment.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Whom to tell, and how often to say that the agent lives.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

/// What the environment says of a service manager.
#[derive(Debug, Default, PartialEq, Eq)]
struct Environment {
    notify_socket: Option<String>,
    watchdog_us: Option<String>,
    watchdog_pid: Option<String>,
}

impl Environment {
    fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            notify_socket: text("NOTIFY_SOCKET"),
            watchdog_us: text("WATCHDOG_USEC"),
            watchdog_pid: text("WATCHDOG_PID"),
        }
    }

    fn address(&self) -> Result<Option<SocketAddr>> {
        let Some(name) = &self.notify_socket else { return Ok(None) };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            [b'/', ..] => SocketAddr::from_pathname(name),
            _ => bail!("NOTIFY_SOCKET: {name:?} is neither a path nor an abstract name"),
        };
        address.map(Some).with_context(|| format!("NOTIFY_SOCKET: {name:?}"))
    }

    /// Half of the time that the manager waits, where it waits for this process.
    fn watchdog(&self, pid: u32) -> Option<Duration> {
        let is_ours = self.watchdog_pid.as_ref().is_none_or(|text| text.parse() == Ok(pid));
        let us: u64 = self.watchdog_us.as_ref()?.parse().ok()?;
        (is_ours && us > 0).then(|| Duration::from_micros(us) / 2)
    }
}

impl Manager {
    fn find(environment: &Environment) -> Result<Option<Self>> {
        let Some(address) = environment.address()? else { return Ok(None) };
        let socket = UnixDatagram::unbound().context("opening a socket to the service manager")?;
        // A manager that does not read must not hold the agent.
        socket.set_nonblocking(true)?;
        let watchdog = environment.watchdog(std::process::id());
        Ok(Some(Self { socket, address, watchdog }))
    }

    fn say(&self, text: &str) {
        match self.socket.send_to_addr(text.as_bytes(), &self.address) {
            Ok(_) => debug!(text, "told the service manager"),
            Err(error) => warn!(%error, text, "the service manager does not listen"),
        }
    }
}

/// Says that the agent is ready; from now on that it lives, and in the end that it stops. Must be
/// called inside a runtime: what says so is a task of it, so that an agent whose tasks hang is
/// silent, and is started anew.
///
/// # Errors
/// When the environment names no usable socket.
pub(crate) fn ready(shutdown: &CancellationToken) -> Result<()> {
    let Some(manager) = Manager::find(&Environment::read())? else { return Ok(()) };
    manager.say("READY=1");
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        // Without a watchdog the task sleeps until the end.
        let period = manager.watchdog.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        loop {
            if manager.watchdog.is_some() {
                manager.say("WATCHDOG=1");
            }
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = shutdown.cancelled() => break,
            }
        }
        manager.say("STOPPING=1");
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(socket: &str, watchdog: Option<(&str, &str)>) -> Environment {
        Environment {
            notify_socket: Some(socket.to_owned()),
            watchdog_us: watchdog.map(|(us, _)| us.to_owned()),
            watchdog_pid: watchdog.map(|(_, pid)| pid.to_owned()),
        }
    }

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::find(&environment(path.to_str().unwrap(), None)).unwrap().unwrap();
        manager.say("READY=1");
        let mut bytes = [0; 32];
        let length = listener.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1");

        let name = format!("berth-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        Manager::find(&environment(&format!("@{name}"), None)).unwrap().unwrap().say("STOPPING=1");
        let length = listener.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"STOPPING=1");
    }

    #[test]
    fn without_a_manager_nothing_is_said_and_a_wrong_one_is_named() {
        assert!(Manager::find(&Environment::default()).unwrap().is_none());
        let wrong = Manager::find(&environment("relative", None)).unwrap_err();
        assert!(wrong.to_string().contains("relative"), "{wrong}");
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_bites_if_it_is_ours() {
        let fed = |us: &str, pid: &str| environment("/x", Some((us, pid))).watchdog(7);
        assert_eq!(fed("30000000", "7"), Some(Duration::from_secs(15)));
        assert_eq!((fed("30000000", "8"), fed("0", "7"), fed("x", "7")), (None, None, None));
        assert_eq!(environment("/x", None).watchdog(7), None);
    }
}
