//! systemd-logind over the system's D-Bus (org.freedesktop.login1(5), systemd.io/INHIBITOR_LOCKS): the
//! lock that has a shutdown of the host wait, and the word that there is one. What follows from it is
//! decided in [`berth_kubelet::shutdown`].
//!
//! Only what logind itself says is believed: whoever may use the bus can send such a signal.

use std::error::Error as StdError;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use berth_kubelet::replace::{Lasting, replace};
use berth_kubelet::shutdown::{Error, Lock, Login, Session};
use futures::stream::{SelectAll, StreamExt as _};
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::names::OwnedUniqueName;
use zbus::{Connection, MatchRule, MessageStream, OwnedVariant};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(5);

const BUS: Peer = Peer {
    name: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};
const LOGIN: Peer = Peer {
    name: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
const SYSTEMD: Peer = Peer {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// The signals that are followed.
const OWNER_CHANGED: &str = "NameOwnerChanged";
const PREPARE: &str = "PrepareForShutdown";

const SIGHUP: i32 = 1;

/// Where logind's configuration is added to, at upstream's place.
const DROP_INS: &str = "/etc/systemd/logind.conf.d";
const DROP_IN: &str = "99-kubelet.conf";

/// What the line that tells whose file this is starts with.
const MARK: &str = "# Node state: ";

/// An object on the bus, with the interface that is used of it.
struct Peer {
    name: &'static str,
    path: &'static str,
    interface: &'static str,
}

/// Reaches logind for a node.
pub(crate) struct Logind {
    drop_ins: PathBuf,
    state_dir: PathBuf,
}

impl Logind {
    /// For the node of this state directory.
    pub(crate) fn new(state_dir: &Path) -> Self {
        let absolute = std::path::absolute(state_dir);
        let state_dir = absolute.unwrap_or_else(|_| state_dir.to_owned());
        Self { drop_ins: DROP_INS.into(), state_dir }
    }

    /// Takes back what this node has had logind read.
    pub(crate) async fn forget(&self) -> Result<()> {
        let path = self.drop_ins.join(DROP_IN);
        if !is_of(&path, &self.state_dir)? {
            return Ok(());
        }
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        // Where there is no logind, nobody has read it.
        if let Ok(bus) = open().await {
            let _ = reload(&bus).await;
        }
        Ok(())
    }
}

/// Whether the file at `path` was written for this node.
fn is_of(path: &Path, state_dir: &Path) -> Result<bool> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    Ok(text.lines().next() == Some(&format!("{MARK}{}", state_dir.display())))
}

#[async_trait]
impl Login for Logind {
    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let connecting = async {
            let bus = open().await?;
            // Followed before anything is asked, so that nothing happens in between.
            let followed = [(LOGIN, PREPARE, None), (BUS, OWNER_CHANGED, Some(LOGIN.name))];
            let mut signals = SelectAll::new();
            for (peer, member, about) in followed {
                signals.push(follow(&bus, &peer, (member, about)).await?);
            }
            let _started = call(&bus, &BUS, "StartServiceByName", &(LOGIN.name, 0_u32)).await?;
            let owner = call(&bus, &BUS, "GetNameOwner", &(LOGIN.name,)).await?;
            let owner = owner.body().deserialize::<OwnedUniqueName>()?;
            Ok::<_, zbus::Error>((bus, signals, owner))
        };
        let connected = tokio::time::timeout(DEADLINE * 2, connecting).await;
        let (bus, signals, owner) = connected
            .map_err(|late| asked("cannot be reached over the system's D-Bus", late))?
            .map_err(|error| asked("cannot be reached over the system's D-Bus", error))?;
        let drop_in = DropIn { directory: self.drop_ins.clone(), node: self.state_dir.clone() };
        Ok(Box::new(Connected { bus, signals, owner, drop_in }))
    }
}

fn asked(what: &'static str, source: impl StdError + Send + Sync + 'static) -> Error {
    Error::Asked { what, source: Box::new(source) }
}

async fn open() -> zbus::Result<Connection> {
    Builder::system().method_timeout(DEADLINE).build().await
}

async fn call<B>(bus: &Connection, peer: &Peer, method: &str, body: &B) -> zbus::Result<Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    bus.call_method(Some(peer.name), peer.path, Some(peer.interface), method, body).await
}

/// The signals of this name that a peer sends, where the first argument is `about`.
async fn follow(
    bus: &Connection,
    peer: &Peer,
    (member, about): (&'static str, Option<&'static str>),
) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder().msg_type(Type::Signal).sender(peer.name);
    let rule = rule.path(peer.path).interface(peer.interface).member(member);
    let rule = match about {
        Some(about) => rule.arg(0, about),
        None => rule,
    };
    MessageStream::for_match_rule(rule.build()?, bus, None).await
}

/// Has logind read its configuration again.
async fn reload(bus: &Connection) -> zbus::Result<()> {
    let unit = ("systemd-logind.service", "main", SIGHUP);
    call(bus, &SYSTEMD, "KillUnit", &unit).await.map(drop)
}

