//! The node's HTTP API: HTTPS on port 10250 for the API server and administrators, and a health check
//! on loopback.
//!
//! Who calls is told by a client certificate or a token ([`auth`]); whoever has none is turned away
//! before anything else is looked at, unknown paths included. Requests and connections are bounded.

mod activity;
pub mod auth;
mod budget;
mod checkpoint;
mod flags;
mod health;
mod logs;
mod node_logs;
mod numbers;
mod pods;
mod pprof;
mod served;
mod spdy;
mod streams;
pub mod tls;
mod zpages;

#[cfg(test)]
mod crowd;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::routing::get;
use axum::{Extension, Router};
use berth_guests::{Guests, Place};
use berth_runtime::interface::{Images, Runtime};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::meters::Meters;
use crate::probe::counts::Counts;
use crate::shelf::Shelf;
use auth::{Guard, Identity};
pub use budget::Budget;
pub use flags::SetVerbosity;
pub use health::Health;
pub use node_logs::Logs as SystemLogs;
pub use numbers::{Node as Measured, Parts};
pub use zpages::Process;

/// How long a client may take for its handshake and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that is read of a request's head.
const MAX_HEAD: usize = 64 << 10;

/// Why the HTTP API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate, key or authority cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// What the handlers read.
#[derive(Clone)]
pub struct State {
    /// The pods and their statuses.
    pub shelf: Shelf,
    /// The runtime's records.
    pub runtime: Arc<dyn Runtime>,
    /// The image store.
    pub images: Arc<dyn Images>,
    /// `/var/log/pods`.
    pub log_root: PathBuf,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What bounds live streams.
    pub streaming: Streaming,
    /// What is measured.
    pub node: Measured,
    /// The configuration in force.
    pub configuration: Arc<serde_json::Value>,
    /// The host's logs.
    pub system_logs: SystemLogs,
    /// How probes came out.
    pub probes: Counts,
    /// What the agent counts.
    pub meters: Meters,
    /// Whether the node is well.
    pub health: Health,
    /// What the agent says of itself.
    pub process: Process,
    /// Sets the level of the log, where that is offered.
    pub set_verbosity: Option<SetVerbosity>,
    /// Whether `/debug/pprof/` is offered.
    pub is_profiled: bool,
    /// Where checkpoints of containers go, where they are offered.
    pub checkpoints: Option<PathBuf>,
}

/// What bounds live streams: exec, attach, port-forward.
#[derive(Debug, Clone)]
pub struct Streaming {
    /// A stream that carries nothing for so long is ended; zero is never.
    pub idle_timeout: Duration,
    /// Ends streams with the agent.
    pub shutdown: CancellationToken,
    /// What descriptors they, and all connections, may have.
    pub budget: Budget,
}

/// The routes, for a caller who has been let in.
pub fn routes(state: State) -> Router {
    Router::new()
        .route("/configz", get(configuration))
        .route("/pods", get(pods::all))
        .route("/pods/", get(pods::all))
        .route("/runningpods", get(pods::running))
        .route("/runningpods/", get(pods::running))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::serve))
        .merge(streams::routes())
        .merge(numbers::routes())
        .merge(node_logs::routes())
        .merge(health::routes())
        .merge(zpages::routes())
        .merge(flags::routes())
        .merge(pprof::routes())
        .merge(checkpoint::routes(state.checkpoints.as_ref()))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") })
        .with_state(state)
}

/// The configuration in force, under upstream's name for it.
async fn configuration(
    axum::extract::State(state): axum::extract::State<State>,
) -> axum::Json<serde_json::Value> {
    axum::Json(serde_json::json!({"kubeletconfig": *state.configuration}))
}

/// The routes behind the guard: without an identity 401, without the right 403.
pub fn guarded(state: State, guard: Guard) -> Router {
    let pass = move |request: Request, next: Next| guard.clone().pass(request, next);
    let meters = state.meters.clone();
    let count = move |request: Request, next: Next| served::count(meters.clone(), request, next);
    routes(state).layer(middleware::from_fn(pass)).layer(middleware::from_fn(count))
}

/// A listener that is bound, so that a failure shows before the node is ready.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// How callers are told apart.
pub struct Identities {
    /// Our certificate, and whose certificates are believed.
    pub tls: tls::Live,
    /// Who may do what.
    pub guard: Guard,
}

/// Serves the HTTPS API until shutdown.
pub async fn serve(
    listener: TcpListener,
    identities: Identities,
    state: State,
    shutdown: CancellationToken,
) {
    let Identities { tls, guard } = identities;
    let guests = Guests::new(state.streaming.budget.connections(), shutdown.clone());
    let router = guarded(state, guard);
    while let Some((stream, place)) = guests.next(&listener).await {
        let (acceptor, router, shutdown) = (tls.acceptor(), router.clone(), shutdown.clone());
        let serving = connection(stream, acceptor, router, place);
        tokio::spawn(shutdown.run_until_cancelled_owned(serving));
    }
}

async fn connection<S>(stream: S, acceptor: TlsAcceptor, router: Router, place: Place)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(stream) = place.shake_hands(&acceptor, stream, PATIENCE).await else { return };
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates
        .and_then(|chain| chain.first())
        .and_then(|leaf| Identity::of_certificate(leaf));
    let router = match identity {
        Some(identity) => router.layer(Extension(identity)),
        None => router,
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(16 << 10)
        .max_concurrent_streams(100)
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(Duration::from_secs(30));
    place.serve(&builder, stream, TowerToHyperService::new(router)).await;
}

/// Serves `/healthz` without authentication until shutdown. Whoever is on the node can connect.
pub async fn serve_health(listener: TcpListener, budget: Budget, shutdown: CancellationToken) {
    let router = Router::new().route("/healthz", get(|| async { "ok" }));
    let guests = Guests::new(budget.health_checks(), shutdown.clone());
    while let Some((stream, place)) = guests.next(&listener).await {
        let service = TowerToHyperService::new(router.clone());
        let serving = async move {
            let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            place.serve(&builder, stream, service).await;
        };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(serving));
    }
}
