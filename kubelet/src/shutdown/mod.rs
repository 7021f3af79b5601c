//! Graceful shutdown of the node (KEP-2000, KEP-2712; KubeletConfiguration `shutdownGracePeriod*`): while
//! pods run, systemd-logind's delay lock is held, so that a shutdown waits until they have ended.
//!
//! ```text
//!            connect, delay long enough, lock                 PrepareForShutdown(true)
//!  away ───────────────────────────────────────► watching ───────────────────────────► ending
//!    ▲  logind or the bus is gone (the lock is kept) │ ▲                                  │ [`ending`]
//!    └───────────────────────────────────────────────┘ └── PrepareForShutdown(false) ─────┤
//!                                                                                         ▼
//!                                                                              lock let go, the node goes
//! ```
//!
//! From the first word on no pod is let in ([`crate::gate`]) and the node is not Ready ([`crate::node`]).
//! A pod that was ended stays so: after the reboot it is Failed, as it was. Static pods begin anew with
//! the next agent, or when the shutdown is called off ([`crate::worker::roster`]).
//!
//! Knows logind only by [`Login`]; the binary speaks D-Bus.

mod ending;
pub mod plan;
mod record;
mod standing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::events::{Recorder, Severity};
use crate::eviction::Order;
use crate::meters::Meters;
use crate::shelf::Shelf;
use crate::status::writer::Writer;
use ending::Ending;
pub use plan::{Bucket, Config};
use record::Record;
pub use standing::Standing;

/// The reason of pods that are ended here.
pub const REASON: &str = "Terminated";

/// Their message.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// The reason of pods that come too late.
pub const REFUSED: &str = "NodeShutdown";

/// Their message.
pub const REFUSED_MESSAGE: &str = "Pod was rejected as the node is shutting down.";

/// Whether a pod of this status was ended, or refused, because the node went down.
pub fn is_of_shutdown(status: &PodStatus) -> bool {
    match status.reason.as_deref() {
        Some(REASON) => status.message.as_deref() == Some(MESSAGE),
        reason => reason == Some(REFUSED),
    }
}

/// The pauses between tries to reach logind.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long logind may take to read its configuration again.
const RELOAD: Duration = Duration::from_secs(5);

/// How often it is looked whether it has; it tells nobody.
const LOOK: Duration = Duration::from_millis(100);

/// What keeps the host from going down until it is dropped.
pub type Lock = Box<dyn Send + Sync>;

/// Reaches systemd-logind.
#[async_trait]
pub trait Login: Send + Sync + 'static {
    /// Connects, and follows from then on what it tells.
    ///
    /// # Errors
    /// When it is not there. Has a deadline, as all calls have.
    async fn connect(&self) -> Result<Box<dyn Session>, Error>;
}

/// A connection with systemd-logind.
#[async_trait]
pub trait Session: Send + Sync {
    /// How long a lock can hold a shutdown up (`InhibitDelayMaxUSec`).
    ///
    /// # Errors
    /// When it does not answer.
    async fn longest_delay(&self) -> Result<Duration, Error>;

    /// Has it read a configuration by which it is that long; that may take a moment.
    ///
    /// # Errors
    /// When that cannot be written, or it cannot be told.
    async fn lengthen(&self, delay: Duration) -> Result<(), Error>;

    /// Takes a delay lock.
    ///
    /// # Errors
    /// When it refuses, as it does while the host goes down.
    async fn inhibit(&self) -> Result<Lock, Error>;

    /// Whether the host is going down (`PreparingForShutdown`).
    ///
    /// # Errors
    /// When it does not answer.
    async fn is_preparing(&self) -> Result<bool, Error>;

    /// What it tells next (`PrepareForShutdown`): whether the host is to go down. `None` once it, or the
    /// bus, is gone.
    async fn next(&mut self) -> Option<bool>;
}

/// Why a shutdown would not wait for pods.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It did not answer, or not as it should.
    #[error("systemd-logind: {what}")]
    Asked {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The drop-in for it cannot be written.
    #[error("cannot write {path:?}; set InhibitDelayMaxSec={seconds} in /etc/systemd/logind.conf")]
    DropIn {
        /// The file.
        path: PathBuf,
        /// What it would say.
        seconds: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It goes on to allow less.
    #[error(
        "systemd-logind lets a shutdown wait for {allowed:?} at the most, and {asked:?} are asked: set \
         InhibitDelayMaxSec={} in /etc/systemd/logind.conf, and see that no drop-in says less",
        asked.as_secs()
    )]
    TooShort {
        /// What it allows.
        allowed: Duration,
        /// What the configuration asks.
        asked: Duration,
    },
}

