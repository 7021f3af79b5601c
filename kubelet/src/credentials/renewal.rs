//! When certificates are asked for, and by whom: the first by the bootstrap kubeconfig, the next by the
//! one before, and again by the bootstrap kubeconfig once that has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::kubeconfig::{self, Endpoint, User};
use super::request::{self, Purpose};
use super::session::{self, Session};
use super::store::{self, Pair, Store};
use crate::api_retry::{self, Retry};
use crate::clock::Clock;
use crate::meters::{
    CLIENT_CERTIFICATE, FAILED_CLIENT_RENEWALS, FAILED_SERVING_RENEWALS, Meter, Meters,
    SERVING_CERTIFICATE,
};

/// The longest sleep: clocks are set, machines sleep.
const LONGEST_SLEEP: SignedDuration = SignedDuration::from_hours(1);

/// Why there is no certificate, or why it is not used.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// It was not issued.
    #[error(transparent)]
    Request(#[from] request::Error),
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A kubeconfig cannot be read or written.
    #[error(transparent)]
    Kubeconfig(#[from] kubeconfig::Error),
    /// A kubeconfig cannot be used.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The certificate has ended, and nothing is there to get another with.
    #[error("the node's certificate has ended and there are no bootstrap credentials: join again")]
    Lost,
    /// The agent ended before.
    #[error("the agent ended before the cluster had issued a certificate")]
    Shutdown,
}

impl Trouble {
    /// Whether asking again will not help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Request(request::Error::Create { source, .. }) => {
                matches!(&**source, kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404 | 422))
            }
            Self::Request(request::Error::Refused { .. } | request::Error::Pending { .. }) => true,
            Self::Request(_) => false,
            _ => true,
        }
    }

    fn asked_wait(&self) -> Option<Duration> {
        match self {
            Self::Request(request::Error::Create { source, .. }) => api_retry::retry_after(source),
            _ => None,
        }
    }
}

/// A node's client certificate and what it is got with.
#[derive(Clone)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// The kubeconfig that names the certificate; written when there is one.
    pub kubeconfig: PathBuf,
    /// The kubeconfig by which the first certificate is asked for.
    pub bootstrap: Option<PathBuf>,
    /// Where the certificate is.
    pub store: Store,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

impl Node {
    /// Whether the kubeconfig cannot be used without a new certificate.
    pub fn needs_certificate(&self) -> bool {
        let is_ours =
            || kubeconfig::names_certificate(&self.kubeconfig, &self.store.current_path());
        let holds = |pair: Pair| !pair.is_over(self.clock.now());
        !self.kubeconfig.exists() || (is_ours() && !self.store.current().is_some_and(holds))
    }

    /// Whether the certificate is one that the agent renews.
    pub fn is_renewed_here(&self) -> bool {
        kubeconfig::names_certificate(&self.kubeconfig, &self.store.current_path())
    }

    /// Asks once for a certificate by the bootstrap kubeconfig, waits for it, keeps it, and writes the
    /// kubeconfig that names it.
    ///
    /// # Errors
    /// When it is not issued, or cannot be kept.
    pub async fn bootstrap(&self) -> Result<(), Trouble> {
        let file = self.bootstrap.as_deref().filter(|file| file.exists()).ok_or(Trouble::Lost)?;
        let (client, _) = session::client(file).await?;
        self.renew(&client).await?;
        let user = User::Certificate(self.store.current_path());
        Ok(kubeconfig::write(&self.kubeconfig, &Endpoint::of_file(file)?, &user)?)
    }

    async fn renew(&self, client: &kube::Client) -> Result<(), Trouble> {
        obtain(&self.store, client, (&self.name, &Purpose::Client), self.clock.now()).await
    }

    /// The certificate by the one in force, or by the bootstrap kubeconfig where that has ended.
    async fn next(&self, session: &Session) -> Result<(), Trouble> {
        match self.needs_certificate() {
            true => self.bootstrap().await?,
            false => self.renew(&session.client()).await?,
        }
        Ok(session.reload().await?)
    }
}

/// Asks for a certificate and keeps it. A refused request is not asked again with the same key.
async fn obtain(
    store: &Store,
    client: &kube::Client,
    (node, purpose): (&str, &Purpose),
    now: Timestamp,
) -> Result<(), Trouble> {
    let key = store.pending_key()?;
    let issued = request::issue(client, node, (purpose, &key)).await;
    if let Err(request::Error::Refused { .. } | request::Error::Unusable { .. }) = &issued {
        store.forget_pending();
    }
    let pair = issued?;
    store.keep(&pair, now)?;
    tracing::info!(certificate = %store.current_path().display(), until = %pair.not_after, "certificate issued");
    Ok(())
}

