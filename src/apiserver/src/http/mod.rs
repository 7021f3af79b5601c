//! The listener: TLS with optional client certificates, HTTP/1.1 and HTTP/2, limits on what one
//! connection and one request may cost.

pub(crate) mod access;
pub(crate) mod answer;
pub(crate) mod form;
mod guests;
pub(crate) mod handle;
mod impersonate;
pub(crate) mod query;
pub(crate) mod route;

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use access::Identity;
use guests::{Guests, Place};

/// The most connections to one address, where the process may have descriptors enough.
const MAX_CONNECTIONS: u64 = 1000;
/// Which part of those that it may have open may be connections to one address.
const SHARE: u64 = 8;
const MAX_STREAMS: u32 = 250;
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a connection without requests may take to close once it was asked to.
const PARTING: Duration = Duration::from_millis(250);
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
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to be closed.
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Some(place) = guests.admit().await else { break };
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
    let guest = &place.guest;
    let _ = stream.set_nodelay(true);
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => shaken,
        () = guest.leave.cancelled() => return,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let identity = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| Identity::of_certificate(chain.first()?));
    let identity = Arc::new(identity);
    let service = service_fn(|request| {
        let (api, identity, under_way) = (Arc::clone(&api), Arc::clone(&identity), guest.begin());
        async move {
            let answer = handle::answer(api, identity, request).await;
            Ok::<_, std::convert::Infallible>(answer.map(|body| under_way.until_sent(body)))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(KEEPALIVE);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let mut leaving = false;
    let result = loop {
        tokio::select! {
            result = serving.as_mut() => break result,
            () = guest.leave.cancelled(), if !leaving => {
                leaving = true;
                serving.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(PARTING), if leaving && guest.idle_since().is_some() => return,
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "connection");
    }
}