/// What the watch works with.
#[derive(Clone)]
pub struct Parts {
    /// How the node goes down.
    pub config: Config,
    /// The node's name.
    pub node: String,
    /// Where the state is kept.
    pub root: PathBuf,
    /// The pods.
    pub shelf: Shelf,
    /// Brings their last statuses to the API server.
    pub statuses: Writer,
    /// Takes the pods that are to end.
    pub orders: mpsc::Sender<Order>,
    /// Is told whether the node is about to go down.
    pub standing: Standing,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Takes events.
    pub events: Recorder,
    /// Is told when the node went down last.
    pub meters: Meters,
}

/// Has shutdowns of the host wait for its pods, until `shutdown`, which is the agent's own end. Where
/// logind cannot be had that is told, and it is tried again.
pub async fn run(parts: Parts, login: Arc<dyn Login>, shutdown: CancellationToken) {
    let root = parts.root.clone();
    if let Ok(record) = tokio::task::spawn_blocking(move || Record::read(&root)).await
        && record != Record::default()
    {
        record.tell(&parts.meters);
    }
    let mut watch = Watch { parts, lock: None, ending: JoinSet::new(), told: None };
    tokio::select! {
        () = watch.run(&*login) => {}
        () = shutdown.cancelled() => {}
    }
}

struct Watch {
    parts: Parts,
    /// Held while the host is up; the task of `ending` has it then.
    lock: Option<Lock>,
    /// At most one task; dropping this ends it.
    ending: JoinSet<()>,
    /// The trouble that was told last.
    told: Option<String>,
}

impl Watch {
    async fn run(&mut self, login: &dyn Login) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.attach(login).await {
                Ok(mut session) => {
                    (pause, self.told) = (FIRST_PAUSE, None);
                    match self.follow(&mut *session).await {
                        Ok(()) => tracing::warn!("systemd-logind is gone, looking for it again"),
                        Err(error) => self.complain(&error),
                    }
                }
                Err(error) => self.complain(&error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Connects, and does what has to be done by then.
    async fn attach(&mut self, login: &dyn Login) -> Result<Box<dyn Session>, Error> {
        let session = login.connect().await?;
        // What was told while nobody listened.
        match (session.is_preparing().await?, self.parts.standing.is_ending()) {
            (true, _) => self.begin(),
            (false, true) => self.call_off(&*session).await?,
            (false, false) => {
                self.ask_for_time(&*session).await?;
                // The new one first: in between a shutdown would not wait.
                self.lock = Some(session.inhibit().await?);
                tracing::info!(longest = ?self.parts.config.total(), "a shutdown waits for pods");
            }
        }
        Ok(session)
    }

    async fn ask_for_time(&self, session: &dyn Session) -> Result<(), Error> {
        let asked = self.parts.config.total();
        if session.longest_delay().await? >= asked {
            return Ok(());
        }
        session.lengthen(asked).await?;
        let until = Instant::now() + RELOAD;
        loop {
            let allowed = session.longest_delay().await?;
            if allowed >= asked {
                tracing::info!(?allowed, "systemd-logind was told to let a shutdown wait longer");
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::TooShort { allowed, asked });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Does as it is told, until nobody tells any more.
    async fn follow(&mut self, session: &mut dyn Session) -> Result<(), Error> {
        while let Some(is_ending) = session.next().await {
            match is_ending {
                true => self.begin(),
                false if self.parts.standing.is_ending() => self.call_off(session).await?,
                false => {}
            }
        }
        Ok(())
    }

    /// The host is to go down.
    fn begin(&mut self) {
        if !self.parts.standing.set(true) {
            return;
        }
        tracing::info!("the node is shutting down");
        self.tell("Shutdown manager detected shutdown event");
        let (ending, lock) = (Ending::new(self.parts.clone()), self.lock.take());
        self.ending.spawn(async move {
            ending.run().await;
            drop(lock);
        });
    }

    /// It is not, after all. `Differs:` upstream notices when all pods have ended.
    async fn call_off(&mut self, session: &dyn Session) -> Result<(), Error> {
        self.ending.shutdown().await;
        self.parts.standing.set(false);
        tracing::info!("the shutdown of the node was called off");
        self.tell("Shutdown manager detected shutdown cancellation");
        self.lock = Some(session.inhibit().await?);
        Ok(())
    }

    fn tell(&self, message: &str) {
        self.parts.events.node(&self.parts.node, Severity::Normal, "Shutdown", message);
    }

    /// Says once what the trouble is.
    fn complain(&mut self, error: &Error) {
        let error = crate::worker::chain(error);
        if self.parts.standing.is_ending() {
            // It goes down with the host.
            tracing::debug!(error, "systemd-logind is not there any more");
            return;
        }
        if self.told.as_ref() == Some(&error) {
            return;
        }
        let message = format!("a shutdown of the node would not wait for its pods: {error}");
        tracing::error!("{message}");
        self.parts.events.node(&self.parts.node, Severity::Warning, "NotEnforced", message);
        self.told = Some(error);
    }
}

#[cfg(test)]
mod tests;
