//! The listener: TLS with optional client certificates, HTTP/1.1 and HTTP/2, limits on what one
//! connection and one request may cost.

pub(crate) mod access;
pub(crate) mod answer;
pub(crate) mod form;
pub(crate) mod handle;
mod impersonate;
pub(crate) mod query;
pub(crate) mod route;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use berth_guests::{Guests, Place};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use access::Identity;

/// The most connections to one address, where the process may have descriptors enough.
const MAX_CONNECTIONS: u64 = 1000;
/// Which part of those that it may have open may be connections to one address.
const SHARE: u64 = 8;
const MAX_STREAMS: u32 = 250;
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long requests that are under way may take after a shutdown began.
const DRAIN: Duration = Duration::from_secs(2);

/// Accepts connections until `stop`, then lets the open ones finish for a moment.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    api: Arc<Api>,
    stop: CancellationToken,
) {
    let guests = Guests::new(most_connections(), stop.clone());
    let mut connections = JoinSet::new();
    while let Some((stream, place)) = guests.next(&listener).await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, tls.clone(), Arc::clone(&api), place));
    }
    // Watches end by themselves at `stop`; what hangs beyond this is cut off.
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    connections.shutdown().await;
}

/// The other parts of a node are in the same process, and must have descriptors whatever is asked of us.
fn most_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = limit.map_or(MAX_CONNECTIONS, |limit| (limit / SHARE).clamp(1, MAX_CONNECTIONS));
    usize::try_from(most).unwrap_or(usize::MAX)
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, api: Arc<Api>, place: Place) {
    let Some(stream) = place.shake_hands(&tls, stream, HANDSHAKE).await else { return };
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates.and_then(|chain| Identity::of_certificate(chain.first()?));
    let identity = Arc::new(identity);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(KEEPALIVE);
    let service = service_fn(|request| {
        let answer = handle::answer(Arc::clone(&api), Arc::clone(&identity), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    place.serve(&builder, stream, service).await;
}
