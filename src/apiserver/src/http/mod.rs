//! The listener: TLS with optional client certificates, HTTP/1.1 and HTTP/2, limits on what one
//! connection and one request may cost.

pub(crate) mod access;
pub(crate) mod answer;
pub(crate) mod form;
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
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use access::Identity;

/// The most connections to one address, where the process may have descriptors enough.
const MAX_CONNECTIONS: u64 = 1000;
/// Which part of those that it may have open may be connections to one address.
const SHARE: u64 = 16;
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
    let slots = Arc::new(Semaphore::new(most_connections()));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
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
        while connections.try_join_next().is_some() {}
        let (tls, api, stop) = (tls.clone(), Arc::clone(&api), stop.clone());
        connections.spawn(async move {
            connection(stream, tls, api, stop).await;
            drop(slot);
        });
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

async fn connection(stream: TcpStream, tls: TlsAcceptor, api: Arc<Api>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
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
    let service = service_fn(move |request| {
        let (api, identity) = (Arc::clone(&api), Arc::clone(&identity));
        async move { Ok::<_, std::convert::Infallible>(handle::answer(api, identity, request).await) }
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
    let mut stopping = false;
    loop {
        tokio::select! {
            result = serving.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