/// Gets the node its first certificate, if it needs one; asks until it is there.
///
/// # Errors
/// When there is nothing to ask with, or `shutdown` comes first.
pub async fn join(node: &Node, shutdown: &CancellationToken) -> Result<(), Trouble> {
    let mut retry = Retry::default();
    while node.needs_certificate() {
        let attempt = tokio::select! {
            attempt = node.bootstrap() => attempt,
            () = shutdown.cancelled() => return Err(Trouble::Shutdown),
        };
        match attempt {
            Ok(()) => return Ok(()),
            Err(error @ (Trouble::Lost | Trouble::Kubeconfig(_))) => return Err(error),
            Err(error) => {
                if !pause(&mut retry, &error, shutdown).await {
                    return Err(Trouble::Shutdown);
                }
            }
        }
    }
    Ok(())
}

/// Renews the client certificate before it ends, until shutdown.
pub async fn keep_client(node: Node, session: Session, shutdown: CancellationToken) {
    let kept = Kept {
        store: &node.store,
        clock: &*node.clock,
        meters: session.meters(),
        failures: &FAILED_CLIENT_RENEWALS,
        remaining: &CLIENT_CERTIFICATE,
    };
    keep(&kept, &shutdown, || node.next(&session)).await;
}

/// What the node's API is served as.
pub struct Serving {
    /// The node's name.
    pub node: String,
    /// The names and addresses that it is reached by.
    pub purpose: Purpose,
    /// Where the certificate is.
    pub store: Store,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Counts what fails.
    pub meters: Meters,
}

/// Asks the cluster for the serving certificate and renews it, until shutdown.
pub async fn keep_serving(serving: Serving, client: kube::Client, shutdown: CancellationToken) {
    let Serving { node, purpose, store, clock, meters } = &serving;
    let attempt = || obtain(store, &client, (node, purpose), clock.now());
    let kept = Kept {
        store,
        clock: &**clock,
        meters,
        failures: &FAILED_SERVING_RENEWALS,
        remaining: &SERVING_CERTIFICATE,
    };
    keep(&kept, &shutdown, attempt).await;
}

/// A certificate that is kept valid, and what tells of it.
struct Kept<'a> {
    store: &'a Store,
    clock: &'a dyn Clock,
    meters: &'a Meters,
    failures: &'static Meter,
    remaining: &'static Meter,
}

/// Gets a new certificate whenever the one in the store is due, until shutdown.
async fn keep<F>(kept: &Kept<'_>, shutdown: &CancellationToken, attempt: impl Fn() -> F)
where
    F: Future<Output = Result<(), Trouble>>,
{
    let Kept { store, clock, meters, failures, remaining } = *kept;
    let mut retry = Retry::default();
    loop {
        let current = store.current();
        if let Some(pair) = &current {
            meters.at(remaining, pair.not_after.as_duration().as_secs_f64());
        }
        let due = current.map_or(Timestamp::MIN, |pair| due(&pair, rand::random()));
        if !until(clock, due, shutdown).await {
            return;
        }
        let attempt = tokio::select! {
            attempt = attempt() => attempt,
            () = shutdown.cancelled() => return,
        };
        match attempt {
            Ok(()) => retry.reset(),
            Err(error) => {
                meters.count(failures, &[]);
                if !pause(&mut retry, &error, shutdown).await {
                    return;
                }
            }
        }
    }
}

/// Says what went wrong and waits; `false` when the agent ends.
async fn pause(retry: &mut Retry, error: &Trouble, shutdown: &CancellationToken) -> bool {
    tracing::warn!(error = crate::worker::chain(error), "no new certificate, trying again");
    tokio::select! {
        () = tokio::time::sleep(retry.next_wait(error.asked_wait())) => true,
        () = shutdown.cancelled() => false,
    }
}

/// When a certificate is renewed: at 70 to 90 per cent of its life, by a portion between 0 and 1, so
/// that nodes which joined together do not ask together.
pub fn due(pair: &Pair, portion: f64) -> Timestamp {
    let life = pair.not_after.duration_since(pair.not_before).max(SignedDuration::ZERO);
    let share = 0.7 + 0.2 * portion.clamp(0.0, 1.0);
    let at = life.as_secs_f64() * share;
    pair.not_before.saturating_add(SignedDuration::from_secs_f64(at)).unwrap_or(pair.not_before)
}

/// Sleeps until a time of day; `false` when the agent ends.
async fn until(clock: &dyn Clock, at: Timestamp, shutdown: &CancellationToken) -> bool {
    loop {
        let left = at.duration_since(clock.now()).min(LONGEST_SLEEP);
        let Ok(left) = Duration::try_from(left) else { return true };
        if left.is_zero() {
            return true;
        }
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            () = shutdown.cancelled() => return false,
        }
    }
}