/// The file that lengthens delays.
struct DropIn {
    directory: PathBuf,
    /// The state directory of the node that it is for.
    node: PathBuf,
}

impl DropIn {
    /// Writes it, readable by all as its neighbours are.
    fn write(&self, seconds: u64) -> Result<(), Error> {
        let path = self.directory.join(DROP_IN);
        let text = format!(
            "{MARK}{}\n# A shutdown waits until the pods of the node have ended (shutdownGracePeriod).\n\
             [Login]\nInhibitDelayMaxSec={seconds}\n",
            self.node.display()
        );
        fs::create_dir_all(&self.directory)
            .and_then(|()| replace(&path, text.as_bytes(), 0o644, Lasting::PowerCut))
            .map_err(|source| Error::DropIn { path, seconds, source })
    }
}

struct Connected {
    bus: Connection,
    signals: SelectAll<MessageStream>,
    /// Who logind is on the bus.
    owner: OwnedUniqueName,
    drop_in: DropIn,
}

impl Connected {
    async fn property<T>(&self, name: &'static str) -> zbus::Result<T>
    where
        T: TryFrom<OwnedVariant, Error = zbus::Error>,
    {
        let properties = Peer { interface: "org.freedesktop.DBus.Properties", ..LOGIN };
        let reply = call(&self.bus, &properties, "Get", &(LOGIN.interface, name)).await?;
        reply.body().deserialize::<OwnedVariant>()?.try_into()
    }

    /// What a signal says of shutdowns; an error where logind is another by now.
    fn read(&self, signal: &Message) -> Result<Option<bool>, Gone> {
        let header = signal.header();
        match header.member().map(|member| member.as_str()) {
            Some(PREPARE) if header.sender() == Some(&*self.owner) => {
                Ok(signal.body().deserialize::<bool>().ok())
            }
            Some(OWNER_CHANGED) if header.sender().is_some_and(|s| s.as_str() == BUS.name) => {
                let body = signal.body();
                match body.deserialize::<(&str, &str, &str)>() {
                    Ok((name, _, new)) if name == LOGIN.name && new != self.owner.as_str() => {
                        Err(Gone)
                    }
                    _ => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }
}

/// logind has left the bus.
struct Gone;

#[async_trait]
impl Session for Connected {
    async fn longest_delay(&self) -> Result<Duration, Error> {
        let read = self.property::<u64>("InhibitDelayMaxUSec").await;
        read.map(Duration::from_micros).map_err(|error| asked("InhibitDelayMaxUSec", error))
    }

    async fn lengthen(&self, delay: Duration) -> Result<(), Error> {
        self.drop_in.write(delay.as_secs())?;
        reload(&self.bus).await.map_err(|error| asked("cannot be told to reload", error))
    }

    async fn inhibit(&self) -> Result<Lock, Error> {
        let words = ("shutdown", "berth", "Pods are ended before the host goes down", "delay");
        // zbus receives descriptors open across exec: what is started in that moment has it until it ends.
        // Shims, which outlive the agent, close what they inherit.
        let locking = async {
            let reply = call(&self.bus, &LOGIN, "Inhibit", &words).await?;
            reply.body().deserialize::<zbus::OwnedFd>()
        };
        let lock = locking.await.map_err(|error| asked("gives no delay lock", error))?;
        Ok(Box::new(OwnedFd::from(lock)))
    }

    async fn is_preparing(&self) -> Result<bool, Error> {
        let read = self.property::<bool>("PreparingForShutdown").await;
        read.map_err(|error| asked("PreparingForShutdown", error))
    }

    async fn next(&mut self) -> Option<bool> {
        loop {
            let signal = self.signals.next().await?.ok()?;
            match self.read(&signal) {
                Ok(Some(is_ending)) => return Some(is_ending),
                Ok(None) => {}
                Err(Gone) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drop_in_says_whose_it_is_and_goes_with_its_node_only() {
        let dir = tempfile::tempdir().unwrap();
        let drop_ins = dir.path().join("logind.conf.d");
        let write = |node: &str, seconds| {
            let drop_in = DropIn { directory: drop_ins.clone(), node: node.into() };
            drop_in.write(seconds).unwrap();
        };
        write("/var/lib/other", 5);
        write("/var/lib/berth", 35);
        let path = drop_ins.join("99-kubelet.conf");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("[Login]\nInhibitDelayMaxSec=35\n"), "{text}");
        let names: Vec<_> = fs::read_dir(&drop_ins).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let of =
            |state_dir: &str| Logind { drop_ins: drop_ins.clone(), state_dir: state_dir.into() };
        of("/var/lib/other").forget().await.unwrap();
        assert!(path.exists());
        for _ in 0..2 {
            of("/var/lib/berth").forget().await.unwrap();
            assert!(!path.exists());
        }
        fs::remove_dir(&drop_ins).unwrap();
        fs::write(&drop_ins, "a file").unwrap();
        let drop_in = DropIn { directory: drop_ins, node: "/n".into() };
        let error = drop_in.write(35).unwrap_err().to_string();
        assert!(error.contains("set InhibitDelayMaxSec=35 in /etc/systemd/logind.conf"), "{error}");
    }
}
